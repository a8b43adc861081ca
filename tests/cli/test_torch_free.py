"""What need not load torch does not, and says what it found all the same."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from helpers.factories import make_plan, make_workspace
from helpers.processes import HEAVY, run

from fedmed_cli.models import bundled_base
from fedmed_cli.records.lora import Lora

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("argv", [["--help"], ["split", "--help"], ["split", "-q"], ["init", "--names", "A", "-q"]])
def test_help_split_and_init(argv, tmp_path):
    code, _, loaded = run(tmp_path, *argv)
    assert (code, loaded) == (0, [])


def test_help_loads_no_numbers_either(tmp_path):
    code, _, loaded = run(tmp_path, "--help", heavy=(*HEAVY, "numpy", "pyarrow"))
    assert (code, loaded) == (0, [])


def test_aggregate_by_tokens(trained_workspace):
    code, out, loaded = run(trained_workspace.root, "aggregate", "--weights", "tokens", "--json")
    assert (code, loaded) == (0, [])
    assert set(json.loads(out)["sites"]) == {"A", "B", "C"}


def test_aggregate_without_examples_loads_nothing_that_reads_data(tmp_path):
    workspace = make_workspace(tmp_path / "work", make_plan(signed=False))
    code, _, loaded = run(workspace.root, "aggregate", "-q", heavy=(*HEAVY, "pyarrow"))
    assert (code, loaded) == (0, [])


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


def test_status(round_workspace):
    code, out, loaded = run(round_workspace.root, "status", "--site", "B", "--json")
    assert (code, loaded) == (0, [])
    value = json.loads(out)
    assert value["last"]["measured_on"] == "coordinator's other examples"
    assert [step["command"] for step in value["next"]] == ["fedmed train-local --site B", "fedmed round"]


@pytest.mark.real_base
@pytest.mark.network
@pytest.mark.parametrize("adapter", ["base", "global"])
def test_chat_with_the_embedded_base(adapter, tmp_path):
    plan = make_plan(signed=False)
    plan = replace(plan, base=bundled_base.BASE, lora=Lora())
    workspace = make_workspace(tmp_path / "work", plan, num_rounds=1, mailbox=False)
    command = ("chat", "--json", "What is flu?", "--adapter", adapter)
    code, out, loaded = run(workspace.root, *command, heavy=(*HEAVY, "pyarrow"))
    assert (code, loaded) == (0, [])
    value = json.loads(out)
    assert value["num_tokens"] > 1
    assert (value["adapter"] is None) == (adapter == "base")


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
