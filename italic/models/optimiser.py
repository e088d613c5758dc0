"""Muon for the convolutions of the body, AdamW for the rest: one optimiser, one state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW


class Muon(AdamW):
    """AdamW whose first parameter group is updated by Muon instead.

    Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest orthogonal matrix,
    approximated by five Newton-Schulz iterations; a convolution counts as the matrix
    (outputs, inputs·k·k). Updates are scaled to the size of AdamW's (Liu et al. 2025,
    arXiv 2502.16982), 0.2·√max(rows, columns).

    Args:
        matrices: parameters of 2 or more dimensions that Muon updates; may be empty.
        others: parameters that AdamW updates.
        matrix_learning_rate: of Muon.
        learning_rate: of AdamW.
        weight_decay: of AdamW; Muon's matrices are not decayed.
    """

    MOMENTUM = 0.95
    NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        matrix_learning_rate: float,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        groups: list[dict[str, Any]] = [{"params": list(others), "muon": False}]
        matrices = list(matrices)
        if matrices:
            groups.append({"params": matrices, "muon": True, "lr": matrix_learning_rate})
        super().__init__(groups, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        every = self.param_groups
        try:
            self.param_groups = [group for group in every if not group["muon"]]
            super().step()
        finally:
            self.param_groups = every
        for group in every:
            if group["muon"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_matrix(parameter, group["lr"])
        return loss

    def _step_matrix(self, parameter: Tensor, learning_rate: float) -> None:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
            state["step"] = torch.zeros(())  # AdamW looks for one in every state that it loads
        momentum = state["momentum"].lerp_(gradient, 1 - self.MOMENTUM)
        update = orthogonalise(gradient.lerp(momentum, self.MOMENTUM).flatten(1))
        scale = 0.2 * max(update.shape) ** 0.5
        parameter.add_(update.view_as(parameter), alpha=-learning_rate * scale)


def orthogonalise(matrix: Tensor) -> Tensor:
    """UVᵀ of a matrix USVᵀ, to within a factor near 1 in each direction (Newton-Schulz)."""
    a, b, c = Muon.NEWTON_SCHULZ
    x = matrix / (matrix.norm() + 1e-7)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T
