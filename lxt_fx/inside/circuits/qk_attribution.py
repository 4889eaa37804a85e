"""Why a head attends there: its scores as sums over pairs of writers, one at the query and one at the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.many_targets import forward_run
from lxt_fx.attribution.non_finite import is_finite, raise_non_finite
from lxt_fx.attribution.target import TargetsLike
from lxt_fx.base.autocast import autocast_off
from lxt_fx.base.errors import ForwardMismatchError, InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.progress import lasting, stage
from lxt_fx.base.wide import at_least_float32
from lxt_fx.compiler.options import Rules
from lxt_fx.inside.circuits.contributions import Contributions, coarsest, far_apart
from lxt_fx.inside.circuits.graph_run import GraphRun
from lxt_fx.inside.circuits.network import Network, Writer, network_of
from lxt_fx.inside.circuits.qk_head import Head, head_of, pattern_node, reads_of, scale_of, sources_of, split_heads
from lxt_fx.inside.circuits.qk_parts import parts_of
from lxt_fx.inside.circuits.qk_result import QKAttribution, checked_position
from lxt_fx.inside.circuits.qk_scores import pattern_of, with_scores
from lxt_fx.inside.inside_call import TargetedCall, targeted_call
from lxt_fx.inside.tokens import TextTokens, tokens_of
from lxt_fx.ops.dtype_limits import mask_limit
from lxt_fx.results.origin import ExplainedNumber

FUNCTION = "qk_attribution"


@lasting
def qk_attribution(
    explained: nn.Module | Any,
    inputs: Any,
    target: TargetsLike = None,
    *,
    head: str,
    query: int | None = None,
    key: int | None = None,
    sources: str | Sequence[str] = (),
    processor: Any = None,
    answer: Any = None,
    labels: Sequence[str] | None = None,
    rules: Rules | None = None,
    progress: bool | None = None,
) -> QKAttribution:
    """Why a head attends from one token to another: what wrote to the residual stream at the query, and what at the key,
    that makes its score, weighted by what the score does for the explained number.

    The score before the softmax is a_ij = q_i . k_j / sqrt(d). With norms held at their values, q_i is a linear map of the
    residual stream at i, and k_j of that at j, so the score is a sum over pairs of what was written to them:

        R_ij(a, b) = g_ij (Rot_i W_Q u_a) . (Rot_j W_K w_b) / sqrt(d)

    where u_a is what writer a adds to the stream at i, w_b what b adds at j, and g_ij what flows back to the score under
    the rules of the module. Summed over a and b it is the relevance a_ij g_ij of the score. With g_ij = 1 these are the QK
    attributions of Kamath et al. 2025 ("Tracing Attention Computation Through Feature Interactions").

        found = lxt_fx.qk_attribution(model, "When Mary and John ...", " Mary", head="attention.9.heads:6",
                                      processor=tokenizer, query=-1)
        print(found)             # which pairs make the score, from the last token to the key that matters most
        found.relevance          # [writers at the query, writers at the key]
        found.map                # [queries, keys]: a_ij g_ij of all pairs of tokens
        found.at(5, 3).top(10)   # another query and key of this head, from the same run

    Writers are those of `circuit_scores`: the embedding (of a sum `embedding:tokens` and `embedding:positions`),
    heads, MLPs, active features and the error of a spliced dictionary. Two more terms complete the sum: `rest`, what no
    writer has, as biases behind heads, and `bias`, the queries or keys of a stream that is 0. `sources` names heads, `*`
    for any part, that are split by source token: `attention.0.heads:4@2` is what the head took from token 2.

    `head` is a head as `circuit_scores` names it. `query` and `key` are positions of the text, a negative one counts from
    the end; what is None becomes that with the largest |a_ij g_ij|. The other arguments are those of `latent`, for one
    example and one target. In the run for g a fused attention is written out, with the same values and relevance; neither
    the model nor `explained` changes. The score is that before a soft cap, and position biases (ALiBi) are no pair:
    `QKAttribution.position_bias` has them.

    Raises InputError for several examples or targets, positions that do not fit or that the head cannot see, a table that
    holds the weights of attentions (`cp_lrp`, `relp`), a module in explicit form, and a network whose stream is no plain
    sum of its writers (BERT, encoder-decoders); UnknownNameError for a head that there is not; ForwardMismatchError where
    queries or keys are not linear in the stream; NonFiniteError for relevance that is NaN or infinite.
    """
    with gradients_on(), autocast_off():
        asked = targeted_call(explained, processor, inputs, target, FUNCTION, answer=answer, labels=labels, rules=rules)
        network = _network(asked)
        found = head_of(network, head, FUNCTION)
        split = split_heads(found, sources, FUNCTION)
        run = forward_run(asked.leaves, asked.call.numbers, FUNCTION, with_scores(network, found.meeting, head, FUNCTION))
        tokens = _tokens(asked, network, run.inside[0].shape[-1])
        for position, what in ((query, "query"), (key, "key")):
            if position is not None:
                checked_position(position, len(tokens.tokens), what)
        gradients = run.gradients(run.inside, 0, 1, last=True)[0][0]
        with stage("running the graph"):
            known = GraphRun(network.module, network.graph, asked.leaves.bound).all()
        result = _result(found, known, run.inside[0].detach(), gradients, tokens, split)
        number = asked.call.numbers.numbers[0][0]
        result = replace(result, number=ExplainedNumber(number.said, float(number.value.detach()), number.label))
        _check_finite(asked, result)
        return result.at(*_chosen(result, query, key))


def _network(asked: TargetedCall) -> Network:
    """The network of a call of one example with one target."""
    examples = len(asked.call.given.examples)
    if examples != 1 or asked.targets != 1:
        many = f"{examples} examples" if examples != 1 else f"{asked.targets} targets"
        raise InputError(f"{FUNCTION}: a score has one query and one key of one example, and one target; got {many}")
    asked.call.explained._refuse_steering(FUNCTION)
    return network_of(asked.leaves.module, FUNCTION)


def _tokens(asked: TargetedCall, network: Network, width: int) -> TextTokens:
    """The tokens of the text, without padding; of what is no text, numbers."""
    tokens = tokens_of(asked.call, network.module)
    texts = tokens.texts.get(tokens.main)
    if texts is None or texts[0].width != width:
        return TextTokens(tuple(map(str, range(width))), tuple(range(width)), width)
    return texts[0]


@torch.no_grad()
def _result(
    head: Head, run: GraphRun, scores: Tensor, gradients: Tensor, tokens: TextTokens, split: Mapping[str, Writer]
) -> QKAttribution:
    """The attribution of a head, for its first query and key and no number yet."""
    written, at = Contributions(run, head.network, FUNCTION), torch.tensor(tokens.columns, device=scores.device)
    sources = {name: sources_of(head, run, writer, name, FUNCTION) for name, writer in split.items()}
    reads = reads_of(head, run)
    queries, keys = ({name: each[at].cpu() for name, each in parts_of(written, read, sources).items()} for read in reads)

    def own(value: Tensor) -> Tensor:
        """What the head has of a value [..., heads, queries, keys], at the positions of the text."""
        return at_least_float32(value).flatten(0, -3)[head.unit][at][:, at].cpu()

    added = [_shown(run.values[node], scores.flatten(0, -3)) for node in head.meeting.added]
    result = QKAttribution(
        head=head.name,
        tokens=tokens.tokens,
        query=0,
        key=0,
        query_writers=tuple(queries),
        key_writers=tuple(keys),
        queries=torch.stack(list(queries.values())) * scale_of(run, head.meeting, FUNCTION),
        keys=torch.stack(list(keys.values())),
        gradients=own(gradients),
        pattern=own(pattern_of(run, head.meeting, pattern_node(head.network, head.writer))),
        position_bias=own(sum(added, torch.zeros_like(scores.flatten(0, -3)))),
        number=ExplainedNumber("", 0.0, ""),
        table_name=head.network.module.record.table_name,
    )
    _check_scores(head, result, own(scores), max(coarsest(run, read.nodes) for read in reads))
    return result


def _check_scores(head: Head, result: QKAttribution, scores: Tensor, eps: float) -> None:
    """Raises ForwardMismatchError unless queries times keys are the scores of the run that gave the gradients."""
    sizes = result.queries.sum(0).abs() @ result.keys.sum(0).abs().T
    if far := far_apart(result.scores, scores, float(sizes.max()), eps):
        raise ForwardMismatchError(
            f"{FUNCTION}: the product of queries and keys of {head.name} is not its scores ({far}): "
            f"%{head.meeting.product.name} reads them in another layout than [heads, tokens, size]"
        )


def _shown(value: Tensor, scores: Tensor) -> Tensor:
    """What a mask or a bias adds to scores [heads, queries, keys]: 0 where it hides a key, or is no number."""
    if not value.is_floating_point():
        return torch.zeros_like(scores)
    numbers = torch.where(value > mask_limit(value.dtype), value, 0)
    numbers = numbers if numbers.dim() > 1 else numbers.expand(1, scores.shape[-1])
    shown: Tensor = numbers.reshape(-1, *numbers.shape[-2:]).expand(scores.shape)
    return shown


def _chosen(result: QKAttribution, query: int | None, key: int | None) -> tuple[int, int]:
    """The query and key that are asked for; where one is None, that with the largest relevance of its score."""
    count, size = len(result.tokens), result.map.abs()
    rows = range(count) if query is None else [checked_position(query, count, "query")]
    columns = range(count) if key is None else [checked_position(key, count, "key")]
    some = size[list(rows)][:, list(columns)]
    seen = result.pattern[list(rows)][:, list(columns)] > 0
    best = int(torch.where(seen, some, -1.0).argmax())
    return rows[best // len(columns)], columns[best % len(columns)]


def _check_finite(asked: TargetedCall, result: QKAttribution) -> None:
    if not is_finite([result.queries, result.keys, result.gradients]):
        numbers, said = asked.call.numbers, f"{FUNCTION}: an explained number, or what flows back to a score,"
        raise_non_finite(asked.leaves.module, asked.leaves.bound, lambda out: numbers.totals(out)[0].sum(), said)
