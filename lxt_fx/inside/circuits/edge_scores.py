"""What is read of scores of a circuit to show them or to write them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lxt_fx.inside.circuits.facts import ScoresFacts


class EdgeScores(Protocol):
    """The values of `CircuitScores`, which says what they are."""

    @property
    def edges(self) -> Tensor:
        """[pairs, writers, readers]."""

    @property
    def nodes(self) -> Tensor:
        """[pairs, writers]."""

    @property
    def by_token(self) -> Tensor | None:
        """[pairs, tokens, tokens, writers, readers]."""

    @property
    def is_edge(self) -> Tensor:
        """[writers, readers]."""

    @property
    def writers(self) -> tuple[str, ...]:
        """Their names."""

    @property
    def readers(self) -> tuple[str, ...]:
        """Their names."""

    @property
    def feeds(self) -> tuple[tuple[str, str], ...]:
        """Reader and writer."""

    @property
    def facts(self) -> ScoresFacts:
        """What they were found on."""

    @property
    def said(self) -> str:
        """Rules and gradient."""
