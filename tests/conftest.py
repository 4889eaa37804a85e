"""Checks between the stages of transform are always on in tests; tiny models run fastest on one thread. What else is set
saves a fifth of the CPU time of all tests. And which tests one worker runs (`pytest -n 2 --dist loadgroup`)."""

import gc
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["LXT_FX_CHECK"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LXT_FX_CACHE"] = "off"  # so that captures are tested; `captures_in_files` is for tests of what comes after
# torch.export remembers what it found for an op of these shapes. That is worth it in deep models; one of two layers is
# captured a quarter faster without. test_shared_captures.py proves that the graphs are the same.
os.environ["TORCH_FAKE_TENSOR_DISPATCH_CACHE"] = "0"

import pytest
import torch

torch.set_num_threads(1)
# torch writes a trace of each export, with a stack for each symbol and guard and every graph as text, as soon as the logger
# of it has a handler; and pytest gives one to all loggers that do not propagate.
logging.getLogger("torch.__trace").propagate = True
gc.disable()  # until all tests are imported: hardly any of that is garbage


@pytest.fixture(scope="module", autouse=True)
def compiled_anew() -> None:
    """What the tests of another file compiled does not count for torch's limit of eight compilations of one function: all
    explained modules share `__call__`."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(scope="module")
def remembered_captures() -> Iterator[None]:
    """What a test of this module captured is not captured again for the same example (remembered_captures.py)."""
    import remembered_captures as captures

    with captures.remembered_captures():
        yield


@pytest.fixture(scope="module")
def captures_in_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A model that is equal to one that this run of pytest captured in a file with this fixture, in either worker, is read
    from the cache of files (a third of the time) and not exported again. What is read is the graph before any rule,
    compared with the model in forward and gradient; all that follows runs anew. Files about capture do without, and get
    nothing that was read for others."""
    from lxt_fx.compiler.kept_captures import forget_captures

    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LXT_FX_CACHE", str(place / "captures"))
        yield
    forget_captures()


def group_of(item: pytest.Item) -> str:
    """The group that shared_captures.py marks the test with; else its file."""
    mark = item.get_closest_marker("xdist_group")
    return item.path.stem if mark is None else str(mark.args[0])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one group stand one behind the other, so that what they share is made once and may be forgotten. A test
    with a set in its name is refused: each process writes one in another order, and workers then disagree."""
    for item in items:
        for name, value in getattr(getattr(item, "callspec", None), "params", {}).items():
            if isinstance(value, (set, frozenset)) and str(value) in item.nodeid:
                raise pytest.UsageError(f"{item.nodeid}: {name} is a set, which each process writes in another order")
    order: dict[str, int] = {}
    items.sort(key=lambda item: order.setdefault(group_of(item), len(order)))


@pytest.hookimpl(tryfirst=True)  # before the worker says that it is ready
def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported by now is not searched for garbage again, and the rest less often: a search took seconds, between
    tests of a tenth of one. A worker writes down the groups: pytest-xdist 3.8 puts them into the ids of tests, where pytest
    9.2 loses them."""
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
    gc.enable()
    worker = getattr(session.config, "workerinput", None)
    if worker is not None:
        own = groups_file(worker["testrunuid"]).with_suffix(f".{worker['workerid']}")
        own.write_text(json.dumps({item.nodeid: group_of(item) for item in session.items}))
        own.replace(groups_file(worker["testrunuid"]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """What is left when a group is done (what it shares with later ones) is not searched again either, nor by the tests
    that collect garbage themselves: behind a thousand tests each search took two seconds."""
    yield
    if nextitem is not None and group_of(item) != group_of(nextitem):
        gc.collect()
        gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives out whole groups, the largest first."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        groups: dict[str, str] = {}

        def _split_scope(self, nodeid: str) -> str:
            if not self.groups:
                file = groups_file(self.nodes[0].workerinput["testrunuid"])
                self.groups.update(json.loads(file.read_text()))
                file.unlink()
            return self.groups[nodeid]

    return ByGroup(config, log)


def groups_file(run: str) -> Path:
    """Where the group of each test stands, by its id, for one run."""
    return Path(tempfile.gettempdir()) / f"lxt_fx-groups-{run}.json"
