"""Whether this machine, this workspace and this hospital's data are fit for a round, and how long it will take."""

from __future__ import annotations

import contextlib

from fedmed_cli.errors import FedmedError, MachineError, TrustError
from fedmed_cli.events import Say
from fedmed_cli.federation.doctor import data, forecast, machine, plan
from fedmed_cli.federation.doctor.findings import REASONS, Check, Diagnosis, Examined, Finding, Request
from fedmed_cli.workspace import Workspace
from fedmed_cli.workspace.durable import private_files

AGAIN = "install fedmed again, in an environment of its own"
WRITABLE = "use a local disk with room on it, where you may write"
ASK = "ask the coordinator for it again"
FILE = "correct the file, or name another one with --data"
ROUND = "take a shorter max_length, fewer examples a step, or another device"

# In this order. Each is left out where what it needs is not there, which is said.
CHECKS = (
    Check("python", machine.check_python, AGAIN, kind=MachineError),
    Check("packages", machine.check_packages, AGAIN, kind=MachineError),
    Check("torch", machine.check_torch, AGAIN, kind=MachineError),
    Check("device", machine.check_device, "use --device cpu", ("has_torch",), MachineError),
    Check("temporary folder", machine.check_scratch, "free some space, or set TMPDIR to a folder", kind=MachineError),
    Check("file system", machine.check_file_system, WRITABLE, kind=MachineError),
    Check("clock", machine.check_clock, "set this machine's clock", kind=MachineError),
    Check("plan", plan.check_plan, ASK),
    Check("site", plan.check_site_name, ASK, ("plan",), for_site=True),
    Check("pinned keys", plan.check_pinned_keys, ASK, ("plan",), TrustError),
    Check("own key", plan.check_own_key, "name the right key with --key", ("plan",), TrustError),
    Check("file modes", machine.check_modes, WRITABLE, ("plan",)),
    Check("adapters", plan.check_adapters, ASK, ("plan",), TrustError),
    Check("versions", plan.check_versions, AGAIN, ("plan",)),
    Check("disk", machine.check_disk, WRITABLE, ("plan",), MachineError),
    Check("base", plan.check_base, "name the folder of the plan's base with --base", ("scratch", "plan")),
    Check("memory", machine.check_memory, "use --device cpu", ("plan", "device", "local"), MachineError),
    Check("data", data.check_data, FILE, ("scratch", "plan", "site"), sees_texts=True, for_site=True),
    Check("groups", data.check_groups, FILE, ("index",), sees_texts=True, for_site=True),
    Check("identifiers", data.check_identifiers, FILE, ("index",), sees_texts=True, for_site=True),
    Check("repeats", data.check_repeats, FILE, ("index",), sees_texts=True, for_site=True),
    Check("round", forecast.check_round, ROUND, ("plan", "device", "local", "fits"), MachineError, sees_texts=True),
)


def examine(workspace: Workspace, request: Request, say: Say = lambda message: None) -> Diagnosis:
    """Make every check that can be made. `say` is told which one it is.

    Nothing is written but a folder for the file system's check, which is removed again; what checks need meanwhile lies
    in the machine's temporary folder, for this user alone.
    """
    findings: list[Finding] = []
    not_checked: dict[str, str] = {}
    exit_code = 0
    with private_files(), contextlib.ExitStack() as stack:
        examined = Examined(workspace, request, stack)
        for check in CHECKS:
            if check.for_site and request.site is None:
                continue
            empty = [name for name in check.needs if not getattr(examined, name)]
            if empty:
                not_checked[check.name] = REASONS[empty[0]]
                continue
            say(check.name)
            finding, code = make_check(check, examined)
            findings.append(finding)
            exit_code = exit_code or code
    return Diagnosis(request.site, tuple(findings), not_checked, examined.forecast, exit_code)


def make_check(check: Check, examined: Examined) -> tuple[Finding, int]:
    """A check's finding, and the exit code of its failure; an error that it raises is a failure in its own words."""
    try:
        level, seen, remedy = check.look(examined)
        return Finding(check.name, level, seen, remedy), check.kind.exit_code if level == "FAIL" else 0
    except FedmedError as error:
        return Finding(check.name, "FAIL", error.message, error.hint or check.remedy), error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if isinstance(error.filename, str) else ""
        seen = f"{where}{error.strerror or type(error).__name__}"
        return Finding(check.name, "FAIL", seen, check.remedy), check.kind.exit_code
    except Exception as error:  # whatever it is, the other checks go on
        words = "" if check.sees_texts else f": {' '.join(str(error).split())[:300]}"
        return Finding(check.name, "FAIL", f"{type(error).__name__}{words}", check.remedy), check.kind.exit_code
