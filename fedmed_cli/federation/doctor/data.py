"""Checks of a hospital's examples: readable, divided by groups, without identifiers, without many repeats."""

from __future__ import annotations

import time

import numpy as np

from fedmed_cli.data import examples, row_index, site_data
from fedmed_cli.data.sources import Source
from fedmed_cli.data.split_options import IndexOptions
from fedmed_cli.federation.doctor.findings import Examined, Seen
from fedmed_cli.intervals import FEW_GROUPS

MANY_REPEATS = 0.1  # of all examples


def check_data(examined: Examined) -> Seen:
    """Read all examples, as a training would."""
    request, workspace, site = examined.request, examined.workspace, examined.site
    assert site is not None
    if request.data:
        site_data.refuse_split_data(workspace, site)
        source = Source(request.data, request.columns)
        source.fetch(examined.temporary / "hub")
    else:
        file = examples.find_set(workspace.site_data(site) / "train.jsonl")
        if file is None:
            remedy = f"name the hospital's file with --data FILE, or copy data/{site} here"
            return "WARN", f"there are no examples of site {site} to look at", remedy
        source = Source([str(file)], {"question": "question", "answer": "answer"})
    began = time.perf_counter()
    options = request.options if request.data else IndexOptions(group_by=examined.group_by)
    index = row_index.build(
        source,
        options,
        examined.agreed.training.seed,
        examined.temporary / "bands",
        lambda message: None,
        order_by_group=True,
    )
    examined.examples = examples.read_examples(source, options.max_bad)
    examined.seconds_to_read = time.perf_counter() - began
    examined.index = index
    seen = f"{len(index):,} examples in {source.title}"
    if index.bad.total:
        remedy = "look at these rows; --max-bad says how many may be skipped"
        return "WARN", f"{seen}; {index.bad.total} rows are none ({index.bad.summary})", remedy
    return "PASS", seen, None


def check_groups(examined: Examined) -> Seen:
    """How many groups there are, and whether each set gets some."""
    index, site = examined.index, examined.site
    assert index is not None
    assert site is not None
    num_groups = len(np.unique(index.group_of))
    what = f"{num_groups:,} groups by {examined.group_by or 'text'}"
    if not examined.request.data:
        validation = examples.find_set(examined.workspace.site_data(site) / "validation.jsonl")
        examined.num_train = len(index)
        examined.num_validation = len(examples.read_jsonl(validation)) if validation else 0
    else:
        sets = site_data.divide_by_hash(index, examined.agreed.training.seed)
        examined.num_train, examined.num_validation = len(sets["train"]), len(sets["validation"])
    seen = f"{what}: {examined.num_train:,} examples to train on, {examined.num_validation:,} to measure on"
    if not examined.num_train:
        return "FAIL", seen, "use more data, or omit --group-by: no example is left to train on"
    if not examined.num_validation:
        return (
            "FAIL" if examined.request.data else "WARN",
            seen,
            "use more data: no example is left to measure the training on",
        )
    if num_groups < FEW_GROUPS:
        return "WARN", seen, f"use more data: intervals over fewer than {FEW_GROUPS} groups are rough"
    return "PASS", seen, None


def check_identifiers(examined: Examined) -> Seen:
    """What patterns find of patients' identifiers."""
    index, is_own_file = examined.index, bool(examined.request.data)
    assert index is not None
    if not is_own_file and not examined.workspace.has_patients(examined.site):
        return "PASS", "the bundled corpus holds no patients", None
    if is_own_file and examined.request.options.phi == "off":
        return "WARN", "not scanned for, with --phi off", "omit --phi off, unless another program has looked for them"
    found, num_rows = index.identifiers.by_kind(), index.identifiers.num_rows
    if not found:
        return "PASS", "none that patterns can find; names and addresses are not reliably found", None
    kinds = ", ".join(f"{number} {kind}" for kind, number in found.items())
    return "WARN", f"in {num_rows} of {len(index)} examples: {kinds}", "correct the data, or replace them: --phi redact"


def check_repeats(examined: Examined) -> Seen:
    """Examples with the same text, or nearly so."""
    index, rows = examined.index, examined.examples
    assert index is not None
    same = len(rows) - len({row.text_digest for row in rows})
    seen = f"{same} examples repeat another's text, {index.num_near_duplicates} nearly do"
    if examined.request.options.near_duplicates is None:
        seen = f"{same} examples repeat another's text; near-duplicates were not searched for"
    if same + index.num_near_duplicates > MANY_REPEATS * len(rows):
        return "WARN", seen, "remove repeats: a text that is there often counts often, and is learnt by heart"
    return "PASS", seen, None
