"""Models that take token ids: relevance is read at their token embeddings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch
import torch.nn.functional as F
from golden_cases import relative
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import lxt_fx
from lxt_fx.attribution.text_input import NO_TOKENIZER
from lxt_fx.compiler.captures import captured_from
from lxt_fx.passes.analysis.token_lookups import _holds_tokens, token_lookups
from lxt_fx.passes.capture import capture as capturing

IDS = torch.tensor([[5, 9, 17, 23, 1], [3, 4, 7, 30, 2]])


class Scaled(nn.Embedding):
    """An embedding that scales what it looks up, as Gemma's and BART's do."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 3.0


class Reader(nn.Module):
    """Token ids to two classes; the ids also say where the text ends."""

    def __init__(self, hashed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head, self.hashed = Scaled(32, 8), nn.Linear(8, 2), hashed

    def forward(self, input_ids: Tensor) -> Tensor:
        looked_up = (input_ids * 7 + 1) % 32 if self.hashed else input_ids
        hidden = torch.tanh(self.tokens(looked_up))
        return self.head(hidden * (input_ids != 1)[..., None]).mean(1)


def test_ids_as_the_example_make_the_module_that_embeddings_make() -> None:
    model = tiny.llama()
    by_ids = lxt_fx.transform(model, kwargs={"input_ids": IDS})
    by_embeds = lxt_fx.transform(model)
    assert "inputs_embeds" in by_ids.record.inputs and "input_ids" not in by_ids.record.inputs
    found = []
    for explained in (by_ids, by_embeds):
        embeds = lxt_fx.embed(explained, IDS)
        explained(inputs_embeds=embeds).logits[:, -1, 3].sum().backward()
        assert embeds.grad is not None
        found.append(embeds.grad)
    assert relative(*found) <= 1e-5


def test_relevance_is_read_behind_the_scale_of_an_embedding_and_ids_stay_where_they_are_read() -> None:
    model = Reader().double().eval()
    explained = lxt_fx.transform(model, (IDS,), rules="gradient")
    assert explained.record.inputs == ("input_ids", "inputs_embeds") and explained.record.leaves == ("inputs_embeds",)
    embeds = lxt_fx.embed(explained, IDS)
    torch.testing.assert_close(embeds.detach(), model.tokens(IDS).detach())
    kept: list[Tensor] = []
    hook = model.tokens.register_forward_hook(lambda module, args, output: kept.append(output))
    (gradient,) = torch.autograd.grad(model(IDS)[:, 0].sum(), kept)
    hook.remove()
    output = explained(input_ids=IDS, inputs_embeds=embeds)
    torch.testing.assert_close(output, model(IDS))
    (found,) = torch.autograd.grad(output[:, 0].sum(), embeds)
    torch.testing.assert_close(found, gradient)
    assert bool((found[0, 4] == 0).all()) and bool((found[0, :4] != 0).any())  # token 1 is left out


def test_a_text_model_without_inputs_embeds_has_a_ledger_and_a_file(tmp_path: object) -> None:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=8, projection_dim=16, eos_token_id=1, bos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = CLIPTextModelWithProjection(config).double().eval()
    explained = lxt_fx.transform(model, kwargs={"input_ids": IDS})
    ledger = lxt_fx.audit(explained, {"input_ids": IDS}, lambda output: output.text_embeds[:, 0])
    ledger.check(1e-9)
    assert bool((ledger.sources[0].by_token().abs().sum(-1) > 1e-6).all())
    path = f"{tmp_path}/clip.safetensors"
    lxt_fx.save(explained, path)
    loaded, embeds = lxt_fx.load(path), lxt_fx.embed(model, IDS)
    torch.testing.assert_close(
        loaded(input_ids=IDS, inputs_embeds=embeds).text_embeds, model(input_ids=IDS).text_embeds, rtol=1e-9, atol=1e-12
    )


class Hashed(nn.Module):
    """Two tables by two hashes of each id, beside each other, and a position."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.places = nn.Embedding(8, 4), nn.Embedding(8, 4), nn.Embedding(9, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        tokens = torch.cat([self.first(input_ids * 7 % 8), self.second(input_ids * 5 % 8)], -1)
        return self.head(torch.tanh(tokens + self.places(torch.arange(input_ids.shape[1])))).mean(1)


class Coded(nn.Module):
    """Numbers that are rounded to codes, which are looked up."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.codes, self.head = nn.Embedding(8, 4), nn.Linear(4, 2)

    def forward(self, waves: Tensor) -> Tensor:
        return self.head(torch.tanh(self.codes(waves.abs().long().clamp(0, 7)))).sum(1)


@pytest.mark.parametrize("name", ["hashed", "joined", "coded"])
def test_lookups_of_what_is_made_of_an_input_are_joined_to_one_leaf(name: str) -> None:
    """Relevance of the tables by the model's own backward equals that of the leaf, passed on through the lookups."""
    model = {"hashed": Reader(hashed=True), "joined": Hashed(), "coded": Coded()}[name].double().eval()
    waves = torch.rand(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 9
    given = waves if name == "coded" else IDS
    explained = lxt_fx.transform(model, (given,), rules="gradient")
    leaf = "waves_embeds" if name == "coded" else "inputs_embeds"
    assert explained.record.leaves == (leaf,)
    assert explained.record.inputs == (("input_ids", leaf) if name == "hashed" else (leaf,))
    embeds = lxt_fx.embed(explained, given)
    output = explained(**{leaf: embeds} | ({"input_ids": given} if name == "hashed" else {}))
    torch.testing.assert_close(output, model(given))
    (gradient,) = torch.autograd.grad(output[:, 0].sum(), embeds)
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m is not getattr(model, "places", None)]
    expected = torch.autograd.grad(model(given)[:, 0].sum(), tables)
    (front,) = explained._fronts
    found = torch.autograd.grad(front.module(**{front.reads[0]: given}), tables, gradient)
    torch.testing.assert_close(found, expected)
    inputs = {leaf: embeds} | ({"input_ids": given} if name == "hashed" else {})
    lxt_fx.audit(lxt_fx.transform(model, (given,)), inputs, 0).check()


class TokensFirst(nn.Module):
    """Looks up [tokens, batch], as XLNet does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = nn.Embedding(32, 8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.tokens(input_ids.T)).cumsum(0)[-1])


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("ids", [IDS, IDS[:, :2]], ids=["two of five", "two of two"])
def test_a_leaf_has_the_batch_first_also_where_the_model_has_tokens_first(ids: Tensor, dynamic: bool) -> None:
    model = TokensFirst().double().eval()
    explained = lxt_fx.transform(model, (ids,), dynamic=dynamic)
    assert explained.record.gradient_difference == 0.0
    output, leaves = explained.with_leaves(ids)
    leaf = leaves["inputs_embeds"]
    assert torch.equal(leaf, model.tokens(ids)) and torch.equal(output, model(ids))
    assert torch.equal(explained(inputs_embeds=leaf), output)
    (gradient,) = torch.autograd.grad(output[1, 0], leaf)
    assert (gradient[0] == 0).all() and (gradient[1] != 0).all()  # the relevance of the second text
    relevance = lxt_fx.relevance_of(explained, ids, [lambda out: out[:, 0]])
    torch.testing.assert_close(relevance[0, 1], (leaf * gradient).sum(-1)[1].detach())


class Packed(nn.Module):
    """Looks the tokens of all texts up as one list, and joins neighbours before there are texts again."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = nn.Embedding(32, 8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        looked_up = torch.tanh(self.tokens(input_ids.flatten()))
        return self.head(looked_up + looked_up.roll(1, 0)).view(*input_ids.shape, 2).mean(1)


def test_explain_refuses_a_leaf_without_a_place_for_each_token() -> None:
    """One token of [tokens, hidden] was taken for the text."""
    with pytest.raises(lxt_fx.InputError, match="looks input_ids .1, 5. up as .5, 8.*with_leaves"):
        lxt_fx.explain(Packed().eval(), NO_TOKENIZER, IDS[:1], 1)


class TwoTexts(nn.Module):
    """Looks up the words of a task, and the number of a task."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.tasks = nn.Embedding(9, 4), nn.Embedding(3, 4)

    def forward(self, tasks_input_ids: Tensor, task_ids: Tensor) -> Tensor:
        return self.words(tasks_input_ids).mean(1) * self.tasks(task_ids)


def test_input_ids_are_tokens_whatever_they_tell_of() -> None:
    ids, tasks = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([0, 1])
    gm = captured_from(TwoTexts(), (), {"tasks_input_ids": ids, "task_ids": tasks}, dynamic=False).captured.gm
    assert [[node.name for node in lookup.inputs] for lookup in token_lookups(gm)] == [["tasks_input_ids"]]


class Drawn(nn.Module):
    """Looks up a text and the codes of an image in one table, as Emu3 does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.kinds, self.codebook, self.head = (
            nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Parameter(torch.randn(5, 3)), nn.Linear(4, 2),
        )  # fmt: skip

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        codes = torch.cdist(pixel_values, self.codebook).argmin(-1)
        hidden = torch.cat((self.table(codes + 4), self.table(input_ids) + self.kinds(codes[:, :1])), 1)
        return self.head(torch.tanh(hidden)).mean(1)


def test_codes_that_are_looked_up_in_the_table_of_the_text_are_tokens_too() -> None:
    """The image got no relevance at all, and the gradient at the table was that of the text alone."""
    torch.manual_seed(1)
    inputs = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "pixel_values": torch.randn(2, 4, 3)}
    model = Drawn().eval()
    model.requires_grad_(False).table.requires_grad_(True)
    explained = lxt_fx.transform(model, kwargs=inputs, rules="gradient")
    assert explained.record.leaves == ("inputs_embeds", "pixel_values_embeds")
    output, leaves = explained.with_leaves(**inputs)
    assert torch.equal(output, model(**inputs))
    output[:, 1].sum().backward()
    (expected,) = torch.autograd.grad(model(**inputs)[:, 1].sum(), model.table.weight)
    codes = torch.cdist(inputs["pixel_values"], model.codebook).argmin(-1) + 4
    found = torch.zeros_like(expected)
    for ids, leaf in ((inputs["input_ids"], leaves["inputs_embeds"]), (codes, leaves["pixel_values_embeds"])):
        assert leaf.grad is not None
        found.index_put_((ids,), leaf.grad, accumulate=True)
    torch.testing.assert_close(found, expected)
    lxt_fx.audit(lxt_fx.transform(model, kwargs=inputs), inputs, 1).check()


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("browser", True), ("unmasked_ids", True), ("masked_ids", True), ("genotypes", True), ("slang", True),
        ("row_ids", False), ("rows", False), ("attn_mask", False), ("masks_0", False), ("tokentype_ids", False),
        ("langs", False), ("task_ids", False), ("cache_position", False), ("token_type_input_ids", True),
    ],
)  # fmt: skip
def test_the_name_of_an_input_says_whether_it_holds_tokens(name: str, holds: bool) -> None:
    assert _holds_tokens(name) is holds


def test_what_masked_tokens_are_looked_up_as_is_no_mask() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, words: Tensor, masked_words: Tensor, soft_mask: Tensor, unmasked_values: Tensor) -> Tensor:
            looked_up = self.table(words) + self.table(masked_words) * soft_mask + unmasked_values
            out: Tensor = self.last(torch.tanh(looked_up))
            return out

    ids = torch.tensor([[1, 2, 5], [8, 2, 1]])
    explained = lxt_fx.transform(Net().eval(), (ids, ids + 0, torch.rand(2, 3, 1), torch.rand(2, 3, 4)))
    assert explained.record.leaves == ("words_embeds", "masked_words_embeds", "unmasked_values")


class Columns(nn.Module):
    """A table of numbers whose first two columns are categories, looked up one by one or all at once."""

    def __init__(self, together: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.together, self.table = together, nn.Embedding(12, 4)
        self.numbers, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, X: Tensor) -> Tensor:
        if self.together:
            looked_up = self.table(X[:, :2].long() + torch.tensor([0, 5]))
        else:
            looked_up = torch.stack([self.table(X[:, 0].long()), self.table(X[:, 1].long() + 5)], 1)
        joined = torch.cat([looked_up, self.numbers(X[:, 2:])[:, None]], 1)
        out: Tensor = self.last(torch.tanh(joined).mean(1))
        return out


@pytest.mark.parametrize("together", [False, True])
def test_columns_of_numbers_that_are_cast_to_categories_are_leaves(together: bool) -> None:
    net = Columns(together).eval()
    X = torch.cat([torch.tensor([[1.0, 2.0], [4.0, 0.0], [3.0, 6.0]]), torch.rand(3, 3)], 1)
    explained = lxt_fx.transform(net, (X,), rules="gradient")
    assert explained.record.leaves == (("X", "X_embeds") if together else ("X", "X_embeds", "X_embeds_table"))
    output, leaves = explained.with_leaves(X[:2])
    output[:, 0].sum().backward()
    net(X[:2])[:, 0].sum().backward()
    columns = X[:2, :2].long() + torch.tensor([0, 5])
    found = torch.zeros(12, 4)
    for column, name in ((columns, "X_embeds"),) if together else zip(columns.T, list(leaves)[1:], strict=True):
        found.index_add_(0, column.reshape(-1), leaves[name].grad.reshape(-1, 4))  # type: ignore[union-attr]
    assert net.table.weight.grad is not None and torch.allclose(found, net.table.weight.grad, atol=1e-6)


def test_tokens_of_a_dtype_that_no_table_takes_are_refused_by_name() -> None:
    explained = lxt_fx.transform(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)).eval(), (torch.tensor([[1, 2, 3]]),))
    with pytest.raises(lxt_fx.CallError, match="input holds numbers of int16, and the graph was captured for int64"):
        explained(torch.tensor([[1, 2, 3]], dtype=torch.int16))


class LookedUpWithoutGradient(nn.Module):
    """A text beside what its tokens look up under no_grad, as LayoutLMv3 looks up boxes."""

    def __init__(self, lookup: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.other, self.lookup = nn.Embedding(32, 8), nn.Parameter(torch.randn(32, 8)), lookup

    def forward(self, input_ids: Tensor) -> Tensor:
        with torch.no_grad():
            other = self.lookup(self.other, input_ids) * 2
        return torch.tanh(self.tokens(input_ids) * other).sum(-1)


LOOKUPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "embedding": lambda table, ids: F.embedding(ids, table),
    "index": lambda table, ids: table[ids],
    "one-hot": lambda table, ids: F.one_hot(ids, 32).float() @ table,
    "compared": lambda table, ids: (ids[..., None] == torch.arange(32)).float() @ table,
    "bag": lambda table, ids: F.embedding_bag(ids.flatten()[:, None], table).view(*ids.shape, -1),
}


@pytest.mark.parametrize("by", ["torch.export", "make_fx"])
@pytest.mark.parametrize("lookup", LOOKUPS)
def test_what_is_looked_up_without_gradient_is_no_leaf(lookup: str, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "make_fx":
        monkeypatch.setattr(capturing, "_export", lambda *args, **kwargs: 1 / 0)
    model = LookedUpWithoutGradient(LOOKUPS[lookup]).eval()
    explained = lxt_fx.transform(model, (IDS,), rules="gradient")  # compares its gradient with the model's
    assert explained.record.leaves == ("inputs_embeds",)
    torch.testing.assert_close(explained(IDS), model(IDS))


def test_a_model_that_reads_all_its_inputs_without_gradient_is_refused_with_that_reason() -> None:
    class Frozen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                hidden = x * 2
            return hidden + 1

    with pytest.raises(lxt_fx.InputError, match=r"own code stops gradients on the way \(torch.no_grad or detach\)"):
        lxt_fx.transform(Frozen(), (torch.randn(2, 3),))


def test_one_hot_vectors_beside_features_are_no_lookup() -> None:
    """The product of both with a table was taken for what the tokens look up, so the features had no relevance."""

    class Prompted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.last = nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, features: Tensor, prompt_ids: Tensor) -> Tensor:
            vectors = F.one_hot(prompt_ids, 3).to(features)[:, None].expand(-1, features.shape[1], -1)
            out: Tensor = self.last(torch.tanh(self.table(torch.cat([features, vectors], -1))))
            return out

    explained = lxt_fx.transform(Prompted().eval(), (torch.randn(2, 5, 3), torch.tensor([0, 2])))
    assert explained.record.leaves == ("features",)
