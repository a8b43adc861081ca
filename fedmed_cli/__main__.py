"""Entry point of `python -m fedmed_cli`."""

import sys

from fedmed_cli.app import main

sys.exit(main())
