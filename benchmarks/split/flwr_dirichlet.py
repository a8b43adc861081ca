"""Divide a Parquet or JSONL file with flwr-datasets' DirichletPartitioner and save each part: prints JSON.

Runs in an environment of its own (pip install flwr-datasets==0.6.1): python flwr_dirichlet.py FILE OUT SITES ALPHA.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter

file, out, sites, alpha = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
seed = int(sys.argv[5]) if len(sys.argv) > 5 else 0
# A fresh cache: a second run must not find the work of the first.
cache = tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(out)))
os.environ["HF_DATASETS_CACHE"] = cache.name
os.environ["HF_HUB_OFFLINE"] = "1"
started = time.perf_counter()

import datasets  # noqa: E402
from flwr_datasets.partitioner import DirichletPartitioner  # noqa: E402

datasets.disable_progress_bars()
imported = time.perf_counter()
kind = "parquet" if file.endswith(".parquet") else "json"
data = datasets.load_dataset(kind, data_files=file, split="train")
loaded = time.perf_counter()
partitioner = DirichletPartitioner(sites, "source", alpha, min_partition_size=10, self_balancing=False, seed=seed)
partitioner.dataset = data
parts = [partitioner.load_partition(i) for i in range(sites)]
divided = time.perf_counter()
labels = []
for i, part in enumerate(parts):
    part.save_to_disk(os.path.join(out, str(i)))
saved = time.perf_counter()
for part in parts:
    labels.append(dict(Counter(part["source"][:])))
print(
    json.dumps(
        {
            "seconds": round(saved - started, 2),
            "import_seconds": round(imported - started, 2),
            "load_seconds": round(loaded - imported, 2),
            "divide_seconds": round(divided - loaded, 2),
            "save_seconds": round(saved - divided, 2),
            "rows": sum(map(len, parts)),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "labels": labels,
        }
    )
)
