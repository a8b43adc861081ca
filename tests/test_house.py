"""What each package may import. Each rule has its reason; docs/architecture.md draws the whole."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[1] / "fedmed_cli"
ROOMS = {entry.stem for entry in HOUSE.iterdir() if entry.suffix == ".py" or (entry / "__init__.py").exists()}
PACKAGES = {entry.name for entry in HOUSE.iterdir() if (entry / "__init__.py").exists()}

# Who may never import whom, and why. "torch" and the like are packages of others.
NEVER = {
    "records": (
        PACKAGES | {"text", "events", "intervals"},
        "a record is read and checked without anything else of fedmed",
    ),
    "data": ({"adapters", "models", "aggregation"}, "records of patients and adapters meet only in training"),
    "adapters": ({"data", "models", "aggregation", "trust"}, "the gate must be readable, and safe, on its own"),
    "aggregation": ({"workspace", "data", "models"}, "numbers in, numbers out"),
    "evaluation": ({"training", "federation", "chat"}, "what measures does not change what is measured"),
    "training": ({"evaluation"}, "what trains does not look at what it is judged on"),
    "chat": ({"federation", "training"}, "a chat only reads"),
    "reporting": ({"federation", "training"}, "a report only reads"),
}
SCREEN = {"typer", "rich", "prompt_toolkit"}
WITH_TORCH = ("models", "training", "evaluation", "chat")
WITH_TORCH_FILES = {
    f"federation/{name}.py" for name in ("site", "simulation", "pooled", "cross_scores", "auditing", "personalising")
}


def imports(path):
    """What a file imports: (module, name or None), wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            yield from ((node.module, alias.name) for alias in node.names)


def room(module, name):
    """The package or file of fedmed_cli that an import reaches, else the other's top package."""
    parts = module.split(".")
    if parts[0] != "fedmed_cli":
        return parts[0]
    return parts[1] if len(parts) > 1 else name


FILES = sorted(path for path in HOUSE.rglob("*.py") if path.name != "__main__.py")


def own_room(path):
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


@pytest.fixture(scope="module")
def arrows():
    """For each package or file of the top level, those that it imports, with the files that do."""
    found = defaultdict(lambda: defaultdict(set))
    for path in FILES:
        for module, name in imports(path):
            target = room(module, name)
            if target != own_room(path):
                found[own_room(path)][target].add(str(path.relative_to(HOUSE)))
    return found


@pytest.mark.parametrize("package", NEVER)
def test_a_package_never_imports_what_it_must_not_know(package, arrows):
    forbidden, reason = NEVER[package]
    broken = {target: files for target, files in arrows[package].items() if target in forbidden - {package}}
    assert not broken, f"{package}: {reason}"


def test_only_the_command_line_knows_the_screen_and_nobody_knows_the_command_line(arrows):
    for package, targets in arrows.items():
        if package != "cli":
            assert not (SCREEN | {"cli"}) & set(targets), package


def test_only_the_flower_app_knows_flwr_and_only_init_knows_the_app():
    """flwr lives in an environment of its own; `init` writes the app without it."""
    flower = HOUSE / "federation/flower"
    for path in FILES:
        modules = [module for module, _ in imports(path)]
        if flower not in path.parents:
            is_init = path == HOUSE / "cli/commands/init.py"
            assert is_init or not any(module.startswith("fedmed_cli.federation.flower") for module in modules), path
        if flower not in path.parents or path.name == "app_files.py":
            assert not any(module.split(".")[0] == "flwr" for module in modules), path


def test_torch_is_imported_only_where_a_model_runs():
    """Everything else starts in a tenth of a second. Other packages may still import it in a function's body."""
    for path in FILES:
        place = str(path.relative_to(HOUSE))
        if own_room(path) in WITH_TORCH or place in WITH_TORCH_FILES:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert not {"torch", "transformers", "peft"} & {name.split(".")[0] for name in names}, place


def test_no_package_takes_another_ones_underscore_name():
    for path in FILES:
        for module, name in imports(path):
            if module.startswith("fedmed_cli") and room(module, name) != own_room(path):
                assert not (name or "").startswith("_") or name == "__version__", f"{path}: {module}.{name}"


def test_packages_import_each_other_without_a_circle(arrows):
    left = {name: {target for target in arrows[name] if target in ROOMS} for name in ROOMS}
    levels = 0
    while left:
        free = {name for name, targets in left.items() if not targets & set(left)}
        assert free, (
            f"a circle among {sorted(left)}: {[(a, b, arrows[a][b]) for a in left for b in left[a] & set(left)]}"
        )
        left = {name: targets for name, targets in left.items() if name not in free}
        levels += 1
    assert levels <= 12


def test_architecture_md_says_what_each_package_imports(arrows):
    """Its table is in the order in which packages build on each other, and names all that each of them imports."""
    text = (HOUSE.parent / "docs/architecture.md").read_text(encoding="utf-8")
    table = text[text.index("| package or file") : text.index("`tests/test_house.py` holds")]
    above = {"errors", "events", "text"}
    for row in table.strip().splitlines()[3:]:
        _, first, _, imported, _ = row.split("|")
        name, named = first.strip(" `/"), set(re.findall("`([a-z]+)`", imported))
        assert named <= above, name
        assert arrows[name].keys() & (ROOMS - {"errors", "events", "text"}) == named, name
        above.add(name)
    assert above == ROOMS - {"__init__", "__main__"}


def test_the_house_is_seen_at_one_glance():
    assert len([entry for entry in HOUSE.iterdir() if not entry.name.startswith("__pycache__")]) <= 20


def test_long_files_say_why():
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        if source.count("\n") > 400:
            assert "one file" in ast.get_docstring(ast.parse(source)), path


def test_every_promise_of_the_threat_model_names_tests_that_exist():
    text = (HOUSE.parent / "docs" / "threat-model.md").read_text(encoding="utf-8")
    table = text[text.index("## Which test holds which promise") :].split("\n\n")[1].splitlines()[2:]
    assert len(table) >= 20
    for row in table:
        named = re.findall(r"`(tests/[a-z_/]+\.py)::(test_[a-z_0-9]+)`", row)
        assert named, row
        for path, test in named:
            assert f"\ndef {test}(" in (HOUSE.parent / path).read_text(encoding="utf-8"), (path, test)
