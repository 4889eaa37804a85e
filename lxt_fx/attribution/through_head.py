"""The head of a language model at the hidden states that targets are read at, one part of the targets after another: the
logits of all, [batch, targets, entries], grow with the length of an answer times the size of a vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from lxt_fx.attribution.many_entries import Numbers
from lxt_fx.attribution.split_head import SplitModel

MEMORY = 2**26
"""So many bytes of logits, about, are made at once: those of one target at least."""


def through_head(split: SplitModel, asked: Numbers, read: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """The gradients of the targets at the hidden states `read` [batch, targets, hidden], one for each of them, and their
    values [batch, targets]."""
    batch, targets, _ = read.shape
    size = max(1, MEMORY // (read.element_size() * batch * split.entries))
    parts = [range(targets)[start : start + size] for start in range(0, targets, size)]
    found = [_through(split, asked, read[:, part.start : part.stop], part, form) for part in parts]
    reaching, values = zip(*found, strict=True)
    return torch.cat(reaching, 1), torch.cat(values, 1)


def _through(split: SplitModel, asked: Numbers, read: Tensor, part: range, form: str) -> tuple[Tensor, Tensor]:
    read = read.detach().requires_grad_(True)
    logits = split.head(read)
    entries = asked.entries(logits.detach(), part)  # numbers that refer to the graph would keep all logits
    ends, seeds = entries.ends(logits, form)
    (reaching,) = torch.autograd.grad(ends, read, seeds)
    return reaching, entries.of(logits.detach())
