"""A round of three hospitals from Python, as in a notebook: python examples/api.py [FOLDER [BASE]]

It makes three hospitals out of the bundled corpus, trains each for a few steps, combines, and compares. Each `# %%`
begins a cell. The commands of fedmed call the same functions.
"""

# %%
import sys
import tempfile
from pathlib import Path

import fedmed_cli as fedmed

arguments = sys.argv[1:] if not hasattr(sys, "ps1") else []
folder = Path(arguments[0]) if arguments else Path(tempfile.mkdtemp(prefix="fedmed-"))
base_name = arguments[1] if len(arguments) > 1 else None
place = fedmed.Workspace(folder)

# %% Three unlike hospitals, and the plan that they agree on
source = fedmed.Source(["corpus"], limit=600)
options = fedmed.SplitOptions(names=("A", "B", "C"), method="dirichlet", alpha=0.5)
made = fedmed.split(place, source, options, fedmed.PlanOptions(base=base_name, max_steps=4))
for name, counts in made.record.sites.items():
    print(f"{name}: {counts.train} training examples")

# %% Each hospital trains on its own examples; the base model is loaded once
base = fedmed.BaseModel(base_name, say=print)
for name in made.plan.sites.names:
    record = fedmed.train_site(place, name, base=base).record
    before, after = record.validation_before, record.validation_after
    print(f"{name}: loss {before.mean:.4f} before, {after.mean:.4f} after, {record.adapter_bytes:,} bytes to send")

# %% The coordinator combines the contributions
result = fedmed.aggregate(place, base=base)
for name, decision in result.record.sites.items():
    print(f"{name}: weight {decision.weight:.3f}, {decision.verdict}")

# %% Did it help? On examples that nobody trained on or chose weights with
comparison = fedmed.compare(place, fedmed.CompareOptions(max_eval_samples=30, answers=False), base=base).record
change = comparison.scores["global"]["overall"].against_base
print(f"global against base: {change.mean:+.4f} nats per answer token, 95 % [{change.low:+.4f}, {change.high:+.4f}]")

# %% One HTML file of all that
print(f"open {fedmed.report(place).path}")

# %% The result is a PEFT adapter
adapter = fedmed.read_adapter(result.path, made.plan).adapter
print(f"{len(adapter.factors)} modules of rank {adapter.r}, in {result.path}")
