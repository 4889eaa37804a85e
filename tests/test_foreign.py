"""The harness for packages outside transformers, which are not installed here; they run by tests/foreign/run.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent / "zoo"))
sys.path.insert(0, str(Path(__file__).parent / "foreign"))
import packages
import zoo_models
from foreign_table import section
from variant import Variant, floats
from zoo_check import Result, check_built
from zoo_table import section_of, with_section


class Scored(nn.Module):
    """Returns a bias beside its answer, as SigLIP does, and scales a branch by what is 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.branch = nn.Linear(4, 3), nn.Linear(4, 3)
        self.scale, self.bias = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": self.layer(x) + self.scale * self.branch(x).relu(), "bias": self.bias}


def test_a_variant_is_checked_as_a_model_of_the_zoo_is() -> None:
    result = Result("package/scored", "Scored", "package")
    check_built(Variant(Scored, {"x": floats(2, 5, 4)}).build, result, dynamic=False)
    assert all(result.passes.values()), (result.passes, result.why)


class Conditioned(nn.Module):
    """Takes floats inside of a dict, as a UNet of diffusers does, beside one that it does without."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, added: dict[str, Tensor | None]) -> Tensor:
        return self.layer(x) * self.other(added["text"])


def test_floats_inside_of_an_input_are_checked_too() -> None:
    given = {"x": floats(2, 4), "added": {"size": None, "text": floats(2, 4, seed=5)}}
    result = Result("package/conditioned", "Conditioned", "package")
    check_built(Variant(Conditioned, given).build, result, dynamic=False)
    assert all(result.passes.values()), (result.passes, result.why)


def test_a_variant_is_the_same_each_time_and_no_branch_is_scaled_by_zero() -> None:
    variant = Variant(Scored, {"x": floats(2, 5, 4)})
    (one, inputs), (other, _) = variant.build(), variant.build()
    assert torch.equal(one(**inputs)["scores"], other(**inputs)["scores"])
    assert one.scale.abs().min() > 0


def test_a_number_beside_the_answer_is_no_answer() -> None:
    model, inputs = Variant(Scored, {"x": floats(2, 5, 4)}).build()
    with torch.no_grad():
        assert [tuple(found.shape) for found in zoo_models.main_outputs(model(**inputs))] == [(2, 5, 3)]


def test_a_package_that_is_not_installed_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "PACKAGES", {"no_such_package_here": ("no-such-package", "variants_text.esm")})
    packages.versions.cache_clear(), packages.cases.cache_clear()
    try:
        assert packages.versions() == {"no-such-package": None} and packages.cases() == {}
    finally:
        packages.versions.cache_clear(), packages.cases.cache_clear()


def test_the_page_carries_the_section_on() -> None:
    """Whichever of the two commands made its part anew."""
    first = section([Result("package/a", "A", "package")], {"package": "1.0"})
    page = with_section("# Supported models\n\nold\n", first)
    assert section_of(page).strip() == first and "package/a" in page
    again = with_section("# Supported models\n\nnew\n", section_of(page))
    assert "new" in again and "old" not in again and section_of(again) == section_of(page)
    other = section([Result("package/b", "B", "package")], {"package": "1.0"})
    assert "package/a" not in (changed := with_section(again, other)) and "package/b" in changed
    assert with_section("# Supported models\n", section_of("# Supported models\n")) == "# Supported models\n"
