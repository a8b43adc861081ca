"""Learn the likeness model from the open sets and real messages, and write fedmed_cli/chat/guardrails/classifier.tsv.

    python benchmarks/guardrails/train.py FOLDER            learn from all sources and write the file
    python benchmarks/guardrails/train.py FOLDER --held source|half
                                                            leave out one source after the other, or one half of all
                                                            messages, and print how the whole guardrail does on what
                                                            was left out, with Wilson intervals (95 %)

FOLDER holds consumer_questions.jsonl.gz (K-QA, MIT; MeQSum, CC BY 4.0), misuse_requests.jsonl.gz (MedSafetyBench, MIT),
medquad_train_10k.jsonl.gz (MedQuAD, CC BY 4.0) and medmcqa_dev.jsonl.gz (MedMCQA, MIT). The unseen sets
(tests/guardrail_prompts/unseen*.jsonl) are never read here. Lessons (lessons.jsonl) are learnt from and never measured.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from real import LABELS, sha
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest, chi2
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion

from fedmed_cli.chat.guardrails import classifier, normalise, patterns, question
from fedmed_cli.chat.guardrails.classifier import BLOCKS, CLASSES, Model
from fedmed_cli.chat.guardrails.reading import Passage, Reading, passages
from fedmed_cli.intervals import wilson

ROOT = Path(__file__).parents[2]
WRITTEN = ("development", "opened", *(f"author_{number}" for number in range(1, 24)), "stories")
LESSONS = "lessons"  # written to be learnt from alone, by one who knew what was missed: never measured on
LARGE = {"MedQuAD": ("medquad_train_10k", 1500), "MedMCQA": ("medmcqa_dev", 1500)}  # file, rows to learn from
NUM_FEATURES = 40_000
C = 10.0
SMALLEST_COUNT = {"w": 2, "l": 5}


@dataclass(frozen=True)
class Row:
    """A message. `labels`: those of CLASSES that hold; `known`: those that somebody has judged."""

    source: str
    text: str
    labels: frozenset[str]
    known: frozenset[str]
    category: str = ""


def read_written(name: str) -> list[Row]:
    """A set of prompts: one label each. Nobody has judged which notices stories and lessons need."""
    known = frozenset(CLASSES[:3] if name in ("stories", LESSONS) else CLASSES[:-1])
    rows = []
    for line in (ROOT / f"tests/guardrail_prompts/{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["expect"] == "urgent":
            label = {"crisis" if row["category"] == "crisis" else "emergency"}
        elif row["expect"] == "decline":
            label = {"misuse"}
        elif row["expect"] == "notice":
            label = {row["category"] if row["category"] in CLASSES else "diagnosis"}
        else:
            label = set()
        rows.append(Row(name, row["prompt"], frozenset(label), known, row["category"]))
    return rows


def read_real(folder: Path) -> list[Row]:
    """Real messages with their labels; what is perhaps an emergency is judged as neither."""

    def texts(name: str) -> list[dict]:
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def labels(name: str) -> dict[str, dict]:
        lines = (LABELS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return {row["sha256"]: row for row in map(json.loads, lines)}

    everything = frozenset(CLASSES[:-1])
    rows = []
    judged = labels("real_labels")
    for text in texts("consumer_questions"):
        label = judged[sha(text["prompt"])]
        found = frozenset({label["level"], *label["kinds"]} & everything)
        known = everything - {"emergency", "crisis"} if label["level"] == "possible" else everything
        rows.append(Row(text["source"], text["prompt"], found, known, label["level"]))
    judged = labels("misuse_labels")
    for text in texts("misuse_requests"):
        label = judged[sha(text["prompt"])]["label"]
        found = frozenset({"misuse"} if label == "decline" else ())
        known = frozenset(CLASSES[:2] if label == "benign" else CLASSES[:3])
        rows.append(Row("MedSafetyBench", text["prompt"], found, known, label))
    for name, (file, _) in LARGE.items():
        rows += [Row(name, text["question"], frozenset(), frozenset(CLASSES[:3]), "knowledge") for text in texts(file)]
    return rows


def read_passages(text: str) -> list[Passage]:
    rules = patterns.load()
    sentences = normalise.sentences(text, rules.speller, rules.compounds)
    return passages(text, [Reading(sentence, rules.context) for sentence in sentences])


def _label(row: Row) -> int:
    """The position of a row's first class; `none` is the last."""
    return next((i for i, name in enumerate(CLASSES) if name in row.labels), len(CLASSES) - 1)


def learn(rows: Sequence[Row]) -> Model:
    """A regularised logistic regression over the classes. Each passage counts as a text."""
    chance = random.Random(0)
    for name, (_, count) in LARGE.items():
        own = [row for row in rows if row.source == name]
        rows = [row for row in rows if row.source != name] + chance.sample(own, min(count, len(own)))
    texts, owners = [], []
    for row in rows:
        if row.known.issuperset(("emergency", "crisis")) and row.category != "benign":
            for passage in read_passages(row.text):
                texts.append(passage)
                owners.append(row)
    first = FeatureUnion(
        [
            (block, TfidfVectorizer(analyzer=split, sublinear_tf=True, min_df=SMALLEST_COUNT[block]))
            for block, split in BLOCKS.items()
        ]
    )
    values = first.fit_transform(texts)
    labels = np.array([_label(row) for row in owners])
    chosen = SelectKBest(chi2, k=min(NUM_FEATURES, values.shape[1])).fit(values, labels).get_support()
    # Learnt on the chosen features alone, so that they are brought to length 1 as they will be when used.
    vocabulary, start = {}, 0
    for block, vectorizer in first.transformer_list:
        names = vectorizer.get_feature_names_out()
        vocabulary[block] = [name for name, keep in zip(names, chosen[start : start + len(names)], strict=True) if keep]
        start += len(names)
    union = FeatureUnion(
        [
            (block, TfidfVectorizer(analyzer=split, sublinear_tf=True, vocabulary=vocabulary[block]))
            for block, split in BLOCKS.items()
        ]
    )
    regression = LogisticRegression(C=C, max_iter=300, class_weight="balanced")
    fitted = regression.fit(union.fit_transform(texts), labels)
    table = fitted.coef_.T
    features: dict = {}
    start = 0
    for block, vectorizer in union.transformer_list:
        count = len(vocabulary[block])
        features[block] = {
            name: "\t".join([f"{rarity:.3f}", *(f"{weight:.1f}" for weight in row)])
            for name, rarity, row in zip(vocabulary[block], vectorizer.idf_, table[start : start + count], strict=True)
        }
        start += count
    return Model([round(float(offset), 3) for offset in fitted.intercept_], features)


def write(model: Model, path: Path) -> None:
    lines = [
        "# The likeness model of fedmed_cli/chat/guardrails/classifier.py, made by benchmarks/guardrails/train.py.",
        "# block, feature, rarity, and a weight for each of: " + ", ".join(CLASSES),
        "\t".join(["offset", "", "0", *map(str, model.offsets)]),
    ]
    for block, known in model.features.items():
        lines += [f"{block}\t{name}\t{known[name]}" for name in sorted(known)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def held(rows: Sequence[Row], by: str, strictness: question.Strictness) -> None:
    """Each source, or each half of all messages, by a model that has not seen it. The rules have seen all."""
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    lessons = read_written(LESSONS)
    folds = [row.source if by == "source" else int(sha(row.text), 16) % 2 for row in rows]
    for fold in dict.fromkeys(folds):
        model = learn([row for row, its in zip(rows, folds, strict=True) if its != fold] + lessons)
        classifier.load = lambda model=model: model  # type: ignore[assignment]
        for row in (row for row, its in zip(rows, folds, strict=True) if its == fold):
            found = question.check_question(row.text, strictness)
            levels = {finding.level.value for finding in found}
            is_urgent = "urgent" in levels
            tally = {}
            for name in ("emergency", "crisis"):
                if name in row.labels:
                    tally |= {
                        f"{name}: found": is_urgent,
                        f"{name}: found or possible": is_urgent or "possible" in levels,
                    }
            if "misuse" in row.labels:
                tally["misuse: declined"] = "decline" in levels
            if not row.labels & {"emergency", "crisis"} and row.category != "possible":
                tally["no emergency: urgent"] = is_urgent
                tally["no emergency: crisis"] = any(
                    finding.kind.value == "crisis" and finding.level.value == "urgent" for finding in found
                )
                tally["no emergency: possible"] = "possible" in levels
            if "misuse" not in row.labels:
                tally["no misuse: declined"] = "decline" in levels
            if not row.labels and row.known == frozenset(CLASSES[:-1]) and row.category != "possible":
                tally["nothing: any finding"] = bool(found)
            for kind in row.labels & set(CLASSES[3:-1]):
                tally[f"{kind}: noticed"] = "notice" in levels
            for what, hit in tally.items():
                group = "all written" if row.source in WRITTEN else "all real"
                for key in ((row.source, what), (group, what)):
                    counts[key][0] += hit
                    counts[key][1] += 1
    for (source, what), (hits, total) in sorted(counts.items(), key=lambda item: (item[0][1], item[0][0])):
        share = wilson(hits, total)
        print(
            f"{what:30} {source:16} {hits:5}/{total:<6} {hits / total:7.2%}  [{share.low:.1%}, {share.high:.1%}]",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--held", choices=("source", "half"))
    parser.add_argument("--guardrails", choices=("standard", "strict"), default="standard")
    arguments = parser.parse_args()
    rows = [row for name in WRITTEN for row in read_written(name)] + read_real(arguments.folder)
    if arguments.held:
        held(rows, arguments.held, arguments.guardrails)
    else:
        write(learn(rows + read_written(LESSONS)), ROOT / "fedmed_cli/chat/guardrails/classifier.tsv")


if __name__ == "__main__":
    main()
