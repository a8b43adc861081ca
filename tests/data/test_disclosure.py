"""No cell of a file is shown: not where a header is missing, not where a file is malformed."""

import gzip
import io
import json

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from fedmed_cli.cli.app import main
from fedmed_cli.data import disclosure

# What no output may hold: a name, a drug, a number of a patient, and a sentence without a blank.
CANARIES = ("Zqxdoe", "Zqxfarin", "ZQX-1950-77", "患者王小明服用华法林")
CELLS = [["Zqxdoe", "Zqxfarin"], ["Zqxdoe 1950", "takes Zqxfarin"], ["ZQX-1950-77", "患者王小明服用华法林"]]


def as_csv(cells, delimiter=","):
    return "".join(delimiter.join(row) + "\n" for row in cells).encode()


def as_table(cells):
    names, *rows = cells
    return pyarrow.table({name: [row[at] for row in rows] for at, name in enumerate(names)})


def as_parquet(cells):
    file = io.BytesIO()
    pyarrow.parquet.write_table(as_table(cells), file)
    return file.getvalue()


def as_arrow(cells):
    file = io.BytesIO()
    pyarrow.feather.write_feather(as_table(cells), file, compression="uncompressed")
    return file.getvalue()


def as_jsonl(cells):
    return "".join(json.dumps({question: answer}, ensure_ascii=False) + "\n" for question, answer in cells).encode()


def as_json(cells):
    return json.dumps([{question: answer} for question, answer in cells], ensure_ascii=False).encode()


WRITERS = {
    "csv": as_csv,
    "tsv": lambda cells: as_csv(cells, "\t"),
    "json": as_json,
    "jsonl": as_jsonl,
    "parquet": as_parquet,
    "arrow": as_arrow,
    "feather": as_arrow,
}


def without_a_header():
    """Files whose first row of data is taken for the names of columns, by each first row."""
    for kind, write in WRITERS.items():
        for at in range(len(CELLS)):
            cells = [*CELLS[at:], *CELLS[:at]]
            yield f"{kind}-{at}.{kind}", write(cells)
            yield f"{kind}-{at}.{kind}.gz", gzip.compress(write(cells))


ROW = {"question": "What of Zqxdoe 1950?", "answer": "Zqxfarin", "ZQX-1950-77": "患者王小明服用华法林"}
LINE = json.dumps(ROW, ensure_ascii=False).encode()
HEADED = [["question", "answer", "Zqxdoe 1950"], ["Zqxdoe", "Zqxfarin", "ZQX-1950-77"]]
MALFORMED = {
    "torn.jsonl": LINE + b"\n" + LINE[:40],
    "no-object.jsonl": b'"Zqxdoe"\n["Zqxfarin"]\n',
    "latin.jsonl": '{"question": "Zqxdoe é", "answer": "Zqxfarin"}'.encode("latin-1"),
    "surrogate.jsonl": b'{"question": "a", "answer": "b", "Zqxdoe \\ud800": "Zqxfarin"}\n',
    "surrogate-text.jsonl": b'{"question": "Zqxdoe \\ud800", "answer": "Zqxfarin"}\n',
    "numbers.jsonl": b'{"question": 1950, "answer": ["Zqxdoe"]}\n',
    "torn.json": b"[" + LINE + b", " + LINE[:30],
    "no-list.json": json.dumps({"Zqxdoe": "Zqxfarin", "ZQX-1950-77": [1], "more": [2]}).encode(),
    "latin.json": '[{"question": "Zqxdoe é", "answer": "Zqxfarin"}]'.encode("latin-1"),
    "deep.json": b'{"Zqxdoe":' * 200_000,
    "ragged.csv": as_csv([["question", "answer"], ["Zqxdoe", "Zqxfarin", "ZQX-1950-77"]]),
    "quotes.csv": b'question,answer\n"Zqxdoe" Zqxfarin,"ZQX-1950-77\n',
    "latin.csv": "question,answer\nZqxdoe é,Zqxfarin\n".encode("latin-1"),
    "latin-header.csv": "Zqxdoe é,Zqxfarin\nx,y\n".encode("latin-1"),
    "ragged.tsv": as_csv([["question", "answer"], ["Zqxdoe", "Zqxfarin", "ZQX-1950-77"]], "\t"),
    "torn.parquet": as_parquet(HEADED)[:-20],
    "torn.arrow": as_arrow(HEADED)[:-20],
    "torn.csv.gz": gzip.compress(as_csv(HEADED))[:-9],
    "plain.csv.gz": as_csv(HEADED),
    "torn.parquet.gz": gzip.compress(as_parquet(HEADED)[:-20]),
    "turns.jsonl": json.dumps({"messages": [{"role": "Zqxdoe", "content": "Zqxfarin"}]}).encode(),
    "text.jsonl": b'{"text": "Zqxdoe takes Zqxfarin"}\n',
}
FILES = dict(without_a_header()) | MALFORMED


def check_nothing_shown(capsys, name, workspace, *argv):
    capsys.readouterr()
    code = main([str(part) for part in argv])
    out, err = capsys.readouterr()
    assert code in (0, 3), (name, err)
    shown = out + err + "".join(path.read_text() for path in workspace.glob("data/**/*.json"))
    assert not [canary for canary in CANARIES if canary in shown], (name, shown)
    return code


@pytest.mark.parametrize("name", FILES)
@pytest.mark.slow
def test_no_cell_of_a_file_is_shown(name, tmp_path, capsys, split_once, tiny_base):
    path, inner = tmp_path / name, tmp_path / "work"
    path.write_bytes(FILES[name])
    argv = ["split", "-v", "--dataset", path, "--max-bad", "0.5", "-C", inner]
    assert check_nothing_shown(capsys, name, inner, *argv) == 3
    for columns in ("question=Q,answer=A", "text=T"):
        assert check_nothing_shown(capsys, name, inner, *argv, "--columns", columns) == 3
    argv = ["train-local", "-v", "--site", "A", "--data", path, "-C", tmp_path / "own", "--base", tiny_base]
    (tmp_path / "own").mkdir()
    (tmp_path / "own/federation.toml").write_bytes((split_once / "federation.toml").read_bytes())
    assert check_nothing_shown(capsys, name, tmp_path / "own", *argv) == 3


@pytest.mark.parametrize("option", [["--group-by", "patient"], ["--label", "patient"], ["--by", "column:patient"]])
def test_no_key_of_a_row_is_shown_where_a_column_is_missing(option, tmp_path, capsys):
    rows = [{"question": f"q {n}", "answer": f"a {n}", canary: "x"} for n in range(20) for canary in CANARIES]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["split", "--dataset", tmp_path / "x.jsonl", "-C", tmp_path / "work", *option]
    assert check_nothing_shown(capsys, "x.jsonl", tmp_path / "work", *argv) == 3


def test_names_that_are_names_of_columns_are_shown():
    assert disclosure.list_columns(["Frage", "Antwort"]) == "Antwort, Frage"
    assert disclosure.list_columns(["final_decision", "QUESTION", "q1", "_x"]) == "QUESTION, _x, final_decision, q1"
    assert disclosure.list_columns([]) == "none"
    assert disclosure.list_columns(["question", "John Doe 1950"]) == "2 columns"
    assert disclosure.list_columns(["P00123"]) == "1 column"
    # A header is only taken for one where a name is known: else it may be the first row of data.
    assert disclosure.list_columns(["Smith", "warfarin"], is_header=False) == "2 columns"
    assert disclosure.list_columns(["Frage", "Antwort", "source"], is_header=False) == "Antwort, Frage, source"


# --- values of a column -----------------------------------------------------------------------------


def patients(count, rows_each):
    """Rows of patients, who have a label of their own each, and share another one."""
    return [
        {
            "question": f"question {patient} of {row}?",
            "answer": f"the answer to {patient} {row}",
            "patient": f"Zqxdoe {patient}",
            "ward": f"Zqxfarin {patient}" if patient < 3 else "a ward",
        }
        for patient in range(count)
        for row in range(rows_each)
    ]


def test_a_label_counts_by_its_patients_and_not_by_its_rows(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in patients(60, 15)))
    argv = ["split", "--dataset", tmp_path / "x.jsonl", "--label", "ward", "--by", "iid", "--hospitals", "2"]
    argv += ["--near-duplicates", "off", "--group-by", "patient"]
    assert check_nothing_shown(capsys, "x.jsonl", tmp_path / "work", *argv, "-C", tmp_path / "work") == 0
    sites = json.loads((tmp_path / "work/data/split.json").read_text())["sites"]
    assert {label for site in sites.values() for label in site["labels"]} == {"a ward", "other"}
    # Without patients' groups each text counts, and the 15 rows of one label are enough.
    argv = [str(part) for part in argv[:-2]]
    assert main([*argv, "--hospitals", "1", "-C", str(tmp_path / "rows")]) == 0
    sites = json.loads((tmp_path / "rows/data/split.json").read_text())["sites"]
    assert "Zqxfarin 1" in sites["A"]["labels"]


@pytest.mark.parametrize("option", [["--label", "patient"], ["--by", "column:patient"]])
def test_the_group_column_is_no_label(option, tmp_path, fails):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in patients(60, 15)))
    argv = ["split", "--dataset", tmp_path / "x.jsonl", *option, "--group-by", "patient", "-C", tmp_path / "work"]
    assert f"{option[0]}: 'patient' is the column that groups examples" in fails(2, *argv)
    assert not (tmp_path / "work/data").exists()


def test_values_of_a_column_are_not_shown_by_assign(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in patients(60, 15)))
    argv = ["split", "--dataset", tmp_path / "x.jsonl", "--by", "column:ward", "--assign", "A=a ward;B=other"]
    assert check_nothing_shown(capsys, "x.jsonl", tmp_path / "work", *argv, "-C", tmp_path / "work") == 3


def test_may_leave():
    assert disclosure.may_leave("GHR", 10)
    assert not disclosure.may_leave("GHR", 9)
    assert not disclosure.may_leave("x" * 81, 100)
    assert not disclosure.may_leave("a\tb", 100)
