"""What came of personalising a hospital's adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedmed_cli.reporting import numbers
from fedmed_cli.reporting.parts import Part, Table, Text

if TYPE_CHECKING:
    from fedmed_cli.federation.personalising import PersonalResult


def personal_parts(result: PersonalResult, site: str) -> list[Part]:
    """The loss at each share, and what the other examples say of the best one."""
    rows = [[f"{share:g}", f"{loss:.4f}"] for share, loss in result.losses.items()]
    title = f"Loss on the {numbers.count(result.num_choosing, 'validation example')} used to choose"
    parts: list[Part] = [Table(title, ["share of its own training", "loss"], rows)]
    others = f"On the other {numbers.count(result.num_deciding, 'validation example')}"
    if result.change is None:
        sentence = (
            "Keep the global adapter: no share of this site's own training is better on the examples used to choose."
        )
    elif result.record is None:
        sentence = (
            f"Keep the global adapter. {others} a share of {result.share:g} changes the loss by "
            f"{numbers.interval(result.change)} nats: the 95 % interval does not lie below 0."
        )
    else:
        sentence = (
            f"{others} a share of {result.share:g} changes the loss by {numbers.interval(result.change)} nats. This "
            f"interval decided, so it flatters: 'fedmed compare --site {site}' measures it on test examples. Each "
            "further try on the same validation examples is one more chance of being wrong."
        )
    return [*parts, Text(sentence)]
