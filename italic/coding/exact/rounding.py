"""Sequential rounding of weights, each one compensating for the errors of the earlier ones.

Weights are rows of a matrix that is multiplied with patches of a layer's input.
The method is GPTQ, Frantar et al. 2022, arXiv 2210.17323.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Relative to the mean variance of the patches. Without damping, the result is unbounded in
# directions without variance.
DAMPING = 1e-4
PATCHES = 4096  # patches per call of a layer for the moments; more change little


class Moments:
    """Means of p pᵀ, where p is an input patch of m values followed by 1."""

    def __init__(self) -> None:
        self.sums: Tensor = torch.zeros((), dtype=torch.float64)
        self.patches = 0

    def add(self, patches: Tensor) -> None:
        """Add patches of one call, (n, m); of many, only some are used."""
        rows = F.pad(patches[:: -(-len(patches) // PATCHES)], (0, 1), value=1.0)
        self.sums = self.sums + (rows.T @ rows).double().cpu()
        self.patches += len(rows)

    def mean(self) -> Tensor:
        """The means, float64 (m + 1, m + 1)."""
        return self.sums / self.patches


def rows_of(layer: nn.Module, weight: Tensor) -> Tensor:
    """Weights of a layer as a matrix; the rows of an output channel are adjacent."""
    if isinstance(layer, nn.ConvTranspose2d):
        return weight.permute(1, 2, 3, 0).flatten(0, 2)
    return weight.flatten(1)


def weight_of(layer: nn.Module, rows: Tensor) -> Tensor:
    """Invert `rows_of`: the matrix in the shape of the layer's weights."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.ConvTranspose2d):
        inputs, outputs, *kernel = weight.shape
        return rows.view(outputs, *kernel, inputs).permute(3, 0, 1, 2)
    return rows.view_as(weight)


def round_compensated(
    weights: Tensor, scales: Tensor, covariance: Tensor, limit: float = math.inf
) -> Tensor:
    """Round rows of weights to multiples of their scales; keep (weights − rounded) · patch small.

    Args:
        weights: float64 (n, m).
        scales: float64 (n,), scale of each row.
        covariance: float64 (m, m), covariance of the input patches.
        limit: largest absolute value of the integers.

    Returns:
        float64 (n, m), integers times their scales.
    """
    diagonal = covariance.diagonal()
    order = diagonal.argsort(descending=True)
    factor = _factor_of_inverse(covariance[order][:, order])
    columns = weights[:, order]
    for column in range(columns.shape[1]):
        unrounded = columns[:, column].clone()
        columns[:, column] = (unrounded / scales).round().clamp(-limit, limit) * scales
        error = (unrounded - columns[:, column]) / factor[column, column]
        columns[:, column + 1 :] -= torch.outer(error, factor[column, column + 1 :])
    rounded = torch.empty_like(columns)
    rounded[:, order] = columns
    return rounded


def _factor_of_inverse(covariance: Tensor) -> Tensor:
    """Upper triangular U with UᵀU = C⁻¹, (m, m); C is damped until it is positive definite."""
    damping = DAMPING * float(covariance.diagonal().mean()) + 1e-30
    identity = torch.eye(len(covariance), dtype=covariance.dtype)
    while True:
        # C = RRᵀ with R upper triangular: the Cholesky factor of the matrix with reversed rows and
        # columns.
        damped = (covariance + damping * identity).flip(0, 1)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return torch.linalg.solve_triangular(factor.flip(0, 1), identity, upper=True)
        damping *= 10
