"""A base model's tokenizer and chat template without transformers, whose import takes seconds."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

# Classes for which transformers takes tokenizer.json as it is; for others it may change what the file says.
PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
# What a chat template that asks for today's date gets, the same on every day: the one Llama 3's falls back to.
DATE = date(2024, 7, 26)


class PlainTokenizer:
    """The part of transformers' tokenizers that prompts need, from tokenizer.json and the chat template.

    ValueError where the folder has more to it than that.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        file = folder / "chat_template.jinja"
        template = file.read_text(encoding="utf-8") if file.exists() else config.get("chat_template")
        if config.get("tokenizer_class") not in PLAIN_CLASSES or not isinstance(template, str):
            raise ValueError("not a plain tokenizer with one chat template")
        self.chat_template: str = template
        self.special_tokens_map = {name: _text(config[name]) for name in _SPECIAL_TOKENS if config.get(name)}
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.eos_token_id = self._tokenizer.token_to_id(self.special_tokens_map.get("eos_token", ""))
        if self.eos_token_id is None:
            raise ValueError("no end token")
        _compile(template)

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)}

    def get_chat_template(self) -> str:
        return self.chat_template

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def render_template(messages: Sequence[dict[str, str]], tokenizer: Any) -> str:
    """The text of a conversation up to its next answer, by a tokenizer's chat template, whose today is always DATE.

    It stands for transformers' `apply_chat_template`, which renders the day's date. jinja2.TemplateError where the
    template refuses.
    """
    template = _compile(tokenizer.get_chat_template())
    given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    return str(template.render(**tokenizer.special_tokens_map, **given))


@functools.cache
def _compile(template: str) -> Any:
    """The template in the environment of transformers' own (utils/chat_template_utils.py), but for the date."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks what the assistant said: rendered as if it weren't there."""

        tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = DATE.strftime
    return environment.from_string(template)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder: a PlainTokenizer where that is all it takes, else transformers' own."""
    import jinja2

    try:
        return PlainTokenizer(folder)
    except (ValueError, OSError, KeyError, jinja2.TemplateError):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
