"""Files made from records: nobody but their owner can read them."""

import os
import stat

import pytest

from fedmed_cli.cli.app import main
from fedmed_cli.workspace import Workspace
from fedmed_cli.workspace.durable import private_files

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")


def modes(folder):
    """The modes of a folder and of all in it, folders and files apart."""
    paths = [folder, *folder.rglob("*")]
    return [{stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir() is kind} for kind in (True, False)]


@pytest.fixture(autouse=True)
def _open_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
@pytest.mark.slow
def test_what_split_writes_is_for_its_user_alone(file_format, tmp_path):
    assert main(["split", "-q", "-C", str(tmp_path / "work"), "--limit", "60", "--format", file_format]) == 0
    workspace = Workspace(tmp_path / "work")
    assert modes(workspace.data) == [{0o700}, {0o600}]
    assert stat.S_IMODE(workspace.private.stat().st_mode) == 0o700
    # The plan goes to every hospital and holds no text.
    assert stat.S_IMODE(workspace.plan_path.stat().st_mode) == 0o644


def test_a_hospitals_own_file_is_divided_for_its_user_alone(split_workspace, tiny_base, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text("".join(f'{{"question": "What is {n}?", "answer": "It is {n}."}}\n' for n in range(60)))
    before = split_workspace.site_data("A")
    before.rename(tmp_path / "split")
    argv = ["train-local", "-q", "--site", "A", "--data", str(own), "--near-duplicates", "off"]
    assert main([*argv, "-C", str(split_workspace.root), "--base", str(tiny_base)]) == 0
    assert modes(before) == [{0o700}, {0o600}]
    # What is sent is read by others: its mode is that of the umask.
    assert modes(split_workspace.contribution("A")) == [{0o755}, {0o644}]


def test_a_folder_opened_to_a_group_on_purpose_stays_open(split_workspace):
    split_workspace.private.chmod(0o770)
    with split_workspace.lock():
        pass
    assert stat.S_IMODE(split_workspace.private.stat().st_mode) == 0o770


def test_the_umask_is_as_before_also_after_an_error():
    with pytest.raises(ZeroDivisionError), private_files():
        raise ZeroDivisionError
    assert os.umask(0o022) == 0o022
