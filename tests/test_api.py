"""The Python interface: a round in a notebook's style, and that importing it costs nothing."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import fedmed_cli as fedmed

EXAMPLE = Path(__file__).parents[1] / "examples" / "api.py"


@pytest.mark.slow
def test_the_example_runs_a_round(tiny_base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path / "pilot"), str(tiny_base)])
    last = runpy.run_path(str(EXAMPLE))
    out = capsys.readouterr().out
    assert out.count("bytes to send") == 3
    place = fedmed.Workspace(tmp_path / "pilot")
    assert place.newest_round() == 1
    assert last["adapter"].digest == last["result"].record.adapter
    assert sum(site.weight for site in last["result"].record.sites.values()) == pytest.approx(1)
    assert last["change"].low <= last["change"].mean <= last["change"].high


def test_every_public_name_is_there_and_documented():
    for name in set(fedmed.__all__) - {"__version__"}:
        text = getattr(fedmed, name).__doc__
        assert text, name
        assert not text.startswith(f"{name}("), name  # a dataclass without a docstring gets its signature
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fedmed.nothing


def test_importing_it_loads_nothing():
    code = "import sys, fedmed_cli; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'typer')))"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
