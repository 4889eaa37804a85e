"""Quantus's metrics over our relevance: its own where it is installed (it brings OpenCV and scikit-image, so it is in no
requirement of ours), and a stand-in that calls `explain_func` as its `metrics/base.py` of version 0.6 does."""

from __future__ import annotations

from typing import Any

import numpy as np
import peers
import pytest
import tiny
import torch
import zennit_rules
from golden_cases import relative
from numpy.typing import NDArray
from torch import nn

import lxt_fx
from lxt_fx.bridges.quantus import Logits, explain_func


def attributions(
    explain: Any, model: nn.Module, x_batch: NDArray[Any], y_batch: NDArray[Any], device: Any = None, **options: Any
) -> NDArray[Any]:
    """What a metric of Quantus asks for, and what it asserts of the answer."""
    a_batch = explain(model=model, inputs=x_batch, targets=y_batch, **({"device": device} if device else {}), **options)
    assert isinstance(a_batch, np.ndarray) and a_batch.dtype.kind == "f"
    assert a_batch.shape in (x_batch.shape, (len(x_batch), 1, *x_batch.shape[2:]))
    assert not np.all(a_batch == 0) and len(np.unique(a_batch)) > 1
    return a_batch


def images(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(count, 1, 8, 8)).astype(np.float32)


def test_explain_func_has_the_relevance_of_the_class_of_each_example() -> None:
    model, x, y = Logits(tiny.vit()), images(3), np.array([4, 0, 2])
    explained = lxt_fx.transform(model.model, kwargs={"pixel_values": torch.from_numpy(x)})
    expected = [
        lxt_fx.relevance_of(explained, {"pixel_values": torch.from_numpy(x[i : i + 1])}, [int(y[i])], reduce="none")[0, 0]
        for i in range(3)
    ]
    for given in (model, explained):
        found = attributions(explain_func, given, x, y, device="cpu")
        assert relative(torch.from_numpy(found), torch.stack(expected)) < 1e-5
    summed = attributions(explain_func, model, x, y, sum_channels=True)
    assert summed.shape == (3, 1, 8, 8) and np.allclose(summed, found, atol=1e-6)
    held = attributions(explain_func, model, x, y, rules="cp_lrp")
    assert not np.allclose(held, found, atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    model = Logits(tiny.vit())
    for y, device, said in (
        (np.array([1, 2]), None, "one class for each of the 3 examples"),
        (np.array([0.5, 1.0, 2.0]), None, "one class for each of the 3 examples, got .3. of torch.float64"),
        (np.array([5, 0, 0]), None, "target 5 is outside"),
        (np.array([1, 0, 0]), "cuda", "the model is on cpu, and Quantus was told device='cuda'"),
    ):
        with pytest.raises(lxt_fx.InputError, match=said):
            explain_func(model, images(3), y, device=device)
    with pytest.raises(lxt_fx.InputError, match="give the model; explain_func transforms it"):
        Logits(lxt_fx.transform(tiny.vit()))


def quantus() -> Any:
    """The package. It imports zennit where that is installed, which imports torchvision unless it is asked for in parts."""
    if zennit_rules.SPEC is not None:
        zennit_rules.module("core")
    return pytest.importorskip("quantus")


@peers.needs("quantus")
def test_quantus_measures_a_tiny_vit_with_one_argument_changed() -> None:
    library = quantus()
    model, x = Logits(tiny.vit()), images(2)
    y = model(torch.from_numpy(x)).argmax(1).numpy()
    # Quantus's README: explain_func=quantus.explain, explain_func_kwargs={"method": "Saliency"}
    metric = library.FaithfulnessCorrelation(nr_runs=8, subset_size=8, return_aggregate=False, disable_warnings=True)
    scores = metric(model=model, x_batch=x, y_batch=y, a_batch=None, device="cpu", explain_func=explain_func)
    assert len(scores) == 2 and np.isfinite(scores).all() and np.abs(scores).max() <= 1
    given = explain_func(model, x, y)
    flips = library.PixelFlipping(features_in_step=8, disable_warnings=True)
    by_function = flips(model=model, x_batch=x, y_batch=y, a_batch=None, device="cpu", explain_func=explain_func)
    by_values = flips(model=model, x_batch=x, y_batch=y, a_batch=given, device="cpu")
    assert np.allclose(by_function, by_values)


@pytest.mark.slow
@peers.needs("quantus")
def test_quantus_finds_our_relevance_more_faithful_than_noise_on_the_digits_vit() -> None:
    import models
    from train_vit_digits import digits

    library = quantus()
    model, _ = models.load("vit_digits")
    net, (_, _, pictures, labels) = Logits(model), digits()
    x, y = pictures[:16].numpy(), labels[:16].numpy()
    metric = library.PixelFlipping(features_in_step=4, perturb_baseline="black", disable_warnings=True)

    def noise(model: nn.Module, inputs: NDArray[Any], targets: NDArray[Any], **options: Any) -> NDArray[Any]:
        return np.random.default_rng(1).normal(size=inputs.shape)

    curves = {
        name: np.mean(metric(model=net, x_batch=x, y_batch=y, a_batch=None, device="cpu", explain_func=function))
        for name, function in (("relevance", explain_func), ("noise", noise))
    }
    assert curves["relevance"] < curves["noise"], curves  # the logit falls earlier where relevant pixels go first
