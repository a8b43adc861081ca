"""`fedmed doctor`: silent on a sound site, and each planted fault is found by the check that is there for it."""

import contextlib
import dataclasses
import json
import os
import random
import resource
import shutil
import stat
import subprocess
import sys
import time

import pytest
from conftest import make_tiny_llama
from helpers.factories import SIGNERS, contribution, make_plan, write_key, write_plan

from fedmed_cli.adapters import archive
from fedmed_cli.cli.app import main
from fedmed_cli.data import corpus
from fedmed_cli.federation.doctor import CHECKS, make_check
from fedmed_cli.federation.doctor.findings import Check, Diagnosis, Examined, Request
from fedmed_cli.federation.doctor.machine import check_disk, check_memory
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.signatures import create, sign
from fedmed_cli.workspace import Workspace
from fedmed_cli.workspace.durable import write_folder

NAMES = ("A", "B", "C", "coordinator")
WORDS = sorted({word for row in corpus.examples()[:300] for word in row["answer"].lower().split() if word.isalpha()})


def make_rows(number):
    """Examples without identifiers and without repeats, two of each patient."""
    rng = random.Random(0)
    return [
        {
            "question": " ".join(rng.choices(WORDS, k=8)),
            "answer": " ".join(rng.choices(WORDS, k=12)),
            "patient": f"p{i // 2}",
        }
        for i in range(number)
    ]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path.chmod(0o600)


@dataclasses.dataclass
class Site:
    """Hospital B's machine: its workspace, its file and key outside, and what doctor is called with."""

    place: Workspace
    data: object
    key: object
    base: object
    more: list = dataclasses.field(default_factory=list)
    site: str = "B"

    @property
    def plan(self):
        return Plan.read(self.place.plan_path)

    def change_plan(self, **parts):
        changed = {name: dataclasses.replace(getattr(self.plan, name), **values) for name, values in parts.items()}
        write_plan(self.place, dataclasses.replace(self.plan, **changed))

    @property
    def argv(self):
        named = ["--data", self.data, "--group-by", "patient"] if self.data else []
        base = ["--base", self.base] if self.base else []
        argv = ["doctor", "--site", self.site, *named, *base, "--key", self.key, "-C", self.place.root, *self.more]
        return [str(part) for part in argv]


@pytest.fixture(scope="module")
def planned_once(tiny_base, tmp_path_factory):
    root = tmp_path_factory.mktemp("planned") / "work"
    argv = ["init", "-q", "-C", str(root), "--names", "A,B,C", "--base", str(tiny_base), "--lora-r", "4"]
    assert main([*argv, "--max-steps", "3", "--max-length", "256"]) == 0
    return root


@pytest.fixture
def site(planned_once, tiny_base, tmp_path):
    place = Workspace(shutil.copytree(planned_once, tmp_path / "work"))
    write_rows(tmp_path / "records.jsonl", make_rows(160))
    found = Site(place, tmp_path / "records.jsonl", write_key(tmp_path / "key", SIGNERS["B"]), tiny_base)
    found.change_plan(sites={"keys": {name: SIGNERS[name].public for name in NAMES}})
    return found


def examine(site, capsys):
    """The exit code, and the findings by check."""
    capsys.readouterr()
    code = main([*site.argv, "--json"])
    diagnosis = Diagnosis.from_bytes(capsys.readouterr().out.encode(), "stdout")
    assert diagnosis.exit_code == code
    return diagnosis, {finding.check: finding for finding in diagnosis.findings}


def files(*roots):
    return {
        path: (stat.S_IMODE(path.lstat().st_mode), path.read_bytes() if path.is_file() else None)
        for root in roots
        for path in sorted(root.rglob("*"))
    }


@pytest.mark.slow
def test_a_sound_site_has_no_warning_and_no_failure_and_nothing_is_changed(site, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FEDMED_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    before = files(tmp_path, site.base)
    site.more = ["--device", "cpu"]  # of a GPU that torch cannot use it would warn
    diagnosis, found = examine(site, capsys)
    limits = [name for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY") if os.environ.get(name)]
    odd = {name: one.seen for name, one in found.items() if one.level != "PASS" and not (name == "device" and limits)}
    assert odd == {}
    assert list(found) == [check.name for check in CHECKS]
    assert diagnosis.not_checked == {}
    assert diagnosis.forecast.steps == 3
    assert diagnosis.forecast.examples == "the site's own examples"
    parts = diagnosis.forecast
    whole = parts.seconds_to_start + parts.steps * parts.seconds_per_step + parts.seconds_of_measuring
    assert parts.seconds == pytest.approx(whole)
    assert files(tmp_path, site.base) == before


def send(site, name="B", change=lambda record: record):
    """Put a contribution of a site to round 1 into the mailbox, signed, with a changed record."""
    signer, start = SIGNERS[name], archive.starting_adapter(site.place, site.plan, 1)
    parts = contribution(site.plan, name, start)
    record = json.loads(parts["contribution.json"])
    parts["contribution.json"] = json.dumps(change(record)).encode()
    assert Contribution.from_bytes(parts["contribution.json"], "record")
    parts["contribution.json.sig"] = sign(signer, parts["contribution.json"])
    write_folder(site.place.contribution(name), dict(parts))


def with_run(**values):
    return lambda record: record | {"run": record["run"] | values}


def claim_installed(monkeypatch, tmp_path, name, version):
    """Have a package's metadata found that says another version."""
    folder = tmp_path / "packages" / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(folder.parent))


FAULTS = {}


def fault(check, level, said, code=None):
    """A planted fault: which check finds it, how it comes out, what it says, and the exit code where it is not 0."""

    def add(plant):
        FAULTS[plant.__name__] = (plant, check, level, said, code)
        return plant

    return add


@fault("packages", "FAIL", "peft is 0.1, not", 5)
def a_package_is_too_old(site, tmp_path, monkeypatch):
    claim_installed(monkeypatch, tmp_path, "peft", "0.1")


@fault("packages", "FAIL", "the package that is installed is 0.3.2", 5)
def another_project_of_the_same_name_is_installed(site, tmp_path, monkeypatch):
    claim_installed(monkeypatch, tmp_path, "fedmed", "0.3.2")


@fault("torch", "WARN", "finds no CUDA device, but nvidia-smi is here")
def a_gpu_that_this_torch_does_not_know(site, tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@fault("device", "FAIL", "--device mps: torch finds no Apple GPU", 5)
def a_device_that_is_not_there(site, tmp_path, monkeypatch):
    site.more = ["--device", "mps"]


@fault("device", "WARN", "ATEN_CPU_CAPABILITY=default")
def a_cpu_that_is_held_back(site, tmp_path, monkeypatch):
    site.more = ["--device", "cpu"]
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")


@fault("clock", "WARN", "adapters/B/contribution.json is of 2099-01-01")
def a_contribution_from_the_future(site, tmp_path, monkeypatch):
    send(site, change=with_run(created="2099-01-01T00:00:00Z"))


@fault("clock", "WARN", "federation.toml is of")
def a_plan_from_the_future(site, tmp_path, monkeypatch):
    os.utime(site.place.plan_path, (time.time() + 90_000,) * 2)


@fault("clock", "FAIL", "it is 1970-01-01 here", 5)
def a_clock_that_was_never_set(site, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)


@fault("clock", "WARN", "but the newest thing here is of 20")
def a_clock_that_is_years_ahead(site, tmp_path, monkeypatch):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 8 * 366 * 86_400)


@fault("plan", "FAIL", "is not a fedmed workspace", 3)
def no_plan(site, tmp_path, monkeypatch):
    site.place.plan_path.unlink()


@fault("plan", "FAIL", "is not TOML", 3)
def a_damaged_plan(site, tmp_path, monkeypatch):
    site.place.plan_path.write_text("plan =")


@fault("plan", "FAIL", "the keys of A, B, C, coordinator are not those that were pinned here before", 7)
def a_plan_that_dropped_its_keys(site, tmp_path, monkeypatch):
    site.place.read_plan()
    site.change_plan(sites={"keys": {}})


@fault("site", "FAIL", "the plan has no site 'Z'", 3)
def a_site_that_the_plan_does_not_have(site, tmp_path, monkeypatch):
    site.site = "Z"


@fault("pinned keys", "WARN", "the plan pins no key for C")
def a_site_without_a_pinned_key(site, tmp_path, monkeypatch):
    site.change_plan(sites={"keys": {name: key for name, key in site.plan.sites.keys.items() if name != "C"}})


@fault("own key", "FAIL", "there is no key", 7)
def no_key_here(site, tmp_path, monkeypatch):
    site.key.unlink()


@fault("own key", "FAIL", "but the plan pins", 7)
def a_strangers_key(site, tmp_path, monkeypatch):
    site.key = write_key(tmp_path / "other", SIGNERS["stranger"])


@fault("own key", "FAIL", "which the plan pins for A", 7)
def another_sites_key(site, tmp_path, monkeypatch):
    site.key = write_key(tmp_path / "other", SIGNERS["A"])


@fault("own key", "FAIL", "others may read this private key (mode 0644", 3)
def a_key_that_others_may_read(site, tmp_path, monkeypatch):
    site.key.chmod(0o644)


@fault("own key", "FAIL", "a private key never does", 2)
def a_key_in_the_workspace(site, tmp_path, monkeypatch):
    site.key = write_key(site.place.root / "key", SIGNERS["B"])


@fault("own key", "FAIL", "the public half of a key with a passphrase is missing", 7)
def a_key_with_a_passphrase_without_its_public_half(site, tmp_path, monkeypatch):
    create(tmp_path / "locked", "secret", "B")
    site.key = tmp_path / "locked"
    (tmp_path / "locked.pub").unlink()


@fault("own key", "FAIL", "is not a plain file", 3)
def a_folder_for_a_key(site, tmp_path, monkeypatch):
    site.key = tmp_path / "keys"
    site.key.mkdir()


@fault("own key", "FAIL", "is not a usable private key", 3)
def a_key_that_is_none(site, tmp_path, monkeypatch):
    site.key.write_text("junk")


@fault("file modes", "WARN", ".fedmed (0755)")
def private_files_that_others_may_read(site, tmp_path, monkeypatch):
    site.place.private.mkdir(exist_ok=True)
    site.place.private.chmod(0o755)


@fault("file modes", "WARN", "data/B/train.jsonl (0644)")
def examples_that_others_may_read(site, tmp_path, monkeypatch):
    folder, site.data = site.place.site_data("B"), None
    folder.mkdir(parents=True)
    for path in (folder, folder.parent):
        path.chmod(0o755)
    write_rows(folder / "train.jsonl", make_rows(80))
    write_rows(folder / "validation.jsonl", make_rows(20))
    (folder / "train.jsonl").chmod(0o644)


@fault("adapters", "FAIL", "says sha256", 7)
def a_contribution_that_was_damaged(site, tmp_path, monkeypatch):
    send(site)
    (site.place.contribution("B") / "README.md").write_text("changed")


@fault("adapters", "WARN", "process 123 works here, or was killed while it did")
def a_command_that_was_killed(site, tmp_path, monkeypatch):
    site.place.make_private()
    (site.place.private / "lock.pid").write_text("123\n")


@fault("versions", "WARN", "A used torch 1.13.0+cpu, here")
def another_torch_elsewhere(site, tmp_path, monkeypatch):
    send(site, "A", with_run(torch="1.13.0+cpu"))


@fault("versions", "WARN", "A used fedmed 9.0, here")
def a_newer_fedmed_elsewhere(site, tmp_path, monkeypatch):
    send(site, "A", lambda record: record | {"fedmed_version": "9.0"})


@fault("base", "FAIL", "the plan expects fingerprint", 4)
def another_base_of_the_same_shape(site, tmp_path, monkeypatch):
    site.base = make_tiny_llama(tmp_path / "other", seed=1)


@fault("base", "FAIL", "holds neither model.safetensors nor", 3)
def a_base_without_weights(site, tmp_path, monkeypatch):
    site.base = tmp_path / "empty"
    site.base.mkdir()


@fault("base", "FAIL", "no such folder", 3)
def a_base_whose_folder_only_the_coordinator_has(site, tmp_path, monkeypatch):
    site.base = None


@fault("base", "FAIL", "the plan expects fingerprint", 4)
def a_base_without_its_tokenizer(site, tmp_path, monkeypatch):
    site.base = shutil.copytree(site.base, tmp_path / "part")
    (site.base / "tokenizer.json").unlink()


@fault("base", "WARN", "is not on this machine, and is fetched first")
def a_base_that_is_not_here(site, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMED_CACHE", str(tmp_path / "cache"))
    shutil.rmtree(site.place.root)
    assert main(["init", "-q", "-C", str(site.place.root), "--names", "A,B,C"]) == 0
    site.change_plan(sites={"keys": {name: SIGNERS[name].public for name in NAMES}})
    site.base = None


@fault("data", "WARN", "there are no examples of site B to look at")
def no_examples(site, tmp_path, monkeypatch):
    site.data = None


@fault("data", "FAIL", "no such file", 3)
def a_file_that_is_not_there(site, tmp_path, monkeypatch):
    site.data.unlink()


@fault("data", "FAIL", "records.jsonl", 3)
def a_file_with_bad_rows(site, tmp_path, monkeypatch):
    write_rows(site.data, [*make_rows(60), {"question": "no answer"}])


@fault("data", "FAIL", "expected columns question and answer, found Antwort, Frage", 3)
def a_file_with_columns_of_other_names(site, tmp_path, monkeypatch):
    write_rows(site.data, [{"Frage": row["question"], "Antwort": row["answer"]} for row in make_rows(60)])


@fault("data", "FAIL", "row 1 is not UTF-8", 3)
def a_file_in_latin_1(site, tmp_path, monkeypatch):
    site.data = tmp_path / "records.csv"
    lines = [f"{row['question']},\xc4 {row['answer']},{row['patient']}\n" for row in make_rows(60)]
    site.data.write_bytes("".join(["question,answer,patient\n", *lines]).encode("latin-1"))


@fault("data", "WARN", "1 rows are none")
def a_bad_row_among_those_that_may_be(site, tmp_path, monkeypatch):
    write_rows(site.data, [*make_rows(80), {"question": "no answer", "answer": "", "patient": "p"}])
    site.more = ["--max-bad", "0.1"]


@fault("data", "FAIL", "the data have no column 'patient'", 3)
def no_such_group_column(site, tmp_path, monkeypatch):
    write_rows(site.data, [{"question": row["question"], "answer": row["answer"]} for row in make_rows(60)])


@fault("data", "FAIL", "holds the examples that 'fedmed split' made", 6)
def data_of_a_split_are_here_already(site, tmp_path, monkeypatch):
    site.place.site_data("B").mkdir(parents=True)
    site.place.data.chmod(0o700)


@fault("groups", "WARN", "29 groups by patient")
def few_groups(site, tmp_path, monkeypatch):
    write_rows(site.data, make_rows(58))


@fault("groups", "FAIL", "1 groups by patient", 3)
def one_group(site, tmp_path, monkeypatch):
    write_rows(site.data, [row | {"patient": "p"} for row in make_rows(60)])


@fault("identifiers", "WARN", "in 1 of 160 examples: 1 email")
def identifiers(site, tmp_path, monkeypatch):
    rows = make_rows(160)
    rows[7]["answer"] += " write to jane.doe@hospital.example"
    write_rows(site.data, rows)


@fault("identifiers", "WARN", "not scanned for, with --phi off")
def no_scan_for_identifiers(site, tmp_path, monkeypatch):
    site.more += ["--phi", "off", "--near-duplicates", "off"]


@fault("data", "FAIL", "1 of 160 examples hold what may identify a patient", 3)
def identifiers_that_training_would_refuse(site, tmp_path, monkeypatch):
    identifiers(site, tmp_path, monkeypatch)
    site.more += ["--phi", "block"]


@fault("repeats", "WARN", "40 examples repeat another's text")
def repeats(site, tmp_path, monkeypatch):
    write_rows(site.data, [*make_rows(160), *make_rows(40)])


@fault("round", "FAIL", "fits into max_length 16", 3)
def examples_that_are_all_too_long(site, tmp_path, monkeypatch):
    site.change_plan(training={"max_length": 16})


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, site, tmp_path, capsys, monkeypatch):
    plant, check, level, said, code = FAULTS[name]
    plant(site, tmp_path, monkeypatch)
    diagnosis, found = examine(site, capsys)
    assert (found[check].level, diagnosis.exit_code) == (level, code or 0), found[check]
    assert said in found[check].seen
    assert found[check].remedy
    others = {other: one.seen for other, one in found.items() if one.level == "FAIL" and other != check}
    assert others == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "remedy"),
    [
        (a_key_with_a_passphrase_without_its_public_half, "ssh-keygen -y -f "),
        (a_base_whose_folder_only_the_coordinator_has, "with --base"),
        (a_base_without_its_tokenizer, "tokenizer.json missing in "),
        (a_file_in_latin_1, "(60 encoding); correct them and save the file as UTF-8"),
    ],
)
def test_a_remedy_says_what_to_do_about_this_very_fault(plant, remedy, site, tmp_path, capsys, monkeypatch):
    plant(site, tmp_path, monkeypatch)
    _, found = examine(site, capsys)
    said = found[FAULTS[plant.__name__][1]].remedy
    assert remedy in said
    assert "--max-bad" not in said  # where no row is an example, there is nothing to train on


def test_a_workspace_that_is_not_there_is_no_fault_of_the_disk(tmp_path, capsys):
    assert main(["doctor", "--json", "--site", "B", "-C", str(tmp_path / "nowhere")]) == 5
    diagnosis = Diagnosis.from_bytes(capsys.readouterr().out.encode(), "stdout")
    (found,) = (one for one in diagnosis.findings if one.check == "file system")
    assert found.seen.endswith("nowhere: no such folder")
    assert found.remedy == "name the workspace with --workspace"


def test_there_are_at_least_twenty_faults_and_most_checks_have_one():
    assert len(FAULTS) >= 20
    planted = {check for _, check, _, _, _ in FAULTS.values()}
    # No fault of python can be planted here; those of disk, memory and file system are below.
    assert {check.name for check in CHECKS} - planted == {"python", "temporary folder", "disk", "memory", "file system"}


def test_a_disk_that_is_too_small_for_a_round(tmp_path):
    plan = make_plan(hidden=65_536, layers=64, r=64)
    names = tuple(f"S{number}" for number in range(20_000))
    plan = dataclasses.replace(plan, sites=dataclasses.replace(plan.sites, names=names, keys={}))
    level, seen, remedy = check_disk(Examined(Workspace(tmp_path), Request(), contextlib.ExitStack(), plan=plan))
    assert level == "FAIL"
    assert "a round needs about 150" in seen
    assert "free some space" in remedy


def test_a_base_that_is_larger_than_the_memory(tmp_path):
    plan = make_plan()
    plan = dataclasses.replace(plan, base=dataclasses.replace(plan.base, num_bytes=10**15))
    examined = Examined(Workspace(tmp_path), Request(device="cpu"), contextlib.ExitStack(), plan=plan)
    level, seen, _ = check_memory(examined)
    assert level == "FAIL"
    assert not examined.fits
    assert "000.0 GB for the base" in seen


@pytest.mark.slow
def test_a_file_system_that_takes_nothing(site):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    command = [sys.executable, "-m", "fedmed_cli", *site.argv, "--json"]
    done = subprocess.run(command, capture_output=True, preexec_fn=limit)
    diagnosis = Diagnosis.from_bytes(done.stdout, done.stderr.decode())
    found = {finding.check: finding for finding in diagnosis.findings}
    assert "File too large" in found["file system"].seen
    assert "No usable temporary directory" in found["temporary folder"].seen
    assert {found[name].level for name in ("file system", "temporary folder")} == {"FAIL"}
    assert done.returncode == diagnosis.exit_code == 5
    assert not list(site.place.root.glob(".doctor*"))


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        (["--max-steps", "7", "--eval-steps", "2", "--gradient-checkpointing"], 7),
        (["--num-train-epochs", "1", "--per-device-train-batch-size", "8"], None),
        (["--dp-noise-multiplier", "1", "--gradient-accumulation-steps", "4"], 3),
    ],
)
@pytest.mark.slow
def test_the_forecast_is_of_the_training_that_the_options_ask_for(more, steps, site, capsys):
    site.more = more
    diagnosis, found = examine(site, capsys)
    assert found["round"].level == "PASS"
    num_train = int(found["groups"].seen.split(": ")[1].split(" ")[0])
    assert 100 < num_train < 150
    assert diagnosis.forecast.steps == (steps or -(-num_train // 8))
    assert diagnosis.forecast.seconds_of_measuring > 0


def test_without_a_plan_the_machine_is_examined(tmp_path, capsys):
    assert main(["doctor", "--json", "-C", str(tmp_path)]) == 0
    diagnosis = Diagnosis.from_bytes(capsys.readouterr().out.encode(), "stdout")
    assert [one.check for one in diagnosis.findings] == [
        "python", "packages", "torch", "device", "temporary folder", "file system", "clock", "plan",
    ]  # fmt: skip
    assert diagnosis.not_checked["base"] == "there is no valid plan"


@pytest.mark.slow
def test_a_key_with_a_passphrase_is_known_by_its_public_half(site, tmp_path, capsys):
    signer = create(tmp_path / "locked", "secret", "B")
    site.change_plan(sites={"keys": site.plan.sites.keys | {"B": signer.public}})
    site.key, site.data = tmp_path / "locked", None
    _, found = examine(site, capsys)
    assert (found["own key"].level, found["own key"].seen.endswith("pinned for B")) == ("PASS", True)


def test_words_of_an_unknown_error_are_shown_only_where_they_cannot_be_a_patients(tmp_path):
    def look(examined):
        raise ValueError("Jane Doe takes warfarin")

    examined = Examined(Workspace(tmp_path), Request(), contextlib.ExitStack())
    found, code = make_check(Check("x", look, "do y", sees_texts=True), examined)
    assert (found.level, found.seen, found.remedy, code) == ("FAIL", "ValueError", "do y", 3)
    assert make_check(Check("x", look, "do y"), examined)[0].seen == "ValueError: Jane Doe takes warfarin"


@pytest.mark.slow
def test_the_lines_for_people_name_the_remedy(site, capsys):
    site.data = None
    site.key.unlink()
    assert main(site.argv) == 7
    out = " ".join(capsys.readouterr().out.split())
    assert "own key FAIL" in out
    assert "remedy: make one with 'fedmed keys new'" in out
    assert "groups not checked: there are no examples" in out
    assert "1 failure, " in out
