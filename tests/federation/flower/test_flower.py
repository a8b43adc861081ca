"""Rounds over Flower: processes on loopback, and the bytes of the way by files. Run where flwr is installed."""

import os
import shutil
import subprocess
import sys

import pytest
from helpers.factories import make_signer, with_keys, write_key, write_plan

from fedmed_cli.records.plan import Plan
from fedmed_cli.trust.audit_log import AuditLog
from fedmed_cli.workspace import Workspace

pytest.importorskip("flwr")

from helpers.flower import OFF, Deployment, make_certificates, make_node_key

from fedmed_cli.federation.flower.app_files import write_app
from fedmed_cli.models import bases, bundled_base

pytestmark = [pytest.mark.flower, pytest.mark.slow]

SITES = ("A", "B", "C")


def do(*argv):
    """A command in a process of its own, with as many threads as those that Flower starts."""
    done = subprocess.run(
        [sys.executable, "-m", "fedmed_cli", *map(str, argv)], env=os.environ | OFF, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


class Federation:
    """A plan with pinned keys, a workspace for each party, and the rounds by files to compare with."""

    def __init__(self, root, base, split, steps):
        self.root, self.base, self.steps, self.keys = root, base, steps, {}
        template = shutil.copytree(split, root / "template")
        signers = {name: make_signer(number) for number, name in enumerate((*SITES, "coordinator"), 1)}
        plan = Plan.read(template / "federation.toml")
        pinned = {name: signer.public for name, signer in signers.items()}
        write_plan(Workspace(template), with_keys(plan, pinned), signers)
        self.keys = {name: write_key(root / f"key-{name}", signer) for name, signer in signers.items()}
        self.places = {
            name: Workspace(shutil.copytree(template, root / name)) for name in (*SITES, "coordinator", "by-files")
        }
        self.app = write_app(self.places["coordinator"].root, 2)

    def by_files(self, sites=SITES, rounds=2):
        """The global adapters of rounds by files, in one workspace."""
        place = self.places["by-files"]
        for number in range(place.newest_round() + 1, rounds + 1):
            for site in sites:
                more = [
                    "--max-steps",
                    self.steps,
                    "--max-eval-samples",
                    2,
                    "--base",
                    self.base,
                    "--key",
                    self.keys[site],
                ]
                do("train-local", "-q", "--site", site, "-C", place.root, *more)
            more = ["--weights", "tokens", "--key", self.keys["coordinator"]]
            do("aggregate", "-q", "-C", place.root, *more, *(place.contribution(site) for site in sites))
            assert place.newest_round() == number
        return adapters(place, rounds)

    def node(self, site, **more):
        settings = {"workspace": str(self.places[site].root), "site": site, "base": str(self.base)}
        settings |= {"max-steps": self.steps, "max-eval-samples": 2, "save-steps": 1, "key": str(self.keys[site])}
        return settings | more

    def settings(self, **more):
        return {"rounds": 2, "weights": "tokens", "key": str(self.keys["coordinator"]), "poll": 0.2} | more

    def done(self, *sites, rounds=2):
        return lambda: all(self.places[name].newest_round() >= rounds for name in ("coordinator", *sites))


def adapters(place, rounds=2):
    numbers = range(1, rounds + 1)
    return [(place.global_adapter(number) / "adapter_model.safetensors").read_bytes() for number in numbers]


@pytest.fixture
def federation(tmp_path, tiny_base, split_once):
    return Federation(tmp_path, tiny_base, split_once, 3)


@pytest.fixture
def deploy(tmp_path):
    """Makes a deployment, and ends its processes."""
    made = []

    def make(tls=None):
        made.append(Deployment(tmp_path / f"deployment-{len(made)}", tls))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def check(federation, sites=SITES, rounds=2):
    expected = federation.by_files(sites, rounds)
    for name in ("coordinator", *sites):
        place = federation.places[name]
        assert adapters(place, rounds) == expected, name
        do("verify", "-q", "--require-signatures", "-C", place.root)
    do("verify", "-q", "--recompute", "-C", federation.places["coordinator"].root)


def test_two_rounds_have_the_bytes_of_the_way_by_files(federation, deploy):
    run_two_rounds(federation, deploy())


def run_two_rounds(federation, here):
    here.superlink()
    for site in SITES:
        here.supernode(site, federation.node(site))
    here.run(federation.app, **federation.settings())
    here.wait_for(federation.done(*SITES))
    check(federation)
    log = AuditLog(federation.places["coordinator"]).read()
    assert {(one.round, one.party) for one in log if one.event == "taken"} == {(n, s) for n in (1, 2) for s in SITES}


@pytest.mark.real_base
@pytest.mark.network
def test_two_rounds_of_the_embedded_base(tmp_path, deploy):
    bases.find(bundled_base.NAME, None, None, print)
    do("split", "-q", "-C", tmp_path / "split", "--limit", 60, "--by", "iid", "--learning-rate", "1e-3")
    run_two_rounds(Federation(tmp_path, bundled_base.NAME, tmp_path / "split", 1), deploy())


def test_a_simulation_has_the_bytes_of_the_way_by_files(federation, deploy):
    """Its nodes have nothing but their number."""
    pytest.importorskip("ray")
    here = deploy()
    here.superlink("--simulation")
    (federation.root / "keys").mkdir()
    for site in SITES:
        federation.keys[site] = federation.keys[site].rename(federation.root / "keys" / site)
    more = {"sites": str(federation.root), "keys": str(federation.root / "keys"), "base": str(federation.base)}
    more |= {"max-steps": federation.steps, "max-eval-samples": 2}
    simulated = {f"simulation.{name}": value for name, value in more.items()}
    nodes, done = "num-supernodes=3 client-resources-num-cpus=1", federation.done(*SITES)
    for runs in range(1, 6):  # Ray gives its own agents 15 seconds to start, which a busy machine may not
        if not done():
            here.run(federation.app, "--federation-config", nodes, **federation.settings(**simulated))
            here.wait_for(lambda runs=runs: done() or here.log("superlink").count("Finished task") >= runs)
    assert done()
    check(federation)


def test_tls_node_keys_a_server_killed_in_round_2_and_a_wrong_key(federation, deploy, tmp_path):
    here = deploy(make_certificates(tmp_path / "tls"))
    here.superlink("--enable-supernode-auth", "--database", tmp_path / "state.db")
    nodes = {site: make_node_key(tmp_path / f"node-{site}") for site in (*SITES, "stranger")}
    for site in SITES:
        here.flwr("supernode", "register", nodes[site].with_suffix(".pub"), "here")
    for site in SITES:
        here.supernode(site, federation.node(site), "--auth-supernode-private-key", nodes[site])
    here.supernode("stranger", federation.node("A"), "--auth-supernode-private-key", nodes["stranger"])
    here.run(federation.app, **federation.settings())
    home = federation.places["coordinator"]
    here.wait_for(lambda: "site A, round 2" in here.log("node-A"))  # it trains
    here.kill("superlink")
    assert home.newest_round() == 1
    here.superlink("--enable-supernode-auth", "--database", tmp_path / "state.db")
    here.run(federation.app, **federation.settings())
    here.wait_for(federation.done(*SITES))
    check(federation)
    assert "Failed to activate SuperNode" in here.log("node-stranger")
    assert "fedmed" not in here.log("node-stranger")


def test_a_node_that_is_killed_is_not_waited_for_beyond_the_deadline(federation, deploy):
    here = deploy()
    here.superlink()
    for site in "AB":
        here.supernode(site, federation.node(site))
    here.supernode("C", federation.node("C"))
    here.run(federation.app, **federation.settings(deadline="0s", min_sites=2, rounds=1))
    here.kill("node-C")
    here.wait_for(federation.done("A", "B", rounds=1))
    check(federation, ("A", "B"), rounds=1)
