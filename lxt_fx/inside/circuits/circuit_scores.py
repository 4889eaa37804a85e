"""Scores of edges from pairs of inputs: edge attribution patching under any rule table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lxt_fx.attribution.places import InsidePlace, places
from lxt_fx.attribution.standard_places import kind_of
from lxt_fx.attribution.target import TargetLike
from lxt_fx.base.autocast import autocast_off
from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.progress import lasting, stage, steps
from lxt_fx.base.wide import at_least_float32
from lxt_fx.compiler.options import Rules
from lxt_fx.inside.circuits.branch_gradients import BranchGradients, branch_gradients
from lxt_fx.inside.circuits.contributions import Contributions, Differences, differences
from lxt_fx.inside.circuits.facts import facts_of
from lxt_fx.inside.circuits.graph_run import GraphRun
from lxt_fx.inside.circuits.network import Network
from lxt_fx.inside.circuits.pair_batches import pair_batches
from lxt_fx.inside.circuits.pairs import CLEAN, CORRUPTED, Pairs, check_finite, pairs_of
from lxt_fx.inside.circuits.scores_result import CircuitScores, joined
from lxt_fx.inside.circuits.token_scores import TokenScores

FUNCTION = "circuit_scores"

At = Literal["clean", "corrupted"] | int


@lasting
def circuit_scores(
    explained: nn.Module | Any,
    clean: Any,
    corrupted: Any,
    target: TargetLike | Sequence[TargetLike],
    *,
    processor: Any = None,
    at: At = "clean",
    rules: Rules | None = None,
    per_head: bool = False,
    by_token: bool = False,
    batch: int | None = None,
    progress: bool | None = None,
) -> CircuitScores:
    """How much each edge of a decoder hands on of what a clean input has and a corrupted one has not.

    Writers to the residual stream are the embedding, each head (through its part of the output projection), each MLP, and
    each feature and the error of a dictionary that `splice` put into the stream or at what a part adds to it. Readers are
    the queries, keys and values of each head, the input of each MLP and of each dictionary, and the logits. Each writer and
    each reader after it are an edge, with the score

        s(u -> v) = sum over tokens and hidden of (a_u clean - a_u corrupted) . g_v

    where a_u is what u adds to the stream, and g_v what flows back to the branch of the stream that v reads, before its
    norm and through it (edge attribution patching, Syed et al. 2023). g is what the table of the module makes of the
    gradient: under `gradient` that of EAP, under `relp`, `attnlrp`, `cp_lrp` or `gim` theirs (RelP, 2025). It is that of
    the run `at`: "clean", "corrupted", or the mean over a number of steps k = 1 to m, at embeddings corrupted + k / m
    (clean - corrupted): with `gradient` EAP-IG (inputs) of Hanna et al. 2024.

        found = lxt_fx.circuit_scores(model, "When Mary and John ...", "When Mary and Bob ...", (" Mary", " John"),
                                      processor=tokenizer, rules="relp")
        found.top(20)                     # the edges with the largest scores
        graph = found.circuit(0.01)       # networkx, the largest 1 % of the edges that lie on a path

    A node has s(u) = (a_u clean - a_u corrupted) . g at what u adds; the edges from u add up to it under every rule by
    which sums hand the gradient on. A neuron has s = sum over tokens of (a clean - a corrupted) g at the down projection's
    input. Keys and values that several heads share are one reader, or with `per_head` one for each of these heads. Biases
    belong to no head.

    With `by_token` (and `per_head`, which it has) the scores are kept by token too: s(u at s -> v, to p), where u writes
    and v reads at s, and what is made of v is written at p. It is what flows back to v at s from p alone, so keys and
    values are followed through the attention: one backward more for each attention and token.

    `clean` and `corrupted` are inputs as `latent` takes them, one each or a batch of pairs; those of a pair have the same
    number of tokens. `target` is one number of the output, mostly a contrast, for all pairs or a list with one for each.
    All scores come from one forward of each run, and one forward and backward for each step. Memory is that of all values
    of both runs, and of (writers + readers) x pairs x tokens x hidden; `batch` pairs run at once (None: all). With
    `by_token` it is also pairs x tokens x tokens x writers x readers.

    Raises InputError for pairs that do not fit, for a module in explicit form, and for a network whose stream is no plain
    sum of its writers; NonFiniteError for scores that are NaN or infinite; ForwardMismatchError where heads or features do
    not add up to what the stream has of them.
    """
    with gradients_on(), autocast_off():
        share, found = _steps(at), list[CircuitScores]()
        for some in pair_batches(clean, corrupted, target, batch, FUNCTION):
            pairs = pairs_of(explained, processor, *some, FUNCTION, rules=rules, per_head=per_head or by_token)
            found.append(_scored(pairs, share, _said(at), per_head or by_token, by_token))
        return joined(found)


def _scored(pairs: Pairs, share: Sequence[float], said: str, per_head: bool, by_token: bool) -> CircuitScores:
    network, names = pairs.network, _neurons(pairs)
    with stage("running the pairs"):
        runs = {side: pairs.run(side) for side in (CLEAN, CORRUPTED)}
        found = differences(*(Contributions(run, network, FUNCTION) for run in runs.values()))
        numbers = {side: pairs.numbers(side, run.output()) for side, run in runs.items()}
        neurons = {place.name: _difference(runs, node) for place, node in names}
    tokens = TokenScores(network, found, 1 / len(share), FUNCTION) if by_token else None
    gradients = _mean(_gradients(pairs, share, list(neurons), tokens))
    scores = CircuitScores(
        _edges(network, found, gradients.readers),
        _nodes(network, found, gradients.writes),
        {name: _by_unit(each, gradients.inside[name]) for name, each in neurons.items()},
        network.writer_names,
        network.reader_names,
        network.edges,
        network.feeds,
        numbers[CLEAN],
        numbers[CORRUPTED],
        f"table {pairs.module.record.table_name}, {said}",
        facts_of(pairs, per_head),
        None if tokens is None else tokens.scores,
    )
    found_by = [scores.edges, scores.nodes, *scores.neurons.values(), *([] if tokens is None else [tokens.scores])]
    check_finite(pairs, numbers, found_by, FUNCTION, CLEAN if share == (1.0,) else CORRUPTED)
    return scores


def _steps(at: At) -> tuple[float, ...]:
    """Where between corrupted (0) and clean (1) the gradients are taken. Raises InputError for what is no place."""
    if isinstance(at, int) and not isinstance(at, bool) and at > 0:
        return tuple(step / at for step in range(1, at + 1))
    if at == CORRUPTED:
        return (0.0,)
    if at == CLEAN:
        return (1.0,)
    raise InputError(
        f'{FUNCTION}: at must be "clean", "corrupted" or a number of steps between them, at least 1, got {at!r}'
    )


def _said(at: At) -> str:
    return f"gradient of the {at} run" if isinstance(at, str) else f"mean gradient of {at} steps"


def _neurons(pairs: Pairs) -> list[tuple[InsidePlace, Any]]:
    """The places of neurons that have units, with their nodes in the canonical graph."""
    by_name = {pairs.network.name_in_module(node): node for node in pairs.network.graph.nodes}
    found = places(pairs.module)
    return [
        (place, by_name[place.node])
        for name, place in found.items()
        if kind_of(name) == "neurons" and place.axes == ("batch", "tokens", "neurons")
    ]


def _difference(runs: Mapping[str, GraphRun], node: Any) -> Tensor:
    one, other = (runs[side].values[node] for side in (CLEAN, CORRUPTED))
    return at_least_float32(one) - at_least_float32(other)


def _gradients(
    pairs: Pairs, shares: Sequence[float], inside: Sequence[str], tokens: TokenScores | None
) -> Iterator[BranchGradients]:
    for share in steps("gradients", shares, len(shares)):
        side = pairs.side(CLEAN if share == 1.0 else CORRUPTED)
        leaves = side.leaves if share in (0.0, 1.0) else pairs.between(share)
        yield branch_gradients(pairs.network, leaves, side.call.numbers, inside, FUNCTION, tokens)


def _mean(found: Iterator[BranchGradients]) -> BranchGradients:
    total, count = next(found), 1
    for each in found:
        inside = {name: value + each.inside[name] for name, value in total.inside.items()}
        total, count = BranchGradients(total.readers + each.readers, total.writes + each.writes, inside), count + 1
    return BranchGradients(
        total.readers / count, total.writes / count, {name: value / count for name, value in total.inside.items()}
    )


def _edges(network: Network, found: Differences, gradients: Tensor) -> Tensor:
    """s(u -> v) for all edges, [pairs, writers, readers]: one contraction for each read."""
    scores = gradients.new_zeros(gradients.shape[1], *network.edges.shape)
    for reader in network.readers:
        readers = slice(reader.units.start, reader.units.stop)
        for writers, part in found.dot(reader, gradients[readers]):
            scores[:, torch.tensor(writers), readers] = part
    return scores.cpu()


def _nodes(network: Network, found: Differences, gradients: Tensor) -> Tensor:
    """s(u) of all writers, [pairs, writers]."""
    parts = [found.dot_added(writer, gradient) for writer, gradient in zip(network.writers, gradients, strict=True)]
    return torch.cat(parts, 1).cpu()


def _by_unit(difference: Tensor, gradient: Tensor) -> Tensor:
    """s of each neuron, [pairs, neurons]."""
    return torch.einsum("btn,btn->bn", difference, gradient.to(difference.dtype)).cpu()
