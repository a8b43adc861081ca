"""A model that says what it is told to, and a chat with it.

As a program: `python tests/helpers/fake_model.py TOKENIZER WAIT_AFTER ANSWER…`. After that many pieces, if not 0, it
waits to be stopped by Ctrl-C.
"""

import re
import sys
import threading
from pathlib import Path

from fedmed_cli.models.engines.engine import Piece
from fedmed_cli.models.tokenizer import load_tokenizer


class ScriptedEngine:
    """Gives one answer after the other, word by word; says which adapters it was asked to use."""

    name = description = "scripted"

    def __init__(self, folder, answers, context=4096, wait_after=0):
        self.tokenizer = load_tokenizer(Path(folder))
        self.answers = list(answers)
        self.context = context
        self.pieces_left = wait_after or None
        self.prepared = []
        self.asked = []
        self.num_stopped = 0

    def prepare(self, adapters):
        self.prepared += adapters

    def generate(self, ids, adapter, sampling):
        self.asked.append((list(ids), adapter, sampling))
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        pieces = re.findall(r"\s*\S+|\s+", answer)
        try:
            for number, piece in enumerate(pieces[: sampling.max_new_tokens], 1):
                if self.pieces_left is not None:
                    self.pieces_left -= 1
                    if self.pieces_left == 0:
                        self.pieces_left = None
                        threading.Event().wait()
                yield Piece(piece, 1, ended=number == len(pieces))
        except GeneratorExit:
            self.num_stopped += 1
            self.pieces_left = None  # the answer that should have halted was stopped before it did
            raise

    def close(self):
        pass


def main():
    from fedmed_cli.chat.choose_adapter import BASE
    from fedmed_cli.chat.conversation import Conversation, Settings
    from fedmed_cli.chat.repl import COMMANDS, Session
    from fedmed_cli.cli import terminal
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.records.plan import Prompt

    path, wait_after, *answers = sys.argv[1:]
    engine = ScriptedEngine(path, answers, wait_after=int(wait_after))
    conversation = Conversation(engine, Prompt("", "{question}"), Settings(0.0, 500))
    conversation.use(BASE)
    session = Session(Screen(), conversation, lambda name: BASE, "f" * 64)
    session.run(terminal.reader(COMMANDS, ("A", "B"), None))


if __name__ == "__main__":
    main()
