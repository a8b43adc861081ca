"""DP-SGD (Abadi et al. 2016): steps whose gradient depends little on any one unit of privacy."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.models.loss import nll_per_example
from fedmed_cli.models.prompts import Encoded
from fedmed_cli.models.unit_gradients import UnitGradients, unit_gradients
from fedmed_cli.training.options import TrainingOptions
from fedmed_cli.training.passes import passes_of_step

UNITS_AT_ONCE = 16  # whose gradients are held; a unit of the embedded base takes 1.84 MB

Unit = tuple[Encoded, ...]


@dataclass(frozen=True)
class PrivateSteps:
    """How a step is made: every unit is drawn with probability `sampling_rate`, independently (Poisson sampling).

    A unit is all examples of one person, or one example; its loss is the mean over its own answer tokens, so that no
    other unit changes it. Its gradient, all factors together, is shortened to `max_grad_norm`. To the sum comes normal
    noise of standard deviation `noise_multiplier * max_grad_norm`, and the whole is divided by the expected number of
    units. Draws and noise come from the operating system, never from the plan's seed: whoever knew them could take the
    noise off. A run that goes on after a kill draws anew, so that no noise is used for two sums.
    """

    units: tuple[Unit, ...]
    sampling_rate: float
    noise_multiplier: float
    max_grad_norm: float

    @property
    def expected_units(self) -> float:
        return self.sampling_rate * len(self.units)

    def draw(self) -> list[Unit]:
        """The units of a step."""
        drawn = _uniform(len(self.units)) < self.sampling_rate
        return [self.units[index] for index in np.flatnonzero(drawn)]

    def add_gradients(
        self,
        lm: LanguageModel,
        parameters: Sequence[torch.nn.Parameter],
        drawn: Sequence[Unit],
        options: TrainingOptions,
    ) -> float:
        """Give the parameters their noised gradient; returns the mean loss of the drawn units (0 where none is).

        The loss is not noised: it may be shown where the records are, and nowhere else.
        """
        total, loss = clipped_sum(lm, parameters, drawn, self.max_grad_norm, options)
        noise = torch.from_numpy(_normal(len(total))).to(total.device, total.dtype)
        total.add_(noise, alpha=self.noise_multiplier * self.max_grad_norm).div_(self.expected_units)
        start = 0
        for parameter in parameters:
            parameter.grad = total[start : start + parameter.numel()].view(parameter.shape)
            start += parameter.numel()
        return loss


def clipped_sum(
    lm: LanguageModel,
    parameters: Sequence[torch.nn.Parameter],
    drawn: Sequence[Unit],
    max_norm: float,
    options: TrainingOptions,
) -> tuple[torch.Tensor, float]:
    """The sum of the units' gradients, each shortened to `max_norm`, flat (parameters,); and their mean loss."""
    ordered = sorted(drawn, key=lambda unit: max(len(example.ids) for example in unit), reverse=True)
    total, losses = torch.zeros(sum(parameter.numel() for parameter in parameters), device=lm.device), 0.0
    with unit_gradients(lm, parameters, min(UNITS_AT_ONCE, len(drawn))) as gradients:
        for start in range(0, len(ordered), UNITS_AT_ONCE):
            part = ordered[start : start + UNITS_AT_ONCE]
            losses += _add_units(lm, gradients, part, options)
            rows = gradients.rows[: len(part)]
            norms = torch.linalg.vector_norm(rows, dim=1)
            if not bool(torch.isfinite(norms).all()):  # noise would not hide it
                return total, math.nan
            total.addmv_(rows.T, (max_norm / norms.clamp(min=max_norm)))
            rows.zero_()
    return total, losses / len(drawn) if drawn else 0.0


def _add_units(lm: LanguageModel, gradients: UnitGradients, units: Sequence[Unit], options: TrainingOptions) -> float:
    """Fill one row a unit with its gradient; returns the sum of their losses."""
    owner = {id(example): index for index, unit in enumerate(units) for example in unit}
    labels = [sum(example.num_supervised for example in unit) for unit in units]
    total = 0.0
    for batch in passes_of_step(lm, [example for unit in units for example in unit], options):
        rows = [owner[id(example)] for example in batch]
        gradients.begin(lm, batch, rows)
        shares = torch.tensor([1 / labels[row] for row in rows], device=lm.device)
        loss = (nll_per_example(lm, batch) * shares).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _uniform(size: int) -> np.ndarray:
    """Numbers from 0 to 1, 53 bits each, of the operating system's generator: (size,), float64."""
    return (np.frombuffer(os.urandom(8 * size), dtype=np.uint64) >> np.uint64(11)) * 2.0**-53


def _normal(size: int) -> np.ndarray:
    """Standard normal numbers of the operating system's generator: (size,), float64, by Box and Muller.

    Each is the sum of four, halved: the digits of a single one can tell sums apart (Mironov 2012), those of such a sum
    cannot in practice (Holohan and Braghin 2021).
    """
    radius = np.sqrt(-2.0 * np.log1p(-_uniform(2 * size)))
    angle = 2.0 * np.pi * _uniform(2 * size)
    pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    result: np.ndarray = pairs.reshape(4, size).sum(axis=0) / 2
    return result
