"""Contributions that passed the gate, copied into the round that is being made and read module by module.

However many sites there are, only one module of them is in memory: the copy is ours, so it is read by
offset, without reading a foreign file a second time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from io import FileIO
from pathlib import Path

import numpy as np

from fedmed_cli.adapters.adapter import WEIGHTS_NAME, Factors, tensor_name
from fedmed_cli.adapters.folder import ContributionFolder
from fedmed_cli.adapters.gate_steps import module_and_end
from fedmed_cli.adapters.safetensors import TensorInfo, parse_header, to_float32
from fedmed_cli.aggregation.state import AcceptedContribution
from fedmed_cli.errors import InputError
from fedmed_cli.workspace.durable import write_new


class StagedFactors(Mapping[str, Factors]):
    """The factors of an adapter file in our own folder; each access reads that module from disk."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.tensors, self.start = parse_header(data, len(data), str(path))

    def __getitem__(self, module: str) -> Factors:
        a, b = (self.tensors[tensor_name(module, factor)] for factor in "AB")
        with self.path.open("rb", buffering=0) as file:
            return self._read(file, a), self._read(file, b)

    def _read(self, file: FileIO, info: TensorInfo) -> np.ndarray:
        file.seek(self.start + info.start)
        data = file.read(info.end - info.start)
        if len(data) != info.end - info.start:
            raise InputError(f"{self.path}: became shorter while it was in use")
        return to_float32(memoryview(data), info)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({module_and_end(name)[0] for name in self.tensors}))

    def __len__(self) -> int:
        return len(self.tensors) // 2


def stage(folder: ContributionFolder, target: Path) -> AcceptedContribution:
    """Copy a contribution to `target` as it was read by the gate, and let go of its weights."""
    target.mkdir(parents=True)
    for name, data in folder.files.items():
        write_new(target / name, data)
    factors = StagedFactors(target / WEIGHTS_NAME, folder.files[WEIGHTS_NAME])
    return AcceptedContribution(replace(folder.adapter, factors=factors), folder.record, folder.record_digest)
