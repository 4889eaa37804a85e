"""Long texts: graph and model are compared step by step on a part, and once on the whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny
import torch
from torch import Tensor, nn

import lxt_fx
from lxt_fx.attribution.as_explained import as_explained
from lxt_fx.compiler.kept_captures import forget_captures
from lxt_fx.passes.capture.example import Example
from lxt_fx.passes.capture.short_example import SHORT, short_example

TOKENS = 2 * SHORT + 5


def ids(batch: int = 1) -> Tensor:
    return torch.randint(3, 60, (batch, TOKENS), generator=torch.Generator().manual_seed(0))


def example(**kwargs: Tensor) -> Example:
    return Example(kwargs, {})


def test_a_text_is_cut_along_its_tokens_and_nowhere_else() -> None:
    mask, embeddings = torch.ones(2, TOKENS, dtype=torch.long), torch.randn(2, TOKENS, TOKENS)
    square, places = torch.ones(2, 1, TOKENS, TOKENS), torch.arange(TOKENS).expand(3, 2, TOKENS)
    found = short_example(example(inputs_embeds=embeddings, attention_mask=mask, causal_mask=square, position_ids=places))
    assert found is not None
    assert torch.equal(found.kwargs["inputs_embeds"], embeddings[:, :SHORT])
    assert found.kwargs["attention_mask"].shape == (2, SHORT) and found.kwargs["causal_mask"].shape == (2, 1, SHORT, SHORT)
    assert torch.equal(found.kwargs["position_ids"], places[..., :SHORT])


def test_a_text_that_is_padded_in_front_is_cut_there() -> None:
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[0, :5] = 0
    found = short_example(example(input_ids=ids(2), attention_mask=mask))
    assert found is not None and torch.equal(found.kwargs["input_ids"], ids(2)[:, -SHORT:])


def test_other_inputs_and_short_texts_are_left_whole() -> None:
    only_padding = torch.ones(2, TOKENS, dtype=torch.long)
    only_padding[0, :-1], only_padding[1, SHORT - 1 :] = 0, 0  # one text at the end, one in front
    for given in (
        example(input_ids=ids()[:, :SHORT]),
        example(input_ids=ids(), pixel_values=torch.randn(1, 3, 8, 8)),
        example(input_ids=ids(), features=torch.randn(1, TOKENS)),
        example(x=torch.randn(1, TOKENS)),
        example(input_ids=ids(2), attention_mask=only_padding),
    ):
        assert short_example(given) is None


def test_both_texts_of_an_encoder_decoder_are_cut() -> None:
    given = example(input_ids=ids(), decoder_input_ids=ids()[:, :4], attention_mask=torch.ones(1, TOKENS))
    found = short_example(given)
    assert found is not None
    assert {name: x.shape[1] for name, x in found.kwargs.items()} == {
        "input_ids": SHORT, "decoder_input_ids": 4, "attention_mask": SHORT,
    }  # fmt: skip


@contextmanager
def lengths_of(model: nn.Module) -> Iterator[list[tuple[int, bool]]]:
    """The tokens of each forward of the model inside the block, and whether it was made for a gradient."""
    found, own = list[tuple[int, bool]](), type(model).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        text = kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        if type(text) is Tensor:
            found.append((text.shape[1], torch.is_grad_enabled()))
        return own(self, *args, **kwargs)

    forward.__wrapped__ = own  # type: ignore[attr-defined]  # its signature
    with mock.patch.object(type(model), "forward", forward):
        yield found


def test_the_model_reads_the_whole_text_once_and_never_for_a_gradient() -> None:
    model = tiny.llama(layers=1)
    for _ in range(2):
        with lengths_of(model) as lengths:
            lxt_fx.explain(model, None, ids(), 3)
        assert [grad for length, grad in lengths if length == TOKENS] == [False]
        assert max(length for length, grad in lengths if grad) <= SHORT


@pytest.mark.parametrize("position", [None, 1, SHORT + 3])
def test_relevance_is_that_of_the_whole_text(position: int | None) -> None:
    model = tiny.llama(layers=1)
    target = 3 if position is None else lxt_fx.Target(3, position=position)
    expected = lxt_fx.explain(lxt_fx.transform(model), None, ids(), target)
    for _ in range(2):
        found = lxt_fx.explain(model, None, ids(), target)
        assert found.relevance.shape == (TOKENS,)
        torch.testing.assert_close(found.relevance, expected.relevance, rtol=1e-4, atol=1e-6)


class Late(nn.Module):
    """Reads a number for its late tokens that no fact of the model shows."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = str(path)
        self.embedding = nn.Embedding(60, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        late = torch.arange(input_ids.shape[1], device=x.device) >= SHORT + 1
        out: Tensor = torch.where(late[:, None], float(Path(self.path).read_text()) * x, x)
        return out


def test_what_only_late_tokens_show_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "number"
    model = Late(path).eval()
    for number in (2, 2, 3):
        path.write_text(str(number))
        module = as_explained(model, (), {"input_ids": ids()}, "test")
        torch.testing.assert_close(module(input_ids=ids()), model(ids()))
        assert module.record.forward_difference < 1e-6


def test_a_gradient_that_capture_lost_is_found_on_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tripled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 1 * x

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return 3 * gradients[0]

    forget_captures()
    model = tiny.llama(layers=1)
    own = model.model.norm.forward
    monkeypatch.setattr(model.model.norm, "forward", lambda x: Tripled.apply(own(x)))
    found = lxt_fx.explain(model, None, ids(), 3, rules="gradient")
    leaf = model.get_input_embeddings()(ids()).detach().requires_grad_()
    model(inputs_embeds=leaf).logits[0, -1, 3].backward()
    assert leaf.grad is not None
    torch.testing.assert_close(found.relevance, (leaf * leaf.grad).sum(-1)[0].detach(), rtol=1e-4, atol=1e-6)
