"""Whether a model still is what it was when it was captured: a call of an explained module asks, and refuses if not.

An explained module shares the parameters of its model, so values that an optimiser, `load_state_dict` or `copy_` writes
into them count in the next call. What capture wrote into the graph cannot follow: which tensors there are, their dtype and
device, which modules are called, and what the model's Python code reads from attributes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, Sized
from dataclasses import dataclass
from itertools import chain
from operator import is_, methodcaller
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from lxt_fx.base.as_it_was import Written
from lxt_fx.base.errors import ModelChangedError
from lxt_fx.base.model_snapshot import Place
from lxt_fx.base.one_capture import one_capture
from lxt_fx.base.torch_internals import contents_of
from lxt_fx.base.warn_user import warn_user
from lxt_fx.compiler.hooks import PAUSED
from lxt_fx.compiler.model_settings import SAY_NOTHING, Setting, Values, joined, names_read, settings_of
from lxt_fx.ops.packed import packed_layer_of

_END = object()
_ITERATE = frozenset({"children", "named_children", "modules", "named_modules"})
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_MODE = methodcaller("get", "training")  # which a wrapper of torch.compile has not


class ModelState:
    """What a graph took from its model. It does not hold the model: when that is freed, nothing is compared any more.

    `check` compares objects by identity, which takes a third of a microsecond for each tensor of the model. Only where one
    of them is another, it finds out what that means, and goes on with the new state if it means nothing to the graph.
    """

    def __init__(self, model: nn.Module, modules: Iterable[GraphModule], captured: Graph, written: Writes) -> None:
        """`modules` are the graph and, if it is cut already, its fronts; `captured` is the graph as it was captured, and
        `written` is what the forward itself writes."""
        self._reads, self._written = _Reads.of(model, list(modules), captured), written
        self._model = weakref.ref(model, _forgetting(weakref.ref(self)))
        self._seen: _Seen | None = _Seen.of(model, self._reads, self._written)

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelState:
        return self  # a copy would copy the model, and the copy of an explained module has no model

    def model(self) -> nn.Module | None:
        """The model; None where it is gone."""
        return self._model()

    def check(self, model_class: str) -> None:
        """Raises ModelChangedError if the model is not what the graph was captured from."""
        seen, model = self._seen, self._model()
        if seen is None or model is None or seen.is_same():
            return
        with one_capture():  # while another thread captures the model, its parameters are placeholders
            self._compare(seen, model, model_class)

    def _compare(self, seen: _Seen, model: nn.Module, model_class: str) -> None:
        if changes := list(seen.changes(model)):
            more = f", and {len(changes) - 1} more changes" if len(changes) > 1 else ""
            raise ModelChangedError(
                f"{model_class}: the model changed after transform: {changes[0]}{more}. The explained module has the graph "
                "of the model as it was; transform the model again, or undo the change"
            )
        if (hooked := seen.hooked()) and not PAUSED.get():
            warn_user(
                f"{model_class}: a forward hook was put on {', '.join(hooked)} after transform, and the explained module "
                "does not run it. If it changes what it sees, transform the model again; if it only reads, nothing is lost"
            )
        self._seen = _Seen.of(model, self._reads, self._written)


Writes = Mapping[Place, Any]
"""What a model's own forward writes into it: by place the tensor that it makes of a buffer or parameter, else the class of
what it puts there."""


def places_written(model: nn.Module, written: Iterable[Written]) -> Writes:
    """Where the forward of a model writes in these runs. Nothing here holds a module, nor what the model stores in its
    attributes, such as a hidden state: tensors are those of its buffers and parameters only, whose values are compared."""
    compared = {id(owner) for module in model.modules() for owner in contents_of(module)[:2]}
    places = {place: each.made.get(place) for each in written for place in each.places}
    return {
        place: x.detach() if isinstance(x, Tensor) and place[0] in compared else type(x) for place, x in places.items()
    }


def _forgetting(state: weakref.ref[ModelState]) -> Callable[[Any], None]:
    """A function that drops the parts of the model, to be called when the model is freed."""

    def forget(_: Any) -> None:
        if (found := state()) is not None:
            found._seen = None

    return forget


@dataclass(frozen=True, slots=True)
class _Reads:
    """What the graph reads of its model: tensors by identity, which the explained module holds in any case, and the paths
    of modules that are called, hold such tensors, or hold such modules."""

    tensors: Mapping[int, Tensor]
    paths: frozenset[str]

    @staticmethod
    def of(model: nn.Module, modules: Sequence[GraphModule], captured: Graph) -> _Reads:
        every = [x for gm in modules for x in chain(gm.parameters(), gm.buffers())]
        packed = [layer.tensors() for x in every if (layer := packed_layer_of(x)) is not None]
        own = (x for x in every if packed_layer_of(x) is None)
        tensors = {id(tensor): tensor for tensor in chain(own, *packed)}
        stacks = [node.meta.get("nn_module_stack") or {} for node in captured.nodes]
        paths = {str(path).split("@")[0] for stack in stacks for path, _ in stack.values()} | {""}
        named = list(model.named_modules(remove_duplicate=False))
        for path, module in named:
            if any(id(tensor) in tensors for held in contents_of(module)[:2] for tensor in held.values()):
                paths.add(path)
        paths |= {".".join(path.split(".")[:count]) for path in paths for count in range(1, path.count(".") + 1)}
        read = {id(module) for path, module in named if path in paths}
        return _Reads(tensors, frozenset(path for path, module in named if id(module) in read))

    def by(self, path: str, key: str, value: Any) -> bool:
        """Whether the graph reads this parameter, buffer or submodule. What is None may be read as such."""
        read = joined(path, key) in self.paths if isinstance(value, nn.Module) else id(value) in self.tensors
        return value is None or read


@dataclass(frozen=True, slots=True)
class _Held:
    """Parameters, buffers or submodules in the dict of their module. `reads` names those that the graph reads, `writes`
    what the forward itself puts there. In an `open` dict, which the model's code iterates over, a new entry counts too."""

    path: str
    owner: dict[str, Any]
    was: Mapping[str, Any]
    reads: frozenset[str]
    is_open: bool
    writes: Mapping[str, Any]
    tensors: Mapping[int, Tensor]

    def changes(self) -> Iterator[str]:
        """What is another now, in sentences."""
        for key, was in self.was.items():
            now = self.owner[key] if key in self.owner else _END  # noqa: SIM401 - scripted modules have no `get`
            if now is not was and key in self.reads and not (key in self.writes and self._is_written(key, was, now)):
                shown, before = _shown(now), _shown(was)
                said = f"{shown} (it was {before})" if shown != before else f"another {shown}"
                yield f"{joined(self.path, key)} is {said}"
        new = [key for key in dict(self.owner) if key not in {*self.was, *self.writes}] if self.is_open else []
        for key in new:
            yield f"{joined(self.path, key)} is new ({type(self.owner[key]).__name__})"

    def _is_written(self, key: str, was: Any, now: Any) -> bool:
        """Whether this may come from the forward itself: a tensor of the values that it makes, or of another size
        (whose values are not compared); a module of its class, with the tensors that the graph reads."""
        made = self.writes[key]
        if isinstance(made, Tensor) and isinstance(now, Tensor):
            if made.shape != now.shape:
                return True
            alike = made.dtype == now.dtype and made.device == now.device and not now.is_meta
            return alike and torch.equal(made, now)
        if type(now) is not made:
            return False
        if not isinstance(now, nn.Module) or not isinstance(was, nn.Module):
            return True
        found = dict(chain(now.named_parameters(), now.named_buffers()))
        named = chain(was.named_parameters(), was.named_buffers())
        return all(found.get(name) is x for name, x in named if id(x) in self.tensors)


@dataclass(frozen=True, slots=True, repr=False)
class _Seen:
    """The model as it was seen last: what stands in its dicts, and the same side by side, for a comparison at the speed of
    C. `modules` are all but the model itself, whose dicts are held and which may be freed."""

    held: tuple[_Held, ...]
    settings: tuple[Setting, ...]
    tensors: tuple[tuple[str, Tensor], ...]
    modules: tuple[tuple[str, nn.Module], ...]
    dicts: tuple[dict[str, Any], ...]
    objects: tuple[Any, ...]
    values: Values
    alone: tuple[Tensor, ...]
    dtypes: list[torch.dtype]
    devices: list[int]
    places: list[torch.device]
    attributes: tuple[Mapping[str, Any], ...]
    counts: list[int]
    modes: list[bool]
    keys: tuple[Set[str], ...]
    hooks: tuple[tuple[str, Sized], ...]
    hook_counts: list[int]
    written: Writes

    @staticmethod
    def of(model: nn.Module, graph: _Reads, written: Writes) -> _Seen:
        """The model as it is now, without the settings that its forward writes."""
        modules = tuple(model.named_modules())
        used = [(path, module) for path, module in modules if path in graph.paths]
        adapters = {joined(path, name) for path, module in used for name in getattr(module, "adapter_layer_names", ())}
        own: dict[int, dict[str, Any]] = {}
        for (owner, key), made in written.items():
            own.setdefault(owner, {})[key] = made
        held = tuple(chain.from_iterable(_held(path, module, graph, path in adapters, own) for path, module in used))
        settings = [s for s in chain(settings_of(used), _constants(used, graph)) if s.place not in written]
        names = {id(tensor): name for name, tensor in chain(model.named_buffers(), model.named_parameters())}
        alone = tuple(graph.tensors.values())
        attributes = tuple(vars(module) for _, module in modules)
        hooks = tuple((path, vars(module)[kind]) for path, module in used for kind in _HOOKS if kind in vars(module))
        return _Seen(
            held=held,
            settings=tuple(settings),
            tensors=tuple((names.get(key, "a constant"), tensor) for key, tensor in graph.tensors.items()),
            modules=modules[1:],
            dicts=tuple(each.owner for each in held),
            objects=(*chain.from_iterable(each.was.values() for each in held), _END),
            values=Values.of(settings),
            alone=alone,
            dtypes=[tensor.dtype for tensor in alone],
            devices=list(map(Tensor.get_device, alone)),
            places=[tensor.device for tensor in alone],
            attributes=attributes,
            counts=list(map(len, attributes)),
            modes=list(map(_MODE, attributes)),
            keys=tuple(map(frozenset, attributes)),
            hooks=hooks,
            hook_counts=[len(each) for _, each in hooks],
            written=written,
        )

    def is_same(self) -> bool:
        """Whether every object is the same as before. False may mean nothing; `changes` says."""
        try:
            return (
                [tensor.dtype for tensor in self.alone] == self.dtypes
                and list(map(Tensor.get_device, self.alone)) == self.devices
                and all(map(is_, chain(chain.from_iterable(map(dict.values, self.dicts)), (_END,)), self.objects))
                and list(map(_MODE, self.attributes)) == self.modes
                and list(map(len, self.attributes)) == self.counts
                and [len(each) for _, each in self.hooks] == self.hook_counts
                and self.values.are_same()
            )
        except Exception:  # another thread changes a dict, or objects that cannot be compared
            return False

    def hooked(self) -> list[str]:
        """The modules that have more forward hooks than before."""
        grown = [path for (path, now), was in zip(self.hooks, self.hook_counts, strict=True) if len(now) > was]
        return [path or "the model" for path in dict.fromkeys(grown)]

    def changes(self, model: nn.Module) -> Iterator[str]:
        """What is another now and counts for the graph, in sentences."""
        for (name, tensor), dtype, place in zip(self.tensors, self.dtypes, self.places, strict=True):
            if tensor.dtype != dtype or tensor.device != place:
                yield f"{name} is {_kind(tensor.dtype)} on {tensor.device} (it was {_kind(dtype)} on {place})"
        for each in self.held:
            yield from each.changes()
        yield from (setting.said() for setting in self.settings if setting.differs())
        for (path, module), was, keys in zip((("", model), *self.modules), self.modes, self.keys, strict=True):
            for key in vars(module).keys() - keys:
                if _hides(module, key) and (id(vars(module)), key) not in self.written:
                    yield f"{joined(path, key)} was set on this {type(module).__name__} (it was that of the class)"
            if module.training and not was and _draws(module):
                yield (
                    f"{path or 'the model'} ({type(module).__name__}) is in training mode, and the graph has the forward "
                    "of evaluation mode: call model.eval()"
                )


def _held(
    path: str, module: nn.Module, graph: _Reads, adapter: bool, own: Mapping[int, Mapping[str, Any]]
) -> Iterator[_Held]:
    """What stands in the three dicts of a module. New entries count where its code may iterate over them, which it does not
    for the further adapters of an `adapter` layer."""
    loops = isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) or names_read(type(module)) & _ITERATE
    for owner in contents_of(module):
        reads = frozenset(key for key, value in owner.items() if graph.by(path, key, value))
        if owner:
            writes = own.get(id(owner), {})
            yield _Held(path, owner, dict(owner), reads, bool(loops) and not adapter, writes, graph.tensors)


def _constants(modules: Iterable[tuple[str, nn.Module]], graph: _Reads) -> Iterator[Setting]:
    """Attributes that hold a tensor which the graph reads, and which is neither a parameter nor a buffer."""
    for path, module in modules:
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and id(value) in graph.tensors:
                yield Setting(joined(path, key), vars(module), key, value)


def _hides(module: nn.Module, key: str) -> bool:
    """Whether a new attribute of a module takes the place of something of its class that the forward may read."""
    of_class = getattr(type(module), key, _END)
    if key in SAY_NOTHING:
        return False
    return key == "forward" or (of_class is not _END and not callable(of_class) and not hasattr(nn.Module, key))


def _draws(module: nn.Module) -> bool:
    """Whether the module computes something else in training mode: dropout, or statistics of the batch."""
    dropout = [value for name, value in vars(module).items() if "drop" in name and isinstance(value, (int, float))]
    if "Drop" in type(module).__name__:
        dropout.append(getattr(module, "p", 0.0))
    running = isinstance(module, nn.RReLU) or getattr(module, "track_running_stats", False)
    return running or any(value > 0 for value in dropout)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{type(value).__name__} {list(value.shape)} of {_kind(value.dtype)}"
    if isinstance(value, nn.Module):
        return type(value).__name__
    return "gone" if value is _END else repr(value)


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
