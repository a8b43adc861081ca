"""Rounds by hand: each party in a folder of its own."""

import shutil

from fedmed_cli.cli.app import main

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")


def by_hand(split_root, base, folder, rounds, options=()):
    """Each hospital and the coordinator in a folder of its own; only adapters are copied between them.

    `rounds` has the sites of each round, as "ABC".
    """
    coordinator = folder / "coordinator"
    coordinator.mkdir(parents=True)
    shutil.copy(split_root / "federation.toml", coordinator)
    (coordinator / "data").mkdir()
    for name in ("split.json", "coordinator.jsonl"):
        shutil.copy(split_root / "data" / name, coordinator / "data")
    for site in "ABC":
        home = folder / site
        (home / "data").mkdir(parents=True)
        shutil.copy(split_root / "federation.toml", home)
        shutil.copy(split_root / "data/split.json", home / "data")
        shutil.copytree(split_root / "data" / site, home / "data" / site)
    for number, sites in enumerate(rounds, 1):
        for site in sites:
            argv = ["train-local", "-q", "-C", str(folder / site), "--site", site, "--base", str(base), *options]
            for missed in range(1, number - 1):
                filed = f"rounds/{missed:03d}/global"
                shutil.copytree(coordinator / filed, folder / site / filed, dirs_exist_ok=True)
            if number > 1:
                argv += ["--global", str(coordinator / f"rounds/{number - 1:03d}/global")]
            assert main(argv) == 0
            shutil.rmtree(coordinator / "adapters" / site, ignore_errors=True)
            shutil.copytree(folder / site / "adapters" / site, coordinator / "adapters" / site)
        folders = [str(coordinator / "adapters" / site) for site in sites[::-1]]  # the order does not matter
        assert main(["aggregate", "-q", "-C", str(coordinator), *folders, "--base", str(base), *options]) == 0
    return coordinator
