"""Zennit's composites as tables of rules, and back; our relevance as zennit's pictures.

    from lxt_fx.bridges.zennit import table
    composite = zennit.composites.EpsilonPlusFlat(canonizers=[SequentialMergeBatchNorm()])
    explained = lxt_fx.transform(net, (x,), rules=table(composite, net), epsilon=1e-6)

Zennit is at chr5tphr/zennit (Anders et al. 2021); its classes are those of version 0.5. docs/rules.md has what each of its
rules is here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import module_path
from lxt_fx.bridges.peer import peer
from lxt_fx.compiler.explained import Explained, check_explained
from lxt_fx.compiler.options import Rules, table_named
from lxt_fx.results.explanation import Explanation
from lxt_fx.rule_table import linear_rules
from lxt_fx.rule_table.rule import Rule
from lxt_fx.rule_table.table import RuleTable
from lxt_fx.rules import Identity

PASSED = (
    nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Hardtanh,
    nn.Hardswish, nn.Softsign, nn.Tanhshrink,
)  # fmt: skip
"""Activations through which `attnlrp` passes all relevance, as Pass does."""

MERGED = ("SequentialMergeBatchNorm", "MergeBatchNorm", "NamedMergeBatchNorm")
SUMMED = ("ResNetBottleneckCanonizer", "ResNetBasicBlockCanonizer")
"""Canonizers of zennit for what a graph has by itself: merged batch norms, and sums that are seen without a module."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def table(composite: Any, model: nn.Module, base: Rules = "attnlrp") -> RuleTable:
    """The rules that a composite of zennit puts on a model, as a table: one override for each module that it has a rule
    for, before the rules of `base`.

    The composite is asked as it is when it is registered, module by module, so it may be one of any class, with first
    layers and names of its own. The stabilizer of its rules becomes their epsilon; that of `Norm` (pools and sums) is
    `transform(epsilon=)`. Nothing is registered on the model.

    Where the composite has no rule, zennit passes relevance on by the plain gradient (a sum without a canonizer then gives
    all of it to each side, a function such as `torch.tanh` its derivative), and here stand the rules of `base`. Flat,
    WSquare and ZBox give relevance to inputs of 0: for black pixels and behind a ReLU that takes
    `transform(form="explicit")`. Zennit's backward starts with the numbers that `attributor(data, target)` is given, for
    one-hot rows with 1; here it starts with the explained number itself.

    Raises InputError for a rule that is no LRP here (deconvnet, guided backprop), for a stabilizer that clips or scales,
    for parameters set to zero (but ZPlus without bias, which is excitation backprop), a canonizer that is not known, Pass
    on a batch norm that no canonizer merges, and a composite without a rule for any module of the model.
    """
    if not hasattr(composite, "module_map"):
        raise InputError(f"zennit.table: composite must be a composite of zennit, as EpsilonPlus(), got {composite!r}")
    merges = _merges(composite.canonizers)
    context: dict[Any, Any] = {}
    rules: dict[str, Rule] = {}
    found_any = False
    for path, module in model.named_modules():
        hook = composite.module_map(context, path, module)
        found_any = found_any or hook is not None
        rule = None if hook is None else _rule(hook, path, module, merges)
        if rule is not None:
            rules[path] = rule
    if not found_any:
        some = ", ".join([path for path, _ in model.named_modules() if path][:5])
        raise InputError(
            f"zennit.table: {type(composite).__name__} has no rule for any module of {type(model).__name__}, so the table "
            f"would be that of base; are its names and classes those of this model? It has {some}, ..."
        )
    found = table_named(base).composite(rules)  # type: ignore[arg-type]  # a dict of str is one of selectors
    return RuleTable(f"{type(composite).__name__} of zennit", found.rules, "A composite of zennit.", found.paper)


def _merges(canonizers: Any) -> bool:
    """Whether the canonizers merge batch norms. Raises InputError for one that does something else."""
    merged = False
    for each in canonizers or ():
        name = type(each).__name__
        inner = getattr(each, "canonizers", None)
        if inner is not None:
            merged = _merges(inner) or merged
        elif name not in (*MERGED, *SUMMED):
            raise InputError(
                f"zennit.table: what the canonizer {name} changes in the model is not known here; apply it, and transform "
                "the changed model with a composite without it"
            )
        merged = merged or name in MERGED
    return merged


def _rule(hook: Any, path: str, module: nn.Module, merges: bool) -> Rule | None:
    """The rule for a hook at a module; None where every table has it."""
    kind = type(hook).__name__
    if kind == "Norm":
        return None
    if kind == "Pass":
        if isinstance(module, BATCH_NORMS) and not merges:
            raise InputError(
                f"zennit.table: {path} is a batch norm with Pass, and here it is merged into the layer before it or linear;"
                " give the composite canonizers=[SequentialMergeBatchNorm()], under which both are the same"
            )
        return None if isinstance(module, (*PASSED, *BATCH_NORMS)) else Identity()
    made = _OF_HOOK.get(kind)
    if made is None:
        raise InputError(
            f"zennit.table: {kind} at {path or 'the model'} is no rule here; docs/rules.md says what each rule of zennit is"
        )
    if next(module.children(), None) is not None:
        raise InputError(f"zennit.table: {kind} is on {path or 'the model'}, which has modules inside; give these rules")
    return made(hook)


def _epsilon(hook: Any) -> Rule:
    _check_parameters(hook)
    return linear_rules.epsilon(_stabilizer(hook))


def _gamma(hook: Any) -> Rule:
    _check_parameters(hook)
    return linear_rules.gamma(float(_inside(hook.param_modifiers[0].modifier, "gamma")), epsilon=_stabilizer(hook))


def _z_plus(hook: Any) -> Rule:
    zero = hook.param_modifiers[0].zero_params
    made = linear_rules.excitation if zero in ("bias", ["bias"]) else linear_rules.z_plus
    if made is linear_rules.z_plus:
        _check_parameters(hook)
    return made(epsilon=_stabilizer(hook))


def _alpha_beta(hook: Any) -> Rule:
    _check_parameters(hook)
    alpha, beta = (float(_inside(hook.reducer, name)) for name in ("alpha", "beta"))
    return linear_rules.alpha_beta(alpha, beta, epsilon=_stabilizer(hook))


def _z_box(hook: Any) -> Rule:
    _check_parameters(hook)
    low, high = _inside(hook.input_modifiers[1], "low"), _inside(hook.input_modifiers[2], "high")
    return linear_rules.z_box(_bound(low), _bound(high), epsilon=_stabilizer(hook))


def _w_square(hook: Any) -> Rule:
    _check_parameters(hook)
    return linear_rules.w_square(epsilon=_stabilizer(hook))


def _flat(hook: Any) -> Rule:
    if set(hook.param_modifiers[0].zero_params or ()) - {"bias"}:  # zennit sets the bias to zero itself
        _check_parameters(hook)
    return linear_rules.flat(epsilon=_stabilizer(hook))


_OF_HOOK: Mapping[str, Callable[[Any], Rule]] = {
    "Epsilon": _epsilon,
    "Gamma": _gamma,
    "ZPlus": _z_plus,
    "AlphaBeta": _alpha_beta,
    "ZBox": _z_box,
    "WSquare": _w_square,
    "Flat": _flat,
}


def _bound(bound: Any) -> float | Tensor:
    """A bound without the dimension of the batch, which zennit cuts off too."""
    if not isinstance(bound, Tensor):
        return float(bound)
    return bound[0] if bound.dim() == 4 and len(bound) == 1 else bound


def _check_parameters(hook: Any) -> None:
    zero = hook.param_modifiers[0].zero_params
    if zero:
        raise InputError(
            f"zennit.table: {type(hook).__name__} sets {zero} to zero, and that rule has no variant without it here; set "
            "it to zero in the model, or leave zero_params out"
        )


def _stabilizer(hook: Any) -> float:
    """The epsilon of a hook. Raises InputError unless it is added with the sign of what it stabilises."""
    found = _inside(hook.gradient_mapper, "stabilizer_fn")
    epsilon = getattr(found, "epsilon", None)
    if not isinstance(epsilon, float) or found.clip or found.norm_scale:
        raise InputError(
            f"zennit.table: the stabilizer of {type(hook).__name__} clips, scales or is a function of its own; here an "
            "epsilon is added with the sign of the divisor: give a number"
        )
    return epsilon


def _inside(function: Any, name: str) -> Any:
    """What a function of zennit has under this name; it has no attribute for it."""
    found = inspect.getclosurevars(function).nonlocals
    if name not in found:
        raise InputError(f"zennit.table: this zennit has no {name!r} where version 0.5 has it; give the rule by hand")
    return found[name]


def composite(explained: Explained, stabilizer: float = 1e-6) -> Any:
    """The rules of an explained module as a composite of zennit: a `NameMapComposite` with the rule of each module, and
    with `SequentialMergeBatchNorm` if batch norms were merged. `stabilizer` stands where a rule has no epsilon of its own.

    Raises InputError for an op whose rule zennit does not have (attention, norms, gates, products), and for one outside of
    a module of its own, which zennit does not see (`nn.functional`, `a + b`).
    """
    check_explained(explained, "zennit.composite")
    rules, composites, canonizers = (peer(f"zennit.{name}", "zennit") for name in ("rules", "composites", "canonizers"))
    stage = explained.record.stages["rules"]
    names: list[tuple[tuple[str], Any]] = []
    for node in stage.graph.nodes:
        rule = stage.rules.get(node.name)
        if rule is None or node.name not in stage.carrying or rule.name in ("move", "select"):
            continue
        made = _HOOK_OF.get(rule.name)
        path = module_path(node)
        if made is None:
            raise InputError(f"zennit.composite: zennit has no rule {rule.name!r}, which %{node.name} at {path!r} has")
        if not path or any(path == known for (known,), _ in names):
            raise InputError(
                f"zennit.composite: %{node.name} is not the one op of a module of its own (it is in "
                f"{path or 'the model'!r}), and zennit sees modules only; write it as a module, a sum as zennit.layer.Sum"
            )
        epsilon = stabilizer if rule.epsilon is None else rule.epsilon
        names.append(((path,), made(rules, rule, epsilon)))
    merging = [canonizers.SequentialMergeBatchNorm()] if explained.record.merged else None
    return composites.NameMapComposite(names, canonizers=merging)


_HOOK_OF: Mapping[str, Callable[[Any, Rule, float], Any]] = {
    "linear": lambda rules, rule, epsilon: rules.Epsilon(epsilon),
    "epsilon": lambda rules, rule, epsilon: rules.Epsilon(epsilon),
    "gamma": lambda rules, rule, epsilon: rules.Gamma(rule.numbers["gamma"], epsilon),
    "z-plus": lambda rules, rule, epsilon: rules.ZPlus(epsilon),
    "excitation": lambda rules, rule, epsilon: rules.ZPlus(epsilon, zero_params="bias"),
    "alpha-beta": lambda rules, rule, epsilon: rules.AlphaBeta(rule.numbers["alpha"], rule.numbers["beta"], epsilon),
    "z-box": lambda rules, rule, epsilon: rules.ZBox(rule.numbers["low"], rule.numbers["high"], epsilon),
    "w-square": lambda rules, rule, epsilon: rules.WSquare(epsilon),
    "flat": lambda rules, rule, epsilon: rules.Flat(epsilon),
    "identity": lambda rules, rule, epsilon: rules.Pass(),
    "sum": lambda rules, rule, epsilon: rules.Norm(epsilon),
}


def imgify(relevance: Explanation | Tensor, **options: Any) -> Any:
    """Relevance as a picture of PIL, by zennit's `imgify`: of an explanation the relevance of its picture, of a tensor
    [height, width] or [channels, height, width] the sum over channels. 0 is the middle of the colours (`symmetric=True`,
    `cmap="bwr"`, unless `options` say otherwise).

    Raises InputError for an explanation without a picture or of several numbers, and for a tensor of another shape.
    """
    image = peer("zennit.image", "zennit", hint="; zennit itself needs torchvision")
    if isinstance(relevance, Explanation):
        part = next((part for part in relevance.parts if part.kind == "image"), None)
        if part is None or part.several:
            raise InputError("zennit.imgify: give the explanation of one number of a picture; explanation[i] is number i")
        relevance = part.values
    if relevance.dim() not in (2, 3):
        raise InputError(f"zennit.imgify: give the relevance of one picture, as relevance[0], got {list(relevance.shape)}")
    shown = relevance.detach().to(torch.float32).cpu()
    if shown.dim() == 3:
        shown = shown.sum(0)
    made = image.imgify(shown.numpy(), **{"symmetric": True, "cmap": "bwr", **options})
    if made.mode == "P":  # zennit 0.5.1 leaves an array there, which Pillow 13 can neither save nor convert
        made.putpalette(bytes(memoryview(made.palette.palette)))
    return made


__all__ = ["composite", "imgify", "table"]
