"""Recall and false alarms of the question rules on sets of prompts, by category, with Wilson intervals (95 %).

Usage: python benchmarks/guardrails/evaluate.py FILE [--show]

FILE holds JSON lines with "prompt", "category" and "expect" (urgent, decline, notice or none). A prompt that expects
something counts as found where a finding has that level; one that expects none is a false alarm where there is any
finding. `--show` lists what failed: only for the development half, since prompts that were read are no longer unseen.
"""

import json
import sys
from collections import defaultdict

from fedmed_cli.chat.guardrails.question import check_question
from fedmed_cli.intervals import wilson


def main(path: str, show: bool) -> None:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    for row in rows:
        findings = check_question(row["prompt"])
        levels = {finding.level.value for finding in findings}
        fine = not findings if row["expect"] == "none" else row["expect"] in levels
        keys = [row["category"]]
        if row["category"] in ("emergency", "crisis"):
            keys.append("emergency and crisis")
        if row["category"] in ("harmless", "knowledge"):
            keys.append("harmless and knowledge")
        if row["category"] in ("harmless", "knowledge", "negation"):
            keys.append("harmless, knowledge and negation")
        for key in keys:
            counts[key][0] += fine if row["expect"] != "none" else not fine
            counts[key][1] += 1
        if show and not fine:
            print(f"  {row['category']}: {row['prompt']} -> {[finding.rule for finding in findings]}")
    print(f"{len(rows)} prompts")
    for key, (hits, total) in counts.items():
        share = wilson(hits, total)
        what = "false alarms" if key.startswith(("harmless", "knowledge", "negation")) else "recall"
        print(f"{key:34} {what:12} {hits:4}/{total:<5} {hits / total:6.1%}  [{share.low:.1%}, {share.high:.1%}]")


if __name__ == "__main__":
    main(sys.argv[1], "--show" in sys.argv[2:])
