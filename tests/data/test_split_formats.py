"""Data of every common format and layout, written by other tools than ours, becomes the same examples."""

import gzip
import json

import pandas
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from fedmed_cli.cli.app import main
from fedmed_cli.data import batches, formats
from fedmed_cli.data.bad_rows import BadRows
from fedmed_cli.data.columns import Layout
from fedmed_cli.data.examples import read_examples
from fedmed_cli.data.sources import Source
from fedmed_cli.errors import InputError
from fedmed_cli.records.split import SplitRecord

ROWS = [
    {
        "question": f'What about case {n}?\r\nSecond line, with "quotes"; and {chr(0xE9 + n)}\u2028end',
        "answer": f"Answer {n}\tof \\ 漢字 😀",
        "source": "GHR" if n % 2 else "NIDDK",
    }
    for n in range(40)
]
FRAME = pandas.DataFrame(ROWS)


def read(*paths, **rest):
    return read_examples(Source([str(path) for path in paths], **rest))


def datasets_folder(path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(path, num_shards=3)


def datasets_dict(path):
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(path)


def datasets_json(path):
    import datasets

    datasets.Dataset.from_list(ROWS).to_json(path)


def shards(path):
    path.mkdir()
    FRAME[:15].to_parquet(path / "part-0.parquet")
    FRAME[15:].to_csv(path / "part-1.csv", index=False)


def zstd_lines(path):
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write("".join(json.dumps(row) + "\n" for row in ROWS).encode())


def arrow_stream(path):
    table = pyarrow.Table.from_pandas(FRAME)
    with pyarrow.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


WRITERS = {
    "list.json": lambda path: FRAME.to_json(path, orient="records"),
    "wrapped.json": lambda path: path.write_text(json.dumps({"version": "1", "data": ROWS})),
    "pandas.jsonl": lambda path: FRAME.to_json(path, orient="records", lines=True),
    "bom.jsonl": lambda path: path.write_text(FRAME.to_json(orient="records", lines=True), encoding="utf-8-sig"),
    "lines.ndjson": datasets_json,
    "pandas.csv": lambda path: FRAME.to_csv(path, index=False),
    "excel.csv": lambda path: FRAME.to_csv(path, index=False, sep=";", encoding="utf-8-sig"),
    "pandas.tsv": lambda path: FRAME.to_csv(path, index=False, sep="\t"),
    "pandas.parquet": lambda path: FRAME.to_parquet(path),
    "categories.parquet": lambda path: FRAME.astype({"source": "category"}).to_parquet(path),
    "zstd.parquet": lambda path: pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(ROWS), path, compression="zstd", row_group_size=9
    ),
    "pyarrow.feather": lambda path: pyarrow.feather.write_feather(FRAME, path),
    "stream.arrow": arrow_stream,
    "pandas.csv.gz": lambda path: FRAME.to_csv(path, index=False),
    "pandas.jsonl.gz": lambda path: FRAME.to_json(path, orient="records", lines=True),
    "pandas.parquet.gz": lambda path: path.write_bytes(gzip.compress(FRAME.to_parquet())),
    "lines.jsonl.zst": zstd_lines,
    "saved": datasets_folder,
    "saved_dict": datasets_dict,
    "shards": shards,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_examples(name, tmp_path):
    WRITERS[name](tmp_path / name)
    found = [(row.question, row.answer, row.columns) for row in read(tmp_path / name)]
    # A text's own line ends are the data's; only CSV by pandas keeps them too.
    assert found == [(row["question"], row["answer"], {"source": row["source"]}) for row in ROWS]


def test_both_ways_to_read_json_lines_give_the_same(tmp_path, monkeypatch):
    FRAME.to_json(tmp_path / "x.jsonl", orient="records", lines=True)
    monkeypatch.setattr(formats, "BLOCK_BYTES", 600)
    by_arrow = []
    real = formats.parse_flat_lines
    monkeypatch.setattr(formats, "parse_flat_lines", lambda data: by_arrow.append(real(data)) or by_arrow[-1])
    fast = read(tmp_path / "x.jsonl")
    assert sum(table is not None for table in by_arrow) > 5
    monkeypatch.setattr(formats, "parse_flat_lines", lambda data: None)
    assert read(tmp_path / "x.jsonl") == fast
    assert len(fast) == len(ROWS)


def test_a_row_that_differs_in_the_middle_of_flat_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "BLOCK_BYTES", 400)
    odd = [{"question": "q", "answer": "a", "year": 1999}, {"answer": "a", "question": "q", "source": None}]
    rows = [*ROWS[:20], *odd, *ROWS[20:]]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(tmp_path / "x.jsonl")
    assert [dict(row.columns) for row in found[19:23]] == [
        {"source": "GHR"},
        {"year": "1999"},
        {},
        {"source": "NIDDK"},
    ]


LAYOUTS = [
    ({"question": "q", "answer": "a"}, ("q", "a"), {}),
    ({"Question": "q", "Answer": "a", "qtype": "x"}, ("q", "a"), {"qtype": "x"}),
    ({"question": "q", "context": "c"}, ("q", "c"), {}),
    ({"prompt": "q", "completion": "a"}, ("q", "a"), {}),
    (
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        ("q", "a"),
        {},
    ),
    ({"instruction": "i", "input": "x", "output": "a"}, ("i\n\nx", "a"), {"input": "x"}),
    ({"instruction": "i", "input": "", "output": "a"}, ("i", "a"), {"input": ""}),
    (
        {"messages": [{"role": m, "content": c} for m, c in (("system", "s"), ("user", "q"), ("assistant", "a"))]},
        ("q", "a"),
        {},
    ),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ("q", "a"), {}),
    ({"Description": "d", "Patient": "p", "Doctor": "a"}, ("d\n\np", "a"), {}),
    (
        {"QUESTION": "q", "CONTEXTS": ["one"], "LONG_ANSWER": "a", "final_decision": "yes"},
        ("q", "a"),
        {"CONTEXTS": '["one"]', "final_decision": "yes"},
    ),
    ({"text": "### Instruction:\nq\n\n### Response:\na"}, ("q", "a"), {}),
    ({"text": "<s>[INST] q [/INST] a </s>"}, ("q", "a"), {}),
    ({"text": "Question: q\nAnswer: a"}, ("q", "a"), {}),
    ({"text": "### Question: q\n### Answer: a\n\n### Signs\nFever"}, ("q", "a\n\n### Signs\nFever"), {}),
    ({"text": "### Instruction:\nq\n\n### Response:\na\n\n### End"}, ("q", "a"), {}),
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(("row", "expected", "columns"), LAYOUTS)
def test_every_layout(row, expected, columns, kind, tmp_path):
    path = tmp_path / f"x.{kind}"
    if kind == "jsonl":
        path.write_text(json.dumps(row) + "\n")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    (example,) = read(path)
    assert (example.question, example.answer) == expected
    assert example.columns == columns


def test_pubmedqa_is_one_object_of_rows_by_id(tmp_path):
    value = {str(n): {"QUESTION": f"q{n}", "CONTEXTS": ["c"], "LONG_ANSWER": f"a{n}"} for n in (21645374, 16418930)}
    (tmp_path / "ori_pqal.json").write_text(json.dumps(value))
    found = read(tmp_path / "ori_pqal.json")
    assert [(row.id, row.question, row.answer) for row in found] == [
        ("21645374", "q21645374", "a21645374"),
        ("16418930", "q16418930", "a16418930"),
    ]


def test_later_turns_of_a_conversation_are_counted(tmp_path):
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user", "assistant")]
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    bad = BadRows()
    assert sum(map(len, Source([str(tmp_path / "x.jsonl")]).batches(bad))) == 1
    assert bad.turns_left_out == 3


@pytest.mark.parametrize(
    "text",
    [
        "### Human: q\n### Assistant: a\n### Human: q2\n### Assistant: a2",
        "[INST] q [/INST] a </s>[INST] q2 [/INST] a2",
        "Question: q\nAnswer: a\n\nQuestion: q2\nAnswer: a2",
    ],
)
def test_later_turns_of_a_marked_text_are_counted_and_not_in_the_answer(text, tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": text}) + "\n")
    bad = BadRows()
    ((row,),) = (
        list(zip(one.questions, one.answers, strict=True)) for one in Source([str(tmp_path / "x.jsonl")]).batches(bad)
    )
    assert (row, bad.turns_left_out) == (("q", "a"), 2)


def test_a_marked_text_takes_linear_time(tmp_path):
    text = "### Question: q\n### Answer: a" + " \n" * 200_000 + "b"
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": text}) + "\n")
    assert read(tmp_path / "x.jsonl")[0].answer.endswith("b")


def test_a_header_that_names_a_column_twice_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("question,answer,answer\nq,a,b\n")
    with pytest.raises(InputError, match="the header has 'answer' twice"):
        read(tmp_path / "x.csv")


def test_what_is_not_csv_is_named_by_its_line(tmp_path):
    (tmp_path / "x.csv").write_text('question,answer\nq,a\n"He said "hi" to me",a\n')
    with pytest.raises(InputError, match="line 3: is not CSV"):
        read(tmp_path / "x.csv")


def test_columns_for_all_else(tmp_path):
    FRAME.rename(columns={"question": "Frage", "answer": "Antwort"}).to_csv(tmp_path / "x.csv", index=False)
    found = read(tmp_path / "x.csv", columns={"question": "Frage", "answer": "Antwort"})
    assert [row.question for row in found] == [row["question"] for row in ROWS]
    with pytest.raises(InputError, match="expected columns question and answer, found Antwort, Frage, source"):
        read(tmp_path / "x.csv")


def test_several_files_and_globs_in_the_order_given(tmp_path):
    for n, part in enumerate((FRAME[:10], FRAME[10:20], FRAME[20:])):
        part.to_json(tmp_path / f"part-{n}.jsonl", orient="records", lines=True)
    whole = [row["question"] for row in ROWS]
    assert [row.question for row in read(tmp_path / "part-*.jsonl")] == whole
    names = [str(tmp_path / f"part-{n}.jsonl") for n in (2, 0, 1)]
    assert [row.question for row in read(*names)] == whole[20:] + whole[:20]
    assert [row.question for row in read(*names, limit=25)] == whole[20:] + whole[:5]
    with pytest.raises(InputError, match="no file has such a name"):
        Source([str(tmp_path / "none-*.jsonl")])


def test_a_folder_with_several_sets_names_them(tmp_path):
    import datasets

    part = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": part, "valid": part}).save_to_disk(tmp_path / "x")
    with pytest.raises(InputError, match="holds 2 sets: train, valid"):
        Source([str(tmp_path / "x")])
    assert len(read(tmp_path / "x/valid")) == len(ROWS)


def test_a_hub_id_is_streamed_and_only_as_far_as_needed(tmp_path, monkeypatch):
    import datasets

    given = []

    def rows():
        for n, row in enumerate(ROWS * 10):
            given.append(row)
            yield row | {"question": f"{n} {row['question']}"}

    def load_dataset(name, split, streaming):
        assert (name, split, streaming) == ("owner/name", "test", True)
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    argv = ["split", "--dataset", "owner/name:test", "--limit", "100", "-q", "-C", str(tmp_path / "work")]
    assert main([*argv, "--hospitals", "2", "--near-duplicates", "off"]) == 0
    record = SplitRecord.read(tmp_path / "work/data/split.json")
    assert (record.source, record.num_examples) == ("hub", 100)
    assert len(given) <= 101
    assert not (tmp_path / "work/.fedmed/split").exists()


# --- bad rows ---------------------------------------------------------------------------------------

GOOD = "".join(json.dumps({"question": f"secret {n}", "answer": f"private {n}"}) + "\n" for n in range(1000)).encode()
BAD = [
    (b"{torn", "not_json"),
    (b"[1]", "not_object"),
    (b'{"question": "\xe9", "answer": "a"}', "encoding"),
    (b'{"question": "\\ud800", "answer": "a"}', "encoding"),
    (b'{"question": "q", "answer": null}', "empty"),
    (b'{"question": " ", "answer": "a"}', "empty"),
    (b'{"question": "q", "answer": 7}', "not_text"),
]


def test_bad_rows_are_counted_by_kind_with_their_lines(tmp_path, fails, capsys):
    lines = GOOD.splitlines(keepends=True)
    data = b"".join(lines[:500]) + b"".join(line + b"\n" for line, _ in BAD) + b"".join(lines[500:])
    (tmp_path / "x.jsonl").write_bytes(data)
    argv = ["split", "--dataset", tmp_path / "x.jsonl", "-C", tmp_path / "work", "--by", "iid"]
    assert "line 501 is not JSON" in fails(3, *argv)
    assert not (tmp_path / "work/data").exists()
    assert main([*map(str, argv), "--max-bad", "0.01"]) == 0
    out, err = capsys.readouterr()
    assert "7 of 1007 rows are not valid examples and are skipped: 2 empty, 2 encoding, 1 not_json" in err
    assert "secret" not in out + err
    record = SplitRecord.read(tmp_path / "work/data/split.json")
    assert {kind: (bad.count, bad.lines) for kind, bad in record.bad_rows.items()} == {
        "empty": (2, ("1:505", "1:506")),
        "encoding": (2, ("1:503", "1:504")),
        "not_json": (1, ("1:501",)),
        "not_object": (1, ("1:502",)),
        "not_text": (1, ("1:507",)),
    }
    assert record.num_examples == 1000


def test_one_bad_row_in_a_thousand_is_skipped_by_default_and_two_are_not(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD + b"{}\n")
    assert len(read(path)) == 1000
    path.write_bytes(GOOD + b"{}\n{}\n")
    with pytest.raises(InputError, match=r"row 1001: expected text in column 'question', found nothing") as caught:
        read(path)
    assert "2 of 1002 rows are not valid examples (2 empty)" in caught.value.hint


def test_bad_rows_of_csv_and_parquet(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"question,answer\nq,a\nq\nq,\nq,\xe9\nq,a,b\nq2,a\n")
    bad = BadRows()
    assert sum(map(len, Source([str(tmp_path / "x.csv")]).batches(bad))) == 2
    assert bad.counts == {"fields": 2, "empty": 1, "encoding": 1}
    assert bad.lines["fields"] == ["1:2", "1:5"]
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(),
        3,
        [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"a\xe9b")],
    )
    table = pyarrow.table({"question": broken, "answer": ["x", "y", "  "]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    bad = BadRows()
    (batch,) = Source([str(tmp_path / "x.parquet")]).batches(bad)
    assert (batch.questions, batch.answers) == (["a"], ["x"])
    assert bad.lines == {"encoding": ["1:2"], "empty": ["1:3"]}


def test_data_that_change_while_they_are_read_are_refused(tmp_path, fails, monkeypatch):
    from fedmed_cli.data import split_files

    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD)
    real = split_files.write_sets

    def write_sets(*args, **rest):
        real(*args, **rest)
        path.write_bytes(GOOD + GOOD)

    monkeypatch.setattr(split_files, "write_sets", write_sets)
    assert "changed while it was read" in fails(6, "split", "--dataset", path, "-C", tmp_path / "work")
    assert not (tmp_path / "work/data").exists()


FLAT = b'{"question":"a","answer":"b"}'


@pytest.mark.parametrize(
    "data",
    [
        FLAT + b"\n\n" + FLAT + FLAT,
        b"{}\nnull\n",
        FLAT + b"\n \n" + FLAT + FLAT + b"\n",
        FLAT + b"\r\n" + FLAT + b"\r\n",
    ],
)
def test_lines_that_look_flat_give_the_same_rows_both_ways(data, tmp_path, monkeypatch):
    def counted():
        bad = BadRows()
        rows = [batch.questions for batch in Source([str(tmp_path / "x.jsonl")], {"question": "question"}).batches(bad)]
        return rows, bad.counts, bad.lines

    (tmp_path / "x.jsonl").write_bytes(FLAT + b"\n" + data)
    fast = counted()
    monkeypatch.setattr(formats, "parse_flat_lines", lambda data: None)
    assert counted() == fast


@pytest.mark.parametrize("line", ["null", " null", "[1]", ""])
def test_a_block_that_does_not_begin_with_an_object_is_left_to_python(line, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "BLOCK_BYTES", 40)  # a line each
    good = json.dumps({"question": "What is it, in a few words?", "answer": "It is something."})
    (tmp_path / "data.jsonl").write_text("\n".join([good, line, good]) + "\n")
    bad = BadRows()
    source = Source([str(tmp_path / "data.jsonl")])
    assert sum(len(batch) for batch in source.batches(bad)) == 2
    assert bad.total == (1 if line else 0)


@pytest.mark.parametrize("end", ["", " ", "\t", "\x1c", "\x85", "\xa0", "\u2003", "\u3000", "\u200b", "é", "."])
def test_white_space_at_the_ends_is_what_python_strips(end):
    for text in (f"a{end}", f"{end}a", end):
        table = pyarrow.table({"question": ["first", text], "answer": ["a", "b"]})
        bad = BadRows()
        batch = batches.make_batch(formats.TableChunk(1, table), Layout("pair", "question", "answer"), 1, "x", bad)
        assert batch.questions == ["first", *([text.strip()] if text.strip() else [])]
        assert bad.counts == ({} if text.strip() else {"empty": 1})


@pytest.mark.parametrize("of", ["structs", "texts"])
def test_a_column_of_codes_for_anything_is_read(of, tmp_path):
    """Arrow can keep a column as indices into a table of values, which need not be texts."""
    values = pyarrow.array([{"a": 1}, {"a": 2}]) if of == "structs" else pyarrow.array(["one", "two"])
    codes = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 1], pyarrow.int32()), values)
    texts = {"question": ["What is one?", "What is two?"], "answer": ["The first.", "The second."]}
    table = pyarrow.table({**texts, "label": codes})
    with pyarrow.ipc.new_stream(tmp_path / "coded.arrow", table.schema) as writer:
        writer.write_table(table)
    found = read(tmp_path / "coded.arrow")
    assert [row.question for row in found] == texts["question"]
    assert [row.answer for row in found] == texts["answer"]
