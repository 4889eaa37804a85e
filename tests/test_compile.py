"""torch.compile of an explained module: one graph, any length and batch, the numbers of eager (float32: 1e-4)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from shared_captures import each_model, explained
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import lxt_fx


def relevance(call: Any, leaf_name: str, leaf: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and the relevance of the leaf for one of them in each example."""
    leaf = leaf.clone().requires_grad_()
    logits = call(**{leaf_name: leaf}).logits
    value = logits if logits.dim() == 2 else logits[:, -1]
    (gradient,) = torch.autograd.grad(value[:, 1].sum(), leaf)
    return logits.detach(), leaf.detach() * gradient


def check_compiled(name: str, backend: str, shapes: list[tuple[int, ...]]) -> None:
    torch._dynamo.reset()
    module = explained(name)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    leaf_name = module.record.leaves[0]
    for index, shape in enumerate(shapes):
        torch.manual_seed(index)
        leaf = torch.randn(shape)
        logits, found = relevance(compiled, leaf_name, leaf)
        plain_logits, expected = relevance(module, leaf_name, leaf)
        torch.testing.assert_close(logits, plain_logits, rtol=1e-4, atol=1e-4 * float(plain_logits.abs().max()))
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", each_model(["llama", "bert"]))
def test_one_graph_serves_every_length(name: str) -> None:
    """`aot_eager` traces forward and backward as inductor does, and runs the traces; the second length compiles nothing."""
    with torch._dynamo.config.patch(error_on_recompile=True):
        check_compiled(name, "aot_eager", [(2, 5, 32), (3, 9, 32)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("llama", [(2, 5, 32), (3, 9, 32)]),
        ("gemma3", [(2, 5, 32), (3, 9, 32)]),
        ("bert", [(2, 5, 32), (3, 9, 32)]),
        ("vit", [(2, 1, 8, 8), (3, 1, 8, 8)]),
    ],
)
def test_inductor_gives_the_numbers_of_eager(name: str, shapes: list[tuple[int, ...]]) -> None:
    check_compiled(name, "inductor", shapes)


def _deep_llama(layers: int) -> Any:
    config = tiny.llama().config
    config.num_hidden_layers = layers
    torch.manual_seed(0)
    return lxt_fx.transform(type(tiny.llama())(config).eval())


def _frames_compiled(module: Any, leaf: Tensor) -> int:
    """How many functions a first forward and backward compiles."""
    counter = CompileCounterWithBackend("aot_eager")
    module.compile(backend=counter)
    relevance(module, "inputs_embeds", leaf)
    return int(counter.frame_count)


def test_each_kind_of_layer_is_compiled_once() -> None:
    torch._dynamo.reset()
    leaf = torch.randn(2, 5, 32)
    counts = [_frames_compiled(_deep_llama(layers), leaf) for layers in (3, 5)]
    assert counts[0] == counts[1] <= 3


@pytest.mark.parametrize("checkpoint", [pytest.param(None, marks=pytest.mark.slow("the same layers, kept")), "layers"])
def test_compiled_layers_give_the_numbers_of_eager(checkpoint: Any) -> None:
    torch._dynamo.reset()
    plain = explained("llama")
    module = lxt_fx.transform(tiny.llama(), checkpoint=checkpoint)
    module.compile(backend="aot_eager", dynamic=True)
    for shape in ((2, 5, 32), (3, 9, 32)):
        leaf = torch.randn(shape)
        (logits, found), (expected_logits, expected) = (relevance(m, "inputs_embeds", leaf) for m in (module, plain))
        torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4 * float(expected_logits.abs().max()))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    twin = copy.deepcopy(module)
    torch.testing.assert_close(relevance(twin, "inputs_embeds", leaf)[1], found)


def test_options_of_compile_have_names() -> None:
    with pytest.raises(lxt_fx.InputError, match="by name"):
        explained("llama").compile(True)
