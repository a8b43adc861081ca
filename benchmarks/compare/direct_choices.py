"""Multiple-choice accuracy beside a direct computation by transformers and PEFT, one question at a time.

Usage: python benchmarks/compare/direct_choices.py WORKSPACE FILE [NUMBER|FROM:TO [base|ADAPTER]]
Asks the questions that `fedmed compare --choices FILE --max-eval-samples N` asks, of the newest global adapter, or of
the base or the folder ADAPTER. All in float32, whatever the machine has, so that rounding decides no question.
"""

import sys
import time
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

from fedmed_cli.adapters import gate
from fedmed_cli.evaluation import mcq, mcq_scores
from fedmed_cli.evaluation.mcq_files import read_questions
from fedmed_cli.models import bases, language_model
from fedmed_cli.workspace import Workspace


def direct(model, tokenizer, plan, question):
    """Log-probabilities of a question's options after it, by one pass over four whole rows with padding and a mask."""
    messages = [{"role": "system", "content": plan.prompt.system}, {"role": "user", "content": question.text}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    rows = [start + tokenizer(option, add_special_tokens=False)["input_ids"] for option in question.options]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        chances = model(input_ids=ids, attention_mask=mask).logits[:, :-1].double().log_softmax(-1)
    picked = chances.gather(2, ids[:, 1:, None]).squeeze(2)
    return [float(one[len(start) - 1 : len(row) - 1].sum()) for one, row in zip(picked, rows, strict=True)]


def main(root, file, number="100", which=None):
    place = Workspace(Path(root))
    plan = place.read_plan()
    first, _, end = number.rpartition(":")
    questions = read_questions(Path(file), int(end), print).questions[int(first or 0) :]
    path = None if which == "base" else Path(which) if which else place.global_adapter(place.newest_round())
    local = bases.find_for_plan(plan.base, None, None, print)
    language_model.has_bfloat16 = lambda device: False
    lm = language_model.load(local, "cpu", print)
    items = mcq.prepare(lm, plan, questions)
    adapter = gate.read_folder(path, plan).adapter if path else None
    began = time.perf_counter()
    ours = -mcq_scores.measure(lm, adapter, items.texts).nll
    middle = time.perf_counter()
    tokenizer = transformers.AutoTokenizer.from_pretrained(local.folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(local.folder, dtype=lm.dtype)
    if path:
        model = peft.PeftModel.from_pretrained(model, path)
    plain = np.concatenate([direct(model, tokenizer, plan, question) for question in items.questions])
    ended = time.perf_counter()
    lengths = np.array([len(option) for question in items.questions for option in question.options])
    ends = np.cumsum([len(question.options) for question in items.questions])[:-1]
    for who, values in (("fedmed", ours), ("direct", plain)):
        for what, scores in (("sum", values), ("per character", values / lengths)):
            picks = [int(part.argmax()) for part in np.split(scores, ends)]
            hits = sum(pick == question.answer for pick, question in zip(picks, items.questions, strict=True))
            print(f"{which or path}, {who}, {what}: {hits} of {len(picks)} right")
    print(f"largest difference of a log-probability: {np.abs(ours - plain).max():.2e} nats")
    print(f"seconds: {middle - began:.0f} and {ended - middle:.0f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
