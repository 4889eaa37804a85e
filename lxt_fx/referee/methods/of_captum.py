"""Methods of captum, by its own code, on the embeddings or the picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.referee.case import Case, Subject, seed_of
from lxt_fx.referee.contest import Explain, NotForThisError


@dataclass(frozen=True, slots=True)
class CaptumMethod:
    """A class of `captum.attr` that takes a function of the inputs, with the `options` of its `attribute`. With
    `zero_baseline` it gets a baseline of zeros in the shape of the leaf."""

    name: str
    of: str
    options: Mapping[str, Any] = field(default_factory=dict)
    zero_baseline: bool = False

    def prepare(self, subject: Subject) -> Explain:
        """Captum's own run. Raises NotForThisError where captum does not import."""
        try:
            import captum.attr
        except Exception as error:  # an installed library may fail to import in many ways
            raise NotForThisError(f"{self.name}: captum does not import ({error}); pip install 'lxt_fx[captum]'") from error
        kind = getattr(captum.attr, self.of)

        def explain(case: Case) -> Tensor:
            leaf = subject.leaf(case)
            options = dict(self.options) | ({"baselines": torch.zeros_like(leaf)} if self.zero_baseline else {})
            with gradients_on(), _random_from(case.key):
                method = kind(lambda given: subject.numbers(case, given))
                found: Tensor = method.attribute(leaf.clone().requires_grad_(True), **options)
            return found.detach()

        return explain


@contextmanager
def _random_from(key: str) -> Iterator[None]:
    """The random numbers of torch and of numpy, both of which captum draws from, start from the key inside the block; they
    go on afterwards as if nothing had been drawn."""
    import numpy as np

    state = np.random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(key))
            np.random.seed(seed_of(key) % 2**32)
            yield
    finally:
        np.random.set_state(state)
