"""A call with labels: the model's own loss beside the logits, whose relevance is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from ids_models import SEQ2SEQ, made
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

import lxt_fx
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops.aten_kinds import LOSSES

IDS = torch.tensor([[5, 9, 17, 23, 11], [3, 4, 8, 60, 21]])
CLASSES, PARTS = torch.tensor([2, 0, 1]), torch.tensor([0.1, 0.9, 0.4])
SUMMARY = torch.tensor([[7, 8, 9, 10], [11, 12, 13, -100]])


def bert(classes: int = 3) -> nn.Module:
    return made(BertForSequenceClassification, BertConfig(**tiny.SIZES, max_position_embeddings=16, num_labels=classes))


def t5() -> nn.Module:
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0)
    return made(T5ForConditionalGeneration, config)


def bart() -> nn.Module:
    return made(BartForConditionalGeneration, BartConfig(**SEQ2SEQ, scale_embedding=True))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [(torch.tensor([1, 2]), 3), (torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), 3), (torch.tensor([0.3, -2.0]), 1)],
    ids=["classes", "several classes", "numbers"],
)
def test_a_call_with_labels_gives_the_loss_and_the_relevance_of_a_call_without(labels: Tensor, classes: int) -> None:
    model = bert(classes)
    explained = lxt_fx.transform(model)
    output, leaves = explained.with_leaves(input_ids=IDS, labels=labels)
    plain, plain_leaves = explained.with_leaves(input_ids=IDS)
    assert model.config.problem_type is None  # the model's own code writes it when it is called with labels
    expected = model(input_ids=IDS, labels=labels)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.logits, expected.logits)
    assert list(leaves) == ["inputs_embeds"]
    output.logits[:, -1].sum().backward()
    plain.logits[:, -1].sum().backward()
    torch.testing.assert_close(leaves["inputs_embeds"].grad, plain_leaves["inputs_embeds"].grad)


@pytest.mark.parametrize("model", [t5, bart])
def test_a_decoder_that_shifts_its_labels_has_them_as_a_leaf(model: Callable[[], nn.Module]) -> None:
    """-100 in the labels is the padding of the tokens that are looked up."""
    net = model()
    explained = lxt_fx.transform(net, kwargs={"input_ids": IDS, "labels": SUMMARY}, rules="gradient")
    output, leaves = explained.with_leaves(input_ids=IDS, labels=SUMMARY.flip(0))
    expected = net(input_ids=IDS, labels=SUMMARY.flip(0))
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.loss, expected.loss)
    assert list(leaves) == ["inputs_embeds", "decoder_inputs_embeds"]
    given = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
    logits = net(inputs_embeds=given["inputs_embeds"], decoder_inputs_embeds=given["decoder_inputs_embeds"]).logits
    if model is t5:  # BART scales what it is given
        logits[0, -1, 3].backward()
        output.logits[0, -1, 3].backward()
        torch.testing.assert_close(leaves["decoder_inputs_embeds"].grad, given["decoder_inputs_embeds"].grad)


def test_a_saved_module_answers_a_call_with_labels(tmp_path: Path) -> None:
    labels = torch.tensor([1, 2])
    explained = lxt_fx.transform(bert(), kwargs={"input_ids": IDS, "labels": labels})
    lxt_fx.save(explained, tmp_path / "bert.lxt")
    loaded = lxt_fx.load(tmp_path / "bert.lxt")
    call = {"input_ids": IDS, "labels": labels.flip(0)}
    torch.testing.assert_close(loaded(**call), explained(**call))


class Loss(nn.Module):
    """A loss behind a linear layer."""

    def __init__(self, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.loss = nn.Linear(4, 4), loss

    def forward(self, x: Tensor) -> Tensor:
        return self.loss(self.linear(x))


def target(x: Tensor) -> Tensor:
    return PARTS.expand(4, 3).mT.contiguous()


OF: dict[Any, Callable[[Tensor], Tensor]] = {
    aten.cross_entropy_loss.default: lambda x: F.cross_entropy(x, CLASSES),
    aten.nll_loss_nd.default: lambda x: F.nll_loss(x, CLASSES),
    aten.binary_cross_entropy.default: lambda x: F.binary_cross_entropy(x.sigmoid(), target(x)),
    aten.binary_cross_entropy_with_logits.default: lambda x: F.binary_cross_entropy_with_logits(x, target(x)),
    aten.kl_div.default: lambda x: F.kl_div(x, target(x), reduction="sum"),
    aten.l1_loss.default: lambda x: F.l1_loss(x, target(x)),
    aten.smooth_l1_loss.default: lambda x: F.smooth_l1_loss(x, target(x)),
    aten.huber_loss.default: lambda x: F.huber_loss(x, target(x)),
    aten.ctc_loss.IntList: lambda x: F.ctc_loss(x[:, None].log_softmax(-1), torch.tensor([[1]]), (3,), (1,)),
    aten.ctc_loss.Tensor: lambda x: F.ctc_loss(
        x[:, None].log_softmax(-1), torch.tensor([[1]]), torch.tensor([3]), torch.tensor([1])
    ),
}


def test_every_loss_is_tried() -> None:
    assert set(OF) == set(LOSSES)


@pytest.mark.parametrize("op", OF, ids=str)
def test_a_loss_has_its_native_gradient(op: Any) -> None:
    net, x = Loss(OF[op]).eval(), torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    explained = lxt_fx.transform(net, (x,), dynamic=False)
    assert op in {node.target for node in explained.graph.nodes}
    found = []
    for module in (net, explained):
        leaf = x.clone().requires_grad_()
        module(leaf).sum().backward()
        found.append(leaf.grad)
    if op is not aten.binary_cross_entropy.default:  # behind a sigmoid, which has a rule
        torch.testing.assert_close(*found)
    lxt_fx.audit(explained, {"x": x}, lambda out: out.sum()).check()
