"""Rounding of weights one after another, each making up for the error so far.

GPTQ, Frantar et al. 2022, arXiv 2210.17323.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DAMPING = 1e-4  # of the patches' mean variance, lest directions without any be unbounded


def compensated(
    wanted: Tensor, units: Tensor, covariance: Tensor, limit: float = math.inf
) -> Tensor:
    """Rows rounded to multiples of their units so that (wanted − rounded) · patch is small.

    Args:
        wanted: float64 (n, m).
        units: float64 (n,).
        covariance: float64 (m, m), of the patches.
        limit: the most units of a number, either sign.

    Returns:
        float64 (n, m).
    """
    diagonal = covariance.diagonal()
    order = diagonal.argsort(descending=True)
    factor = _factor_of_inverse(covariance[order][:, order])
    left = wanted[:, order]
    for column in range(left.shape[1]):
        exactly = left[:, column].clone()
        left[:, column] = (exactly / units).round().clamp(-limit, limit) * units
        error = (exactly - left[:, column]) / factor[column, column]
        left[:, column + 1 :] -= torch.outer(error, factor[column, column + 1 :])
    rounded = torch.empty_like(left)
    rounded[:, order] = left
    return rounded


def _factor_of_inverse(covariance: Tensor) -> Tensor:
    """Upper triangular U with UᵀU = C⁻¹, of C damped until it is safely positive: (m, m)."""
    damping = DAMPING * float(covariance.diagonal().mean()) + 1e-30
    identity = torch.eye(len(covariance), dtype=covariance.dtype)
    while True:
        # C = RRᵀ with R upper triangular: Cholesky's factor, rows and columns reversed.
        damped = (covariance + damping * identity).flip(0, 1)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return torch.linalg.solve_triangular(factor.flip(0, 1), identity, upper=True)
        damping *= 10
