"""Learn the likeness model from the open sets of prompts and write fedmed_cli/chat/guardrails/classifier.tsv.

    python benchmarks/guardrails/train.py            learn from all open sets and write the file
    python benchmarks/guardrails/train.py --held     leave out one author's set after the other, and print how the
                                                     whole guardrail does on it

The unseen set (tests/guardrail_prompts/unseen.jsonl) is never read here.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest, chi2
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion

from fedmed_cli.chat.guardrails import classifier
from fedmed_cli.chat.guardrails.classifier import BLOCKS, CLASSES, Model
from fedmed_cli.chat.guardrails.question import check_question

ROOT = Path(__file__).parents[2]
OPEN = ("development", "opened", "author_1", "author_2", "author_3")
NUM_FEATURES = 8000
C = 30.0
SMALLEST_COUNT = {"w": 2, "l": 5}


def read(name: str) -> list[dict]:
    path = ROOT / f"tests/guardrail_prompts/{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def label(row: dict) -> int:
    """The class by what is expected; a denial that still needs a notice goes where its level says."""
    if row["expect"] == "urgent":
        name = "crisis" if row["category"] == "crisis" else "emergency"
    elif row["expect"] == "decline":
        name = "misuse"
    elif row["expect"] == "notice":
        name = row["category"] if row["category"] in CLASSES else "diagnosis"
    else:
        name = "none"
    return CLASSES.index(name)


def learn(rows: list[dict]) -> Model:
    texts = [row["prompt"] for row in rows]
    labels = np.array([label(row) for row in rows])
    union = FeatureUnion(
        [
            (block, TfidfVectorizer(analyzer=split, sublinear_tf=True, min_df=SMALLEST_COUNT[block]))
            for block, split in BLOCKS.items()
        ]
    )
    values = union.fit_transform(texts)
    chosen = SelectKBest(chi2, k=NUM_FEATURES).fit(values, labels).get_support()
    # Learnt again on the chosen features alone, so that they are brought to length 1 as they will be when used.
    blocks = dict(union.transformer_list)
    vocabulary, start = {}, 0
    for block, vectorizer in blocks.items():
        names = vectorizer.get_feature_names_out()
        vocabulary[block] = [name for name, keep in zip(names, chosen[start : start + len(names)], strict=True) if keep]
        start += len(names)
    union = FeatureUnion(
        [
            (block, TfidfVectorizer(analyzer=split, sublinear_tf=True, vocabulary=vocabulary[block]))
            for block, split in BLOCKS.items()
        ]
    )
    values = union.fit_transform(texts)
    fitted = LogisticRegression(C=C, max_iter=3000, class_weight="balanced").fit(values, labels)
    features: dict = {}
    start = 0
    for block, vectorizer in union.transformer_list:
        count = len(vocabulary[block])
        weights = fitted.coef_[:, start : start + count].T
        features[block] = {
            name: (round(float(rarity), 4), [round(float(weight), 3) for weight in row])
            for name, rarity, row in zip(vocabulary[block], vectorizer.idf_, weights, strict=True)
        }
        start += count
    return Model([round(float(offset), 4) for offset in fitted.intercept_], features)


def write(model: Model, path: Path) -> None:
    lines = [
        "# The likeness model of fedmed_cli/chat/guardrails/classifier.py, made by benchmarks/guardrails/train.py.",
        "# block, feature, rarity, and a weight for each of: " + ", ".join(CLASSES),
        "\t".join(["offset", "", "0", *map(str, model.offsets)]),
    ]
    for block, known in model.features.items():
        lines += ["\t".join([block, name, str(known[name][0]), *map(str, known[name][1])]) for name in sorted(known)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def held() -> None:
    """Each author's set by a model that has not seen it. The rules have seen the development set."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name in OPEN[1:]:
        model = learn([row for other in OPEN if other != name for row in read(other)])
        classifier.load = lambda model=model: model  # type: ignore[assignment]
        for row in read(name):
            findings = check_question(row["prompt"])
            levels = {finding.level.value for finding in findings}
            none = row["expect"] == "none"
            key = f"{row['expect']} expected" if not none else f"{row['category']}: any finding"
            counts[key][0] += bool(findings) if none else row["expect"] in levels
            counts[key][1] += 1
            if row["category"] in ("emergency", "crisis"):
                counts[row["category"]][0] += row["expect"] in levels
                counts[row["category"]][1] += 1
    for key, (hits, total) in sorted(counts.items()):
        print(f"{key:28} {hits:5}/{total:<5} {hits / total:.3f}")


if __name__ == "__main__":
    if "--held" in sys.argv[1:]:
        held()
    else:
        write(learn([row for name in OPEN for row in read(name)]), ROOT / "fedmed_cli/chat/guardrails/classifier.tsv")
