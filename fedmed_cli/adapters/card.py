"""The model card of an adapter folder: README.md, with the front matter that model hubs read.

The same records give the same bytes, for an adapter folder's files are digested: nothing here depends on the
time, the machine or the order of a dictionary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedmed_cli.records.aggregate import CoordinatorEvaluation, SiteDecision, Truncation
from fedmed_cli.records.lora import described
from fedmed_cli.records.measures import Loss
from fedmed_cli.records.plan import Base
from fedmed_cli.records.privacy import NO_GUARANTEE, Privacy

if TYPE_CHECKING:
    from fedmed_cli.adapters.adapter import Adapter

TAGS = ("federated-learning", "fedmed", "lora", "medical", "transformers")
# Where the embedded default's weights come from; its own name is not an id of a hub.
_HUB_IDS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9._-]{1,96}")


def card(
    base: Base, adapter: Adapter, title: str, origin: str, body: Sequence[str] = (), results: Sequence[Any] = ()
) -> str:
    """The model card: what the adapter is, where it comes from, how to load it, what it is not for.

    `body` are lines of Markdown of our own; `results` are entries of the front matter's `model-index`.
    """
    hub_id = _HUB_IDS.get(base.name, base.name if _HUB_ID.fullmatch(base.name) else None)
    front: dict[str, Any] = {
        "license": "unknown",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": list(TAGS),
    }
    if hub_id is not None:
        front = {"base_model": hub_id, "base_model_relation": "adapter"} | front
        front["tags"] = [f"base_model:adapter:{hub_id}", *TAGS]
    if results:
        front["model-index"] = [{"name": title, "results": list(results)}]
    about_base = f"- Base model: {code(base.name)}{f' at {code(base.revision)}' if base.revision else ''}"
    if base.name in _HUB_IDS:
        about_base += f", a 4-bit form of {code(_HUB_IDS[base.name])} in bfloat16: not quite the hub's own weights"
    lines = [
        "---",
        *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()),
        "---",
        "",
        f"# {title}",
        "",
        "**For research evaluation only, not for clinical use. Its answers can be wrong.**",
        "",
        origin,
        "",
        about_base,
        f"- Base fingerprint (weights, config, tokenizer, template): {code(base.fingerprint)}",
        f"- LoRA: {described(adapter)}; on {', '.join(map(code, adapter.targets))}",
        f"- Parameters: {adapter.num_parameters:,}; adapter digest {code(adapter.digest)}",
        "- Licence: not stated here. The hospitals decide on it; the base model's own licence holds for the base.",
        *body,
        "",
        "## How to load it",
        "",
        "With PEFT, on top of the base model of that fingerprint:",
        "",
        "```python",
        "from peft import PeftModel",
        "",
        'model = PeftModel.from_pretrained(base_model, "path/to/this/folder")',
        "```",
        "",
        "The record beside this file (contribution.json or aggregate.json) says more and names this folder's digests;",
        "`fedmed inspect-adapter` and `fedmed verify` read and check it.",
        "",
        "## Limits",
        "",
        "An adapter may hold traces of the examples it was trained on. No number here says that an answer is medically",
        "right. Losses are in nats per answer token: how likely the model finds reference answers, not how true they",
        "are.",
    ]
    return "\n".join(lines) + "\n"


def site_card(
    base: Base,
    adapter: Adapter,
    *,
    site: str,
    round_number: int,
    steps: int,
    num_examples: int,
    has_canaries: bool,
    before: Loss | None,
    after: Loss | None,
    privacy: Privacy | None,
) -> str:
    """The card of a site's contribution, with what it measured on its own validation examples and what it promises."""
    title = f"Contribution of site {site} to round {round_number}"
    origin = (
        f"Trained by fedmed for {steps:,} steps on {num_examples:,} examples of this site's own"
        f"{', synthetic ones for an audit among them' if has_canaries else ''}. "
        "No example is in this folder."
    )
    body, results = ["", "## Privacy", "", f"{privacy}." if privacy else NO_GUARANTEE, "", "## Evaluation", ""], []
    if before is None or after is None:
        body.append("The site had no validation examples, so no loss was measured.")
    else:
        body += [
            f"Loss on {after.num_examples:,} validation examples of the site ({after.num_groups:,} groups), which it "
            "did not train on, with half a 95 % interval:",
            "",
            "| | loss |",
            "| --- | --- |",
            f"| the adapter the round started from | {_format_loss(before)} |",
            f"| this adapter | {_format_loss(after)} |",
            "",
            "The site measured this itself.",
        ]
        results.append(_model_index_entry(f"validation examples of site {site}", after.mean))
    return card(base, adapter, title, origin, body, results)


def global_card(
    base: Base,
    adapter: Adapter,
    *,
    round_number: int,
    method: str,
    weights: str,
    decisions: Mapping[str, SiteDecision],
    examination: CoordinatorEvaluation | None,
    truncation: Truncation,
) -> str:
    """The card of a round's global adapter: what it is made of, and what the coordinator decided with."""
    used = [site for site in sorted(decisions) if decisions[site].verdict != "rejected"]
    origin = f"Combined by fedmed ({method}, weights {weights}) from the contributions of {', '.join(used)}."
    body = [
        "",
        "## What it is made of",
        "",
        "| site | verdict | weight | training examples, as claimed |",
        "| --- | --- | --- | --- |",
        *(
            f"| {site} | {one.verdict} | {one.weight:.4f} | {one.evidence.num_examples:,} |"
            for site, one in sorted(decisions.items())
        ),
        "",
        f"Difference from the exact weighted mean of the updates: {100 * truncation.overall:.2f} %.",
        "",
        "## Evaluation",
        "",
    ]
    if examination is None:
        body.append(
            "Nothing was measured when this adapter was made. `fedmed compare` measures it on held-out examples."
        )
    else:
        body += [
            f"The coordinator decided on {examination.num_examples:,} examples of its own "
            f"({examination.num_groups:,} groups):",
            f"loss {_format_loss(examination.parent)} before this round, {_format_loss(examination.result)} after.",
            "These numbers were used to choose the weights; do not report them as results. `fedmed compare` measures "
            "on held-out examples.",
        ]
    return card(base, adapter, f"Global adapter of round {round_number}", origin, body)


def code(text: str) -> str:
    """`text` as a code span, whatever backticks are in it: nothing in it is markup."""
    fence = "`" * (1 + _longest_run_of_backticks(text))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def code_block(text: str) -> str:
    """`text` as a block of code, of as many lines as it has: nothing in it is markup."""
    fence = "`" * max(3, 1 + _longest_run_of_backticks(text))
    return f"{fence}\n{text}\n{fence}"


def _longest_run_of_backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _format_loss(loss: Loss) -> str:
    return f"{loss.mean:.4f} ± {1.96 * loss.standard_error:.4f}"


def _model_index_entry(dataset: str, value: float) -> dict[str, Any]:
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": dataset, "type": "private"},
        "metrics": [{"name": "nats per answer token", "type": "loss", "value": round(value, 4)}],
    }
