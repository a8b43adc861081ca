"""The gate refuses every case of the hostile corpus, each by name, and lets what is in order through."""

import json
import os
import shutil
import threading

import pytest
from helpers import bad_files, factories
from helpers.crashing import snapshot

from fedmed_cli.adapters import gate
from fedmed_cli.adapters.adapter import initial_factors, plan_adapter
from fedmed_cli.adapters.archive import site_contribution, starting_adapter
from fedmed_cli.adapters.signers import SignaturePolicy
from fedmed_cli.cli.app import main
from fedmed_cli.errors import FedmedError
from fedmed_cli.records.codec import read_file
from fedmed_cli.records.digests import sha256_bytes
from fedmed_cli.workspace import Workspace

pytestmark = pytest.mark.usefixtures("coordinators_key")


@pytest.fixture(scope="session")
def signed_once(tmp_path_factory):
    """A workspace with three signed contributions to round 1, and keys for all in its plan."""
    plan = factories.make_plan()
    return factories.make_workspace(tmp_path_factory.mktemp("signed") / "work", plan), plan


@pytest.fixture
def place(signed_once, tmp_path):
    workspace, plan = signed_once
    root = shutil.copytree(workspace.root, tmp_path / "work")
    return bad_files.Place(type(workspace)(root), plan)


@pytest.mark.parametrize("case", bad_files.CASES, ids=lambda case: case.name)
def test_hostile(case, place, fails):
    case.change(place)
    argv = case.argv(place)
    unread = ("a terabyte of weights", "a bundle of 1.57 GB", "weights are a pipe")
    before = snapshot(place.root) if case.name not in unread else None
    message = fails(case.code, *argv)
    assert case.message in message
    assert message.isprintable()
    assert len(message) < 1000
    if before is not None:
        assert snapshot(place.root) == before


def test_the_corpus_has_at_least_sixty_cases_and_hardly_two_with_one_message():
    names = [case.name for case in bad_files.CASES]
    assert len(names) == len(set(names)) >= 60
    assert len({(case.message, case.code) for case in bad_files.CASES}) > 0.95 * len(names)


def test_what_is_in_order_passes(place):
    assert main(["aggregate", "-q", "-C", str(place.root)]) == 0
    record = json.loads((place.root / "rounds/001/global/aggregate.json").read_text())
    assert record["signers"] == {site: factories.SIGNERS[site].fingerprint for site in factories.SITES}


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_read_as_it_is_meant(place, dtype):
    import numpy as np
    import torch
    from safetensors.torch import save_file

    plan = place.plan
    adapter = gate.read_folder(place.folder, plan).adapter
    kind = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    tensors = {}
    for module, (a, b) in adapter.factors.items():
        for name, array in (("A", a), ("B", b)):
            tensors[f"base_model.model.{module}.lora_{name}.weight"] = torch.from_numpy(array.copy()).to(kind)
    save_file(tensors, place.folder / bad_files.WEIGHTS, metadata={"format": "pt"})
    for name in (bad_files.RECORD, bad_files.SIGNATURE):
        (place.folder / name).unlink()
    read = gate.read_from_anyone(place.folder, plan).adapter
    for module, (a, b) in read.factors.items():
        for name, array in (("A", a), ("B", b)):
            wanted = tensors[f"base_model.model.{module}.lora_{name}.weight"].float().numpy()
            assert np.array_equal(array, wanted)
    assert read.weights_digest == plan_adapter(plan, dict(read.factors)).weights_digest  # that of float32


def test_inspect_shows_all_faults_of_a_refused_adapter_and_nothing_of_it(place, capsys):
    place.config(use_dora=True)
    place.write("notes.txt", b"secret words")
    place.record(num_examples=-1)
    assert main(["inspect-adapter", str(place.folder), "-C", str(place.root)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    for part in ("fault 1", "notes.txt", "use_dora", "num_examples must not be negative"):
        assert part in err
    assert "secret" not in err


def test_a_file_that_shrinks_while_it_is_read_never_ends_the_process(place):
    """A memory map would die of SIGBUS here; a hundred trials with another thread cutting the file."""
    path = place.folder / bad_files.WEIGHTS
    whole = path.read_bytes()
    plan = factories.make_plan(hidden=512, layers=4)
    big = factories.contribution(plan, "B", plan_adapter(plan, initial_factors(plan)))[bad_files.WEIGHTS]
    refused = 0
    for trial in range(100):
        path.write_bytes(big)
        start = threading.Barrier(2)

        def shrink(size=len(big) * trial // 100, start=start):
            start.wait()
            os.truncate(path, size)

        thread = threading.Thread(target=shrink)
        thread.start()
        start.wait()
        try:
            gate.read_from_anyone(place.folder)
        except FedmedError:
            refused += 1
        thread.join()
    assert refused == 100  # it is not what the record names in any case; what counts is that we are still here
    path.write_bytes(whole)
    gate.read_from_anyone(place.folder)


def test_a_file_is_read_up_to_its_limit(tmp_path):
    (tmp_path / "x").write_bytes(b"x" * 100)
    with pytest.raises(FedmedError, match="expected at most 99 bytes, found 100"):
        read_file(tmp_path / "x", 99)
    assert read_file(tmp_path / "x", 100) == b"x" * 100


def test_a_file_that_grows_while_it_is_read_is_refused_at_the_limit(tmp_path, monkeypatch):
    path, read = tmp_path / "x", os.read
    path.write_bytes(b"x" * 100)

    def grow(handle, size):
        with path.open("ab") as file:
            file.write(b"x" * 100)
        return read(handle, size)

    monkeypatch.setattr(os, "read", grow)
    with pytest.raises(FedmedError, match=r"expected at most 150 bytes, found more \(it grows\)"):
        read_file(path, 150)


def test_a_bundle_is_taken_wherever_a_folder_is(place):
    root, out = place.root, place.root.parent
    assert main(["pack", str(place.folder), "-o", str(out / "B.fedmed.tar"), "-q", "-C", str(root)]) == 0
    assert main(["pack", str(place.folder), "-o", str(out / "again.fedmed.tar"), "-q", "-C", str(root)]) == 0
    assert (out / "B.fedmed.tar").read_bytes() == (out / "again.fedmed.tar").read_bytes()
    whole = shutil.copytree(root, out / "whole")
    shutil.rmtree(place.folder)
    shutil.move(out / "B.fedmed.tar", root / "adapters")
    found = [site_contribution(Workspace(folder), Workspace(folder).read_plan(), "B") for folder in (root, whole)]
    assert found[0].adapter.digest == found[1].adapter.digest
    for folder in (root, whole):
        assert main(["aggregate", "-q", "-C", str(folder)]) == 0
    weights = "rounds/001/global/adapter_model.safetensors"
    assert (root / weights).read_bytes() == (whole / weights).read_bytes()
    assert snapshot(root / "rounds/001/B") == snapshot(whole / "rounds/001/B")
    for argv in (["inspect-adapter"], ["verify"]):
        assert main([*argv, str(root / "adapters/B.fedmed.tar"), "-C", str(root)]) == 0
    assert main(["verify", "--recompute", "-C", str(root)]) == 0


def test_pack_refuses_what_the_gate_refuses_and_never_overwrites(place, tmp_path, fails):
    out = tmp_path / "B.fedmed.tar"
    assert "expected a name that ends with .fedmed.tar" in fails(2, "pack", place.folder, "-o", tmp_path / "B.zip")
    place.write("notes.txt", b"x")
    assert "does not belong" in fails(3, "pack", place.folder, "-o", out, "-C", place.root)
    (place.folder / "notes.txt").unlink()
    out.write_bytes(b"mine")
    assert "exists already" in fails(6, "pack", place.folder, "-o", out, "-C", place.root)
    assert out.read_bytes() == b"mine"


def test_a_bundle_unpacks_with_plain_tar(place, tmp_path):
    import tarfile

    bundle = tmp_path / "B.fedmed.tar"
    assert main(["pack", str(place.folder), "-o", str(bundle), "-q", "-C", str(place.root)]) == 0
    with tarfile.open(bundle) as archive:
        archive.extractall(tmp_path / "out", filter="data")
    assert snapshot(tmp_path / "out") == snapshot(place.folder)


def test_an_excluded_bundle_is_left_out(place, capsys):
    place.bundle(lambda files: b"not a bundle at all")
    assert main(["aggregate", "-C", str(place.root)]) == 3
    assert "--exclude B" in capsys.readouterr().err
    assert main(["aggregate", "-C", str(place.root), "--exclude", "B"]) == 0


def test_a_contribution_that_passes_has_its_record_and_its_signer(signed_once):
    workspace, plan = signed_once
    start = (1, starting_adapter(workspace, plan, 1).digest)
    folder = gate.read_contribution(workspace.contribution("B"), plan, start, policy=SignaturePolicy(required=True))
    assert (folder.sender, folder.signer) == ("B", factories.SIGNERS["B"].public)
    assert folder.record.adapter == folder.adapter.digest
    assert folder.record_digest == sha256_bytes((folder.path / bad_files.RECORD).read_bytes())
