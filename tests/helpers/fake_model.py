"""A model that says what it is told to, and a chat with it.

As a program: `python tests/helpers/fake_model.py TOKENIZER WAIT_AFTER ANSWER…`. After that many tokens, if not 0, it
waits to be stopped by Ctrl-C.
"""

import sys
import threading

import torch


class ScriptedDecoder:
    """Gives the tokens of one answer after the other; says which adapter it was asked to use."""

    kernels = "scripted"
    max_draft = 0

    def __init__(self, tokenizer, answers, wait_after=0):
        self.tokenizer = tokenizer
        self.answers = list(answers)
        self.tokens_left = wait_after or None
        self.used = []
        self.queue = None
        self.expected = None

    def use(self, adapter):
        self.used.append(adapter)

    def read(self, ids, draft=()):
        if self.queue is None or list(ids) != self.expected:  # the answer before was stopped
            answer = self.answers.pop(0)
            if isinstance(answer, BaseException):
                self.queue = None
                raise answer
            self.queue = [*self.tokenizer(answer)["input_ids"], self.tokenizer.eos_token_id]
        if self.tokens_left is not None:
            self.tokens_left -= 1
            if self.tokens_left == 0:
                self.tokens_left = None
                threading.Event().wait()
        token = self.queue.pop(0)
        if not self.queue:
            self.queue = None
        self.expected = [*ids, token]
        logits = torch.zeros(len(self.tokenizer))
        logits[token] = 1e4
        return logits[None]


def main():
    from transformers import AutoTokenizer

    from fedmed_cli.chat.choose_adapter import BASE
    from fedmed_cli.chat.conversation import Conversation, Settings
    from fedmed_cli.chat.repl import COMMANDS, Session
    from fedmed_cli.cli import terminal
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.records.plan import Prompt

    path, wait_after, *answers = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(path)
    decoder = ScriptedDecoder(tokenizer, answers, int(wait_after))
    conversation = Conversation(decoder, tokenizer, Prompt("", "{question}"), 4096, Settings(0.0, 500))
    conversation.use(BASE)
    session = Session(Screen(), conversation, lambda name: BASE, "f" * 64)
    session.run(terminal.reader(COMMANDS, ("A", "B"), None))


if __name__ == "__main__":
    main()
