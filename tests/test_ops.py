"""What every `torch.ops.lxt_fx.*` op promises whatever its rule: it registers well, has the forward value, compiles, is
exported as one node, takes batched gradients, copies nothing and saves what its backward needs and no more."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import pytest
import torch
from op_cases import CASES, Case, leaves
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lxt_fx.ops import explicit, explicit_contributions, recurrences

LAST = {case.op: case for case in CASES.values()}
"""One case of each op."""
TRACED_ALREADY = pytest.mark.slow("what checks the op's registration traces it")

every_case = pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])


def gradients(value: Tensor, of: Sequence[Tensor], seed: Tensor) -> list[Tensor | None]:
    """The gradients of `of`; None where nothing passes."""
    if not value.requires_grad:
        return [None] * len(of)
    return list(torch.autograd.grad(value, of, seed, allow_unused=True))


def seed_for(value: Tensor) -> Tensor:
    """A gradient of the output that is the same at each call."""
    return torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)


def test_every_registered_op_has_a_case() -> None:
    """Those of the explicit form have theirs in test_explicit.py: what flows back through them is another thing."""
    explicit_ops = [*vars(explicit).values(), *explicit_contributions.PARTS.values()]
    of_explicit_form = {str(op).split(".")[1] for op in explicit_ops if isinstance(op, OpOverload)}
    checks = {name for name in torch.ops.lxt_fx if name.startswith("expect_")}
    checks |= {"sparse_product", "product"}  # test_sparse_head.py
    checks |= {"steered"}  # test_steering.py: it reads a shape, and no gradient passes
    checks |= {"own_backward", "own_backward_of_several"}  # test_autograd_functions.py
    checks |= {name for name in torch.ops.lxt_fx if "packed" in name}  # test_packed.py
    recurrent = (*recurrences.OF.values(), *recurrences.EQUATIONS.values())  # test_recurrences.py
    checks |= {str(op).split(".")[1] for op in recurrent}
    assert {str(case.op).split(".")[1] for case in CASES.values()} == set(torch.ops.lxt_fx) - of_explicit_form - checks


@pytest.mark.parametrize("case", LAST.values(), ids=lambda case: case.name)
def test_op_is_registered_well(case: Case) -> None:
    torch.library.opcheck(case.op, case.make(torch.float32), dict(case.keywords))


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_forward_has_the_bits_of_the_plain_op(case: Case, dtype: torch.dtype) -> None:
    arguments = case.make(dtype)
    torch.testing.assert_close(case.run(*arguments), case.run_plain(*arguments), rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(case.run(*arguments), case.run_plain(*arguments), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["linear", "layer_norm", "group_norm", "normalize_mul", "normalize_div", "sdpa_held"])
def test_weights_and_statistics_get_no_gradient(name: str) -> None:
    case = CASES[name]
    frozen = case.make(torch.float64)
    trained = tree_map(lambda a: a.detach().requires_grad_() if isinstance(a, Tensor) else a, frozen)
    value = case.run(*trained)
    reached = [gradient is not None for gradient in gradients(value, leaves(trained), seed_for(value))]
    assert reached == [argument.requires_grad for argument in frozen if isinstance(argument, Tensor)]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=TRACED_ALREADY if case is LAST[case.op] else ()) for name, case in CASES.items()
    ],
)
def test_traced_op_equals_eager(case: Case) -> None:
    """`aot_eager` traces forward and backward as inductor does, and runs the traces as they are."""
    torch._dynamo.reset()
    arguments = case.make(torch.float64)
    value = case.run(*arguments)
    compiled = torch.compile(case.run, fullgraph=True, backend="aot_eager")(*arguments)
    torch.testing.assert_close(compiled, value)
    expected = gradients(value, leaves(arguments), seed_for(value))
    torch.testing.assert_close(gradients(compiled, leaves(arguments), seed_for(value)), expected)


@pytest.mark.parametrize(
    "names",
    [("silu", "rms_norm", "sdpa"), pytest.param(tuple(CASES), marks=pytest.mark.slow)],
    ids=["three ops", "all"],
)
def test_compiled_ops_equal_eager(names: Sequence[str]) -> None:
    """All in one graph, since each graph costs inductor seconds."""
    torch._dynamo.reset()
    cases = [CASES[name] for name in names]
    arguments = [case.make(torch.float32) for case in cases]

    def run() -> list[Tensor]:
        return [case.run(*given) for case, given in zip(cases, arguments, strict=True)]

    def all_gradients(values: list[Tensor]) -> list[Tensor | None]:
        total = torch.stack([(value * seed_for(value)).sum().double() for value in values]).sum()
        return gradients(total, [leaf for given in arguments for leaf in leaves(given)], torch.ones_like(total))

    values, compiled = run(), torch.compile(run, fullgraph=True)()
    torch.testing.assert_close(compiled, values)
    torch.testing.assert_close(all_gradients(compiled), all_gradients(values))


class Calls(nn.Module):
    """A module that calls one op; settings that are not tensors are part of the module."""

    def __init__(self, case: Case, arguments: Sequence[Any]) -> None:
        super().__init__()
        self.case = case
        self.settings = [None if _is_tensors(argument) else argument for argument in arguments]

    def forward(self, *tensors: Any) -> Tensor:
        left = iter(tensors)
        return self.case.run(*(next(left) if setting is None else setting for setting in self.settings))


def _is_tensors(argument: Any) -> bool:
    return argument is None or isinstance(argument, Tensor) or (isinstance(argument, list) and _is_tensors(argument[0]))


@every_case
def test_exported_op_is_one_node_and_survives_a_file(case: Case) -> None:
    arguments = case.make(torch.float64)
    inputs = tuple(argument for argument in arguments if _is_tensors(argument))
    exported = torch.export.export(Calls(case, arguments), inputs, strict=False)
    file = BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    called = [node.target for node in loaded.graph.nodes if node.op == "call_function" and "lxt_fx" in str(node.target)]
    assert called == [case.op]
    value, expected = loaded(*inputs), case.run(*arguments)
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    torch.testing.assert_close(
        gradients(value, leaves(arguments), seed_for(value)),
        gradients(expected, leaves(arguments), seed_for(value)),
        rtol=0,
        atol=0,
    )


@every_case
def test_batched_gradients_equal_a_loop(case: Case) -> None:
    arguments = case.make(torch.float64)
    value = case.run(*arguments)
    if not value.requires_grad:
        assert case.name == "hold"
        return
    seeds = torch.stack([seed_for(value), 1 - seed_for(value), seed_for(value) ** 2])
    batched = torch.autograd.grad(value, leaves(arguments), seeds, retain_graph=True, is_grads_batched=True)
    looped = [torch.autograd.grad(value, leaves(arguments), seed, retain_graph=True) for seed in seeds]
    for together, one_by_one in zip(batched, zip(*looped, strict=True), strict=True):
        torch.testing.assert_close(together, torch.stack(one_by_one))


class SeeCopies(TorchDispatchMode):
    """Which ATen ops ran that copy a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in ("clone", "copy", "copy_", "_to_copy"):
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@every_case
def test_forward_copies_what_the_plain_op_copies(case: Case) -> None:
    """Einsum and causal attention of torch copy; an op of ours adds nothing to that."""
    with SeeCopies() as ours:
        case.run(*case.make(torch.float32))
    with SeeCopies() as plain:
        case.run_plain(*case.make(torch.float32))
    assert ours.seen == plain.seen


@pytest.mark.parametrize(("name", "returned"), [("hold", 0), ("identity", 1), ("identity_with_intercept", 1)])
def test_op_that_returns_its_argument_makes_no_copy(name: str, returned: int) -> None:
    arguments = CASES[name].make(torch.float32)
    assert CASES[name].run(*arguments).data_ptr() == arguments[returned].data_ptr()


def saved_by(case: Case, arguments: Sequence[Any]) -> list[tuple[str, Tensor]]:
    """What the op saves for its backward: arguments by schema name, `output`, and by its shape what is neither."""
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        value = case.run(*arguments)
    names = {value.untyped_storage().data_ptr(): "output"}
    for schema, argument in zip(case.op._schema.arguments, arguments, strict=False):
        for position, leaf in enumerate(tree_leaves(argument)):
            if isinstance(leaf, Tensor):
                name = f"{schema.name}[{position}]" if isinstance(argument, list) else schema.name
                names[leaf.untyped_storage().data_ptr()] = name
    return [(names.get(tensor.untyped_storage().data_ptr(), str(list(tensor.shape))), tensor) for tensor in saved]


@pytest.mark.parametrize("case", [pytest.param(c, id=n) for n, c in CASES.items() if c.saved is not None])
def test_op_saves_what_its_backward_needs_and_no_more(case: Case) -> None:
    assert case.saved is not None
    assert sorted(name for name, _ in saved_by(case, case.make(torch.float64))) == sorted(case.saved)


@pytest.mark.parametrize("name", ["sdpa", "sdpa_causal", "sdpa_biased", "sdpa_held"])
def test_attention_does_not_save_its_weights(name: str) -> None:
    """What else it saves is up to the kernel. Its weights are 3 x 3 for each of 2 heads of 2 sentences."""
    saved = saved_by(CASES[name], CASES[name].make(torch.float64))
    assert len(saved) > 0
    assert 2 * 2 * 3 * 3 not in [tensor.numel() for _, tensor in saved]
