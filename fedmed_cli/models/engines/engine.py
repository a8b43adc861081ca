"""The interface of an engine: tokens of a prompt go in, pieces of text come out while they are made."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fedmed_cli.adapters.adapter import Adapter

MAX_CONTEXT = 8192  # tokens; longer ones cost memory that a chat seldom needs
SECONDS_TO_STOP = 5
MAX_SEED = 2**32 - 2  # llama.cpp takes the next one for a random seed
T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedy at temperature 0, else from all tokens, the same ones for the same seed."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class Piece:
    """A piece of an answer. `ended`: the model ended its answer with it; the last piece of others is cut off."""

    text: str
    num_tokens: int
    ended: bool = False


class Engine(Protocol):
    """A base model that answers with any adapter, or none. One load serves them all."""

    name: str
    description: str  # for people: the engine and how it computes
    tokenizer: Any
    context: int  # tokens of prompt and answer together

    def prepare(self, adapters: Sequence[Adapter]) -> None:
        """Have these adapters at hand, besides those before. CombineError where one does not fit the base."""

    def generate(self, ids: Sequence[int], adapter: Adapter | None, sampling: Sampling) -> Generator[Piece, None, None]:
        """Continue `ids` with an adapter that was prepared; closing the iterator stops the work."""

    def close(self) -> None:
        """Free memory and files; the engine is not used afterwards."""


def stream(work: Callable[[Callable[[T], bool]], None]) -> Generator[T, None, None]:
    """What `work` gives away, piece by piece, while it runs in a thread, so that Ctrl-C is heard at any time.

    `work` gets a function that takes a piece and returns whether to go on. Its errors are raised here.
    """
    pieces: queue.SimpleQueue[T | BaseException | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def give(piece: T) -> bool:
        pieces.put(piece)
        return not stopped.is_set()

    def run() -> None:
        try:
            work(give)
            pieces.put(None)
        except BaseException as error:  # raised where the pieces are read
            pieces.put(error)

    thread = threading.Thread(target=run, name="fedmed-engine", daemon=True)
    thread.start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        stopped.set()
        thread.join(SECONDS_TO_STOP)
