"""The tasks of pictures: patches and quadrants, and where the pictures come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from lxt_fx.base.errors import InputError
from lxt_fx.referee.case import Subject
from lxt_fx.referee.contest import NotForThisError
from lxt_fx.referee.subjects import subject
from lxt_fx.referee.tasks import TASKS
from lxt_fx.referee.tasks.image_case import ClassLogit, Standing
from lxt_fx.referee.tasks.patches import patches
from lxt_fx.referee.tasks.pictures import Photos, Prepared, held_out_digits
from lxt_fx.referee.tasks.quadrants import quadrants
from tests.tiny_text import vit

CLASSES = 5


def reader() -> Subject:
    """A random vision transformer for 8 x 8 pixels in 2 x 2 patches."""
    processor: Any = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
    return subject(vit(), processor(size={"height": 8, "width": 8}), name="tiny vit")


def fine_reader() -> Subject:
    """A random vision transformer for 8 x 8 pixels of one channel in 4 x 4 patches."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=8, **sizes)
    return subject(ViTForImageClassification(config).eval(), name="fine vit")


def pictures(count: int = 40, side: int = 8, channels: int = 3, classes: int = CLASSES) -> Prepared:
    made = torch.Generator().manual_seed(0)
    return Prepared(torch.randn(count, channels, side, side, generator=made), torch.arange(count) % classes)


class Eye(nn.Module):
    """A map [examples, height, width] of what draws the eye: bright pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return torch.einsum("nchw,c->nhw", pixel_values, self.weight)


def test_patches_of_pictures_that_are_answered_right() -> None:
    asked, given = reader(), pictures()
    with torch.no_grad():
        tops = asked.model(given.tensor).logits.argmax(-1)
    right = {place for place in range(len(given)) if int(tops[place]) == place % CLASSES}
    found = patches(given).cases(asked, 99, 0)
    assert 0 < len(right) < len(given) and {int(case.key.split("-")[1]) for case in found} == right
    for case in found:
        place = int(case.key.split("-")[1])
        assert torch.equal(case.inputs["pixel_values"][0], given.tensor[place]) and len(case.labels) == 4
        assert isinstance(case.value, ClassLogit) and case.value.index == place % CLASSES and case.gold is None
    assert [case.key for case in patches(given).cases(asked, 2, 0)] == [case.key for case in found[:2]]


def test_without_classes_the_top_class_is_explained() -> None:
    asked, given = reader(), Prepared(pictures().tensor)
    found = patches(given).cases(asked, 99, 0)
    assert len(found) == len(given)
    for case in found:
        numbers = asked.model(case.inputs["pixel_values"]).logits[0]
        assert asked.numbers(case, asked.leaf(case)).item() == pytest.approx(float(numbers.max()), abs=1e-6)


def test_a_removed_patch_becomes_that_of_a_picture_of_another_class() -> None:
    asked, given = reader(), pictures()
    for case in patches(given).cases(asked, 5, 0):
        place = int(case.key.split("-")[1])
        found = replace(patches(given), draws=3).replacements(asked, case, 0)
        assert list(found) == ["token", "zero", "mean"] and len(found["token"]) == 3
        others = [int((given.tensor == each[0]).flatten(1).all(1).nonzero()) for each in found["token"]]
        assert len({*others}) == 3 and all(other % CLASSES != place % CLASSES for other in others)
        torch.testing.assert_close(found["mean"][0][0, :, 2, 5], given.tensor[place].mean((1, 2)), rtol=0, atol=1e-6)
        assert not found["zero"][0].any() and found["mean"][0].shape == case.inputs["pixel_values"].shape
        again = replace(patches(given), draws=3).replacements(asked, case, 0)["token"]
        assert all(torch.equal(a, b) for a, b in zip(found["token"], again, strict=True))


def test_pictures_of_one_class_replace_nothing() -> None:
    asked, given = reader(), Prepared(pictures().tensor[:3], torch.tensor([1, 1, 1]))
    case = patches(Prepared(given.tensor)).cases(asked, 1, 0)[0]
    with pytest.raises(InputError, match="another class, and there is none"):
        patches(given).replacements(asked, case, 0)


def test_what_stands_out_in_a_map_is_explained() -> None:
    asked, given = subject(Eye(), name="eye", unit=4), Prepared(pictures(6, side=16).tensor)
    found = patches(given).cases(asked, 9, 0)
    assert len(found) == 6
    for case in found:
        drawn = asked.model(case.inputs["pixel_values"])[0].detach().flatten()
        order = drawn.argsort(descending=True)
        mine = drawn[order[:26]].mean() - drawn[order[26:]].mean()  # a tenth of 256 pixels
        assert asked.numbers(case, asked.leaf(case)).item() == pytest.approx(float(mine), abs=1e-5)
        assert len(case.labels) == 16 and case.labels[5] == "row 2, column 2"


def test_a_flat_map_says_nothing() -> None:
    asked = subject(Eye(), name="eye", unit=4)
    assert not patches(Prepared(torch.zeros(2, 3, 8, 8))).cases(asked, 9, 0)
    half = Standing(torch.ones(2, 2) * torch.tensor([1.0, 0.0]))(torch.ones(1, 2, 2, dtype=torch.bfloat16))
    assert half.dtype == torch.float32 and float(half) == 0


def test_gold_is_the_quadrant_of_the_explained_class() -> None:
    asked, given = fine_reader(), pictures(40, side=4, channels=1, classes=8)
    found = quadrants(given).cases(asked, 60, 0)
    assert len(found) == 60 == len({case.key for case in found})
    assert {case.key.split("-")[-1] for case in found} == {"0", "1", "2", "3"}
    for case in found:
        picture, gold = case.inputs["pixel_values"][0], case.gold
        assert gold is not None and int(gold.sum()) == 4
        pixels = gold.view(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)
        own = picture[0][pixels].view(4, 4)
        (place,) = (given.tensor[:, 0] == own).flatten(1).all(1).nonzero().flatten().tolist()
        assert isinstance(case.value, ClassLogit) and case.value.index == place % 8, "the picture that is gold"
        assert case.group == f"picture-{place}"
        others = [int(each) for each in case.key.split("-")[1:5]]
        assert place in others and len({each % 8 for each in others}) == 4
        top = asked.model(picture[None]).logits[0].topk(4).indices
        assert case.value.index in top


def test_a_grid_replaces_without_the_explained_class() -> None:
    asked, given = fine_reader(), pictures(40, side=4, channels=1, classes=8)
    case = quadrants(given).cases(asked, 1, 0)[0]
    assert isinstance(case.value, ClassLogit)
    of_class = given.tensor[case.value.index :: 8, 0]
    for each in quadrants(given).replacements(asked, case, 0)["token"]:
        parts = each[0, 0].unfold(0, 4, 4).unfold(1, 4, 4).reshape(4, 4, 4)
        assert not any(torch.equal(part, own) for part in parts for own in of_class)
        assert all(bool((given.tensor[:, 0] == part).flatten(1).all(1).any()) for part in parts)


def test_quadrants_need_classes_and_a_grid_that_fits() -> None:
    given = pictures(40, side=4, channels=1, classes=8)
    with pytest.raises(NotForThisError, match="0 known classes"):
        quadrants(Prepared(given.tensor)).cases(fine_reader(), 1, 0)
    with pytest.raises(NotForThisError, match="trained on four at once"):
        quadrants(pictures(40, channels=1, classes=8)).cases(fine_reader(), 1, 0)
    with pytest.raises(NotForThisError, match="two quadrants"):
        quadrants(given).cases(subject(fine_reader().model, unit=8), 1, 0)
    with pytest.raises(InputError, match="do not divide"):
        patches(Prepared(given.tensor)).cases(subject(Eye(), unit=3), 1, 0)


def test_without_pictures_only_models_of_digits_are_asked() -> None:
    for name in ("patches", "quadrants"):
        with pytest.raises(NotForThisError, match="give a folder of photos"):
            TASKS[name].cases(reader(), 1, 0)


def test_the_digits_are_those_that_the_example_holds_out() -> None:
    pytest.importorskip("sklearn")
    from train_vit_digits import digits

    _, _, images, labels = digits()
    found = held_out_digits()
    assert torch.equal(found.tensor, images) and torch.equal(torch.tensor(found.labels), labels)


def photos(folder: Path, names: list[str]) -> Path:
    made = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(made.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(folder / name)
    return folder


def test_photos_of_a_folder_are_prepared_and_cropped(tmp_path: Path) -> None:
    asked, folder = reader(), photos(tmp_path, ["a.png", "b.png", "c.png"])
    found = patches(folder).cases(asked, 24, 0)
    keys = [case.key for case in found]
    assert [case.group for case in found] == [key.rsplit("-", 1)[0] for key in keys] and len({c.group for c in found}) == 3
    assert len({*keys}) == 24 and keys[0].endswith("-0") and keys[3].endswith("-1")
    assert len({tuple(case.inputs["pixel_values"].flatten().tolist()) for case in found}) == 24
    with Image.open(folder / f"{'abc'[int(keys[0].split('-')[1])]}.png") as opened:
        square = opened.convert("RGB").crop((4, 0, 28, 24))
    expected = asked.processor(images=square, return_tensors="pt")["pixel_values"]  # type: ignore[misc]
    assert torch.equal(found[0].inputs["pixel_values"], expected)


def test_folders_are_classes(tmp_path: Path) -> None:
    asked = reader()
    folder = photos(tmp_path, [f"{name}/{number}.png" for name in ("0", "1", "LABEL_2", "3", "4") for number in range(3)])
    found = quadrants(folder).cases(asked, 8, 0)
    assert len(found) == 8 and {int(case.gold.sum()) for case in found if case.gold is not None} == {1}
    gallery = Photos(tuple(sorted(folder.rglob("*.png"))), tuple("0001112223334444"[:15]), {str(x): x for x in range(5)})
    for case in found:
        places, quadrant = [int(each) for each in case.key.split("-")[1:5]], int(case.key.split("-")[5])
        assert torch.equal(case.inputs["pixel_values"][0], gallery.grid(asked, places))
        assert isinstance(case.value, ClassLogit) and case.value.index == (0, 1, 3, 4, 2)[places[quadrant] // 3]
        assert case.gold is not None and case.gold.tolist() == [place == quadrant for place in range(4)]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.png"], "has 1 pictures"),
        (["a.png", "0/b.png"], "beside folders of classes"),
        (["0/a.png", "cat/b.png"], "'cat' is no class"),
        (["0/a.png", "7/b.png"], "'7' is no class"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(names: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        patches(photos(tmp_path, names)).cases(reader(), 1, 0)


def test_arrays_are_read_from_a_file(tmp_path: Path) -> None:
    given = pictures(12)
    assert given.classes is not None
    np.savez(tmp_path / "a.npz", pixels=given.tensor.numpy(), labels=given.classes.numpy())
    one, other = (patches(source).cases(reader(), 9, 0) for source in (tmp_path / "a.npz", given))
    assert one and [case.key for case in one] == [case.key for case in other]
    np.savez(tmp_path / "b.npz", images=given.tensor.numpy())
    with pytest.raises(InputError, match="no array 'pixels'.*images"):
        patches(tmp_path / "b.npz").cases(reader(), 1, 0)
    (tmp_path / "c.npz").write_text("no arrays")
    with pytest.raises(InputError, match="no folder of pictures and no .npz"):
        patches(tmp_path / "c.npz").cases(reader(), 1, 0)


def test_pictures_of_other_shapes_are_refused() -> None:
    for tensor, classes, said in (
        (torch.zeros(3, 8, 8), None, "must be floats"),
        (torch.zeros(2, 3, 8, 8).long(), None, "must be floats"),
        (torch.full((2, 3, 8, 8), float("nan")), None, "NaN"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(3).long(), "one a picture"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2), "whole numbers"),
    ):
        with pytest.raises(InputError, match=said):
            Prepared(tensor, classes)


def test_a_model_without_classes_or_map_is_refused() -> None:
    class Embeds(Eye):
        def forward(self, pixel_values: Tensor) -> Tensor:
            return pixel_values.mean((1, 2, 3)) * self.weight[0]

    with pytest.raises(NotForThisError, match="logits .* or a map"):
        patches(pictures()).cases(subject(Embeds(), unit=4), 1, 0)
    with pytest.raises(NotForThisError, match="no classes"):
        quadrants(pictures(40, side=4)).cases(subject(Eye(), unit=2), 1, 0)
