"""verify proves what the global adapters were made of, and names each thing that does not hold."""

import json
import shutil

import numpy as np
import pytest
from helpers import factories
from helpers.bad_files import RECORD, WEIGHTS
from helpers.crashing import snapshot

from fedmed_cli.adapters import archive, gate
from fedmed_cli.adapters.adapter import initial_factors, plan_adapter
from fedmed_cli.adapters.low_rank import relate
from fedmed_cli.aggregation.state import AggregationSettings
from fedmed_cli.cli.app import main
from fedmed_cli.federation import coordinator
from fedmed_cli.records import signatures
from fedmed_cli.records.digests import sha256_bytes
from fedmed_cli.workspace import Workspace


@pytest.fixture(scope="session", params=["signed", "unsigned"])
def three_rounds(request, tmp_path_factory):
    plan = factories.make_plan(signed=request.param == "signed")
    return factories.make_workspace(tmp_path_factory.mktemp("rounds") / "work", plan, 3).root


@pytest.fixture
def workspace(three_rounds, tmp_path):
    return Workspace(shutil.copytree(three_rounds, tmp_path / "work"))


@pytest.fixture(scope="session")
def signed_rounds(tmp_path_factory):
    return factories.make_workspace(tmp_path_factory.mktemp("signed-rounds") / "work", factories.make_plan(), 3).root


@pytest.fixture
def signed(signed_rounds, tmp_path):
    return Workspace(shutil.copytree(signed_rounds, tmp_path / "work"))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reseal_global(folder, sign=True, **changes):
    """Make a changed global folder's digests hold, and sign it, as a dishonest coordinator would."""
    record = json.loads((folder / "aggregate.json").read_text()) | changes
    for name in ("aggregate.json", "aggregate.json.sig"):
        (folder / name).unlink(missing_ok=True)
    now = gate.read_from_anyone(folder)
    record["files"] = {name: sha256_bytes(data) for name, data in now.files.items()}
    record["adapter"] = now.adapter.digest
    (folder / "aggregate.json").write_text(json.dumps(record))
    if sign:
        data = (folder / "aggregate.json").read_bytes()
        (folder / "aggregate.json.sig").write_bytes(signatures.sign(factories.SIGNERS["coordinator"], data))


def test_three_rounds_hold_and_give_the_same_bytes_again(workspace, capsys):
    before = snapshot(workspace.root)
    assert main(["verify", "--recompute", "--json", "-C", str(workspace.root)]) == 0
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert len(value["checked"]) == 3 * 4 + 3
    globals_ = [one for one in value["checked"] if one["party"] == "coordinator"]
    assert [one["round"] for one in globals_] == [3, 2, 1]
    assert {one["difference"] for one in globals_} == {0.0}
    if workspace.read_plan().sites.keys:
        assert {one["signature"] for one in globals_} == {"coordinator"}
        assert err == ""
        assert main(["verify", "--require-signatures", "-C", str(workspace.root)]) == 0
    else:
        assert err.count("is not signed") == 3 * 4 + 3
        assert main(["verify", "--require-signatures", "-C", str(workspace.root)]) == 7
    assert snapshot(workspace.root) == before


def test_a_recomputed_round_is_what_dense_matrices_give(workspace):
    """The reference: dense weighted means of s·B·A in float64, and their best approximation of rank r."""
    plan = workspace.read_plan()
    one, two = (gate.read_global(workspace.global_adapter(number), plan) for number in (1, 2))
    for module in plan.modules:
        start = (
            one.adapter.scale(module) * one.adapter.factors[module][1].astype(float) @ one.adapter.factors[module][0]
        )
        mean = start.copy()
        for site, decision in two.record.sites.items():
            adapter = gate.read_from_anyone(workspace.round(2) / site).adapter
            product = adapter.scale(module) * adapter.factors[module][1].astype(float) @ adapter.factors[module][0]
            mean += decision.weight * decision.clip_factor * (product - start)
        u, s, vt = np.linalg.svd(mean)
        best = u[:, : plan.lora.r] * s[: plan.lora.r] @ vt[: plan.lora.r]
        found = (
            two.adapter.scale(module) * two.adapter.factors[module][1].astype(float) @ two.adapter.factors[module][0]
        )
        assert np.linalg.norm(found - best) < 1e-5 * np.linalg.norm(best)


@pytest.mark.parametrize(
    "settings",
    [
        AggregationSettings(server_lr=1.5, server_momentum=0.4),
        AggregationSettings(method="factor-mean", weights="uniform"),
        AggregationSettings(robust="geometric-median", clip=0.9),
        AggregationSettings(server_lr=None),
    ],
    ids=lambda settings: f"{settings.method} {settings.robust} {settings.server_lr} {settings.server_momentum}",
)
def test_every_rule_gives_the_same_bytes_again(settings, tmp_path, capsys):
    root = factories.make_workspace(tmp_path / "work", factories.make_plan(), 3, settings=settings).root
    assert main(["verify", "--recompute", "--json", "-C", str(root)]) == 0
    found = [one["difference"] for one in json.loads(capsys.readouterr().out)["checked"]]
    assert found.count(0.0) == 3


def test_a_round_with_measured_weights_gives_the_same_bytes_again(round_workspace, capsys):
    record = json.loads((round_workspace.global_adapter(1) / "aggregate.json").read_text())
    assert record["weights"] == "agentic"
    assert main(["verify", "--recompute", "--json", "-C", str(round_workspace.root)]) == 0
    assert [one["difference"] for one in json.loads(capsys.readouterr().out)["checked"]].count(0.0) == 1


def test_rounding_elsewhere_is_told_from_another_adapter(signed, capsys, fails):
    """Factors that differ in their last bits, as another machine's do, are within 1e-6; a changed one is not."""
    folder = signed.global_adapter(3)
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-4] ^= 1  # the last bit of one mantissa
    (folder / WEIGHTS).write_bytes(data)
    reseal_global(folder)
    shutil.rmtree(signed.adapters)  # what started from the old one
    assert main(["verify", "--recompute", "--json", "-C", str(signed.root)]) == 0
    difference = next(x for x in json.loads(capsys.readouterr().out)["checked"] if x["path"] == "rounds/003/global")
    assert 0 < difference["difference"] < 1e-6
    values = np.frombuffer(data[-64:], "<f4") * np.float32(1.001)
    (folder / WEIGHTS).write_bytes(bytes(data[:-64]) + values.tobytes())
    reseal_global(folder)
    assert main(["verify", "-q", "-C", str(signed.root)]) == 0  # all digests and signatures hold
    assert "recomputed from the recorded weights, it differs by" in fails(7, "verify", "--recompute", "-C", signed.root)


def test_other_weights_in_the_record_are_found_by_computing_again(signed, fails):
    folder = signed.global_adapter(3)
    sites = json.loads((folder / "aggregate.json").read_text())["sites"]
    sites["A"]["weight"], sites["B"]["weight"] = 0.5, 2 / 3 - sites["C"]["weight"] - 1 / 6
    reseal_global(folder, sites=sites)
    assert main(["verify", "-q", "-C", str(signed.root)]) == 0
    assert "recomputed" in fails(7, "verify", "--recompute", "-C", signed.root)


CHANGES = {
    "a flipped bit in an archived contribution": (
        lambda w: flip(w.round(2) / "B" / WEIGHTS),
        "contribution.json says sha256",
    ),
    "a flipped bit in a global adapter": (lambda w: flip(w.global_adapter(2) / WEIGHTS), "aggregate.json says sha256"),
    "an archived contribution is gone": (lambda w: shutil.rmtree(w.round(1) / "C"), "rounds/001/C: is missing"),
    "a contribution that nobody named": (
        lambda w: shutil.copytree(w.round(1) / "C", w.round(1) / "D"),
        "rounds/001/D: the record of round 1 does not name it",
    ),
    "two contributions swapped": (
        lambda w: swap(w.round(1) / "A", w.round(1) / "B"),
        "expected a contribution of site",
    ),
    "a contribution of another round": (lambda w: copy(w.round(1) / "A", w.round(2) / "A"), "found one to round 1"),
    "a round in another's place": (
        lambda w: copy(w.global_adapter(1), w.global_adapter(2)),
        "expected the record of round 2",
    ),
    "two rounds swapped": (lambda w: swap(w.round(1), w.round(2)), "expected the record of round"),
    "a replayed contribution in the mailbox": (
        lambda w: edit(w.contribution("A") / RECORD, round=4, parent="0" * 64),
        "does not hold",
    ),
    "a record without its signature": (
        lambda w: (w.round(3) / "A" / f"{RECORD}.sig").unlink(),
        "when it was aggregated, found no signature",
    ),
    "the newest record without its signature": (
        lambda w: (w.global_adapter(3) / "aggregate.json.sig").unlink(),
        "rounds/003/global: is not signed, but the plan pins a key for the coordinator",
    ),
    "a contribution signed anew by another": (
        lambda w: resign(w.round(3) / "A", "stranger"),
        f"was signed with {factories.SIGNERS['A'].fingerprint} when it was aggregated",
    ),
    "an older global adapter, sealed and signed": (
        lambda w: (scale(w.global_adapter(2)), reseal_global(w.global_adapter(2))),
        "started from adapter",
    ),
    "an older record, sealed and signed": (
        lambda w: reseal_global(w.global_adapter(2), run={"seconds": 0.5}),
        "names the record",
    ),
    "a damaged line of metrics": (
        lambda w: (w.root / "metrics.jsonl").write_bytes(b"{\n" + (w.root / "metrics.jsonl").read_bytes()),
        "metrics.jsonl:1: is not JSON",
    ),
    "a damaged split": (
        lambda w: ((w.data).mkdir(), (w.data / "split.json").write_bytes(b"{}")),
        "split.json: expected format 'fedmed/split'",
    ),
}


def flip(path):
    data = bytearray(path.read_bytes())
    data[-2] ^= 4
    path.write_bytes(data)


def copy(source, target):
    shutil.rmtree(target)
    shutil.copytree(source, target)


def swap(one, two):
    one.rename(one.with_name("swap"))
    two.rename(one)
    one.with_name("swap").rename(two)


def resign(folder, name):
    (folder / f"{RECORD}.sig").write_bytes(signatures.sign(factories.SIGNERS[name], (folder / RECORD).read_bytes()))


def scale(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-64] + (np.frombuffer(data[-64:], "<f4") * np.float32(1.01)).tobytes())


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_hold_is_named(change, signed, fails, capsys):
    spoil, message = CHANGES[change]
    spoil(signed)
    code = 3 if "damaged" in change else 7
    error = fails(code, "verify", "-C", signed.root)
    assert main(["verify", "-C", str(signed.root)]) == code
    assert message in error + capsys.readouterr().err


def test_every_fault_is_shown(signed, capsys):
    flip(signed.round(1) / "A" / WEIGHTS)
    flip(signed.round(3) / "B" / WEIGHTS)
    assert main(["verify", "-C", str(signed.root)]) == 7
    out, err = capsys.readouterr()
    assert out == ""
    assert "rounds/001/A" in err
    assert "rounds/003/B" in err
    assert "(2 faults in all)" in err


def test_a_round_from_before_the_keys_were_pinned_is_covered_by_the_coordinators_signature(tmp_path, capsys, fails):
    bare = factories.make_plan(signed=False)
    workspace = factories.make_workspace(tmp_path / "work", bare, 1)
    plan = factories.make_plan()
    factories.write_plan(workspace, plan)
    assert "is not signed" in fails(7, "verify", "-C", workspace.root)
    reseal_global(workspace.global_adapter(1))  # as 'ssh-keygen -Y sign' does it
    start = archive.starting_adapter(workspace, plan, 2)
    for site in factories.SITES:
        for name, data in factories.contribution(plan, site, start, 2, signer=factories.SIGNERS[site]).items():
            (workspace.contribution(site) / name).write_bytes(data)
    coordinator.aggregate(
        workspace,
        [workspace.contribution(site) for site in factories.SITES],
        AggregationSettings(),
        signer=factories.SIGNERS["coordinator"],
    )
    capsys.readouterr()
    assert main(["verify", "--require-signatures", "--json", "-C", str(workspace.root)]) == 0
    seen = {one["path"]: one["signature"] for one in json.loads(capsys.readouterr().out)["checked"]}
    assert seen["rounds/001/global"] == "coordinator"
    assert seen["rounds/001/A"] == "covered"
    assert seen["rounds/002/global"] == "coordinator"
    assert seen["rounds/002/A"] == "site A"
    (workspace.global_adapter(1) / "aggregate.json.sig").unlink()
    assert main(["verify", "--require-signatures", "--json", "-C", str(workspace.root)]) == 0
    seen = {one["path"]: one["signature"] for one in json.loads(capsys.readouterr().out)["checked"]}
    assert seen["rounds/001/global"] == "covered"
    flip(workspace.global_adapter(1) / "README.md")
    assert main(["verify", "-q", "-C", str(workspace.root)]) == 7


def test_a_hospital_has_only_the_global_adapters(signed, capsys):
    for number in (1, 2, 3):
        for site in factories.SITES:
            shutil.rmtree(signed.round(number) / site)
    shutil.rmtree(signed.round(1))
    assert main(["verify", "--recompute", "-C", str(signed.root)]) == 0
    err = capsys.readouterr().err
    assert "round 1 is not here, so the lineage ends at round 2" in err
    assert "round 3: its contributions are not here" in err
    assert "round 3: cannot be recomputed" in err


@pytest.mark.slow
def test_verifying_never_loads_torch_and_takes_one_folder(signed, tmp_path, capsys, fails):
    from helpers.processes import run

    code, out, loaded = run(signed.root, "verify", "--recompute", "--json")
    assert (code, loaded) == (0, [])
    code, out, loaded = run(signed.root, "verify", "rounds/002/B", "--json")
    assert (code, loaded) == (0, [])
    assert json.loads(out)["checked"][0]["signature"] == "site B"
    (tmp_path / "elsewhere").mkdir()
    argv = ["verify", str(signed.round(2) / "B"), "-C", str(tmp_path / "elsewhere")]
    capsys.readouterr()
    assert main(argv) == 0
    assert "checked only against itself" in capsys.readouterr().err
    assert "no key is trusted" in fails(7, *argv, "--require-signatures")


@pytest.mark.usefixtures("coordinators_key")
def test_a_replayed_folder_is_refused(signed, tmp_path, fails):
    for site in factories.SITES:
        copy(signed.round(3) / site, signed.contribution(site))
    before = snapshot(signed.root)
    assert "round 3 is already aggregated" in fails(7, "aggregate", "-C", signed.root)
    assert snapshot(signed.root) == before


def test_an_interrupted_command_is_mentioned_and_is_no_fault(signed, capsys):
    (signed.adapters / ".A.1.tmp").mkdir()
    assert main(["verify", "-C", str(signed.root)]) == 0
    assert "left by an interrupted command" in capsys.readouterr().err


def test_two_adapters_are_related_as_their_products_are():
    plan = factories.make_plan()
    start = plan_adapter(plan, initial_factors(plan))
    one, two = factories.trained(plan, start, 1), factories.trained(plan, start, 2)
    dense = [
        np.concatenate([(x.scale(m) * b.astype(float) @ a).ravel() for m, (a, b) in x.factors.items()])
        for x in (one, two)
    ]
    norms = [np.linalg.norm(x) for x in dense]
    related = relate(one, two)
    assert [related.first_norm, related.second_norm] == pytest.approx(norms, rel=1e-9)
    assert related.difference_norm == pytest.approx(np.linalg.norm(dense[0] - dense[1]), rel=1e-9)
    assert related.relative_difference == pytest.approx(related.difference_norm / max(norms), rel=1e-9)
    assert related.cosine == pytest.approx(dense[0] @ dense[1] / (norms[0] * norms[1]), rel=1e-9)
    assert relate(one, one).relative_difference < 1e-7
