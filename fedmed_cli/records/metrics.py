"""`metrics.jsonl`: one line an event."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmed_cli.errors import InputError
from fedmed_cli.records.codec import decode, parse_json, read_file, reason_of
from fedmed_cli.records.measures import Run

MAX_METRICS_BYTES = 100_000_000


def metric_line(event: str, **values: str | int | float | None) -> bytes:
    """One line of `metrics.jsonl`: numbers, enums and digests of one event."""
    body = {"format": "fedmed/metric", "version": 1, "event": event} | dict(sorted(values.items()))
    return (json.dumps(body, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def find_measurement(events: Sequence[dict[str, Any]], round_number: int, adapter: str) -> dict[str, Any] | None:
    """The newest line about a round's global adapter, of this digest, on the coordinator's examples; None without one.

    The file outlives a federation that is started over, whose rounds have the same numbers.
    """
    rounds = (event for event in reversed(events) if event["event"] == "round" and event.get("round") == round_number)
    return next((event for event in rounds if event.get("adapter", adapter) == adapter), None)


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The events of `metrics.jsonl`, and whether a torn last line was dropped.

    A damaged line anywhere else is an InputError.
    """
    data = read_file(path, MAX_METRICS_BYTES) if path.exists() else b""
    events: list[dict[str, Any]] = []
    for number, line in enumerate(io.BytesIO(data), 1):  # one at a time: a hostile file is all line feeds
        if not line.endswith(b"\n"):
            return events, True
        event = parse_json(line, f"{path}:{number}")
        if not isinstance(event, dict) or event.get("format") != "fedmed/metric" or event.get("version") != 1:
            raise InputError(f"{path}:{number}: expected a fedmed/metric of version 1")
        if not isinstance(event.get("event"), str):
            raise InputError(f"{path}:{number}: names no event")
        try:
            decode(Run, event, "metric")
        except ValueError as error:
            raise InputError(f"{path}:{number}: {reason_of(error)}") from None
        events.append(event)
    return events, False
