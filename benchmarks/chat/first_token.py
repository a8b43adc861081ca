"""Time to the first token: of a one-shot from its launch, and of questions in a session that is running.

    python benchmarks/chat/first_token.py WORKSPACE [repeats]

The session runs in a pseudo-terminal, as a person's does. Times are taken from outside: from the launch, or from the
Enter after a question, to the first letter of the answer on the screen.
"""

import os
import pty
import re
import select
import statistics
import subprocess
import sys
import time

QUESTIONS = (
    "What are the warning signs of a stroke?",
    "I have been told that my blood pressure is high and that I should eat less salt, move more and come back in three "
    "months. What does high blood pressure do to the body over the years, which foods hold the most salt, how much "
    "should I move each week, and how do I measure my blood pressure at home correctly?",
    "How do vaccines work?",
)
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\][^\x07]*\x07|\r")
FEDMED = [sys.executable, "-m", "fedmed_cli", "chat", "--workspace"]


def one_shot(workspace):
    started = time.perf_counter()
    command = [*FEDMED, workspace, "--quiet", QUESTIONS[0]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        process.stdout.read(1)
        seconds = time.perf_counter() - started
        process.stdout.read()
    return seconds


class Session:
    def __init__(self, workspace):
        self.process, self.handle = pty.fork()
        if not self.process:
            os.environ |= {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
            os.execv(sys.executable, [*FEDMED, workspace])

    def until(self, pattern):
        """Read until `pattern` stands among what was not read before; the seconds that took."""
        started, seen = time.perf_counter(), b""
        while not re.search(pattern, ESCAPES.sub(b"", seen)):
            if not select.select([self.handle], [], [], 120)[0]:
                raise SystemExit(f"nothing came for 120 s after {seen[-300:]!r}")
            part = os.read(self.handle, 65536)
            if b"\x1b[6n" in part:  # where is the cursor?
                os.write(self.handle, b"\x1b[1;1R")
            seen += part
        return time.perf_counter() - started

    def until_ready(self):
        """Read until the prompt stands there and nothing more comes."""
        self.until("›".encode())
        while select.select([self.handle], [], [], 0.5)[0]:
            os.read(self.handle, 65536)

    def ask(self, question):
        os.write(self.handle, question.encode() + b"\r")
        label = self.until(rb"not for clinical use[^\n]*\n")
        first = label + self.until(rb"[A-Za-z]")
        self.until_ready()
        return first


def main():
    workspace, repeats = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3
    launches = [one_shot(workspace) for _ in range(repeats)]
    print(f"one-shot, from launch to the first letter: {[round(s, 2) for s in launches]} s", flush=True)
    session = Session(workspace)
    session.until_ready()
    later = []
    for number in range(repeats):
        for question in QUESTIONS:
            seconds = session.ask(question)
            words = len(question.split())
            print(f"session, question of {words} words: {seconds:.2f} s to the first letter", flush=True)
            if number or question is not QUESTIONS[0]:
                later.append(seconds)
    os.write(session.handle, b"/quit\r")
    ratio = statistics.median(launches) / statistics.median(later)
    print(f"medians {statistics.median(launches):.2f} s and {statistics.median(later):.2f} s: {ratio:.1f} times")


if __name__ == "__main__":
    main()
