"""Recall and false alarms of the question rules on sets of prompts, by category, with Wilson intervals (95 %).

Usage: python benchmarks/guardrails/evaluate.py FILE [--show]

FILE holds JSON lines with "prompt", "category" and "expect" (urgent, decline, notice or none). A prompt that expects
something counts as found where a finding has that level; one that expects none is a false alarm where there is any
finding. `--show` lists what failed: only for the development half, since prompts that were read are no longer unseen.
"""

import json
import math
import sys
from collections import defaultdict

from fedmed_cli.chat.guardrails.question import check_question


def wilson(hits: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a proportion (Wilson 1927, doi 10.1080/01621459.1927.10502953)."""
    share = hits / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half) / (1 + z * z / total), (middle + half) / (1 + z * z / total)


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
        low, high = wilson(hits, total)
        what = "false alarms" if key.startswith(("harmless", "knowledge", "negation")) else "recall"
        print(f"{key:34} {what:12} {hits:4}/{total:<5} {hits / total:6.1%}  [{low:.1%}, {high:.1%}]")


if __name__ == "__main__":
    main(sys.argv[1], "--show" in sys.argv[2:])
