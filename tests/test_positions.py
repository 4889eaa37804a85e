"""`transform(positions=...)`: the selection of positions moves up the graph, and nothing that is asked for changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from golden_cases import relative
from rounding import assert_same
from tiny_text import byte_tokenizer
from tiny_text import llama as text_llama
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, MambaConfig, MambaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import lxt_fx
from lxt_fx.compiler.captured_model import copied
from lxt_fx.compiler.captures import captured_from
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Options, table_named
from lxt_fx.compiler.pipeline import compiled_by
from lxt_fx.ops.selection import positions as positions_op

EXACT = 1e-12
"""float64, relative: other kernels for fewer tokens round otherwise. Measured: up to 5e-16."""


def both(model: nn.Module, positions: tuple[int, ...], args: tuple[Any, ...] = (), **settings: Any) -> list[Explained]:
    """The whole module and the narrowed one, of one capture."""
    source = captured_from(model, args, None, dynamic=True)
    table = table_named(settings.pop("rules", "attnlrp"))
    return [compiled_by(copied(source), table, Options(positions=at, **settings)) for at in (None, positions)]


def linears(explained: Explained) -> set[str]:
    """The weights of the linear maps whose recorded input does not grow with the number of tokens."""
    leaf = next(n for n in reversed(explained.graph.nodes) if n.op == "placeholder" and n.name in explained.record.leaves)
    tokens, found = str(leaf.meta["val"].shape[1]), set()
    for node in explained.graph.nodes:
        if getattr(node.target, "__name__", "").startswith("linear"):
            weight = node.args[1]
            while weight.op != "get_attr":
                weight = weight.args[0]
            if tokens not in str(list(node.args[0].meta["val"].shape)):
                found.add(str(weight.target).removesuffix(".weight"))
    return found


def selections(explained: Explained) -> list[str]:
    """The ops whose values the selection is read from."""
    taken = [node.args[0] for node in explained.graph.nodes if node.target is positions_op]
    return [str(node.target) if node.op == "placeholder" else node.target.__name__.split(".")[0] for node in taken]


def relevance(explained: Explained, mask: Tensor, at: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The logits, and the relevance of one logit of each example at each of these places, summed."""
    ids = torch.randint(3, 60, mask.shape, generator=torch.Generator().manual_seed(1))
    leaf = lxt_fx.embed(explained, ids)
    logits = explained(inputs_embeds=leaf, attention_mask=mask).logits
    logits[:, list(at), 11].sum().backward()
    return logits.detach(), leaf.detach() * leaf.grad


def masked_bert() -> nn.Module:
    return tiny._made(BertForMaskedLM, BertConfig(**tiny.SIZES, max_position_embeddings=64), "sdpa")


def moe(experts: str = "batched_mm") -> nn.Module:
    sizes = {**tiny.SIZES, "num_key_value_heads": 2, "head_dim": 8, "moe_intermediate_size": 16}
    model = tiny._made(Qwen3MoeForCausalLM, Qwen3MoeConfig(**sizes, num_experts=4, num_experts_per_tok=2), "sdpa")
    model.set_experts_implementation(experts)
    return model


LLAMA_LIKE = {f"model.layers.1.{name}" for name in ("self_attn.q_proj", "self_attn.o_proj")} | {"lm_head"}
GATED = {f"model.layers.1.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")}
MODELS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "llama": (tiny.llama, LLAMA_LIKE | GATED),
    "qwen2": (tiny.qwen2, LLAMA_LIKE | GATED),
    "gemma3 eager": (lambda: tiny.gemma3("eager"), LLAMA_LIKE | GATED),
    "gpt2 eager": (
        lambda: tiny.gpt2("eager"),
        {f"transformer.h.1.{name}" for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")} | {"lm_head"},
    ),
    "masked bert": (
        masked_bert,
        {f"bert.encoder.layer.1.{name}" for name in ("attention.self.query", "attention.output.dense")}
        | {"bert.encoder.layer.1.intermediate.dense", "bert.encoder.layer.1.output.dense"}
        | {"cls.predictions.transform.dense", "cls.predictions.decoder"},
    ),
    "moe": (moe, LLAMA_LIKE | {"model.layers.1.mlp.gate"}),
}
MORE: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "llama eager": (lambda: tiny.llama("eager"), LLAMA_LIKE | GATED),
    "qwen2 eager": (lambda: tiny.qwen2("eager"), LLAMA_LIKE | GATED),
    "gemma3": (tiny.gemma3, LLAMA_LIKE | GATED),
    "gpt2": (tiny.gpt2, MODELS["gpt2 eager"][1]),
}


@pytest.mark.parametrize("name", [*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_the_last_position_is_computed_alone_and_has_the_same_relevance(name: str) -> None:
    make, alone = (MODELS | MORE)[name]
    whole, narrow = both(make().double(), (-1,))
    padded = torch.ones(3, 10, dtype=torch.long)
    padded[0, :4] = padded[1, :1] = 0
    for mask in (padded, padded[:1, 2:], padded[:, -1:]):
        logits, expected = relevance(whole, mask, (-1,))
        found, actual = relevance(narrow, mask, (0,))
        assert found.shape == (len(mask), 1, 64)
        assert relative(found, logits[:, -1:]) < EXACT
        assert relative(actual, expected) < EXACT
    assert linears(narrow) == alone and not linears(whole)


def test_experts_that_sort_their_tokens_sort_the_selected_ones() -> None:
    whole, narrow = both(moe("grouped_mm"), (-1, 2))
    assert sorted(selections(narrow)) == ["add", "expand", "mul", "unsqueeze", "unsqueeze"]
    mask = torch.ones(3, 8, dtype=torch.long)
    logits, expected = relevance(whole, mask, (-1, 2))
    found, actual = relevance(narrow, mask, (0, 1))
    assert relative(found, logits[:, [-1, 2]]) < 1e-5 and relative(actual, expected) < 1e-5


class Sorting(nn.Module):
    """Tokens sorted by expert and put back; `fault` lets something look at all of them in between."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.fault, self.linear = fault, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.linear(x).reshape(-1, 4)
        order = rows.argmax(-1).sort()[1]
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.shape[0])
        taken = rows[order].sin()
        taken = taken + taken.mean(0) if self.fault else taken * 2
        return taken[inverse].view(x.shape)


@pytest.mark.parametrize("fault", [False, True])
def test_sorted_rows_stay_whole_where_something_reads_all_of_them(fault: bool) -> None:
    net, x = Sorting(fault).eval(), torch.randn(2, 7, 4)
    narrow = lxt_fx.transform(net, (x,), positions="last", strict=False)
    other = torch.randn(3, 5, 4)
    torch.testing.assert_close(narrow(other), net(other)[:, -1:])
    assert ("x" in selections(narrow)) == (not fault)


@pytest.mark.parametrize("positions", [(2,), (0, -3, -2, 3)])
def test_any_positions_in_their_order(positions: tuple[int, ...]) -> None:
    whole, narrow = both(tiny.gemma3().double(), positions)
    mask = torch.ones(2, 9, dtype=torch.long)
    places = tuple(range(len(positions)))
    logits, expected = relevance(whole, mask, positions)
    found, actual = relevance(narrow, mask, places)
    assert relative(found, logits[:, list(positions)]) < EXACT and relative(actual, expected) < EXACT
    _, one = relevance(narrow, mask, places[-1:])
    assert relative(one, relevance(whole, mask, positions[-1:])[1]) < EXACT
    assert linears(narrow) == LLAMA_LIKE | GATED


class Decoder(nn.Module):
    """A decoder as people write it: joined projections, `is_causal`, an MLP on [batch * tokens], an answer by token."""

    def __init__(self, written_out: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.written_out = written_out
        self.first, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(8)])
        self.mlp, self.head = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), nn.Linear(8, 5)
        self.register_buffer("past", torch.tril(torch.ones(1, 1, 32, 32)))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, hidden = x.shape
        parts = self.first(self.norms[0](x)).split(hidden, dim=2)
        query, key, value = (part.view(batch, tokens, 2, hidden // 2).transpose(1, 2) for part in parts)
        if self.written_out:
            scores = query @ key.transpose(-2, -1) / 2
            scores = scores.masked_fill(self.past[:, :, :tokens, :tokens] == 0, float("-inf"))
            attended = torch.softmax(scores, -1) @ value
        else:
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).contiguous().view(batch, tokens, hidden))
        rows = self.mlp(self.norms[1](x).reshape(-1, hidden))
        return self.head(x + rows.view(batch, tokens, hidden))


@pytest.mark.parametrize("written_out", [False, True])
@pytest.mark.parametrize("positions", [(-1,), (1, -1)])
def test_a_plain_decoder_is_narrowed_up_to_its_queries(written_out: bool, positions: tuple[int, ...]) -> None:
    model = Decoder(written_out).double().eval()
    whole, narrow = both(model, positions, (torch.randn(2, 7, 8, dtype=torch.float64),))
    for shape in ((2, 7), (3, 11), (1, 5)):
        leaves = [torch.randn(*shape, 8, dtype=torch.float64).requires_grad_(True)]
        leaves.append(leaves[0].detach().clone().requires_grad_(True))
        expected, found = whole(leaves[0])[:, list(positions)], narrow(leaves[1])
        assert relative(found.detach(), expected.detach()) < EXACT
        assert relative(found.detach(), model(leaves[0])[:, list(positions)].detach()) < EXACT
        for logits in (expected, found):
            logits[:, :, 2].sum().backward()
        assert relative(leaves[1].grad, leaves[0].grad) < EXACT
    assert linears(narrow) == {"out", "mlp.0", "mlp.2", "head"}


class Function(nn.Module):
    """Tokens [batch, tokens, 4] through a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.scale = function, nn.Parameter(torch.full((4,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.scale)


TABLE = torch.arange(12.0).reshape(6, 2)
TOKEN_WISE: dict[str, Callable[[Tensor], Tensor]] = {
    "joined rows": lambda x: (x.reshape(-1, 2, 2).flip(1) + 1).reshape(x.shape),
    "sizes given": lambda x: x.view(x.shape[0] * x.shape[1], 4).sin().view(x.shape[0], x.shape[1], 2, 2).sum(-1),
    "tokens first": lambda x: x.transpose(0, 1).softmax(-1).permute(1, 0, 2).contiguous(),
    "copies beside each other": lambda x: x.repeat_interleave(3, 1).view(x.shape[0], -1, 3, 4).mean(2),
    "copies of joined rows": lambda x: x.reshape(-1, 4).repeat_interleave(2, 0).view(x.shape[0], -1, 8).cos(),
    "parts": lambda x: torch.cat([part.exp() for part in x.chunk(2, -1)], -1),
    "unbind and stack": lambda x: torch.stack(x.unbind(-1), 2).neg(),
    "topk": lambda x: x.topk(2, -1)[0],
    "sort": lambda x: x.sort(-1)[0],
    "rows of a table": lambda x: TABLE[x.argmax(-1)] * x[..., :2],
    "looked up": lambda x: F.embedding(x.argmax(-1), TABLE) * x[..., 2:],
    "gather": lambda x: x.gather(-1, x.argsort(-1)),
    "one hot": lambda x: F.one_hot(x.argmax(-1), 4) * x,
    "pad": lambda x: F.pad(x, (1, 2)),
    "squeeze": lambda x: (x.unsqueeze(1) * 2).squeeze(1),
    "expand": lambda x: x.unsqueeze(2).expand(-1, -1, 3, -1).sum(2),
    "einsum": lambda x: torch.einsum("btd,ed->bte", x, TABLE[:4, :1].expand(4, 4)),
    "norm": lambda x: x / x.norm(dim=-1, keepdim=True) + F.layer_norm(x, (4,)),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.view(*x.shape[:2], 2, 2)) * 1j).flatten(2),
    "unflatten": lambda x: x.unflatten(-1, (2, 2)).movedim(-1, 2).flatten(2),
    "largest": lambda x: torch.where(x > 0, x, x.max(-1, keepdim=True)[0]),
    "batched matmul": lambda x: (x.unsqueeze(-2) @ x.unsqueeze(-1)).squeeze(-1) + x.select(-1, 1).unsqueeze(-1),
}
MIXING: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "running sum": ("cumsum", lambda x: x.cumsum(1)),
    "softmax over tokens": ("softmax", lambda x: x.softmax(1)),
    "neighbours": ("conv1d", lambda x: F.conv1d(x.transpose(1, 2), torch.ones(4, 4, 3), padding=1).transpose(1, 2)),
    "the other way round": ("flip", lambda x: x.flip(1)),
    "half as many": ("reshape", lambda x: x.reshape(x.shape[0], -1, 8)),
    "shift": ("slice", lambda x: F.pad(x, (0, 0, 1, 0))[:, :-1]),
    "sorted over tokens": ("getitem", lambda x: x.sort(1)[0]),
    "the largest of all": ("expand", lambda x: x.max(1, keepdim=True)[0].expand(-1, x.shape[1], -1)),
    "all tokens in one": ("mul", lambda x: x + x.mean(1, keepdim=True)),
    "keys": ("mul", lambda x: x @ (x.transpose(1, 2) @ x)),
}
"""Beside each the op that stays whole, whose value is selected from; the largest of all needs no selection."""


def narrowed_function(function: Callable[[Tensor], Tensor], tokens: int = 6) -> tuple[Explained, Explained, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, tokens, 4)
    whole, narrow = both(Function(function), (1, -2), (x,), rules="gradient", strict=False)
    return whole, narrow, x


@pytest.mark.parametrize("name", [*TOKEN_WISE, *MIXING])
def test_every_op_answers_at_the_selected_positions(name: str) -> None:
    stays, function = MIXING.get(name) or ("x", TOKEN_WISE[name])
    whole, narrow, x = narrowed_function(function)
    wide, few = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    expected, found = whole(wide)[:, [1, -2]], narrow(few)
    torch.testing.assert_close(found, expected)
    expected.pow(2).sum().backward()
    found.pow(2).sum().backward()
    torch.testing.assert_close(few.grad, wide.grad)
    assert set(selections(narrow)) == ({stays} if stays != "expand" else set())


def test_sizes_that_agree_by_chance_are_told_apart() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 4, 4)  # batch, tokens and hidden are all 4
    net = Decoder(written_out=False).eval()
    net.first, net.out = nn.Linear(4, 12), nn.Linear(4, 4)
    net.norms = nn.ModuleList([nn.LayerNorm(4), nn.LayerNorm(4)])
    net.mlp, net.head = nn.Linear(4, 4), nn.Linear(4, 4)
    narrow = lxt_fx.transform(net, (x,), dynamic=False, positions=(2, 0))
    torch.testing.assert_close(narrow(x), net(x)[:, [2, 0]])


def test_only_the_logits_are_narrowed() -> None:
    model = tiny.llama()
    embeds = model.get_input_embeddings()(torch.tensor([[3, 5, 8, 13], [4, 6, 9, 14]])).detach()
    kwargs = {"inputs_embeds": embeds, "output_hidden_states": True}
    narrow = lxt_fx.transform(model, kwargs=kwargs, positions="last")
    output, expected = narrow(**kwargs), model(**kwargs)
    torch.testing.assert_close(output.logits, expected.logits[:, -1:])
    assert len(output.hidden_states) == len(expected.hidden_states) > 2
    for found, wanted in zip(output.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_decoder_of_two_is_narrowed() -> None:
    whole, narrow = both(tiny.whisper().double(), (-1,))
    sound = torch.randn(2, 8, 20, dtype=torch.float64)
    start = torch.randn(2, 6, 32, dtype=torch.float64)
    grads = []
    for module, at in ((whole, -1), (narrow, 0)):
        leaf = sound.clone().requires_grad_(True)
        module(input_features=leaf, decoder_inputs_embeds=start).logits[:, at, 7].sum().backward()
        grads.append(leaf.grad)
    assert relative(grads[1], grads[0]) < EXACT
    cross = {f"model.decoder.layers.1.{name}" for name in ("encoder_attn.q_proj", "encoder_attn.out_proj", "fc1", "fc2")}
    assert cross | {"model.decoder.layers.1.self_attn.q_proj"} <= linears(narrow)


@pytest.mark.parametrize(
    ("positions", "said"),
    [("first", 'must be "last"'), ((), 'must be "last"'), (True, 'must be "last"'), (1.5, 'must be "last"')],
)
def test_what_is_no_position_is_refused(positions: Any, said: str) -> None:
    with pytest.raises(lxt_fx.InputError, match=said):
        lxt_fx.transform(tiny.Mlp(), (torch.randn(2, 6),), positions=positions)


def test_a_model_without_tokens_in_its_answer_is_refused() -> None:
    with pytest.raises(lxt_fx.InputError, match=r"no such output \(its float outputs: \[2, 3\]\); leave positions out"):
        lxt_fx.transform(tiny.Mlp(), (torch.randn(2, 6),), positions="last", dynamic=False)
    with pytest.raises(lxt_fx.InputError, match="no such output"):
        lxt_fx.transform(tiny.bert(), positions="last")


def test_a_position_that_a_text_does_not_have_is_refused() -> None:
    net, x = Decoder(written_out=False).eval(), torch.randn(2, 7, 8)
    with pytest.raises(lxt_fx.InputError, match=r"no position 7: the graph has logits for 7 tokens \(0 to 6, or -7"):
        lxt_fx.transform(net, (x,), positions=7, dynamic=False)
    narrow = lxt_fx.transform(net, (x,), positions=(5, -1))
    with pytest.raises(lxt_fx.CallError, match="answers at positions 5, -1, and these inputs have 4 tokens"):
        narrow(x[:, :4])


def test_the_record_and_the_printed_graph_say_which_positions(tmp_path: Path) -> None:
    narrow = lxt_fx.transform(tiny.llama(), positions="last")
    assert narrow.record.positions == (-1,)
    text = lxt_fx.show(narrow)
    assert "   positions last" in text.splitlines()[0]
    assert "lxt_fx.positions(%add_8, 1, [-1])" in text
    lxt_fx.save(narrow, tmp_path / "narrow.safetensors")
    loaded = lxt_fx.load(tmp_path / "narrow.safetensors")
    x = torch.randn(2, 5, 32)
    assert_same(loaded(inputs_embeds=x).logits, narrow(inputs_embeds=x).logits)
    assert loaded.record.positions == (-1,) and "positions last" in lxt_fx.show(loaded, "lowered")


def test_another_table_keeps_the_positions() -> None:
    model, x = tiny.llama().double(), torch.randn(2, 5, 32, dtype=torch.float64)
    narrow, kwargs = lxt_fx.transform(model, positions="last"), {"inputs_embeds": x}
    again = lxt_fx.transform(narrow, kwargs=kwargs, rules="cp_lrp")
    assert again.record.positions == (-1,) and again(**kwargs).logits.shape == (2, 1, 64)
    late = lxt_fx.transform(lxt_fx.transform(model), kwargs=kwargs, rules="cp_lrp", positions=-1)
    grads = []
    for module in (again, late):
        leaf = x.clone().requires_grad_(True)
        module(inputs_embeds=leaf).logits[:, 0, 3].sum().backward()
        grads.append(leaf.grad)
    assert late.record.positions == (-1,) and relative(grads[1], grads[0]) < EXACT
    with pytest.raises(lxt_fx.InputError, match="computes positions last only, and not 0"):
        lxt_fx.transform(narrow, kwargs=kwargs, positions=0)


def test_a_module_that_captures_again_keeps_the_positions() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "intermediate_size": 32}
    model = MambaForCausalLM(MambaConfig(**sizes)).double().eval()
    narrow = lxt_fx.transform(model, positions="last", dynamic="recapture")
    ids = torch.arange(3, 13)[None]
    logits = narrow(inputs_embeds=lxt_fx.embed(narrow, ids)).logits
    torch.testing.assert_close(logits, model(ids).logits[:, -1:])


def test_both_forms_and_the_audit_hold_for_a_narrowed_module() -> None:
    model, ids = tiny.llama().double(), torch.tensor([[3, 1, 4, 1, 5, 9]])
    source = captured_from(model, (), None, dynamic=True)
    fast, slow = (
        compiled_by(copied(source), table_named("attnlrp"), Options(form, 0.0, positions=(-1,)))
        for form in ("gradient", "explicit")
    )
    leaf = lxt_fx.embed(fast, ids)
    fast(inputs_embeds=leaf).logits[0, 0, 7].backward()
    other = lxt_fx.embed(slow, ids)
    logit = slow(inputs_embeds=other).logits[0, 0, 7]
    logit.backward(logit)
    assert relative(other.grad, leaf.detach() * leaf.grad) < 1e-6  # Llama casts its norms to float32
    ledger = lxt_fx.audit(fast, {"input_ids": ids})
    ledger.check()
    whole = lxt_fx.audit(compiled_by(source, table_named("attnlrp"), Options()), {"input_ids": ids})
    assert float(ledger.value.sum()) == pytest.approx(float(whole.value.sum()), rel=1e-12)


def test_explain_asks_for_the_position_of_its_target_only(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, asked = byte_tokenizer(), []
    model = text_llama(len(tokenizer))

    def compiled(source: Any, table: Any, options: Options) -> Explained:
        asked.append(options.positions)
        return compiled_by(source, table, options)

    monkeypatch.setattr("lxt_fx.compiler.call_capture.compiled_by", compiled)
    text, whole = "The capital of France is", lxt_fx.transform(model)
    targets: list[Any] = [None, lxt_fx.Target.at(1), (" Paris", " London"), lambda out: out.logits[0, -1, 5]]
    for target in targets:
        found = lxt_fx.explain(model, tokenizer, text, target)
        expected = lxt_fx.explain(whole, tokenizer, text, target)
        assert found.explained == expected.explained
        torch.testing.assert_close(found.relevance, expected.relevance, rtol=1e-4, atol=1e-6)
    assert asked == [(-1,), (-4,), None]  # the third call takes the module of the first


def test_a_target_elsewhere_is_refused_by_a_narrowed_module() -> None:
    tokenizer = byte_tokenizer()
    narrow = lxt_fx.transform(text_llama(len(tokenizer)), positions="last")
    lxt_fx.explain(narrow, tokenizer, "The capital of France is")
    with pytest.raises(lxt_fx.InputError, match="is at position 1, and this module was made to answer at 4 only"):
        lxt_fx.explain(narrow, tokenizer, "The capital of France is", lxt_fx.Target.at(1))


def test_the_op_takes_joined_dims_apart() -> None:
    x = torch.randn(2 * 5 * 3, 4, requires_grad=True)  # two texts of five tokens with three experts each
    for at in ([-1], [0, 1, -2], [4, 2], [-2, -1, 0]):
        expected = x.view(2, 5, 3, 4)[:, at].reshape(-1, 4)
        assert torch.equal(positions_op(x, 0, at, 5, 3), expected)
        assert torch.equal(positions_op(x.view(2, 5, 12), 1, at), x.view(2, 5, 12)[:, at])
    value = positions_op(x, 0, [-1], 5, 3)
    many = torch.autograd.grad(value, x, torch.eye(value.numel()).view(-1, *value.shape), is_grads_batched=True)[0]
    assert many.sum() == value.numel() and torch.equal(many.sum((0, 2)) > 0, torch.arange(30) % 15 >= 12)
