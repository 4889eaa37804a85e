"""An op that no rule takes becomes the ops that it is written out in: of the same value, gradient, module and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lxt_fx
from lxt_fx.base.nodes import module_path, source_line
from lxt_fx.base.torch_internals import base_name, functional_of, schema_of
from lxt_fx.ops.writings import WRITINGS
from lxt_fx.passes.canonical.write_out import WrittenOut

aten = torch.ops.aten


class Distances(nn.Module):
    """How far each position is from each other one."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, x.flip(1))


class Model(nn.Module):
    """A linear map, and distances."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.distances = nn.Linear(4, 3), Distances()

    def forward(self, x: Tensor) -> Tensor:
        distances: Tensor = self.distances(self.linear(x))
        return distances


def model() -> Model:
    torch.manual_seed(0)
    return Model().double().eval()


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def of(function: Any) -> nn.Module:
    """The function as a module."""

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return function(x)

    return Net()


def test_the_new_nodes_have_the_module_the_line_and_the_name_of_the_op() -> None:
    explained = lxt_fx.transform(model(), (drawn(2, 5, 4),))
    nodes = [node for node in explained.record.stages["canonical"].graph.nodes if node.name.startswith("cdist")]
    assert [str(node.target).split(".")[1] for node in nodes] == ["unsqueeze", "unsqueeze", "sub", "pow", "sum", "sqrt"]
    assert nodes[-1].name == "cdist" and {module_path(node) for node in nodes} == {"distances"}
    assert {str(source_line(node)).split(":")[0] for node in nodes} == {"test_write_out.py"}
    assert len({str(source_line(node)) for node in nodes}) == 1


def test_record_graph_certificate_and_file_say_what_was_written_out(tmp_path: Path) -> None:
    explained = lxt_fx.transform(model(), (drawn(2, 5, 4),))
    (sentence,) = explained.record.written_out
    assert sentence.startswith("%cdist = aten.cdist.default as unsqueeze, sub, ")
    assert f"written out: {sentence}" in lxt_fx.show(explained) and sentence in lxt_fx.certificate(explained).summary()
    assert lxt_fx.transform(explained, (drawn(2, 5, 4),), rules="cp_lrp").record.written_out == (sentence,)
    assert lxt_fx.transform(model(), (drawn(2, 5, 4),), rules="gradient").record.written_out == ()
    lxt_fx.save(explained, tmp_path / "distances.safetensors")
    loaded = lxt_fx.load(tmp_path / "distances.safetensors")
    assert loaded.record.written_out == (sentence,)
    assert torch.equal(loaded(drawn(3, 4, 4)), explained(drawn(3, 4, 4)))


def test_what_a_step_made_needs_no_sentence_and_another_node_whose_name_begins_like_it_does() -> None:
    first = WrittenOut({"cdist": "first"}, made=frozenset({"cdist", "cdist_sum"}))
    both = first.then(WrittenOut({"cdist_sum": "made", "cdist_1": "another"}, made=frozenset({"cdist_1"})))
    assert both.written == {"cdist": "first", "cdist_1": "another"} and both.made == {"cdist", "cdist_sum", "cdist_1"}


@pytest.mark.parametrize("shape", [(1, 1, 4), (3, 7, 4)], ids=str)
def test_free_sizes_stay_free(shape: tuple[int, ...]) -> None:
    explained, net = lxt_fx.transform(model(), (drawn(2, 5, 4),)), model()
    assert explained.record.sizes == {"x": (None, None, 4)}
    torch.testing.assert_close(explained(drawn(*shape)), net(drawn(*shape)), rtol=1e-12, atol=1e-12)


def test_a_size_that_an_op_is_written_out_for_is_fixed() -> None:
    explained = lxt_fx.transform(of(lambda x: x.cumprod(1)), (drawn(2, 3, 4),))
    assert explained.record.sizes == {"x": (None, 3, None)}
    said = "dim 1 of x is fixed to 3 (%cumprod = aten.cumprod.default is written out for it)"
    assert explained.record.specialised == (said,)
    torch.testing.assert_close(explained(drawn(1, 3, 2)), drawn(1, 3, 2).cumprod(1))
    with pytest.raises(lxt_fx.CallError, match="3"):
        explained(drawn(2, 4, 4))


def test_a_graph_of_a_real_trace_is_written_out_too() -> None:
    net = of(lambda x: torch.cdist(x, x.flip(1)).cumsum(-1) * (1 if x.sum() > -1e9 else 2))
    explained = lxt_fx.transform(net, (drawn(2, 5, 4),))
    assert explained.record.method != "torch.export" and explained.record.written_out
    assert not lxt_fx.audit(explained, drawn(2, 5, 4), lambda out: out[:, 0, 0]).faults()


def in_float32(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).float().sqrt().double()


WRONG = {"value": in_float32, "gradient": lambda x, y: (x * x + (y * y).detach()).sqrt()}


@pytest.mark.parametrize("what", ["value", "gradient"])
def test_a_writing_of_another_value_or_gradient_is_refused(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WRITINGS, aten.hypot.default, WRONG[what])
    with pytest.raises(lxt_fx.NoRuleError, match=f"not written out: its writing has another {what}"):
        lxt_fx.transform(of(lambda x: torch.hypot(x, x.flip(0))), (drawn(2, 3, 4),))


def test_a_writing_that_looks_at_a_size_fixes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def longer(x: Tensor, y: Tensor) -> Tensor:
        return (x * x + y * y).sqrt() if x.shape[1] > 2 else x.abs() + y.abs()

    monkeypatch.setitem(WRITINGS, aten.hypot.default, longer)
    explained = lxt_fx.transform(of(lambda x: torch.hypot(x, x.flip(0))), (drawn(2, 3, 4),))
    assert explained.record.guards and torch.equal(explained(drawn(1, 5, 4)), torch.hypot(drawn(1, 5, 4), drawn(1, 5, 4)))
    with pytest.raises(lxt_fx.NoRuleError, match=r"another value at sizes \(2, 2, 4\)"):  # captured anew, for short ones
        explained(drawn(2, 2, 4))


def test_an_op_without_a_writing_says_so() -> None:
    with pytest.raises(lxt_fx.NoRuleError, match="not written out: torch writes it out in no other ops"):
        lxt_fx.transform(of(lambda x: torch.linalg.det(x)), (drawn(2, 3, 3),))


def test_statistics_under_a_division_stay_a_norm() -> None:
    def two_norms(x: Tensor) -> Tensor:
        return (x - x.mean(-1, True)) / (x.std(-1, keepdim=True) + 1e-6) + x / (x.norm(dim=-1, keepdim=True) + 1e-6)

    explained = lxt_fx.transform(of(two_norms), (drawn(2, 3, 4),))
    assert explained.record.written_out == ()
    assert [rule.name for rule in explained.record.stages["rules"].rules.values()].count("normalize") == 2


def test_every_in_place_op_becomes_the_op_that_takes_the_same() -> None:
    found = {}
    for name in dir(aten):
        packet = getattr(aten, name)
        if not name.endswith("_") or name.startswith("_") or not hasattr(packet, "overloads"):
            continue
        for overload in packet.overloads():
            op = getattr(packet, overload)
            functional = functional_of(op, name.removesuffix("_"))
            taken = schema_of(op).arguments
            if functional is not None and taken and taken[0].type.kind() == "TensorType":
                found[str(op)] = str(functional)
                assert base_name(functional) == name.removesuffix("_")
    assert len(found) > 150
    assert found["aten.pow_.Scalar"] == "aten.pow.Tensor_Scalar" and found["aten.pow_.Tensor"] == "aten.pow.Tensor_Tensor"
    assert found["aten.float_power_.Scalar"] == "aten.float_power.Tensor_Scalar"
    assert found["aten.ldexp_.default"] == "aten.ldexp.Tensor" and found["aten.add_.Tensor"] == "aten.add.Tensor"


@torch.library.custom_op("lxt_fx_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return 2 * x


twice.register_fake(torch.empty_like)
twice.register_autograd(lambda ctx, g: 2 * g)


def test_a_custom_op_that_is_linear_is_a_rule_of_one_line() -> None:
    net, x = of(lambda x: torch.ops.lxt_fx_tests.twice(x) + 1), drawn(2, 3, 4)
    with pytest.raises(lxt_fx.NoRuleError, match="lxt_fx_tests.twice"):
        lxt_fx.transform(net, (x,))
    linear = lxt_fx.Rule(
        name="linear", ops={torch.ops.lxt_fx_tests.twice.default: None}, formula="y = 2 x", source="ours",
        conserves=lxt_fx.Conserves.ALL,
    )  # fmt: skip
    table = lxt_fx.TABLES["attnlrp"].with_rules("with twice", linear, summary="")
    assert not lxt_fx.audit(lxt_fx.transform(net, (x,), rules=table), x, lambda out: out[:, 0, 0]).faults()
