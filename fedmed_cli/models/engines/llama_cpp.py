"""llama.cpp as an engine. Only this module knows its Python package, xllamacpp, so that another can take its place.

The package's server starts with a listener, which nobody here needs: it listens on a socket file in a private folder,
and the file is removed at once.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import secrets
import signal
import socket
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.adapters.gguf_lora import MODEL_TYPES, write_lora
from fedmed_cli.errors import CombineError, InputError, MachineError
from fedmed_cli.models.bases import LocalBase
from fedmed_cli.models.engines.engine import MAX_CONTEXT, Piece, Sampling, stream
from fedmed_cli.models.tokenizer import load_tokenizer

NAME = "llama.cpp"
MAX_THREADS = 8
_FORCE = 1e6  # a bias that makes a token the most likely one
_INSTRUCTIONS = {"avx2", "fma", "f16c", "bmi2"}  # of the prebuilt x86 package


def find_fault(base: LocalBase) -> str | None:
    """Why llama.cpp cannot run this base here, None where it can."""
    if base.config["model_type"] not in MODEL_TYPES:
        return f"fedmed runs {' and '.join(MODEL_TYPES)} models with llama.cpp, not {base.config['model_type']}"
    if base.config.get("sliding_window"):
        return "llama.cpp knows no sliding window for this architecture"
    if (missing := _missing_instructions()) is not None:
        return f"this CPU lacks {missing}, which the package xllamacpp needs"
    try:
        _package()
    except Exception as error:  # a missing or broken package fails in many ways
        return f"the package xllamacpp cannot be imported ({type(error).__name__})"
    return None


def _missing_instructions() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # not Linux
        return None
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    if platform.machine() != "x86_64":
        return None
    return ", ".join(sorted(_INSTRUCTIONS - flags)) or None


def _package() -> ModuleType:
    """The package, its threads told to spin less while they wait: spinning, they starve where a core is busy."""
    before = os.environ.get("GOMP_SPINCOUNT")
    os.environ.setdefault("GOMP_SPINCOUNT", "800")  # read when OpenMP is loaded
    try:
        return importlib.import_module("xllamacpp")
    finally:
        if before is None:
            del os.environ["GOMP_SPINCOUNT"]


def count_threads() -> int:
    """Half of the cores this process may use, for one thread on a busy core delays all; of two cores both."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return min(cores, max(2, min(MAX_THREADS, cores // 2)))


class LlamaCpp:
    """A base model's GGUF in llama.cpp, with adapters beside the weights; each request says which one it takes."""

    name = NAME

    def __init__(
        self, gguf: Path, base: LocalBase, num_parallel: int = 1, lora_files: Mapping[str, Path] | None = None
    ) -> None:
        """Up to `num_parallel` answers are made at once, each with a context of its own.

        `lora_files` are GGUF files of adapters, by digest, that need not be written.

        MachineError where llama.cpp cannot load the file.
        """
        self.tokenizer = load_tokenizer(base.folder)
        # Memory for keys and values is taken at once, for every answer that may be made.
        longest = MAX_CONTEXT if num_parallel == 1 else MAX_CONTEXT // 2
        self.context = min(int(base.config.get("max_position_embeddings", 4096)), longest)
        self._gguf, self._base, self._num_parallel = gguf, base, num_parallel
        self._threads = count_threads()
        self.description = f"llama.cpp, {gguf.name}, {self._threads} thread{'s' if self._threads > 1 else ''}"
        self._files = dict(lora_files or {})
        self._adapters: dict[str, Adapter] = {}  # by digest, in the order in which llama.cpp numbers them
        self._server: Any = None

    def prepare(self, adapters: Sequence[Adapter]) -> None:
        new = {adapter.digest: adapter for adapter in adapters if adapter.digest not in self._adapters}
        if not new and self._server is not None:
            return
        for adapter in new.values():
            _check_fit(adapter, self._base)
        self._adapters |= new
        self._server = None  # frees its memory before the next one takes some
        with tempfile.TemporaryDirectory(prefix="fedmed-") as folder:  # read at the start, and needed no longer
            self._server = self._start(Path(folder))

    def _start(self, folder: Path) -> Any:
        files = [self._files.get(digest, folder / f"{digest}.gguf") for digest in self._adapters]
        for path, (digest, adapter) in zip(files, self._adapters.items(), strict=True):
            if digest not in self._files:
                write_lora(path, adapter, *heads_of(self._base.config))
        xllamacpp = _package()
        params = xllamacpp.CommonParams()
        params.model.path = str(self._gguf)
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 1.0) for path in files]
        params.n_parallel = self._num_parallel
        params.n_ctx = self.context * self._num_parallel
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        params.n_gpu_layers = 0
        params.cache_ram_mib = 0  # else it keeps up to 8 GiB of earlier prompts
        params.fit_params = params.warmup = params.ui = False  # each costs time at the start
        params.verbosity = -1
        params.endpoint_metrics = True
        params.n_threads_http = 1
        params.api_keys = [secrets.token_hex(32)]
        params.hostnames = [str(folder / "listener.sock")] if hasattr(socket, "AF_UNIX") else ["127.0.0.1"]
        with _own_signals():
            try:
                server = xllamacpp.Server(params)
                server.handle_metrics()  # answered once its loop runs: one that is freed before that never ends
                return server
            except RuntimeError:
                raise MachineError(
                    f"llama.cpp cannot load {self._gguf}",
                    hint="use --engine transformers, or check the file and the memory that is free",
                ) from None

    def generate(self, ids: Sequence[int], adapter: Adapter | None, sampling: Sampling) -> Generator[Piece, None, None]:
        request = {
            "prompt": list(ids),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "seed": -1 if sampling.seed is None else sampling.seed,
            "lora": self._scales(adapter),
            "stream": True,
        }

        def work(give: Callable[[Piece], bool]) -> None:
            errors: list[dict[str, Any]] = []

            def take(chunk: dict[str, Any]) -> bool:
                if "error" in chunk:
                    errors.append(chunk["error"])
                    return True
                choice = chunk["choices"][0]
                if (reason := choice["finish_reason"]) is None:
                    return not give(Piece(choice["text"], 1))
                return not give(Piece(choice["text"], 0, ended=reason == "stop"))

            self._server.handle_completions(request, take)
            if errors:
                raise _to_error(errors[0])

        return stream(work)

    def _scales(self, adapter: Adapter | None) -> list[dict[str, float]]:
        wanted = None if adapter is None else adapter.digest
        assert wanted is None or wanted in self._adapters
        return [{"id": number, "scale": float(digest == wanted)} for number, digest in enumerate(self._adapters)]

    def log_probabilities(self, ids: Sequence[int], num_prompt: int, adapter: Adapter | None) -> list[float]:
        """The natural logarithm of the probability of each token from `ids[num_prompt]` on, after those before it.

        One request a token, whose prompt llama.cpp knows but for the last one: the token is forced by a bias, and the
        probability that comes with it is the model's own.
        """
        scales = self._scales(adapter)
        result = []
        for place in range(num_prompt, len(ids)):
            request = {
                "prompt": list(ids[:place]),
                "max_tokens": 1,
                "temperature": 0.0,
                "logit_bias": [[ids[place], _FORCE]],
                "logprobs": 1,
                "lora": scales,
            }
            reply = self._server.handle_completions(request)
            if "error" in reply:
                raise _to_error(reply["error"])
            (token,) = reply["choices"][0]["logprobs"]["content"]
            assert token["id"] == ids[place]
            result.append(float(token["logprob"]))
        return result

    def close(self) -> None:
        self._server = None


def _to_error(error: dict[str, Any]) -> InputError | MachineError:
    if error.get("type") == "exceed_context_size_error":
        return InputError(f"the question does not fit into the model's context ({error['n_ctx']:,} tokens)")
    return MachineError(f"llama.cpp could not answer ({error.get('type', 'unknown error')})")


def heads_of(config: dict[str, Any]) -> tuple[int, int]:
    """Numbers of attention heads, of queries and of keys, of a transformers config."""
    heads = int(config["num_attention_heads"])
    return heads, int(config.get("num_key_value_heads") or heads)


def _check_fit(adapter: Adapter, base: LocalBase) -> None:
    for module, (a, b) in adapter.factors.items():
        if base.base.modules.get(module) != (b.shape[0], a.shape[1]):
            raise CombineError(f"the adapter does not fit base model {base.base.name}: module {module!r}")


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep Python's signal handlers: the package puts its own in their place, which end the process."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            if handler is not None:
                signal.signal(number, handler)
