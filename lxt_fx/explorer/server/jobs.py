"""Jobs in a queue, one worker thread that runs them in order, and their end: done, failed, cancelled.

The worker is the only thread that touches the model. A job is cancelled before it runs, or at its next sign of life: a step
that lxt_fx.base.progress tells (a capture that has begun goes on to its end).
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field

from lxt_fx.base.errors import InputError, LxtFxError
from lxt_fx.base.progress import told
from lxt_fx.base.progress_line import Step
from lxt_fx.explorer.plain import Payload
from lxt_fx.explorer.server.served_model import Answered

LOG = logging.getLogger("lxt_fx.explorer")

PATIENCE, REMEMBERED = 90.0, 600.0
"""Seconds after which a job that nobody asks for is dropped, and a finished one is forgotten. A browser lets
the page of a hidden tab ask once a minute only."""

MOST_WAITING, MOST_FINISHED = 32, 32

OVER = ("done", "failed", "cancelled")


class TooManyJobs(InputError):
    """As many jobs wait as may."""


class Cancelled(BaseException):
    """Ends a job at its next step. No `Exception`, so that nothing on the way takes it for a failure of the model."""


@dataclass(slots=True, eq=False)
class Job:
    """One question. `state` is waiting, running, done, failed or cancelled."""

    id: str
    work: Callable[[], Answered]
    asked_at: float
    state: str = "waiting"
    stage: str = ""
    share: float | None = None
    answered: Answered | None = None
    error: Payload | None = None
    unwanted: threading.Event = field(default_factory=threading.Event)


class Jobs:
    """The queue. `clock` gives seconds. Jobs run in the context in which it was made: a module that is steered there is
    steered in them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._jobs: OrderedDict[str, Job] = OrderedDict()  # in the order in which they came
        self._change = threading.Condition()
        self._ended = False
        self._worker = threading.Thread(target=copy_context().run, args=(self._run,), name="lxt_fx explorer", daemon=True)
        self._worker.start()

    def add(self, work: Callable[[], Answered]) -> tuple[str, int]:
        """Queues a job: its id, and how many are before it. Raises TooManyJobs."""
        with self._change:
            self._forget()
            waiting = sum(job.state == "waiting" for job in self._jobs.values())
            if waiting >= MOST_WAITING:
                raise TooManyJobs(f"{waiting} questions wait already; wait for them or cancel some")
            job = Job(secrets.token_urlsafe(12), work, self.clock())
            self._jobs[job.id] = job
            self._change.notify_all()
            return job.id, self._ahead(job)

    def look(self, job_id: str) -> Payload | None:
        """What is known of a job now; None if there is none of this id."""
        with self._change:
            self._forget()
            job = self._jobs.get(job_id)
            if job is None:
                return None
            job.asked_at = self.clock()
            answered = job.answered
            return {
                "state": job.state,
                "ahead": self._ahead(job),
                "stage": job.stage,
                "share": job.share,
                "result": None if answered is None else {**answered.result, "id": job.id},
                "error": job.error,
                "candidates": [] if answered is None else answered.candidates,
                "before": None if answered is None else answered.before,
                "positions": None if answered is None else answered.positions,
                "predicts_next": None if answered is None else answered.predicts_next,
            }

    def cancel(self, job_id: str) -> bool:
        """Whether there is such a job. One that runs is cancelled at its next step; one that is over stays as it is."""
        with self._change:
            job = self._jobs.get(job_id)
            if job is not None:
                self._drop(job)
            return job is not None

    def end(self, seconds: float) -> None:
        """Cancels all jobs and waits so long for the worker to end."""
        with self._change:
            self._ended = True
            for job in self._jobs.values():
                self._drop(job)
            self._change.notify_all()
        self._worker.join(seconds)

    def _drop(self, job: Job) -> None:
        job.unwanted.set()
        if job.state == "waiting":
            job.state = "cancelled"

    def _ahead(self, job: Job) -> int:
        """How many jobs are before one that waits."""
        if job.state != "waiting":
            return 0
        before = 0
        for other in self._jobs.values():
            if other is job:
                break
            before += other.state not in OVER
        return before

    def _forget(self) -> None:
        """Drops jobs that nobody asked for, and forgets old results."""
        now = self.clock()
        for job in self._jobs.values():
            if job.state not in OVER and now - job.asked_at > PATIENCE:
                self._drop(job)
        over = [job for job in self._jobs.values() if job.state in OVER]
        old = [job for at, job in enumerate(reversed(over)) if at >= MOST_FINISHED or now - job.asked_at > REMEMBERED]
        for job in old:
            del self._jobs[job.id]

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                with told(lambda steps, job=job: self._told(job, steps)):  # type: ignore[misc]
                    answered = job.work()
            except Cancelled:
                self._finish(job, "cancelled")
            except LxtFxError as error:
                self._finish(job, "failed", error={"kind": type(error).__name__, "message": str(error)})
            except BaseException as error:  # a panic of the tokenizers library is no Exception
                LOG.exception("a question failed")
                why = f"{type(error).__name__} while the model was explained; the terminal of the server says more"
                self._finish(job, "failed", error={"kind": "Unexpected", "message": why})
            else:
                self._finish(job, "done", answered)

    def _next(self) -> Job | None:
        """The next job, now running; None when all has ended."""
        with self._change:
            while not self._ended:
                self._forget()
                job = next((job for job in self._jobs.values() if job.state == "waiting"), None)
                if job is not None:
                    job.state = "running"
                    return job
                self._change.wait()
            return None

    def _finish(self, job: Job, state: str, answered: Answered | None = None, error: Payload | None = None) -> None:
        with self._change:
            if job.unwanted.is_set():
                state, answered, error = "cancelled", None, None
            job.state, job.answered, job.error, job.stage, job.share = state, answered, error, "", None
            job.work = _nothing  # which lets go of what it holds

    def _told(self, job: Job, steps: tuple[Step, ...]) -> None:
        """A sign of life of the job. Ends it if it is not wanted any more."""
        counted = next((step for step in steps if step.total is not None and step.total > 1), None)
        with self._change:
            job.stage = steps[-1].words if steps else ""
            job.share = None if counted is None or not counted.total else counted.done / counted.total
            unwanted = job.unwanted.is_set() or self.clock() - job.asked_at > PATIENCE
        if unwanted:
            raise Cancelled


def _nothing() -> Answered:
    raise AssertionError("this job is over")
