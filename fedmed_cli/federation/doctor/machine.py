"""Checks of the machine: what is installed, what computes, and where files lie."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path

from fedmed_cli import __version__
from fedmed_cli.federation.doctor.findings import Examined, Seen
from fedmed_cli.text import first_few, number_of_bytes

CLOCK_TOLERANCE = 300.0  # seconds
LONG_AGO = 366 * 86_400.0  # seconds: few federations rest as long, and clocks that are wrong are often wrong by years
NO_EARLIER = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)  # no fedmed ran before
LIBRARIES_BYTES = 1_500_000_000  # torch, transformers and a step's activations, beside the weights
CPU_LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


def check_python(examined: Examined) -> Seen:
    seen = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, in {sys.prefix}"
    if sys.maxsize < 2**32:
        return "FAIL", f"{seen}: 32 bits", "install a Python of 64 bits; torch has no other"
    return "PASS", seen, None


def check_packages(examined: Examined) -> Seen:
    """Each package that fedmed needs, by its own metadata."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(line) for line in importlib.metadata.requires("fedmed") or ()]
        installed = importlib.metadata.version("fedmed")
    except importlib.metadata.PackageNotFoundError:
        return "WARN", "fedmed is not installed as a package, so what it needs is not known", "pip install ."
    if installed != __version__:
        again = "another project has that name on the public index: install this one from a checkout or wheel"
        return "FAIL", f"fedmed {__version__} runs, but the package that is installed is {installed}", again
    wrong = []
    for one in needed:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
            continue
        if not one.specifier.contains(found, prereleases=True):
            wrong.append(f"{one.name} is {found}, not {one.specifier}")
    if wrong:
        return "FAIL", "; ".join(wrong), "install fedmed again, with -c constraints.txt, in an environment of its own"
    return "PASS", f"fedmed {__version__} with all its dependencies", None


def check_torch(examined: Examined) -> Seen:
    began = time.perf_counter()
    import torch
    import transformers  # noqa: F401  # a training imports it too, and waits as long

    examined.seconds_to_import, examined.has_torch = time.perf_counter() - began, True
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs"
    seen = f"torch {torch.__version__}, built for {build}"
    is_asked = examined.request.device in ("auto", "cuda")
    if is_asked and shutil.which("nvidia-smi") and not torch.cuda.is_available():
        remedy = "install torch for this machine's CUDA and driver, or use --device cpu"
        return "WARN", f"{seen}: it finds no CUDA device, but nvidia-smi is here", remedy
    return "PASS", seen, None


def check_device(examined: Examined) -> Seen:
    """What will compute, and in which number format."""
    import torch

    from fedmed_cli.models import cpu, language_model

    device = language_model.choose_device(examined.request.device)
    examined.device = device.type
    form = "bfloat16" if language_model.has_bfloat16(device) else "float32"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        seen = f"{name}, {number_of_bytes(free)} of {number_of_bytes(total)} free, products in {form}"
        return "PASS", seen, None
    if device.type != "cpu":
        return "PASS", f"{device.type}, products in {form}", None
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    seen = f"CPU of class {cpu.cpu_class()}, {threads}, products in {form}"
    limits = [f"{name}={os.environ[name]}" for name in CPU_LIMITS if os.environ.get(name)]
    if limits:
        return "WARN", f"{seen}; held back by {', '.join(limits)}", f"unset {' '.join(CPU_LIMITS)}"
    return "PASS", seen, None


def check_disk(examined: Examined) -> Seen:
    """Room for a contribution, its checkpoint, and a round's archive with every site's contribution."""
    plan = examined.agreed
    needed = 4 * plan.num_parameters * (6 + 2 * len(plan.sites.names))
    free = shutil.disk_usage(examined.workspace.root).free
    seen = f"{number_of_bytes(free)} free, a round needs about {number_of_bytes(needed)}"
    if free < needed:
        return "FAIL", seen, f"free some space where {examined.workspace.root} lies, or use another disk"
    if free < 2 * needed:
        return "WARN", seen, "free some space: two rounds do not fit"
    return "PASS", seen, None


def check_scratch(examined: Examined) -> Seen:
    """A folder for what checks, and a training on a large file, need meanwhile."""
    name = examined.stack.enter_context(tempfile.TemporaryDirectory(prefix="fedmed-doctor-"))
    examined.scratch = Path(name)
    free = shutil.disk_usage(name).free
    return "PASS", f"{tempfile.gettempdir()}, {number_of_bytes(free)} free", None


def check_file_system(examined: Examined) -> Seen:
    """Try, in a folder that is removed again, all that fedmed asks of the file system."""
    root = examined.workspace.root
    if not root.is_dir():
        return "FAIL", f"{root}: no such folder", "name the workspace with --workspace"
    with tempfile.TemporaryDirectory(dir=root, prefix=".doctor.", suffix=".tmp") as name:
        place = Path(name)
        first, second = place / "first", place / "second"
        for path in (first, second):
            with path.open("wb") as file:
                file.write(path.name.encode())
                file.flush()
                os.fsync(file.fileno())
        os.replace(first, second)
        if second.read_bytes() != b"first" or first.exists():
            return "FAIL", f"{root}: renaming over a file does not replace it", "use a local disk"
        (place / "folder").mkdir()
        (place / "folder").rename(place / "renamed")
        if not _locks_hold(place / "lock"):
            remedy = "never run two commands here at once, or use a local disk"
            return "WARN", f"{root}: a lock does not keep a second process out", remedy
        cases = "upper and lower case are one" if (place / "SECOND").exists() else "upper and lower case differ"
        return "PASS", f"fsync, renaming and locks work; {cases}; {_describe_links(place)}", None


def _locks_hold(path: Path) -> bool:
    from filelock import FileLock, Timeout

    with FileLock(path, is_singleton=False):
        try:
            with FileLock(path, timeout=0, is_singleton=False):
                return False
        except Timeout:
            return True


def _describe_links(place: Path) -> str:
    try:
        (place / "link").symlink_to("second")
    except OSError:  # Windows asks for a privilege; base models are then linked otherwise or copied
        return "no symbolic links"
    return "symbolic links work"


def check_clock(examined: Examined) -> Seen:
    """Now, against the plan's file and what records of others say of when they were made."""
    now = time.time()
    here = datetime.datetime.fromtimestamp(now, datetime.UTC)
    if here < NO_EARLIER:
        return "FAIL", f"it is {here:%Y-%m-%d} here", "set this machine's clock; TLS refuses certificates by it"
    times = _list_times(examined)
    odd = [
        f"{examined.workspace.relative(path)} is of {made:%Y-%m-%d %H:%M}"
        for path, made in times
        if made.timestamp() > now + CLOCK_TOLERANCE
    ]
    if not odd and times and max(made for _, made in times).timestamp() < now - LONG_AGO:
        odd = [f"the newest thing here is of {max(made for _, made in times):%Y-%m-%d}"]
    if odd:
        remedy = "compare this machine's clock with another (timedatectl), and ask whoever made them to do so"
        return "WARN", f"it is {here:%Y-%m-%d %H:%M} UTC here, but {first_few(odd, '; ')}", remedy
    return "PASS", f"{here:%Y-%m-%d %H:%M} UTC, and nothing here is from the future", None


def _list_times(examined: Examined) -> list[tuple[Path, datetime.datetime]]:
    """When the plan came here, and when each readable record in the mailbox and of the rounds was made."""
    from fedmed_cli.federation.doctor.plan import list_runs

    workspace, times = examined.workspace, []
    if workspace.plan_path.exists():
        modified = workspace.plan_path.stat().st_mtime
        times.append((workspace.plan_path, datetime.datetime.fromtimestamp(modified, datetime.UTC)))
    for path, _, run in list_runs(workspace):
        try:
            times.append((path, datetime.datetime.fromisoformat(str(run.get("created")))))
        except ValueError:
            continue
    return [(path, made if made.tzinfo else made.replace(tzinfo=datetime.UTC)) for path, made in times]


def check_modes(examined: Examined) -> Seen:
    """What is computed from records is for this user alone."""
    workspace, site = examined.workspace, examined.site
    places = [workspace.private] + ([workspace.site_data(site)] if site else [])
    if os.name == "nt":
        return "PASS", "Windows: who may read a folder is not looked at", None
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in places if path.exists()}
    files = sorted(workspace.site_data(site).glob("*.*")) if site else []
    modes |= {path: stat.S_IMODE(path.stat().st_mode) for path in files if path.is_file()}
    if workspace.data.exists() and not stat.S_IMODE(workspace.data.stat().st_mode) & 0o077:
        modes = {path: mode for path, mode in modes.items() if workspace.data not in path.parents}
    open_ones = [path for path, mode in modes.items() if mode & 0o077]
    if open_ones:
        seen = ", ".join(f"{workspace.relative(path)} ({modes[path]:04o})" for path in open_ones)
        remedy = f"chmod -R go-rwx {' '.join(shlex.quote(str(path)) for path in open_ones)}"
        return "WARN", f"others on this machine may read {seen}", remedy
    return "PASS", "files made from records are readable only by this user", None


def check_memory(examined: Examined) -> Seen:
    """Room for the plan's base in the number format in which it will run, beside the libraries."""
    import torch

    from fedmed_cli.models import language_model

    request, local = examined.request, examined.local
    device = language_model.choose_device(request.device)
    stored = 4 if local and "32" in str(local.config.get("dtype") or local.config.get("torch_dtype")) else 2
    used = 0.6 if request.load_in_4bit else 2 if language_model.has_bfloat16(device) else 4
    weights = examined.agreed.base.num_bytes / stored * used
    free, needed = _free_memory(), weights + LIBRARIES_BYTES
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    seen = (
        f"{number_of_bytes(free)} free, {number_of_bytes(weights)} for the base, about {number_of_bytes(needed)} in all"
    )
    remedy = "close other programs, add --load-in-4bit, or take a machine with more memory"
    if free < weights:
        return "FAIL", seen, remedy
    examined.fits = True
    return ("WARN", seen, remedy) if free < needed else ("PASS", seen, None)


def _free_memory() -> float:
    """Bytes that this process may still take: the machine's, or what its control group leaves."""
    import psutil

    free = float(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return min(free, float(limit) - float(used)) if limit != "max" else free
    except (OSError, ValueError):
        return free
