"""QK attribution: the parts of scores against decoders by hand and by hooks, and attention that is written out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import tiny
import tiny_text
import torch
import transformers as hf
from circuit_references import scaled
from qk_references import Decoder, added_to_scores, attended, exact, llama_query, moved_query, parts, recorded
from shared_captures import explained as shared
from torch import Tensor

import lxt_fx
from lxt_fx.attribution.attributed import call_at_all_leaves
from lxt_fx.base.errors import CallError, ForwardMismatchError, InputError, UnknownNameError
from lxt_fx.inside.circuits import qk_attribution as qk
from lxt_fx.inside.circuits.network import network_of
from lxt_fx.inside.circuits.qk_head import head_of
from lxt_fx.inside.circuits.qk_scores import with_scores
from lxt_fx.ops import products
from lxt_fx.ops.scores import attention_with_scores
from lxt_fx.rule_table.tables import dpa

pytestmark = pytest.mark.usefixtures("captures_in_files")

FAMILIES = ("llama", "gpt2", "qwen2", "gemma3")
TABLES: Mapping[str, Any] = {name: name for name in ("gradient", "attnlrp", "gim")} | {"dpa": dpa(0.1, 0.3, 0.6)}
IDS = torch.tensor([[5, 9, 17, 23, 41, 8, 30]])
TARGET = (3, 4)
HEAD, UNIT = "attention.1.heads:2", 2
EXACT = 1e-10
"""float64, absolute, of scores and relevance up to 1. Measured: 7e-16 against the models by hand."""
FLOAT32 = 1e-6
"""The same where eager attention casts its softmax to float32."""


@cache
def model_of(name: str, attention: str = "sdpa") -> Any:
    return exact(getattr(tiny, name)(attention))


@cache
def explained_of(name: str, rules: str = "gradient", attention: str = "sdpa") -> Any:
    return lxt_fx.transform(model_of(name, attention), rules=TABLES.get(rules, rules))


@cache
def found_of(name: str, rules: str = "gradient", attention: str = "sdpa") -> lxt_fx.QKAttribution:
    return lxt_fx.qk_attribution(explained_of(name, rules, attention), {"input_ids": IDS}, TARGET, head=HEAD)


def close(found: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def number(output: Any) -> Tensor:
    return output.logits[0, -1, TARGET[0]] - output.logits[0, -1, TARGET[1]]


# the sum over pairs


EAGER = [
    pytest.param(name, "eager", marks=pytest.mark.slow("gemma3 and qwen2 by eager attention"))
    for name in ("gemma3", "qwen2")
]
FUSED_TOO = pytest.mark.slow("gpt2 by fused attention, as llama")


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        *(pytest.param(name, "sdpa", marks=[FUSED_TOO] if name == "gpt2" else []) for name in FAMILIES),
        ("llama", "eager"),
        ("gpt2", "eager"),
        *EAGER,
    ],
)
def test_each_part_of_queries_and_keys_is_that_by_hand(name: str, attention: str) -> None:
    found, tolerance = found_of(name, "gradient", attention), EXACT if attention == "sdpa" else FLOAT32
    queries, keys = parts(model_of(name), IDS, UNIT)
    for writers, made, expected in ((found.query_writers, found.queries, queries), (found.key_writers, found.keys, keys)):
        for writer, part in zip(writers, made, strict=True):
            close(part, expected.get(writer, torch.zeros_like(part)), tolerance)
        assert set(expected) <= set(writers)
        assert writers[-2:] == ("rest", "bias")


@pytest.mark.parametrize(
    ("name", "rules"), [*((name, "gradient") for name in FAMILIES), ("llama", "attnlrp"), ("llama", "gim")]
)
def test_pairs_add_up_to_the_relevance_of_their_score(name: str, rules: str) -> None:
    found = found_of(name, rules)
    assert float(found.map.abs().max()) > 1e-4
    for i, j in [(6, 5), (6, 4), (3, 3), (4, 2)]:
        one = found.at(i, j)
        score = one.scores[i, j]
        close(one.products.sum(), score)
        assert float((one.relevance.sum() - score * one.gradients[i, j]).abs()) <= EXACT * float(one.map[i, j].abs())
    close(found.everywhere().sum(), found.map.sum())


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_make_the_pattern_of_the_model(name: str) -> None:
    """The softmax of the scores of the keys that a query sees is what the model itself attends with."""
    found = found_of(name)
    pattern = attended(model_of(name, "eager"), IDS, 1)[UNIT]
    close(found.pattern, pattern)
    close(found.scores.masked_fill(pattern == 0, -torch.inf).softmax(-1), pattern)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_query_that_a_writer_moves_moves_the_score_by_its_pairs(name: str) -> None:
    """(1 + e) u_a in the query of this head alone, by a hook on the plain model: a_ij - a_ik, which is log p_ij - log p_ik,
    moves by e times the sum over b of the parts of the score."""
    model, found, step = model_of(name, "eager"), found_of(name), 1e-3
    i, j, k = 5, 4, 3
    plain = parts(model_of(name), IDS, UNIT, rotated=False)[0]

    def difference() -> Tensor:
        weights = attended(model, IDS, 1)[UNIT, i]
        return weights[j].log() - weights[k].log()

    before = difference()
    for writer in (name for name in found.query_writers if name not in ("rest", "bias")):
        with moved_query(model, i, UNIT, step * plain[writer][i]):
            moved = (difference() - before) / step
        at = found.query_writers.index(writer)
        close(moved, found.at(i, j).products[at].sum() - found.at(i, k).products[at].sum(), 1e-9)
        assert float(moved.abs()) > 1e-4


# what flows back to the scores


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_the_models_own_scores(name: str) -> None:
    model, found = model_of(name), found_of(name)
    by = torch.zeros(1, 4, 7, 7, dtype=torch.float64, requires_grad=True)
    with added_to_scores(model, by):
        (expected,) = torch.autograd.grad(number(model(input_ids=IDS)), by)
    assert float(expected[0, UNIT].abs().max()) > 1e-3
    close(found.gradients, expected[0, UNIT])


@pytest.mark.parametrize(
    ("name", "rules"), [("gemma3", "attnlrp"), ("llama", "attnlrp"), ("llama", "gim"), ("llama", "dpa")]
)
def test_tables_send_to_the_scores_what_their_rules_say(name: str, rules: str) -> None:
    """g of the weights is their share of what the head receives, times the values; g of the scores is s (g - sum s g), with
    the softmax s at the temperature of the table."""
    found, module = found_of(name, rules), explained_of(name, rules)
    inside = lxt_fx.latent(module, {"input_ids": IDS}, TARGET, ["attention.1.heads", "attention.1.values"])
    head = inside.relevance["attention.1.heads"][0, UNIT] / inside.activation["attention.1.heads"][0, UNIT]
    values = inside.activation["attention.1.values"][0, UNIT]
    share, temperature = {"attnlrp": (0.5, 1.0), "gim": (0.5, 2.0), "dpa": (0.4, 1.0)}[rules]
    weights = (found.scores / temperature).masked_fill(found.pattern == 0, -torch.inf).softmax(-1)
    reaching = share * head @ values.T
    close(found.gradients, weights * (reaching - (weights * reaching).sum(-1, keepdim=True)))


@pytest.mark.parametrize(("name", "rules"), [("gpt2", "gradient"), *(("llama", one) for one in TABLES)])
def test_attention_written_out_and_fused_give_the_same_map(name: str, rules: str) -> None:
    """The eager graph has scores of its own, with rules for single products."""
    one, other = found_of(name, rules), found_of(name, rules, "eager")
    close(one.map, other.map, FLOAT32)
    close(one.relevance, other.at(one.query, one.key).relevance, FLOAT32)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("name", "rules"), [("gemma3", "attnlrp"), *(("llama", one) for one in TABLES)])
def test_writing_an_attention_out_changes_neither_output_nor_relevance(name: str, rules: str, padded: bool) -> None:
    module = explained_of(name, rules)
    given = {"input_ids": IDS}
    if padded:
        given = {"input_ids": torch.cat([torch.zeros(1, 2, dtype=torch.long), IDS], 1)}
        given["attention_mask"] = torch.tensor([[0, 0] + [1] * 7])
    before = [(node.name, node.target) for node in module.graph.nodes]
    call = call_at_all_leaves(module, given, "test")
    network = network_of(call.module, "test")
    tapped = with_scores(network, head_of(network, HEAD, "test").meeting, HEAD, "test")
    leaves = list(call.leaves.values())
    found, (scores,) = tapped.module.forward(**call.bound)
    expected = call.output()
    close(found.logits[:, -1], expected.logits[:, -1], 1e-12)
    for one, other in zip(
        torch.autograd.grad(number(found), leaves), torch.autograd.grad(number(expected), leaves), strict=True
    ):
        assert float(other.abs().max()) > 1e-3
        close(one, other, 1e-12)
    assert scores.shape[1] == 4
    assert [(node.name, node.target) for node in module.graph.nodes] == before
    assert products.sdpa in {target for _, target in before} or rules == "gradient"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float", "hides all"])
@pytest.mark.parametrize("groups", [False, True])
def test_attention_with_scores_is_lxt_fx_sdpa(dtype: torch.dtype, mask: str, groups: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 8, dtype=dtype) for heads in (4, 2 if groups else 4, 2 if groups else 4))
    hidden = torch.rand(2, 1, 5, 5) < 0.3
    hidden[..., 0] = False
    if mask == "hides all":
        hidden[0, 0, 2] = True
    added = torch.randn(2, 1, 5, 5, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
    given = {"none": None, "causal": None, "bool": ~hidden, "float": added, "hides all": added}[mask]
    settings = {"scale": 0.3, "enable_gqa": groups}
    shares = {"query_share": 0.1, "key_share": 0.3, "value_share": 0.6, "mask_share": 0.4}
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 4e-3}[dtype]
    seed, both = torch.randn_like(q), list[list[Tensor]]()
    for op in (products.sdpa, attention_with_scores):
        leaves = [each.clone().requires_grad_(True) for each in (q, k, v)]
        out = op(*leaves, given, 0.0, mask == "causal", **settings, **shares)
        out = out if isinstance(out, Tensor) else out[0]
        assert out.dtype is dtype
        both.append([out, *torch.autograd.grad(out, leaves, seed)])
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_a_query_that_a_boolean_mask_hides_all_keys_from_gives_zero() -> None:
    q = torch.randn(1, 1, 2, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False], [False, False]])
    out, _, weights = attention_with_scores(q, q, q, mask)
    assert not out[0, 0, 1].any() and not weights[0, 0, 1].any()
    (gradient,) = torch.autograd.grad(out.sum(), q)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rules", ["cp_lrp", "relp", "dpa of values"])
def test_tables_that_hold_the_weights_are_refused(rules: str, attention: str) -> None:
    table = dpa(0.0, 0.0, 1.0) if rules == "dpa of values" else rules
    module = lxt_fx.transform(model_of("llama", attention), rules=table)
    if rules == "dpa of values" and attention == "eager":
        found = lxt_fx.qk_attribution(module, {"input_ids": IDS}, TARGET, head=HEAD)
        assert not found.map.any()
        return
    with pytest.raises(InputError, match="are held constant, so nothing flows back to its scores"):
        lxt_fx.qk_attribution(module, {"input_ids": IDS}, TARGET, head=HEAD)


# writers that are split


def test_a_head_is_split_by_the_tokens_whose_values_it_mixes() -> None:
    """w_is v_s through the output projection, by hooks."""
    model, whole = model_of("llama", "eager"), found_of("llama")
    found = lxt_fx.qk_attribution(
        explained_of("llama"), {"input_ids": IDS}, TARGET, head=HEAD, sources=["attention.0.heads:1", "attention.0.heads:3"]
    )
    first = model.model.layers[0].self_attn
    with recorded({"v": first.v_proj, "norm": model.model.layers[1].input_layernorm}) as seen:
        weights = attended(model, IDS, 0)[3]
    values = seen["v"][1][0, :, 8:16]  # heads 2 and 3 share the second head of values
    for source in range(7):
        added = (weights[:, source, None] * values[source]) @ first.o_proj.weight[:, 24:32].T
        at = found.query_writers.index(f"attention.0.heads:3@{source}")
        close(found.queries[at], llama_query(model, seen["norm"], added[None], UNIT))
        assert not found.queries[at][:source].any()  # no query sees a later token
    for unit in (1, 3):
        rows = [at for at, name in enumerate(found.query_writers) if name.startswith(f"attention.0.heads:{unit}@")]
        assert len(rows) == 7
        close(found.queries[rows].sum(0), whole.queries[whole.query_writers.index(f"attention.0.heads:{unit}")])
    close(found.relevance.sum(), whole.relevance.sum())


@pytest.mark.parametrize("place", ["residual.1", "mlp.0.output"])
def test_features_of_a_dictionary_are_writers(place: str) -> None:
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 32, dtype=torch.float64), dim=1)
    dictionary = lxt_fx.Dictionary(directions.T.contiguous(), directions, kind="topk", k=6)
    spliced = lxt_fx.splice(explained_of("llama"), place, dictionary)
    found = lxt_fx.qk_attribution(spliced, {"input_ids": IDS}, TARGET, head=HEAD)
    features = [name for name in found.query_writers if ".features:" in name]
    active = lxt_fx.latent(spliced, {"input_ids": IDS}, TARGET, f"{place}.features").activation[f"{place}.features"][0]
    assert features == [f"{place}.features:{at}" for at in range(64) if active[:, at].any()]
    assert f"{place}.error" in found.query_writers
    model = model_of("llama")
    with recorded({"norm": model.model.layers[1].input_layernorm}) as seen, torch.no_grad():
        model(input_ids=IDS)
    for name in features:
        feature = int(name.rsplit(":", 1)[1])
        added = active[None, :, feature, None] * directions[feature]
        close(found.queries[found.query_writers.index(name)], llama_query(model, seen["norm"], added, UNIT))
    close(found.relevance.sum(), found.map[found.query, found.key])
    close(found.scores, found_of("llama").scores)
    assert float(found.queries[found.query_writers.index("rest")].abs().max()) < EXACT


def test_what_is_written_before_a_scale_of_the_stream_is_read_behind_it() -> None:
    """Of a model without biases nothing is left over, and the embedding's part of the keys is that of the scaled one."""
    model = exact(scaled(tiny.llama()))
    found = lxt_fx.qk_attribution(lxt_fx.transform(model, rules="gradient"), {"input_ids": IDS}, TARGET, head=HEAD)
    close(found.relevance.sum(), found.map[found.query, found.key])
    rest = found.queries[found.query_writers.index("rest")], found.keys[found.key_writers.index("rest")]
    assert max(float(each.abs().max()) for each in rest) < EXACT
    with recorded({"norm": model.model.layers[1].input_layernorm}) as seen, torch.no_grad():
        model(input_ids=IDS)
        first = model.model.layers[0]
        added = first.scale * torch.sigmoid(first.inner) * model.get_input_embeddings()(IDS)
    expected = llama_query(model, seen["norm"], added, UNIT)
    close(found.queries[found.query_writers.index("embedding")], expected)


def test_of_the_first_layer_the_embedding_writes_all() -> None:
    found = lxt_fx.qk_attribution(explained_of("llama"), {"input_ids": IDS}, TARGET, head="attention.0.heads:0")
    assert found.query_writers == ("embedding", "rest", "bias")
    close(found.relevance[0, 0], found.map[found.query, found.key])


def test_heads_that_torch_shares_are_those_that_are_copied() -> None:
    """scaled_dot_product_attention(..., is_causal=True, enable_gqa=True) has fewer heads of keys than of queries."""
    found = []
    for shared_heads in (True, False):
        module = lxt_fx.transform(Decoder(shared_heads).double().eval(), kwargs={"input_ids": IDS})
        found.append(
            lxt_fx.qk_attribution(
                module,
                {"input_ids": IDS},
                lambda output: output["logits"][0, -1, 3],
                head=HEAD,
                sources="attention.0.heads:2",
            )
        )
    assert float(found[0].map.abs().max()) > 1e-4
    close(found[0].map, found[1].map)
    close(found[0].queries, found[1].queries)
    close(found[0].keys, found[1].keys)


def test_queries_and_keys_that_do_not_make_the_scores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qk, "scale_of", lambda *given: 2.0)
    with pytest.raises(ForwardMismatchError, match=r"product of queries and keys of attention.1.heads:2 is not its scores"):
        lxt_fx.qk_attribution(explained_of("llama"), {"input_ids": IDS}, TARGET, head=HEAD)


# what is no pair


def test_biases_of_positions_are_no_pair() -> None:
    """MPT adds slope * (key - last) to the scores."""
    config = hf.MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, max_seq_len=32)
    torch.manual_seed(0)
    model = hf.MptForCausalLM(config).eval().double()
    found = lxt_fx.qk_attribution(model, {"input_ids": IDS}, TARGET, head=HEAD)
    slope = 2.0 ** -(8 * (UNIT + 1) / 4)
    expected = slope * (torch.arange(7.0).double() - 6)
    close(found.position_bias[6] - found.position_bias[6, 6], expected, 1e-6)
    shown = (found.scores + found.position_bias).masked_fill(found.pattern == 0, -torch.inf)
    close(shown.softmax(-1), found.pattern.double(), FLOAT32)
    assert "bias of the position" in str(found)


def test_a_score_is_that_before_its_soft_cap() -> None:
    sizes = tiny.SIZES | {"num_key_value_heads": 2, "head_dim": 8}
    torch.manual_seed(0)
    model = hf.Gemma2ForCausalLM(hf.Gemma2Config(**sizes, attn_logit_softcapping=0.5)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model = exact(model)
    found = lxt_fx.qk_attribution(model, {"input_ids": IDS}, TARGET, head=HEAD, rules="gradient")
    assert float(found.scores.abs().max()) > 0.2
    capped = 0.5 * torch.tanh(found.scores / 0.5)
    close(capped.masked_fill(found.pattern == 0, -torch.inf).softmax(-1), found.pattern.double(), FLOAT32)
    close(found.relevance.sum(), found.map[found.query, found.key])


# texts, dtypes, places of a call


def test_padding_has_no_positions() -> None:
    given = {"input_ids": torch.cat([torch.zeros(1, 2, dtype=torch.long), IDS], 1)}
    given["attention_mask"] = torch.tensor([[0, 0] + [1] * 7])
    found = lxt_fx.qk_attribution(explained_of("llama"), given, TARGET, head=HEAD)
    assert len(found.tokens) == 7 and found.map.shape == (7, 7)
    close(found.map, found_of("llama").map)  # rotary positions are relative


def test_what_is_not_asked_for_is_what_matters_most() -> None:
    whole, module = found_of("llama"), explained_of("llama")
    (i, j, most), *_ = whole.top_positions(1)
    assert (whole.query, whole.key) == (i, j) and most == float(whole.map[i, j])
    assert abs(most) == float(whole.map.abs().max())
    at_4 = lxt_fx.qk_attribution(module, {"input_ids": IDS}, TARGET, head=HEAD, query=-3)
    assert at_4.query == 4 and at_4.key == int(whole.map[4].abs().argmax())
    to_1 = lxt_fx.qk_attribution(module, {"input_ids": IDS}, TARGET, head=HEAD, key=1)
    assert to_1.key == 1 and to_1.query == int(whole.map[:, 1].abs().argmax())
    both = lxt_fx.qk_attribution(module, {"input_ids": IDS}, TARGET, head=HEAD, query=5, key=2)
    assert torch.equal(both.relevance, whole.at(5, 2).relevance) and torch.equal(both.map, whole.map)


def test_the_largest_pairs_are_listed_and_are_lines_of_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = found_of("gpt2")
    first = found.top(3)
    assert [abs(value) for *_, value in first] == sorted(found.relevance.abs().flatten().tolist(), reverse=True)[:3]
    for query_writer, key_writer, value in first:
        assert found.pair(query_writer, key_writer) == value
    assert [value for *_, value in found.top(2, by="signed")] == sorted(found.relevance.flatten().tolist())[:-3:-1]
    (a, b, value), *_ = found.top_everywhere(1)
    total = sum(found.at(i, j).pair(a, b) for i in range(7) for j in range(i + 1))
    assert abs(value - total) < EXACT
    frame = found.to_dataframe()
    assert list(frame.columns) == ["query_writer", "key_writer", "product", "relevance"]
    assert len(frame) == len(found.query_writers) * len(found.key_writers)
    line = frame[(frame.query_writer == first[0][0]) & (frame.key_writer == first[0][1])]
    assert float(line.relevance.iloc[0]) == first[0][2]
    shown = str(found)
    assert first[0][0] in shown and HEAD in shown and max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_dtypes_run_and_are_near_float64(dtype: torch.dtype) -> None:
    expected = found_of("llama", "attnlrp")
    found = lxt_fx.qk_attribution(
        tiny.llama().to(dtype), {"input_ids": IDS}, TARGET, head=HEAD, query=expected.query, key=expected.key
    )
    assert found.relevance.dtype is torch.float32
    tolerance = {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float32: 1e-5}[dtype]
    scale = float(expected.relevance.abs().max())
    close(found.relevance.double() / scale, expected.relevance / scale, tolerance)
    torch.testing.assert_close(found.relevance.sum(), found.map[found.query, found.key], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("inside", ["autocast", "inference"])
def test_the_callers_modes_change_nothing(inside: str) -> None:
    single = lxt_fx.transform(tiny.llama(), rules="attnlrp")
    mode = {"autocast": torch.autocast("cpu", torch.bfloat16), "inference": torch.inference_mode()}[inside]

    def read() -> list[Tensor]:
        found = lxt_fx.qk_attribution(single, {"input_ids": IDS}, TARGET, head=HEAD)
        return [found.scores, found.map, found.products, found.relevance, found.everywhere(), found.pattern]

    plain = read()
    with mode:
        assert all(map(torch.equal, read(), plain))


def test_a_text_with_a_name_of_several_tokens_is_explained_behind_it() -> None:
    tokenizer = tiny_text.byte_tokenizer()
    model = tiny_text.llama(len(tokenizer))
    found = lxt_fx.qk_attribution(model, "The capital is", " Parisian", head="attention.0.heads:0", processor=tokenizer)
    assert "".join(found.tokens).startswith("The capital is") and "log-probability" in found.number.said
    text = lxt_fx.qk_attribution(model, "The capital is", head="attention.0.heads:0", processor=tokenizer, query=-1)
    assert text.query == len(text.tokens) - 1 and "logit" in text.number.said


def test_nothing_of_the_model_changes() -> None:
    model = model_of("qwen2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model(input_ids=IDS).logits
    found_of("qwen2", "attnlrp")
    lxt_fx.qk_attribution(model, {"input_ids": IDS}, TARGET, head=HEAD)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(input_ids=IDS).logits, logits)
    assert all(parameter.grad is None for parameter in model.parameters())


# errors


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"head": "attention.7.heads:0"}, UnknownNameError, "no head 'attention.7.heads:0'; the nearest are attention"),
        ({"head": "attention.1.queries:0"}, UnknownNameError, "no head"),
        ({"query": 7}, InputError, "query must be a position of the text, 0 to 6 or -7 to -1"),
        ({"key": "0"}, InputError, "key must be a position"),
        ({"query": True}, InputError, "query must be a position"),
        ({"query": 2, "key": 5}, InputError, "the query at 2 gives the key at 5 no weight"),
        ({"sources": "attention.1.heads:0"}, UnknownNameError, "names no head that attention.1.heads:2 reads"),
        ({"target": [3, 4]}, InputError, "2 targets"),
        ({"inputs": {"input_ids": IDS.repeat(2, 1)}}, InputError, "2 examples"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], kind: type[Exception], says: str) -> None:
    options = {"inputs": {"input_ids": IDS}, "target": TARGET, "head": HEAD} | given
    with pytest.raises(kind, match=says):
        lxt_fx.qk_attribution(explained_of("llama"), options.pop("inputs"), options.pop("target"), **options)


def test_names_counts_and_orders_that_there_are_not_are_refused() -> None:
    found = found_of("llama")
    with pytest.raises(UnknownNameError, match="there is no 'mlp.9.output'"):
        found.pair("mlp.9.output", "embedding")
    with pytest.raises(InputError, match="count must be a whole number"):
        found.top(-1)
    with pytest.raises(InputError, match="by must be one of absolute, signed"):
        found.top(3, by="size")  # type: ignore[arg-type]


def test_networks_whose_scores_are_no_sum_are_refused() -> None:
    ids = {"input_ids": IDS}
    with pytest.raises(InputError, match="BertForSequenceClassification"):
        lxt_fx.qk_attribution(shared("bert"), ids, 1, head=HEAD)
    whisper = {"input_features": torch.randn(1, 8, 20), "decoder_input_ids": IDS}
    with pytest.raises(InputError, match="2 residual streams"):
        lxt_fx.qk_attribution(shared("whisper"), whisper, 3, head="cross_attention.1.heads:2")
    with pytest.raises(InputError, match="explicit form"):
        lxt_fx.qk_attribution(shared("llama", form="explicit"), ids, TARGET, head=HEAD)
    torch.manual_seed(0)
    clipped = hf.OlmoForCausalLM(hf.OlmoConfig(**tiny.SIZES, clip_qkv=0.01)).eval()
    with pytest.raises(ForwardMismatchError, match=r"attention.1.queries are no sum .* is not linear"):
        lxt_fx.qk_attribution(clipped, ids, TARGET, head=HEAD)


def test_a_steered_module_is_refused() -> None:
    module = explained_of("llama")
    edit = {"mlp.0.neurons": lxt_fx.edits.scale(0, units=[1])}
    with lxt_fx.steer(module, edit), pytest.raises(CallError, match="steered"):
        lxt_fx.qk_attribution(module, {"input_ids": IDS}, TARGET, head=HEAD)
