"""Kills a fedmed command again and again, in children forked after the imports, and checks what is left.

Run as a program, `python crashing.py JOB.json`; it prints one JSON object. A process of its own, for a process
that has started OpenMP threads must not fork.
"""

import contextlib
import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

WRITING = ("write", "fsync", "rename", "replace", "mkdir", "unlink", "ftruncate", "rmdir")


def child(argv, log, prepare=lambda: None, finish=lambda: None):
    """Fork, run the command there between `prepare` and `finish`, and return the child's process id."""
    pid = os.fork()
    if pid:
        return pid
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    code = 99
    try:
        from fedmed_cli.cli.app import main

        prepare()
        code = main(argv)
        finish()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
    return None


def wait(pid):
    """The exit code of a child; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(argv, log):
    """Run a command in this process, undisturbed; its exit code."""
    from fedmed_cli.cli.app import main

    with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        return main(argv)


def disturb_at(number, kind, reached):
    """Let the n-th call that changes the disk fail with ENOSPC, or kill this process there, half-way in a write.

    `reached` is a file that says that it happened.
    """
    calls = itertools.count(1)

    def wrap(name):
        real = getattr(os, name)

        def called(*args, **kwargs):
            if next(calls) == number:
                with open(reached, "w") as file:
                    file.write(name)
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                if kind == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        setattr(os, name, called)

    for name in WRITING:
        wrap(name)


class Calls:
    """Counts the calls of Python functions, of all threads; kills the process at call number `kill_at`."""

    def __init__(self, kill_at=None):
        self.numbers, self.reached, self.kill_at = itertools.count(1), 0, kill_at

    def start(self):
        threading.setprofile(self)
        sys.setprofile(self)

    def write(self, path):
        sys.setprofile(None)
        path.write_text(str(self.reached))

    def __call__(self, frame, event, argument):
        if event == "call":
            self.reached = next(self.numbers)
            if self.reached == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def snapshot(root):
    """The bytes of every file but those of .fedmed/."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] != ".fedmed"
    }


def place_of(name):
    """The folder that appears whole with the file in it: a contribution's, a round's."""
    return "/".join(name.split("/")[:2])


def leftovers(root):
    return [path.relative_to(root).as_posix() for path in root.rglob(".*.tmp")]


def weights(root, wanted):
    """The adapters that a command makes: file name to bytes."""
    found = {name: data for name, data in snapshot(root).items() if name.endswith(".safetensors")}
    return {name: data for name, data in found.items() if name.startswith(tuple(wanted))}


class Bed:
    """One command on copies of one workspace."""

    def __init__(self, job):
        self.template, self.base = Path(job["template"]), Path(job["scratch"])
        self.argv, self.makes = job["argv"], job["makes"]
        self.numbers = itertools.count(1)
        self.log = self.base / "log"
        self.reference = self.fresh()  # made in this process, which also loads all that the children need
        assert run([*self.argv, "-C", str(self.reference)], self.log) == 0, self.log.read_text()
        calls, counted = Calls(), self.base / "calls"
        argv = [*self.argv, "-C", str(self.fresh())]
        pid = child(argv, self.log, calls.start, lambda: calls.write(counted))
        assert wait(pid) == 0, self.log.read_text()
        self.num_calls = int(counted.read_text())
        self.made = weights(self.reference, self.makes)
        assert self.made
        self.state, self.done = snapshot(self.template), snapshot(self.reference)

    def fresh(self):
        return Path(shutil.copytree(self.template, self.base / str(next(self.numbers))))

    def check_killed(self, root):
        """After a kill: everything that is there holds, the command runs again, and makes the same adapters."""
        code = run(["verify", "-q", "-C", str(root)], self.log)
        assert code == 0, ("verify after the kill", code, self.log.read_text()[-2000:])
        done = weights(root, self.makes) == self.made
        code = run([*self.argv, "-C", str(root)], self.log)
        # A command whose result was complete may say so instead of making it again.
        assert code == 0 or (done and code in (6, 7)), ("again", code, self.log.read_text()[-2000:])
        assert weights(root, self.makes) == self.made, "the second run made other adapters"
        assert not leftovers(root), leftovers(root)
        code = run(["verify", "-q", "--recompute", "-C", str(root)], self.log)
        assert code == 0, ("verify at the end", code, self.log.read_text()[-2000:])
        shutil.rmtree(root)
        return done

    def random_kills(self, count, seed):
        rng, done, killed = random.Random(seed), 0, 0
        for _ in range(count):
            root = self.fresh()
            calls = Calls(rng.randint(1, self.num_calls))
            killed += wait(child([*self.argv, "-C", str(root)], self.log, calls.start)) == -signal.SIGKILL
            done += self.check_killed(root)
        return {"killed": killed, "complete": done}

    def every_write(self, kind, step=1):
        kinds = []
        for number in itertools.count(1, step):
            root, reached = self.fresh(), self.base / "reached"
            reached.unlink(missing_ok=True)
            argv = [*self.argv, "-C", str(root)]
            code = wait(child(argv, self.log, lambda n=number, r=reached: disturb_at(n, kind, str(r))))
            if not reached.exists():
                assert code == 0, (code, self.log.read_text()[-2000:])
                shutil.rmtree(root)
                return {"points": len(kinds), "kinds": sorted(set(kinds))}
            kinds.append(reached.read_text())
            if kind == "kill":
                assert code == -signal.SIGKILL, code
            else:
                assert code in (0, 5), (number, reached.read_text(), code, self.log.read_text()[-2000:])
                self.check_failed(root, code)
            self.check_killed(root)
        raise AssertionError

    def check_failed(self, root, code):
        """After a full disk: each folder as it was, or complete as the undisturbed command makes it; none half-made.

        A command of several steps, such as a round, keeps the steps that were done.
        """
        after = snapshot(root)
        changed = {name for name in self.state.keys() | after.keys() if self.state.get(name) != after.get(name)}
        for place in {place_of(name) for name in changed - {"metrics.jsonl"}}:
            now, before, done = (
                {name for name in files if place_of(name) == place} for files in (after, self.state, self.done)
            )
            assert now in (before, done), (code, place, now)
        made = {name: data for name, data in after.items() if name.endswith(".safetensors")}
        assert all(data in (self.state.get(name), self.done.get(name)) for name, data in made.items()), code

    def two_at_once(self, count):
        outcomes = {}
        for _ in range(count):
            root = self.fresh()
            logs = [self.base / f"log{number}" for number in (1, 2)]
            for log in logs:
                log.unlink(missing_ok=True)
            gate, opener = os.pipe()

            def ready(gate=gate, opener=opener):
                os.close(opener)
                os.read(gate, 1)  # until nobody holds the other end

            pids = [child([*self.argv, "-C", str(root)], log, ready) for log in logs]
            os.close(opener)
            os.close(gate)
            codes = [wait(pid) for pid in pids]
            assert sorted(codes)[0] == 0, codes
            assert sorted(codes)[1] in (6, 7), codes
            loser = logs[codes.index(sorted(codes)[1])].read_text()
            said = "another fedmed" if sorted(codes)[1] == 6 else "already aggregated"
            assert said in loser, loser
            outcomes[said] = outcomes.get(said, 0) + 1
            assert weights(root, self.makes) == self.made
            assert not leftovers(root)
            shutil.rmtree(root)
        return outcomes


def crash(tmp_path, template, argv, makes, *tasks):
    """Run this module as a program and return its result."""
    job = {
        "template": str(template),
        "scratch": str(tmp_path / "scratch"),
        "argv": argv,
        "makes": makes,
        "tasks": tasks,
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, __file__, tmp_path / "job.json"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT ")
    )


def main(job):
    Path(job["scratch"]).mkdir(parents=True, exist_ok=True)
    bed = Bed(job)
    result = {"calls": bed.num_calls}
    for task in job["tasks"]:
        name, *arguments = task
        result[" ".join(map(str, task))] = getattr(bed, name)(*arguments)
    return result


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
