"""What an explanation costs, by formula and by measurement: flops of forward and backward, bytes saved for the backward.

    python benchmarks/cost/cost_model.py           (less than a minute)

Random Llamas with eager and fused attention, explained under `attnlrp` in gradient form. The formulas are those of
docs/cost.md. Flops are counted by `torch.utils.flop_counter.FlopCounterMode` (matrix products alone), saved bytes by
`torch.autograd.graph.saved_tensors_hooks`: each storage once, weights left out.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import LlamaConfig, LlamaForCausalLM

import lxt_fx
from lxt_fx.ops import gradient_product

aten = torch.ops.aten


def _fused_forward(query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _fused_backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


def _product_in_place(total: Any, a: torch.Size, b: torch.Size, *rest: Any, **more: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _product_by_parts(gradient: Tensor, weight: Tensor, *rest: Any, **more: Any) -> int:
    """Of the rows and entries that are not 0 alone."""
    flat = gradient.flatten(0, -2)
    return int(2 * flat.any(1).sum() * flat.any(0).sum() * weight.shape[1])


def _product_by_positions(gradient: Tensor, weight: Tensor, sparse: bool, **more: Any) -> int:
    """Of the positions whose gradient is not 0, where the op looks for them."""
    positions = gradient.any(1).sum() if sparse else len(gradient)
    return int(2 * positions * weight.numel())


for _count in (_product_by_parts, _product_by_positions):
    _count._get_raw = True  # type: ignore[attr-defined]  # it is given tensors, not their shapes


def _product_of_onednn(a: torch.Size, b: torch.Size, *rest: Any, **more: Any) -> int:
    return 2 * a.numel() * b[0]


FUSED = {
    torch.ops.lxt_fx.product: _product_by_positions,
    torch.ops.mkldnn._linear_pointwise: _product_of_onednn,
    aten._scaled_dot_product_flash_attention_for_cpu: _fused_forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_backward,
    aten.addmm_: _product_in_place,
    torch.ops.lxt_fx.sparse_product: _product_by_parts,
}
"""The fused attention of the CPU, which torch's counter does not know, counted as it counts that of a GPU; a product that
is added in place; and the one behind the logits."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama and its input: L layers, hidden h, H heads of d, K of them for keys and values, MLP width m, vocabulary V,
    batch B, length T."""

    L: int
    h: int
    H: int
    K: int
    d: int
    m: int
    V: int
    B: int
    T: int

    @property
    def layer(self) -> int:
        """Weights of a layer's matrices: q and output, k and v, gate, up and down."""
        return self.h * self.d * (2 * self.H + 2 * self.K) + 3 * self.h * self.m


@dataclass(frozen=True, slots=True)
class Cost:
    """Flops of forward and backward, and bytes saved in between."""

    forward: float
    backward: float
    saved: float


def predicted(s: Shape, attention: str, size: int = 4) -> Cost:
    """The formulas of docs/cost.md, for `size` bytes an element."""
    tokens, scores = s.B * s.T, s.B * s.H * s.T * s.T
    layers, head = 2 * tokens * s.L * s.layer, 2 * tokens * s.h * s.V
    one_logit = 2 * s.B * s.h
    single = [weights for weights in (s.h * s.m, s.h * s.H * s.d) if weights >= gradient_product.WORTH_A_FUNCTION]
    elsewhere = 2 * s.B * (s.T - 1) * (2 * s.h * s.m + sum(single))  # the last layer's maps after its attention
    heads = tokens * s.H * s.d
    products = {"eager": 2, "sdpa": 2.5}[attention]  # the fused backward computes the scores again
    between = {
        "eager": 3 * heads + scores,  # q, k, v; the weights
        "sdpa": 2 * heads + tokens * (2 * s.K * s.d + s.H),  # q, output; k, v; the logarithm of each row's sum
    }[attention]
    return Cost(
        forward=layers + head + 4 * s.L * scores * s.d,
        backward=layers - elsewhere + one_logit + products * 4 * s.L * scores * s.d,
        saved=size * (s.L * (between + 2 * tokens * s.m + 2 * tokens) + tokens),
    )


def llama(s: Shape, attention: str) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=s.V,
        hidden_size=s.h,
        intermediate_size=s.m,
        num_hidden_layers=s.L,
        num_attention_heads=s.H,
        num_key_value_heads=s.K,
        head_dim=s.d,
    )
    config._attn_implementation = attention
    return LlamaForCausalLM(config).eval()


def measured(s: Shape, attention: str) -> tuple[Cost, int]:
    """The cost of one explanation of the last position's first logit, and the bytes of constants (tables of positions, the
    mask) that are saved beside."""
    explained = lxt_fx.transform(llama(s, attention))
    leaf = torch.randn(s.B, s.T, s.h).requires_grad_(True)
    weights = {p.untyped_storage().data_ptr() for p in (*explained.parameters(), *explained.buffers())}
    saved: dict[int, tuple[Tensor, bool]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = (tensor, _grows(tensor, s))
        return tensor

    with FlopCounterMode(display=False, custom_mapping=FUSED) as forward, saved_tensors_hooks(pack, lambda tensor: tensor):
        logit = explained(inputs_embeds=leaf).logits[:, -1, 0].sum()
    with FlopCounterMode(display=False, custom_mapping=FUSED) as backward:
        torch.autograd.grad(logit, leaf)
    sizes = [(tensor.untyped_storage().nbytes(), grows) for tensor, grows in saved.values()]
    total, constants = (sum(bytes for bytes, grows in sizes if grows is wanted) for wanted in (True, False))
    return Cost(forward.get_total_flops(), backward.get_total_flops(), total), constants


def _grows(tensor: Tensor, s: Shape) -> bool:
    """Whether the tensor is one of a layer's values; tables of positions and the mask are saved once for all."""
    return tensor.shape not in ((s.B, 1, s.T, s.d), (1, 1, s.T, s.d), (s.B, 1, s.T, s.T)) and tensor.is_floating_point()


SHAPES = {
    "narrow": Shape(L=2, h=64, H=4, K=2, d=16, m=128, V=256, B=1, T=64),
    "deep": Shape(L=8, h=128, H=8, K=4, d=16, m=256, V=512, B=2, T=48),
    "long": Shape(L=2, h=64, H=4, K=4, d=16, m=160, V=128, B=1, T=256),
    "wide": Shape(L=4, h=576, H=9, K=3, d=64, m=1536, V=4096, B=1, T=128),
}


def main(
    out: Annotated[Path, typer.Option(help="The folder for cost_model.json.")] = Path("out"),
) -> None:
    """Print the prediction beside the measurement."""
    torch.set_num_threads(1)
    table = Table(title="predicted / measured", box=None, padding=(0, 1))
    counted = [heading for name in ("forward Mflop", "backward Mflop", "saved KiB") for heading in (name, "ratio")]
    for heading in ("model", "attention", *counted, "once KiB"):
        table.add_column(heading, justify="right")
    found = []
    for name, shape in SHAPES.items():
        for attention in ("eager", "sdpa"):
            guess = predicted(shape, attention)
            cost, once = measured(shape, attention)
            shown = []
            for key, unit in (("forward", 1e6), ("backward", 1e6), ("saved", 1024)):
                real = getattr(cost, key)
                shown += [f"{real / unit:.2f}", f"{getattr(guess, key) / real:.3f}" if real else "-"]
            table.add_row(name, attention, *shown, f"{once / 1024:.1f}")
            row = {"model": name, "attention": attention, "shape": asdict(shape), "once": once}
            found.append(row | {"predicted": asdict(guess), "measured": asdict(cost)})
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    out.mkdir(parents=True, exist_ok=True)
    Path(out, "cost_model.json").write_text(json.dumps(found, indent=1))
    console.print(f"wrote {out / 'cost_model.json'}")


if __name__ == "__main__":
    typer.run(main)
