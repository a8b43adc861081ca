"""A round of a hundred hospitals over one shared folder, where many fail.

    python benchmarks/scale/folders.py [--sites 100] [--rounds 2] [--seed 0]

Each hospital of a tiny model trains on its own examples and signs. In every round one in ten dies, half of these in
the middle of writing its bundle; one in ten comes late; one in twenty is hostile: a stranger's key, another site's
adapter, a bundle cut short, a contribution of the previous round, or an update a hundred times too long, which passes
the gate and is shortened. The coordinator is `fedmed aggregate --wait`, a process of its own. It prints what that
process took, and fails unless each round is made of just those that came whole and in time, with the bytes of an
aggregation of the same folders by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import fedmed_cli as fedmed
from fedmed_cli.adapters import gate
from fedmed_cli.adapters.adapter import adapter_files, file_digests, plan_adapter
from fedmed_cli.adapters.bundle import pack
from fedmed_cli.adapters.folder import CONTRIBUTION_NAME
from fedmed_cli.federation.mailbox import GLOBAL, bundle_name
from fedmed_cli.federation.received_global import accept_global, file_global
from fedmed_cli.records.signatures import Signer, sign
from fedmed_cli.trust.audit_log import AuditLog

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from conftest import make_tiny_llama
from helpers.factories import make_signer, write_key, write_plan

DYING, LATE, HOSTILE = 0.1, 0.1, 0.05
KINDS = ("a stranger's key", "another site's", "cut short", "of the previous round", "too long")
MAX_STEPS = 2
# What a process reports of its own memory; what the system says of a child counts its parent's before the child began.
COORDINATOR = """
import re, sys
from pathlib import Path
from fedmed_cli.cli.app import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))
sys.exit(code)
"""


class Federation:
    """All parties' keys, the hospitals' workspace, and the folder that they share with the coordinator."""

    def __init__(self, root: Path) -> None:
        self.root, self.shared, self.hospitals = root, root / "shared", fedmed.Workspace(root / "hospitals")
        self.plan, self.key = self.hospitals.read_plan(), root / "keys" / "coordinator"
        self.signers = make_signers(self.plan.sites.names)
        self.base = fedmed.BaseModel(name=str(root / "tiny"), device="cpu")
        self.before: dict[str, bytes] = {}  # of the previous round, by site

    @classmethod
    def make(cls, root: Path, num_sites: int) -> Self:
        """Write the tiny model, the plan, all sites' examples and keys."""
        base = make_tiny_llama(root / "tiny")
        names = tuple(f"H{number:03d}" for number in range(1, num_sites + 1))
        rows = root / "rows.jsonl"
        rows.write_text(
            "".join(
                f'{{"question": "question {n}?", "answer": "answer {n} {n * n}."}}\n' for n in range(20 * num_sites)
            )
        )
        options = fedmed.SplitOptions(names=names, method="iid", near_duplicates=None, phi="off")
        terms = fedmed.PlanOptions(base=str(base), lora_r=4, learning_rate=1e-2, max_length=128)
        hospitals, signers = fedmed.Workspace(root / "hospitals"), make_signers(names)
        fedmed.split(hospitals, fedmed.Source([str(rows)]), options, terms)
        plan = hospitals.read_plan()
        keys = {name: signer.public for name, signer in signers.items()}
        write_plan(hospitals, replace(plan, sites=replace(plan.sites, keys=keys)), signers)
        (root / "keys").mkdir()
        for name, signer in signers.items():
            write_key(root / "keys" / name, signer)
        (root / "shared").mkdir()
        return cls(root)

    def contribution(self, site: str) -> Path:
        """Where a hospital's contribution is in its own workspace."""
        return self.hospitals.contribution(site)

    def train(self, site: str) -> dict[str, bytes]:
        settings = fedmed.SiteSettings(max_steps=MAX_STEPS, max_eval_samples=1)
        result = fedmed.train_site(self.hospitals, site, settings=settings, base=self.base, signer=self.signers[site])
        return {path.name: path.read_bytes() for path in result.path.iterdir()}

    def spoil(self, kind: str, site: str, files: dict[str, bytes], other: dict[str, bytes]) -> bytes:
        """What a hostile site sends in the place of its contribution."""
        if kind == "a stranger's key":
            return pack(files | {f"{CONTRIBUTION_NAME}.sig": sign(make_signer(255), files[CONTRIBUTION_NAME])})
        if kind == "another site's":
            return pack(other)
        if kind == "cut short":
            return pack(files)[:5000]
        if kind == "of the previous round" and site in self.before:
            return self.before[site]
        return self.lengthen(site)

    def passes(self, kind: str, site: str) -> bool:
        """Whether what a hostile site sends passes the gate."""
        return kind == "too long" or (kind == "of the previous round" and site not in self.before)

    def lengthen(self, site: str) -> bytes:
        """Its contribution with an update a hundred times as long, and a record that says so."""
        folder = gate.read_contribution(self.contribution(site), self.plan)
        factors = {module: (a, 100 * b) for module, (a, b) in folder.adapter.factors.items()}
        adapter = plan_adapter(self.plan, factors)
        files = adapter_files(adapter, folder.files["README.md"].decode())
        record = replace(
            folder.record,
            adapter=adapter.digest,
            adapter_bytes=sum(map(len, files.values())),
            files=file_digests(adapter, files),
        ).to_bytes()
        return pack(files | {CONTRIBUTION_NAME: record, f"{CONTRIBUTION_NAME}.sig": sign(self.signers[site], record)})


def make_signers(names: Sequence[str]) -> dict[str, Signer]:
    return {name: make_signer(number) for number, name in enumerate((*names, "coordinator"), 1)}


def draw_fates(names: Sequence[str], rng: random.Random) -> dict[str, str]:
    """What becomes of each site's contribution in a round."""
    drawn = rng.sample(names, len(names))
    dying, late, hostile = (round(share * len(names)) for share in (DYING, LATE, HOSTILE))
    fates = dict.fromkeys(names, "in time")
    fates |= dict.fromkeys(drawn[:dying], "dies") | dict.fromkeys(drawn[dying : dying + late], "late")
    for place, site in enumerate(drawn[dying + late : dying + late + hostile]):
        fates[site] = KINDS[place % len(KINDS)]
    return fates


def play(federation: Federation, number: int, rng: random.Random) -> tuple[set[str], dict[str, bytes], dict[str, str]]:
    """Send what comes to a round in time: who should be counted, what comes late, and each site's fate."""
    names = federation.plan.sites.names
    fates = draw_fates(names, rng)
    contributions = {site: federation.train(site) for site in names}
    counted, afterwards = set(), {}
    for site, files in contributions.items():
        fate, target = fates[site], federation.shared / bundle_name(number, site)
        if fate == "dies":
            if rng.random() < 0.5:
                target.write_bytes(pack(files)[: rng.randrange(1, 5000)])
        elif fate == "late":
            afterwards[target.name] = pack(files)
        elif fate == "in time":
            target.write_bytes(pack(files))
            counted.add(site)
        else:
            data = federation.spoil(fate, site, files, contributions[names[0] if site != names[0] else names[1]])
            target.write_bytes(data)
            if federation.passes(fate, site):
                counted.add(site)
    federation.before = {site: pack(files) for site, files in contributions.items()}
    return counted, afterwards, fates


def by_hand(federation: Federation, home: fedmed.Workspace, number: int) -> bytes:
    """The round's weights, combined by `aggregate` from the folders that the coordinator filed."""
    other = fedmed.Workspace(federation.root / f"by-hand-{number}")
    other.rounds.mkdir(parents=True)
    for path in home.root.glob("federation.toml*"):
        shutil.copy(path, other.root)
    if number > 1:
        shutil.copytree(home.round(number - 1), other.round(number - 1))
    folders = sorted(path for path in home.round(number).iterdir() if path.name != "global")
    fedmed.aggregate(
        other, folders, fedmed.AggregationSettings(weights="tokens"), signer=federation.signers["coordinator"]
    )
    return (other.global_adapter(number) / "adapter_model.safetensors").read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        federation = Federation.make(Path(name), arguments.sites)
        home = fedmed.Workspace(Path(name) / "coordinator")
        home.root.mkdir()
        for path in federation.hospitals.root.glob("federation.toml*"):
            shutil.copy(path, home.root)
        for number in range(1, arguments.rounds + 1):
            print(json.dumps(run_round(federation, home, number, rng)), flush=True)


def run_round(federation: Federation, home: fedmed.Workspace, number: int, rng: random.Random) -> dict[str, object]:
    began = time.perf_counter()
    counted, afterwards, fates = play(federation, number, rng)
    trained = time.perf_counter()
    argv = [sys.executable, "-c", COORDINATOR, "aggregate", "--wait", "-q", "-C", home.root, "--poll", "0.2"]
    argv += ["--mailbox", federation.shared, "--rounds", number, "--min-sites", len(counted), "--deadline", "0s"]
    argv += ["--weights", "tokens", "--key", federation.key]
    process = subprocess.Popen([str(part) for part in argv], stdout=subprocess.PIPE, text=True)
    _, status, used = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert process.stdout is not None
    kilobytes = int(process.stdout.read())
    seconds = time.perf_counter() - trained
    for name, data in afterwards.items():
        (federation.shared / name).write_bytes(data)
    folders = {path.name for path in home.round(number).iterdir()} - {"global"}
    assert folders == counted, {site: (fates[site], site in counted) for site in folders ^ counted}
    weights = (home.global_adapter(number) / "adapter_model.safetensors").read_bytes()
    assert by_hand(federation, home, number) == weights, "not the bytes of an aggregation by hand"
    sent = federation.shared / bundle_name(number, GLOBAL)
    with federation.hospitals.lock():
        folder, _ = accept_global(federation.hospitals, federation.plan, sent, True, print)
        file_global(federation.hospitals, folder)
    events = [one.event for one in AuditLog(home).read()]
    return {
        "round": number,
        "sites": len(fates),
        "counted": len(counted),
        "fates": {fate: list(fates.values()).count(fate) for fate in sorted(set(fates.values()))},
        "events so far": {event: events.count(event) for event in sorted(set(events))},
        "seconds of training": round(trained - began, 1),
        "seconds of the coordinator": round(seconds, 2),
        "its processor seconds": round(used.ru_utime + used.ru_stime, 2),
        "its peak memory, MB": round(kilobytes / 1024),
        "bytes of a bundle": sent.stat().st_size,
        "bytes on its disk": sum(path.stat().st_size for path in home.root.rglob("*") if path.is_file()),
    }


if __name__ == "__main__":
    main()
