"""Rules as modules, for models written by hand.

`Linear`, `Softmax`, ... take the arguments and the state dict of torch's own modules of that name and follow the rules of
`lxt_fx.functional`. `Epsilon`, `Uniform`, `UniformEpsilon`, `Identity`, `Stop` and `Taylor` put a rule around any module or
function. `use(model, form=..., epsilon=...)` sets form and epsilon of all of them inside a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import lxt_fx.functional as F
from lxt_fx.errors import InputError
from lxt_fx.forms import Form, epsilon_of
from lxt_fx.ops import activations, explicit, products

Wrapped = nn.Module | Callable[..., Tensor]


class RuleModule:
    """What all modules here have: the form that they run in, and their epsilon (None: that of the form)."""

    form: Form = "gradient"
    epsilon: float | None = None


def use(model: nn.Module, *, form: Form = "gradient", epsilon: float | None = None) -> nn.Module:
    """Sets form and epsilon of every rule module in `model`, which is changed in place and returned.

    Raises InputError for a form that does not exist, an epsilon below 0, or a model without rule modules.
    """
    epsilon_of(form, epsilon, "use")
    found = [module for module in model.modules() if isinstance(module, RuleModule)]
    if not found:
        raise InputError(f"use: {type(model).__name__} has no module of lxt_fx.nn; build it with lxt_fx.nn.Linear, ...")
    for module in found:
        module.form, module.epsilon = form, epsilon
    return model


class Linear(RuleModule, nn.Linear):
    """torch.nn.Linear by `functional.linear` (AttnLRP eq. 8)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias, epsilon=self.epsilon, form=self.form)


class Softmax(RuleModule, nn.Softmax):
    """torch.nn.Softmax by `functional.softmax` (AttnLRP prop. 3.1); `dim` must be given."""

    def forward(self, input: Tensor) -> Tensor:
        if self.dim is None:
            raise InputError("Softmax: give dim; without it torch guesses one")
        return F.softmax(input, self.dim, form=self.form)


class RMSNorm(RuleModule, nn.RMSNorm):
    """torch.nn.RMSNorm by `functional.rms_norm` (AttnLRP prop. 3.4)."""

    def forward(self, x: Tensor) -> Tensor:
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        dims = tuple(range(-len(self.normalized_shape), 0))
        return F.rms_norm(x, self.weight, eps, dims, form=self.form)


class LayerNorm(RuleModule, nn.LayerNorm):
    """torch.nn.LayerNorm by `functional.layer_norm` (AttnLRP prop. 3.4)."""

    def forward(self, input: Tensor) -> Tensor:
        given = (self.normalized_shape, self.weight, self.bias, self.eps)
        return F.layer_norm(input, *given, epsilon=self.epsilon, form=self.form)


class GroupNorm(RuleModule, nn.GroupNorm):
    """torch.nn.GroupNorm by `functional.group_norm` (AttnLRP prop. 3.4)."""

    def forward(self, input: Tensor) -> Tensor:
        given = (self.num_groups, self.weight, self.bias, self.eps)
        return F.group_norm(input, *given, epsilon=self.epsilon, form=self.form)


class SiLU(RuleModule, nn.SiLU):
    """torch.nn.SiLU by the identity rule (AttnLRP eq. 9); never in place."""

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(input, form=self.form)


class GELU(RuleModule, nn.GELU):
    """torch.nn.GELU by the identity rule (AttnLRP eq. 9)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input, self.approximate, form=self.form)


class ReLU(RuleModule, nn.ReLU):
    """torch.nn.ReLU by the identity rule (AttnLRP eq. 9); never in place."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input, form=self.form)


class Tanh(RuleModule, nn.Tanh):
    """torch.nn.Tanh by the identity rule (AttnLRP eq. 9)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.tanh(input, form=self.form)


class Sigmoid(RuleModule, nn.Sigmoid):
    """torch.nn.Sigmoid: R_in = R_out less what f(0) = 1/2 takes (AttnLRP eq. 9)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.sigmoid(input, form=self.form)


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


class RuleWrapper(RuleModule, nn.Module):
    """A rule around `module`, which is any module or function of tensors; its parameters get no gradient."""

    def __init__(self, module: Wrapped) -> None:
        super().__init__()
        if not callable(module):
            raise InputError(f"{type(self).__name__}: it goes around a module or a function, got {type(module).__name__}")
        self.module = module

    def run(self, *inputs: Any, **given: Any) -> Tensor:
        """The module's value with its parameters held constant. Raises InputError where that is not one tensor."""
        if isinstance(self.module, nn.Module):
            held = {name: parameter.detach() for name, parameter in self.module.named_parameters()}
            found = torch.func.functional_call(self.module, held, inputs, given)
        else:
            found = self.module(*inputs, **given)
        if not isinstance(found, Tensor):
            raise InputError(f"{type(self).__name__}: the module must return one tensor, got {type(found).__name__}")
        return found


class Epsilon(RuleWrapper):
    """R_i = x_i J^T (R / (z + epsilon sign(z))) with the module's own Jacobian J; each tensor input gets the whole."""

    def __init__(self, module: Wrapped, epsilon: float | None = None) -> None:
        super().__init__(module)
        epsilon_of("explicit", epsilon, type(self).__name__)
        self.epsilon = epsilon

    def forward(self, *inputs: Any, **given: Any) -> Tensor:
        """The module's value; relevance to every tensor among `inputs` that requires a gradient."""
        return self._by_jacobian(1, inputs, given)

    def _by_jacobian(self, shares: int, inputs: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
        own, share = epsilon_of(self.form, self.epsilon, type(self).__name__), 1.0 / shares
        if self.form == "explicit":
            entered = [explicit.enter(x, share) if _carries(x) else x for x in inputs]
            left: Tensor = explicit.leave(self.run(*entered, **given), own)
            return left
        shared = [products.share(x, share) if _carries(x) else x for x in inputs]
        return F.stable(self.run(*shared, **given), own)


class UniformEpsilon(Epsilon):
    """`Epsilon` with 1/n of the relevance to each of n inputs: products of carrying operands (AttnLRP prop. 3.3)."""

    def forward(self, *inputs: Any, **given: Any) -> Tensor:
        """The module's value; inputs that require no gradient are constants and do not count."""
        return self._by_jacobian(max(1, len([x for x in inputs if _carries(x)])), inputs, given)


class Uniform(RuleWrapper):
    """R / n to each of n inputs that the module broadcasts (AttnLRP prop. 3.2). Explicit form only: in gradient form it is
    `functional.mul` for a product, and for other functions would divide by their inputs."""

    def forward(self, *inputs: Any, **given: Any) -> Tensor:
        """The module's value. Raises InputError in gradient form, or where an input does not broadcast to the output."""
        _explicit_only(self)
        value = self.run(*(x.detach() if isinstance(x, Tensor) else x for x in inputs), **given)
        operands = [x for x in inputs if _carries(x)]
        for x in operands:
            if not _broadcasts(x, value):
                raise InputError(f"Uniform: an input of shape {list(x.shape)} does not broadcast to {list(value.shape)}")
        shared: Tensor = explicit.share_out(operands, value)
        return shared


class Identity(RuleWrapper):
    """R_in = R_out element by element (AttnLRP eq. 9), for a module whose output has the shape of its first input."""

    def forward(self, x: Tensor, *others: Any, **given: Any) -> Tensor:
        """The module's value; all relevance goes to `x`, and in gradient form none where x is 0. Raises InputError where
        the shapes differ."""
        epsilon_of(self.form, None, "Identity")
        value = self.run(x.detach(), *others, **given)
        if value.shape != x.shape:
            raise InputError(f"Identity: the module takes {list(x.shape)} to {list(value.shape)}; it must keep the shape")
        op: Any = explicit.pass_on if self.form == "explicit" else activations.identity
        passed: Tensor = op(x, value) if self.form == "explicit" else op(x, value, 0.0, 0.0)
        return passed


class Stop(RuleWrapper):
    """No relevance passes: the module's value as a constant."""

    def forward(self, *inputs: Any, **given: Any) -> Tensor:
        """The module's value, without a gradient."""
        return F.stop(self.run(*inputs, **given))


class Taylor(RuleWrapper):
    """First-order Taylor decomposition at a reference point x0 (Montavon et al. 2017): with J the Jacobian at x0,
    R_i = (x - x0)_i J^T (R / z). With `bias`, z is f(x), so that f(x0) and the remainder keep their share; without, z is
    J (x - x0), and nothing is kept. Explicit form only."""

    def __init__(
        self, module: Wrapped, reference: Tensor | float = 0.0, *, bias: bool = True, epsilon: float | None = None
    ) -> None:
        super().__init__(module)
        epsilon_of("explicit", epsilon, "Taylor")
        self.reference: Tensor | float = reference
        self.bias, self.epsilon = bias, epsilon

    def forward(self, x: Tensor) -> Tensor:
        """The module's value for one input. Raises InputError in gradient form, or where `reference` does not broadcast to
        the input."""
        _explicit_only(self)
        reference = torch.as_tensor(self.reference, dtype=x.dtype, device=x.device)
        if not _broadcasts(reference, x):
            raise InputError(f"Taylor: the reference {list(reference.shape)} does not broadcast to {list(x.shape)}")
        at = reference.expand(x.shape).clone()
        with torch.no_grad():
            value = self.run(x)
        expanded: Tensor = _Expansion.apply(x, at, value, self)  # type: ignore[no-untyped-call]
        return expanded


class _Expansion(torch.autograd.Function):
    """y = f(x); the backward is that of f at the reference point, between enter and leave."""

    @staticmethod
    def forward(x: Tensor, at: Tensor, value: Tensor, rule: Taylor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Taylor], output: Tensor) -> None:
        *tensors, ctx.rule = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, None, None, None]:
        x, at, value = ctx.saved_tensors
        rule: Taylor = ctx.rule
        linear = torch.func.jvp(rule.run, (at,), (x - at,))[1]
        with torch.enable_grad():
            point = at.detach().clone().requires_grad_()
            z = value if rule.bias else linear
            seed = explicit.divided(relevance[0], z, epsilon_of("explicit", rule.epsilon, "Taylor"))
            (gradient,) = torch.autograd.grad(rule.run(point), point, seed)
        return (x - at) * gradient, None, None, None


def _broadcasts(x: Tensor, to: Tensor) -> bool:
    sizes = zip(reversed(x.shape), reversed(to.shape), strict=False)
    return x.dim() <= to.dim() and all(size in (1, wanted) for size, wanted in sizes)


def _carries(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _explicit_only(rule: RuleWrapper) -> None:
    if rule.form != "explicit":
        raise InputError(
            f"{type(rule).__name__}: it has an explicit form only, as its relevance is no multiple of the input; call "
            'lxt_fx.nn.use(model, form="explicit"), then logit.backward(logit) and leaf.grad'
        )
