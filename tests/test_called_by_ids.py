"""The explained module is called as the model is, with token ids, and answers as the model does."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import ids_models
import pytest
import shared_captures
import tiny
import torch
from golden_cases import relative
from ids_models import IDS, TEXT
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import lxt_fx
from lxt_fx.base.torch_internals import pytree
from lxt_fx.compiler.further_graphs import OtherCalls
from lxt_fx.compiler.kept_captures import forget_model

NAMES = list(ids_models.MODELS)


@cache
def called(name: str) -> tuple[nn.Module, dict[str, Any]]:
    model, inputs = ids_models.MODELS[name]()
    return model.double().requires_grad_(False), pytree.tree_map_only(Tensor, _precise, inputs)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


@cache
def explained(name: str, rules: str = "attnlrp") -> lxt_fx.Explained:
    """From the model's own example where it needs none, else from the call; `gradient` puts that graph under its table."""
    model, inputs = called(name)
    if rules != "attnlrp":
        return lxt_fx.transform(explained(name), kwargs=inputs, rules=rules)
    needs_example = name == "clip" or not hasattr(model, "config")
    return lxt_fx.transform(model, kwargs=inputs if needs_example else None)


def answers(output: Any) -> Tensor:
    """The logits, or the first output."""
    found = getattr(output, "logits", getattr(output, "logits_per_image", output))
    assert isinstance(found, Tensor)
    return found


class Recorded(TorchFunctionMode):
    """Makes leaves of the values of a model that equal these."""

    def __init__(self, values: list[Tensor]) -> None:
        super().__init__()
        self.values, self.leaves = values, dict[int, Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for place, value in enumerate(self.values):
            same = isinstance(result, Tensor) and result.dtype == value.dtype and result.shape == value.shape
            if place not in self.leaves and same and torch.equal(result, value):
                self.leaves[place] = result.detach().clone().requires_grad_(True)
                with torch.enable_grad():
                    return self.leaves[place].clone()
        return result


@pytest.mark.parametrize("name", NAMES)
def test_it_answers_as_the_model_does_and_every_lookup_is_a_leaf(name: str) -> None:
    model, inputs = called(name)
    module = explained(name)
    expected = answers(model(**inputs))
    torch.testing.assert_close(answers(module(**inputs)), expected, rtol=1e-9, atol=1e-11)
    assert module.record.leaves == ids_models.LEAVES.get(name, ("inputs_embeds",))
    output, leaves = module.with_leaves(**inputs)
    assert tuple(leaves) == module.record.leaves
    torch.testing.assert_close(answers(output), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_its_leaves_get_the_gradient_that_the_model_gives_them(name: str) -> None:
    model, inputs = called(name)
    output, leaves = explained(name, "gradient").with_leaves(**inputs)
    found = torch.autograd.grad(answers(output)[..., 1].sum(), list(leaves.values()))
    own = {leaf: value.detach().clone().requires_grad_(True) for leaf, value in leaves.items() if leaf in inputs}
    rest = [value.detach() for leaf, value in leaves.items() if leaf not in inputs and leaf != "features_present"]
    given = inputs | own
    if name == "sentences":
        own["features_present"] = inputs["features"]["present"].clone().requires_grad_(True)
        given = {"features": {**inputs["features"], "present": own["features_present"]}}
    with Recorded(rest) as recorded:
        value = answers(model(**given))[..., 1].sum()
    places = iter(range(len(rest)))
    wanted = [own[leaf] if leaf in own else recorded.leaves[next(places)] for leaf in leaves]
    for one, other in zip(found, torch.autograd.grad(value, wanted), strict=True):
        assert relative(one, other) <= 1e-9


@pytest.mark.parametrize("name", ["llama classifier", "gpt2 classifier", "opt", "gemma3n"])
def test_padding_has_no_relevance_and_a_text_alone_has_that_of_the_batch(name: str) -> None:
    model, inputs = called(name)
    module = explained(name)
    output, leaves = module.with_leaves(**inputs)
    logits = answers(output)
    (logits[..., 1].sum() if logits.dim() == 2 else logits[torch.arange(3), [5, 2, 5], 1].sum()).backward()
    relevance = sum((leaf * leaf.grad).flatten(2).sum(-1) for leaf in leaves.values() if leaf.grad is not None)
    assert isinstance(relevance, Tensor)
    assert bool((relevance[IDS == 0] == 0).all()) and bool((relevance[IDS != 0] != 0).all())
    alone = {key: value[1:2, :3] for key, value in inputs.items()}
    torch.testing.assert_close(answers(model(**alone))[0], logits[1, :3] if logits.dim() == 3 else logits[1])
    one, own = module.with_leaves(**alone)
    (answers(one)[..., 1].sum() if logits.dim() == 2 else answers(one)[0, 2, 1]).backward()
    by_token = sum((leaf * leaf.grad).flatten(2).sum(-1) for leaf in own.values() if leaf.grad is not None)
    assert isinstance(by_token, Tensor)
    assert relative(by_token[0], relevance[1, :3]) <= 1e-9


@pytest.mark.parametrize(
    "name", ["llama classifier", "marian", "bart classifier", "gemma3n", "text and numbers", "sentences", "bag", "max_norm"]
)
def test_the_same_from_a_file_and_recomputed_and_in_four_threads(name: str, tmp_path: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    _, inputs = called(name)
    module = explained(name)

    def found(any_module: lxt_fx.Explained) -> list[Tensor]:
        output, leaves = any_module.with_leaves(**inputs)
        return [answers(output).detach(), *torch.autograd.grad(answers(output)[..., 1].sum(), list(leaves.values()))]

    expected = found(module)
    lxt_fx.save(module, tmp_path / "module")
    others = [lxt_fx.load(tmp_path / "module"), lxt_fx.transform(module, kwargs=inputs, checkpoint=1)]
    with ThreadPoolExecutor(4) as threads:
        runs = [*map(found, others), *threads.map(found, [module] * 4)]
    for run in runs:
        for one, other in zip(run, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_compiled_with_one_graph_it_answers_by_ids() -> None:
    model, inputs = called("llama classifier")
    compiled = torch.compile(explained("llama classifier"), fullgraph=True, backend="eager")
    expected = answers(model(**inputs))
    torch.testing.assert_close(answers(compiled(**inputs)), expected, rtol=1e-9, atol=1e-11)
    in_order = inputs["input_ids"], inputs["attention_mask"]
    torch.testing.assert_close(answers(compiled(*in_order)), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["opt", "marian"])
def test_the_last_position_by_ids(name: str) -> None:
    model, inputs = called(name)
    module = lxt_fx.transform(model, positions="last")
    torch.testing.assert_close(answers(module(**inputs)), answers(model(**inputs))[:, -1:], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["marian", "t5"])
def test_a_module_of_embeddings_looks_ids_up_only_if_that_is_what_the_model_does(name: str, tmp_path: Any) -> None:
    model, inputs = called(name)
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    given = {key: inputs[key][:1] for key in ("input_ids", "decoder_input_ids")}
    by_embeds = {key.replace("input_ids", "inputs_embeds"): embedding(ids).detach() for key, ids in given.items()}
    module = lxt_fx.transform(model, kwargs=by_embeds)
    lxt_fx.save(module, tmp_path / "file")
    for one in (module, lxt_fx.load(tmp_path / "file")):
        if name == "marian":  # which scales what it looks up
            with pytest.raises(lxt_fx.InputError, match="answers to ids in another way"):
                lxt_fx.embed(one, given["input_ids"])
        else:
            found = {key.replace("input_ids", "inputs_embeds"): lxt_fx.embed(one, ids) for key, ids in given.items()}
            torch.testing.assert_close(answers(one(**found)), answers(model(**given)), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["llama classifier", "marian", "roberta", "opt"])
def test_by_embeddings_it_answers_as_the_model_does_by_embeddings(name: str) -> None:
    model, inputs = called(name)
    module, embedding = explained(name), model.get_input_embeddings()  # type: ignore[operator]
    by_embeds = {k: v for k, v in inputs.items() if not k.endswith("input_ids")}
    ids = {name: value for name, value in inputs.items() if name.endswith("input_ids")}
    by_embeds |= {name.replace("input_ids", "inputs_embeds"): embedding(value) for name, value in ids.items()}
    expected = answers(model(**by_embeds))
    differs = relative(answers(model(**inputs)), expected) > 1e-6
    with pytest.warns(UserWarning, match="may answer differently then") if differs else nullcontext():
        torch.testing.assert_close(answers(module(**by_embeds)), expected, rtol=1e-9, atol=1e-11)
    assert differs is (name != "opt") and (module.record.given_alone == ()) is differs


def test_a_call_with_inputs_that_the_example_had_not_is_captured_once() -> None:
    """OPT counts positions from its mask, so its graph has no positions; a call with positions has a graph of its own."""
    model, inputs = called("opt")
    module = explained("opt")
    assert "position_ids" not in module.record.called_with
    places = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    expected = answers(model(**inputs, position_ids=places))
    for _ in range(2):
        torch.testing.assert_close(answers(module(**inputs, position_ids=places)), expected, rtol=1e-9, atol=1e-11)
    assert isinstance(module._other_calls, OtherCalls)
    assert len([graph for graph in module._other_calls.graphs if "position_ids" in graph.names]) == 1


def test_embed_gives_the_leaves_of_a_call() -> None:
    _, inputs = called("gemma3n")
    module = explained("gemma3n")
    leaves = lxt_fx.embed(module, inputs)
    assert tuple(leaves) == module.record.leaves and all(leaf.requires_grad for leaf in leaves.values())
    torch.testing.assert_close(answers(module(**inputs, **leaves)), answers(module(**inputs)))
    with pytest.warns(UserWarning, match="up as inputs_embeds and as inputs_embeds_embed_tokens_per_layer, and"):
        first = lxt_fx.embed(module, inputs["input_ids"])
    torch.testing.assert_close(answers(module(**inputs, inputs_embeds=first)), answers(module(**inputs)))


def test_relevance_of_adds_up_all_that_a_token_is_looked_up_as() -> None:
    _, inputs = called("gemma3n")
    module = explained("gemma3n")
    output, leaves = module.with_leaves(**inputs)
    answers(output)[0, -1, 7].backward()
    parts = [leaf * leaf.grad for leaf in leaves.values() if leaf.grad is not None]
    expected = sum(part[0].flatten(1).sum(-1) for part in parts)
    target = lxt_fx.Target.at(-1, 7)
    assert relative(lxt_fx.relevance_of(module, inputs, [target])[0, 0], expected) <= 1e-9
    assert relative(lxt_fx.relevance_of(module, inputs, [target], leaf="input_ids")[0, 0], expected) <= 1e-9
    first = lxt_fx.relevance_of(module, inputs, [target], leaf="inputs_embeds")[0, 0]
    assert relative(first, parts[0][0].sum(-1)) <= 1e-9 and relative(first, expected) > 1e-3
    ledger = lxt_fx.audit(module, inputs, lambda out: out.logits[:, -1, 7])
    ledger.check()
    assert {source.name for source in ledger.sources} >= set(module.record.leaves)


def test_what_a_model_pads_to_its_tokens_is_none_of_them() -> None:
    _, inputs = called("padded")
    module = explained("padded")
    output, leaves = module.with_leaves(**inputs)
    output[:, 1].sum().backward()
    leaf = leaves["tokens_embeds"]
    assert leaf.grad is not None and leaf.shape == (3, 8, 8)
    target = lxt_fx.relevance_of(module, inputs, [lambda out: out[:, 1]])
    assert target.shape == (1, 3, 6) and relative(target[0], (leaf * leaf.grad).sum(-1)[:, :6]) <= 1e-9


def test_tokens_may_come_as_floats() -> None:
    """Tabular code casts its floats to indices: `forward(x)` may read tokens of a float tensor."""

    class Columns(ids_models.Indexed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.long())

    model = Columns("index").eval()
    module = lxt_fx.transform(model, (IDS.float(),))
    assert module.record.leaves == ("x_embeds",)
    torch.testing.assert_close(module(IDS.float()), model(IDS.float()))
    output, leaves = module.with_leaves(IDS.float())
    torch.testing.assert_close(module(x=IDS.float(), x_embeds=leaves["x_embeds"]), output)


def test_a_model_that_writes_into_its_inputs_leaves_the_example_alone() -> None:
    """It runs several times on the way: each run gets a copy."""

    class InPlace(ids_models.Indexed):
        def forward(self, hidden: Tensor, traced: bool = False) -> Tensor:  # type: ignore[override]
            hidden *= 2.0
            hidden += 1.0 if traced and float(hidden.detach().sum()) > 0 else 3.0
            return self.head(torch.tanh(hidden).mean(1))

    model, given = InPlace("index").eval(), torch.ones(2, 3, 8)
    for traced in (False, True):
        module = lxt_fx.transform(model, kwargs={"hidden": given, "traced": traced}, rules="gradient")
        assert bool((given == 1).all())
        torch.testing.assert_close(module(hidden=given, traced=traced), model(given.clone(), traced))


@pytest.mark.parametrize("name", ["llama classifier", "gpt2 classifier"])
def test_positions_may_be_given_once_for_the_whole_batch(name: str) -> None:
    model, inputs = called(name)
    given = {"input_ids": inputs["input_ids"], "position_ids": torch.arange(6)[None] + 1}
    torch.testing.assert_close(answers(explained(name)(**given)), answers(model(**given)), rtol=1e-9, atol=1e-11)


def test_what_comes_with_a_text_is_passed_on_to_a_model_that_takes_any_input() -> None:
    """Older Llama tokenizers return token types, which the model's forward swallows."""
    model, inputs = called("llama classifier")
    types = torch.ones_like(inputs["input_ids"])
    expected = answers(model(**inputs, token_type_ids=types))
    module = explained("llama classifier")
    torch.testing.assert_close(answers(module(**inputs, token_type_ids=types)), expected, rtol=1e-9, atol=1e-11)
    again = answers(explained("llama classifier", "gradient")(**inputs, token_type_ids=types))
    torch.testing.assert_close(again, expected, rtol=1e-9, atol=1e-11)
    with pytest.raises(lxt_fx.CallError, match="the model has no input token_types"):
        module(**inputs, token_types=types)


@pytest.mark.parametrize(
    ("ids", "message"),
    [(torch.tensor([[5, 64]]), r"a token is not in the table .*from 5 to 64"), (torch.tensor([[-1, 4]]), "from -1 to 4")],
)
def test_a_token_that_the_table_does_not_have_is_named(ids: Tensor, message: str) -> None:
    with pytest.raises(lxt_fx.CallError, match=message):
        explained("llama classifier")(input_ids=ids)


def test_texts_that_are_empty_or_too_long_are_named() -> None:
    with pytest.raises(lxt_fx.CallError, match="input_ids: there are no tokens"):
        explained("gpt2 classifier")(input_ids=torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(lxt_fx.CallError, match=r"longer than the model has positions.*inputs_embeds \[1, 70, 32\]"):
        explained("gpt2 classifier")(input_ids=torch.full((1, 70), 5))


def test_leaves_without_gradients_are_refused() -> None:
    with torch.no_grad(), pytest.raises(lxt_fx.CallError, match="gradients are off"):
        explained("llama classifier").with_leaves(input_ids=IDS)


def test_positions_and_types_are_no_tokens() -> None:
    module = lxt_fx.transform(called("roberta")[0])
    assert "token_type_ids" in module.record.inputs and module.record.leaves == ("inputs_embeds",)


def test_a_wrong_graph_by_padding_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture that reads the ids of its example only, as one that bakes in where the padding is."""
    from lxt_fx.passes.capture import capture as module

    original = module._export

    def baked(model: nn.Module, example: Any, **settings: Any) -> Any:
        captured = original(model, example, **settings)
        for node in captured.gm.graph.nodes:
            if node.target is torch.ops.aten.ne.Scalar:  # input_ids != pad
                node.target = torch.ops.aten.ge.Scalar
        captured.gm.recompile()
        return captured

    model = called("llama classifier")[0]
    forget_model(model)
    monkeypatch.setattr(module, "_export", baked)
    with pytest.raises(lxt_fx.ForwardMismatchError, match="padded texts"):
        lxt_fx.transform(model)
    forget_model(model)


def test_texts_that_a_helper_gets_are_not_changed() -> None:
    """A padded text is explained as the model reads it: with its mask, pooled at its last token."""
    model, _ = called("llama classifier")
    given = {name: value[1:2] for name, value in TEXT.items()}
    relevance = lxt_fx.relevance_of(model, given, [0])
    assert bool((relevance[0, 0, 3:] == 0).all())
    output, leaves = explained("llama classifier").with_leaves(**given)
    output.logits[0, 0].backward()
    leaf = leaves["inputs_embeds"]
    assert leaf.grad is not None and relative(relevance[0, 0], (leaf * leaf.grad).sum(-1)[0]) <= 1e-9


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_ids": torch.tensor([[True, False, True]])}, "input_ids holds numbers of bool, .* give input_ids.to"),
        ({"input_ids": torch.tensor([[5, 9, 3]], dtype=torch.int16)}, "input_ids holds numbers of int16"),
        ({"inputs_embeds": torch.zeros(0, 3, 32)}, r"inputs_embeds has shape \[0, 3, 32\]: there is no example"),
        ({"input_ids": torch.zeros(0, 3, dtype=torch.long)}, "there are no tokens"),
    ],
)
def test_inputs_that_the_model_refuses_are_named(given: dict[str, Tensor], message: str) -> None:
    with pytest.raises(RuntimeError):
        shared_captures.shared_model("llama")(**given)
    with pytest.raises(lxt_fx.CallError, match=message):
        shared_captures.explained("llama")(**given)


def test_other_kinds_of_numbers_that_the_model_takes_are_taken() -> None:
    model, ids = tiny.llama(), torch.tensor([[5, 9, 3]])
    module = lxt_fx.transform(model)
    for mask in (torch.tensor([[True, True, False]]), torch.tensor([[1.0, 1.0, 0.0]])):
        found, expected = module(ids, attention_mask=mask), model(ids, attention_mask=mask)
        torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(module(ids.int()).logits, model(ids.int()).logits)
