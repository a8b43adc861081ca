"""Multiple-choice accuracy beside a direct computation by transformers and PEFT, one option at a time.

Usage: python benchmarks/compare/direct_choices.py WORKSPACE FILE [questions [ADAPTER]]
Asks the questions that `fedmed compare --choices FILE --max-eval-samples N` asks, of the base and of the newest global
adapter (or of the folder ADAPTER).
"""

import sys
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


def main(root, file, number=100, folder=None):
    place = Workspace(Path(root))
    plan = place.read_plan()
    questions = read_questions(Path(file), int(number), print).questions
    path = Path(folder) if folder else place.global_adapter(place.newest_round())
    local = bases.find_for_plan(plan.base, None, None, print)
    lm = models.load(local, "cpu", print)
    items = choosing.prepare(lm, plan, questions)
    ours = {
        name: continuations.measure(lm, adapter, items.texts).nll
        for name, adapter in (("base", None), ("adapter", adapters.read_folder(path, plan).adapter))
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(local.folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(local.folder, dtype=lm.dtype)
    for name in ours:
        if name == "adapter":
            model = peft.PeftModel.from_pretrained(model, path)
        hits = {"ours": [0, 0], "direct": [0, 0]}
        worst, at = 0.0, 0
        for question in items.questions:
            size = len(question.options)
            lengths = np.array([len(option) for option in question.options])
            both = {
                "ours": -ours[name][at : at + size],
                "direct": np.array([direct(model, tokenizer, plan, question.text, o) for o in question.options]),
            }
            at += size
            worst = max(worst, float(np.abs(both["ours"] - both["direct"]).max()))
            for who, values in both.items():
                hits[who][0] += values.argmax() == question.answer
                hits[who][1] += (values / lengths).argmax() == question.answer
        counts = ", ".join(f"{who} {acc}/{norm}" for who, (acc, norm) in hits.items())
        print(f"{name}: {len(items.questions)} questions, right by sum/per character: {counts}; ", end="")
        print(f"largest difference of a log-probability {worst:.2e} nats")


if __name__ == "__main__":
    main(*sys.argv[1:])
