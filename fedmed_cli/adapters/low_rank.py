"""Factor-space algebra: weighted sums of low-rank products without ever building them densely.

A module's matrix is held as (L, T) with L: (out, R) and T: (R, in); it stands for L·T. All in float64.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from fedmed_cli.adapters.adapter import Adapter, Factors
from fedmed_cli.errors import CombineError
from fedmed_cli.records.lora import rescaled, unlike

Product = tuple[np.ndarray, np.ndarray]

ZERO_COEFFICIENT = 1e-12
ZERO_SINGULAR_VALUE = 1e-7
# The least diagonal entry of the Cholesky factor of unit columns. The error of one pass grows with its inverse
# square: 1e-10 at 1e-3, far below float32, in which the result is stored.
_ONE_PASS_ABOVE = 1e-3
_TWO_PASSES_ABOVE = 1e-5


def thin_qr(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Q: (rows, columns), C and R: (columns, columns) with matrix = Q·C·R and orthonormal columns in Q·C.

    Cholesky QR, ten times faster than Householder on tall matrices: one pass where the columns are far from
    dependent, two (CholeskyQR2, Yamamoto et al., 2015) where they are less so, Householder where they are
    nearly dependent. The product Q·C is left to the caller, who may need few of its columns.
    """
    rows, columns = matrix.shape
    if rows >= columns > 0:
        gram = matrix.T @ matrix
        scale = np.sqrt(np.diag(gram))
        if scale.min() > 0:
            try:
                first = np.linalg.cholesky(gram / np.outer(scale, scale)).T
                smallest = np.diag(first).min()
                if smallest > _TWO_PASSES_ABOVE:
                    c, r = np.linalg.inv(first) / scale[:, None], first * scale
                    if smallest > _ONE_PASS_ABOVE:
                        return matrix, c, r
                    q = matrix @ c
                    second = np.linalg.cholesky(q.T @ q).T
                    return q, np.linalg.inv(second), second @ r
            except np.linalg.LinAlgError:
                pass
    q, r = np.linalg.qr(matrix)
    return q, np.eye(len(r)), r


def decompose(product: Product, rank: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The thin SVD of L·T: U: (out, rank), S: (R,), Vt: (rank, in); L·T is built only where R reaches min(out, in).

    All singular values are returned, the vectors of the first `rank` (default: all). Each column of U has its
    largest entry positive, so that factors agree between machines up to rounding.
    """
    left, right = product
    if left.shape[1] == min(left.shape[0], right.shape[1]):  # nothing is smaller than the matrix itself
        u, s, vt = np.linalg.svd(left @ right, full_matrices=False)
        u, vt = u[:, :rank], vt[:rank]
    else:
        q_left, c_left, r_left = thin_qr(left)
        q_right, c_right, r_right = thin_qr(right.T)
        u, s, vt = np.linalg.svd(r_left @ r_right.T, full_matrices=False)
        u, vt = q_left @ (c_left @ u[:, :rank]), (vt[:rank] @ c_right.T) @ q_right.T
    signs = np.sign(u[np.abs(u).argmax(axis=0), np.arange(u.shape[1])])
    signs[signs == 0] = 1
    return u * signs, s, vt * signs[:, None]


def weighted_product(
    module: str,
    parent: Adapter,
    adapters: Sequence[Adapter],
    coefficients: Sequence[float],
    momentum: tuple[float, Adapter] | None = None,
) -> Product:
    """G + Σ coefficient_i·D_i for one module, with D_i = s_i·B_i·A_i − G cut to the rank of site i.

    `coefficients` are η·w_i·γ_i. Component j of G keeps the factor 1 − Σ over the sites whose rank reaches
    j, so that sites of low rank do not shrink the rest. `momentum` (β, the adapter before G) adds
    β·(G − G_before) (Polyak, 1964). Once the stacked rank would pass min(out, in), the sum goes on densely,
    so that it takes the memory of one module however many sites there are.
    """
    a_parent, b_parent = parent.factors[module]
    ranks = [adapter.rank(module) for adapter in adapters]
    remaining = np.array(
        [
            1 - math.fsum(c for c, rank in zip(coefficients, ranks, strict=True) if rank > j)
            for j in range(len(a_parent))
        ]
    )
    if momentum is not None:
        remaining += momentum[0]
    remaining[np.abs(remaining) < ZERO_COEFFICIENT] = 0
    alive = (remaining != 0) & b_parent.any(axis=0)
    total = _Sum(b_parent.shape[0], a_parent.shape[1])
    total.add(b_parent[:, alive], a_parent[alive], parent.scale(module) * remaining[alive])
    if momentum is not None:
        a, b = momentum[1].factors[module]
        total.add(b, a, -momentum[0] * momentum[1].scale(module))
    for coefficient, adapter in zip(coefficients, adapters, strict=True):
        if coefficient != 0:
            a, b = adapter.factors[module]
            total.add(b, a, coefficient * adapter.scale(module))
    return total.product()


def _stack(parts: Sequence[tuple[np.ndarray, np.ndarray, float | np.ndarray]]) -> Product:
    """The sum of scale·left·right over `parts`, side by side and in float64."""
    ends = np.cumsum([len(right) for _, right, _ in parts])
    left = np.empty((len(parts[0][0]), ends[-1]))
    right = np.empty((ends[-1], parts[0][1].shape[1]))
    scales = np.empty(ends[-1])
    for end, (part_left, part_right, scale) in zip(ends, parts, strict=True):
        columns = slice(end - len(part_right), end)
        left[:, columns], right[columns], scales[columns] = part_left, part_right, scale
    left *= scales
    return left, right


class _Sum:
    """A sum of low-rank products: stacked while its rank is at most min(out, in), dense from then on.

    To the dense matrix they are added in blocks of about that rank, so that it is not gone through for each.
    """

    def __init__(self, size_out: int, size_in: int) -> None:
        self.largest = min(size_out, size_in)
        self.parts: list[tuple[np.ndarray, np.ndarray, float | np.ndarray]] = []
        self.rank = 0
        self.dense: np.ndarray | None = None

    def add(self, left: np.ndarray, right: np.ndarray, scale: float | np.ndarray) -> None:
        """Add scale·left·right; left: (out, r), right: (r, in), scale: a number or (r,)."""
        self.parts.append((left, right, scale))
        self.rank += len(right)
        if self.rank > self.largest:
            self._flush()

    def _flush(self) -> None:
        left, right = _stack(self.parts)
        if self.dense is None:
            self.dense = left @ right
        else:
            self.dense += left @ right
        self.parts, self.rank = [], 0

    def product(self) -> Product:
        if self.dense is None:
            return _stack(self.parts)
        if self.parts:
            self._flush()
        size_out, size_in = self.dense.shape
        return (self.dense, np.eye(size_in)) if size_in <= size_out else (np.eye(size_out), self.dense)


def truncate(product: Product, r: int, scaling: float, initial_a: np.ndarray) -> tuple[Factors, float, float]:
    """The best rank-r adapter of L·T (Eckart-Young) as (A: (r, in), B: (out, r)) in float32.

    Each component has its singular value divided between its row of A and its column of B so that ‖row‖² − ‖column‖²
    is what it was in the plan's initial adapter (B = 0). Gradient descent in small steps nearly keeps that difference
    (Du, Hu and Lee, arXiv 1806.00900), AdamW need not: small components learn on as fast as they began, and what B
    holds of the large ones does not make the steps of A longer and longer (docs/learning.md).
    Components that fell to zero get B = 0 and the initial row of A, orthogonalised against the rest, so that they can
    learn again. Returns the factors, ‖what was cut‖² and ‖L·T‖².
    """
    left = product[0]
    a, b = initial_a.astype(np.float64), np.zeros((len(left), r))
    norms = np.linalg.norm(a, axis=1)
    total = cut = 0.0
    if left.shape[1]:
        u, s, vt = decompose(product, r)
        total, cut = float(np.sum(s**2)), float(np.sum(s[r:] ** 2))
        alive = int(np.sum(s[:r] > ZERO_SINGULAR_VALUE * s[0])) if s[0] > 0 else 0
        initial, sizes = norms[:alive] ** 2, s[:alive] / scaling
        rows = np.sqrt((initial + np.sqrt(initial**2 + 4 * sizes**2)) / 2)
        a[:alive] = rows[:, None] * vt[:alive]
        b[:, :alive] = u[:, :alive] * (sizes / rows)
        if alive:
            _orthogonalise(a, alive)
    return (a.astype(np.float32), b.astype(np.float32)), cut, total


def _orthogonalise(a: np.ndarray, first: int) -> None:
    """Orthogonalise the rows of `a` from `first` on against all before them, in place, their norms kept."""
    for j in range(first, len(a)):
        basis = a[:j] / np.linalg.norm(a[:j], axis=1)[:, None]
        row, norm = a[j], np.linalg.norm(a[j])
        for _ in range(2):  # once more for the rounding of the first pass
            row = row - (basis @ row) @ basis
        length = np.linalg.norm(row)
        if length > 1e-6 * norm:
            a[j] = row * (norm / length)


def gram_of_innovations(parent: Adapter, adapters: Sequence[Adapter]) -> np.ndarray:
    """K: (sites, sites) with K_ij = ⟨D_i, D_j⟩ over all modules together, only from the factors.

    For each module stack [−s_G·B_G, s_1·B_1, …] and [A_G; A_1; …]; the entries of (LᵀL)∘(TTᵀ), summed over
    the blocks that belong to D_i and D_j, are their inner product.
    """
    result = np.zeros((len(adapters), len(adapters)))
    for module in sorted(parent.factors):
        a, b = parent.factors[module]
        rows = slice(None) if b.any() else slice(0)  # the plan's initial adapter adds nothing
        parts = [(b[:, rows], a[rows], parent.scale(module))]
        for adapter in adapters:
            a, b = adapter.factors[module]
            parts.append((b, a, adapter.scale(module)))
        ends = np.cumsum([len(a) for _, a, _ in parts])
        select = np.zeros((len(adapters), int(ends[-1])))
        for i in range(len(adapters)):
            rank = int(ends[i + 1] - ends[i])
            select[i, : min(int(ends[0]), rank)] = -1
            select[i, ends[i] : ends[i + 1]] = 1
        left, right = _stack(parts)
        result += select @ ((left.T @ left) * (right @ right.T)) @ select.T
    return result


def cut_to_rank(adapter: Adapter, r: int) -> Adapter:
    """At most `r` components of each module, at the same scaling: where a site of a lower rank starts."""
    if r >= adapter.max_rank:
        return adapter
    factors = {module: (a[:r], b[:, :r]) for module, (a, b) in adapter.factors.items()}
    new_r = min(r, adapter.r)
    alpha = rescaled(adapter.alpha, adapter.r, new_r, adapter.use_rslora)
    ranks = {module: min(r, adapter.rank(module)) for module in factors}
    alphas = {
        module: rescaled(adapter.alpha_of(module), adapter.rank(module), rank, adapter.use_rslora)
        for module, rank in ranks.items()
    }
    return dataclasses.replace(
        adapter, r=new_r, alpha=alpha, factors=factors, ranks=unlike(ranks, new_r), alphas=unlike(alphas, alpha)
    )


def update_norm(parent: Adapter, adapter: Adapter) -> float:
    """‖s·B·A − G‖ over all modules together: how far an adapter moved from where it started."""
    return math.sqrt(max(0.0, float(gram_of_innovations(parent, [adapter])[0, 0])))


@dataclasses.dataclass(frozen=True)
class Relation:
    """Two adapters' products s·B·A over all modules together: their norms, that of their difference, their cosine."""

    first_norm: float
    second_norm: float
    difference_norm: float
    cosine: float

    @property
    def relative_difference(self) -> float:
        """The norm of the difference by the larger of the two norms; 0 where both are 0."""
        largest = max(self.first_norm, self.second_norm)
        return self.difference_norm / largest if largest > 0 else 0.0


def relate(first: Adapter, second: Adapter) -> Relation:
    """How two adapters are related; CombineError unless they adapt modules of the same names and shapes."""
    for module in sorted(set(first.factors) ^ set(second.factors)):
        raise CombineError(f"only one of the two adapters adapts {module}")
    inner = squared_first = squared_second = squared_difference = 0.0
    for module in first.factors:
        (left1, right1), (left2, right2) = (_to_product(adapter, module) for adapter in (first, second))
        if left1.shape[0] != left2.shape[0] or right1.shape[1] != right2.shape[1]:
            raise CombineError(
                f"{module} is {left1.shape[0]} x {right1.shape[1]} in the first adapter, "
                f"{left2.shape[0]} x {right2.shape[1]} in the second"
            )
        inner += float(np.sum((left1.T @ left2) * (right1 @ right2.T)))
        squared_first += squared_norm((left1, right1))
        squared_second += squared_norm((left2, right2))
        squared_difference += squared_norm((np.hstack([left1, -left2]), np.vstack([right1, right2])))
    norms = math.sqrt(squared_first), math.sqrt(squared_second)
    cosine = inner / (norms[0] * norms[1]) if min(norms) > 0 else 0.0
    return Relation(*norms, math.sqrt(squared_difference), cosine)


def _to_product(adapter: Adapter, module: str) -> Product:
    a, b = adapter.factors[module]
    return b.astype(np.float64) * adapter.scale(module), a.astype(np.float64)


def squared_norm(product: Product) -> float:
    """The squared Frobenius norm of L·T."""
    left, right = product
    return max(0.0, float(np.sum((left.T @ left) * (right @ right.T))))
