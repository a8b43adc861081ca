"""The length of the server's step."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedmed_cli.aggregation.state import Round
from fedmed_cli.intervals import Losses, paired_interval

LINE_SEARCH = (1.0, 1.5, 2.0, 3.0)


def search(round_: Round, weights: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The server step η: as given, or by search on the coordinator's examples, or FedExP without any.

    The second value holds the loss at each step that the search tried; it is empty without a search.
    """
    if round_.rules.server_lr is not None:
        return round_.rules.server_lr, {}
    if round_.examiner is None:
        return fedexp(round_, weights), {}

    def losses_at(step: float) -> Losses:
        losses = round_.losses(round_.build(round_.coefficients(weights, step), "svd")[0])
        tried[f"{step:g}"] = losses.mean
        return losses

    tried: dict[str, float] = {}
    current = LINE_SEARCH[0]
    losses = losses_at(current)
    for step in LINE_SEARCH[1:]:
        new = losses_at(step)
        if round_.against(losses, new).low <= 0 or _hurts_a_site(round_, losses, new):
            break
        current, losses = step, new
    return current, tried


def _hurts_a_site(round_: Round, first: Losses, second: Losses) -> bool:
    """Whether `second` is worse than `first` on some site's share of the examples, with 95 % confidence."""
    assert round_.examiner is not None
    for home in sorted(set(round_.examiner.homes) - {""}):
        own = [i for i, name in enumerate(round_.examiner.homes) if name == home]
        groups = [round_.examiner.groups[i] for i in own]
        if len(set(groups)) > 1 and paired_interval(first.take(own), second.take(own), groups).high < 0:
            return True
    return False


def fedexp(round_: Round, weights: Mapping[str, float]) -> float:
    """max(1, Σ‖D_i‖² / (2k·‖Σ w_i·D_i‖²)) over the accepted sites (FedExP, arXiv 2301.09604)."""
    norms = [(case.norm * case.clip_factor) ** 2 for site, case in round_.cases.items() if weights[site] > 0]
    mean = round_.norm(round_.coefficients(weights, 1.0)) ** 2
    return max(1.0, math.fsum(norms) / (2 * len(norms) * mean)) if mean > 0 else 1.0
