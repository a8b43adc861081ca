"""Multiple-choice accuracy beside a direct computation by transformers and PEFT, one option at a time.

Usage: python benchmarks/compare/direct_choices.py WORKSPACE FILE [questions [base|ADAPTER]]
Asks the questions that `fedmed compare --choices FILE --max-eval-samples N` asks, of the newest global adapter, or of
the base or the folder ADAPTER.
"""

import sys
import time
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

from fedmed_cli import adapters, bases, choosing, continuations, models
from fedmed_cli.choices import read_questions
from fedmed_cli.workspace import Workspace


def direct(model, tokenizer, plan, question, option):
    """Log-probability of an option after the question, by a pass over both."""
    messages = [{"role": "system", "content": plan.prompt.system}, {"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([start + tokenizer(option, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        chances = model(ids).logits[0, :-1].float().log_softmax(-1)
    return float(chances.gather(1, ids[0, 1:, None])[len(start) - 1 :].sum())


def main(root, file, number="100", which=None):
    place = Workspace(Path(root))
    plan = place.read_plan()
    questions = read_questions(Path(file), int(number), print).questions
    path = None if which == "base" else Path(which) if which else place.global_adapter(place.newest_round())
    local = bases.find_for_plan(plan.base, None, None, print)
    lm = models.load(local, "cpu", print)
    items = choosing.prepare(lm, plan, questions)
    adapter = adapters.read_folder(path, plan).adapter if path else None
    began = time.perf_counter()
    ours = -continuations.measure(lm, adapter, items.texts).nll
    middle = time.perf_counter()
    tokenizer = transformers.AutoTokenizer.from_pretrained(local.folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(local.folder, dtype=lm.dtype)
    if path:
        model = peft.PeftModel.from_pretrained(model, path)
    plain = np.array([direct(model, tokenizer, plan, q.text, option) for q in items.questions for option in q.options])
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
