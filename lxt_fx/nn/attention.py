"""Multi-head attention as a module that follows rules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import lxt_fx.functional as F
from lxt_fx.base.errors import InputError
from lxt_fx.nn.modules import RuleModule


class MultiheadAttention(RuleModule, nn.MultiheadAttention):
    """torch.nn.MultiheadAttention step by step: projections by eq. 8, products by prop. 3.3, softmax by prop. 3.1.

    Raises InputError for `add_bias_kv`, `add_zero_attn`, and dropout in training.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """What torch's own returns: [tokens, batch, width], with `batch_first` [batch, tokens, width], or without a batch
        [tokens, width]; and the weights if they are asked for."""
        if self.bias_k is not None or self.add_zero_attn:
            raise InputError("MultiheadAttention: add_bias_kv and add_zero_attn have no rule; build it without them")
        if self.training and self.dropout > 0:
            raise InputError("MultiheadAttention: dropout is on, so relevance would be of a random net; call eval()")
        batched = query.dim() == 3
        given = [t if batched else t[None] for t in (query, key, value)]
        given = [t.transpose(0, 1) if batched and not self.batch_first else t for t in given]
        q, k, v = (self._heads(self._project(t, index)) for index, t in enumerate(given))
        scores = F.matmul(q, k.mT, epsilon=self.epsilon, form=self.form)
        scores = F.mul(scores, scores.new_tensor(self.head_dim**-0.5), form=self.form)
        mask = self._mask(attn_mask, key_padding_mask, q)
        if mask is not None:
            scores = F.add(scores, mask, epsilon=self.epsilon, form=self.form)
        weights = F.softmax(scores, -1, form=self.form)
        mixed = F.matmul(weights, v, epsilon=self.epsilon, form=self.form).transpose(1, 2).flatten(2)
        out = F.linear(mixed, self.out_proj.weight, self.out_proj.bias, epsilon=self.epsilon, form=self.form)
        out = out.transpose(0, 1) if batched and not self.batch_first else out if batched else out[0]
        shown = (weights.mean(1) if average_attn_weights else weights).detach() if need_weights else None
        return out, shown if batched or shown is None else shown[0]

    def _project(self, x: Tensor, index: int) -> Tensor:
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weight = separate[index] if self.in_proj_weight is None else self.in_proj_weight.chunk(3)[index]
        bias = None if self.in_proj_bias is None else self.in_proj_bias.chunk(3)[index]
        assert weight is not None
        return F.linear(x, weight, bias, epsilon=self.epsilon, form=self.form)

    def _heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one that is added to [batch, heads, queries, keys]."""
        found = None
        if attn_mask is not None:
            found = _additive(attn_mask, q.dtype)
            found = torch.unflatten(found, 0, (q.shape[0], -1)) if found.dim() == 3 else found
        if padding is not None:
            padded = _additive(padding if padding.dim() == 2 else padding[None], q.dtype)[:, None, None, :]
            found = padded if found is None else found + padded
        return found


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers that are added; in a boolean one True leaves out, as in torch.nn.MultiheadAttention."""
    if mask.dtype is not torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -torch.inf)
