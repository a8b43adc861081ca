"""A federation of processes over one folder, each killed again and again: `python unattended.py SCENE BASE KILLS SEED`.

Three hospitals and a coordinator run for two rounds. What B sends, and the global adapters that it gets, are copied
piece by piece; the contribution of D to round 1 comes when round 1 is made; E sends what must be refused. Prints one
JSON object. A program of its own, for a process that has started OpenMP threads must not fork.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fedmed_cli.adapters.bundle import pack
from fedmed_cli.federation.mailbox import bundle_name
from fedmed_cli.records.plan import Plan
from fedmed_cli.trust.audit_log import AuditLog
from fedmed_cli.workspace import Workspace
from helpers.crashing import Calls, child, leftovers, run
from helpers.factories import make_signer, with_keys, write_key, write_plan

NUM_ROUNDS = 2
AT_WORK = "ABC"
PIECE = 9_000  # bytes that a courier copies at once


class Scene:
    """One plan with pinned keys, and workspaces of it."""

    def __init__(self, root, base):
        root.mkdir()
        self.root, self.base, self.log, self.keys = root, base, root / "log", {}
        self.template = root / "template"
        argv = ["split", "-q", "--hospitals", "5", "--base", base, "--limit", "240", "--by", "iid", "--lora-r", "4"]
        self.do(*argv, "--learning-rate", "1e-2", "--max-length", "256", "-C", self.template)
        path = self.template / "federation.toml"
        plan = Plan.read(path)
        signers = {name: make_signer(number) for number, name in enumerate((*plan.sites.names, "coordinator"), 1)}
        pinned = {name: signer.public for name, signer in signers.items()}
        write_plan(Workspace(self.template), with_keys(plan, pinned), signers)
        for name, signer in signers.items():
            self.keys[name] = write_key(root / f"key-{name}", signer)

    def do(self, *argv):
        assert run([str(part) for part in argv], self.log) == 0, self.log.read_text()[-3000:]

    def workspace(self, name):
        return Workspace(Path(shutil.copytree(self.template, self.root / name)))

    def train(self, place, site, *more):
        argv = ["train-local", "--max-steps", "3", "--save-steps", "1", "--max-eval-samples", "2", "--site", site]
        return [*argv, "--base", self.base, "--key", self.keys[site], "-C", place.root, *more]

    def make(self, place, *more):
        return ["aggregate", "--weights", "tokens", "--key", self.keys["coordinator"], "-C", place.root, *more]

    def undisturbed(self):
        """Two rounds of three hospitals in one workspace, and the bundle of D's contribution to the first."""
        place, late = self.workspace("undisturbed"), b""
        for number in range(1, NUM_ROUNDS + 1):
            for site in AT_WORK if late else (*AT_WORK, "D"):
                self.do(*self.train(place, site, "-q"))
            late = late or pack({path.name: path.read_bytes() for path in place.contribution("D").iterdir()})
            self.do(*self.make(place, "-q", *(place.contribution(site) for site in AT_WORK)))
            assert place.newest_round() == number
        return place, late


class Process:
    """A command that is started again after each kill, and left alone after the last one."""

    def __init__(self, argv, log, calls):
        self.argv, self.log, self.calls, self.killed, self.is_done = [str(part) for part in argv], log, calls, 0, False
        self.start()

    def start(self):
        calls = Calls(self.calls.pop()) if self.calls else None
        self.pid = child(self.argv, self.log, calls.start if calls else lambda: None)

    def tend(self):
        """Start it again where it was killed."""
        pid, status = (0, 0) if self.is_done else os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL), (self.argv, code, self.log.read_text()[-3000:])
        self.is_done = code == 0
        self.killed += code != 0
        if not self.is_done:
            self.start()


class Courier:
    """Copies files with some names from one folder to another, a piece at a time, under their own names."""

    def __init__(self, source, target, pattern):
        self.source, self.target, self.pattern, self.copied = source, target, pattern, {}

    def go(self):
        for path in self.source.glob(self.pattern):
            status = path.stat()
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            known, done = self.copied.get(path.name, (None, 0))
            data = path.read_bytes()
            done = done if known == stamp else 0
            with (self.target / path.name).open("ab" if done else "wb") as file:
                file.write(data[done : done + PIECE])
            self.copied[path.name] = (stamp, min(len(data), done + PIECE))


def weights(place, *names):
    return {
        (number, name): (place.round(number) / name / "adapter_model.safetensors").read_bytes()
        for number in range(1, NUM_ROUNDS + 1)
        for name in names
    }


def act(scene, late, num_kills, rng):
    """The rounds, under kills; the workspaces and how often each process was killed."""
    shared, side = scene.root / "shared", scene.root / "side"
    shared.mkdir()
    side.mkdir()
    (shared / bundle_name(1, "E")).write_bytes(late.replace(b'"site": "D"', b'"site": "E"'))
    (shared / "E").mkdir()
    (shared / "E" / "adapter_model.bin").write_bytes(b"a pickle")
    planted = {path.name for path in shared.iterdir()}
    places = {name: scene.workspace(f"at-{name}") for name in (*AT_WORK, "coordinator")}
    waiting = ["--wait", "--poll", "0.02", "--rounds", NUM_ROUNDS, "--mailbox"]
    calls = {name: [int(10 ** rng.uniform(2, 5.3)) for _ in range(num_kills)] for name in places}
    argv = {name: scene.train(places[name], name, *waiting, side if name == "B" else shared) for name in AT_WORK}
    argv["coordinator"] = scene.make(places["coordinator"], *waiting, shared, "--deadline", "0s", "--min-sites", "3")
    processes = {name: Process(argv[name], scene.root / f"log-{name}", calls[name]) for name in places}
    couriers = [Courier(side, shared, "*-B.*"), Courier(shared, side, "*-global.*")]
    sent = {bundle_name(n, name) for n in range(1, NUM_ROUNDS + 1) for name in (*AT_WORK, "D", "global")}
    while not all(process.is_done for process in processes.values()):
        for worker in processes.values():
            worker.tend()
        for courier in couriers:
            courier.go()
        late_bundle = shared / bundle_name(1, "D")
        if places["coordinator"].newest_round() and not late_bundle.exists():
            late_bundle.write_bytes(late)
        assert {path.name for path in shared.iterdir()} <= sent | planted
        time.sleep(0.05)
    return places, {name: process.killed for name, process in processes.items()}


def main(root, base, num_kills, seed):
    scene = Scene(Path(root), base)
    expected, late = scene.undisturbed()
    places, kills = act(scene, late, int(num_kills), random.Random(int(seed)))
    home = places.pop("coordinator")
    assert weights(home, "global", *AT_WORK) == weights(expected, "global", *AT_WORK)
    for place in places.values():
        assert weights(place, "global") == weights(expected, "global")
        scene.do("verify", "-q", "--require-signatures", "-C", place.root)
        assert not leftovers(place.root)
    scene.do("verify", "-q", "--require-signatures", "--recompute", "-C", home.root)
    assert not leftovers(home.root)
    log = [(one.event, one.round, one.party) for one in AuditLog(home).read()]
    taken = [(number, site) for event, number, site in log if event == "taken"]
    assert sorted(taken) == [(number, site) for number in range(1, NUM_ROUNDS + 1) for site in AT_WORK], taken
    assert ("late", 1, "D") in log
    refused = {party for event, _, party in log if event == "refused"}
    # What stops for longer than a look, a copy or a sender that was killed, is refused until it goes on.
    assert {"E"} <= refused <= {"E", *AT_WORK}, log
    return {"kills": kills, "rounds": home.newest_round(), "events": len(log)}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
