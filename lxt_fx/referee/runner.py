"""Runs a contest: for each model and task one case after the other, and on each case all methods, judged by all metrics.

A run that is stopped therefore holds the same cases of every method. What a file has already is not computed again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.base.errors import InputError, LxtFxError
from lxt_fx.base.progress import stage, steps
from lxt_fx.base.torch_internals import pytree, version_of
from lxt_fx.compiler.weights_hash import weights_hash
from lxt_fx.faithfulness.batch_inputs import evaluating
from lxt_fx.faithfulness.removed_units import Unit
from lxt_fx.inside.corpus.fingerprint import content_hash
from lxt_fx.referee.answers import Answers
from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.contest import Explain, Judged, Method, Metric, NotForThisError, Task
from lxt_fx.referee.cpu_seconds import cpu_seconds
from lxt_fx.referee.declared import of_case, of_metric, of_part, of_subject, of_task
from lxt_fx.referee.results_file import LeftOut, Line, ResultsFile

SAME = 1e-3
"""By how much, of its size, an explained number may change by the `constants` of a subject."""

ULPS = 8
"""By how many of its last digits a number may be rounded otherwise, of the size of the model's largest output."""

KEPT = 4
"""For how many models a method stays ready, that of the contest among them."""

NO_CASE = "the model can be asked none of its cases"


@dataclass(frozen=True, slots=True, eq=False)
class Contest:
    """What is measured: models, methods, tasks and metrics by name, at most so many cases of each task, and the paths of
    public data by task."""

    subjects: Sequence[Subject]
    methods: Mapping[str, Method]
    tasks: Mapping[str, Task]
    metrics: Mapping[str, Metric]
    cases: int
    seed: int
    data: Mapping[str, Path] = field(default_factory=dict)


def run(contest: Contest, file: ResultsFile) -> None:
    """Runs what the file does not hold yet.

    Raises InputError where a name of the file means something else now, and where a task gives other cases than before.
    """
    for subject in contest.subjects:
        file.declare("model", of_subject(subject))
    for name, task in contest.tasks.items():
        file.declare("task", of_task(name, task, contest.data.get(name)))
    for name, method in contest.methods.items():
        file.declare("method", of_part(name, method))
    for name, metric in contest.metrics.items():
        file.declare("metric", of_metric(name, metric.better, metric))
    for subject in steps("models", contest.subjects, len(contest.subjects)):
        one = _OneModel(contest, subject, file)
        for name, task in contest.tasks.items():
            one.run(name, task)


class _OneModel:
    """The part of a contest that one model has."""

    def __init__(self, contest: Contest, subject: Subject, file: ResultsFile) -> None:
        self.contest, self.subject, self.file = contest, subject, file
        self.weights = file.contents.declared["model"][subject.name]["weights"]
        self.left_out: set[str] = set()
        self.checked: set[tuple[str, str]] = set()
        self.versions: tuple[int, ...] = ()
        self.ready: dict[tuple[str, nn.Module, Unit], Explain] = {}

    def run(self, name: str, task: Task) -> None:
        """All cases of a task."""
        subject, contest = self.subject, self.contest
        try:
            with stage(f"{name}: making the cases"):
                cases = list(task.cases(subject, contest.cases, contest.seed))[: contest.cases]
            if not cases:
                raise NotForThisError(NO_CASE)
            known = self._known(name, cases)
            for place, case in enumerate(steps(f"{subject.name}, {name}: cases", cases, len(cases))):
                if missing := self._missing(known, case):
                    self._case(name, task, place, case, missing)
        except NotForThisError as error:
            self.file.leave_out(LeftOut(subject.name, str(error), task=name))

    def _known(self, task: str, cases: Sequence[Case]) -> dict[tuple[str, str], set[str]]:
        """The metrics that are known, by case and method; a method that refused a case has all."""
        found: dict[tuple[str, str], set[str]] = {}
        hashes = [(case.key, of_case(case), case.group) for case in cases]
        keys = [key for key, *_ in hashes]
        if len(set(keys)) < len(keys):
            raise InputError(f"bench: two cases of {task} have the key {max(keys, key=keys.count)!r}; keys must differ")
        for line in self.file.contents.lines:
            if (line.model, line.task) != (self.subject.name, task):
                continue
            if line.place < len(hashes) and hashes[line.place] != (line.case, line.content, line.group):
                raise InputError(
                    f"bench: case {line.place} of {task} for {line.model} is {hashes[line.place][0]!r} now, and another "
                    f"one ({line.case!r}), or one of another group, in {self.file.path}; a task gives the same cases for "
                    "the same seed, however many are asked for. Give another file"
                )
            every = set(self.contest.metrics) if line.refused else {*line.values, *line.skipped}
            found.setdefault((line.case, line.method), set()).update(every)
        return found

    def _missing(self, known: Mapping[tuple[str, str], set[str]], case: Case) -> dict[str, list[str]]:
        """By method the metrics that are to be measured on this case."""
        found = {}
        for method in self.contest.methods:
            if method in self.left_out:
                continue
            metrics = [name for name in self.contest.metrics if name not in known.get((case.key, method), ())]
            if metrics and self._is_ready(method):
                found[method] = metrics
        return found

    def _is_ready(self, method: str) -> bool:
        try:
            self._prepared(method, self.subject)
        except NotForThisError as error:
            self.left_out.add(method)
            self.file.leave_out(LeftOut(self.subject.name, str(error), method=method))
            return False
        return True

    def _prepared(self, method: str, subject: Subject) -> Explain:
        """The method, ready for the model, or for one of the last few models that a sanity check asks about."""
        key = (method, subject.model, subject.unit)
        if key not in self.ready:
            if len(self.ready) >= KEPT * len(self.contest.methods):
                oldest = next(one for one in self.ready if one[1] is not self.subject.model)
                del self.ready[oldest]
            named = _named(f"{method} on {subject.name}")
            with stage(f"{method}: preparing"), named, _gradients(self.contest.seed, subject):
                self.ready[key] = self.contest.methods[method].prepare(subject)
        return self.ready[key]

    def _case(self, task: str, made_by: Task, place: int, case: Case, missing: Mapping[str, Sequence[str]]) -> None:
        blank = Line(self.subject.name, task, place, case.key, of_case(case), "", group=case.group)
        try:
            self._check_constants(case)
            answers = Answers(self.subject, case, made_by.replacements(self.subject, case, self.contest.seed))
        except NotForThisError as error:  # of this case alone: the task goes on, and says what is missing
            for method in missing:
                self.file.add(replace(blank, method=method, refused=str(error)))
            return
        for method, metrics in missing.items():
            with stage(method), _named(f"{method} on case {case.key} of {task} ({self.subject.name})"):
                try:
                    relevance, seconds = self._explained(method, case, self.subject)
                except NotForThisError as error:
                    found = replace(blank, method=method, refused=str(error))
                else:
                    values, skipped = self._judged(method, metrics, case, relevance, answers)
                    found = replace(blank, method=method, values=values, skipped=skipped, seconds=seconds)
                self._check_weights(task, method)
            self.file.add(found)

    def _explained(self, method: str, case: Case, subject: Subject) -> tuple[Tensor, float]:
        """The relevance by unit, and the CPU seconds that it took."""
        explain = self._prepared(method, subject)
        with _gradients(self._seed(case), subject):
            begun = cpu_seconds()
            relevance = explain(case)
            seconds = cpu_seconds() - begun
        return subject.by_unit(case, relevance), round(seconds, 6)

    def _judged(
        self, method: str, metrics: Sequence[str], case: Case, relevance: Tensor, answers: Answers
    ) -> tuple[dict[str, float], dict[str, str]]:
        values, skipped = {}, {}
        judged = Judged(
            self.subject, case, relevance, answers, lambda other: self._explained(method, case, other)[0]
        )
        for name in metrics:
            try:
                with stage(name), _named(name), _gradients(self._seed(case), self.subject):
                    values[name] = float(self.contest.metrics[name].of(judged))
            except NotForThisError as error:
                skipped[name] = str(error)
        return values, skipped

    def _seed(self, case: Case) -> int:
        return int(content_hash([self.contest.seed, case.key])[:15], 16)

    def _check_constants(self, case: Case) -> None:
        """Raises InputError where the constants of the subject change the explained number, by more than rounding does: of
        large logits a small difference is explained."""
        if not self.subject.constants:
            return
        leaf, sizes = self.subject.leaf(case), [0.0]

        def value(output: Any) -> Tensor:
            found = [each for each in pytree.tree_leaves(output) if isinstance(each, Tensor) and each.is_floating_point()]
            sizes.extend(float(each.abs().max()) for each in found if each.numel())
            return case.value(output)

        with evaluating(self.subject.model):
            watched = replace(case, value=value)
            short, whole = (float(self.subject.numbers(watched, leaf, saving=saving)) for saving in (True, False))
        rounding = ULPS * torch.finfo(leaf.dtype).eps * max(sizes)
        if not abs(short - whole) <= max(SAME * max(abs(short), abs(whole), 1e-6), rounding):
            raise InputError(
                f"bench: {self.subject.name} answers {short:g} to case {case.key} with {dict(self.subject.constants)}, and "
                f"{whole:g} without; leave these constants out of the Subject"
            )

    def _check_weights(self, task: str, method: str) -> None:
        """Raises LxtFxError where the weights of the model are others, behind the first case of a method and wherever
        something was written into them: what follows would be measured on another model."""
        tensors = itertools.chain(self.subject.model.parameters(), self.subject.model.buffers())
        versions = tuple(version_of(each) for each in tensors if not each.is_inference())
        if (task, method) in self.checked and versions == self.versions:
            return
        self.checked.add((task, method))
        self.versions = versions
        if weights_hash(self.subject.model) != self.weights:
            raise LxtFxError(
                "the weights of the model are others than before: the method or a metric changed them. The results that "
                "were written are right; load the model anew and leave it out"
            )


@contextmanager
def _gradients(seed: int, subject: Subject) -> Iterator[None]:
    """Gradients, but none of parameters, evaluation mode and random numbers of this seed inside the block; all as it was
    behind it."""
    model = subject.model
    training = [module for module in model.modules() if module.training]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        _set(training, parameters, False)
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=sorted(map(str, devices))):
            torch.default_generator.manual_seed(seed)
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield
    finally:
        _set(training, parameters, True)


def _set(training: Sequence[nn.Module], parameters: Sequence[nn.Parameter], value: bool) -> None:
    for module in training:
        module.training = value
    for parameter in parameters:
        parameter.requires_grad_(value)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Errors inside the block say what they are about."""
    try:
        yield
    except NotForThisError:
        raise
    except LxtFxError as error:
        error.args = (f"bench: {what}: {str(error).removeprefix('bench: ')}",)
        raise
