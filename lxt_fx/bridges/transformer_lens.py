"""TransformerLens's names for values inside a model, for `watch` and for every function that takes a place.

    from lxt_fx.bridges import transformer_lens as lens
    with lens.watch(explained, "blocks.*.attn.hook_z") as cache:
        output, _ = explained.with_leaves(input_ids=ids)
        output.logits[0, -1, 42].backward()
    cache["blocks.3.attn.hook_z"].relevance          # [batch, pos, head, d_head], as TransformerLens has it

Nothing of TransformerLens is imported. The values are those of the model as it is: TransformerLens's
`enable_compatibility_mode` (before version 4, `from_pretrained`) folds norms into weights and centres them, which changes
what stands in the residual stream; without that its values are these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from lxt_fx.attribution.place_axes import canonical_node
from lxt_fx.attribution.places import Places, nearest, places
from lxt_fx.attribution.watch import Watch
from lxt_fx.attribution.watch import watch as watch_places
from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.base.torch_internals import aten
from lxt_fx.compiler.explained import Explained, check_explained
from lxt_fx.ops.aten_kinds import MOVES, WEIGHTED

STREAM, HEADS = ("batch", "tokens"), ("batch", "tokens", "heads", "size")
"""The order of the axes in TransformerLens: of a value of tokens how it begins, of a value by heads all of it."""

PATTERN = ("batch", "heads", "queries", "keys")

Check = Callable[[Explained, Node], str]
"""Says why the value at a node of the canonical graph is not that of the hook; empty if it is."""


def _anything(explained: Explained, node: Node) -> str:
    return ""


def _is_sum(explained: Explained, node: Node) -> str:
    if _behind_moves(node).target is aten.add.Tensor:
        return ""
    return "here a norm stands behind the sum, and the stream is what it gives: that is hook_normalized_resid_post"


def _is_norm(explained: Explained, node: Node) -> str:
    return "" if _is_sum(explained, node) else "here the stream is a sum, without a norm: that is hook_resid_post"


def _is_added(explained: Explained, node: Node) -> str:
    if any(user.target is aten.add.Tensor for user in _users_behind_moves(node)):
        return ""
    return "here a norm or another op stands between the projection and the residual stream"


def _is_projected(explained: Explained, node: Node) -> str:
    if _behind_moves(node).target in WEIGHTED:
        return ""
    return "here the scores read it after a rotation, a norm or a scale: try attn.hook_rot_q or attn.hook_rot_k"


def _is_rotated(explained: Explained, node: Node) -> str:
    if _behind_moves(node).target is aten.add.Tensor:
        return ""
    return "here the scores read no rotated value: try attn.hook_q or attn.hook_k"


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook of a block: our place, with `{}` for the layer and `{next}` for the one behind it, the order of its axes in
    TransformerLens, and what must hold."""

    place: str
    axes: tuple[str, ...]
    check: Check = _anything


HOOKS: Mapping[str, Hook] = {
    "hook_resid_pre": Hook("residual.{}", STREAM),
    "hook_resid_post": Hook("residual.{next}", STREAM, _is_sum),
    "hook_normalized_resid_post": Hook("residual.{next}", STREAM, _is_norm),
    "hook_attn_out": Hook("attention.{}.output", STREAM, _is_added),
    "attn.hook_out": Hook("attention.{}.output", STREAM),
    "hook_mlp_out": Hook("mlp.{}.output", STREAM, _is_added),
    "mlp.hook_out": Hook("mlp.{}.output", STREAM),
    "mlp.hook_post": Hook("mlp.{}.neurons", STREAM),
    "attn.hook_q": Hook("attention.{}.queries", HEADS, _is_projected),
    "attn.hook_k": Hook("attention.{}.keys", HEADS, _is_projected),
    "attn.hook_v": Hook("attention.{}.values", HEADS, _is_projected),
    "attn.hook_rot_q": Hook("attention.{}.queries", HEADS, _is_rotated),
    "attn.hook_rot_k": Hook("attention.{}.keys", HEADS, _is_rotated),
    "attn.hook_z": Hook("attention.{}.heads", HEADS),
    "attn.hook_pattern": Hook("attention.{}.pattern", PATTERN),
}
"""The hooks of a block that are places here."""

ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(
        ("hook_embed", "embed.hook_out"), 'it is the leaf of a call: explained.with_leaves(input_ids)[1]["inputs_embeds"]'
    ),
    "hook_pos_embed": "positions are no leaf here; lxt_fx.audit says how much of the number they took",
    "hook_resid_mid": "it is no standard place: hook_resid_pre plus hook_attn_out; or watch its %node",
    "attn.hook_attn_scores": "it is no standard place; watch its %node, which show(explained, 'lowered') prints",
    "attn.hook_result": "the graph sums over heads in one product: take attn.hook_z, which is what each head gives",
    "mlp.hook_pre": "watch the module that gives it, by its path (as model.layers.0.mlp.gate_proj)",
    "mlp.hook_pre_linear": "watch the module that gives it, by its path (as model.layers.0.mlp.up_proj)",
    "hook_scale": "a norm's factor carries no relevance under most tables",
    "ln_final.hook_normalized": "watch the norm by its path (as model.norm), which has its weight in it",
    "hook_normalized": "watch the norm by its path (as model.layers.0.input_layernorm), which has its weight in it",
    "hook_in": "what a module reads is what another gives: hook_resid_pre before a block or its first norm, attn.hook_z "
    "before attn.o, mlp.hook_post before mlp.out",
    "hook_out": "watch the module that gives it, by its path (as model.layers.0.self_attn.q_proj); of a whole block it is "
    "hook_resid_post",
}
"""Where to find what is no place here, by how the name ends."""


def place(explained: Explained, name: str) -> str:
    """Our name for the place of a TransformerLens hook (`blocks.3.attn.hook_z` is `attention.3.heads`, `hook_unembed` is
    `logits`), which `latent`, `conditional`, `steer` and the others take.

    Raises UnknownNameError, which says where to find it, for a hook that is no place of this model; InputError where the
    place holds another value in this model.
    """
    check_explained(explained, "transformer_lens.place")
    return _found(explained, places(explained), name)[0]


def _found(explained: Explained, known: Places, name: str) -> tuple[str, tuple[str, ...]]:
    if name in ("hook_unembed", "unembed.hook_out"):
        return "logits", ("batch", "positions")
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    hook = HOOKS.get(block[2]) if block else None
    if block is None or hook is None:
        hint = next((where for end, where in ELSEWHERE.items() if name.endswith(end)), None)
        if hint is None:
            layer_of = re.search(r"\d+", name)
            hint = nearest(name, [f"blocks.{layer_of[0] if layer_of else 0}.{each}" for each in HOOKS] + ["hook_unembed"])
        raise UnknownNameError(f"transformer_lens: {name!r} is no place here; {hint}")
    layer = int(block[1])
    own = hook.place.format(layer, next=layer + 1)
    if own not in known:
        hint = "; load the model with attn_implementation='eager'" if own.endswith(".pattern") else ""
        raise UnknownNameError(
            f"transformer_lens: {name} would be {own}, which {known.model_class} does not have{hint}; "
            "lxt_fx.places(explained) lists what it has"
        )
    node = canonical_node(explained, explained._values().by_name[known[own].node])
    why = hook.check(explained, node) if node is not None else "its node is not in the canonical graph"
    if why:
        raise InputError(f"transformer_lens: {name} is not {own} in {known.model_class}: {why}")
    return own, hook.axes


@dataclass(frozen=True, slots=True)
class Hooked:
    """A value inside the model with the axes of TransformerLens, and after `backward()` its relevance in the same shape."""

    name: str
    place: str
    order: tuple[int, ...]
    inside: Watch

    @property
    def value(self) -> Tensor:
        """The value: [batch, pos, d_model], [batch, pos, d_mlp], [batch, pos, head, d_head], or a pattern [batch, head,
        query, key]. Keys and values have a head for each head of the queries."""
        return self.inside[self.place].value.permute(self.order)

    @property
    def relevance(self) -> Tensor:
        """Its relevance. Raises InputError before `backward()`."""
        return self.inside[self.place].relevance.permute(self.order)


@contextmanager
def watch(explained: Explained, *names: str) -> Iterator[Mapping[str, Hooked]]:
    """`lxt_fx.watch` by TransformerLens's names (`*` in the place of a number means every block), as `run_with_cache` names
    what it returns.

    Raises what `place` raises, and InputError without a name, for what is no name (a filter, a list), and where a place has
    other axes than the hook.
    """
    check_explained(explained, "transformer_lens.watch")
    known = places(explained)
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in _every(known, names):
        own, axes = _found(explained, known, name)
        found[name] = own, _order(name, known, own, axes)
    with watch_places(explained, *dict.fromkeys(own for own, _ in found.values())) as inside:
        yield {name: Hooked(name, own, order, inside) for name, (own, order) in found.items()}


def _every(known: Places, names: tuple[str, ...]) -> Iterator[str]:
    layers = sum(bool(re.fullmatch(r"residual\.\d+", name)) for name in known) - 1
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None or not names:
        said = "got no name" if wrong is None else f"{wrong!r} is no name"
        raise InputError(f"transformer_lens.watch: {said}; give names one after the other: {', '.join(map(repr, _SHOWN))}")
    for name in names:
        if "*" in name and not re.fullmatch(r"blocks\.\*\.[^*]+", name):
            raise InputError(
                f"transformer_lens.watch: in {name!r} a * stands for more than the number of a block; write {_SHOWN[0]!r}"
            )
        yield from (name.replace("*", str(layer)) for layer in range(layers)) if "*" in name else (name,)


_SHOWN = ("blocks.*.attn.hook_z", "blocks.1.mlp.hook_post")


def _order(name: str, known: Places, own: str, wanted: tuple[str, ...]) -> tuple[int, ...]:
    """The permutation from our axes to TransformerLens's."""
    axes = known[own].axes
    rest = [axis for axis in axes if axis not in wanted]
    ordered = [*wanted, *rest]
    if known[own].merged or sorted(ordered) != sorted(axes) or len(rest) > 1:
        raise InputError(
            f"transformer_lens: {own} has the axes {', '.join(axes)} in {known.model_class}, and {name} would have "
            f"{', '.join(wanted)}; watch {own} by its own name"
        )
    return tuple(axes.index(axis) for axis in ordered)


def _behind_moves(node: Node) -> Node:
    """The node whose value this is before it was moved: reshaped, transposed, cut or repeated."""
    while node.target in MOVES and isinstance(node.args[0], Node):  # `cat` and `stack` have a list of values there
        node = node.args[0]
    return node


def _users_behind_moves(node: Node) -> Iterator[Node]:
    for user in node.users:
        if user.target in MOVES:
            yield from _users_behind_moves(user)
        else:
            yield user


__all__ = ["Hooked", "place", "watch"]
