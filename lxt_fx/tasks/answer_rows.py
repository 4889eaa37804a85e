"""The rows of the matrix of answers in a folder: each chunk is complete or was not written, so a call that was killed goes
on where it was.

| file | what it holds |
|---|---|
| `header.json` | what was asked of which model: it must be the same when a call goes on |
| `progress.json` | how many rows are complete, the names of the inputs, the explained numbers. It is replaced last |
| `0.npy`, `1.npy`, ... | the relevance of one input of the model each, [rows, batch, ...] |
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lxt_fx.attribution.attributed import Attributed, by_input
from lxt_fx.attribution.leaf_call import LeafCall
from lxt_fx.attribution.many_targets import Run, forward_run
from lxt_fx.attribution.non_finite import is_finite, raise_non_finite
from lxt_fx.base.errors import InputError
from lxt_fx.base.whole_file import whole_file
from lxt_fx.compiler.weights_hash import weights_hash
from lxt_fx.tasks.answer_numbers import AnswerNumbers

FORMAT = 1
HEADER, PROGRESS = "header.json", "progress.json"


def attributed_in(
    path: str | Path, call: LeafCall, numbers: AnswerNumbers, function: str, *, chunk: int | None
) -> Attributed:
    """What `attributed` returns with `units=False`, with relevance that lies in the files of this folder. Rows that are
    there already are not computed again, but for the last one, by which the model and its rules are recognised.

    Raises InputError for a folder with other files or of another question, model or rules, NonFiniteError before what is
    not finite is written, and what `attributed` raises.
    """
    start = time.perf_counter()
    header = _header(call, numbers)
    eps = max(torch.finfo(leaf.dtype).eps for leaf in call.leaves.values())
    folder = RowsFolder.opened(Path(path), header, eps**0.5, function)
    run = forward_run(call, numbers, function)
    folder.check_numbers(run.values, function)
    rows = _Rows(call, numbers, run, function)
    if folder.done:
        (last,) = rows.chunks(folder.done - 1, 1, folder.done)
        folder.check_last(last, function)
    for part in rows.chunks(folder.done, chunk, len(run.values)):
        folder.add(part, len(run.values))
    return Attributed(folder.relevance(), run.values.cpu(), time.perf_counter() - start)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The rows of one forward, by input of the model."""

    call: LeafCall
    numbers: AnswerNumbers
    run: Run
    function: str

    def chunks(self, first: int, chunk: int | None, stop: int) -> Iterator[dict[str, Tensor]]:
        """The rows from `first` to `stop` by chunks, on the CPU."""
        chunks = self.run.relevance(list(self.call.leaves.values()), chunk, first)
        while first < stop:
            named = by_input(self.call, next(chunks), False, self.function)
            found = {name: part.cpu() for name, part in named}
            if not is_finite([self.run.values, *found.values()]):
                said = f"{self.function}: an explained number, or its relevance,"
                raise_non_finite(self.call.module, self.call.bound, self._sum, said)
            first += len(next(iter(found.values())))
            yield found

    def _sum(self, output: Any) -> Tensor:
        return self.numbers.totals(output)[0].sum()


class RowsFolder:
    """The files of one matrix. `done` rows are complete. Numbers that differ by less than `tolerance`, as a share of the
    largest, are the same."""

    def __init__(self, path: Path, tolerance: float) -> None:
        self.path, self._tolerance = path, tolerance
        found = json.loads((path / PROGRESS).read_text(encoding="utf-8")) if (path / PROGRESS).is_file() else {}
        self.done: int = found.get("done", 0)
        self._names: list[str] = found.get("inputs", [])
        self._values: list[Any] | None = found.get("values")
        self._files = [_opened(path / f"{at}.npy") for at in range(len(self._names))]

    @classmethod
    def opened(cls, path: Path, header: Mapping[str, Any], tolerance: float, function: str) -> RowsFolder:
        """The folder of this question, made where there is none. Raises InputError for the folder of another question, and
        for one with other files."""
        if path.exists() and not path.is_dir():
            raise InputError(f"{function}: folder={str(path)!r} is a file; give a folder")
        try:
            return cls._opened(path, header, tolerance, function)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{function}: the rows in {str(path)!r} cannot be read or written ({error}); give a new folder"
            ) from error

    @classmethod
    def _opened(cls, path: Path, header: Mapping[str, Any], tolerance: float, function: str) -> RowsFolder:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / HEADER).is_file():
            if others := sorted(each.name for each in path.iterdir() if each.name != f"{HEADER}.new"):
                raise InputError(
                    f"{function}: {str(path)!r} has other files ({', '.join(others[:4])}); give an empty or a new folder"
                )
            _replace(path / HEADER, header)
        there = json.loads((path / HEADER).read_text(encoding="utf-8"))
        if other := [name for name in {**there, **header} if there.get(name) != header.get(name)]:
            raise InputError(
                f"{function}: {str(path)!r} has the rows of another call: {', '.join(other)} differ; give a new folder"
            )
        return cls(path, tolerance)

    def check_numbers(self, values: Tensor, function: str) -> None:
        """Raises InputError where the model gives other numbers than those of the rows that are there."""
        if self._values is not None and not self._near(torch.tensor(self._values, dtype=torch.float64), values):
            self._refuse("the model gives other logits", function)
        self._values = values.double().tolist()

    def check_last(self, rows: Mapping[str, Tensor], function: str) -> None:
        """Raises InputError where the last complete row is another one today."""
        there = self.relevance()
        if there.keys() != rows.keys() or not all(
            self._near(there[name][self.done - 1][None], rows[name]) for name in rows
        ):
            self._refuse("its last row is another one with this model and these rules", function)

    def add(self, rows: Mapping[str, Tensor], total: int) -> None:
        """Writes the next rows, of `total` in all, and then that they are there."""
        if not self._names:
            self._names = list(rows)
            shapes = ((total, *part.shape[1:]) for part in rows.values())
            self._files = [
                _made(self.path / f"{at}.npy", shape, part)
                for at, (shape, part) in enumerate(zip(shapes, rows.values(), strict=True))
            ]
        stop = self.done + len(next(iter(rows.values())))
        for file, part in zip(self._files, rows.values(), strict=True):
            file[self.done : stop] = part.numpy()
            file.flush()
        self.done = stop
        progress = {"done": self.done, "inputs": self._names, "values": self._values}
        _replace(self.path / PROGRESS, progress)

    def relevance(self) -> dict[str, Tensor]:
        """The relevance of each input of the model, which lies in its file: what is changed in it stays in memory."""
        paths = (self.path / f"{at}.npy" for at in range(len(self._names)))
        return {
            name: torch.from_numpy(np.lib.format.open_memmap(path, mode="c"))
            for name, path in zip(self._names, paths, strict=True)
        }

    def _near(self, one: Tensor, other: Tensor) -> bool:
        """Whether two tensors are equal but for rounding: a backward of one number and one of several may add up in another
        order."""
        if one.shape != other.shape:
            return False
        wide = other.detach().cpu().double()
        return bool(((one.double() - wide).abs() <= self._tolerance * wide.abs().max()).all())

    def _refuse(self, why: str, function: str) -> None:
        raise InputError(f"{function}: {str(self.path)!r} has the rows of another call: {why}; give a new folder")


def _header(call: LeafCall, numbers: AnswerNumbers) -> dict[str, Any]:
    """What was asked of which model."""
    record = call.called.record
    answers: Sequence[Any] = [[list(each.ids), each.minus and list(each.minus)] for each in numbers.answers]
    return {
        "format": FORMAT, "model_class": record.model_class, "rules": record.table_name, "form": record.form,
        "weights": weights_hash(call.called), "inputs": _hash_of(call.named), "answers": answers,
    }  # fmt: skip


def _hash_of(inputs: Mapping[str, Any]) -> str:
    """A hash of the tensors of a call."""
    found = hashlib.sha256()
    for name, value in sorted(inputs.items()):
        if isinstance(value, Tensor):
            data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            found.update(f"{name} {list(value.shape)} {value.dtype} ".encode() + data)
    return found.hexdigest()[:16]


def _opened(path: Path) -> np.memmap[Any, Any]:
    return np.lib.format.open_memmap(path, mode="r+")


def _made(path: Path, shape: tuple[int, ...], part: Tensor) -> np.memmap[Any, Any]:
    return np.lib.format.open_memmap(path, mode="w+", dtype=part.numpy().dtype, shape=shape)


def _replace(path: Path, found: Mapping[str, Any]) -> None:
    with whole_file(path) as file:
        file.write(json.dumps(found).encode())
