"""Rules as functions, for models written by hand. Each computes what torch's function of that name computes; its backward
follows a rule.

Two forms. In `form="gradient"` (fast) start with `logit.backward()`; relevance is `leaf * leaf.grad`. In `form="explicit"`
start with `logit.backward(logit)`; relevance is `leaf.grad`. A model uses one form throughout. An operand carries relevance
where it requires a gradient; weights and biases are always constants. `epsilon` is added, with the sign of z, to what
AttnLRP eq. 8 divides by: None means 0 in gradient form and 1e-6 in explicit form.

Every activation of `ops/activations.py` is a function here: `silu`, `sigmoid`, `erf`, ... (`DOORS` lists those without
settings).

Functions raise InputError for a form that does not exist, an epsilon below 0, or settings without a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError, UnsupportedVersionError
from lxt_fx.ops import activations, explicit, norms, products
from lxt_fx.ops.activations import BY_NAME, STATED, Activation
from lxt_fx.ops.forms import Form, epsilon_of

Dims = int | tuple[int, ...] | list[int]


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, epsilon: float | None = None, form: Form = "gradient"
) -> Tensor:
    """x W^T + b, x [..., in], weight [out, in]: R_i = sum_j x_i W_ji R_j / (z_j + epsilon sign(z_j)) (AttnLRP eq. 8)."""
    return _linear_map("linear", lambda a: products.linear(a, weight, bias), (x,), 1.0, epsilon, form)


def add(a: Tensor, b: Tensor, *, epsilon: float | None = None, form: Form = "gradient") -> Tensor:
    """a + b, broadcast: R_a = a R / (z + epsilon sign(z)) (AttnLRP eq. 8)."""
    return _linear_map("add", torch.add, (a, b), 1.0, epsilon, form)


def sub(a: Tensor, b: Tensor, *, epsilon: float | None = None, form: Form = "gradient") -> Tensor:
    """a - b, broadcast: R_a = a R / (z + epsilon sign(z)), R_b = -b R / (z + epsilon sign(z)) (AttnLRP eq. 8)."""
    return _linear_map("sub", torch.sub, (a, b), 1.0, epsilon, form)


def sum(x: Tensor, dim: Dims, keepdim: bool = False, *, epsilon: float | None = None, form: Form = "gradient") -> Tensor:
    """Sum over one or several dims: R_i = x_i R / (z + epsilon sign(z)) (AttnLRP eq. 8)."""
    return _linear_map("sum", lambda a: torch.sum(a, dim, keepdim), (x,), 1.0, epsilon, form)


def mean(x: Tensor, dim: Dims, keepdim: bool = False, *, epsilon: float | None = None, form: Form = "gradient") -> Tensor:
    """Mean over one or several dims: R_i = x_i / n R / (z + epsilon sign(z)) (AttnLRP eq. 8)."""
    return _linear_map("mean", lambda a: torch.mean(a, dim, keepdim), (x,), 1.0, epsilon, form)


def matmul(a: Tensor, b: Tensor, *, epsilon: float | None = None, form: Form = "gradient") -> Tensor:
    """a @ b: half of the relevance to each where both carry, all to one that carries alone; then eq. 8 (AttnLRP prop.
    3.3)."""
    share = 0.5 if a.requires_grad and b.requires_grad else 1.0
    return _linear_map("matmul", torch.matmul, (a, b), share, epsilon, form)


def bmm(a: Tensor, b: Tensor, *, epsilon: float | None = None, form: Form = "gradient") -> Tensor:
    """`matmul` of [batch, n, m] and [batch, m, k]."""
    share = 0.5 if a.requires_grad and b.requires_grad else 1.0
    return _linear_map("bmm", torch.bmm, (a, b), share, epsilon, form)


def mul(a: Tensor, b: Tensor, *, form: Form = "gradient") -> Tensor:
    """a * b, broadcast: R / 2 to each where both carry (uniform rule, AttnLRP prop. 3.2), all to one that carries alone."""
    return _product("mul", products.mul, torch.mul, a, b, form)


def div(a: Tensor, b: Tensor, *, form: Form = "gradient") -> Tensor:
    """a / b, broadcast: R / 2 to each where both carry, as in a product of a and 1/b; all to a where b is a constant."""
    return _product("div", products.div, torch.div, a, b, form)


def softmax(
    x: Tensor, dim: int, dtype: torch.dtype | None = None, temperature: float = 1.0, *, form: Form = "gradient"
) -> Tensor:
    """softmax(x / temperature) along any dim: R_i = x_i (R_i - s_i sum_j R_j) with x after the temperature (AttnLRP prop.
    3.1); 0 at a mask's -inf."""
    epsilon_of(form, None, "softmax")
    if form == "explicit":
        scaled = x if temperature == 1.0 else explicit.pass_on(x, x.detach() / temperature)
        return _run(explicit.softmax_taylor, scaled, dim, dtype)
    return _run(products.softmax, x if temperature == 1.0 else x / temperature, dim, dtype)


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    epsilon: float | None = None,
    form: Form = "gradient",
) -> Tensor:
    """softmax(scale q k^T + mask) v of [..., heads, tokens, width]: half to v, a quarter to q and to k (AttnLRP prop. 3.3
    twice, prop. 3.1 between); all to v where q and k do not carry, half to q and to k where v does not."""
    own = epsilon_of(form, epsilon, "sdpa")
    given = (query, key, value, attn_mask, 0.0, is_causal)
    settings = {"scale": scale, "enable_gqa": enable_gqa}
    scores = [operand for operand in (query, key, attn_mask) if operand is not None and operand.requires_grad]
    if not scores:
        z = products.sdpa_held(*given, **settings)
        if form == "gradient":
            return stable(z, own)
        return _run(explicit.sdpa_held_steps, *given, **settings, value_of=z.detach(), epsilon=own)
    weights = 0.5 if value.requires_grad else 1.0
    each = weights / 2 if query.requires_grad and key.requires_grad else weights
    shares = {"query_share": each, "key_share": each, "value_share": 0.5, "mask_share": weights}
    z = products.sdpa(*given, **settings, **shares)
    if form == "gradient":
        return stable(z, own)
    return _run(explicit.sdpa_steps, *given, **settings, **shares, value_of=z.detach(), epsilon=own)


def rms_norm(
    x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, dim: Dims = -1, *, form: Form = "gradient"
) -> Tensor:
    """x / rms(x) * weight, the root mean square over `dim` held constant: R_in = R_out (AttnLRP prop. 3.4)."""
    epsilon_of(form, None, "rms_norm")
    dims = [dim] if isinstance(dim, int) else list(dim)
    if form == "explicit":
        value = norms.rms_norm(x.detach(), dims, eps)
        return _run(explicit.pass_on, x, value if weight is None else value * weight.detach())
    scaled = norms.rms_norm(x, dims, eps)
    return scaled if weight is None else torch.mul(scaled, weight.detach())


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    epsilon: float | None = None,
    form: Form = "gradient",
) -> Tensor:
    """Layer norm with the standard deviation held constant, a linear map of x (AttnLRP prop. 3.4)."""
    own = epsilon_of(form, epsilon, "layer_norm")
    given = (list(normalized_shape), weight, bias, eps)
    if form == "gradient":
        return stable(norms.layer_norm(x, *given), own)
    return _run(explicit.layer_norm_linear, x, *given, value=norms.layer_norm(x.detach(), *given), epsilon=own)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    epsilon: float | None = None,
    form: Form = "gradient",
) -> Tensor:
    """Group norm of [batch, channels, *] with the standard deviations held constant, a linear map of x (prop. 3.4)."""
    own = epsilon_of(form, epsilon, "group_norm")
    given = (num_groups, weight, bias, eps)
    if form == "gradient":
        return stable(norms.group_norm(x, *given), own)
    return _run(explicit.group_norm_linear, x, *given, value=norms.group_norm(x.detach(), *given), epsilon=own)


def normalize(x: Tensor, p: float = 2.0, dim: Dims = -1, eps: float = 1e-12, *, form: Form = "gradient") -> Tensor:
    """x / max(|x|_p, eps), the norm held constant: R_in = R_out (AttnLRP prop. 3.4)."""
    epsilon_of(form, None, "normalize")
    size = torch.linalg.vector_norm(x.detach(), p, dim, keepdim=True).clamp_min(eps)
    if form == "explicit":
        return _run(explicit.pass_on, x, x.detach() / size)
    return _run(norms.normalize_div, x, size)


def identity(function: Callable[[Tensor], Tensor], x: Tensor, *, form: Form = "gradient") -> Tensor:
    """Any elementwise function: R_in = R_out (AttnLRP eq. 9), less what f(0) absorbs where that is not 0. At x = 0 the fast
    form uses the function's own slope."""
    epsilon_of(form, None, "identity")
    with torch.enable_grad():
        zero = torch.zeros((), dtype=x.dtype, device=x.device, requires_grad=True)
        at_zero = function(zero)
        (slope,) = torch.autograd.grad(at_zero, zero)
    value = function(x.detach())
    if form == "explicit":
        return _run(explicit.pass_on, x, value, float(at_zero.detach()))
    return _run(activations.identity, x, value, float(at_zero.detach()), float(slope))


def gelu(x: Tensor, approximate: str = "none", *, form: Form = "gradient") -> Tensor:
    """GELU by the identity rule, in closed form (AttnLRP eq. 9)."""
    return _activation("gelu", x, form, approximate=approximate)


def leaky_relu(x: Tensor, negative_slope: float = 0.01, *, form: Form = "gradient") -> Tensor:
    """Leaky ReLU by the identity rule, which is its own gradient (AttnLRP eq. 9)."""
    return _activation("leaky_relu", x, form, negative_slope=negative_slope)


def elu(x: Tensor, alpha: float = 1.0, *, form: Form = "gradient") -> Tensor:
    """ELU by the identity rule, in closed form (AttnLRP eq. 9)."""
    return _activation("elu", x, form, alpha=alpha)


def pow(x: Tensor, exponent: float, *, form: Form = "gradient") -> Tensor:
    """x**n for a number n other than 0 by the identity rule, in closed form (AttnLRP eq. 9)."""
    if exponent == 0:
        raise InputError("pow: exponent must be a number other than 0: x**0 is 1 whatever x is, and has no rule")
    return _activation("pow", x, form, exponent=exponent)


def exp_base(x: Tensor, base: float, *, form: Form = "gradient") -> Tensor:
    """base**x for a base above 0 by the identity rule: R_in = R_out less what base**0 = 1 absorbs (AttnLRP eq. 9)."""
    if base <= 0:
        raise InputError(f"exp_base: base must be above 0, got {base!r}; other bases have no rule")
    return _activation("exp_base", x, form, base)


def hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0, *, form: Form = "gradient") -> Tensor:
    """A clamp to a range that holds 0, by the identity rule (AttnLRP eq. 9)."""
    if not min_val <= 0 <= max_val:
        raise InputError(f"hardtanh: 0 must be in the range [{min_val}, {max_val}], so that it is 0 at 0")
    return _activation("hardtanh", x, form, min_val=min_val, max_val=max_val)


def hardshrink(x: Tensor, lambd: float = 0.5, *, form: Form = "gradient") -> Tensor:
    """x where |x| > lambd, else 0, by the identity rule (AttnLRP eq. 9)."""
    return _activation("hardshrink", x, form, lambd=lambd)


def softshrink(x: Tensor, lambd: float = 0.5, *, form: Form = "gradient") -> Tensor:
    """x less lambd with its sign where |x| > lambd, else 0, by the identity rule (AttnLRP eq. 9)."""
    return _activation("softshrink", x, form, lambd=lambd)


def logit(x: Tensor, eps: float | None = None, *, form: Form = "gradient") -> Tensor:
    """log(x / (1 - x)), with x clamped to [eps, 1 - eps], by the identity rule (AttnLRP eq. 9)."""
    return _activation("logit", x, form, eps=eps)


def relu6(x: Tensor, *, form: Form = "gradient") -> Tensor:
    """ReLU6 by the identity rule (AttnLRP eq. 9)."""
    return _activation("hardtanh", x, form, caller="relu6", min_val=0.0, max_val=6.0)


def linear_map(
    function: Callable[[Tensor], Tensor], x: Tensor, *, epsilon: float | None = None, form: Form = "gradient"
) -> Tensor:
    """A function that is linear in x up to a constant (a convolution, batch norm in eval): R_i = x_i J^T (R / (z +
    epsilon sign(z))) with its Jacobian J (AttnLRP eq. 8). Detach the weights that it uses."""
    return _linear_map("linear_map", function, (x,), 1.0, epsilon, form)


def einsum(equation: str, *operands: Tensor, epsilon: float | None = None, form: Form = "gradient") -> Tensor:
    """torch.einsum: 1/n of the relevance to each of the n operands that carry, then eq. 8 (AttnLRP prop. 3.3)."""
    share = 1.0 / max(1, [operand.requires_grad for operand in operands].count(True))
    return _linear_map("einsum", lambda *given: torch.einsum(equation, *given), operands, share, epsilon, form)


def stop(x: Tensor) -> Tensor:
    """x as a constant: no relevance passes."""
    return _run(products.hold, x)


def divide_gradient(x: Tensor, factor: float = 2.0) -> Tensor:
    """x, of whose relevance 1 / factor passes, in both forms: the share of each factor of a product of `factor` values that
    carry (AttnLRP prop. 3.3), where the product itself is written plainly: `divide_gradient(q @ k, 2)` is `matmul(q, k)`.

    Raises InputError for a factor that is 0 or no number.
    """
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not factor:
        raise InputError(f"divide_gradient: factor must be a number other than 0, got {factor!r}")
    return products.share(x, 1.0 / factor)


def _linear_map(
    caller: str,
    function: Callable[..., Any],
    operands: Sequence[Tensor],
    share: float,
    epsilon: float | None,
    form: str,
) -> Tensor:
    """Eq. 8 for a function that is linear in its carrying operands jointly, or for a product, whose operands get a share
    each."""
    own = epsilon_of(form, epsilon, caller)
    if form == "explicit":
        entered = [explicit.enter(operand, share) if operand.requires_grad else operand for operand in operands]
        return _run(explicit.leave, function(*entered), own)
    return stable(function(*(products.share(operand, share) if share != 1.0 else operand for operand in operands)), own)


def stable(z: Tensor, epsilon: float) -> Tensor:
    """z; its gradient is multiplied by z / (z + epsilon sign(z)): the epsilon of a linear map in gradient form."""
    return _run(products.epsilon, z, epsilon) if epsilon > 0 else z


def _product(
    caller: str, rule: Callable[..., Any], plain: Callable[..., Any], a: Tensor, b: Tensor, form: str
) -> Tensor:
    epsilon_of(form, None, caller)
    both = a.requires_grad and b.requires_grad
    if form == "gradient":
        return _run(rule if both else plain, a, b)
    value = plain(a.detach(), b.detach())
    if both:
        return _run(explicit.share_out, [a, b], value)
    only = a if a.requires_grad else b
    return _run(explicit.pass_on, only.expand(value.shape), value)


def _activation(name: str, x: Tensor, form: str, *given: float | None, caller: str = "", **settings: Any) -> Tensor:
    """A function of `ops/activations.py`, which has f(0) too."""
    epsilon_of(form, None, caller or name)
    if name not in BY_NAME:
        version = torch.__version__
        raise UnsupportedVersionError(f"{caller or name}: torch {version} has no op aten.{name}; install one that has it")
    activation = BY_NAME[name]
    if form == "gradient":
        return _run(activation.op, x, *given, **settings)
    return _run(explicit.pass_on, x, activation.value(x.detach(), *given, **settings), activation.at_zero)


class Door(Protocol):
    """A function of one tensor in both forms."""

    def __call__(self, x: Tensor, *, form: Form = "gradient") -> Tensor: ...


def _door(activation: Activation) -> Door:
    def door(x: Tensor, *, form: Form = "gradient") -> Tensor:
        return _activation(activation.name, x, form)

    absorbed = f" less what f(0) = {activation.at_zero:.4g} absorbs" if activation.at_zero else ""
    door.__name__ = door.__qualname__ = activation.name
    door.__doc__ = f"{activation.name} of each element by the identity rule: R_in = R_out{absorbed} (AttnLRP eq. 9)."
    return door


DOORS: Mapping[str, Door] = {a.name: _door(a) for a in STATED if not a.settings}
"""A function for each activation without settings, under its name in `ops/activations.py`: `silu(x, form=...)`. Those with
settings are written above."""

globals().update(DOORS)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Door:
        """What `DOORS` holds."""


def _run(op: Callable[..., Any], *arguments: Any, **settings: Any) -> Tensor:
    value: Tensor = op(*arguments, **settings)
    return value
