"""Entry point of `fedmed` and of `python -m fedmed_cli`."""

import sys

from fedmed_cli.app import main


def run() -> None:
    sys.exit(main())


if __name__ == "__main__":
    run()
