"""Multiple-choice questions: the three layouts, and accuracy as plain transformers gives it."""

import gzip
import json

import numpy as np
import pytest
from helpers.factories import write_adapter

from fedmed_cli.cli.app import main
from fedmed_cli.errors import InputError
from fedmed_cli.evaluation.mcq_files import DECISIONS, Question, read_questions
from fedmed_cli.records.comparison import Comparison

pytestmark = pytest.mark.usefixtures("float32")

WORDS = "fever cough rash pain sleep water salt iron blood heart lung liver skin bone nerve muscle".split()


def make_rows(count=30):
    """Questions with options of unlike length; the right one stands anywhere."""
    generator = np.random.Generator(np.random.Philox(5))
    rows = []
    for i in range(count):
        options = [" ".join(generator.choice(WORDS, generator.integers(1, 6))) + f" {i}{letter}" for letter in "ABCD"]
        question = f"What helps most against {generator.choice(WORDS)} number {i}?"
        rows.append((question, options, int(generator.integers(4))))
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_medmcqa(question, options, answer, first=0):
    names = dict(zip(("opa", "opb", "opc", "opd"), options, strict=True))
    return {"id": "x", "question": question, "cop": answer + first, "exp": None, "subject_name": "Any"} | names


def as_medqa(question, options, answer):
    keyed = dict(zip("ABCD", options, strict=True))
    return {"question": question, "answer": options[answer], "options": keyed, "answer_idx": "ABCD"[answer]}


def test_all_layouts_of_options_give_the_same_questions(tmp_path):
    rows = make_rows()
    expected = {Question(q, tuple(options), tuple("ABCD"), answer) for q, options, answer in rows}
    listed = [
        as_medqa(*row) | {"options": [{"key": key, "value": value} for key, value in as_medqa(*row)["options"].items()]}
        for row in rows
    ]
    files = {
        "hub.jsonl": [as_medmcqa(*row) for row in rows],
        "original.jsonl": [as_medmcqa(*row, first=1) for row in rows],
        "medqa.jsonl": [as_medqa(*row) for row in rows],
        "bigbio.jsonl": listed,
        "letters.jsonl": [
            {"question": q, "options": as_medqa(q, o, a)["options"], "answer": "ABCD"[a]} for q, o, a in rows
        ],
    }
    for name, content in files.items():
        found = read_questions(write(tmp_path / name, content), 100, print)
        assert set(found.questions) == expected, name
        assert found.num_skipped == 0
    assert read_questions(tmp_path / "hub.jsonl", 100, print).layout == "columns"
    assert read_questions(tmp_path / "medqa.jsonl", 100, print).layout == "options"
    import pandas

    pandas.DataFrame(files["medqa.jsonl"]).to_parquet(tmp_path / "medqa.parquet")
    assert set(read_questions(tmp_path / "medqa.parquet", 100, print).questions) == expected
    with gzip.open(tmp_path / "medqa.jsonl.gz", "wt") as file:
        file.write((tmp_path / "medqa.jsonl").read_text())
    assert set(read_questions(tmp_path / "medqa.jsonl.gz", 100, print).questions) == expected


def test_pubmedqa_in_both_of_its_forms(tmp_path):
    original = {
        "111": {"QUESTION": "Does it help?", "CONTEXTS": ["Before.", "After."], "final_decision": "maybe"},
        "222": {"QUESTION": "Is it safe?", "CONTEXTS": ["Only."], "final_decision": "no"},
    }
    (tmp_path / "ori.json").write_text(json.dumps(original))
    hub = [
        {"pubid": 1, "question": "Does it help?", "context": {"contexts": ["Before.", "After."], "labels": ["A", "B"]}}
        | {"long_answer": "…", "final_decision": "maybe"},
        {"pubid": 2, "question": "Is it safe?", "context": {"contexts": ["Only."], "labels": ["A"]}}
        | {"long_answer": "…", "final_decision": "no"},
    ]
    for path in (tmp_path / "ori.json", write(tmp_path / "hub.jsonl", hub)):
        found = read_questions(path, 10, print)
        assert found.layout == "decision"
        assert {(question.text, question.answer) for question in found.questions} == {
            ("Before.\n\nAfter.\n\nDoes it help?", 2),
            ("Only.\n\nIs it safe?", 1),
        }
        assert found.questions[0].labels == found.questions[0].options == DECISIONS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row | {"cop": 4}, "cop does not tell whether it counts from 0 or from 1 (found [0, 1, 2, 3, 4])"),
        (lambda row: row | {"cop": -1}, "row 1: expected the right option's place"),
        (lambda row: row | {"opb": " "}, "row 1: expected text in column 'opb', found white space only"),
        (lambda row: {"question": "q", "answer": "a"}, "is not a file of multiple-choice questions"),
    ],
)
def test_a_file_that_is_none_is_refused_without_its_text(tmp_path, change, message):
    rows = [as_medmcqa(*row) for row in make_rows()]
    rows = [change(row) if message[:3] != "cop" or i == 0 else row for i, row in enumerate(rows)]
    if "place" in message:
        rows.append(as_medmcqa(*make_rows()[0]))
    with pytest.raises(InputError) as caught:
        read_questions(write(tmp_path / "x.jsonl", rows), 100, print)
    assert message in caught.value.message
    assert "helps most" not in caught.value.message + str(caught.value.hint)


def test_what_is_left_out_is_said(tmp_path):
    rows = [as_medmcqa(*row) for row in make_rows(40)]
    rows += [rows[0] | {"opa": None}, rows[1], rows[1]]
    said = []
    found = read_questions(write(tmp_path / "x.jsonl", rows), 25, said.append)
    assert len(found.questions) == 25
    assert found.num_skipped == 3
    assert said == [
        "x.jsonl: 1 of 43 rows left out: not a question with options and an answer",
        "x.jsonl: 2 repeated questions left out",
        "x.jsonl: 25 of 40 questions (--max-eval-samples)",
    ]


def test_more_options_than_letters_are_not_cut(tmp_path):
    row = {"question": "Which?", "options": [f"o{n}" for n in range(12)], "answer": "o3"}
    with pytest.raises(InputError, match="expected 2 to 10 options, found 12"):
        read_questions(write(tmp_path / "x.jsonl", [row]), 100, print)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", 1),
        ("B.", 1),
        ("(C) bone", 2),
        ("The correct answer is: D", 3),
        ("Answer: **A**", 0),
        ("Option B: skin", 1),
        ("A\n\nBecause", 0),
        ("A patient should drink", None),
        ("A and B", None),
        ("E.", None),
        ("", None),
        ("I think it is the liver cell here", 3),
        ("either skin or bone", None),
    ],
)
def test_letters_are_found_and_nothing_is_guessed(text, expected):
    question = Question("?", ("water", "skin", "bone", "liver cell"), tuple("ABCD"), 0)
    assert question.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("Yes, it does.", 0), ("no", 1), ("Answer: Maybe", 2), ("Not at all", None), ("", None)]
)
def test_decisions_are_found(text, expected):
    assert Question("?", DECISIONS, DECISIONS, 0).parse(text) == expected


def direct(folder, adapter, rows, plan):
    """Per question the log-probability of each option's text and of each letter, one at a time by transformers."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)

    def log_probability(question, option):
        messages = [{"role": "system", "content": plan.prompt.system}, {"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        end = tokenizer(option, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([start + end])
        with torch.no_grad():
            picked = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        return float(picked[len(start) - 1 :].sum())

    texts, letters = [], []
    for question, options, _ in rows:
        texts.append([log_probability(question, option) for option in options])
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
        asking = f"{question}\n\n{listed}\n\nAnswer with the letter of the right option alone."
        letters.append([log_probability(asking, letter) for letter in "ABCD"])
    return np.array(texts), np.array(letters)


@pytest.mark.slow
def test_accuracies_are_those_of_plain_transformers(round_workspace, tiny_base, tmp_path, capsys):
    root, rows = round_workspace.root, make_rows()
    path = write(tmp_path / "questions.jsonl", [as_medqa(*row) for row in rows])
    argv = ["compare", "--no-answers", "-C", str(root), "--base", str(tiny_base), "--choices", str(path)]
    capsys.readouterr()
    assert main(argv) == 0
    assert "30 questions of questions.jsonl; guessing is right in 25.0 %" in capsys.readouterr().out
    found = Comparison.read(root / "reports/compare.json").choices
    assert found.num_questions == found.num_asked == 30
    assert found.chance == 0.25
    right = np.array([answer for _, _, answer in rows])
    lengths = np.array([[len(option) for option in options] for _, options, _ in rows])
    hits = {}
    for name in ("base", "global"):
        adapter = round_workspace.global_adapter(1) if name == "global" else None
        texts, letters = direct(tiny_base, adapter, rows, round_workspace.read_plan())
        score = found.adapters[name]
        for rate, values in (
            (score.accuracy, texts),
            (score.accuracy_norm, texts / lengths),
            (score.by_letter, letters),
        ):
            assert rate.score.mean == pytest.approx(np.mean(values.argmax(1) == right), abs=1e-12)
            assert rate.score.low < rate.score.mean < rate.score.high
        hits[name] = (texts.argmax(1) == right).mean()
    difference = found.adapters["global"].accuracy.against_base
    assert difference.mean == pytest.approx(hits["global"] - hits["base"])
    assert difference.low <= difference.mean <= difference.high
    assert found.adapters["base"].accuracy.against_base is None
    assert found.adapters["base"].num_unparseable > 0  # a tiny random model writes no letters
    text = (root / "reports/compare.json").read_text()
    assert "helps most" not in text


@pytest.mark.slow
def test_an_adapter_of_zeros_has_the_bases_accuracies_without_a_doubt(round_workspace, tiny_base, tmp_path):
    from fedmed_cli.adapters.adapter import initial_factors, plan_adapter
    from fedmed_cli.records.measures import Interval

    plan = round_workspace.read_plan()
    zero = write_adapter(tmp_path / "zero", plan_adapter(plan, initial_factors(plan)))
    path = write(tmp_path / "questions.jsonl", [as_medqa(*row) for row in make_rows(10)])
    argv = ["compare", "-q", "--no-answers", "-C", str(round_workspace.root), "--base", str(tiny_base)]
    assert main([*argv, "--choices", str(path), "--adapter", str(zero)]) == 0
    found = Comparison.read(round_workspace.root / "reports/compare.json").choices.adapters
    for what in ("accuracy", "accuracy_norm", "by_letter", "asked"):
        assert getattr(found["zero"], what).against_base == Interval(0.0, 0.0, 0.0)
        assert getattr(found["zero"], what).score == getattr(found["base"], what).score


@pytest.mark.slow
def test_a_question_that_does_not_fit_is_left_out_and_said(round_workspace, tiny_base, tmp_path, capsys):
    rows = [as_medqa(*row) for row in make_rows(10)]
    rows[3]["question"] = "very long " * 300
    path = write(tmp_path / "questions.jsonl", rows)
    argv = ["compare", "--no-answers", "-C", str(round_workspace.root), "--base", str(tiny_base)]
    capsys.readouterr()
    assert main([*argv, "--choices", str(path)]) == 0
    assert "1 questions left out: they do not fit into max_length 256" in capsys.readouterr().err
    found = Comparison.read(round_workspace.root / "reports/compare.json").choices
    assert (found.num_questions, found.num_skipped) == (9, 1)


def test_a_prompt_that_is_read_once_gives_what_whole_rows_give(round_workspace, tiny_base):
    from fedmed_cli.adapters import gate
    from fedmed_cli.evaluation import mcq_scores, measuring
    from fedmed_cli.evaluation.mcq_scores import Continued
    from fedmed_cli.models import bases, language_model
    from fedmed_cli.models.prompts import Encoded

    plan = round_workspace.read_plan()
    adapter = gate.read_global(round_workspace.global_adapter(1), plan).adapter
    lm = language_model.load(bases.find_for_plan(plan.base, str(tiny_base), None, print), "cpu")
    generator = np.random.Generator(np.random.Philox(3))

    def tokens(least, most):
        return tuple(int(i) for i in generator.integers(2, 500, generator.integers(least, most)))

    items = [Continued(tokens(1, 60), tuple(tokens(1, 9) for _ in range(generator.integers(2, 6)))) for _ in range(40)]
    items += [Continued(tokens(5, 30), ((5,), (6,), (7,))) for _ in range(5)]  # letters
    found = mcq_scores.measure(lm, adapter, items)
    whole = [Encoded((*item.prompt, *end), len(item.prompt), False) for item in items for end in item.ends]
    expected = measuring.measure(lm, adapter, whole)
    assert np.allclose(found.nll, expected.nll, atol=1e-4, rtol=1e-5)
    assert (found.num_tokens == expected.num_tokens).all()


def test_the_loss_of_a_token_is_exact_for_a_large_vocabulary():
    import torch

    from fedmed_cli.evaluation.mcq_scores import token_nll

    torch.manual_seed(0)
    logits, ids = torch.randn(2, 3, 50_000) * 3, torch.randint(0, 50_000, (2, 3))
    exact = -logits.double().log_softmax(-1).gather(2, ids[..., None]).squeeze(2)
    assert (token_nll(logits, ids) - exact).abs().max() < 1e-5
