"""What LXT's explicit functions gave on recorded inputs (golden/functional.safetensors), against the slow loops."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import paper_loops as paper
import slow_references as slow
import torch
import torch.nn.functional as F
from golden_cases import FOLDER
from safetensors.torch import load_file
from slow_references import Reference
from torch import Tensor, nn

from lxt_fx.rule_table import basic_rules as basic
from lxt_fx.rule_table.rule import Rule

TENSORS = load_file(FOLDER / "functional.safetensors")
CASES: dict[str, dict[str, Any]] = json.loads((FOLDER / "functional.meta.json").read_text())["cases"]


@dataclass(frozen=True, slots=True)
class Call:
    """A recorded call: the plain function of its inputs, and its loop for an epsilon with its sign (True) or without."""

    name: str
    function: Callable[..., Any]
    loop: Callable[[bool], Reference]

    @property
    def epsilon(self) -> float:
        """LXT's, which is added without the sign of z."""
        return float(CASES[self.name]["args"].get("epsilon", 0.0))

    @property
    def single(self) -> bool:
        """Whether the call computes in float32."""
        return bool(TENSORS[f"{self.name}/out"].dtype is torch.float32)

    @property
    def has_exact_loop(self) -> bool:
        """Whether the loop has LXT's epsilon where LXT has it, and takes no difference quotients."""
        return not self.name.startswith(("layer_norm", "rule_epsilon_tanh", "rule_epsilon_matmul"))

    def differences(self) -> tuple[float, float]:
        """LXT's relevance less that of the loop, relative to the largest value: as the paper has it, and with an epsilon
        that is never subtracted."""
        prefix = f"{self.name}/in/"
        names = [key.removeprefix(prefix) for key in TENSORS if key.startswith(prefix)]
        inputs = tuple(TENSORS[f"{self.name}/in/{name}"] for name in names)
        theirs = [TENSORS[f"{self.name}/rel_in/{name}"] for name in names]
        r = [TENSORS[f"{self.name}/rel_out"]]
        expected = [self.loop(signed)(self.function, inputs, r) for signed in (True, False)]
        return difference(theirs, expected[0], r), difference(theirs, expected[1], r)


def difference(found: list[Tensor], expected: list[Tensor], r: list[Tensor]) -> float:
    """The largest difference at any operand, relative to the largest expected value; to that of R where nothing is
    expected. NaN where there is one."""
    apart = torch.cat([(a.double() - b).abs().flatten() for a, b in zip(found, expected, strict=True)]).max()
    largest = torch.cat([x.double().abs().flatten() for x in expected]).max()
    largest = largest if largest != 0 else torch.cat([x.double().abs().flatten() for x in r]).max()
    return float(apart / largest)


def _contribution(name: str, function: Callable[..., Any], step: float = 1.0, times: float = 1.0) -> Call:
    """LXT adds its epsilon to `times` z: a mean over n divides by the sum of n elements."""
    epsilon = float(CASES[name]["args"]["epsilon"]) / times

    def loop(signed: bool) -> Reference:
        return slow.by_weights(step=step, loop=partial(paper.by_contribution, epsilon=epsilon, signed=signed))

    return Call(name, function, loop)


def _contraction(name: str, equation: str, times: float = 1.0) -> Call:
    """LXT's matmul divides by 2 z + epsilon, as prop. 3.3 is written; its rule around a matmul by z + epsilon."""
    epsilon = float(CASES[name]["args"]["epsilon"]) / times
    return Call(name, torch.matmul, lambda signed: slow.contraction(equation, epsilon, signed))


def _same(name: str, function: Callable[..., Any], reference: Reference) -> Call:
    return Call(name, function, lambda signed: reference)


def _linear(name: str) -> Call:
    return _contribution(name, lambda x: F.linear(x, TENSORS[f"{name}/const/weight"], TENSORS.get(f"{name}/const/bias")))


def _layer_norm(name: str) -> Call:
    layer = nn.LayerNorm(8, bias=f"{name}/const/bias" in TENSORS).double()
    layer.load_state_dict({key: TENSORS[f"{name}/const/{key}"] for key in layer.state_dict()})
    return _same(name, layer, slow.held_norm(8))


CALLS: Mapping[Rule | str, tuple[Call, ...]] = {
    basic.SOFTMAX: (
        _same("softmax", lambda x: x.softmax(-1), slow.softmax(-1)),
        _same("softmax_temp", lambda x: (x / 1.7).softmax(-1), slow.softmax(-1, lambda net, x: x / 1.7)),
        _same("softmax_causal_-inf", lambda x: x.softmax(-1), slow.softmax(-1)),
        _same("softmax_dtype32", lambda x: x.softmax(-1), slow.softmax(-1)),
    ),
    "epsilon": tuple(map(_linear, (name for name in CASES if name.startswith("linear_epsilon")))),
    basic.MATMUL: (
        _contraction("matmul_3d", "bij,bjk->bik", times=2),
        _contraction("matmul_4d", "abij,abjk->abik", times=2),
        _contraction("matmul_3d_eps1e-2", "bij,bjk->bik", times=2),
    ),
    basic.SUM: (
        *(_contribution(name, torch.add) for name in ("add2", "add2_eps1e-2", "add2_broadcast")),
        _contribution("mean_keepdim", lambda x: x.mean(-1, keepdim=True), times=8),
        _contribution("mean_nokeepdim", lambda x: x.mean(-1), times=8),
    ),
    basic.UNIFORM: (_same("mul2", torch.mul, slow.uniform),),
    basic.SCALE: (_same("mul2_const", lambda a: a * TENSORS["mul2_const/const/b"], slow.by_weights()),),
    basic.NORM: (
        _same("rms_norm_identity", nn.Identity(), slow.same),
        *map(_layer_norm, ("layer_norm", "layer_norm_slower", "layer_norm_nobias")),
    ),
    basic.NORMALIZE: (_same("normalize", nn.Identity(), slow.same),),
    basic.IDENTITY: (_same("rule_identity_silu", F.silu, slow.identity),),
    "nn.Epsilon": (
        _linear("rule_epsilon_linear"),
        _contribution("rule_epsilon_tanh", torch.tanh, slow.STEP),
        _contribution("rule_epsilon_matmul", torch.matmul, slow.STEP),
    ),
    "nn.UniformEpsilon": (_contraction("rule_uniform_epsilon_matmul", "bij,bjk->bik"),),
    "nn.Uniform": (_same("rule_uniform_mul", torch.mul, slow.uniform),),
    "nn.Identity": (_same("rule_identity_silu", F.silu, slow.identity),),
    "nn.Stop": (_same("rule_stop", F.silu, slow.nothing),),
}
"""LXT's calls by our rule, or by the name of a function of linear_rules or of a wrapper of lxt_fx.nn."""

WRONG = _same("softmax_dim1", lambda x: x.softmax(1), slow.softmax(1))
"""LXT sums the relevance over the last dim, whatever dim the softmax is along."""

RAISING = tuple(name for name, case in CASES.items() if "error" in case)
"""Calls that raise in LXT."""
