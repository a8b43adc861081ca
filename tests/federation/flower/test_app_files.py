"""What `fedmed init --engine flower` writes, without Flower."""

import ast
import tomllib
from pathlib import Path

import pytest

import fedmed_cli
from fedmed_cli.cli.app import main


def test_init_writes_an_app_whose_components_and_settings_are_there(tmp_path, capsys):
    assert main(["init", "--names", "A,B,C", "--engine", "flower", "-C", str(tmp_path)]) == 0
    assert f"flwr run {tmp_path / 'flower'}" in capsys.readouterr().out
    app = tomllib.loads((tmp_path / "flower/pyproject.toml").read_text())
    assert app["project"]["dependencies"] == [f"fedmed[flower]=={fedmed_cli.__version__}"]
    flower = app["tool"]["flwr"]["app"]
    for name in ("serverapp", "clientapp"):
        module, attribute = flower["components"][name].split(":")
        path = Path(fedmed_cli.__file__).parents[1] / (module.replace(".", "/") + ".py")
        assigned = [node.targets[0].id for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign)]
        assert attribute in assigned
    assert flower["config"]["workspace"] == str(tmp_path)
    assert flower["config"]["min-sites"] == 2
    messages = ast.parse((Path(fedmed_cli.__file__).parent / "federation/flower/messages.py").read_text())
    (known,) = (
        [key.value for key in node.value.keys]
        for node in messages.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "RUN_SETTINGS"
    )
    simulation = flower["config"].pop("simulation")
    assert {*flower["config"], *(f"simulation.{name}" for name in simulation)} == set(known)


@pytest.mark.parametrize("engine", ["nvflare", ""])
def test_another_engine_is_refused(engine, tmp_path, fails):
    assert "--engine: expected one of flower" in fails(2, "init", "--names", "A,B", "--engine", engine, "-C", tmp_path)
    assert not (tmp_path / "federation.toml").exists()
