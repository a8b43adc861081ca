"""Site-by-label counts of flwr-datasets' DirichletPartitioner over many seeds: python law_flwr.py SEEDS > theirs.json.

Runs in flwr-datasets' own environment. 2,000 rows, labels of sizes 800, 600, 400 and 200, 3 sites, alpha 0.5,
without its self-balancing, which is another law, and with its least size set to ours (a tenth of an equal share).
"""

import json
import sys
from collections import Counter

import datasets
from flwr_datasets.partitioner import DirichletPartitioner

datasets.disable_progress_bars()
labels = ["a"] * 800 + ["b"] * 600 + ["c"] * 400 + ["d"] * 200
data = datasets.Dataset.from_dict({"label": labels})
tables = []
for seed in range(int(sys.argv[1])):
    partitioner = DirichletPartitioner(
        3, "label", 0.5, min_partition_size=67, self_balancing=False, shuffle=False, seed=seed
    )
    partitioner.dataset = data
    counts = [Counter(partitioner.load_partition(i)["label"][:]) for i in range(3)]
    tables.append([[part[label] for label in "abcd"] for part in counts])
print(json.dumps(tables))
