"""The length of the server's step."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedmed_cli.aggregation.methods import Combine
from fedmed_cli.aggregation.state import Evaluator, RoundState
from fedmed_cli.intervals import Losses, paired_interval
from fedmed_cli.records.combining import LARGEST_STEP

LINE_SEARCH = (1.0, 1.5, 2.0, 3.0)


def search(state: RoundState, weights: Mapping[str, float], combine: Combine) -> tuple[float, dict[str, float]]:
    """The server step η by a search on the coordinator's examples, or FedExP's without any.

    The second value holds the loss at each step that the search tried; it is empty without a search.
    """
    evaluator = state.evaluator
    if evaluator is None:
        return fedexp(state, weights), {}

    def losses_at(step: float) -> Losses:
        losses = evaluator.losses(state.build(combine, state.coefficients(weights, step))[0])
        tried[f"{step:g}"] = losses.mean
        return losses

    tried: dict[str, float] = {}
    current = LINE_SEARCH[0]
    first = losses = losses_at(current)
    for step in LINE_SEARCH[1:]:
        new = losses_at(step)
        if evaluator.gain(losses, new).low <= 0 or _hurts_a_site(evaluator, first, new):
            break
        current, losses = step, new
    return current, tried


def _hurts_a_site(evaluator: Evaluator, first: Losses, second: Losses) -> bool:
    """Whether `second` is worse than `first` on some site's share of the examples, with 95 % confidence."""
    for site in sorted(set(evaluator.example_sites) - {""}):
        share = [i for i, name in enumerate(evaluator.example_sites) if name == site]
        groups = [evaluator.groups[i] for i in share]
        if len(set(groups)) > 1 and paired_interval(first.take(share), second.take(share), groups).high < 0:
            return True
    return False


def fedexp(state: RoundState, weights: Mapping[str, float]) -> float:
    """max(1, Σ‖D_i‖² / (2k·‖Σ w_i·D_i‖²)) over the accepted sites (FedExP, arXiv 2301.09604), at most LARGEST_STEP."""
    squared = [(site.norm * site.clip_factor) ** 2 for name, site in state.sites.items() if weights[name] > 0]
    mean = state.norm(state.coefficients(weights, 1.0)) ** 2
    return min(max(1.0, math.fsum(squared) / (2 * len(squared) * mean)), LARGEST_STEP) if mean > 0 else 1.0
