"""docs/cli.md names all that the commands take."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_command_reference_is_up_to_date():
    made = runpy.run_path(str(DOCS / "make_cli.py"))["render"]()
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == made, "run: python docs/make_cli.py"
