"""`splice`: features of a dictionary become values of a model's graph, with relevance of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from lxt_fx.attribution.dictionary_places import path_for
from lxt_fx.attribution.places import InsidePlace, places_at
from lxt_fx.attribution.standard_places import kind_of
from lxt_fx.base.errors import CallError, ForwardMismatchError, InputError, UnknownNameError
from lxt_fx.base.nodes import fixed_size, value
from lxt_fx.base.progress import lasting
from lxt_fx.base.warn_user import warn_user
from lxt_fx.compiler.edited import check_editable, edited
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.transform import transform
from lxt_fx.inside.dictionaries.dictionary import Dictionary
from lxt_fx.passes.analysis.find_dictionaries import find_dictionaries
from lxt_fx.passes.canonical.insert_dictionary import Part, insert_dictionary
from lxt_fx.passes.capture.opened_model import opened

_HOOKS = {
    "hook_resid_pre": "residual.{}",
    "hook_mlp_out": "mlp.{}.output",
    "mlp.hook_post": "mlp.{}.neurons",
    "hook_attn_out": "attention.{}.output",
    "attn.hook_z": "attention.{}.heads",
}
"""The standard places of what TransformerLens, and so the files of SAELens, call by these names in `blocks.0`, ..."""

BY_HEAD = ("heads", "queries", "keys", "values")
"""Places [batch, heads, tokens, size]."""


@lasting
def splice(
    model: nn.Module,
    place: str,
    dictionary: Dictionary,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    reads: str | None = None,
    stop: bool = False,
    progress: bool | None = None,
) -> Explained:
    """An explained module in which the value h at a place is the sum of a dictionary's features and of what is left:

        h = sum_k f_k d_k + b + e        with e = h - (sum_k f_k d_k + b) a constant

    It computes what it computed before (`record.forward_difference` says how closely). The features are values of its
    graph, as every other: `watch`, `audit`, `show` and all that take a place find them at `<place>.features`, e at
    `<place>.error` and h, as its readers read it, at the place itself. Their relevance is R_k = f_k d_k . g, R_e = e . g
    and R_b = b . g, with g what the table makes of the gradient at h; they add up to h . g (Sparse Feature Circuits, Marks
    et al. 2024). The relevance of features goes on through the activation (R_in = R_out) and the encoder (a linear map) to
    the inputs. That of e ends there: the ledger books it as `reconstruction error`, and biases as biases. With `stop=True`
    it ends at the features.

        spliced = lxt_fx.splice(model, "residual.12", lxt_fx.Dictionary.load("sae"))
        with lxt_fx.watch(spliced, "residual.12.features") as inside:
            output, leaves = spliced.with_leaves(input_ids=ids)
            output.logits[0, -1, 42].backward()
        inside["residual.12.features"].relevance          # [batch, tokens, features]

    `model` is a model, which is transformed first (`args` and `kwargs` as in `transform`), or what `transform` or `splice`
    returned: its table and options stay, and several dictionaries can stand in one module. Inputs are needed only for a
    module whose inputs are unknown to `transform`; the forward is compared on them. `place` is one that `lxt_fx.places`
    lists, a module path, or a `%node`. A transcoder takes what it reads from the place `reads`, and writes to `place`. At
    places of heads [batch, heads, tokens, size] a dictionary may be of the size of one head, or of all heads side by side,
    as those of `hook_z` are; then its features are [batch, tokens, features].

    The model does not change. The tensors of the dictionary are used as they are, not copied. A dictionary whose file names
    another place gives a warning. `progress` is as in
    `lxt_fx.progress`, for this call.

    Raises InputError for a dictionary of another width, dtype or device than the place, for several places and for a module
    that was loaded from a file; CallError for one that is steered; UnknownNameError for a place that does not exist, with
    the nearest names; ForwardMismatchError for a dictionary whose values are too large for the dtype; what `transform`
    raises. A call of the module raises CallError if it needs a further graph, and the place is a `%node` of the first.
    """
    if not isinstance(dictionary, Dictionary):
        raise InputError(
            f"splice: a dictionary is a lxt_fx.Dictionary, got {type(dictionary).__name__}; make one of its tensors with "
            "Dictionary(W_enc, W_dec, b_enc, b_dec, kind=...), or read a folder with Dictionary.load(folder)"
        )
    model = opened(model, "splice")
    explained = model if isinstance(model, Explained) else transform(model, args, dict(kwargs or {}))
    check_editable(explained, "splice")
    site = _Site(explained, place, reads or place, dictionary, stop)
    site.check(explained)
    _say_trained_elsewhere(explained, reads or place, dictionary)
    try:
        note = f"compared without the dictionary at {place}, whose error is a constant"
        return edited(explained, args, kwargs or {}, site.insert, note)
    except InputError as error:
        raise InputError(f"splice: {str(error).removeprefix('transform: ')}") from error
    except ForwardMismatchError as error:
        raise ForwardMismatchError(
            f"splice: with the dictionary at {place}, {explained.record.model_class} answers in another way than without. "
            f"What the dictionary reconstructs there is too large for {dictionary.dtype}, and what it leaves cannot make "
            f"up for it; check its tensors and its place, or take a wider dtype. ({error})"
        ) from error


class _Site:
    """A dictionary and where it goes."""

    def __init__(self, first: Explained, written: str, read: str, dictionary: Dictionary, stop: bool) -> None:
        self.written, self.read, self.dictionary, self.stop = written, read, dictionary, stop
        self.graph = first.record.stages["canonical"].graph

    def check(self, explained: Explained) -> tuple[InsidePlace, Node, Node, int | None]:
        """The place, the nodes that are read and written in the graph before its rules, and the heads that are read side by
        side, if they are. Raises InputError for a place where the dictionary cannot stand."""
        read, source = _one(explained, self.read)
        written, target = _one(explained, self.written)
        heads = _fit(read, source, self.dictionary.width, self.dictionary)
        if _fit(written, target, self.dictionary.width_written, self.dictionary) != heads:
            raise InputError(f"splice: {read.name} has its heads side by side, and {written.name} has not")
        order = {node: index for index, node in enumerate(target.graph.nodes)}
        if order[source] > order[target]:
            raise InputError(
                f"splice: {read.name} (%{source.name}) is computed after {written.name} (%{target.name}); a transcoder "
                "reads what comes before the place that it writes"
            )
        return written, source, target, heads

    def insert(self, explained: Explained, gm: GraphModule) -> int:
        """Puts the dictionary into a copy of the graph of a module. Raises CallError for a further graph where a place is
        a node: another graph may have another value by that name."""
        nodes = [name for name in (self.written, self.read) if name.startswith("%")]
        if nodes and explained.record.stages["canonical"].graph is not self.graph:
            raise CallError(
                f"splice: this call of {explained.record.model_class} needs another graph, in which {nodes[0]} may be "
                "another value; name the place by its standard name or its module"
            )
        written, source, target, heads = self.check(explained)
        copies = {node.name: node for node in gm.graph.nodes}
        dictionary = self.dictionary
        encode: Part = dictionary.encode
        decode: Part = dictionary.decode
        if heads is not None:
            encode, decode = _side_by_side(dictionary, heads)
        return insert_dictionary(
            gm,
            copies[source.name],
            copies[target.name],
            path_for(written.name, [one.path for one in find_dictionaries(gm.graph)]),
            dictionary.tensors,
            encode,
            decode,
            stop=self.stop,
        )


def _say_trained_elsewhere(explained: Explained, place: str, dictionary: Dictionary) -> None:
    """Warns where the file of a dictionary names another place: here it may explain little of the value. A name that says
    nothing of this model passes, and no name."""
    if not dictionary.place:
        return
    trained = _standard_name(dictionary.place, place)
    try:
        there: object = _one(explained, trained)[1]
    except (UnknownNameError, InputError):  # no such place, or several
        if trained == dictionary.place:
            return
        there = None
    if there is not _one(explained, place)[1]:
        which = "" if trained == dictionary.place else f", which is {trained} here,"
        warn_user(
            f"splice: the dictionary was trained at {dictionary.place}{which} and is put at {place}; what it does not "
            "explain there is its error"
        )


def _standard_name(trained: str, place: str) -> str:
    """What a file calls a place, in our names: the name itself if it is none of TransformerLens. Of hooks that are no
    standard place the layer counts: it is that of a standard `place` at which the dictionary is put."""
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", trained)
    if found is None:
        return trained
    layer, hook = int(found.group(1)), found.group(2)
    if hook == "hook_resid_post":
        return f"residual.{layer + 1}"
    if hook in _HOOKS:
        return _HOOKS[hook].format(layer)
    here = re.fullmatch(r"(mlp|attention)\.\d+(\..+)", place)
    return trained if here is None else f"{here.group(1)}.{layer}{here.group(2)}"


def _one(explained: Explained, name: str) -> tuple[InsidePlace, Node]:
    """The one place of this name, and its node in the graph before its rules."""
    found = places_at(explained, name, "splice")
    if len(found) != 1:
        raise InputError(f"splice: a dictionary stands at one place, and {name!r} selects {len(found)}: {', '.join(found)}")
    (place,) = found.values()
    before = {new: old for old, new in explained.record.renamed.items()}
    wanted = before.get(place.node, place.node)
    for node in explained.record.stages["canonical"].graph.nodes:
        if node.name == wanted and isinstance(value(node), Tensor):
            return place, node
    raise InputError(
        f"splice: {place.name} is %{place.node}, which a rule put into the graph; take the value of the model that it "
        "stands for: show(explained, 'canonical') lists them"
    )


def _fit(place: InsidePlace, node: Node, width: int, dictionary: Dictionary) -> int | None:
    """None if the last axis of the place has the width, the number of heads if all heads side by side have it. Raises
    InputError if neither has."""
    found: Any = value(node)
    if found.dtype != dictionary.dtype:
        said = [str(dtype).removeprefix("torch.") for dtype in (dictionary.dtype, found.dtype)]
        raise InputError(
            f"splice: the dictionary is {said[0]}, and {place.name} is {said[1]}; give dictionary.to(torch.{said[1]})"
        )
    if found.device not in (dictionary.device, torch.device("meta")):
        raise InputError(
            f"splice: the dictionary is on {dictionary.device}, and {place.name} on {found.device}; give "
            f"dictionary.to({str(found.device)!r})"
        )
    sizes = [fixed_size(size) for size in found.shape]
    if sizes and sizes[-1] == width:
        return None
    heads = sizes[1] if kind_of(place.name) in BY_HEAD and len(sizes) == 4 else None
    if heads is not None and heads * (sizes[-1] or 0) == width:
        return heads
    both = f"{sizes[-1]} wide" + (f" in each of {heads} heads" if heads is not None else "")
    raise InputError(
        f"splice: the dictionary is {width} wide, and {place.name} [{','.join(place.shape)}] is {both}; a dictionary "
        "fits the place that it was trained at" + (f" ({dictionary.place})" if dictionary.place else "")
    )


def _side_by_side(dictionary: Dictionary, heads: int) -> tuple[Part, Part]:
    """Encoder and decoder for values [batch, heads, tokens, size], whose heads are read side by side."""

    def joined(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(-2)

    def encode(x: Tensor, **tensors: Tensor) -> Tensor:
        return dictionary.encode(joined(x), **tensors)

    def decode(features: Tensor, x: Tensor, **tensors: Tensor) -> Tensor:
        found = dictionary.decode(features, joined(x), **tensors)
        apart: Tensor = found.unflatten(-1, (heads, -1))  # type: ignore[no-untyped-call]
        return apart.transpose(1, 2)

    return encode, decode
