"""Do fedmed's label shares follow the law of flwr-datasets' Dirichlet partition? python law.py theirs.json: JSON.

Two-sample Kolmogorov-Smirnov tests over seeds, with what law_flwr.py printed. The p-values are uniform if the
laws are the same; `least_p` is Bonferroni-corrected for the number of tests.
"""

import json
import sys
from pathlib import Path

import numpy as np
from scipy.stats import ks_2samp

from fedmed_cli.data import partition, row_index
from fedmed_cli.data.leakage_groups import number_groups

SIZES = (800, 600, 400, 200)


def ours(seeds: int) -> np.ndarray:
    codes = row_index.Codes(np.repeat(np.arange(4, dtype=np.int32), SIZES), tuple("abcd"))
    groups = number_groups(np.arange(2000, dtype=np.int32), np.arange(2000, dtype=np.uint64))
    tables = []
    for seed in range(seeds):
        home = partition.by_dirichlet(groups, groups.sequence, codes, 3, None, None, 0.5, seed)
        tables.append(np.bincount(home * 4 + codes.codes, minlength=12).reshape(3, 4))
    return np.array(tables)


def statistics(tables: np.ndarray) -> dict[str, np.ndarray]:
    """What is compared for each seed; tables: (seeds, sites, labels)."""
    shares = tables / tables.sum(axis=1, keepdims=True)
    sizes = np.sort(tables.sum(axis=2), axis=1)
    own = tables / tables.sum(axis=2, keepdims=True)
    found = {f"largest share of label {label}": shares[:, :, i].max(axis=1) for i, label in enumerate("abcd")}
    found |= {f"first site's share of label {label}": shares[:, 0, i] for i, label in enumerate("abcd")}
    found |= {"smallest site": sizes[:, 0], "largest site": sizes[:, 2]}
    return found | {"commonest label's share in a site": own.max(axis=2).mean(axis=1)}


theirs = np.array(json.loads(Path(sys.argv[1]).read_text()))
first, second = statistics(ours(len(theirs))), statistics(theirs)
values = {name: round(float(ks_2samp(first[name], second[name]).pvalue), 4) for name in first}
corrected = min(1.0, min(values.values()) * len(values))
print(json.dumps({"seeds": len(theirs), "p_values": values, "least_p": corrected, "same_law": corrected > 0.01}))
