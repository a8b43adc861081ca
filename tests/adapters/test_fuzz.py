"""Twenty thousand mutations of every file that fedmed reads: no traceback, no silent acceptance, bounded work."""

import pytest
from helpers import fuzzing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmed_cli.adapters.safetensors import parse_header
from fedmed_cli.errors import FedmedError
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.codec import parse_json
from fedmed_cli.records.comparison import Comparison, Matrix, Pooled
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import canonical_json
from fedmed_cli.records.split import SplitRecord

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


KINDS = [
    Contribution,
    Aggregate,
    SplitRecord,
    Comparison,
    Matrix,
    Pooled,
]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_records_of_any_shape(kind, data):
    """Fields of the right names with any JSON in them."""
    fields = data.draw(st.dictionaries(st.sampled_from([*kind.__dataclass_fields__, "x"]), JSON))
    header = {"format": f"fedmed/{kind.FORMAT}", "version": 1, "fedmed_version": "1"}
    with pytest.raises(FedmedError):
        kind.from_dict(fields | header, "record")


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
