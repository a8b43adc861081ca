"""transformers as an engine: its own generation, with prompt lookup, for any base model and for GPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.errors import MachineError
from fedmed_cli.models.engines.engine import MAX_CONTEXT, Piece, Sampling, stream
from fedmed_cli.models.language_model import LanguageModel

NAME = "transformers"
MAX_DRAFT = 3  # tokens guessed from what followed the same words before (prompt lookup, Saxena 2023)


class TransformersEngine:
    """A loaded model. One answer is made at a time; others wait."""

    name = NAME

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.tokenizer = lm.tokenizer
        self.description = f"transformers on {lm.device.type}, {str(lm.dtype).removeprefix('torch.')}"
        self.context = min(int(getattr(lm.model.config, "max_position_embeddings", 4096)), MAX_CONTEXT)
        self._lock = threading.Lock()

    def prepare(self, adapters: Sequence[Adapter]) -> None:
        with self._lock:
            for adapter in adapters:
                self.lm.use(adapter)

    def generate(self, ids: Sequence[int], adapter: Adapter | None, sampling: Sampling) -> Generator[Piece, None, None]:
        def work(give: Callable[[Piece], bool]) -> None:
            with self._lock:
                self._generate(ids, adapter, sampling, give)

        return stream(work)

    def _generate(
        self, ids: Sequence[int], adapter: Adapter | None, sampling: Sampling, give: Callable[[Piece], bool]
    ) -> None:
        self.lm.use(adapter)
        eos = self.tokenizer.eos_token_id
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or 1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=eos,
            pad_token_id=eos,
            prompt_lookup_num_tokens=MAX_DRAFT,
        )
        prompt = torch.tensor([list(ids)], device=self.lm.device)
        streamer = _Streamer(self.tokenizer, give)
        devices = [self.lm.device] if self.lm.device.type == "cuda" else []
        try:
            with torch.inference_mode(), torch.random.fork_rng(devices=devices):
                if sampling.seed is None:
                    torch.seed()
                else:
                    torch.manual_seed(sampling.seed)
                self.lm.model.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    generation_config=config,
                    streamer=streamer,
                )
        except torch.OutOfMemoryError:
            raise MachineError("out of memory while answering", hint="start a new conversation") from None
        except _Stopped:
            pass

    def close(self) -> None:
        pass


class _Stopped(Exception):
    """Nobody waits for the rest."""


class _Streamer(BaseStreamer):  # type: ignore[misc]
    """Gives text away as soon as its characters are whole."""

    def __init__(self, tokenizer: Any, give: Callable[[Piece], bool]) -> None:
        self._tokenizer, self._give = tokenizer, give
        self._is_prompt = True
        self._tokens: list[int] = []
        self._given = ""
        self._num_given = 0

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        self._tokens += value.flatten().tolist()
        text = self._text()
        if not text.endswith("\ufffd"):
            self._pass_on(text)

    def end(self) -> None:
        self._pass_on(self._text(), is_last=True)

    def _text(self) -> str:
        return str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))

    def _pass_on(self, text: str, is_last: bool = False) -> None:
        ended = is_last and self._tokens[-1:] == [self._tokenizer.eos_token_id]
        piece = Piece(text[len(self._given) :], len(self._tokens) - self._num_given - ended, ended)
        self._given, self._num_given = text, len(self._tokens)
        if not self._give(piece):
            raise _Stopped
