"""What need not load torch does not, and says what it found all the same."""

import json
import subprocess
import sys

import pytest
from helpers.processes import run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("argv", [["--help"], ["split", "--help"], ["split", "-q"], ["init", "--names", "A", "-q"]])
def test_help_split_and_init(argv, tmp_path):
    code, _, loaded = run(tmp_path, *argv)
    assert (code, loaded) == (0, [])


def test_aggregate_by_tokens(trained_workspace):
    code, out, loaded = run(trained_workspace.root, "aggregate", "--weights", "tokens", "--json")
    assert (code, loaded) == (0, [])
    assert set(json.loads(out)["sites"]) == {"A", "B", "C"}


def test_inspect_adapter(round_workspace):
    code, out, loaded = run(round_workspace.root, "inspect-adapter", "adapters/B", "rounds/001/global", "--json")
    assert (code, loaded) == (0, [])
    value = json.loads(out)
    assert value["adapter"]["contribution"]["site"] == "B"
    assert 0 < value["relation"]["cosine"] < 1


def test_report(round_workspace):
    code, out, loaded = run(round_workspace.root, "report", "--verify", "--json")
    assert (code, loaded) == (0, [])
    value = json.loads(out)
    assert value["with_plots"]
    assert value["problems"] == []


def test_this_test_would_notice(round_workspace, tiny_base):
    code, _, loaded = run(round_workspace.root, "chat", "hello", "--max-new-tokens", 2, "--base", tiny_base)
    assert code == 0
    assert "torch" in loaded


def test_loading_models_fetches_no_kernels_and_says_nothing(tmp_path):
    (tmp_path / "kernels.py").write_text("print('imported')\nclass Stub: pass\nget_kernel = Stub()\n")
    code = (
        "import sys, fedmed_cli.models.language_model; print(*(n in sys.modules for n in ('bitsandbytes', 'kernels')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True False\n", "")
