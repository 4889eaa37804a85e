"""Checks between the stages of transform are always on in tests; tiny models run fastest on one thread."""

import os

os.environ["LXT_FX_CHECK"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker runs a file, so that what its tests keep is made once, but for tests that name a group themselves."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
