"""Data that would fill the memory or never end are refused with what is allowed."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from fedmed_cli.data import batches, formats, sources
from fedmed_cli.data.bad_rows import BadRows
from fedmed_cli.data.sources import Source
from fedmed_cli.errors import InputError

ROW = {"question": "Why?", "answer": "Because."}


def read_all(path):
    """All batches of a file; what is skipped is counted, not an error."""
    return list(Source([str(path)]).batches(BadRows()))


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_line_without_an_end(ending, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 100_000)
    monkeypatch.setattr(formats, "BLOCK_BYTES", 10_000)
    start = 'question,answer\nWhy?,"' if ending == "csv" else json.dumps(ROW) + '\n{"question": "'
    path = tmp_path / f"long.{ending}.gz"
    with gzip.open(path, "wt") as file:
        file.write(start + "x" * 10_000_000)
    with pytest.raises(InputError, match="line 2 is longer than 100,000 bytes"):
        read_all(path)


def test_a_quoted_field_of_many_lines_has_the_same_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 100_000)
    path = tmp_path / "long.csv"
    path.write_text('question,answer\nWhy?,"' + "x\n" * 100_000 + '"\n')
    with pytest.raises(InputError, match="is not CSV"):
        read_all(path)


@pytest.mark.parametrize("ending", ["json", "parquet", "arrow"])
def test_a_file_that_is_read_whole_is_unpacked_no_further_than_the_limit(ending, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_WHOLE_BYTES", 1_000_000)
    path = tmp_path / f"bomb.{ending}.gz"
    with gzip.open(path, "wb") as file:
        file.write(b" " * 1_000_001)
    with pytest.raises(InputError, match="holds more than 1,000,000 bytes"):
        read_all(path)


@pytest.mark.parametrize("first", [ROW, {**ROW, "more": ["not", "flat"]}])
def test_rows_that_each_have_a_column_of_their_own(first, tmp_path):
    path = write_lines(tmp_path / "wide.jsonl", [first, *({**ROW, f"column {n}": "x"} for n in range(8000))])
    with pytest.raises(InputError, match="the rows name more than 1,000 columns"):
        read_all(path)


def test_columns_are_counted_over_all_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "BLOCK_BYTES", 10_000)
    path = write_lines(tmp_path / "wide.jsonl", [{**ROW, f"column {n}": "x"} for n in range(8000)])
    with pytest.raises(InputError, match="the rows name more than 1,000 columns"):
        read_all(path)


def test_more_rows_than_are_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_ROWS", 99)
    path = write_lines(tmp_path / "many.jsonl", [ROW] * 100)
    with pytest.raises(InputError, match="more than 99 rows"):
        read_all(path)
    assert sum(map(len, Source([str(path)], limit=99).batches())) == 99


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_one_text_for_many_rows_is_not_multiplied(ending, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MAX_TABLE_BYTES", 1_000_000)
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 2000, pyarrow.int32()), ["x" * 1000])
    table = pyarrow.table({"question": texts, "answer": texts})
    path = tmp_path / f"codes.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(table.cast(pyarrow.schema([(n, pyarrow.string()) for n in ROW])), path)
    else:
        with pyarrow.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(InputError, match="2,000 rows hold 4,000,000 bytes of text, at most 1,000,000 fit"):
        read_all(path)


@pytest.mark.parametrize(
    "rows", [[{**ROW, "x\ud800": "c"}], [{**ROW, "x\ud800": "c"}] * 2, [{"q\ud800": "a", "b": "c"}]]
)
def test_a_broken_character_in_a_columns_name(rows, tmp_path, fails):
    path = tmp_path / "broken.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))  # written as \ud800
    fails(3, "split", "-q", "-C", tmp_path / "work", "--dataset", path)


def test_a_list_of_files_nested_a_hundred_thousand_times(tmp_path, fails):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "state.json").write_text("[" * 100_000)
    fails(3, "split", "-q", "-C", tmp_path / "work", "--dataset", tmp_path / "set")


def test_a_value_nested_as_deep_as_json_is_read(tmp_path):
    rows = [
        json.dumps({**ROW, "more": "HERE"}).replace('"HERE"', "[" * depth + "]" * depth)
        for depth in range(0, 120_000, 7_919)
    ]
    path = tmp_path / "deep.jsonl"
    path.write_text("\n".join(rows) + "\n")
    bad = BadRows()
    assert sum(map(len, Source([str(path)]).batches(bad))) + bad.total == len(rows)
