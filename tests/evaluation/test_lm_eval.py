"""lm-evaluation-harness on our adapters: the documented command gives the accuracies of `fedmed compare`."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_mcq import as_medqa, direct, make_rows, write

from fedmed_cli.cli.app import main
from fedmed_cli.records.comparison import Comparison

ROOT = Path(__file__).parents[2]
HARNESS = os.environ.get("LM_EVAL") or shutil.which("lm_eval")


def documented_command():
    text = (ROOT / "docs/lm-eval.md").read_text(encoding="utf-8")
    return re.search(r"<!-- the test runs this block -->\n```sh\n(.*?)```", text, re.DOTALL).group(1)


@pytest.mark.skipif(not HARNESS, reason="lm_eval is not installed (set LM_EVAL to its path): the harness was not run")
def test_the_documented_command_gives_our_accuracies(round_workspace, tiny_base, tmp_path):
    rows = [as_medqa(*row) | {"answer": "ABCD"[row[2]]} for row in make_rows(40)]
    path = write(tmp_path / "questions.jsonl", rows)
    root = round_workspace.root
    argv = ["compare", "-q", "--no-answers", "-C", str(root), "--base", str(tiny_base), "--choices", str(path)]
    assert main(argv) == 0
    ours = Comparison.read(root / "reports/compare.json").choices.adapters["global"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PATH": f"{Path(HARNESS).parent}:{os.environ['PATH']}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "BASE": str(tiny_base),
        "ADAPTER": str(round_workspace.global_adapter(1)),
        "SYSTEM": round_workspace.read_plan().prompt.system,
        "TASKS": str(ROOT / "examples/lm_eval"),
    }
    done = subprocess.run(
        ["sh", "-c", documented_command()], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(next((tmp_path / "results").rglob("results_*.json")).read_text())["results"]["fedmed_medmcqa"]
    assert found["acc,none"] == pytest.approx(ours.accuracy.score.mean)
    # The harness counts the line break that ends the chat template's prompt among the tokens of every option. That
    # changes nothing in a sum, but a little where it is divided by the option's length.
    plan, hits = round_workspace.read_plan(), 0
    breaks = line_breaks(tiny_base, round_workspace.global_adapter(1), plan, rows)
    texts, _ = direct(tiny_base, round_workspace.global_adapter(1), make_rows(40), plan)
    for (_, options, answer), values, line_break in zip(make_rows(40), texts, breaks, strict=True):
        hits += np.argmax((values + line_break) / [len(option) for option in options]) == answer
    assert found["acc_norm,none"] == pytest.approx(hits / 40)


def line_breaks(folder, adapter, plan, rows):
    """Log-probability of the last token of each question's prompt, which is a line break."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter)
    found = []
    for row in rows:
        messages = [{"role": "system", "content": plan.prompt.system}, {"role": "user", "content": row["question"]}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert tokenizer.decode(ids[0, -1]) == "\n"
        with torch.no_grad():
            found.append(float(model(ids).logits[0, -2].log_softmax(-1)[ids[0, -1]]))
    return found
