"""The folder that `flwr run` starts: a pyproject.toml that names fedmed's two components."""

from __future__ import annotations

import json
from pathlib import Path

from fedmed_cli import __version__
from fedmed_cli.workspace.durable import write_folder

APP_NAME = "flower"
_PYPROJECT = """# What `flwr run` starts: it carries fedmed's bundles (docs/flower.md).
[project]
name = "fedmed-federation"
version = "{version}"
description = "A federation of fedmed over Flower"
license = "Apache-2.0"
dependencies = ["fedmed[flower]=={version}"]

[tool.flwr.app]
publisher = "fedmed"

[tool.flwr.app.components]
serverapp = "fedmed_cli.federation.flower.server_app:app"
clientapp = "fedmed_cli.federation.flower.client_app:app"

# The coordinator's; 'flwr run . --run-config "rounds=5"' changes one of them. An empty text is fedmed's default.
[tool.flwr.app.config]
workspace = {workspace}
rounds = 1            # until this round is there
min-sites = {min_sites}         # enough at the deadline
deadline = ""         # as in "48h"; without one all sites are awaited
poll = 5.0            # seconds between two looks
weights = ""          # as of 'fedmed aggregate'
key = ""              # the private key to sign with
require-signatures = false

# The hospitals', in Flower's simulation; elsewhere each has its own.
[tool.flwr.app.config.simulation]
sites = ""            # a folder with a workspace for each site of the plan, under its name
keys = ""             # a folder with each site's private key, under its name
base = ""             # as of 'fedmed train-local'
max-steps = 0         # 0: as the plan says
max-eval-samples = 0  # 0: as 'fedmed train-local' does
"""


def write_app(workspace: Path, min_sites: int) -> Path:
    """Write `flower/` in the workspace; ConflictError where it is there already."""
    target = workspace / APP_NAME
    text = _PYPROJECT.format(version=__version__, workspace=json.dumps(str(workspace.resolve())), min_sites=min_sites)
    write_folder(target, {"pyproject.toml": text.encode()})
    return target
