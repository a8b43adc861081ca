"""Entry point of `fedmed` and of `python -m fedmed_cli`."""

import gc
import sys

from fedmed_cli.cli.app import main


def run() -> None:
    code = main()
    gc.freeze()  # the interpreter would look for cycles in what goes away with the process: a twelfth of a short run
    sys.exit(code)


if __name__ == "__main__":
    run()
