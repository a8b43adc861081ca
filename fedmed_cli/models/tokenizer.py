"""A base model's tokenizer and chat template without transformers, whose import takes seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Classes for which transformers takes tokenizer.json as it is; for others it may change what the file says.
PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class PlainTokenizer:
    """The part of transformers' tokenizers that prompts need, from tokenizer.json and the chat template.

    ValueError where the folder has more to it than that.
    """

    def __init__(self, folder: Path) -> None:
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        from tokenizers import Tokenizer

        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        file = folder / "chat_template.jinja"
        template = file.read_text(encoding="utf-8") if file.exists() else config.get("chat_template")
        if config.get("tokenizer_class") not in PLAIN_CLASSES or not isinstance(template, str):
            raise ValueError("not a plain tokenizer with one chat template")
        self.chat_template: str = template
        self._tokens = {name: _text(config[name]) for name in _SPECIAL_TOKENS if config.get(name)}
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.eos_token_id = self._tokenizer.token_to_id(self._tokens.get("eos_token", ""))
        if self.eos_token_id is None:
            raise ValueError("no end token")
        # The environment of transformers' own templates (utils/chat_template_utils.py).
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        environment.globals["raise_exception"] = _raise
        self._template = environment.from_string(template)

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)}

    def apply_chat_template(
        self, messages: Sequence[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """The text of a conversation. `tokenize` must be false; jinja2.TemplateError where the template refuses."""
        assert not tokenize
        return str(
            self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **self._tokens)
        )

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _raise(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder: a PlainTokenizer where that is all it takes, else transformers' own."""
    import jinja2

    try:
        return PlainTokenizer(folder)
    except (ValueError, OSError, KeyError, jinja2.TemplateError):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
