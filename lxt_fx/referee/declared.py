"""What decides the numbers of a benchmark, as plain values: a file is continued only where they are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from lxt_fx.compiler.weights_hash import weights_hash
from lxt_fx.inside.corpus.fingerprint import class_hash, content_hash, processor_hash, table_hash
from lxt_fx.referee.case import Case, Subject
from lxt_fx.rule_table.table import RuleTable
from lxt_fx.rule_table.tables import TABLES
from lxt_fx.version import __version__

Declared = dict[str, Any]
"""A model, task, method or metric as JSON: its name, what it is, and its parameters."""

OURS = frozenset({"lxt_fx", "torch", "transformers", "typing", "abc"})
"""Packages whose code their versions stand for, and those of Python."""

UNSAID = frozenset({"transformers_version", "dtype", "torch_dtype", "architectures"})
"""Entries of a config that compute nothing, or that stand beside it."""


def versions() -> dict[str, str]:
    """The packages that decide the numbers."""
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__, "lxt_fx": __version__}


def of_subject(subject: Subject) -> Declared:
    """A model: its class, a hash of its weights, of its config and of its processor, where it runs and in what, and its
    unit."""
    first = next(subject.model.parameters(), None)
    to_dict = getattr(getattr(subject.model, "config", None), "to_dict", None)
    return {
        "name": subject.name,
        "class": type(subject.model).__name__,
        "weights": weights_hash(subject.model),
        "config": content_hash(_computed(to_dict())) if callable(to_dict) else "",
        "processor": "" if subject.processor is None else processor_hash(subject.processor, "bench"),
        "kind": subject.kind,
        "unit": subject.unit,
        "dtype": "" if first is None else str(first.dtype).removeprefix("torch."),
        "device": "cpu" if first is None else first.device.type,
        "constants": {name: _plain(value) for name, value in sorted(subject.constants.items())},
    }


def of_part(name: str, part: object) -> Declared:
    """A task, method or metric by its class and its parameters: the fields of a dataclass that compare, or the attributes
    of another object, but for those whose name begins with `_`. Of a file its name and a hash of what it holds, of a
    function a hash of its code, of a table (or the name of one, as `rules`) a hash of its rules. Of a class that is not of
    this package there is a hash of its own code too: the version of the package says nothing of that."""
    if is_dataclass(part) and not isinstance(part, type):
        own = [(one.name, getattr(part, one.name)) for one in fields(part) if one.compare]
    else:
        own = sorted(getattr(part, "__dict__", {}).items())
    given = {key: value for key, value in own if key != "name" and not key.startswith("_")}
    if isinstance(rules := given.get("rules"), str) and rules in TABLES:
        given["rules"] = TABLES[rules]
    parameters = {key: _plain(value) for key, value in given.items()}
    own_classes = [kind for kind in type(part).__mro__ if kind is not object and kind.__module__.split(".")[0] not in OURS]
    code = {"code": content_hash([class_hash(kind) for kind in own_classes])} if own_classes else {}
    return {"name": name, "class": type(part).__name__, "parameters": parameters, **code}


def of_task(name: str, task: object, data: Path | None) -> Declared:
    """A task, with the file or folder that it was made of."""
    own = of_part(name, task)
    return own if data is None else {**own, "data": {"name": data.name, "sha256": path_hash(data)}}


def of_metric(name: str, better: str, part: object) -> Declared:
    """A metric, with which way is better."""
    return {**of_part(name, part), "better": better}


def of_case(case: Case) -> str:
    """A hash of the input of a case and of what is explained."""
    return content_hash([dict(case.inputs), case.said, case.spared, case.gold])


def differences(known: Declared, now: Declared) -> list[str]:
    """In what two declarations of one name differ, in words."""
    found = []
    for key in dict.fromkeys((*known, *now)):
        was, given = known.get(key), now.get(key)
        if isinstance(was, dict) and isinstance(given, dict):
            found += [f"{key} {said}" for said in differences(was, given)]
        elif was != given:
            found.append(f"{key}: {_said(was)} in the file, {_said(given)} now")
    return found


def _computed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config that may change what a model computes."""
    return {
        name: _computed(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in UNSAID and not str(name).startswith("_")
    }


def _said(value: object) -> str:
    return "none" if value is None else str(value)


def _plain(value: object) -> Any:
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Path):
        return {"name": value.name, "sha256": path_hash(value)} if value.exists() else {"name": value.name}
    if isinstance(value, RuleTable):
        return {"table": value.name, "rules": table_hash(value)}
    if isinstance(value, (list, tuple)) and len(value) <= 20:
        return [_plain(one) for one in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value) and len(value) <= 20:
        return {key: _plain(one) for key, one in value.items()}
    if is_dataclass(value) or callable(value):
        return {"class": type(value).__name__, "content": content_hash(value)}
    return content_hash(value)


def path_hash(path: Path) -> str:
    """The SHA-256 of a file; of a folder that of the names and hashes of all its files."""
    if path.is_dir():
        inside = sorted(one for one in path.rglob("*") if one.is_file())
        lines = "".join(f"{path_hash(one)}  {one.relative_to(path).as_posix()}\n" for one in inside)
        return hashlib.sha256(lines.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
