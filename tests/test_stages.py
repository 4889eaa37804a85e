"""A graph is cut into stages whose values are those of the whole graph, gradients included, whatever crosses a border."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Any

import pytest
import torch
from shared_captures import explained, one_worker
from torch import Tensor, nn
from torch.fx import GraphModule
from transformers import T5Config, T5ForConditionalGeneration

import lxt_fx
from lxt_fx.attribution.places import places_at
from lxt_fx.attribution.tapped import tapped
from lxt_fx.base.torch_internals import pytree
from lxt_fx.passes.segments.balanced import balanced
from lxt_fx.passes.segments.stages import Stage, stages_of

F64 = torch.float64


def inputs_of(name: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    ids, mask = torch.randint(3, 40, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    return {**given, "decoder_input_ids": torch.randint(3, 40, (2, 5))} if name == "t5" else given


def t5() -> lxt_fx.Explained:
    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return lxt_fx.transform(T5ForConditionalGeneration(config).double().eval())


def run(owner: nn.Module, stages: tuple[Stage, ...], bound: dict[str, Any]) -> dict[int, Any]:
    """The flat outputs by number. Each stage gets what the one before it gave."""
    carried: dict[str, Tensor] = {}
    outputs: dict[int, Any] = {}
    for stage in stages:
        module = GraphModule(owner, stage.graph)
        assert set(dict(module.named_parameters())) | set(dict(module.named_buffers())) <= {*stage.parameters}
        made = module(*(carried[name] for name in stage.takes), *(bound[name] for name in stage.inputs))
        carried = dict(zip(stage.gives, made, strict=False))
        outputs |= dict(zip((*stage.outputs, *stage.stays), made[len(stage.gives) :], strict=True))
    return outputs


@pytest.mark.parametrize("name", [pytest.param(n, marks=one_worker(n)) for n in ("llama", "gemma3", "bert")])
def test_stages_compute_what_the_graph_computes(name: str) -> None:
    compare(explained(name, F64), inputs_of(name))


def compare(module: lxt_fx.Explained, given: dict[str, Tensor]) -> None:
    fitting, bound = module._prepared((), given)
    whole = pytree.tree_leaves(module(**given))
    for count in (1, 2):
        stages = stages_of(fitting, fitting.fused, count)
        assert len(stages) == count and stages[0].takes == () and stages[-1].gives == ()
        assert all(a.gives == b.takes for a, b in zip(stages, stages[1:], strict=False))
        found = run(fitting, stages, bound)
        assert all(torch.equal(found[i], whole[i]) for i in found)


def test_an_encoders_output_goes_through_the_stages_between() -> None:
    module = t5()
    compare(module, inputs_of("t5"))
    fitting, bound = module._prepared((), inputs_of("t5"))
    stages = stages_of(fitting, fitting.fused, ["encoder.block.1", "decoder.block.0", "decoder.block.1"])
    through = {*stages[2].takes} & {*stages[3].takes}
    assert through and "decoder_inputs_embeds" in stages[1].takes, "which stage 2 reads first"
    assert all("inputs_embeds" not in stage.inputs for stage in stages[1:])
    assert run(fitting, stages, bound).keys() == {0, 1}


@one_worker("llama")
def test_values_inside_stay_at_their_stage() -> None:
    module = explained("llama", F64)
    places = places_at(module, ["residual.0", "residual.1", "residual.2"], "test")
    bound = module._prepared((), inputs_of("llama"))[1]
    tap = tapped(module, places).module
    stages = stages_of(tap, tap.fused, 2, stays=(1, 2, 3))
    assert [stage.stays for stage in stages] == [(1, 2), (3,)] and stages[1].outputs == (0,)
    assert set(run(tap, stages, bound)) == {0, 1, 2, 3}


def test_the_largest_stage_is_as_small_as_it_can_be() -> None:
    torch.manual_seed(0)
    for count in (1, 2, 3, 4):
        sizes = torch.randint(1, 9, (7,)).tolist()
        cuts = [(0, *cut, 7) for cut in combinations_with_replacement(range(1, 7), count - 1)]
        largest = [max(sum(sizes[a:b]) for a, b in zip(c, c[1:], strict=False)) for c in cuts if len({*c}) == count + 1]
        counts = balanced(sizes, count)
        edges = [0, *torch.tensor(counts).cumsum(0).tolist()]
        assert len(counts) == count and min(counts) > 0 and edges[-1] == 7
        assert max(sum(sizes[a:b]) for a, b in zip(edges, edges[1:], strict=False)) == min(largest)


@one_worker("llama")
def test_a_cut_that_does_not_fit_is_refused_by_name() -> None:
    fitting, graph = (module := explained("llama", F64)), module.fused
    for cut, said in (
        (5, "5 stages, but the graph has 2 layers"),
        ([1, 2], "but the graph has 2 layers"),
        (["model.layer.1"], "no op of the graph belongs to a module 'model.layer.1'"),
        (["model.layers.1", "model.layers.0"], "do not run in this order"),
    ):
        with pytest.raises(lxt_fx.InputError, match=said):
            stages_of(fitting, graph, cut)
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    plain = lxt_fx.transform(net, (torch.randn(1, 4),))
    with pytest.raises(lxt_fx.InputError, match="no chain of layers"):
        stages_of(plain, plain.fused, 2)
    assert len(stages_of(plain, plain.fused, ["2"])) == 2
