"""Prompts and token ids that examples become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedmed_cli.models.tokenizer import render_template
from fedmed_cli.records.plan import Prompt

if TYPE_CHECKING:  # a chat reads no examples, and pyarrow with them takes a while to load
    from fedmed_cli.data.examples import Example


@dataclass(frozen=True)
class Encoded:
    """One example as token ids: `ids[num_prompt:]` are the supervised answer tokens (end token included)."""

    ids: tuple[int, ...]
    num_prompt: int
    truncated: bool

    @property
    def num_supervised(self) -> int:
        return len(self.ids) - self.num_prompt


def prompt_messages(prompt: Prompt, question: str) -> list[dict[str, str]]:
    """The question as chat messages, as the plan's prompt wraps it."""
    user = {"role": "user", "content": prompt.user.replace("{question}", question)}
    return [{"role": "system", "content": prompt.system}, user] if prompt.system else [user]


def render(messages: list[dict[str, str]], tokenizer: Any) -> str:
    """The text a model continues with its answer, by the base model's own chat template.

    A template that refuses a system message gets its text in front of the first user message. A tokenizer
    without a template gets the plain form "Question: …\\nAnswer:".
    """
    if not tokenizer.chat_template:
        parts = []
        for message in messages:
            form = {"system": "{}\n\n", "user": "Question: {}\nAnswer:", "assistant": " {}\n\n"}[message["role"]]
            parts.append(form.format(message["content"]))
        return "".join(parts)
    import jinja2

    try:
        return render_template(messages, tokenizer)
    except jinja2.TemplateError:
        if messages[0]["role"] != "system":
            raise
        first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
        return render_template([first, *messages[2:]], tokenizer)


def prompt_ids(messages: list[dict[str, str]], tokenizer: Any) -> list[int]:
    """Token ids of `render`. A template writes its own special tokens; the plain form gets the tokenizer's."""
    text = render(messages, tokenizer)
    return list(tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"])


def encode(example: Example, prompt: Prompt, tokenizer: Any, max_length: int) -> Encoded | None:
    """Token ids of an example, at most `max_length`; None where the prompt alone fills them.

    Prompt and answer are tokenized apart, so that the prompt's length marks where the labels start; a cut
    answer gets no end token, for the model should not learn to stop there.
    """
    start = prompt_ids(prompt_messages(prompt, example.question), tokenizer)
    lead = "" if tokenizer.chat_template else " "
    answer = list(tokenizer(lead + example.answer, add_special_tokens=False)["input_ids"])
    answer.append(tokenizer.eos_token_id)
    room = max_length - len(start)
    if room < 1:
        return None
    return Encoded((*start, *answer[:room]), len(start), len(answer) > room)
