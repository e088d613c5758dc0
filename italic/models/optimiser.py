"""Optimisers. Their first argument are the named parameters of a network, as in `torch.optim`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import AdamW

from italic.errors import SettingError, check_range

ITERATIONS = 5  # number of Newton-Schulz iterations


class Muon(AdamW):
    """Muon for the matrices of a network's body, AdamW for all other parameters.

    Muon (Jordan et al. 2024) replaces the momentum of a matrix by the nearest orthogonal matrix,
    approximated by five Newton-Schulz iterations. The weight of a convolution is treated as a
    matrix (outputs, inputs·k·k). Updates are scaled by 0.2·√max(rows, columns), which gives them
    the magnitude of AdamW's updates (Liu et al. 2025, arXiv 2502.16982). Momenta have the type of
    the parameters. The iterations run in bfloat16 where that is faster.

    The body consists of the modules named `groups` or `body`. Its matrices are the weights with 2
    or more dimensions.

    Args:
        parameters: the named parameters of the network.
        learning_rate: learning rate of AdamW.
        body_learning_rate: learning rate of Muon; 0 for AdamW for all parameters.
        weight_decay: weight decay of AdamW.
        body_weight_decay: weight decay of Muon.

    Raises:
        SettingError: a number is below 0 or not finite.
    """

    MOMENTUM = 0.95
    NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)

    def __init__(
        self,
        parameters: Iterable[tuple[str, Tensor]],
        learning_rate: float = 1e-3,
        body_learning_rate: float = 1.5e-3,
        weight_decay: float = 0.01,
        body_weight_decay: float = 0.0,
    ) -> None:
        check_range("optimiser.learning_rate", learning_rate, 0)
        check_range("optimiser.body_learning_rate", body_learning_rate, 0)
        check_range("optimiser.weight_decay", weight_decay, 0)
        check_range("optimiser.body_weight_decay", body_weight_decay, 0)
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for name, parameter in parameters:
            in_body = parameter.ndim >= 2 and {"groups", "body"} & set(name.split("."))
            (matrices if in_body and body_learning_rate else others).append(parameter)
        groups: list[dict[str, Any]] = [{"params": others, "muon": False}]
        if matrices:
            body = {"lr": body_learning_rate, "weight_decay": body_weight_decay}
            groups.append({"params": matrices, "muon": True, **body})
        super().__init__(groups, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        by_shape[parameter.shape].append(parameter)
                for parameters in by_shape.values():
                    self._step_matrices(parameters, group["lr"], group["weight_decay"])
        return loss

    def _step_matrices(
        self, parameters: list[Tensor], learning_rate: float, weight_decay: float
    ) -> None:
        """Update matrices of the same shape as one batch."""
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(gradient)
                state["step"] = torch.zeros(())  # AdamW expects it in every state that it loads
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - self.MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, self.MOMENTUM)
        dtype = torch.bfloat16 if multiplies_bfloat16(ahead[0].device) else ahead[0].dtype
        matrices = torch.stack([matrix.flatten(1).to(dtype) for matrix in ahead])
        updates = orthogonalise(matrices).to(ahead[0].dtype)
        scale = 0.2 * max(updates.shape[1:]) ** 0.5
        updates = updates.view(-1, *parameters[0].shape)
        torch._foreach_mul_(parameters, 1 - learning_rate * weight_decay)
        torch._foreach_add_(parameters, updates.unbind(), alpha=-learning_rate * scale)


class Adam(torch.optim.Adam):
    """Adam (Kingma & Ba 2015), the optimiser of the original ITALIC.

    Args:
        parameters: the named parameters of the network.
        learning_rate: learning rate.
        betas: decay of the averages of gradients and of their squares.
        eps: number added to the root of the average of squares.

    Raises:
        SettingError: a number is out of range.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, Tensor]],
        learning_rate: float = 1e-4,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        check_range("optimiser.learning_rate", learning_rate, 0)
        check_range("optimiser.eps", eps, 0)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise SettingError(
                f"optimiser.betas must be 2 numbers from 0 to below 1; got {list(betas)}"
            )
        super().__init__(parameters, lr=learning_rate, betas=(betas[0], betas[1]), eps=eps)


@cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has hardware for bfloat16 products, which are faster than float32 ones.

    GPUs since Ampere and CPUs with AMX or AVX-512-BF16 have it. Other devices emulate bfloat16.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def orthogonalise(matrices: Tensor) -> Tensor:
    """Approximate UVᵀ of each matrix USVᵀ by Newton-Schulz iterations: singular values near 1.

    Each iteration is X ← PX with P = aI + bG + cG² and G = XXᵀ. If X is at least twice as wide as
    high, the update G ← PGP is cheaper: all products except the first and the last one are then
    products of small square matrices. It is not used in bfloat16, because G would accumulate
    rounding errors.

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
