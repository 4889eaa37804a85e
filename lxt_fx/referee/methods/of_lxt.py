"""LXT's own code, in a process of its own: its patches reach every class of the process that makes them."""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.errors import LxtFxError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.torch_internals import pytree
from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.contest import Explain, NotForThisError
from lxt_fx.referee.cpu_seconds import worked_elsewhere


@dataclass(frozen=True, slots=True)
class LxtMethod:
    """AttnLRP by LXT (`lxt.efficient.monkey_patch`), where LXT is installed and has patches for the model's module."""

    name: str = "lxt_package"

    def prepare(self, subject: Subject) -> Explain:
        """Starts the process, which gets a copy of the model. The explained number is computed here, from the outputs that
        the process sends; it gets their gradients back.

        Raises NotForThisError where LXT does not import, or does not know the model.
        """
        worker = _Worker()
        worker.start(subject, self.name)

        def explain(case: Case) -> Tensor:
            leaf = subject.leaf(case)
            given = subject.called(case, leaf)
            output = worker.ask(("forward", given, subject.leaf_name(case)))
            with gradients_on():
                outputs = pytree.tree_map_only(Tensor, lambda t: t.requires_grad_(t.is_floating_point()), output)
                value = case.value(_Fields(outputs)).sum()
                used = {name: t for name, t in outputs.items() if t.requires_grad}
                found = torch.autograd.grad(value, list(used.values()), allow_unused=True)
            gradients = {name: g for name, g in zip(used, found, strict=True) if g is not None}
            gradient: Tensor = worker.ask(("backward", gradients))
            return leaf * gradient

        return explain


class _Fields:
    """The outputs of the model by name, as its own output has them."""

    def __init__(self, fields: dict[str, Tensor]) -> None:
        self.__dict__.update(fields)


@dataclass(slots=True)
class _Worker:
    """The process and the connection to it."""

    process: BaseProcess | None = None
    connection: Connection | None = None
    folder: tempfile.TemporaryDirectory[str] | None = field(default=None)

    def start(self, subject: Subject, name: str) -> None:
        """Starts the process; raises NotForThisError with what it says where it cannot."""
        self.folder = tempfile.TemporaryDirectory()
        file = Path(self.folder.name, "model.pt")
        torch.save(subject.model, file)
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, str(file), torch.get_num_threads()), daemon=True)
        self.process.start()
        theirs.close()
        atexit.register(self.stop)
        try:
            self.ask(("ready",))
        except LxtFxError as error:
            self.stop()
            raise NotForThisError(f"{name}: {error}") from error

    def ask(self, question: tuple[Any, ...]) -> Any:
        """What the process answers. Raises LxtFxError with what it raised, or where it died."""
        assert self.connection is not None
        try:
            self.connection.send(question)
            answered, answer, seconds = self.connection.recv()
        except (EOFError, OSError) as error:
            raise LxtFxError("the process that runs LXT ended") from error
        worked_elsewhere(seconds)
        if not answered:
            raise LxtFxError(answer)
        return answer

    def stop(self) -> None:
        """Ends the process and removes the copy of the model."""
        if self.process is not None and self.process.is_alive():
            self.process.terminate()
        if self.folder is not None:
            self.folder.cleanup()


def _serve(connection: Connection, file: str, threads: int) -> None:
    """In the process: patches, loads, answers questions until the other end closes."""
    torch.set_num_threads(threads)
    served: dict[str, Any] = {}
    while True:
        try:
            question, *arguments = connection.recv()
        except EOFError:
            return
        begun = time.process_time()
        try:
            answered, answer = True, _ANSWERS[question](served, file, *arguments)
        except Exception as error:  # whatever LXT, or the model under its patches, raises is told where it was asked
            answered, answer = False, f"{type(error).__name__}: {error}"
        connection.send((answered, answer, time.process_time() - begun))


def _ready(served: dict[str, Any], file: str) -> None:
    efficient = importlib.import_module("lxt.efficient")
    model = torch.load(file, weights_only=False)
    efficient.monkey_patch(sys.modules[type(model).__module__], verbose=False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    served["model"] = model.eval()


def _forward(served: dict[str, Any], file: str, given: dict[str, Any], leaf: str) -> dict[str, Tensor]:
    served["leaf"] = given[leaf].detach().clone().requires_grad_(True)
    output = served["model"](**given | {leaf: served["leaf"]})
    served["output"] = {name: value for name, value in output.items() if isinstance(value, Tensor)}
    return {name: value.detach() for name, value in served["output"].items()}


def _backward(served: dict[str, Any], file: str, gradients: dict[str, Tensor]) -> Tensor:
    outputs = [served["output"][name] for name in gradients]
    (found,) = torch.autograd.grad(outputs, [served["leaf"]], list(gradients.values()), allow_unused=True)
    return torch.zeros_like(served["leaf"]) if found is None else found


_ANSWERS: dict[str, Callable[..., Any]] = {"ready": _ready, "forward": _forward, "backward": _backward}
