"""Tuning: a case whose best gamma is known, scores made by hand, the noise test, what it refuses, and that it leaves no
trace."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from matplotlib.patches import Rectangle
from torch import Tensor, nn

import lxt_fx
from lxt_fx import Removal
from lxt_fx.base.errors import InputError, NonFiniteError, TracedBranchError
from lxt_fx.compiler import captures as capturing
from lxt_fx.faithfulness.scores import Score, chance_of
from lxt_fx.faithfulness.tuned_table import TunedTable
from lxt_fx.rule_table.table import RuleTable
from lxt_fx.rule_table.tables import TABLES, attnlrp_gamma, cp_lrp_gamma

GRID = {"conv": [0.0, 0.25], "linear": [0.0, 0.05, 0.25]}


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


class Saturating(nn.Module):
    """relu(a + b) - relu(a + b - 1) + d / 20: a and b matter, but where a + b > 1 their slopes cancel.

    With s = a + b, LRP-0 gives a and b nothing; under gamma a gets a (1 - (s - 1) (1 + gamma) / ((1 + gamma) s - 1)).
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]))
            self.first.bias.copy_(torch.tensor([0.0, -1, 0]))
            self.last.weight.copy_(torch.tensor([[1.0, -1, 0.05]]))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).relu())
        return out


def saturated() -> Tensor:
    """a and b from 1.9 to 2.1, d = 1: at gamma 0.25 a gets 0.12, at 0.05 0.03, and d always 0.05."""
    return torch.tensor([[2.0 + 0.01 * row, 2.0 - 0.01 * row, 1.0] for row in range(8)])


@pytest.mark.parametrize("order", [(0.0, 0.05, 0.25, 1.0), (1.0, 0.25, 0.0, 0.05, 0.25)])
def test_the_gamma_that_brings_back_a_saturated_branch_is_found(order: tuple[float, ...]) -> None:
    """From 0.25 on the ranking is right, and of equals the smallest is taken."""
    tuned = lxt_fx.tune(Saturating(), saturated(), 0, grid={"linear": order}, removal=Removal(steps=3), progress=False)
    assert tuned.best.parameters == {"linear": 0.25}
    means = {score.parameters["linear"]: score.mean for score in tuned.scores}
    assert list(means) == [0.0, 0.05, 0.25, 1.0]
    assert means[0.0] == means[0.05] < means[0.25] == means[1.0]
    assert tuned.is_better and tuned.chance == pytest.approx(1 / 2**8)
    assert tuned.rules[3].formula == attnlrp_gamma(linear=0.25).rules[3].formula


def by_hand(model: nn.Module, pixels: Tensor, table: RuleTable, metric: Callable[[Any], Tensor]) -> Tensor:
    explained = lxt_fx.transform(model, (pixels,), rules=table, dynamic=False)
    leaf = pixels.clone().requires_grad_()
    explained(pixel_values=leaf).logits[:, 3].sum().backward()
    assert leaf.grad is not None
    return metric(lxt_fx.perturbation_curves(model, pixels, leaf * leaf.grad, 3, removal=Removal(steps=4)))


@pytest.mark.parametrize(("table", "batch"), [(attnlrp_gamma, 32), (cp_lrp_gamma, 2)])
def test_scores_are_those_of_every_table_made_by_hand(table: Callable[..., RuleTable], batch: int) -> None:
    model, pixels = tiny.vit(), random(5, 1, 8, 8)
    tuned = lxt_fx.tune(model, pixels, 3, table=table, grid=GRID, removal=Removal(steps=4, batch=batch), progress=False)
    assert [tuple(s.parameters.values()) for s in tuned.scores] == list(itertools.product(*GRID.values()))
    for score in tuned.scores:
        wanted = by_hand(model, pixels, table(**score.parameters), lambda curves: curves.area)
        torch.testing.assert_close(score.values, wanted, atol=1e-5, rtol=0)
    best = max(tuned.scores, key=lambda score: score.mean)
    assert tuned.name == f"{table().name}" and tuned.summary == table(**best.parameters).summary


def test_the_order_of_the_grid_changes_nothing() -> None:
    model, pixels = tiny.vit(), random(3, 1, 8, 8)
    backwards = {name: values[::-1] for name, values in reversed(GRID.items())}
    one = lxt_fx.tune(model, pixels, 3, grid=GRID, removal=Removal(steps=4), progress=False)
    other = lxt_fx.tune(model, pixels, 3, grid=backwards, removal=Removal(steps=4), progress=False)
    assert str(one) == str(other)
    assert all(torch.equal(a.values, b.values) for a, b in zip(one.scores, other.scores, strict=True))


def test_a_metric_of_ones_own_decides() -> None:
    model, pixels = tiny.vit(), random(3, 1, 8, 8)

    def early_loss(curves: lxt_fx.PerturbationCurves) -> Tensor:
        return curves.morf[:, 0] - curves.morf[:, 1]

    grid = {"conv": [0.25], "linear": [0.0, 0.25]}
    tuned = lxt_fx.tune(model, pixels, 3, grid=grid, metric=early_loss, removal=Removal(steps=4), progress=False)
    for score in tuned.scores:
        wanted = by_hand(model, pixels, attnlrp_gamma(**score.parameters), early_loss)
        torch.testing.assert_close(score.values, wanted, atol=1e-5, rtol=0)
    assert "early_loss" in str(tuned)


def test_texts_are_embedded_and_padding_stays() -> None:
    model = tiny.llama()
    ids, mask = torch.tensor([[5, 9, 17, 23, 2], [1, 2, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": mask}
    tuned = lxt_fx.tune(model, inputs, removal=Removal(steps=2), progress=False)
    assert [score.parameters["conv"] for score in tuned.scores] == [0.0] * 5, "a model without convolutions"
    example = {"inputs_embeds": lxt_fx.embed(model, ids), "attention_mask": mask}
    explained = lxt_fx.transform(model, kwargs=example, rules=attnlrp_gamma(conv=0, linear=0.25), dynamic=False)
    leaf = lxt_fx.embed(model, ids)
    logits = explained(inputs_embeds=leaf, attention_mask=mask).logits
    (logits[0, 4].max() + logits[1, 2].max()).backward()
    assert leaf.grad is not None
    wanted = lxt_fx.perturbation_curves(model, inputs, leaf * leaf.grad, removal=Removal(steps=2)).area
    torch.testing.assert_close(tuned.scores[3].values, wanted, atol=1e-5, rtol=0)


def test_the_model_is_captured_once_and_an_explained_one_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    captures = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        captures.append(args)
        return capture(*args, **kwargs)

    capture = capturing.captured_with_backwards
    monkeypatch.setattr(capturing, "captured_with_backwards", counted)
    model, pixels = tiny.vit(), random(3, 1, 8, 8)
    of_model = lxt_fx.tune(model, pixels, 3, grid=GRID, removal=Removal(steps=4), progress=False)
    assert len(captures) == 1
    for rules, example in (("attnlrp", None), (attnlrp_gamma(), {"pixel_values": pixels[:2]})):
        explained = lxt_fx.transform(model, kwargs=example, rules=rules, dynamic=example is None)
        before, printed = len(captures), lxt_fx.show(explained)
        of_explained = lxt_fx.tune(explained, pixels, 3, grid=GRID, removal=Removal(steps=4), progress=False)
        assert len(captures) == before and lxt_fx.show(explained) == printed
        for one, other in zip(of_model.scores, of_explained.scores, strict=True):
            torch.testing.assert_close(one.values, other.values, atol=1e-5, rtol=0)


def test_the_result_is_a_table_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    model, pixels = tiny.vit(), random(3, 1, 8, 8)
    tuned = lxt_fx.tune(model, pixels, 3, grid=GRID, removal=Removal(steps=4), progress=False)
    explained = lxt_fx.transform(model, (pixels,), rules=tuned, dynamic=False)
    assert explained.record.table_name == "attnlrp_gamma"
    wanted = attnlrp_gamma(**tuned.best.parameters)
    assert lxt_fx.show(explained) == lxt_fx.show(lxt_fx.transform(model, (pixels,), rules=wanted, dynamic=False))
    tuned.show()
    assert capsys.readouterr().out == f"{wanted}\n"
    first = tuned.override("vit.layers.0", TABLES["epsilon"].rules[0])
    assert lxt_fx.transform(model, (pixels,), rules=first, dynamic=False).record.overrides == ("vit.layers.0",)


def test_only_the_bar_is_written_and_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    for progress in (True, False):
        lxt_fx.tune(Saturating(), saturated(), 0, grid={"linear": [0, 1]}, progress=progress)
        assert capsys.readouterr().out == ""


def test_model_and_torch_are_as_before() -> None:
    model, pixels = tiny.vit(), random(3, 1, 8, 8)
    model.vit.layernorm.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes, random_state = [module.training for module in model.modules()], torch.get_rng_state()
    pixels.requires_grad_()
    with torch.no_grad():
        lxt_fx.tune(model, pixels, 3, grid=GRID, removal=Removal(steps=4), progress=False)
        assert not torch.is_grad_enabled()
    with pytest.raises(InputError):
        lxt_fx.tune(model, pixels, 3, grid={"linear": [-1.0]}, removal=Removal(steps=4), progress=False)
    assert torch.is_grad_enabled() and torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and pixels.grad is None


# Noise


def slow_chance(leads: list[list[float]], chosen: int) -> float:
    """The max-t test with every sign flip, by the textbook's t."""

    def t_value(numbers: list[float]) -> float:
        mean = sum(numbers) / len(numbers)
        spread = sum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1)
        return mean / math.sqrt(spread / len(numbers)) if spread else 0.0

    reached, hits = t_value(leads[chosen]), 0
    flips = list(itertools.product([1, -1], repeat=len(leads[0])))
    for signs in flips:
        flipped = [[s * x for s, x in zip(signs, lead, strict=True)] for lead in leads]
        hits += max(map(t_value, flipped)) >= reached - 1e-9
    return hits / len(flips)


@pytest.mark.parametrize("seed", range(4))
def test_chance_is_that_of_the_slow_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    leads = torch.randn(4, 6, generator=generator, dtype=torch.float64) + 0.4 * seed
    leads[0] = 0
    chosen = int(leads.mean(1).argmax())
    wanted = slow_chance(leads.tolist(), chosen) if chosen else 1.0
    assert chance_of(list(leads), chosen) == pytest.approx(wanted)


def test_among_many_points_of_noise_a_lead_is_seldom_called_more() -> None:
    """40 searches of 25 points without any difference: 3 are called a lead; by a paired t of 2, 17 would be."""
    calls = naive = 0
    for seed in range(40):
        leads = torch.randn(25, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        leads[0] = 0
        chosen = int(leads.mean(1).argmax())
        calls += chance_of(list(leads), chosen) < 0.05
        naive += bool(leads[chosen].mean() > 2 * leads[chosen].std() / 24**0.5)
    assert calls <= 4 and naive >= 15


def tuned_with(*values: list[float]) -> TunedTable:
    scores = tuple(Score({"gamma": float(i)}, torch.tensor(row).double()) for i, row in enumerate(values))
    return TunedTable("made", (), scores=scores, measured="examples")


def test_the_verdict_says_what_the_scores_say() -> None:
    assert "Nothing leads gamma=0" in str(tuned_with([2.0, 2.0], [1.0, 2.0]))
    assert "on the only example, which says nothing about noise" in str(tuned_with([1.0], [2.0], [0.0]))
    steady = " ".join(str(tuned_with([1.0] * 8, [2.0, 2.1, 2.0, 2.2, 2.0, 2.1, 2.0, 2.1], [0.0] * 8)).split())
    assert "gamma=1 leads gamma=0 by +1.062 ± 0.026 (paired): more than noise (chance 0.0078" in steady
    assert "NOT more than noise" in str(tuned_with([1.0, 1.0, 1.0], [2.0, 0.5, 1.5], [0.0, 0.0, 0.0]))
    assert "gamma=1 is the largest that was tried" in str(tuned_with([1.0, 1.0], [2.0, 2.0]))
    assert "largest that was tried" not in steady


def test_the_printed_grid_has_a_line_for_each_point_and_marks_the_best() -> None:
    lines = str(tuned_with([1.0, 2.0], [2.0, 3.5], [0.0, 0.0])).splitlines()
    assert lines[2].split() == ["gamma", "area", "lead"]
    assert [line.split() for line in lines[4:7]] == [
        ["0", "1.50", "±", "0.50"],
        ["*", "1", "2.75", "±", "0.75", "+1.25", "±", "0.25"],
        ["2", "0", "±", "0", "-1.50", "±", "0.50"],
    ]


def test_the_picture_has_every_number_and_frames_the_best(tmp_path: Path) -> None:
    for suffix, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        file = tmp_path / f"grid{suffix}"
        pixels, grid = random(3, 1, 8, 8), GRID | {"linear": [0.25, 0.0]}
        tuned = lxt_fx.tune(tiny.vit(), pixels, 3, grid=grid, removal=Removal(steps=4), progress=False, picture=file)
        assert file.read_bytes().startswith(magic)
    axes = tuned.figure().axes[0]
    cells = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert list(cells) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(f"{score.mean:.2g}"[:3] in text for score, text in zip(tuned.scores, cells.values(), strict=True))
    (frame,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    column, row = (round(corner + 0.5) for corner in frame.get_xy())
    assert {"conv": (0, 0.25)[row], "linear": (0, 0.25)[column]} == tuned.best.parameters
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("conv", "linear")


def test_a_grid_of_one_parameter_or_one_point_can_be_drawn_and_of_three_not() -> None:
    assert len(tuned_with([1.0, 2.0], [2.0, 2.5]).figure().axes[0].texts) == 2
    assert len(tuned_with([1.0, 2.0]).figure().axes[0].texts) == 1
    scores = [
        Score({"a": a, "b": b, "c": c}, torch.ones(2).double()) for a, b, c in itertools.product((0.0, 1.0), repeat=3)
    ]
    with pytest.raises(InputError, match="shows two parameters, and a, b, c have several values"):
        TunedTable("made", (), scores=tuple(scores)).figure()
    with pytest.raises(InputError, match="width must be at least 4"):
        tuned_with([1.0, 2.0]).figure(width=2)


# Refusals


def not_a_table(linear: float) -> float:
    return linear


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"grid": {}}, "grid must be a dict of parameters"),
    ({"grid": [0, 1]}, "grid must be a dict of parameters"),
    ({"grid": {"gama": [0.0]}}, "the table has no parameter 'gama'; it has conv, linear"),
    ({"grid": {"linear": []}}, r"grid\['linear'\] must be a list of finite numbers, got \[\]"),
    ({"grid": {"linear": [0, math.nan]}}, "must be a list of finite numbers"),
    ({"grid": {"linear": 0.5}}, "must be a list of finite numbers, got 0.5"),
    ({"grid": {"linear": [-0.1]}}, "gamma"),
    ({"table": attnlrp_gamma()}, "table must be a function that gives a RuleTable, such as attnlrp_gamma, got RuleTable"),
    ({"table": "attnlrp_gamma"}, "table must be a function"),
    ({"table": not_a_table}, r"table\(linear=0\) must give a RuleTable, got float"),
    ({"table": not_a_table, "grid": None}, "no default grid for a table with the parameters linear; give one"),
    ({"metric": lambda curves: curves.area * math.nan}, "metric gives nan for example 0 at linear=0"),
    ({"metric": lambda curves: curves.area / 0}, "metric gives (-?inf|nan) for example"),
    ({"metric": lambda curves: curves.area.mean()}, r"one number for each example, \[8\], .* got a tensor of shape \[\]"),
    ({"metric": lambda curves: 3.0}, "got float"),
    ({"target": lambda out: out[:, 0].detach()}, "does not depend on x by a differentiable path"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"target": 0, "grid": {"linear": [0, 0.25]}, "progress": False} | change
    with pytest.raises(InputError, match=message):
        lxt_fx.tune(Saturating(), saturated(), **given)


def test_a_loaded_module_cannot_be_tuned(tmp_path: Path) -> None:
    explained = lxt_fx.transform(Saturating(), (saturated(),))
    lxt_fx.save(explained, tmp_path / "net.safetensors")
    loaded = lxt_fx.load(tmp_path / "net.safetensors")
    with pytest.raises(InputError, match="was loaded from a file.*; give the model that it was made from"):
        lxt_fx.tune(loaded, saturated(), 0, progress=False)


def test_relevance_that_is_not_finite_is_refused() -> None:
    class Root(Saturating):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.first(x.sqrt())
            return out

    def native(gamma: float) -> RuleTable:
        return TABLES["gradient"]

    with pytest.raises(NonFiniteError, match="relevance at gamma=0 is NaN or infinite"):
        lxt_fx.tune(Root(), torch.zeros(2, 3), 0, table=native, grid={"gamma": [0.0]}, progress=False)


def test_a_traced_graph_must_hold_for_all_examples() -> None:
    class Choosing(Saturating):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x) if float(x[0, 0]) > 0 else super().forward(-2 * x)
            return out

    rows = torch.tensor([[2.0, 2.0, 1.0], [-2.0, 2.0, 1.0]])
    with pytest.raises(TracedBranchError, match=r"test_tune\.py:\d+ read the value 2 .*these inputs give -2"):
        lxt_fx.tune(Choosing(), rows, 0, grid={"linear": [0.0]}, removal=Removal(batch=1), progress=False)
    lxt_fx.tune(Choosing(), rows.abs(), 0, grid={"linear": [0.0]}, removal=Removal(batch=1), progress=False)


def test_an_explained_module_with_native_gradients_stays_lenient() -> None:
    class Odd(Saturating):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.linalg.det(x[:, :, None] * x[:, None, :])[:, None]

    with pytest.raises(lxt_fx.NoRuleError):
        lxt_fx.tune(Odd(), saturated(), 0, grid={"linear": [0.0]}, progress=False)
    explained = lxt_fx.transform(Odd(), (saturated(),), strict=False)
    assert explained.record.unknown
    assert len(lxt_fx.tune(explained, saturated(), 0, grid={"linear": [0.0]}, progress=False).scores) == 1
