"""`places` where layers are no plain chain: scores of another stream, pooled skips, appended tokens, joined maps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import lxt_fx

EXACT = 1e-9
"""float64, relative to the largest entry. Measured: 0."""


class Attention(nn.Module):
    """Written out, with two heads, so that scores can be shared."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries, self.keys, self.values, self.out = (nn.Linear(width, width) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], 2, -1).transpose(1, 2)

    def scores(self, x: Tensor, context: Tensor) -> Tensor:
        queries, keys = self.split(self.queries(x)), self.split(self.keys(context))
        return queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])

    def forward(self, scores: Tensor, context: Tensor) -> Tensor:
        given: Tensor = self.out((scores.softmax(-1) @ self.split(self.values(context))).transpose(1, 2).flatten(2))
        return given


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.norms = Attention(width), nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))

    def forward(self, x: Tensor, scores: Tensor, context: Tensor) -> Tensor:
        x = self.norms[0](x + self.attention(scores, context))
        normed: Tensor = self.norms[1](x + self.mlp(x))
        return normed


class Twins(nn.Module):
    """As LiLT: text and layout have layers of their own, and each adds the scores of the other to its own. The layout is
    read of boxes of whole numbers, which have no relevance, but what it sees of the text's scores has."""

    def __init__(self, own_first: bool) -> None:
        super().__init__()
        self.own_first, self.boxes = own_first, nn.Embedding(9, 4)
        self.text, self.layout = (nn.ModuleList(Layer(width) for _ in range(3)) for width in (8, 4))

    def states(self, x: Tensor, boxes: Tensor) -> list[Tensor]:
        layout, found = self.boxes(boxes), [x]
        for one, other in zip(self.text, self.layout, strict=True):
            own, foreign = one.attention.scores(x, x), other.attention.scores(layout, layout)
            x, layout = one(x, own + foreign if self.own_first else foreign + own, x), other(layout, foreign + own, layout)
            found.append(x)
        return found

    def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
        return self.states(x, boxes)[-1][:, 0]


class Funnel(nn.Module):
    """As Funnel transformers: the queries of a layer are pooled, and so is what it adds to."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(8) for _ in range(3))

    def states(self, x: Tensor) -> list[Tensor]:
        found = [x]
        for place, layer in enumerate(self.layers):
            pooled = nn.functional.avg_pool2d(x[:, None], (2, 1))[:, 0] if place else x
            x = layer(pooled, layer.attention.scores(pooled, x), x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.states(x)[-1][:, 0]


class Messages(nn.Module):
    """As X-CLIP: what the first token of each frame says to those of the other frames is appended to its frame, and taken
    away behind the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.messages = (nn.ModuleList(Layer(8) for _ in range(2)) for _ in range(2))
        self.said = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def states(self, x: Tensor) -> list[Tensor]:
        found = [x]
        for layer, messages, said in zip(self.layers, self.messages, self.said, strict=True):
            first = said(x[:, 0])[None]
            told = first + messages.attention(messages.attention.scores(first, first), first)
            joined = torch.cat([x, told.transpose(0, 1)], 1)
            joined = joined + layer.attention(layer.attention.scores(joined, joined), joined)
            x = joined[:, : x.shape[1]]
            x = x + layer.mlp(layer.norms[1](x))
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.states(x)[-1][:, 0]


def checked(model: Twins | Funnel | Messages, *inputs: Tensor) -> lxt_fx.Explained:
    """The transformed model, whose residual stream is what the layers of the model give."""
    module = lxt_fx.transform(model, inputs)
    with torch.no_grad(), lxt_fx.watch(module, "residual.*") as inside:
        module(*inputs)
        states = model.states(*inputs)
    assert list(inside) == [f"residual.{layer}" for layer in range(len(states))]
    for layer, state in enumerate(states):
        value = inside[f"residual.{layer}"].value
        assert value.shape == state.shape, layer
        assert float((value - state).abs().max()) <= EXACT * float(state.abs().max()), layer
    return module


@pytest.mark.parametrize("own_first", (True, False), ids=("own scores first", "own scores last"))
def test_scores_of_another_stream_pass_by(own_first: bool) -> None:
    torch.manual_seed(0)
    model = Twins(own_first).eval().double()
    x, boxes = torch.randn(2, 5, 8, dtype=torch.float64), torch.randint(9, (2, 5))
    module = checked(model, x, boxes)
    with torch.no_grad(), lxt_fx.watch(module, "attention.2.queries", "attention.2.keys", "residual.2") as inside:
        module(x, boxes)
    layer: Layer = model.text[2]  # type: ignore[assignment]
    attention, state = layer.attention, inside["residual.2"].value
    with torch.no_grad():
        assert torch.equal(inside["attention.2.queries"].value, attention.split(attention.queries(state)))
        assert torch.equal(inside["attention.2.keys"].value, attention.split(attention.keys(state)))


def test_a_skip_may_be_pooled() -> None:
    torch.manual_seed(0)
    module = checked(Funnel().eval().double(), torch.randn(2, 8, 8, dtype=torch.float64))
    units = {name for name in lxt_fx.places(module) if name.endswith(("heads", "neurons"))}
    assert units == {name for layer in range(3) for name in (f"attention.{layer}.heads", f"mlp.{layer}.neurons")}


def test_appended_tokens_are_of_the_layer_that_appends_them() -> None:
    """The residual stream is what stands before them; the message is an attention of the layer, and its own is another."""
    torch.manual_seed(0)
    model, x = Messages().eval().double(), torch.randn(3, 5, 8, dtype=torch.float64)
    module = checked(model, x)
    with torch.no_grad(), lxt_fx.watch(module, "attention.1.*.output", "mlp.1.*.output", "residual.*") as inside:
        module(x)
    values = {name: seen.value for name, seen in inside.items()}
    appended = (values["mlp.1.0.output"] + values["attention.1.0.output"]).reshape(3, 1, 8)
    added = values["attention.1.1.output"] + torch.cat([values["residual.1"], appended], 1)
    after = added[:, :5] + values["mlp.1.1.output"]
    assert float((after - values["residual.2"]).abs().max()) <= EXACT * float(after.abs().max())


def test_a_map_that_is_joined_with_what_became_of_it_passes_by() -> None:
    """As in MobileViT: the layers of each stage stand between a convolution and a fusion with what it gave, channel by
    channel."""

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stems = nn.ModuleList([nn.Conv2d(1, 8, 2, 2), nn.Conv2d(16, 8, 2, 2)])
            self.layers, self.head = nn.ModuleList(Layer(8) for _ in range(2)), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            for stem, layer in zip(self.stems, self.layers, strict=True):
                x = stem(x)
                tokens = x.flatten(2).transpose(1, 2)
                tokens = layer(tokens, layer.attention.scores(tokens, tokens), tokens)
                x = torch.cat([x, tokens.transpose(1, 2).reshape(x.shape)], 1)
            given: Tensor = self.head(x.mean((2, 3)))
            return given

    places = lxt_fx.places(lxt_fx.transform(Fused().eval(), (torch.randn(2, 1, 8, 8),)))
    assert [name for name in places if name.startswith("residual")] == [f"residual.{layer}" for layer in range(3)]
