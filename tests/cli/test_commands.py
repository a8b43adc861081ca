"""Commands through main(argv), error door included."""

import json
import subprocess
import sys

import pytest
import typer
from helpers.factories import write_adapter

from fedmed_cli.adapters.adapter import initial_factors, plan_adapter
from fedmed_cli.cli.app import COMMANDS, main, make_app
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.split import SplitRecord


@pytest.mark.slow
def test_split_of_the_corpus_leaks_nothing_and_is_deterministic(tmp_path):
    for name in ("one", "two"):
        assert main(["split", "--hospitals", "3", "-C", str(tmp_path / name), "--quiet"]) == 0
    record = SplitRecord.read(tmp_path / "one/data/split.json")
    assert record.num_examples == 10_000
    assert record.checks == {"rows": 10_000, "texts_in_two_sets": 0, "groups_in_two_sets": 0}
    for file in ("A/train.jsonl", "coordinator.jsonl", "test.jsonl"):
        assert (tmp_path / "one/data" / file).read_bytes() == (tmp_path / "two/data" / file).read_bytes()


def test_unknown_columns_are_counted_since_their_names_may_be_texts(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text('{"Frage": "secret", "Antwort": "secret"}\n')
    assert main(["split", "--dataset", str(tmp_path / "x.jsonl"), "-C", str(tmp_path)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "expected columns question and answer, found 2 columns" in err
    assert "Frage" not in err
    assert "--columns" in err
    assert "secret" not in err


@pytest.mark.parametrize(
    ("argv", "rate"), [([], 2e-3), (["--base", "folder"], 2e-4), (["--learning-rate", "5e-4"], 5e-4)]
)
def test_the_default_learning_rate_is_the_bases(argv, rate, tiny_base, tmp_path):
    argv = [str(tiny_base) if part == "folder" else part for part in argv]
    assert main(["init", "--names", "A,B", "-C", str(tmp_path), "--quiet", *argv]) == 0
    assert Plan.read(tmp_path / "federation.toml").training.learning_rate == rate


def test_a_damaged_adapter_is_refused(tmp_path, capsys):
    assert main(["init", "--names", "A,B", "-C", str(tmp_path), "--quiet"]) == 0
    plan = Plan.read(tmp_path / "federation.toml")
    adapter = plan_adapter(plan, initial_factors(plan))
    folder = write_adapter(tmp_path / "x", adapter)
    assert main(["inspect-adapter", str(folder), "-C", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapter"]["digest"] == adapter.digest
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert main(["inspect-adapter", str(folder), "-C", str(tmp_path)]) == 3
    assert "truncated" in capsys.readouterr().err
    weights.write_bytes(whole[:-4] + b"\x00\x00\xc0\x7f")
    assert main(["inspect-adapter", str(folder), "-C", str(tmp_path)]) == 3
    assert "NaN" in capsys.readouterr().err


@pytest.mark.parametrize("words", sorted(set(COMMANDS) - {"keys"}))
def test_every_command_has_help_with_an_example(words, capsys):
    assert main([*words.split(), "--help"]) == 0
    assert "Example: fedmed" in capsys.readouterr().out


def node_of(words):
    node = typer.main.get_command(make_app())
    for name in words.split():
        node = node.commands[name]
    return node


@pytest.mark.parametrize("words", sorted(set(COMMANDS) - {"keys"}))
def test_no_option_is_cut_in_80_columns(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*words.split(), "--help"]) == 0
    shown = capsys.readouterr().out.split()
    names = [name for parameter in node_of(words).params for name in parameter.opts if name.startswith("-")]
    assert len(names) > 3
    assert [name for name in names if name not in shown] == []


@pytest.mark.parametrize("words", sorted(set(COMMANDS) - {"keys"}))
def test_help_shows_every_text_whole(words, capsys, monkeypatch):
    """What stands in brackets too, which rich would take as its markup."""
    monkeypatch.setenv("COLUMNS", "400")
    node = node_of(words)
    assert main([*words.split(), "--help"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    texts = [parameter.help.replace("\\[", "[") for parameter in node.params if getattr(parameter, "help", None)]
    assert len(texts) > 3
    assert [text for text in texts if "".join(text.split()) not in shown] == []


@pytest.mark.slow
def test_aggregating_without_contributions_is_an_error_and_loads_no_torch(tmp_path):
    code = (
        "import sys; from fedmed_cli.cli.app import main; main(['init', '--names', 'A,B', '-q']);"
        "code = main(['aggregate']); sys.exit(99 if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3
    assert "no contribution" in done.stderr
    assert "wrote" not in done.stdout
