"""Muon for the matrices of the body, AdamW for the rest: one optimiser, one state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import AdamW

ITERATIONS = 5  # of Newton-Schulz


class Muon(AdamW):
    """AdamW whose matrices are updated by Muon instead.

    Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest orthogonal matrix,
    approximated by five Newton-Schulz iterations; a convolution counts as the matrix
    (outputs, inputs·k·k). Updates are scaled to the size of AdamW's (Liu et al. 2025,
    arXiv 2502.16982), 0.2·√max(rows, columns). Momenta stay in the parameters' type; the
    iterations run in bfloat16 where that is faster.

    Args:
        matrices: parameters of 2 or more dimensions that Muon updates, weights of linear layers
            or convolutions; may be empty.
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
                alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        alike[parameter.shape].append(parameter)
                for parameters in alike.values():
                    self._step_matrices(parameters, group["lr"])
        return loss

    def _step_matrices(self, parameters: list[Tensor], learning_rate: float) -> None:
        """Update matrices of one shape, all at once."""
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(gradient)
                state["step"] = torch.zeros(())  # AdamW looks for one in every state that it loads
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - self.MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, self.MOMENTUM)
        dtype = torch.bfloat16 if multiplies_bfloat16(ahead[0].device) else ahead[0].dtype
        matrices = torch.stack([matrix.flatten(1).to(dtype) for matrix in ahead])
        updates = orthogonalise(matrices).to(ahead[0].dtype)
        scale = 0.2 * max(updates.shape[1:]) ** 0.5
        updates = updates.view(-1, *parameters[0].shape)
        torch._foreach_add_(parameters, updates.unbind(), alpha=-learning_rate * scale)


@cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device computes products in bfloat16, faster than in float32.

    GPUs from Ampere on do, and processors with AMX or AVX-512-BF16; others emulate them.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def orthogonalise(matrices: Tensor) -> Tensor:
    """UVᵀ of each matrix USVᵀ, to within a factor near 1 in each direction (Newton-Schulz).

    Each iteration is X ← PX with P = aI + bG + cG² of G = XXᵀ. With G ← PGP, all but the first and
    the last product is one of small square matrices, which is less work if X is twice as wide as
    high; but G would collect the rounding of bfloat16.

    Args:
        matrices: float (..., M, N).

    Returns:
        The same shape and type.
    """
    shape = matrices.shape
    x = matrices.reshape(-1, *shape[-2:])
    wide = shape[-2] <= shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if x.shape[-1] < 2 * x.shape[-2] or x.dtype == torch.bfloat16:
        for _ in range(ITERATIONS):
            x = _polynomial(x @ x.mT) @ x
    else:
        gram = x @ x.mT
        product = factor = _polynomial(gram)
        for _ in range(ITERATIONS - 1):
            gram = factor @ gram @ factor
            factor = _polynomial(gram)
            product = factor @ product
        x = product @ x
    return (x if wide else x.mT).reshape(shape)


def _polynomial(gram: Tensor) -> Tensor:
    """P = aI + bG + cG² of symmetric matrices G (n, M, M)."""
    a, b, c = Muon.NEWTON_SCHULZ
    result = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    result.diagonal(dim1=-2, dim2=-1).add_(a)
    return result
