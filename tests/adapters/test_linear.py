"""Reading a foreign file takes work in proportion to its size: counted, not timed."""

import json

import pytest
from helpers import bad_files, factories
from helpers.counted import Counted, count_calls

from fedmed_cli.adapters import gate
from fedmed_cli.records.checks import check_site_names
from fedmed_cli.records.codec import refuse_duplicates
from fedmed_cli.records.plan import Sites

MANY = 3000


def test_a_key_that_appears_twice_is_found_in_one_pass():
    keys = [Counted(f"k{number}") for number in range(MANY)]
    pairs = [(key, 1) for key in (*keys, Counted("k2999"))]
    Counted.comparisons = 0
    with pytest.raises(ValueError, match="the key 'k2999' appears twice"):
        refuse_duplicates(pairs)
    assert Counted.comparisons < 2 * MANY


@pytest.mark.parametrize("last", ["K0", "other"])
def test_site_names_are_compared_in_one_pass(last):
    names = tuple(Counted(name) for name in (*(f"k{number}" for number in range(MANY)), last))
    Counted.comparisons = 0
    if last == "K0":
        with pytest.raises(ValueError, match="site name 'K0' appears twice"):
            check_site_names(names)
    else:
        check_site_names(names)
    assert Counted.comparisons < 4 * MANY  # one with each of the reserved names' hashes at most


def test_ranks_are_looked_up_among_many_sites_in_one_pass():
    names = tuple(Counted(f"k{number}") for number in range(MANY))
    Counted.comparisons = 0
    Sites(names, 1, ranks={Counted(name): 1 for name in names})
    assert Counted.comparisons < 6 * MANY


@pytest.mark.slow
def test_many_tensors_are_matched_with_many_targets_in_one_pass(tmp_path):
    """In a folder that no plan has looked at: a header of almost 1 MB, and a thousand target modules."""
    place = bad_files.Place(factories.make_workspace(tmp_path / "work", factories.make_plan(signed=False)), None)
    (place.folder / bad_files.RECORD).unlink()
    place.config(r=1, lora_alpha=1, target_modules=[f"t{number}" for number in range(1000)])
    names = [f"base_model.model.m.{number}.t999.lora_{factor}.weight" for number in range(4000) for factor in "AB"]
    header = {
        name: {"dtype": "F32", "shape": [1, 1], "data_offsets": [4 * number, 4 * number + 4]}
        for number, name in enumerate(names)
    }
    place.weights(json.dumps(header, separators=(",", ":")).encode(), bytes(4 * len(names)))
    calls = count_calls(lambda: gate.read_from_anyone(place.folder))
    assert calls < 200 * len(names)
