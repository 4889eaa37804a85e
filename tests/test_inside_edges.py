"""Places, latent and conditional relevance where models and inputs are unlike a plain decoder's: examples that do not
come first, or in one dimension with tokens or heads; padding; pairs; names of several tokens; caches; wrong arguments."""

from __future__ import annotations

import gc
import weakref
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import tiny
import tiny_text
import torch
import transformers as hf
from ids_models import SEQ2SEQ
from shared_captures import explained, one_worker
from test_latent import close
from torch import Tensor, nn

import lxt_fx
from lxt_fx import Only
from lxt_fx.attribution import tapped as tapped_places
from lxt_fx.attribution.places import InsidePlace, places_at
from lxt_fx.inputs.given import Example
from lxt_fx.inside.laid_out import laid_out
from lxt_fx.inside.latent_result import made_value
from lxt_fx.inside.tokens import TextTokens, Tokens

IDS = torch.tensor([[3, 7, 9, 4, 11], [5, 6, 2, 8, 12]])


class TokensFirst(nn.Module):
    """The encoder of plain PyTorch, which computes [tokens, batch, hidden], and its attention [tokens * batch, hidden]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.look_up = nn.Embedding(64, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(32, 64)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.look_up(input_ids).transpose(0, 1)).mean(0))


def xlnet() -> nn.Module:
    config = hf.XLNetConfig(vocab_size=64, d_model=32, n_layer=1, n_head=4, d_inner=48, num_labels=64)
    return tiny._made(hf.XLNetForSequenceClassification, config, "eager")


def bloom() -> nn.Module:
    config = hf.BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4)
    return tiny._made(hf.BloomForCausalLM, config, "eager")


TURNED = ("tokens", "batch", "hidden")

KINDS: dict[str, Any] = {
    "tokens first": (TokensFirst, {"residual.1": TURNED, "attention.0.output": TURNED}),
    "xlnet": (xlnet, {"attention.0.heads": ("tokens", "batch", "heads", "size"), "mlp.0.output": TURNED}),
    "bloom": (bloom, {"attention.0.heads": ("batch", "heads", "tokens", "size"), "residual.0": TURNED[1::-1] + TURNED[2:]}),
}


@lru_cache(maxsize=8)
def made(kind: str) -> lxt_fx.Explained:
    return lxt_fx.transform(KINDS[kind][0]().double().eval(), (IDS,))


def one(example: int) -> dict[str, Tensor]:
    return {"input_ids": IDS[example : example + 1]}


def values(found: Any) -> list[list[float]]:
    several = found if isinstance(found, lxt_fx.Explanations) else [found]
    return [[number.value for number in each.numbers] for each in several]


@pytest.mark.parametrize("kind", KINDS)
def test_axes_are_those_that_the_model_has(kind: str) -> None:
    places = lxt_fx.places(made(kind))
    assert {name: places[name].axes for name in KINDS[kind][1]} == KINDS[kind][1]


def test_the_order_in_a_merged_dimension_is_read_from_the_graph() -> None:
    outer = {kind: places_at(made(kind), "%*", "test") for kind in ("tokens first", "bloom")}
    assert [name for name, _ in outer["tokens first"]["%linear_1"].merged] == ["tokens", "batch"]
    assert [name for name, _ in outer["bloom"]["%matmul_1"].merged] == ["batch", "dim1"]
    assert outer["bloom"]["%matmul_1"].merged[1] == ("dim1", "4")
    flat = places_at(explained("gpt2"), "%view_11", "test")["%view_11"]  # what the down projection reads
    assert flat.axes == ("tokens", "units") and [name for name, _ in flat.merged] == ["batch", "tokens"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_of_a_batch_has_at_each_place_what_it_has_alone(kind: str) -> None:
    module = made(kind)
    places = [place for place in lxt_fx.places(module) if place != "logits"]
    both = lxt_fx.latent(module, {"input_ids": IDS}, 3, places)
    for example in range(2):
        alone = lxt_fx.latent(module, one(example), 3, places)
        for place in places:
            assert both[place].axes == alone[place].axes and both[place].axes[0] == "batch"
            close(both.relevance[place][example], alone.relevance[place][0], 1e-6)  # norms in float32
            close(both.activation[place][example], alone.activation[place][0], 1e-6)
            assert both.total(place, example=example) == pytest.approx(alone.total(place), rel=1e-5, abs=1e-9)
        close(both.heads(example=example), alone.heads(), 1e-6)
        assert both.heads().shape == (1, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_condition_means_the_same_units_and_positions_in_a_batch_as_alone(kind: str) -> None:
    module = made(kind)
    conditions: list[Any] = [
        {"attention.0.heads": 1},
        {"attention.0.output": Only(7, positions=1)},
        {"mlp.0.neurons": Only(None, positions=[-1, 0])},
        {"attention.0.heads": Only([2, 3], positions=2), "residual.0": 5},
    ]
    both = lxt_fx.conditional(module, {"input_ids": IDS}, conditions, 3)
    for example in range(2):
        alone = lxt_fx.conditional(module, one(example), conditions, 3)
        close(both[example].parts[0].values, alone.parts[0].values, 1e-6)
        assert values(both[example])[0] == pytest.approx(values(alone)[0], rel=1e-5, abs=1e-9)
        heads = lxt_fx.latent(module, one(example), 3).heads()[0]
        assert values(alone)[0][0] == pytest.approx(float(heads[1]), rel=1e-5)


class TwiceInABatch(nn.Module):
    """Computes each example twice in one batch, the last example first: no reshape says which entry is of which."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        both = self.mix(inputs_embeds.repeat_interleave(2, 0).flip(0)).relu().flip(0)
        return self.head(both.unflatten(0, (-1, 2)).mean((1, 2)))


def test_a_merged_dimension_whose_order_is_not_known_belongs_to_a_single_example() -> None:
    embedded = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    module = lxt_fx.transform(TwiceInABatch().double(), (), {"inputs_embeds": embedded})
    assert places_at(module, "mix", "test")["mix"].merged == ()
    with pytest.raises(lxt_fx.InputError, match="does not say which part of mix"):
        lxt_fx.latent(module, {"inputs_embeds": embedded}, lambda output: output[:, 1], "mix").total("mix")
    for one_example in embedded.split(1):
        found = lxt_fx.latent(module, {"inputs_embeds": one_example}, lambda output: output[:, 1], "mix")
        with torch.no_grad():
            model = TwiceInABatch().double()
            mixed = model.mix(one_example[0])
            expected = ((mixed.relu() * model.head.weight[1]).sum() / len(mixed)).item()
        assert found.total("mix") == pytest.approx(expected)


def test_a_node_whose_first_dimension_is_merged_is_read_by_example() -> None:
    module = explained("gpt2", torch.float64)
    node = lxt_fx.places(module)["attention.0.output"].node
    found = lxt_fx.latent(module, {"input_ids": IDS}, 3, [f"%{node}", "attention.0.output"])
    assert found[f"%{node}"].axes == ("batch", "tokens", "units")
    for example in range(2):
        assert found.total(f"%{node}", example=example) == found.total("attention.0.output", example=example)
    assert len(found.to_dataframe(f"%{node}")) == 2 * 32


@one_worker("llama")
@pytest.mark.parametrize("columns", [[2, 3], [0, 1]], ids=["left", "right"])
def test_positions_are_those_of_each_text_without_padding(columns: list[int]) -> None:
    module = explained("llama", torch.float64)
    ids, mask = torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long)
    ids[0], mask[0] = torch.tensor([3, 7, 9, 4]), 1
    ids[1, columns], mask[1, columns] = torch.tensor([5, 6]), 1
    padded = {"input_ids": ids, "attention_mask": mask}
    for position in (0, 1, -1):
        condition = {"mlp.0.neurons": Only(None, positions=position)}
        both, alone = (
            lxt_fx.conditional(module, given, condition, 3) for given in (padded, {"input_ids": torch.tensor([[5, 6]])})
        )
        assert values(both)[1] == pytest.approx(values(alone)[0], rel=1e-6)
    with pytest.raises(lxt_fx.InputError, match="for text 1 of the batch, has no position 2; it has 2"):
        lxt_fx.conditional(module, padded, {"mlp.0.neurons": Only(None, positions=2)}, 3)
    found = lxt_fx.latent(module, padded, 3, "mlp.0.neurons").to_dataframe("mlp.0.neurons", "token")
    assert list(found[found["example"] == 1]["position"]) == [0, 1]


def test_a_pair_of_texts_has_both_of_them() -> None:
    tokenizer = tiny_text.word_tokenizer()
    module = lxt_fx.transform(tiny_text.bert("bare", len(tokenizer)).double())
    pairs = [("The capital of France", "London is play"), ("Rome", "Paris is London play")]
    both = lxt_fx.latent(module, pairs, None, ["residual.1", "attention.*.heads", "mlp.*.neurons"], processor=tokenizer)
    for index, pair in enumerate(pairs):
        alone = lxt_fx.latent(module, pair, None, ["residual.1"], processor=tokenizer)
        assert alone.total("residual.1") == pytest.approx(float(alone["residual.1"].relevance.sum()))
        assert both.total("residual.1", example=index) == pytest.approx(alone.total("residual.1"))
        through = lxt_fx.conditional(module, pair, {"residual.1": None}, processor=tokenizer)
        assert values(through)[0][0] == pytest.approx(alone.total("residual.1"), rel=1e-6)
        tokens = [token.strip() for part in through.parts for token in part.reading.tokens]
        frame = both.to_dataframe("residual.1", "token")
        assert [token.strip() for token in frame[frame["example"] == index]["token"]] == tokens
        close(both.heads(example=index)[0], both["attention.0.heads"].by_unit()[0, 2 * index : 2 * index + 2].sum(0))
        units = both["mlp.0.neurons"].by_unit()[0, 2 * index : 2 * index + 2].sum(0)
        (best,) = both.top(1, example=index).found
        assert (best.unit, best.relevance) == (int(units.argmax()), pytest.approx(float(units.max())))
        lines = both.to_dataframe("mlp.0.neurons")
        close(torch.tensor(lines[lines["example"] == index]["relevance"].tolist(), dtype=torch.float64), units)
        assert best.token.strip() == tokens[best.position] or best.position < len(pairs[index][1].split()) + 2


def test_the_tokens_of_a_place_are_those_that_it_reads() -> None:
    """Where both texts are equally long, the sizes of the graph tell them apart, also for a module."""
    config = hf.BartConfig(**{**SEQ2SEQ, "encoder_layers": 1, "decoder_layers": 1})
    model = tiny._made(hf.BartForConditionalGeneration, config, "sdpa")
    inputs = {"input_ids": torch.tensor([[30, 31, 32]]), "decoder_input_ids": torch.tensor([[2, 40, 41]])}
    places = ["encoder.mlp.0.neurons", "mlp.0.neurons", "cross_attention.0.keys", "cross_attention.0.queries"]
    paths = ["model.encoder.layers.0", "model.decoder.layers.0"]
    found = lxt_fx.latent(model, inputs, 3, places + paths)
    last = {place: value.tokens[0][-1].strip() for place, value in found.items()}
    assert list(last.values()) == ["32", "41", "32", "41", "32", "41"], last


def test_where_sizes_do_not_tell_two_texts_apart_the_name_of_a_place_does() -> None:
    texts = {prefix: (TextTokens(("a", "b", "c"), (0, 1, 2), 3),) for prefix in ("", "decoder_")}
    tokens = Tokens(texts, {prefix: frozenset({"3"}) for prefix in texts}, "decoder_")
    encoder = ("encoder.mlp.0.neurons", "cross_attention.0.keys", "cross_attention.0.values")
    for name in (*encoder, "cross_attention.0.queries", "mlp.0.neurons", "attention.0.keys"):
        found = tokens.of(InsidePlace(name, "x", ("s1", "3", "8"), ("batch", "tokens", "units"), ""), 3)
        assert found is texts["" if name in encoder else "decoder_"]


def test_a_value_that_holds_a_pair_of_texts_in_one_entry_has_the_tokens_of_neither() -> None:
    place = InsidePlace("x", "x", ("2*s1", "s2", "8"), ("dim1", "tokens", "units"), "")
    value = torch.zeros(4, 5, 8)
    texts = tuple(TextTokens(("a",) * count, tuple(range(count)), 5) for count in (3, 5))
    layouts = {"x": laid_out(place, value, [put(ids=slice(0, 2))], {"ids": 2})}
    call: Any = SimpleNamespace(layouts=layouts, tokens=Tokens({"": texts}, {"": frozenset()}, ""))
    found = made_value(call, place, value, value[None])
    assert found.axes == ("batch", "dim1", "tokens", "units") and found.rows(0) == [0]
    assert found.text(0) == ([0, 1, 2, 3, 4], [""] * 5)  # and not the three of the first text


def test_a_name_of_several_tokens_has_one_number_and_its_conditions() -> None:
    tokenizer = tiny_text.byte_tokenizer()
    module = lxt_fx.transform(tiny_text.llama(len(tokenizer)))
    asked: Any = (["The capital of France is", "Paris"], " Paris London")
    found = lxt_fx.latent(module, *asked, "residual.1", processor=tokenizer)
    assert found["residual.1"].relevance.shape[0] == 1
    assert set(found.to_dataframe("residual.1")["target"]) == {0}
    through = lxt_fx.conditional(module, asked[0], {"residual.1": None}, asked[1], processor=tokenizer)
    whole = lxt_fx.explain(module, tokenizer, *asked)
    for index in range(2):
        close(through[index].parts[0].values, whole[index].parts[0].values, 1e-5)
        assert values(through)[index][0] == pytest.approx(found.total("residual.1", example=index), rel=1e-4)
        assert through[index].numbers[0].said.startswith("log-probability of ' Paris' + ' London'")


class LooksAhead(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(count, 8), nn.Linear(8, count)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        return self.head(inputs_embeds + inputs_embeds.mean(1, keepdim=True))


@pytest.mark.parametrize("form", ["gradient", "explicit"])
def test_a_name_of_several_tokens_is_refused_where_the_model_looks_ahead(form: Any) -> None:
    tokenizer = tiny_text.byte_tokenizer()
    model = LooksAhead(len(tokenizer))
    module = lxt_fx.transform(model, (), {"inputs_embeds": torch.randn(1, 4, 8)}, form=form)
    with pytest.raises(lxt_fx.InputError, match="^conditional: LooksAhead looks ahead"):
        lxt_fx.conditional(module, "The capital", {"logits": None}, " Paris London", processor=tokenizer)


def test_a_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        model = tiny.llama().eval()
    for call in (lxt_fx.latent, lambda *given: lxt_fx.conditional(given[0], given[1], {"mlp.0.neurons": 1}, given[2])):
        with pytest.raises(lxt_fx.InputError, match="LlamaForCausalLM is on the meta device"):
            call(model, one(0), 3)


@one_worker("llama")
def test_a_module_is_freed_with_what_was_made_of_it() -> None:
    def used() -> list[weakref.ref[Any]]:
        module = explained("llama")
        lxt_fx.latent(module, one(0), 3, "mlp.0.neurons")
        lxt_fx.conditional(module, one(0), {"mlp.0.neurons": 1}, 3)
        return [weakref.ref(each) for each in (module, module.fused, module.graph)]

    found = used()
    gc.collect()
    gc.collect()  # the first one frees the module, and with it the entry of the cache
    assert [each() for each in found] == [None] * 3


@one_worker("llama")
def test_tapped_graphs_are_made_once_and_again_when_a_tensor_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    module, made_of = explained("llama"), []
    original = tapped_places._tapped
    monkeypatch.setattr(tapped_places, "_tapped", lambda *given: made_of.append(given) or original(*given))
    asked = [f"residual.{layer}" for layer in range(3)] + ["mlp.0.neurons", "mlp.1.neurons"]
    first = lxt_fx.latent(module, one(0), 3, asked[0]).total(asked[0])
    again = lxt_fx.latent(module, one(0), 3, asked[0]).total(asked[0])
    assert len(made_of) == 1 and first == again
    lxt_fx.latent(module, one(0), 3, "%" + lxt_fx.places(module)[asked[0]].node)
    assert len(made_of) == 1  # the same node under another name
    monkeypatch.setattr(tapped_places, "MOST", 4)
    for place in asked[1:]:
        lxt_fx.latent(module, one(0), 3, place)
    lxt_fx.latent(module, one(0), 3, asked[0])
    assert len(made_of) == len(asked) + 1  # the oldest one was dropped
    assert len(tapped_places._MADE[module]) == tapped_places.MOST
    tapped = tapped_places._MADE[module][next(iter(tapped_places._MADE[module]))]
    assert tapped.is_of(module) and not tapped.is_of(explained("llama"))
    name = next(name for name, tensor in tapped._shared.items() if isinstance(tensor, nn.Parameter))
    owner, _, own_name = name.rpartition(".")
    setattr(module.get_submodule(owner), own_name, nn.Parameter(tapped._shared[name].detach().clone()))
    assert not tapped.is_of(module)


@one_worker("llama")
def test_beside_the_places_the_head_of_a_language_model_still_runs_alone() -> None:
    places = places_at(explained("llama", torch.float64), ["residual.1", "mlp.0.neurons"], "test")
    module, bound = explained("llama", torch.float64)._prepared((), {"inputs_embeds": torch.ones(1, 3, 32).double()})
    made = tapped_places.tapped(module, places)
    assert made.split is not None
    (output, inside), (hidden, beside) = made.module(**bound), made.split.body(**bound)
    assert len(inside) == len(beside) == 2 and all(map(torch.equal, inside, beside))
    assert torch.equal(made.split.head(hidden), output.logits)


@one_worker("llama")
@pytest.mark.parametrize("chunk", [0, -1, 1.5, True, "2"])
def test_a_chunk_that_is_no_count_is_refused(chunk: Any) -> None:
    module = explained("llama")
    for call in (
        lambda: lxt_fx.latent(module, one(0), 3, "mlp.0.neurons", chunk=chunk),
        lambda: lxt_fx.conditional(module, one(0), {"mlp.0.neurons": 1}, 3, chunk=chunk),
        lambda: lxt_fx.explain(module, None, one(0), 3, chunk=chunk),
        lambda: lxt_fx.relevance_of(module, one(0), [3], chunk=chunk),
    ):
        with pytest.raises(lxt_fx.InputError, match="chunk must be a whole number of at least 1"):
            call()


@one_worker("llama")
def test_wrong_arguments_of_a_latent_result_are_refused() -> None:
    found = lxt_fx.latent(explained("llama"), {"input_ids": IDS}, 3)
    for call, said in (
        (lambda: found.top(0), "k must be"),
        (lambda: found.top(True), "k must be"),
        (lambda: found.top(2.5), "k must be"),  # type: ignore[arg-type]
        (lambda: found.top(example=None), "example must be a whole number"),  # type: ignore[arg-type]
        (lambda: found.total("residual.1", target=1.5), "target must be a whole number"),  # type: ignore[arg-type]
        (lambda: found.total("residual.1", example=2), "no example 2; there are 2"),
        (lambda: found.heads("residual.*"), "none of them is of heads"),
        (lambda: found.to_dataframe(by=["unit"]), "by must be one of"),  # type: ignore[arg-type]
    ):
        with pytest.raises(lxt_fx.InputError, match=said):
            call()
    assert [unit.position for unit in found.top(2, positions=[-1]).found] == [4, 4]
    assert found.total("residual.1", example=-1) == found.total("residual.1", example=numpy.int64(1))


@one_worker("llama")
def test_the_largest_activation_is_shown_with_its_own_token() -> None:
    found = lxt_fx.latent(explained("llama", torch.float64), {"input_ids": IDS}, 3, "mlp.*.neurons")
    for unit in found.top(40, by="activation").found:
        value = found.activation[unit.place][0, :, unit.unit]
        assert (unit.activation, unit.position) == (float(value.max()), int(value.argmax()))


@one_worker("llama")
def test_units_are_taken_as_numbers_of_numpy_and_torch() -> None:
    module = explained("llama", torch.float64)

    def amount(units: Any) -> float:
        return values(lxt_fx.conditional(module, one(0), {"mlp.0.neurons": units}, 3))[0][0]

    for units in (numpy.array([3, 5]), torch.tensor([3, -43]), range(3, 6, 2), (numpy.int64(3), torch.tensor(5))):
        assert amount(units) == amount([3, 5])
    for units in ("3", {3}, slice(3, 5), numpy.array([True, False]), [[3]]):
        with pytest.raises(lxt_fx.InputError, match="is an index"):
            amount(units)


def put(**within: Any) -> Example:
    return Example(tuple(SimpleNamespace(leaf=leaf, within=each) for leaf, each in within.items()))  # type: ignore[arg-type]


def test_the_entries_of_each_example_are_those_of_the_inputs_that_have_as_many() -> None:
    place = InsidePlace("x", "x", ("s1", "s2", "8"), ("batch", "tokens", "units"), "")
    examples = [put(ids=0, pixels=slice(0, 3)), put(ids=1, pixels=slice(3, 4))]
    batches = {"ids": 2, "pixels": 4, "other": 2}
    for count, rows in ((2, ((0,), (1,))), (4, ((0, 1, 2), (3,))), (3, None)):
        assert laid_out(place, torch.zeros(count, 5, 8), examples, batches).rows == rows
    even = [put(ids=0, pixels=slice(0, 1)), put(ids=1, pixels=slice(1, 4))]
    assert laid_out(place, torch.zeros(4, 5, 8), even, {"ids": 2, "pixels": 4}).rows == ((0,), (1, 2, 3))
    crossed = [put(ids=0, pixels=1), put(ids=1, pixels=0)]
    assert laid_out(place, torch.zeros(2, 5, 8), crossed, {"ids": 2, "pixels": 2}).rows is None  # they do not agree
    assert laid_out(place, torch.zeros(3, 5, 8), examples[:1], batches).rows == ((0, 1, 2),)


def test_a_value_without_a_known_place_for_each_example_belongs_to_a_single_one() -> None:
    place = InsidePlace("x", "x", ("s1*s2", "8"), ("tokens", "units"), "")
    one_example, two = [put(ids=0)], [put(ids=0), put(ids=1)]
    assert laid_out(place, torch.zeros(5, 8), one_example, {"ids": 1}).rows == ((0,),)
    assert laid_out(place, torch.zeros(10, 8), two, {"ids": 2}).rows is None


@pytest.mark.parametrize("names", [("batch", "tokens"), ("tokens", "batch")])
def test_a_merged_dimension_comes_apart_and_goes_together_again(names: tuple[str, str]) -> None:
    sizes = {"batch": 2, "tokens": 5}
    merged = tuple((name, {"batch": "s1", "tokens": "s2"}[name]) for name in names)
    place = InsidePlace("x", "x", ("s1*s2", "3"), ("tokens", "units"), "", merged)
    value = torch.arange(30.0).reshape(*(sizes[name] for name in names), 3)
    layout = laid_out(place, value.flatten(0, 1), [put(ids=0), put(ids=1)], {"ids": 2})
    expected = value if names[0] == "batch" else value.transpose(0, 1)
    assert layout.axes == ("batch", "tokens", "units")
    assert torch.equal(layout.of(value.flatten(0, 1)), expected)
    assert torch.equal(layout.of(value.flatten(0, 1)[None], 1)[0], expected)
    assert torch.equal(layout.back(expected, (10, 3)), value.flatten(0, 1))
    mask = layout.back(torch.tensor([1.0, 0.0]).reshape(2, 1, 1), (10, 3))
    assert torch.equal((mask * value.flatten(0, 1)).sum(), expected[0].sum())


def test_examples_that_share_an_input_are_refused() -> None:
    parts = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {**parts, "vocab_size": 64, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    config = hf.CLIPConfig(text_config=text, vision_config={**parts, "image_size": 8, "patch_size": 4}, projection_dim=16)
    model = tiny._made(hf.CLIPModel, config, "sdpa")
    inputs = {"input_ids": torch.tensor([[3, 7, 9, 4, 2]]), "pixel_values": torch.randn(2, 3, 8, 8)}
    with pytest.raises(lxt_fx.InputError, match="examples of this batch share inputs"):
        lxt_fx.latent(model, inputs, None, "residual.1")
    inputs["pixel_values"] = inputs["pixel_values"][:1]
    found = lxt_fx.latent(model, inputs, None, ["text_model.encoder.layers.0", "vision_model.encoder.layers.0"])
    assert [len(value.tokens) for value in found.values()] == [1, 0]  # as many patches as tokens, and they are no text


@one_worker("llama")
def test_ledger_at_a_leaf_and_at_a_module_and_behind_it() -> None:
    module = explained("llama", torch.float64)
    inputs = {"inputs_embeds": torch.randn(2, 4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))}
    ledger = lxt_fx.audit(module, inputs, lambda output: output.logits[:, -1, 1])
    found = lxt_fx.latent(module, inputs, lambda output: output.logits[:, -1, 1], ["residual.0", "model.layers.0"])
    for place in found:
        close(ledger.at(place), found.relevance[place].sum((1, 2)), 1e-6)
    close(ledger.at("model.layers.0"), ledger.at("residual.1"))
    assert torch.equal(ledger.at(f"%{lxt_fx.places(module)['mlp.0.output'].node}"), ledger.at("mlp.0.output"))
    for unknown in ("%nothing", "nothing", lxt_fx.places(module)["mlp.0.neurons"].node):
        with pytest.raises(lxt_fx.UnknownNameError, match="relevance reached no place called"):
            ledger.at(unknown)


@one_worker("llama")
@pytest.mark.parametrize("by", ["relevance", "absolute", "activation"])
def test_top_heads_and_neurons_are_those_of_the_tensors(by: str) -> None:
    module = explained("llama", torch.float64)
    found = lxt_fx.latent(module, {"input_ids": IDS}, 3)
    for places, count in (("attention.*.heads", 8), ("mlp.*.neurons", 96)):
        top = found.top(count, places, example=1, by=by)
        assert [(unit.place, unit.unit) for unit in top.found] and sum(map(len, top.values())) == len(top.found) == count
        scores = []
        for unit in top.found:
            relevance, activation = (each[unit.place][1] for each in (found.relevance, found.activation))
            if places.startswith("attention"):  # [heads, tokens, size]
                relevance, activation = relevance[unit.unit].sum(-1), activation[unit.unit].norm(dim=-1)
            else:
                relevance, activation = relevance[:, unit.unit], activation[:, unit.unit]
            at = int((activation if by == "activation" else relevance.abs()).argmax())
            assert (unit.position, unit.token) == (at, found.explanations[1].tokens[at])
            assert (unit.relevance, unit.activation) == pytest.approx((float(relevance.sum()), float(activation[at])))
            whole = relevance.sum()
            scores.append(float({"relevance": whole, "absolute": whole.abs(), "activation": activation.max()}[by]))
        assert scores == sorted(scores, reverse=True)
        assert all(unit.unit in top[unit.place] for unit in top.found)


@one_worker("llama")
def test_lines_of_heads_are_those_of_the_tensors() -> None:
    found = lxt_fx.latent(explained("llama", torch.float64), {"input_ids": IDS}, [[3, 5]] * 2, "attention.*.heads")
    frame = found.to_dataframe("*", "value")
    assert len(frame) == 2 * 2 * 2 * 5 * 4 and set(frame["layer"]) == {0, 1}
    relevance, activation = found.relevance["attention.1.heads"], found.activation["attention.1.heads"]
    for line in frame[frame["place"] == "attention.1.heads"].itertuples():
        value = relevance[line.target, line.example, line.unit, line.position]
        norm = activation[line.example, line.unit, line.position].norm()
        assert (line.relevance, line.activation) == pytest.approx((float(value.sum()), float(norm)))
        assert line.token == found.explanations[line.example].tokens[line.position]


@one_worker("llama")
def test_the_amounts_of_a_chain_are_those_at_its_last_place() -> None:
    module = explained("llama", torch.float64)
    chain = {"mlp.1.neurons": [3, 4], "residual.1": None, "mlp.0.neurons": [7, 8, 9]}
    for chunk in (1, None):
        both = lxt_fx.conditional(module, {"input_ids": IDS}, [chain, {"residual.1": 3}, chain], 3, chunk=chunk)
        for example in range(2):
            first, other, again = values(both[example])[0]
            alone = values(lxt_fx.conditional(module, one(example), chain, 3))[0][0]
            assert first == again == pytest.approx(alone, rel=1e-5)
            parts = [{**chain, "mlp.0.neurons": unit} for unit in (7, 8, 9)]
            apart = values(lxt_fx.conditional(module, one(example), parts, 3))[0]
            assert first == pytest.approx(sum(apart), rel=1e-4) and first != pytest.approx(other)
    middle = values(lxt_fx.conditional(module, one(0), {**chain, "residual.1": [0, 1]}, 3))[0][0]
    assert middle != pytest.approx(values(both[0])[0][0])  # the place in the middle is a condition too


def test_an_index_of_the_neurons_of_experts_is_no_unit(tmp_path: Any) -> None:
    """Neuron 3 of one expert and neuron 3 of the next are two neurons: sums over both are of nothing."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    module = lxt_fx.transform(hf.MixtralForCausalLM(hf.MixtralConfig(**sizes, **heads)).eval())
    text = {"input_ids": IDS[:1]}
    found = lxt_fx.latent(module, text, 1, ("mlp.0.neurons", "mlp.0.output", "experts.0.weights"))
    calls: list[Any] = [
        lambda: found.top(3),
        lambda: found.to_dataframe(),
        lambda: found["mlp.0.neurons"].by_unit(),
        lambda: lxt_fx.conditional(module, text, {"mlp.0.neurons": 3}, 1),
        lambda: lxt_fx.corpus(module, None, [[3, 7, 9]], "mlp.*.neurons", folder=tmp_path / "out"),
        lambda: lxt_fx.steer(module, {"mlp.0.neurons": lxt_fx.edits.scale(0, units=[3])}).__enter__(),
    ]
    for call in calls:
        with pytest.raises(lxt_fx.InputError, match="the neurons of several experts"):
            call()
    whole = lxt_fx.conditional(module, text, {"mlp.0.neurons": None}, 1)
    assert float(whole.numbers[0].value) == pytest.approx(found.total("mlp.0.neurons"), rel=1e-4)
    weights = found["experts.0.weights"].by_unit()[0, 0]
    assert found.top(1, "experts.*.weights").found[0].relevance == pytest.approx(float(weights.max()))


def test_top_units_of_several_places_are_no_chain() -> None:
    module, text = explained("llama"), {"input_ids": IDS[:1]}
    top = lxt_fx.latent(module, text, 1).top(12)
    assert len(top) == 2
    with pytest.raises(lxt_fx.InputError, match="the top units lie at 2 places"):
        lxt_fx.conditional(module, text, [top], 1)
    each = lxt_fx.conditional(module, text, [{unit.place: unit.unit} for unit in top.found], 1)
    for number, unit in zip(each.numbers, top.found, strict=True):
        assert float(number.value) == pytest.approx(unit.relevance, rel=1e-3, abs=1e-7)
    of_one = lxt_fx.latent(module, text, 1).top(3, "mlp.1.neurons")
    together = lxt_fx.conditional(module, text, of_one, 1)
    assert float(together.numbers[0].value) == pytest.approx(sum(unit.relevance for unit in of_one.found), rel=1e-3)


def test_a_value_is_written_by_its_axes_and_a_tokenizer_in_the_place_of_a_text_is_named() -> None:
    tokenizer = tiny_text.byte_tokenizer()
    module = lxt_fx.transform(tiny_text.llama(len(tokenizer)))
    found = lxt_fx.latent(module, "abc", [1, 2], "mlp.0.neurons", processor=tokenizer)
    assert repr(found["mlp.0.neurons"]) == "LatentValue(mlp.0.neurons, [batch 1, tokens 3, neurons 64], 2 targets)"
    with pytest.raises(lxt_fx.InputError, match="the tokenizer by name"):
        lxt_fx.latent(module, tokenizer, "abc")
    with pytest.raises(lxt_fx.InputError, match="give the tokenizer of LlamaForCausalLM as processor"):
        lxt_fx.latent(module, "abc", 1)


class Reordered(nn.Module):
    """Its middle sees the examples, or the tokens, as the function gives them; behind it they stand as before."""

    def __init__(self, there: Any, back: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.there, self.back, self.mix, self.head = there, back, nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        return self.head(self.back(self.mix(self.there(inputs_embeds)).relu()).mean(1))


REORDERED = {
    "flipped": (lambda x: x.flip(0), ("dim0", "tokens", "units")),
    "rolled": (lambda x: x.roll(1, 0), ("dim0", "tokens", "units")),
    "sorted": (lambda x: x.gather(0, x.detach().argsort(0)), ("dim0", "tokens", "units")),
    "indexed": (lambda x: x[x.detach().sum((1, 2)).argsort()], ("dim0", "tokens", "units")),
    "sorted whole": (lambda x: x.sort(0).values, ("dim0", "tokens", "units")),
    "rolled flat": (lambda x: x.roll(1), ("dim0", "dim1", "units")),
    "counted back": (lambda x: x[torch.arange(len(x) - 1, -1, -1)], ("dim0", "tokens", "units")),
    "tokens flipped": (lambda x: x.flip(1), ("batch", "dim1", "units")),
    "counted": (lambda x: x[torch.arange(len(x))], ("batch", "tokens", "units")),
    "units flipped": (lambda x: x.flip(2), ("batch", "tokens", "units")),
}


@pytest.mark.parametrize("kind", REORDERED)
def test_a_value_whose_examples_or_tokens_stand_in_another_order_has_no_axis_of_them(kind: str) -> None:
    there, axes = REORDERED[kind]
    explained = lxt_fx.transform(Reordered(there, lambda x: x), (), {"inputs_embeds": torch.randn(2, 5, 8)})
    assert places_at(explained, "mix", "places")["mix"].axes == axes


def test_reordered_examples_are_read_one_at_a_time() -> None:
    x = torch.randn(2, 5, 8)
    explained = lxt_fx.transform(Reordered(lambda x: x.flip(0), lambda x: x.flip(0)), (), {"inputs_embeds": x})
    with pytest.raises(lxt_fx.InputError, match=r"which part of mix .* belongs to which example"):
        lxt_fx.latent(explained, {"inputs_embeds": x}, lambda y: y[:, 1], ["mix"]).total("mix")
    plain = lxt_fx.transform(Reordered(lambda x: x, lambda x: x), (), {"inputs_embeds": x})
    for one in x.split(1):
        found = (lxt_fx.latent(each, {"inputs_embeds": one}, lambda y: y[:, 1], ["mix"]) for each in (explained, plain))
        totals = [each.total("mix") for each in found]
        assert totals[0] == pytest.approx(totals[1], rel=1e-5)
