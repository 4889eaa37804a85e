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
from lxt_fx.compiler.pipeline import captured_from
from lxt_fx.passes.analysis.token_lookups import token_lookups
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
    with pytest.raises(lxt_fx.InputError, match="looks 5 tokens up as .5, 8.*with_leaves"):
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
