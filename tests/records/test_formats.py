"""Every format is documented, strict, and readable for ever."""

import dataclasses
import importlib
import json
import pkgutil
import re
from pathlib import Path

import pytest

from fedmed_cli import records
from fedmed_cli.adapters.gate import read_contribution, read_global
from fedmed_cli.errors import InputError
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.codec import Record
from fedmed_cli.records.comparison import Comparison
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.metrics import read_metrics
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.scores import Scores
from fedmed_cli.records.split import SplitRecord

ROOT = Path(__file__).parents[2]
GOLDEN = sorted((ROOT / "tests/golden").glob("v*"))
KINDS = {kind.FORMAT: kind for kind in Record.__subclasses__()}


def documented_dataclasses():
    # Those write no file of ours: a signature's form is OpenSSH's.
    names = {found.name for found in pkgutil.iter_modules(records.__path__)} - {"combining", "signatures"}
    modules = [importlib.import_module(f"fedmed_cli.records.{name}") for name in sorted(names)]
    found = [value for module in modules for value in vars(module).values() if dataclasses.is_dataclass(value)]
    return sorted({kind for kind in found if isinstance(kind, type)} - {Record, Plan}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", documented_dataclasses(), ids=lambda kind: kind.__name__)
def test_every_field_stands_in_the_documentation(kind):
    text = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    words = set(re.findall(r"`([A-Za-z_0-9]+)`", text))
    missing = {field.name for field in dataclasses.fields(kind)} - words
    assert not missing


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_files_of_every_release_are_read(golden):
    plan = Plan.read(golden / "federation.toml")
    files = [path for path in sorted(golden.rglob("*.json")) if "adapter_config" not in path.name]
    seen = set()
    for path in files:
        value = json.loads(path.read_text())
        kind = KINDS[value["format"].removeprefix("fedmed/")]
        record = kind.read(path)
        assert record.to_dict() == value | {"fedmed_version": record.to_dict()["fedmed_version"]}
        seen.add(kind)
    assert seen >= {SplitRecord, Contribution, Aggregate, Comparison, Scores}
    start = read_global(golden / "rounds/001/global", plan)
    for site in plan.sites.names:
        assert read_contribution(golden / "rounds/001" / site, plan).record.adapter == start.record.sites[site].adapter
    contribution = read_contribution(golden / "adapters/A", plan, (2, start.adapter.digest))
    assert contribution.record.parent == start.adapter.digest
    events, torn = read_metrics(golden / "metrics.jsonl")
    assert {event["event"] for event in events} >= {"split", "train-local", "aggregate"}
    assert not torn


def test_there_are_golden_files_of_version_1():
    assert [path.name for path in GOLDEN][:1] == ["v1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"version": 2}, "expected version 1, found 2"),
        ({"format": "fedmed/aggregate"}, "expected format 'fedmed/contribution'"),
        ({"round": 0}, "round must be from 1 to 999999, found 0"),
        ({"round": "1"}, "round must be int, found str"),
        ({"site": "../x"}, "site name '../x' must match"),
        ({"site": "global"}, "is reserved"),
        ({"adapter": "12"}, "adapter must be 64 hexadecimal digits"),
        ({"num_tokens": -1}, "num_tokens must not be negative"),
        ({"reduction": 0.5}, "reduction must be"),
        ({"losses": [1.0, "x"]}, "losses[1] must be float, found str"),
    ],
)
def test_a_record_that_deviates_is_refused(tmp_path, change, message):
    source = GOLDEN[0] / "adapters/A/contribution.json"
    value = json.loads(source.read_text()) | change
    (tmp_path / "contribution.json").write_text(json.dumps(value))
    with pytest.raises(InputError) as caught:
        Contribution.read(tmp_path / "contribution.json")
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' appears twice"),
        ('{"a": NaN}', "NaN is not a number"),
        ("[" * 20 + "]" * 20, "nested deeper than 12 levels"),
        ("{", "is not JSON at line 1"),
        ('"' + "x" * 1_000_001 + '"', "at most 1,000,000 bytes"),
    ],
)
def test_hostile_json_is_refused(text, message):
    from fedmed_cli.records.codec import parse_json

    with pytest.raises(InputError) as caught:
        parse_json(text.encode(), "x.json")
    assert message in caught.value.message
