"""`transform` end to end: the same forward, any batch and length, frozen and shared parameters, a model left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from golden_cases import relative
from rounding import assert_same
from shared_captures import GOLDEN, each_model, explained, longer, one_worker, shared_model
from tiny import MODELS, TEXT, Mlp
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lxt_fx

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


def inputs_of(model: nn.Module, batch: int, length: int) -> dict[str, Tensor]:
    """Random inputs of a tiny model; `length` counts for text."""
    torch.manual_seed(batch * 100 + length)
    dtype = next(model.parameters()).dtype
    match type(model).__name__:
        case "ViTForImageClassification":
            return {"pixel_values": torch.randn(batch, 1, 8, 8, dtype=dtype)}
        case "WhisperForConditionalGeneration":
            features = torch.randn(batch, 8, 20, dtype=dtype)
            return {"input_features": features, "decoder_inputs_embeds": torch.randn(batch, length, 32, dtype=dtype)}
    mask = torch.ones(batch, length, dtype=torch.long)
    return {"inputs_embeds": torch.randn(batch, length, 32, dtype=dtype), "attention_mask": mask}


def gradients(module: Callable[..., object], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of a fixed projection of the logits at every float input."""
    leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in inputs.items()}
    logits = module(**leaves).logits  # type: ignore[attr-defined]
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).reshape(logits.shape)
    (logits * weights).sum().backward()
    return {k: v.grad for k, v in leaves.items() if v.grad is not None}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", each_model(MODELS))
def test_forward_equals_the_model_at_every_batch_and_length(name: str, dtype: torch.dtype) -> None:
    model, module = shared_model(name, dtype), explained(name, dtype)
    assert module.record.method == "torch.export" and module.record.specialised == ()
    for batch, length in [(1, 1), (1, 6), (2, 7), (3, 1), (5, 11)]:
        inputs = inputs_of(model, batch, length)
        expected, actual = model(**inputs).logits, module(**inputs).logits
        assert expected.shape == actual.shape
        assert (expected - actual).abs().max() <= TOLERANCES[dtype] * expected.abs().max()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", each_model(MODELS))
def test_table_gradient_gives_the_plain_gradient_of_the_model(name: str, attention: str) -> None:
    """With every rule native the plumbing must add nothing."""
    model, module = MODELS[name](attention).double(), explained(name, torch.float64, attention, rules="gradient")
    inputs = inputs_of(model, 2, 9)
    expected, actual = gradients(model, inputs), gradients(module, inputs)
    assert expected.keys() == actual.keys() == set(module.record.leaves)
    for leaf, gradient in expected.items():
        assert (gradient - actual[leaf]).abs().max() <= 1e-9 * gradient.abs().max()


@pytest.mark.parametrize("rules", ["attnlrp", "cp_lrp"])
@pytest.mark.parametrize("name", each_model(["llama", "bert", "vit"]))
def test_parameters_are_shared_and_get_no_gradient(name: str, rules: str) -> None:
    model, module = shared_model(name), explained(name, rules=rules)
    own, shared = dict(model.named_parameters()), dict(module.named_parameters())
    assert shared and all(own[path] is parameter for path, parameter in shared.items())
    gradients(module, inputs_of(model, 2, 5))
    assert all(parameter.grad is None for parameter in model.parameters())


def state_of(model: nn.Module) -> dict[str, object]:
    """All that transform must leave alone in a model and in torch."""
    return {
        "parameters": {k: (id(p), p.data_ptr(), p.clone(), p.requires_grad, p.grad) for k, p in model.named_parameters()},
        "modes": [module.training for module in model.modules()],
        "classes": [type(module) for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "forwards": [type(module).forward for module in model.modules()],
        "hooks": [
            [len(getattr(module, name)) for name in vars(module) if name.endswith("_hooks")] for module in model.modules()
        ],
        "config": copy.deepcopy(getattr(model, "config", None)).__dict__,
        "grad mode": torch.is_grad_enabled(),
        "random": torch.get_rng_state().clone(),
        "dtype": torch.get_default_dtype(),
        "attention": {name: ALL_ATTENTION_FUNCTIONS[name] for name in ALL_ATTENTION_FUNCTIONS},
    }


def assert_same_state(before: dict[str, object], after: dict[str, object]) -> None:
    for name, was in before.items():
        now = after[name]
        if name == "parameters":
            assert isinstance(was, dict) and isinstance(now, dict)
            for path, (identity, pointer, value, requires, gradient) in was.items():
                assert now[path][:2] == (identity, pointer) and now[path][3:] == (requires, gradient), path
                assert torch.equal(now[path][2], value), path
        elif name == "random":
            assert torch.equal(was, now)  # type: ignore[arg-type]
        else:
            assert was == now, name


@pytest.mark.parametrize(
    ("name", "rules"), [("llama", "cp_lrp"), ("bert", "attnlrp"), ("vit", "cp_lrp"), ("whisper", "attnlrp")]
)
def test_the_model_and_torch_are_left_as_they_were(name: str, rules: str) -> None:
    model = MODELS[name]()
    model.requires_grad_(True)
    next(model.parameters()).requires_grad_(False)
    inputs = inputs_of(model, 2, 5)
    before = state_of(model)
    gradients(lxt_fx.transform(model, rules=rules), inputs)
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("enabled", [True, False])
def test_grad_mode_survives_a_capture_that_fails(enabled: bool) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                raise RuntimeError("inside no_grad")

    with torch.set_grad_enabled(enabled):
        with pytest.raises(lxt_fx.LxtFxError, match="inside no_grad"):
            lxt_fx.transform(Broken(), (torch.randn(2, 3),))
        assert torch.is_grad_enabled() is enabled


def test_a_second_model_of_the_process_keeps_exact_gradients() -> None:
    first, second = MODELS["llama"](), MODELS["llama"]()
    inputs = inputs_of(second, 2, 6)
    before = gradients(second, inputs)["inputs_embeds"]
    gradients(lxt_fx.transform(first, rules="cp_lrp"), inputs)
    second.zero_grad()
    assert_same(gradients(second, inputs)["inputs_embeds"], before)


@one_worker("llama")
def test_two_tables_of_one_model_live_side_by_side() -> None:
    inputs = inputs_of(shared_model("llama"), 2, 6)
    tables = ("attnlrp", "cp_lrp")
    alone = {rules: gradients(explained("llama", rules=rules), inputs)["inputs_embeds"] for rules in tables}
    both = {rules: explained("llama", rules=rules) for rules in tables}
    for rules in ("cp_lrp", "attnlrp", "cp_lrp"):  # the same parameters in the same memory
        assert_same(gradients(both[rules], inputs)["inputs_embeds"], alone[rules])
    assert not torch.allclose(alone["attnlrp"], alone["cp_lrp"])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", each_model(TEXT))
def test_a_padded_example_has_the_relevance_of_that_example_alone(name: str, attention: str) -> None:
    module = explained(name, attention=attention)
    torch.manual_seed(1)
    examples = [torch.randn(1, length, 32) for length in (7, 4)]
    sides = ("right",) if name == "bert" else ("right", "left")
    for side in sides:
        embeds, mask, positions = padded(examples, side)
        embeds.requires_grad_()
        logits = module(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
        last = [y.max() if y.dim() == 1 else y[m == 1][-1].max() for y, m in zip(logits, mask, strict=True)]
        torch.stack(last).sum().backward()
        assert embeds.grad is not None
        for example, alone in enumerate(examples):
            alone = alone.clone().requires_grad_()
            out = module(inputs_embeds=alone).logits
            (out[0].max() if out.dim() == 2 else out[0, -1].max()).backward()
            assert alone.grad is not None
            expected = (alone * alone.grad)[0]
            found = (embeds * embeds.grad)[example][mask[example] == 1]
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert ((embeds * embeds.grad)[mask == 0] == 0).all()


def padded(examples: list[Tensor], side: str) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, mask and positions of a batch padded to its longest example."""
    length = max(example.shape[1] for example in examples)
    embeds, mask = torch.randn(len(examples), length, 32), torch.zeros(len(examples), length, dtype=torch.long)
    positions = torch.zeros_like(mask)
    for index, example in enumerate(examples):
        count = example.shape[1]
        where = slice(0, count) if side == "right" else slice(length - count, length)
        embeds[index, where], mask[index, where], positions[index, where] = example[0], 1, torch.arange(count)
    return embeds, mask, positions


IN_BFLOAT16 = pytest.mark.slow(
    "attention written out in bfloat16; float16, which overflows sooner, is tried on the same code"
)


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        pytest.param(name, attention, id=f"{name}-{attention}", marks=[one_worker(name), *longer(name), *more])
        for name in (*TEXT, *GOLDEN.values())
        for attention, more in (("sdpa", []), ("eager", [] if name in TEXT else [IN_BFLOAT16]))
    ],
)
def test_half_precision_gives_no_nan(name: str, attention: str) -> None:
    """float16 on the tiny models, bfloat16 on those of the golden cases, whose relevance test_golden.py compares. Attention
    written out is the same code in all that descend from Llama, and in both BERTs; Gemma's is tried on the tiny one."""
    if attention == "eager" and name in GOLDEN.values() and name.split("-")[0] not in ("llama", "bertcls", "gpt2"):
        pytest.skip("attention that another model has too")
    dtype = torch.float16 if name in TEXT else torch.bfloat16
    module = explained(name, dtype, attention)
    for embeds, mask in hard_inputs(dtype, module.record.sizes["inputs_embeds"][-1]):
        embeds.requires_grad_()
        logits = module(inputs_embeds=embeds, attention_mask=mask).logits
        chosen = logits[:, 0] if logits.dim() == 2 else logits[:, -1, 0]
        chosen.sum().backward()
        assert embeds.grad is not None and torch.isfinite(logits).all()
        assert torch.isfinite(embeds.grad).all() and torch.isfinite(embeds * embeds.grad).all()


def hard_inputs(dtype: torch.dtype, hidden: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Zeros, a text whose first positions are masked (so that causal queries see nothing), and one token."""
    torch.manual_seed(0)
    yield torch.zeros(2, 5, hidden, dtype=dtype), torch.ones(2, 5, dtype=torch.long)
    embeds = torch.randn(2, 5, hidden).to(dtype)
    embeds[0, 2] = 0
    yield embeds, torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
    yield torch.randn(2, 1, hidden).to(dtype), torch.ones(2, 1, dtype=torch.long)


@one_worker("llama")
def test_deepcopy_is_a_module_of_its_own() -> None:
    model, module = shared_model("llama"), explained("llama")
    twin = copy.deepcopy(module)
    inputs = inputs_of(model, 2, 6)
    # Weights elsewhere in memory may take another kernel.
    assert_same(gradients(twin, inputs)["inputs_embeds"], gradients(module, inputs)["inputs_embeds"])
    assert {id(p) for p in twin.parameters()}.isdisjoint({id(p) for p in module.parameters()})
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(lxt_fx.embed(twin, ids), lxt_fx.embed(module, ids))
    with torch.no_grad():
        next(twin.parameters()).mul_(2)
    assert relative(twin(**inputs).logits, module(**inputs).logits) > 1e-2
    assert_same(model(**inputs).logits, module(**inputs).logits)


@pytest.mark.parametrize("name", each_model(["llama", "gemma3", "bert", "vit"]))
def test_a_saved_module_loads_with_the_same_relevance(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    module = explained(name)
    lxt_fx.save(module, tmp_path / "explained.safetensors")
    loaded = lxt_fx.load(tmp_path / "explained.safetensors")
    inputs = inputs_of(shared_model(name), 3, 6)
    for leaf, gradient in gradients(module, inputs).items():
        assert_same(gradients(loaded, inputs)[leaf], gradient)
    assert loaded.record.leaves == module.record.leaves and "lxt_fx.linear" in lxt_fx.show(loaded, "lowered")
    if name != "vit":
        ids = torch.tensor([[3, 4, 5]])
        assert torch.equal(lxt_fx.embed(loaded, ids), lxt_fx.embed(module, ids))


@one_worker("llama")
def test_many_targets_come_from_one_forward() -> None:
    embeds = torch.randn(1, 5, 32, requires_grad=True)
    logits = explained("llama")(inputs_embeds=embeds).logits[0, -1, :4]
    (batched,) = torch.autograd.grad(logits, embeds, torch.eye(4), is_grads_batched=True, retain_graph=True)
    for index in range(4):
        (alone,) = torch.autograd.grad(logits[index], embeds, retain_graph=True)
        torch.testing.assert_close(batched[index], alone)


@one_worker("llama")
def test_readable_code_of_torch_fx_keeps_working() -> None:
    text = explained("llama").print_readable(print_output=False)
    assert "torch.ops.lxt_fx.rms_norm" in text and "torch.ops.lxt_fx.sdpa" in text


def test_any_module_is_explained_from_an_example() -> None:
    net = Mlp().eval()
    for example in (torch.randn(1, 6), torch.randn(4, 6)):
        explained = lxt_fx.transform(net, (example,))
        for batch in (1, 3):
            x = torch.randn(batch, 6, requires_grad=True)
            torch.testing.assert_close(explained(x), net(x))
            torch.testing.assert_close(explained(x=x), net(x))


def test_a_size_that_the_code_reads_as_a_number_is_fixed_and_said() -> None:
    class CountsRows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(0, keepdim=True).expand(len(x), -1) * 2

    explained = lxt_fx.transform(CountsRows(), (torch.randn(3, 4),))
    assert explained.record.specialised
    x = torch.randn(3, 4)
    assert_same(explained(x), CountsRows()(x))
    with pytest.raises(lxt_fx.CallError, match=r"was captured for \[3, 'any'\]"):
        explained(torch.randn(2, 4))


def test_a_model_that_export_refuses_is_traced_and_says_so() -> None:
    class Refused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            steps = int(x.abs().sum().item() > 0) + 1
            for _ in range(steps):
                x = torch.tanh(self.linear(x))
            return x

    net = Refused().eval()
    x = torch.randn(2, 4)
    explained = lxt_fx.transform(net, (x,))
    assert explained.record.method == "make_fx"
    assert "x [2, 4]" in explained.record.specialised[0] and "fixed: all sizes" in lxt_fx.show(explained)
    assert_same(explained(x), net(x))
    assert dict(explained.named_parameters())["linear.weight"] is net.linear.weight
    leaf = x.clone().requires_grad_()
    explained(leaf).sum().backward()
    assert leaf.grad is not None and net.linear.weight.grad is None
