"""Twenty thousand mutations of every file that fedmed reads: no traceback, no silent acceptance, bounded work."""

import json

import pytest
from helpers import fuzzing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmed_cli.adapters.safetensors import parse_header
from fedmed_cli.errors import FedmedError
from fedmed_cli.records.codec import parse_json
from fedmed_cli.records.digests import canonical_json

pytestmark = pytest.mark.slow

NUM_MUTATIONS = 20_100
SEED = 1


def test_mutations_of_every_file(tmp_path):
    targets = fuzzing.make_targets(tmp_path)
    result = fuzzing.Result()
    each = -(-NUM_MUTATIONS // len(targets))
    for target in targets:
        fuzzing.run(target, each, SEED, result)
    assert sum(result.tried.values()) >= 20_000
    refused = sum(result.refused.values()) / sum(result.tried.values())
    assert refused > 0.7  # the mutations do reach the checks
    for target in targets:  # and no target refuses its original
        target.check(target.data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


KINDS = ["unsigned contribution", "unsigned aggregate", "split", "compare", "matrix", "pooled", "personal", "scores"]


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return {target.name: target for target in fuzzing.make_targets(tmp_path_factory.mktemp("targets"))}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_a_record_with_any_json_in_some_of_its_fields(kind, targets, data):
    """What is accepted is in its range, which the target's check asserts."""
    target = targets[f"{kind}.json"]
    fields = json.loads(target.data)
    changed = data.draw(st.dictionaries(st.sampled_from([*fields, "x"]), JSON, min_size=1, max_size=3))
    fuzzing.check(target, json.dumps(fields | changed).encode(), "all", fuzzing.Result())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    entries=st.dictionaries(
        st.text(min_size=1, max_size=4),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "F4", 3]),
                "shape": st.lists(st.integers(-1, 2**63), max_size=3),
                "data_offsets": st.lists(st.integers(-1, 64), min_size=1, max_size=3),
            }
        ),
        max_size=3,
    ),
    size=st.integers(0, 80),
)
def test_headers_of_any_shape(entries, size):
    """What a header parser accepts fills the data section exactly, whatever the header says."""
    text = canonical_json(entries)
    head = len(text).to_bytes(8, "little") + text
    try:
        tensors, start = parse_header(head, len(head) + size, "x")
    except FedmedError:
        return
    assert start == len(head)
    assert sorted(i for info in tensors.values() for i in range(info.start, info.end)) == list(range(size))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(JSON)
def test_strict_json_reads_back_what_json_can_say(value):
    try:
        text = canonical_json(value)
    except ValueError:
        return
    try:
        assert parse_json(text, "x") == value
    except FedmedError as error:
        assert "deeper" in error.message  # noqa: PT017
