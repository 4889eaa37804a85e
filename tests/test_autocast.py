"""Mixed precision by `torch.autocast`: around the call of an explained module, around `transform` and the functions of the
public door, and inside the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from shared_captures import each_model, explained, shared_model
from tiny_text import byte_tokenizer, llama
from torch import Tensor, nn
from transformers import (
    Ernie4_5_MoeConfig,
    Ernie4_5_MoeForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import lxt_fx
from lxt_fx.ops import contributions, fused, library
from lxt_fx.ops.dtype_limits import limit_of
from lxt_fx.passes.capture import capture as capturing

pytestmark = pytest.mark.usefixtures("remembered_captures")

IDS = torch.tensor([[5, 9, 17, 23, 11, 7], [3, 4, 8, 60, 1, 2]])
ROUNDED = {torch.bfloat16: 5e-2, torch.float16: 8e-3}
"""Relative L2 by which gradients and relevance under autocast may differ from those without; measured on the models below:
up to 3.3e-2 (T5) and 2.7e-3."""


def _made(kind: type[nn.Module], config: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind(config).eval().requires_grad_(False)


def mamba() -> nn.Module:
    return _made(MambaForCausalLM, MambaConfig(vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=1, expand=2))


def mixtral() -> nn.Module:
    return _made(
        MixtralForCausalLM, MixtralConfig(**tiny.SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    )


def t5() -> nn.Module:
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0)
    return _made(T5ForConditionalGeneration, config)


def router_without_autocast() -> nn.Module:
    """Its router is a linear map of the hidden states in a block that switches autocast off."""
    config = Ernie4_5_MoeConfig(
        **tiny.SIZES, num_key_value_heads=2, head_dim=8, moe_num_experts=4, moe_k=2, moe_intermediate_size=16,
        moe_layer_start_index=0, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return _made(Ernie4_5_MoeForCausalLM, config)


OWN = {made.__name__: made for made in (mamba, mixtral, t5, router_without_autocast)}
SHARED = ("llama", "gemma3", "gpt2", "bert", "vit")


def inputs_of(name: str, model: nn.Module) -> dict[str, Tensor]:
    if name == "vit":
        return {"pixel_values": torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
    embeds: Tensor = model.get_input_embeddings()(IDS).detach()  # type: ignore[operator]
    return {"inputs_embeds": embeds, "decoder_inputs_embeds": embeds[:, :4]} if name == "t5" else {"inputs_embeds": embeds}


@cache
def own_model(name: str) -> nn.Module:
    return OWN[name]()


def case(name: str, rules: str, **options: Any) -> tuple[nn.Module, lxt_fx.Explained, dict[str, Tensor]]:
    if name in SHARED:
        model = shared_model(name)
        return model, explained(name, rules=rules, **options), inputs_of(name, model)
    model = own_model(name)
    inputs = inputs_of(name, model)
    return model, lxt_fx.transform(model, kwargs=inputs, rules=rules, **options), inputs


def called(
    module: Callable[..., Any], inputs: dict[str, Tensor], dtype: torch.dtype | None, *, inside: bool = False
) -> tuple[Tensor, Tensor]:
    """The logits under autocast of this dtype, and the gradient of the last of them at all leaves, computed inside the
    autocast block or behind it. The module may be in either form."""
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    form = module.record.form if isinstance(module, lxt_fx.Explained) else "gradient"
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        logits = module(**leaves).logits
        picked = logits[0].flatten()[-2].float()
        seed = picked.detach() if form == "explicit" else None
        if inside:
            gradients = torch.autograd.grad(picked, list(leaves.values()), seed)
    if not inside:
        gradients = torch.autograd.grad(picked, list(leaves.values()), seed)
    return logits.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def off(found: Tensor, expected: Tensor) -> float:
    """Relative L2."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("name", [*each_model(SHARED), *OWN])
def test_a_call_gives_what_the_model_gives_under_the_same_autocast(name: str) -> None:
    model, module, inputs = case(name, "gradient")
    for dtype, allowed in ROUNDED.items():
        (logits, gradient), (expected, wanted) = called(module, inputs, dtype), called(model, inputs, dtype)
        assert off(logits, expected) < allowed / 2
        assert off(gradient, wanted) < allowed
        if name not in ("mamba", "gemma3"):  # Mamba casts its logits to float32, which capture drops
            assert logits.dtype is expected.dtype is dtype


@pytest.mark.parametrize("name", [*each_model(SHARED), *OWN])
def test_relevance_under_autocast_is_that_without_in_either_place_of_the_backward(name: str) -> None:
    _, module, inputs = case(name, "attnlrp")
    _, without = called(module, inputs, None)
    for dtype, allowed in ROUNDED.items():
        _, found = called(module, inputs, dtype)
        _, inside = called(module, inputs, dtype, inside=True)
        assert off(found, without) < allowed
        assert torch.equal(found, inside)  # our backward runs in the dtypes of its forward


@pytest.mark.parametrize("rules", ["attnlrp", "epsilon_plus"])
def test_a_backward_under_autocast_of_a_forward_without_it_stays_in_float32(rules: str) -> None:
    """Ops of ours do not compute in another dtype than their forward; those of torch do."""
    module = explained("llama", rules=rules)
    leaf = inputs_of("llama", shared_model("llama"))["inputs_embeds"].requires_grad_()
    picked = module(inputs_embeds=leaf).logits[0, -1, 7]
    (expected,) = torch.autograd.grad(picked, leaf, retain_graph=True)
    (found,) = under(torch.bfloat16, lambda: torch.autograd.grad(picked, leaf))
    assert off(found, expected) < 5e-2
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = contributions.GAMMA.linear(x, torch.rand(3, 4), gamma=0.5).sum()
    y = y + fused.linears(x, [torch.rand(3, 4)] * 2, [None] * 2, [0.5, 0.25])[1].sum()
    (alone,) = torch.autograd.grad(y, x, retain_graph=True)
    assert torch.equal(under(torch.bfloat16, lambda: torch.autograd.grad(y, x))[0], alone)


@pytest.mark.parametrize("name", each_model(["llama", "vit"]))
def test_both_forms_agree_under_autocast(name: str) -> None:
    _, fast, inputs = case(name, "attnlrp")
    _, slow, _ = case(name, "attnlrp", form="explicit")
    leaf = torch.cat([value.flatten() for value in inputs.values()])
    assert off(called(slow, inputs, torch.bfloat16)[1], leaf * called(fast, inputs, torch.bfloat16)[1]) < 5e-2


def test_positions_checkpoints_tables_and_saved_files_follow_autocast(tmp_path: Path) -> None:
    inputs = inputs_of("llama", shared_model("llama"))
    logits, gradient = called(explained("llama"), inputs, torch.bfloat16)
    lxt_fx.save(explained("llama"), tmp_path / "llama.lxt")
    others = {
        "positions": explained("llama", positions="last"),
        "checkpoint": explained("llama", checkpoint="layers"),
        "loaded": lxt_fx.load(tmp_path / "llama.lxt"),
    }
    for module in others.values():
        for inside in (False, True):
            found, passed = called(module, inputs, torch.bfloat16, inside=inside)
            assert off(found, logits[:, -found.shape[1] :]) < 1e-2
            assert off(passed, gradient) < 1e-2
    for rules in ("epsilon_plus", "attnlrp_gamma"):
        module = explained("llama", rules=rules)
        with_it, without = called(module, inputs, torch.bfloat16)[1], called(module, inputs, None)[1]
        assert off(with_it, without) < 5e-2


def test_a_compiled_call_follows_autocast() -> None:
    inputs = inputs_of("llama", shared_model("llama"))
    logits, gradient = called(explained("llama"), inputs, torch.bfloat16)
    compiled = torch.compile(explained("llama"), fullgraph=True, backend="aot_eager")
    leaf = inputs["inputs_embeds"].clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = compiled(inputs_embeds=leaf).logits
    found[0].flatten()[-2].float().backward()
    assert found.dtype is torch.bfloat16
    assert off(found.detach(), logits) < 1e-2
    assert leaf.grad is not None
    assert off(leaf.grad.flatten(), gradient) < 1e-2


def test_a_call_without_autocast_runs_none_of_this(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entered(Exception):
        pass

    def entered() -> Any:
        raise Entered

    module, inputs = explained("gpt2"), inputs_of("gpt2", shared_model("gpt2"))
    monkeypatch.setattr(library, "autocast_off", entered)
    called(module, inputs, None)
    with pytest.raises(Entered):
        called(module, inputs, torch.bfloat16)


def test_autocast_switched_off_inside_autocast_is_no_autocast() -> None:
    module, inputs = explained("llama"), inputs_of("llama", shared_model("llama"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = called(module, inputs, None, inside=True)
    for each, expected in zip(found, called(module, inputs, None), strict=True):
        assert torch.equal(each, expected)


# The public door


def under(dtype: torch.dtype | None, call: Callable[[], Any]) -> Any:
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        return call()


def test_transform_under_autocast_makes_the_same_module_and_restores_it() -> None:
    x = torch.randn(2, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = lxt_fx.transform(tiny.Mlp().eval(), (x,))
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
        with pytest.raises(lxt_fx.InputError):
            lxt_fx.transform(tiny.Mlp().eval())
        assert torch.is_autocast_enabled("cpu")
    made = lxt_fx.transform(tiny.Mlp().eval(), (x,))
    assert lxt_fx.show(found, "fused") == lxt_fx.show(made, "fused")
    assert torch.equal(found(x), made(x))


@cache
def words() -> Any:
    return byte_tokenizer()


@cache
def speaker() -> nn.Module:
    return llama(len(words()))


IMAGE = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(1))
DOORS: dict[str, Callable[[], Tensor]] = {
    "explain": lambda: lxt_fx.explain(speaker(), words(), "The capital of France is", " Paris").relevance,
    "explain by name": lambda: lxt_fx.explain(speaker(), words(), "The capital", " of France").relevance,
    "explain_image": lambda: lxt_fx.explain_image(explained("vit"), IMAGE, 3).relevance,
    "answer": lambda: lxt_fx.answer_relevance(explained("llama"), None, [5, 9, 17], [7, 3, 8]).relevance,
    "many": lambda: lxt_fx.relevance_of(explained("llama"), {"input_ids": IDS}, [7, 3, lxt_fx.Target.at(2, 5)]),
    "many by function": lambda: lxt_fx.relevance_of(explained("bert"), {"input_ids": IDS}, lambda out: out.logits[0]),
}


@pytest.mark.parametrize("door", DOORS)
def test_functions_of_the_public_door_follow_autocast(door: str) -> None:
    expected, found = under(None, DOORS[door]), under(torch.bfloat16, DOORS[door])
    assert found.dtype is torch.float32
    assert 0 < off(found, expected) < 5e-2


def test_watched_relevance_follows_autocast() -> None:
    module, inputs = explained("llama"), inputs_of("llama", shared_model("llama"))
    found = {}
    for dtype in (None, torch.bfloat16):
        with lxt_fx.watch(module, "model.layers.*") as layers:
            leaf = inputs["inputs_embeds"].clone().requires_grad_()
            under(dtype, lambda: module(inputs_embeds=leaf).logits)[0, -1, 7].backward()  # noqa: B023
        found[dtype] = torch.stack([layers[name].relevance.float() for name in layers])
    assert 0 < off(found[torch.bfloat16], found[None]) < 5e-2


def test_curves_and_tuning_follow_autocast() -> None:
    pixels = IMAGE[None]

    def curves() -> Tensor:
        relevance = lxt_fx.explain_image(explained("vit"), IMAGE, 3).relevance[None]
        return lxt_fx.perturbation_curves(explained("vit"), pixels, relevance, 3).morf

    assert off(under(torch.bfloat16, curves), under(None, curves)) < 5e-2
    grid = {"linear": [0.0, 0.1]}
    best = under(torch.bfloat16, lambda: lxt_fx.tune(explained("vit"), pixels, 3, grid=grid, progress=False)).best
    assert bool(best.values.isfinite().all())


def test_the_audit_runs_without_autocast() -> None:
    def audited() -> str:
        return str(lxt_fx.audit(explained("llama"), {"input_ids": IDS}, 7).check())

    assert under(torch.bfloat16, audited) == audited()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_grad_modes_around_the_public_door_change_nothing(mode: Callable[[], Any]) -> None:
    x, net = torch.randn(2, 6), tiny.Mlp().eval()
    expected = lxt_fx.transform(net, (x,))
    assert speaker() is speaker()  # made outside: parameters made in inference mode have no gradients
    with mode():
        module = lxt_fx.transform(net, (x,))
        assert torch.equal(module(x), expected(x))
        assert not module(x.clone().requires_grad_()).requires_grad
        found = {door: DOORS[door]() for door in ("explain", "explain_image", "answer", "many")}
        made = lxt_fx.explain_image(explained("vit"), IMAGE + 0, 3).relevance  # an inference tensor
    leaf = x.clone().requires_grad_()
    module(leaf)[0, 1].backward()
    assert leaf.grad is not None
    for door, relevance in found.items():
        torch.testing.assert_close(relevance, DOORS[door]())
    torch.testing.assert_close(made, found["explain_image"])


class Masked(nn.Module):
    """Attention in which the first query sees nothing, with the mask written in four ways."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scores = self.q(x) @ self.k(x).mT
        seen = (torch.ones_like(scores).tril() > 0) & (torch.arange(5) > 0)
        lowest = torch.finfo(scores.dtype).min
        masked = (
            scores.masked_fill(~seen, lowest),
            torch.where(seen, scores, lowest),
            torch.where(seen, scores, torch.full((), lowest, dtype=scores.dtype)),
            torch.where(seen, scores, -torch.inf).clamp(min=lowest),
        )
        return tuple(each.softmax(-1) @ x for each in masked)


def test_the_lowest_number_of_a_dtype_is_that_of_the_dtype_under_autocast() -> None:
    """float32's does not fit into bfloat16, and -inf gives NaN where a query sees nothing."""
    model, x = Masked().eval(), torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    module = lxt_fx.transform(model, (x,))
    for dtype in (None, torch.bfloat16, torch.float16):
        expected = torch.stack(under(dtype, lambda: model(x)))
        assert bool(expected.isfinite().all())
        assert torch.equal(torch.stack(under(dtype, lambda: module(x))), expected)
        with lxt_fx.watch(module, "q"):
            assert torch.equal(torch.stack(under(dtype, lambda: module(x))), expected)


# Inside the model


class Net(nn.Module):
    """Two linear layers around a function of both."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def active(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = net.b(nn.functional.gelu(net.a(net.norm(x))))
        scores = nn.functional.scaled_dot_product_attention(hidden[None], x[None], x[None])[0]
    return scores.float() * x


def nested(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.float16):
        hidden = net.a(x)
        with torch.autocast("cpu", enabled=False):
            hidden = hidden.float() @ x.mT.softmax(-1)
        return net.b(hidden @ x).float()


def no_grad_inside(net: Any, x: Tensor) -> Tensor:
    """torch.export loses such a no_grad."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = net.a(x)
        with torch.no_grad():
            scale = net.b(x).float().mean(-1, keepdim=True)
        return (net.b(hidden) * scale).float()


def in_loop(net: Any, x: Tensor) -> Tensor:
    """Traced on real tensors, since it reads a value."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = net.a(x)
        if bool((x.detach() < 1e6).all()):
            hidden = net.b(hidden)
    return hidden.float()


def passed_by(module: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    (gradient,) = torch.autograd.grad(y.float()[:, :2].sum(), leaf)
    return y.detach(), gradient


def explained_by(module: lxt_fx.Explained, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    value = module(leaf)[0, 1]
    seed = value.detach() if module.record.form == "explicit" else torch.ones(())
    (gradient,) = torch.autograd.grad(value, leaf, seed)
    return gradient if module.record.form == "explicit" else leaf.detach() * gradient


@pytest.mark.parametrize("function", [active, nested, no_grad_inside, in_loop])
@pytest.mark.parametrize("by", ["torch.export", "make_fx"])
def test_a_block_of_the_model_under_autocast_becomes_casts(
    function: Callable[[Any, Tensor], Tensor], by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "make_fx":
        monkeypatch.setattr(capturing, "_export", lambda *args, **kwargs: 1 / 0)
    net, x = Net(function).eval().requires_grad_(False), torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    plain = lxt_fx.transform(net, (x,), rules="gradient")
    for dtype, allowed in ((None, 0.0), (torch.bfloat16, 1e-2)):
        found, expected = under(dtype, lambda: passed_by(plain, x)), under(dtype, lambda: passed_by(net, x))
        assert off(found[0], expected[0]) <= allowed
        assert off(found[1], expected[1]) < 1e-2
    relevance = [lxt_fx.transform(net, (x,), form=form) for form in ("gradient", "explicit")]
    fast, slow = (explained_by(module, x) for module in relevance)
    assert off(slow, fast) < 5e-2


def angles(net: Any, x: Tensor) -> Tensor:
    """As in the rotary embedding of transformers 4: in bfloat16, position 257 would be 256."""
    positions = torch.arange(250, 250 + x.shape[0]).float()
    with torch.autocast("cpu", enabled=False):
        turned = (positions[:, None] @ torch.linspace(0.1, 1, 6)[None]).cos()
    return net.a(x * turned)


def island(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        hidden = nn.functional.linear(x.float(), net.a.weight * 300)
    return net.b(hidden.sin())


@pytest.mark.parametrize("function", [angles, island])
def test_a_block_that_switches_autocast_off_does_so_under_the_callers(function: Callable[[Any, Tensor], Tensor]) -> None:
    net, x = Net(function).eval().requires_grad_(False), torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    for rules in ("gradient", "attnlrp"):
        module = lxt_fx.transform(net, (x,), rules=rules)
        for dtype in (None, torch.bfloat16):
            found, expected = (under(dtype, partial(passed_by, each, x)) for each in (module, net))
            assert off(found[0], expected[0]) < 1e-6
            if rules == "gradient":
                assert off(found[1], expected[1]) < 1e-2
    lxt_fx.audit(module, (x,), lambda out: out[:, 0]).check()


WRITES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_add": lambda x, y: x.index_add(0, torch.tensor([0, 2]), y[:2].to(x.dtype)),
    "masked_scatter": lambda x, y: x.masked_scatter(torch.arange(3)[:, None] == 1, y[1:2].to(x.dtype)),
    "scatter": lambda x, y: x.scatter(1, torch.zeros(3, 1, dtype=torch.long), y[:, :1].to(x.dtype)),
    "scatter_add": lambda x, y: x.scatter_add(1, torch.zeros(3, 1, dtype=torch.long), y[:, :1].to(x.dtype)),
    "index_put": lambda x, y: x.index_put((torch.tensor([0, 1]),), y[:2].to(x.dtype)),
    "lerp": lambda x, y: torch.lerp(x, y.to(x.dtype), 0.3),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_narrow_value_is_written_into_a_wide_one(write: str) -> None:
    """The cast to the dtype of the other changes nothing where the model is captured, and is not in the graph."""
    net = Net(lambda net, x: net.b(WRITES[write](x, net.a(x)))).eval().requires_grad_(False)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    module = lxt_fx.transform(net, (x,), rules="gradient")
    found, expected = under(torch.bfloat16, lambda: passed_by(module, x)), under(torch.bfloat16, lambda: passed_by(net, x))
    assert torch.equal(found[0], expected[0]) and off(found[1], expected[1]) < 1e-6
    with lxt_fx.watch(module, "b"):
        assert torch.equal(under(torch.bfloat16, lambda: module(x.clone().requires_grad_())), expected[0])


def test_a_limit_of_a_narrower_dtype_stays() -> None:
    """SEW-D fills a float64 score with the lowest number of float32, as a tensor."""
    lowest = torch.tensor(torch.finfo(torch.float32).min)
    assert limit_of(lowest, torch.ones(2, dtype=torch.float64)) is lowest
    assert limit_of(lowest, torch.ones(2, dtype=torch.bfloat16)) == torch.finfo(torch.bfloat16).min
