"""fedmed in a process of its own."""

import socket
import subprocess
import sys

HEAVY = ("torch", "transformers", "peft", "datasets", "bitsandbytes")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def run(cwd, *argv, heavy=HEAVY):
    """Run main(argv) in a process of its own; exit code, stdout, and which heavy modules it loaded."""
    code = (
        "import sys; from fedmed_cli.cli.app import main; code = main(sys.argv[1:]);"
        f"print('loaded:', *(name for name in {heavy!r} if name in sys.modules), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, argv)], cwd=cwd, capture_output=True, text=True)
    loaded = next(line for line in done.stderr.splitlines() if line.startswith("loaded:")).split()[1:]
    return done.returncode, done.stdout, loaded
