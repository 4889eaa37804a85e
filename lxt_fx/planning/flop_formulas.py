"""Flops of ops that torch's counter does not know: those of lxt_fx, and the kernels that it calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

from lxt_fx.base.torch_internals import aten, onednn_linear
from lxt_fx.ops.head import SPARSE

Formula = Callable[..., int]


def formulas(targets: int, *, skips: bool) -> dict[Any, Formula]:
    """The formulas for `torch.utils.flop_counter.FlopCounterMode(custom_mapping=...)`, by op.

    `targets` is how many positions of the batch have a gradient at the output, each of another entry. `skips` says whether
    positions without a gradient are skipped, as on a CPU: elsewhere reading the values would wait for the device.
    """

    def by_positions(gradient: Any, weight: Any, sparse: bool, **more: Any) -> int:
        positions = min(targets, gradient[0]) if sparse and skips else gradient[0]
        return int(2 * positions * math.prod(weight))

    def by_entries(gradient: Any, weight: Any, **more: Any) -> int:
        if not skips:
            return int(2 * math.prod(gradient) * weight[1])
        positions = min(targets, math.prod(gradient[:-1]))
        entries = min(targets, weight[0])
        return int(2 * positions * (entries if entries * SPARSE < weight[0] else weight[0]) * weight[1])

    ours, experts = torch.ops.lxt_fx, torch.ops.transformers
    known: list[tuple[Any, Formula]] = [
        (getattr(ours, "product", None), by_positions),
        (getattr(ours, "sparse_product", None), by_entries),
        (onednn_linear(), _of_onednn),
        (aten._scaled_dot_product_flash_attention_for_cpu.packet, _attention),
        (aten._scaled_dot_product_flash_attention_for_cpu_backward.packet, _attention_backward),
        (aten.addmm_.packet, _added_in_place),
        (aten._grouped_mm.packet, _by_group),
        (getattr(experts, "grouped_mm_fallback", None), _by_group),
        (getattr(experts, "grouped_mm_fallback_backward", None), _by_group_backward),
    ]
    return {op: formula for op, formula in known if op is not None}


def _attention(query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


def _added_in_place(total: Any, a: Any, b: Any, *rest: Any, **more: Any) -> int:
    return int(2 * math.prod(a) * b[1])


def _of_onednn(a: Any, b: Any, *rest: Any, **more: Any) -> int:
    return int(2 * math.prod(a) * b[0])


def _by_group(a: Any, b: Any, *rest: Any, **more: Any) -> int:
    """Each entry of [entries, in] by the matrix [in, out] of its group; of weights [in, entries] by [entries, out], each
    entry once."""
    return int(2 * math.prod(a) * b[-1])


def _by_group_backward(a: Any, b: Any, *rest: Any, **more: Any) -> int:
    """The gradient of the entries, and that of all matrices, which transformers computes whether it is asked for or not."""
    return 2 * _by_group(a, b)
