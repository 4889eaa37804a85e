"""What the layers of a model say at each position of a text, by a lens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lxt_fx.attribution.non_finite import is_finite
from lxt_fx.attribution.readable_tokens import readable_tokens
from lxt_fx.base.errors import InputError, NonFiniteError
from lxt_fx.base.frames import pandas_for
from lxt_fx.base.one_line import one_line
from lxt_fx.base.public_door import public
from lxt_fx.inside.lens.read_out import Top
from lxt_fx.tasks.own_text import OwnText
from lxt_fx.views.listed import Listed
from lxt_fx.views.view import safe

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import RenderableType

SHOWN = 6
"""How many positions a terminal shows: the last ones."""


@dataclass(frozen=True, eq=False, repr=False)
class LensReading(Listed):
    """The tokens that each place of the residual stream speaks for at each position of a text.

    `tokens` are those of the text, `places` name the residual stream from before the first layer to behind the last, where
    the model's own logits are. `predicted` [places][positions][k] are the tokens with the largest logits, `ids`, `logits`
    and `probability` [places, positions, k] their indices, logits, and shares of the softmax over the vocabulary. At
    position t they are about the token behind t. `table_name` is the rule table of the lens."""

    tokens: tuple[str, ...]
    places: tuple[str, ...]
    predicted: tuple[tuple[tuple[str, ...], ...], ...]
    ids: Tensor
    logits: Tensor
    probability: Tensor
    table_name: str

    def top(self, place: int | str, position: int = -1) -> tuple[str, ...]:
        """The tokens that a place (its name or its number) speaks for at a position, strongest first. Raises InputError for
        one that there is not."""
        at = self.places.index(place) if place in self.places else place
        if not isinstance(at, int) or not -len(self.places) <= at < len(self.places):
            first, last = self.places[0], self.places[-1]
            raise InputError(f"LensReading.top: there is no place {place!r}; they are {first} to {last}")
        if not -len(self.tokens) <= position < len(self.tokens):
            raise InputError(f"LensReading.top: there is no position {position}; the text has {len(self.tokens)} tokens")
        return self.predicted[at][position]

    def to_dataframe(self) -> DataFrame:
        """A pandas data frame with a line for each place, position and token: `place`, `layer`, `position`, `token` (of the
        text), `rank`, `predicted`, `id`, `logit`, `probability`. Raises InputError without pandas."""
        pandas = pandas_for()
        return pandas.DataFrame(self.to_lines())

    def to_lines(self) -> dict[str, list[object]]:
        """The columns of `to_dataframe`."""
        layers, positions, k = self.ids.shape
        at = torch.cartesian_prod(torch.arange(layers), torch.arange(positions), torch.arange(k)).reshape(-1, 3).T.tolist()
        return {
            "place": [self.places[layer] for layer in at[0]],
            "layer": at[0],
            "position": at[1],
            "token": [self.tokens[position] for position in at[1]],
            "rank": [rank + 1 for rank in at[2]],
            "predicted": [self.predicted[layer][position][rank] for layer, position, rank in zip(*at, strict=True)],
            "id": self.ids.flatten().tolist(),
            "logit": self.logits.flatten().tolist(),
            "probability": self.probability.flatten().tolist(),
        }

    def rows(self, positions: Sequence[int]) -> list[tuple[str, ...]]:
        """The first token of each place, from the last place down, at these positions: what views show."""
        return [
            (place, *(safe(line[position][0]) for position in positions))
            for place, line in reversed(list(zip(self.places, self.predicted, strict=True)))
        ]

    def to_html(self, path: str | Path) -> None:
        """Writes one self-contained page with all positions (`lxt_fx.explore`)."""
        public("explore")(self, path=path)

    def to_png(self, path: str | Path, *, width: float = 6.5) -> tuple[Path, ...]:
        """Writes a figure `width` inches wide: a line for each place, the last one first, a column for each position,
        shaded by the probability of the token. What does not fit 11 inches goes to further files, `name-2.png` and so on;
        the paths of all are returned. Raises InputError for a width too small."""
        from lxt_fx.inside.lens.lens_figure import Grid, draw_lens

        best = [[tokens[0] for tokens in line] for line in self.predicted]
        shares = self.probability[..., 0].tolist()
        return draw_lens(Grid(self.tokens, self.places, best, shares, self.table_name), path, width)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON: `tokens`, `places`, `rules`, and for each place, position and token `predicted`, `ids`,
        `logits` and `probability` [places][positions][k]."""
        return {
            "tokens": list(self.tokens), "places": list(self.places), "rules": self.table_name,
            "predicted": [[list(tokens) for tokens in line] for line in self.predicted], "ids": self.ids.tolist(),
            "logits": self.logits.tolist(), "probability": self.probability.tolist(),
        }  # fmt: skip

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        count = len(self.tokens)
        positions = range(max(0, count - SHOWN), count)
        table = Table("place")
        for at in positions:
            table.add_column(Text(safe(self.tokens[at])))
        for place, *cells in self.rows(positions):
            table.add_row(place, *map(Text, cells))
        parts: list[RenderableType] = [Text(f"the likeliest next token, rules {self.table_name}", style="bold"), table]
        if count > SHOWN:
            parts.append(Text(f"the last {SHOWN} of {count} positions; to_dataframe() and to_html(path) have all"))
        return Group(*parts)

    def __repr__(self) -> str:
        sizes = f"{len(self.places)} places x {len(self.tokens)} positions"
        return f"LensReading({sizes}, {one_line(''.join(self.tokens), 60)!r}, rules {one_line(self.table_name, 40)})"


def reading_of(text: OwnText, row: int, top: Sequence[Top], places: tuple[str, ...], table_name: str) -> LensReading:
    """The reading of one text of a batch. Raises NonFiniteError where its logits have no largest one or no softmax."""
    columns = list(text.columns)
    ids, logits, probability = (
        torch.stack([getattr(one, name)[row, columns] for one in top]) for name in ("ids", "logits", "probability")
    )
    for place, largest, share in zip(places, logits[..., 0], probability[..., 0], strict=True):
        if not is_finite([largest, share]):  # NaN counts as the largest
            raise NonFiniteError(
                f"Lens.read: the logits of {place} are not finite: what its matrix makes of the residual stream may be too "
                "large for the dtype of the model; try a wider one (model.float())"
            )
    tokenizer, own = text.text.tokenizer, text.text.id_list() if text.text.ids_known else []

    @cache
    def behind(position: int, token: int) -> str:
        """The token as it reads behind the text: decoded alone, some tokenizers drop its leading space."""
        return readable_tokens(tokenizer, [*own[position : position + 1], token])[-1]

    predicted = tuple(
        tuple(tuple(behind(at, token) for token in tokens) for at, tokens in enumerate(line)) for line in ids.tolist()
    )
    return LensReading(tuple(text.text.tokens), places, predicted, ids, logits, probability, table_name)
