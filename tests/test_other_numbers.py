"""A module under other numbers of its rules: it is what a transform under that table gives, without one."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import tiny
import torch
from kept_net import compilations_counted
from torch import Tensor, nn

import lxt_fx
from lxt_fx.faithfulness import search
from lxt_fx.rule_table import linear_rules
from lxt_fx.rule_table.table import RuleTable
from lxt_fx.rule_table.tables import ATTNLRP, attnlrp_gamma, cp_lrp_gamma

pytestmark = pytest.mark.usefixtures("captures_in_files")


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return tiny.vit()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def relevance(explained: lxt_fx.Explained, pixels: Tensor) -> Tensor:
    output, leaves = explained.with_leaves(pixel_values=pixels)
    output.logits[:, 1].sum().backward()
    gradient = leaves["pixel_values"].grad
    assert gradient is not None
    return leaves["pixel_values"].detach() * gradient


def with_epsilon(number: float) -> RuleTable:
    return ATTNLRP.with_rules("with_epsilon", linear_rules.epsilon(number), summary="epsilon")


def with_alpha(alpha: float) -> RuleTable:
    return ATTNLRP.with_rules("with_alpha", linear_rules.alpha_beta(alpha, alpha - 1, epsilon=1e-3), summary="alpha")


PAIRS = {
    "gammas": (attnlrp_gamma(0.1, 0.05), attnlrp_gamma(0.5, 0.3)),
    "to the default of the op": (attnlrp_gamma(0.1, 0.05), attnlrp_gamma(0.25, 0.25)),
    "to 0": (cp_lrp_gamma(0.25, 0.25), cp_lrp_gamma(0.0, 0.0)),
    "epsilon": (with_epsilon(1e-6), with_epsilon(0.2)),
    "alpha": (with_alpha(2.0), with_alpha(1.5)),
}


@pytest.mark.parametrize(("first", "second"), PAIRS.values(), ids=PAIRS)
def test_the_module_is_that_of_a_transform(first: RuleTable, second: RuleTable, vit: nn.Module, pixels: Tensor) -> None:
    explained, expected = lxt_fx.transform(vit, rules=first), lxt_fx.transform(vit, rules=second)
    with compilations_counted() as tables:
        found = lxt_fx.transform(explained, rules=second)
    assert not tables and found.record.table is second
    for stage in ("canonical", "rules", "lowered", "fused"):
        assert lxt_fx.show(found, stage) == lxt_fx.show(expected, stage)
    before = relevance(explained, pixels)
    assert torch.equal(relevance(found, pixels), relevance(expected, pixels))
    assert not torch.allclose(relevance(found, pixels), before)
    assert torch.equal(relevance(explained, pixels), before), "the first module is as it was"
    assert lxt_fx.certificate(found).to_dict()["entries"] == lxt_fx.certificate(expected).to_dict()["entries"]


OTHERS = {
    "another rule": attnlrp_gamma(0.1, 0.05).override("vit.layers.1", linear_rules.z_plus()),
    "another base": cp_lrp_gamma(0.1, 0.05),
    "an epsilon where there was none": with_epsilon(0.0),
}


@pytest.mark.parametrize("table", OTHERS.values(), ids=OTHERS)
def test_a_table_that_differs_in_more_needs_inputs(table: RuleTable, vit: nn.Module, pixels: Tensor) -> None:
    first = with_epsilon(1e-6) if table.name == "with_epsilon" else attnlrp_gamma(0.1, 0.05)
    explained = lxt_fx.transform(vit, rules=first)
    with pytest.raises(lxt_fx.InputError, match="differs in more than numbers"):
        lxt_fx.transform(explained, rules=table)
    with compilations_counted() as tables:
        found = lxt_fx.transform(explained, kwargs={"pixel_values": pixels}, rules=table)
    assert len(tables) == 1
    expected = lxt_fx.transform(vit, rules=table)
    torch.testing.assert_close(relevance(found, pixels), relevance(expected, pixels), rtol=1e-4, atol=1e-7)


def test_other_options_are_no_other_numbers(vit: nn.Module, pixels: Tensor) -> None:
    explained = lxt_fx.transform(vit, rules=attnlrp_gamma(0.1, 0.05), epsilon=0.1)
    with pytest.raises(lxt_fx.InputError, match="differs in more than numbers"):
        lxt_fx.transform(explained, rules=attnlrp_gamma(0.2, 0.05))
    found = lxt_fx.transform(explained, rules=attnlrp_gamma(0.2, 0.05), epsilon=0.1)
    expected = lxt_fx.transform(vit, rules=attnlrp_gamma(0.2, 0.05), epsilon=0.1)
    assert torch.equal(relevance(found, pixels), relevance(expected, pixels))


def test_segments_further_graphs_and_changes_of_the_model_are_those_of_the_first(pixels: Tensor) -> None:
    model = tiny.vit()
    explained = lxt_fx.transform(model, rules=attnlrp_gamma(0.1, 0.05), checkpoint="layers")
    found = lxt_fx.transform(explained, rules=attnlrp_gamma(0.4, 0.2), checkpoint="layers")
    expected = lxt_fx.transform(model, rules=attnlrp_gamma(0.4, 0.2))
    assert found.segments == explained.segments is not None
    torch.testing.assert_close(relevance(found, pixels), relevance(expected, pixels))
    model.half()
    with pytest.raises(lxt_fx.ModelChangedError):
        found(pixel_values=pixels)


def test_a_search_compiles_one_table_and_ranks_by_the_relevance_of_each(vit: nn.Module, pixels: Tensor) -> None:
    grid, removal = {"conv": [0.0, 0.5], "linear": [0.0, 0.1, 0.3]}, lxt_fx.Removal(steps=1)
    found, ranked = list[Tensor](), search._Search._relevance

    def noted(self: Any, explained: lxt_fx.Explained, point: Any) -> Tensor:
        found.append(ranked(self, explained, point))
        return found[-1]

    def tuned() -> list[Tensor]:
        found.clear()
        with mock.patch.object(search._Search, "_relevance", noted):
            lxt_fx.tune(vit, pixels, 1, grid=grid, removal=removal, progress=False)
        return list(found)

    with compilations_counted() as tables:
        one = tuned()
    assert len(tables) == 1 and len(one) == 6
    with mock.patch.object(search, "under_numbers", lambda explained, table: None):
        assert all(map(torch.equal, one, tuned()))
    assert len({float(each.abs().sum()) for each in one}) == 6


def test_explanations_under_one_gamma_after_another_compile_one_table(vit: nn.Module, pixels: Tensor) -> None:
    tables = [attnlrp_gamma(gamma, gamma) for gamma in (0.0, 0.1, 0.2)]
    with compilations_counted() as compiled:
        explained = lxt_fx.transform(vit, rules=tables[0])
        found = [lxt_fx.explain_image(explained, pixels, 1, rules=table)[0].parts[0].values for table in tables]
    assert len(compiled) == 1
    for table, each in zip(tables, found, strict=True):
        expected = relevance(lxt_fx.transform(vit, rules=table), pixels)[0].sum(0)
        torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-6)
