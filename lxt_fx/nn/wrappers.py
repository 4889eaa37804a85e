"""Rules around any module or function: by its Jacobian, in equal parts, element by element, by its Taylor expansion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import lxt_fx.functional as F
from lxt_fx.base.errors import InputError
from lxt_fx.base.torch_internals import any_autocast
from lxt_fx.nn.modules import RuleModule
from lxt_fx.ops import activations, explicit, products
from lxt_fx.ops.forms import epsilon_of
from lxt_fx.ops.library import RuleFunction

Wrapped = nn.Module | Callable[..., Tensor]


class RuleWrapper(RuleModule, nn.Module):
    """A rule around `module`, which is any module or function of tensors; its parameters get no gradient."""

    def __init__(self, module: Wrapped) -> None:
        super().__init__()
        if not callable(module):
            raise InputError(f"{type(self).__name__}: it goes around a module or a function, got {type(module).__name__}")
        self.module = module

    def _from_relevance(self, x: Tensor) -> Tensor:
        """x; in gradient form the relevance that comes back becomes a gradient, R / x, and 0 where x is 0."""
        given: Tensor = x if self.form == "explicit" else explicit.leave(x, 0.0)
        return given

    def _to_relevance(self, y: Tensor) -> Tensor:
        """y; in gradient form the gradient that comes back becomes relevance, y g."""
        given: Tensor = y if self.form == "explicit" else explicit.enter(y, 1.0)
        return given

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
    """R_i = x_i J^T (R / (z + epsilon sign(z))) with the module's own Jacobian J; each tensor input gets all of R."""

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
        """The module's value; inputs that require no gradient are constants and do not count towards n."""
        return self._by_jacobian(max(1, len([x for x in inputs if _carries(x)])), inputs, given)


class Uniform(RuleWrapper):
    """R / n to each of n inputs that the module broadcasts (AttnLRP prop. 3.2). In gradient form an input that is 0 gets
    nothing, since value * gradient cannot carry it; for a product `functional.mul` has no such loss."""

    def forward(self, *inputs: Any, **given: Any) -> Tensor:
        """The module's value. Raises InputError where an input does not broadcast to the output."""
        inputs = tuple(self._from_relevance(x) if _carries(x) else x for x in inputs)
        value = self.run(*(x.detach() if isinstance(x, Tensor) else x for x in inputs), **given)
        operands = [x for x in inputs if _carries(x)]
        for x in operands:
            if not _broadcasts(x, value):
                raise InputError(f"Uniform: an input of shape {list(x.shape)} does not broadcast to {list(value.shape)}")
        return self._to_relevance(explicit.share_out(operands, value))


class Identity(RuleWrapper):
    """R_in = R_out element by element (AttnLRP eq. 9), for a module whose output has the shape of its first input."""

    def forward(self, x: Tensor, *others: Any, **given: Any) -> Tensor:
        """The module's value; all relevance goes to `x`, and in gradient form none where x is 0. Raises InputError where
        the shapes differ."""
        epsilon_of(self.form, None, "Identity")
        value = self.run(x.detach(), *others, **given)
        if value.shape != x.shape:
            raise InputError(f"Identity: the module takes {list(x.shape)} to {list(value.shape)}; shapes must be equal")
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
    R_i = (x - x0)_i J^T (R / z). With `bias`, z is f(x), so that f(x0) and the remainder absorb their share; without, z
    is J (x - x0), and all relevance is passed on. In gradient form an input that is 0 gets nothing."""

    def __init__(
        self, module: Wrapped, reference: Tensor | float = 0.0, *, bias: bool = True, epsilon: float | None = None
    ) -> None:
        super().__init__(module)
        epsilon_of("explicit", epsilon, "Taylor")
        self.reference: Tensor | float = reference
        self.bias, self.epsilon = bias, epsilon

    def forward(self, x: Tensor) -> Tensor:
        """The module's value for one input. Raises InputError where `reference` does not broadcast to the input."""
        epsilon_of(self.form, None, "Taylor")
        x = self._from_relevance(x)
        if any_autocast():  # the backward runs the module without it, in the dtype of its parameters
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        reference = torch.as_tensor(self.reference, dtype=x.dtype, device=x.device)
        if not _broadcasts(reference, x):
            raise InputError(f"Taylor: the reference {list(reference.shape)} does not broadcast to {list(x.shape)}")
        at = reference.expand(x.shape).clone()
        with torch.no_grad():
            value = self.run(x)
        return self._to_relevance(_Expansion.apply(x, at, value, self))  # type: ignore[no-untyped-call]


class _Expansion(RuleFunction):
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
            again = rule.run(point)
            (gradient,) = torch.autograd.grad(again, point, seed.to(again.dtype))
        return (x - at) * gradient, None, None, None


def _broadcasts(x: Tensor, to: Tensor) -> bool:
    sizes = zip(reversed(x.shape), reversed(to.shape), strict=False)
    return x.dim() <= to.dim() and all(size in (1, wanted) for size, wanted in sizes)


def _carries(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad
