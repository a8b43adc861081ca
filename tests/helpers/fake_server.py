"""A server with a scripted model: `python tests/helpers/fake_server.py TOKENIZER PORT SECONDS_A_WORD`.

It answers "SLOW" in the system text with endless words, else with one short sentence.
"""

import sys
import threading
import time
from pathlib import Path

from fedmed_cli.chat.choose_adapter import BASE, NamedAdapter
from fedmed_cli.chat.serve.app import Limits, Server
from fedmed_cli.chat.serve.backends import EngineBackend
from fedmed_cli.models.engines.engine import Piece
from fedmed_cli.models.tokenizer import load_tokenizer
from fedmed_cli.records.plan import Prompt

ANSWER = "Rest and drink enough water."


class Talker:
    """Says one sentence, or as many words as it may where the prompt is long enough to hold SLOW.

    Each answer waits for `may_speak`, for a minute at most.
    """

    name = description = "scripted"
    context = 4096

    def __init__(self, folder, seconds_a_word=0.0):
        self.tokenizer = load_tokenizer(Path(folder))
        self.seconds_a_word = seconds_a_word
        self.slow = self.tokenizer("SLOW", add_special_tokens=False)["input_ids"]
        self.asked = []
        self.may_speak = threading.Event()
        self.may_speak.set()
        self.num_running = self.most_running = self.num_stopped = 0

    def prepare(self, adapters):
        pass

    def generate(self, ids, adapter, sampling):
        self.asked.append((list(ids), adapter, sampling))
        is_slow = any(ids[at : at + len(self.slow)] == self.slow for at in range(len(ids)))
        words = ["word"] * sampling.max_new_tokens if is_slow else ANSWER.split()[: sampling.max_new_tokens]
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            self.may_speak.wait(60)
            for number, word in enumerate(words, 1):
                time.sleep(self.seconds_a_word)
                ended = not is_slow and number == len(ANSWER.split())
                yield Piece(word if number == 1 else f" {word}", 1, ended)
        except GeneratorExit:
            self.num_stopped += 1
            raise
        finally:
            self.num_running -= 1

    def close(self):
        pass


class Named:
    """As much of an adapter as a name needs."""

    def __init__(self, digest):
        self.digest = digest


def make_server(engine, **options):
    adapters = {"base": BASE, "global": NamedAdapter("global adapter", Named("d" * 64))}
    limits = options.pop("limits", Limits())
    backend = EngineBackend(engine, Prompt("Be kind.", "{question}"), adapters, limits.parallel)
    return Server(backend, limits, **options)


def main():
    import uvicorn

    folder, port, seconds = sys.argv[1:]
    engine = Talker(folder, float(seconds))
    server = make_server(engine, hosts=("127.0.0.1", "localhost"), log=lambda line: print(line, flush=True))
    uvicorn.run(server.app(), port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
