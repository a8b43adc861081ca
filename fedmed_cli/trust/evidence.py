"""What a round's record says of each contribution, held against the contributions themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.adapters.folder import ContributionFolder
from fedmed_cli.adapters.low_rank import gram_of_innovations, update_norm
from fedmed_cli.aggregation.evidence import COPY_COSINE, PAIRWISE_UP_TO, norm_limit, norms_of_updates
from fedmed_cli.errors import TrustError
from fedmed_cli.records.aggregate import Aggregate, Truncation

WITHIN = 1e-6  # relative or absolute: what rounding on another machine may change
# What only the coordinator could measure or knows: nobody can compute it again from the files of a round.
CLAIMS = (
    "prior",
    "score",
    "gain",
    "gain_standard_error",
    "left_out_gain",
    "reasons",
    "examination",
    "missing",
    "excluded",
)

Value = float | str | None


def check_evidence(
    path: Path, record: Aggregate, parent: Adapter, contributions: Mapping[str, ContributionFolder], found: Truncation
) -> None:
    """TrustError where the record at `path` says other than its contributions, and the sum of them, give.

    `contributions` are those of all sites of the record; `found` is what the sum's rank cut away.
    """
    for what, stated, value in _pairs(record, parent, contributions, found):
        if not _agree(stated, value):
            raise TrustError(
                f"{path}: the record says {what} is {_show(stated)}, its contributions give {_show(value)}",
                hint="the record was not made of these contributions as it says",
            )


def _pairs(
    record: Aggregate, parent: Adapter, contributions: Mapping[str, ContributionFolder], found: Truncation
) -> Iterator[tuple[str, Value, Value]]:
    """What is compared, what the record states, and what follows from the contributions."""
    norms, cosines = _measure(parent, {site: contributions[site].adapter for site in sorted(record.sites)})
    limit = norm_limit(list(norms_of_updates(parent, contributions, norms).values()), record.clip)
    for site, decision in sorted(record.sites.items()):
        stated, claimed = decision.evidence, contributions[site].record
        before, after = claimed.validation_before, claimed.validation_after
        gain = before.mean - after.mean if before and after else None
        yield f"num_examples of site {site}", stated.num_examples, claimed.num_examples
        yield f"num_tokens of site {site}", stated.num_tokens, claimed.num_tokens
        yield f"reported_gain of site {site}", stated.reported_gain, gain
        yield f"update_norm of site {site}", stated.update_norm, norms[site]
        yield f"clip_factor of site {site}", decision.clip_factor, min(1.0, limit / norms[site]) if norms[site] else 1.0
        yield f"the sites in cosines of site {site}", _names(stated.cosines), _names(cosines[site])
        for other, cosine in sorted(cosines[site].items()):
            yield f"cosines.{other} of site {site}", stated.cosines[other], cosine
        # At the very threshold another machine may round to the other side.
        unsure = {name for name, cosine in cosines[site].items() if abs(cosine - COPY_COSINE) <= WITHIN}
        copies = {name for name, cosine in cosines[site].items() if cosine >= COPY_COSINE}
        yield f"copies of site {site}", _names(set(stated.copies) - unsure), _names(copies - unsure)
    yield "truncation.overall", record.truncation.overall, found.overall
    yield "the modules in truncation", _names(record.truncation.modules), _names(found.modules)
    for module, value in found.modules.items():
        yield f"truncation of {module}", record.truncation.modules[module], value


def _measure(parent: Adapter, adapters: Mapping[str, Adapter]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The norm of each update, and its cosine with each other; no cosines above `PAIRWISE_UP_TO` sites."""
    sites = list(adapters)
    if len(sites) > PAIRWISE_UP_TO:
        return {site: update_norm(parent, adapter) for site, adapter in adapters.items()}, {site: {} for site in sites}
    gram = gram_of_innovations(parent, list(adapters.values()))
    norms = {site: math.sqrt(max(0.0, gram[i, i])) for i, site in enumerate(sites)}
    cosines = {
        site: {
            other: float(gram[i, j]) / (norms[site] * norms[other])
            for j, other in enumerate(sites)
            if i != j and norms[site] > 0 and norms[other] > 0
        }
        for i, site in enumerate(sites)
    }
    return norms, cosines


def _agree(stated: Value, value: Value) -> bool:
    if isinstance(stated, float) and isinstance(value, float):
        return math.isclose(stated, value, rel_tol=WITHIN, abs_tol=WITHIN)
    return stated == value


def _names(names: Mapping[str, float] | set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _show(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
