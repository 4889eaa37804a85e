"""Activation maximisation: planted units whose best picture is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny_text
import torch

import lxt_fx
from lxt_fx import InputError, Regularisers, UnknownNameError
from lxt_fx.inside.maximise import _weights


def red(patch: int = 0) -> Any:
    """A ViT in which unit 4 of the stream before layer 0 is the red of a patch less its blue."""
    model = tiny_text.vit()
    with torch.no_grad():
        projection = model.vit.embeddings.patch_embeddings.projection
        projection.weight[4] = 0
        projection.weight[4, 0], projection.weight[4, 2] = 1 / 16, -1 / 16
        model.vit.embeddings.position_embeddings[..., 4] = 0
        projection.bias[4] = 0
    return model


def test_a_unit_that_looks_for_red_gets_red_pictures_from_every_start() -> None:
    model = red()
    state, before = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    found = lxt_fx.maximise(model, "residual.0", 4, bounds=(-1.0, 1.0), steps=100, seeds=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not parameter.grad_fn and parameter.grad is None for parameter in model.parameters())
    assert found.pixel_values.shape == (3, 3, 8, 8) and found.shown.shape == (3, 8, 8, 3) and found.curve.shape == (100, 3)
    shown = found.shown.float().mean((1, 2))
    assert (shown[:, 0] > 165).all() and (shown[:, 2] < 90).all() and ((shown[:, 1] - 127).abs() < 40).all()
    with torch.no_grad():
        projection = model.vit.embeddings.patch_embeddings.projection
        patches = projection(found.pixel_values)[:, 4].mean((1, 2)) * 4 / 5  # and a class token, which is 0 there
    cls = model.vit.embeddings.cls_token[0, 0, 4] / 5
    torch.testing.assert_close(found.values, patches + cls, rtol=1e-4, atol=1e-4)
    assert (found.values > found.before + 0.5).all() and found.spread()[2] > 0.97
    again = lxt_fx.maximise(model, "residual.0", 4, bounds=(-1.0, 1.0), steps=100, seeds=3)
    assert torch.equal(again.pixel_values, found.pixel_values)
    html = found._repr_html_()
    assert html.count("data:image/png") == 3 and "start 2" in html


def test_one_position_changes_one_patch() -> None:
    off = Regularisers(jitter=0, decay=0.0, variation=0.0, grey=1.0)
    found = lxt_fx.maximise(red(), "residual.0", 4, bounds=(-1.0, 1.0), steps=60, seeds=2, position=2, regularisers=off)
    redder = (found.shown[..., 0].float() - found.shown[..., 2].float()).mean(0)  # [height, width]
    inside, outside = redder[:4, 4:], torch.cat([redder[:4, :4], redder[4:, :4], redder[4:, 4:]])  # patch 0, 1
    assert inside.mean() > 60 and outside.mean().abs() < 20
    shifted = lxt_fx.maximise(
        red(), "residual.0", 4, bounds=(-1.0, 1.0), steps=60, seeds=2, position=2, regularisers=replace(off, jitter=4)
    )
    redder = (shifted.shown[..., 0].float() - shifted.shown[..., 2].float()).mean(0)
    assert redder[4:, :4].mean() > 20  # a shift by up to a patch brings those beside it to the position


def test_starts_are_drawn_from_the_seed_and_alike_is_of_what_changed() -> None:
    same_everywhere = red()
    with torch.no_grad():
        same_everywhere.vit.embeddings.patch_embeddings.projection.bias[5] = 100
    first, other, constant = (
        lxt_fx.maximise(model, "residual.0", 4, bounds=(-1.0, 1.0), steps=1, seeds=3, seed=seed)
        for model, seed in ((red(), 0), (red(), 1), (same_everywhere, 0))
    )
    assert not torch.equal(first.pixel_values, other.pixel_values)
    torch.testing.assert_close(first.alike, constant.alike, rtol=0, atol=1e-3)
    assert float(first.alike.min()) < 0.9 and float(first.alike.diagonal().mean()) == pytest.approx(1)
    two = replace(first, values=torch.tensor([1.0, 3.0]), alike=torch.tensor([[1.0, 0.2], [0.2, 1.0]]))
    assert two.spread() == pytest.approx((2, 2**0.5, 0.2))


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_frequencies_fall_by_their_power_and_pixels_have_one_size(decay: float) -> None:
    weights = _weights(8, 8, decay)
    assert weights.shape == (8, 5) and float(weights.square().mean()) == pytest.approx(64)
    assert float(weights[0, 1] / weights[0, 2]) == pytest.approx(2**decay) and weights[0, 0] == weights[0, 1]
    assert float(weights[3, 4] / weights[0, 1]) == pytest.approx(5**-decay) and weights[5, 0] == weights[3, 0]


def test_regularisers_do_what_they_say() -> None:
    def roughness(regularisers: Regularisers) -> float:
        found = lxt_fx.maximise(
            tiny_text.vit(), "mlp.0.neurons", 3, bounds=(-1.0, 1.0), steps=30, seeds=2, regularisers=regularisers
        )
        shown = found.shown.float()
        return float(shown.diff(dim=1).abs().mean() + shown.diff(dim=2).abs().mean())

    plain = roughness(Regularisers(0, 0.0, 0.0, 0.0))
    assert roughness(Regularisers(0, 1.0, 0.0, 0.0)) < plain
    assert roughness(Regularisers(0, 0.0, 5.0, 0.0)) < plain
    assert roughness(Regularisers(0, 0.0, 0.0, 50.0)) < plain


def test_an_explained_module_and_its_processor_serve_too() -> None:
    def processor(picture: Any) -> torch.Tensor:
        shade = torch.tensor(picture.getpixel((0, 0))).float() / 255
        return ((shade - 0.25) / 0.5)[:, None, None].expand(3, 8, 8)

    found = lxt_fx.maximise(lxt_fx.transform(red()), "residual.0", 4, processor=processor, steps=5, seeds=1)
    assert found.pixel_values.shape == (1, 3, 8, 8)
    assert found.pixel_values.min() >= -0.5 and found.pixel_values.max() <= 1.5
    assert torch.isnan(torch.tensor(found.spread()[1]))
    full_size = lxt_fx.maximise(
        red(), "residual.0", 4, processor=lambda picture: processor(picture)[:, :1, :1].expand(3, 64, 64), steps=1, seeds=1,
        shape=(3, 8, 8),
    )  # fmt: skip
    assert full_size.pixel_values.shape == (1, 3, 8, 8)


def test_what_cannot_be_maximised_is_refused() -> None:
    model = tiny_text.vit()
    for arguments, why in (
        ({"place": "residual.0", "unit": 32}, "has no unit 32"),
        ({"place": "residual.*", "unit": 1}, "stands for 2 places"),
        ({"place": "residual.0", "unit": 1, "position": 5}, "has 5 positions, and 5 is none of them"),
        ({"place": "residual.0", "unit": 1, "bounds": None}, "which numbers black and white are"),
        ({"place": "residual.0", "unit": 1, "seeds": 0}, "seeds must be a whole number"),
        ({"place": "residual.0", "unit": [1, 2]}, "made for one unit"),
        ({"place": "residual.0", "unit": 1, "bounds": (0.0,)}, "the numbers of black and of white"),
        ({"place": "residual.0", "unit": 1, "regularisers": {"jitter": 1}}, "regularisers are lxt_fx.Regularisers"),
        ({"place": "residual.0", "unit": 1, "regularisers": lxt_fx.Regularisers(-1)}, "a jitter of whole pixels"),
    ):
        with pytest.raises(InputError, match=why):
            lxt_fx.maximise(model, **{"bounds": (-1.0, 1.0), "steps": 1, **arguments})
    with pytest.raises(UnknownNameError):
        lxt_fx.maximise(model, "mlp.7.neurons", 1, bounds=(-1.0, 1.0))
    with pytest.raises(InputError, match="takes no pictures"):
        lxt_fx.maximise(tiny_text.llama(64), "residual.0", 1, bounds=(-1.0, 1.0))
