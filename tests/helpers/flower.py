"""Flower's programs as processes on loopback, with everything off that would call somebody."""

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from helpers.processes import free_port

BIN = Path(sys.executable).parent
OFF = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
NO_INSTALL = "--disable-runtime-dependency-installation"


class Deployment:
    """A SuperLink and SuperNodes; `tls` is a folder with ca.crt, server.crt and server.key."""

    def __init__(self, root, tls=None):
        root.mkdir(parents=True)
        self.root, self.tls, self.port = root, tls, free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.processes = {}
        self.env = os.environ | OFF | {"FLWR_HOME": str(root / "flwr-home"), "PATH": f"{BIN}:{os.environ['PATH']}"}
        (root / "flwr-home").mkdir()
        trust = f'root-certificates = "{tls / "ca.crt"}"' if tls else "insecure = true"
        text = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{self.address}"\n{trust}\n'
        (root / "flwr-home" / "config.toml").write_text(text)

    def start(self, name, *argv):
        argv = [str(part) for part in argv]
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                argv, env=self.env, cwd=self.root, stdout=log, stderr=log, start_new_session=True
            )

    def superlink(self, *more):
        how = ["--insecure"]
        if self.tls:
            names = {"certfile": "server.crt", "keyfile": "server.key", "ca-certfile": "ca.crt"}
            how = [part for flag, file in names.items() for part in (f"--ssl-{flag}", self.tls / file)]
        where = ["--host", "127.0.0.1", "--port", self.port]
        self.start("superlink", BIN / "flower-superlink", *how, NO_INSTALL, *where, *more)
        self.wait_for(self.answers)

    def answers(self):
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def supernode(self, site, settings, *more):
        how = ["--root-certificates", self.tls / "ca.crt"] if self.tls else ["--insecure"]
        config = " ".join(f"{key}={value!r}".replace("'", '"') for key, value in settings.items())
        where = ["--superlink", self.address, "--host", "127.0.0.1", "--port", free_port()]
        self.start(f"node-{site}", BIN / "flower-supernode", *how, *where, "--node-config", config, *more)

    def flwr(self, *argv):
        done = subprocess.run(
            [BIN / "flwr", *map(str, argv)], env=self.env, cwd=self.root, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, app, *more, **settings):
        """Start a run."""
        pairs = " ".join(f"{key.replace('_', '-')}={value!r}".replace("'", '"') for key, value in settings.items())
        return self.flwr("run", app, "here", "--run-config", pairs, *more)

    def kill(self, name):
        """Kill a process and all that it started, at once."""
        process = self.processes.pop(name)
        os.killpg(process.pid, 9)
        process.wait()

    def stop(self):
        """End all processes, and those that they started in sessions of their own, as a SuperLink does a simulation."""
        started = [psutil.Process(one.pid).children(recursive=True) for one in self.processes.values()]
        for name in list(self.processes):
            self.kill(name)
        for child in itertools.chain(*started):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

    def log(self, name):
        return (self.root / f"{name}.log").read_text(errors="replace")

    def wait_for(self, condition, seconds=900):
        """Not a measure of anything: a test that hangs ends."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, {name: self.log(name)[-3000:] for name in self.processes}
            time.sleep(0.2)


def make_certificates(folder):
    """A certificate authority of its own and a server's certificate for 127.0.0.1, by openssl."""
    folder.mkdir()
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    for argv in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=fedmed-test-ca",
        "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile san",
    ):
        subprocess.run([shutil.which("openssl"), *argv.split()], cwd=folder, check=True, capture_output=True)
    return folder


def make_node_key(path):
    """A SuperNode's key: NIST P-384, as Flower asks for."""
    argv = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-C", "", "-f", path]
    subprocess.run(argv, check=True)
    return path
