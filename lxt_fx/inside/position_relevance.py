"""The relevance of positions in models that rotate queries and keys by them (RoPE), by layer, head and position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from lxt_fx.attribution.places import places
from lxt_fx.attribution.target import TargetsLike
from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import arguments, dtype, module_path, written_shape
from lxt_fx.base.progress import lasting
from lxt_fx.compiler.explained import Explained, check_explained
from lxt_fx.compiler.record import Stage
from lxt_fx.inside.latent import latent
from lxt_fx.inside.latent_value import LatentValue
from lxt_fx.ledger.taps import attention_parts
from lxt_fx.results.explanation import Explanation
from lxt_fx.rule_table.rule import Conserves
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from rich.console import RenderableType

FUNCTION = "position_relevance"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PositionRelevance(Listed):
    """What the positions of queries and of keys received, at least float32 on the CPU.

    `queries` is [batch, layers, heads, positions] and `keys` [batch, layers, key heads, positions]: fewer where several
    heads of queries share one of keys. `layers` are the modules of the attentions, from the input on. A layer with fewer
    heads or positions than others has NaN behind them. `explanations` has, for each example, the relevance of its tokens
    from the same backward.
    """

    queries: Tensor
    keys: Tensor
    layers: tuple[str, ...]
    explanations: tuple[Explanation, ...]

    def by_head(self) -> Tensor:
        """R_pos [batch, layers, key heads, positions]: a head of keys with the heads of queries that read it.

        Raises InputError where the numbers of queries and keys, or of their heads, do not fit.
        """
        heads, groups = self.queries.shape[2], self.keys.shape[2]
        if heads % groups or self.queries.shape[-1] != self.keys.shape[-1]:
            raise InputError(
                f"{FUNCTION}: queries {list(self.queries.shape)} and keys {list(self.keys.shape)} (batch, layers, heads, "
                "positions) do not fit, so they do not add up by head; read them one by one"
            )
        return torch.unflatten(self.queries, 2, (groups, heads // groups)).sum(3) + self.keys

    def by_position(self) -> Tensor:
        """R_pos [batch, positions], summed over layers and heads. Raises InputError as `by_head` does."""
        return self.by_head().nansum((1, 2))

    def __repr__(self) -> str:
        sizes = ", ".join(map(str, self.queries.shape))
        return f"PositionRelevance([{sizes}] of queries, {self.keys.shape[2]} heads of keys)"

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("layer", "queries", "keys", title="relevance of positions", title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for index, layer in enumerate(self.layers):
            sums = (float(x[:, index].double().nansum()) for x in (self.queries, self.keys))
            table.add_row(Text(layer), *(f"{amount:+.3g}" for amount in sums))
        said = [f"{number.said}: {number.value:.4g}" for number in self.explanations[0].numbers]
        return Group(Text("; ".join(said), style="bold"), table)


@lasting
def position_relevance(
    explained: Explained,
    inputs: Any,
    target: TargetsLike = None,
    *,
    processor: Any = None,
    answer: Any = None,
    labels: Sequence[str] | None = None,
    progress: bool | None = None,
) -> PositionRelevance:
    """The relevance of positions, beside that of tokens, under a table that gives them a share (`pa_lrp`).

        explained = lxt_fx.transform(model, rules="pa_lrp")
        found = lxt_fx.position_relevance(explained, "The capital of France is", " Paris", processor=tokenizer)
        found.by_head()        # [batch, layers, key heads, positions]
        found.by_position()    # [batch, positions]

    A rotated query is q cos + rot(q) sin. The uniform rule (AttnLRP prop. 3.2) halves the relevance of both products
    between q and the table of its position, so R_pos = (q . g_q + k . g_k) / 2 at the rotated q and k, and the other half
    goes on to the tokens (Bakish et al. 2025, "Revisiting LRP: Positional Attribution as the Missing Ingredient for
    Transformer Explainability"). It is signed; their code adds up absolute values of layers. The ledger has the sum of it
    as `positions`. Rotations are found by the structure of the graph.

    `explained` is what `transform` made; the other arguments are those of `latent`, with one target.

    Raises InputError where no product of the module gives positions a share (another table, or no rotation: embeddings
    of positions are in the ledger under every table), and where heads and tokens cannot be told apart by their sizes.
    """
    module = check_explained(explained, FUNCTION)
    stage = module.record.stages["rules"]
    products = _products(stage)
    if not products:
        raise InputError(
            f"{FUNCTION}: no product of {module.record.model_class} under table {module.record.table_name!r} gives "
            "positions a share: transform with rules='pa_lrp'; a model that adds embeddings of positions has their "
            "relevance in lxt_fx.audit(...).constants()"
        )
    read = {product: f"%{_as_real(product).name}" for product in products}
    found = latent(module, inputs, target, list(read.values()), processor=processor, answer=answer, labels=labels)
    if found.several:
        raise InputError(f"{FUNCTION}: one target at a time; got a list")
    sizes = _sizes_of_tokens(module)
    parts: dict[str, dict[str, Tensor]] = {}
    for product, (attention, part) in products.items():
        relevance = _by_head(found[read[product]], product, sizes) / 2
        of_layer = parts.setdefault(module_path(attention) or attention.name, {})
        of_layer[part] = of_layer[part] + relevance if part in of_layer else relevance
    queries, keys = ([each.get(part, _NONE) for each in parts.values()] for part in ("query", "key"))
    return PositionRelevance(_stacked(queries), _stacked(keys), tuple(parts), found.explanations)


def _products(stage: Stage) -> Mapping[Node, tuple[Node, str]]:
    """The products that share with a position, each with its attention and with what it rotates, in the order of the
    graph."""
    parts = attention_parts(stage.graph)
    found: dict[Node, tuple[Node, str]] = {}
    for node in stage.graph.nodes:
        rule = stage.rules.get(node.name)
        if rule is not None and rule.conserves is Conserves.ALL_BUT_POSITIONS:
            attention = next(_attentions(node, parts), None)
            if attention is not None:
                found[node] = attention
    return found


def _attentions(product: Node, parts: Mapping[Node, Mapping[str, tuple[str, int]]]) -> Iterator[tuple[Node, str]]:
    """The attentions behind the product, the nearest first, with the part that they read it as."""
    seen, todo = {product}, [product]
    while todo:
        node = todo.pop(0)
        for user in node.users:
            read = parts.get(user, {})
            names = [name for name, value in arguments(user).items() if value is node and name in read]
            yield from ((user, read[name][0]) for name in names if read[name][0] != "value")
            if user not in seen and user not in parts:
                seen.add(user)
                todo.append(user)


def _as_real(product: Node) -> Node:
    """The product, or as pairs of numbers if it is complex."""
    known = dtype(product)
    if known is None or not known.is_complex:
        return product
    return next(user for user in product.users if not (dtype(user) or known).is_complex)


def _sizes_of_tokens(explained: Explained) -> set[str]:
    """The sizes of the axes of tokens, as text: of queries and keys, and of inputs [batch, tokens, hidden]."""
    of_places = {
        place.shape[place.axes.index("tokens")]
        for name, place in places(explained).items()
        if name.rpartition(".")[2] in ("queries", "keys") and "tokens" in place.axes
    }
    inputs = explained.graph.find_nodes(op="placeholder")
    leaves = [written_shape(node) or () for node in inputs if node.target in explained.record.leaves]
    return of_places | {sizes[1] for sizes in leaves if len(sizes) == 3}


def _by_head(value: LatentValue, product: Node, tokens: set[str]) -> Tensor:
    """Relevance [batch, heads, positions] of a product [batch, heads, tokens, size], in either order of the middle two."""
    sizes = value.place.shape
    at = [axis for axis in (1, 2) if len(sizes) > 3 and sizes[axis] in tokens]
    if len(at) != 1:
        raise InputError(
            f"{FUNCTION}: of %{product.name} [{', '.join(sizes)}] it is not known which axis holds "
            "heads and which positions; transform the model with a free length (dynamic=True), on an input whose number of "
            "tokens is not its number of heads"
        )
    relevance = value.relevance[0].flatten(3).sum(3)
    return relevance if at == [2] else relevance.transpose(1, 2)


_NONE = torch.zeros(1, 0, 0)
"""Of a layer that rotates its queries only, or its keys."""


def _stacked(found: list[Tensor]) -> Tensor:
    """[batch, layers, heads, positions] of one [batch, heads, positions] for each layer, NaN where a layer has fewer."""
    sizes = [max(each.shape[axis] for each in found) for axis in range(3)]
    stacked = found[0].new_full((sizes[0], len(found), *sizes[1:]), torch.nan)
    for layer, each in enumerate(found):
        stacked[: len(each), layer, : each.shape[1], : each.shape[2]] = each
    return stacked
