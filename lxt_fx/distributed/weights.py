"""The tensors that a stage reads: from a checkpoint, made again, or those of a module that has them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor, nn

from lxt_fx.base.errors import InputError
from lxt_fx.base.named_tensors import named_tensors
from lxt_fx.base.transformers_internals import StoredPart, ignored_names, stored_parts
from lxt_fx.compiler.explained import Explained
from lxt_fx.distributed.checkpoint import Checkpoint
from lxt_fx.distributed.made_buffers import made_buffers, not_in_checkpoints


class Weights:
    """Tensors by their path in a module on the meta device, each read once, when it is asked for.

    A checkpoint must have each parameter and persistent buffer under one of its names (tied ones have several) and no other
    tensor, but those that `ignore` fits (patterns with `*`) or that transformers ignores for this model. `buffers` are
    values of buffers that no checkpoint has, by name. Without a folder, the tensors are those of the module.
    """

    def __init__(
        self,
        explained: Explained,
        folder: str | Path | None,
        device: torch.device,
        ignore: Sequence[str],
        buffers: Mapping[str, Tensor],
    ) -> None:
        state = explained._model_state
        self.model = None if state is None else state.model()
        self.device, self.given = device, dict(buffers)
        self.checkpoint = None if folder is None else Checkpoint(folder)
        self.stored: dict[str, StoredPart] = {}
        """What the checkpoint has, by the name in the model."""
        self._read: dict[str, Tensor] = {}
        self._made: dict[str, Tensor] | None = None
        self._names = _names_of(explained, self.model)
        if self.checkpoint is not None:
            self.stored = self._checked(explained, self.checkpoint, ignore)

    @property
    def size(self) -> int:
        """The bytes of all tensors that were read."""
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self._read.values()}.values())

    def of(self, owner: nn.Module, paths: Iterable[str]) -> dict[str, Tensor]:
        """These tensors of a module, by path. Raises InputError for one that has no values anywhere."""
        return {path: self._one(owner, path) for path in paths}

    def _one(self, owner: nn.Module, path: str) -> Tensor:
        wanted = attrgetter(path)(owner)
        if not isinstance(wanted, Tensor) or type(wanted) not in (Tensor, nn.Parameter, nn.Buffer):
            raise InputError(
                f"pipeline: {path} is a {type(wanted).__name__}, which no stage can read from a checkpoint; packed weights "
                "and weights that are sharded over devices are for one process: unpack them, or use lxt_fx without pipeline"
            )
        names = (path, *self._names.get(id(wanted), ()))
        known = next((name for name in names if name in self._read), None)
        if known is None:
            known, found = path, self._found(names, wanted)
            if found.shape != wanted.shape:
                raise InputError(f"pipeline: {path} is {list(found.shape)} in the checkpoint, {list(wanted.shape)} here")
            self._read[path] = found.detach().to(self.device, wanted.dtype)
        return self._read[known]

    def _found(self, names: Sequence[str], wanted: Tensor) -> Tensor:
        stored = {self.stored[name].keys: name for name in names if name in self.stored}
        if stored and self.checkpoint is not None:
            first, *others = (self._converted(name) for name in stored.values())
            if any(not torch.equal(first, other) for other in others):
                said = " and ".join(_some(keys) for keys in stored)
                raise InputError(
                    f"pipeline: {said} are one tensor in the model, and differ in the checkpoint; make the "
                    "model with tie_word_embeddings=False in its config"
                )
            return first
        if (given := next((name for name in names if name in self.given), None)) is not None:
            return self.given[given]
        if not wanted.is_meta:
            return wanted
        return self._buffer(names)

    def _converted(self, name: str) -> Tensor:
        """A tensor of the model, as `from_pretrained` makes it of the checkpoint. Raises InputError where that fails."""
        part, checkpoint = self.stored[name], self.checkpoint
        assert checkpoint is not None, "what is stored is in a checkpoint"
        try:
            return part.read(lambda key: checkpoint.read(key, torch.device("cpu")), self.model)[name]
        except Exception as error:  # of any operation of transformers: experts of several sizes, a part that is missing
            said = f"pipeline: {name} cannot be made of {_some(part.keys)} in {checkpoint.folder}: "
            raise InputError(f"{said}{type(error).__name__}: {error}") from error

    def _buffer(self, names: Sequence[str]) -> Tensor:
        if self._made is None:
            known = {} if self.model is None else not_in_checkpoints(self.model)
            wanted = [name for name in known if name not in self.given and name not in self.stored]
            self._made = made_buffers(self.model, wanted) if self.model is not None and wanted else {}
        found = next((self._made[name] for name in names if name in self._made), None)
        if found is None:
            gone = " (the model is gone: keep it until the pipeline is made)" if self.model is None else ""
            raise InputError(
                f"pipeline: {names[0]} has no values: it is on the meta device, and the checkpoint does not have it{gone}; "
                "give them with buffers={name: tensor}"
            )
        return found

    def _checked(self, explained: Explained, checkpoint: Checkpoint, ignore: Sequence[str]) -> dict[str, StoredPart]:
        """What the checkpoint has, by the name in the model. Raises InputError where names are missing or unknown."""
        known = {name for names in self._names.values() for name in names}
        parts = [StoredPart((key,), (key,)) for key in checkpoint.files]
        if self.model is not None and not checkpoint.files.keys() <= known:
            parts = stored_parts(self.model, list(checkpoint.files))
        unused = [*map(fnmatch.translate, ignore), *(() if self.model is None else ignored_names(self.model))]
        unknown = [
            key
            for part in parts
            for key in part.keys
            if known.isdisjoint(part.names) and not any(re.search(pattern, key) for pattern in unused)
        ]
        stored = {name: part for part in parts for name in part.names if name in known}
        own = set() if self.model is None else set(not_in_checkpoints(self.model))
        needed = [
            names
            for tensor, names in self._names.items()
            if tensor in _read_by(explained) and not {*names} & (stored.keys() | own | self.given.keys())
        ]
        missing = [names[0] for names in needed if self.model is not None]
        if unknown or missing:
            raise InputError(_said(checkpoint, unknown, missing, type(self.model).__name__))
        return stored


def _names_of(explained: Explained, model: nn.Module | None) -> dict[int, tuple[str, ...]]:
    """All names of each tensor, in the model and in the graphs."""
    found: dict[int, dict[str, None]] = {}
    owners = [*([] if model is None else [model]), explained, *(front.module for front in explained._fronts)]
    for owner in owners:
        for name, tensor in named_tensors(owner):
            found.setdefault(id(tensor), {})[name] = None
    return {tensor: tuple(names) for tensor, names in found.items()}


def _read_by(explained: Explained) -> set[int]:
    """The tensors on the meta device that the graphs read."""
    owners = [(explained, explained.fused), *((front.module, front.module.graph) for front in explained._fronts)]
    read = [attrgetter(str(n.target))(o) for o, graph in owners for n in graph.nodes if n.op == "get_attr"]
    return {id(tensor) for tensor in read if isinstance(tensor, Tensor) and tensor.is_meta}


def _said(checkpoint: Checkpoint, unknown: Sequence[str], missing: Sequence[str], model: str) -> str:
    parts = []
    if missing:
        parts.append(f"does not have {_some(missing)}, which {model} reads")
    if unknown:
        parts.append(f"has {_some(unknown)}, which {model} has not")
    return (
        f"pipeline: {checkpoint.folder} {', and '.join(parts)}. Names must be those of model.state_dict(), or ones from "
        "which from_pretrained makes these. Give ignore=[pattern] for tensors that are not needed"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
