"""Checks between the stages of transform are always on in tests; tiny models run fastest on one thread."""

import os

os.environ["LXT_FX_CHECK"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one group stand one behind the other and run on one worker, so that what they share is made once and may be
    forgotten. Groups are named in shared_captures.py; the tests of a file without one are a group."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        group = " ".join(sorted({mark.args[0] for mark in item.iter_markers("xdist_group")}))
        groups.setdefault(group, []).append(item)
    items[:] = [item for group in groups.values() for item in group]
