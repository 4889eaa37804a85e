"""The rules that lxt_fx.nn puts around a module or function, each with its slow loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import slow_references as slow
import torch
import torch.nn.functional as F
from slow_references import Reference
from torch import Tensor, nn

import lxt_fx


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A rule around a function of inputs of these shapes. `make` gives the module."""

    formula: str
    source: str
    make: Callable[[], nn.Module]
    function: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    reference: Reference


def mixed(x: Tensor) -> Tensor:
    """A function that is not linear, not elementwise and not 0 at 0."""
    return torch.tanh(x.cumsum(-1) / 2 + 0.25)


ATTNLRP = "AttnLRP (Achtibat et al. 2024)"

WRAPPERS: Mapping[str, tuple[Wrapper, ...]] = {
    "nn.Epsilon": (
        Wrapper(
            "R_i = x_i sum_j J_ji R_j / z_j, J the module's Jacobian", f"{ATTNLRP} eq. 8",
            partial(lxt_fx.nn.Epsilon, mixed), mixed, ((2, 3, 4),), slow.by_gradient,
        ),
        Wrapper(
            "R_i = x_i sum_j J_ji R_j / z_j, J the module's Jacobian", f"{ATTNLRP} eq. 8",
            partial(lxt_fx.nn.Epsilon, torch.matmul), torch.matmul, ((2, 3, 4), (2, 4, 5)), slow.by_gradient,
        ),
    ),
    "nn.UniformEpsilon": (
        Wrapper(
            "1/n to each of n inputs, then as nn.Epsilon", f"{ATTNLRP} prop. 3.3",
            partial(lxt_fx.nn.UniformEpsilon, torch.matmul), torch.matmul, ((2, 3, 4), (2, 4, 5)),
            slow.contraction("bij,bjk->bik"),
        ),
    ),
    "nn.Uniform": (
        Wrapper(
            "R / n to each of n inputs", f"{ATTNLRP} prop. 3.2", partial(lxt_fx.nn.Uniform, torch.mul), torch.mul,
            ((2, 3, 4), (3, 1)), slow.uniform,
        ),
    ),
    "nn.Identity": (
        Wrapper(
            "R_in = R_out", f"{ATTNLRP} eq. 9", partial(lxt_fx.nn.Identity, F.silu), F.silu, ((2, 3, 4),), slow.same,
        ),
    ),
    "nn.Stop": (
        Wrapper("R_in = 0", "what LXT does", partial(lxt_fx.nn.Stop, F.silu), F.silu, ((2, 3, 4),), slow.nothing),
    ),
    "nn.Taylor": tuple(
        Wrapper(
            "R_i = (x - x0)_i sum_j J_ji R_j / z_j, J at x0", "Deep Taylor decomposition (Montavon et al. 2017)",
            partial(lxt_fx.nn.Taylor, mixed, 0.25, bias=bias), mixed, ((2, 3),), slow.taylor(0.25, bias),
        )
        for bias in (True, False)
    ),
}  # fmt: skip
"""By the name that a table prints."""
