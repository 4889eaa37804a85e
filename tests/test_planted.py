"""`benchmarks/circuits/planted.py`: its texts, which heads and edges it calls known, and what relevance finds of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lxt_fx

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks" / "circuits"))
import planted  # noqa: E402
import planted_models  # noqa: E402
import planted_pairs  # noqa: E402


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def untrained() -> Any:
    """A decoder as `planted_models` makes it, with weights large enough for heads to differ."""
    model = planted_models.decoder(0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=chance(1)))
    return model


def test_a_repeated_text_asks_only_where_the_token_before_came_before() -> None:
    texts = planted_models.repeated(40, chance())
    for ids, asked, period in zip(texts.ids, texts.asked, planted_pairs.period_of(texts.ids)[:, 0].tolist(), strict=True):
        assert len(set(ids[:period].tolist())) == period and torch.equal(ids[period:], ids[:-period])
        assert asked.nonzero().flatten().tolist() == list(range(period, len(ids) - 1))
    assert len(set(planted_pairs.period_of(texts.ids)[:, 0].tolist())) > 10


def test_the_first_token_comes_again_behind_each_question_for_it() -> None:
    texts = planted_models.first_again(40, chance())
    assert torch.equal(texts.answers, texts.ids[:, :1].expand_as(texts.ids)[texts.asked])
    assert torch.equal(texts.ids == planted_models.FIRST, texts.asked)


def test_a_question_asks_for_the_token_behind_its_marker() -> None:
    texts = planted_models.marked(60, chance())
    wanted, other = planted_models.marked_answers(texts)
    pairs = dict(zip(planted_models.QUESTIONS, planted_models.MARKERS, strict=True))
    for ids, right, wrong in zip(texts.ids, wanted.tolist(), other.tolist(), strict=True):
        assert [int(ids[at - 1]) for at in right] == [pairs[int(question)] for question in ids[-2:]]
        assert right == wrong[::-1] and right[0] != right[1]
        assert all(int((ids == marker).sum()) == 1 for marker in planted_models.MARKERS)
    assert len({tuple(ids[-2:].tolist()) for ids in texts.ids}) == 2


def test_attention_is_read_where_a_token_is_asked_for(untrained: Any) -> None:
    texts = planted_models.repeated(3, chance())
    places = torch.arange(texts.ids.shape[1]).expand_as(texts.ids) - 1
    found = planted_models.attention_to(untrained, texts, places)
    assert untrained.config._attn_implementation == "sdpa"
    untrained.set_attn_implementation("eager")
    patterns = untrained(input_ids=texts.ids, output_attentions=True).attentions
    untrained.set_attn_implementation("sdpa")
    expected = [
        torch.stack([pattern[text, :, at, at - 1] for text, at in texts.asked.nonzero().tolist()]).mean(0)
        for pattern in patterns
    ]
    torch.testing.assert_close(found, torch.stack(expected))


def test_without_a_head_that_writes_nothing_the_answers_are_the_same(untrained: Any) -> None:
    model = planted_models.decoder(0).eval()
    model.load_state_dict(untrained.state_dict())
    width = planted_models.WIDTH // planted_models.HEADS
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[:, width : 2 * width] = 0
    texts = planted_models.repeated(20, chance())

    def own(some: planted_models.Texts) -> Tensor:
        """What the model answers, so that a change of any answer is a loss."""
        found: Tensor = model(input_ids=some.ids).logits[some.asked].argmax(1)
        return found

    answers = own(texts)
    kept = planted_models.accuracy_without(model, texts, lambda some: answers)
    assert float(kept[1, 1]) == 1 and float(kept.min()) < 0.9


def test_a_known_head_attends_there_and_is_missed() -> None:
    attends, drops = torch.tensor([[0.9, 0.9, 0.1, 0.4]]), torch.tensor([[0.5, 0.0, 0.5, 0.06]])
    assert planted_models.heads_that(attends, drops, 0) == ("attention.0.heads:0", "attention.0.heads:3")


def test_on_top_is_the_share_of_known_units_among_as_many() -> None:
    scores = torch.tensor([[3.0, -5.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    assert planted.on_top(scores, torch.tensor([True, True, False, False])).tolist() == [1.0, 0.0]


def test_the_effect_of_an_edge_is_what_the_number_loses_when_it_is_corrupted(untrained: Any) -> None:
    """The MLP of the last layer is read by the logits alone, so its edge is a patch of its output."""
    clean, corrupted = torch.randint(5, 60, (2, 4, 9), generator=chance(2))
    own = planted_pairs.Planted("", untrained, 1.0, clean, corrupted, [(7, 9)] * 4, {}, torch.zeros(4))
    explained = lxt_fx.transform(untrained, rules="gradient")
    scores = lxt_fx.circuit_scores(explained, *own.given)
    found = planted.edge_effects(explained, own, scores)
    assert found.shape == scores.is_edge.shape and not found[~scores.is_edge].any()
    mlp, written = untrained.model.layers[1].mlp, list[Tensor]()

    def number(ids: Tensor) -> float:
        logits = untrained(input_ids=ids).logits[:, -1]
        return float((logits[:, 7] - logits[:, 9]).mean())

    with torch.no_grad():
        with mlp.register_forward_hook(lambda module, given, output: written.append(output)):
            whole, none = number(clean), number(corrupted)

        def patch(module: nn.Module, given: Any, output: Tensor) -> Tensor:
            return written[1]

        with mlp.register_forward_hook(patch):
            patched = number(clean)
    at = scores.writers.index("mlp.1.output"), scores.readers.index("logits")
    assert float(found[at]) == pytest.approx((whole - patched) / (whole - none), abs=1e-3)
    assert abs(float(found[at])) > 0.01


@pytest.mark.slow("trains a model for half a minute")
def test_attnlrp_finds_the_known_heads_and_edges_of_an_induction_model() -> None:
    (own,) = planted_pairs.induction(1500, 40)
    assert own.accuracy > 0.95 and all(own.heads.values())
    found = planted.measured(own)
    behind, before = own.heads["behind the earlier one"], own.heads["previous token"]
    keys = {(head, f"{other.replace('heads', 'keys')}") for head in before for other in behind}
    assert keys & {(writer, reader) for writer, reader, _ in found["edges"]}
    for name in ("attnlrp", "attnlrp, 5 steps"):
        assert found["methods"][name]["edges by the mean"] > 0.8
        assert keys & {(writer, reader) for writer, reader, _ in found["top edges"][name]}
    assert found["methods"]["attnlrp"]["heads by the mean"] == 1
    assert found["methods"]["random"]["edges"][2] < 0.2
    assert all(each["on top"][0] > 0.5 for each in planted.query_key(own, "attnlrp").values())


@pytest.mark.slow("trains a model for half a minute")
def test_attnlrp_finds_the_copied_token_and_not_the_one_that_distracts() -> None:
    token, marker = planted_pairs.copying(1500, 40)
    assert token.accuracy > 0.95 and all(marker.heads.values())
    found = planted.tokens(token, "attnlrp")
    assert found["first of the text"][0] == found["above the other"][0] == 1
    assert found["its share"][0] > 0.5 and abs(found["share of the other"][0]) < 0.02
    for own in (token, marker):
        assert planted.measured(own)["methods"]["attnlrp, 5 steps"]["edges by the mean"] > 0.8
