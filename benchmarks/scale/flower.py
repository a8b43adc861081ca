"""Rounds of a hundred hospitals in Flower's simulation, where many fail: the federation and the fates of folders.py.

    python benchmarks/scale/flower.py [--sites 100] [--rounds 2] [--seed 0]

It needs an environment with `fedmed[flower]` and `flwr[simulation]`. A SuperLink simulates a node for each hospital;
coordinator and hospitals are fedmed's own ServerApp and ClientApp. What fails is between them: of those that die, half
answer with an error and half never; what hostile sites send is put in the place of their answers. It prints figures of
each round, and fails unless the round is made of just those that came whole and in time, with the bytes of an
aggregation of the same folders by hand, and each hospital has all global adapters.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.serverapp import Grid, ServerApp
from folders import DYING, HOSTILE, LATE, MAX_STEPS, Federation, by_hand, draw_fates
from helpers.flower import Deployment

import fedmed_cli as fedmed
from fedmed_cli.adapters.bundle import pack
from fedmed_cli.federation.flower import server_app
from fedmed_cli.federation.flower.app_files import write_app
from fedmed_cli.federation.flower.messages import about, bundle_of, make_content
from fedmed_cli.trust.audit_log import AuditLog

HERE = Path(__file__).resolve().parent
DAY = 86_400.0
ROOT = "FEDMED_SCALE"  # the environment variable that names the federation's folder to the ServerApp

app = ServerApp()


@app.main()
def main_of_server(grid: Grid, context: Context) -> None:
    """fedmed's ServerApp behind a network that fails."""
    root = Path(os.environ[ROOT])
    try:
        network = Network(grid, Simulated(root), random.Random(int((root / "seed").read_text())))
        server_app.app(network, context)
        (root / "outcome.json").write_text(json.dumps(network.figures()))
    except BaseException as error:
        (root / "outcome.json").write_text(json.dumps(f"{type(error).__name__}: {error}"))
        raise


class Simulated(Federation):
    """Each hospital has a workspace of its own."""

    @property
    def home(self) -> fedmed.Workspace:
        return fedmed.Workspace(self.root / "coordinator")

    def workspace(self, site: str) -> fedmed.Workspace:
        return fedmed.Workspace(self.root / "sites" / site)

    def contribution(self, site: str) -> Path:
        return self.workspace(site).contribution(site)

    def files(self, site: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.contribution(site).iterdir()}

    def divide(self) -> None:
        """Give each hospital its examples, and everybody the plan."""
        for name in self.plan.sites.names:
            shutil.copytree(self.hospitals.site_data(name), self.workspace(name).site_data(name))
            shutil.copy(self.hospitals.data / "split.json", self.workspace(name).data)
        for place in (self.home, *map(self.workspace, self.plan.sites.names)):
            place.root.mkdir(exist_ok=True)
            for path in self.hospitals.root.glob("federation.toml*"):
                shutil.copy(path, place.root)


class Network:
    """Between the coordinator and its nodes. A round's answers are held until all are there, as at a deadline."""

    def __init__(self, grid: Grid, federation: Simulated, rng: random.Random) -> None:
        self.grid, self.federation, self.rng = grid, federation, rng
        self.asked: dict[str, Message] = {}
        self.pulled: set[str] = set()
        self.answers: dict[int, dict[str, Message]] = {}
        self.late: dict[int, list[Message]] = {}
        self.rounds: dict[int, dict[str, object]] = {}
        self.made, self.released, self.own_seconds = time.perf_counter(), 0.0, 0.0

    def get_node_ids(self) -> Iterable[int]:
        return self.grid.get_node_ids()

    def push_messages(self, messages: list[Message]) -> Iterable[str]:
        names = list(self.grid.push_messages(messages))
        self.asked |= dict(zip(names, messages, strict=True))
        return names

    def pull_messages(self, names: Iterable[str]) -> list[Message]:
        """What comes through of the nodes' answers."""
        started, delivered = time.thread_time(), []
        for reply in self.grid.pull_messages([name for name in names if name not in self.pulled]):
            self.pulled.add(reply.metadata.reply_to_message_id)
            assert not reply.has_error(), reply.error.reason
            ask, site = self.asked[reply.metadata.reply_to_message_id].metadata, str(about(reply.content).get("site"))
            assert site in self.federation.plan.sites.names, dict(about(reply.content))
            answers = self.answers.setdefault(int(ask.group_id), {})
            if ask.message_type == "query":
                delivered.append(reply)
            elif site not in answers:  # else it died, and was asked again
                answers[site] = reply
        newest = self.federation.home.newest_round()
        for number, answers in self.answers.items():
            if len(answers) == len(self.federation.plan.sites.names) and number not in self.rounds:
                delivered += self.release(number, answers)
        for number in [number for number in self.late if number <= newest]:
            self.note_made(number)
            delivered += self.late.pop(number)
        self.own_seconds += time.thread_time() - max(started, self.released)
        return delivered

    def release(self, number: int, answers: dict[str, Message]) -> list[Message]:
        """The round's answers that come in time, as they come."""
        federation, names = self.federation, self.federation.plan.sites.names
        fates, delivered, counted = draw_fates(names, self.rng), [], set()
        self.late[number] = [answers[site] for site in names if fates[site] == "late"]
        for site, fate in fates.items():
            ask = self.asked[answers[site].metadata.reply_to_message_id]
            if fate == "in time":
                delivered.append(answers[site])
                counted.add(site)
            elif fate == "dies" and self.rng.random() < 0.5:
                delivered.append(Message(Error(1, "the node died"), reply_to=ask))
            elif fate not in ("dies", "late"):
                other = federation.files(names[0] if site != names[0] else names[1])
                data = federation.spoil(fate, site, federation.files(site), other)
                delivered.append(Message(make_content(data, site=site, round=number), reply_to=ask))
                if federation.passes(fate, site):
                    counted.add(site)
        self.rounds[number] = {
            "round": number,
            "sites": len(fates),
            "counted": sorted(counted),
            "fates": dict(sorted(Counter(fates.values()).items())),
            "seconds of training": round(time.perf_counter() - self.made, 1),
            "bytes of contributions": sum(len(bundle_of(one.content) or b"") for one in answers.values()),
        }
        federation.before = {site: pack(federation.files(site)) for site in names}
        self.released, self.own_seconds = time.thread_time(), 0.0
        return delivered

    def note_made(self, number: int) -> None:
        processor = time.thread_time() - self.released - self.own_seconds
        self.rounds[number]["processor seconds of the coordinator"] = round(processor, 2)
        self.made = time.perf_counter()

    def figures(self) -> list[dict[str, object]]:
        status = Path("/proc/self/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak is not None
        self.rounds[max(self.rounds)]["peak memory of the coordinator's process, MB"] = round(int(peak[1]) / 1024)
        return list(self.rounds.values())


def run(root: Path, num_sites: int, num_rounds: int, seed: int) -> list[dict[str, object]]:
    """Simulate the rounds; their figures."""
    os.environ["FEDMED_CACHE"] = str(root / "cache")
    Simulated.make(root, num_sites).divide()
    federation = Simulated(root)
    (root / "seed").write_text(str(seed))
    least = num_sites - sum(round(share * num_sites) for share in (DYING, LATE, HOSTILE))
    folder = write_app(federation.home.root, federation.plan.sites.min_sites)
    text = (folder / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text(re.sub('serverapp = ".*"', 'serverapp = "flower:app"', text))
    os.environ |= {ROOT: str(root), "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    simulated = {"sites": root / "sites", "keys": root / "keys", "base": root / "tiny"}
    settings = {f"simulation.{name}": str(path) for name, path in simulated.items()}
    settings |= {"simulation.max-steps": MAX_STEPS, "simulation.max-eval-samples": 1, "rounds": num_rounds}
    settings |= {"min-sites": least, "deadline": "0s", "poll": 1.0, "weights": "tokens", "key": str(federation.key)}
    here = Deployment(root / "deployment")
    try:
        here.superlink("--simulation")
        nodes = f"num-supernodes={num_sites} client-resources-num-cpus=1"
        outcome = root / "outcome.json"
        for runs in range(1, 6):  # Ray gives its own agents 15 seconds to start, which a busy machine may not
            here.run(folder, "--federation-config", nodes, **settings)
            here.wait_for(partial(is_over, here, outcome, runs), DAY)
            if outcome.exists():
                break
            assert not federation.home.newest_round(), "the simulation ended early"
    finally:
        here.stop()
    found = json.loads(outcome.read_text())
    if isinstance(found, str):
        sys.exit(found)
    return [check(federation, one) for one in found]


def is_over(here: Deployment, outcome: Path, runs: int) -> bool:
    """Whether so many runs have ended, or one did all that it should."""
    return outcome.exists() or here.log("superlink").count("Finished task") >= runs


def check(federation: Simulated, figures: dict[str, object]) -> dict[str, object]:
    """A round's figures, where it is as it should be."""
    home, number, counted = federation.home, int(str(figures["round"])), figures["counted"]
    folders = {path.name for path in home.round(number).iterdir()} - {"global"}
    assert sorted(folders) == counted, folders ^ set(counted)
    weights = (home.global_adapter(number) / "adapter_model.safetensors").read_bytes()
    assert by_hand(federation, home, number) == weights, "not the bytes of an aggregation by hand"
    for site in federation.plan.sites.names:
        place = federation.workspace(site).global_adapter(number)
        assert (place / "adapter_model.safetensors").read_bytes() == weights, site
    events = Counter(one.event for one in AuditLog(home).read() if one.round == number)
    return figures | {"counted": len(folders), "events": dict(sorted(events.items()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for figures in run(Path(name), arguments.sites, arguments.rounds, arguments.seed):
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
