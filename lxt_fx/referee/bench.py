"""`lxt_fx.bench`: methods of explanation, measured side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.base.progress import lasting
from lxt_fx.referee.contest import Method, Metric, Task
from lxt_fx.referee.declared import versions
from lxt_fx.referee.given_models import Models, subjects_of
from lxt_fx.referee.named import OwnFunction, Wanted, methods_of, metrics_of, tasks_of
from lxt_fx.referee.results import BenchResults
from lxt_fx.referee.results_file import ResultsFile
from lxt_fx.referee.runner import Contest, run

REFERENCE = "attnlrp"


@lasting
def bench(
    models: Models,
    *,
    methods: Wanted[Method | OwnFunction] = None,
    tasks: Wanted[Task] = None,
    metrics: Wanted[Metric] = None,
    cases: int = 50,
    seed: int = 0,
    data: Mapping[str, str | Path] | None = None,
    file: str | Path | None = None,
    reference: str | None = REFERENCE,
    progress: bool | None = None,
) -> BenchResults:
    """Measures methods of explanation side by side: each of the `methods` explains the same cases of the `tasks` for each
    of the `models`, and each of the `metrics` judges it.

    `models` are `{"SmolLM2": (model, tokenizer)}`: each a model, a model with its tokenizer or image processor, a folder or
    name that transformers loads, or a `lxt_fx.referee.case.Subject`. `methods`, `tasks` and `metrics` are names, or objects
    as `lxt_fx.referee.contest` describes them, one, a list, or a dict by the names that results call them; None means a
    few methods, and all tasks and metrics. A method may be a function `f(model, inputs, value)`: `inputs` are those of one
    example by name, whose leaf (`inputs_embeds` [1, tokens, hidden], or the picture) requires a gradient; `value` takes
    the model's output and gives the explained number [1]; it returns relevance of the shape of the leaf, or one number a
    unit. `data` has the paths of public data by the names of tasks. At most `cases` of each task are measured; the same
    `seed` gives the same ones.

    With `file`, each result is written there when it is known, and a run that was stopped goes on. Asked for more cases, or
    for further models, methods, tasks or metrics, it is extended, on the same cases. The other methods are compared with
    the `reference`, case by case; None compares nothing. The models are not changed, and no random state is.

    Raises UnknownNameError for an unknown name, InputError for what does not fit, for a model that is said to be another
    than in the file, and for a metric that is not finite, NonFiniteError for such relevance.
    What is not for a model (NotForThisError) is left out, and said.
    """
    if isinstance(cases, bool) or not isinstance(cases, int) or cases < 1:
        raise InputError(f"bench: cases must be a whole number of at least 1, got {cases!r}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"bench: seed must be a whole number, got {seed!r}")
    subjects = subjects_of(models)
    paths = {name: Path(given) for name, given in (data or {}).items()}
    contest = Contest(subjects, methods_of(methods), tasks_of(tasks, paths), metrics_of(metrics), cases, seed, paths)
    path = None if file is None else Path(file)
    with ResultsFile(path, {"seed": seed, "versions": versions()}) as written:
        every = {**written.contents.declared["method"], **contest.methods}
        if reference is not None and reference not in every:
            raise UnknownNameError(
                f"bench: the reference {reference!r} is none of the methods: {', '.join(every)}; name one of them, or give "
                "reference=None to compare nothing"
            )
        run(contest, written)
        return BenchResults(written.contents, reference)


def read_bench(path: str | Path, reference: str | None = REFERENCE) -> BenchResults:
    """The results that `lxt_fx.bench(file=...)` or `lxt-fx bench --out` wrote, also of a run that is not done; no model is
    needed. `reference` is the method that the others are compared with, None for none.

    Raises InputError for a file that is not there or is none of these, UnknownNameError where it has no such method.
    """
    return BenchResults.load(path, reference)
