"""Queries and keys of decoders as sums over writers, by hooks on the plain model: for the tests of QK attribution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LAYER = 1
"""The layer whose scores are read; layer 0 writes what it reads."""


class ExactNorm(nn.Module):
    """An RMS norm that casts nothing to float32, of Llama, Qwen 2 and Gemma 3."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        weight = norm.weight.detach().double()
        self.weight = nn.Parameter(1 + weight if "Gemma" in type(norm).__name__ else weight)
        self.eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def exact(model: nn.Module) -> nn.Module:
    """The model in float64, whose norms do not cast to float32."""
    model = model.double()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, ExactNorm(child))
    return model


@contextmanager
def recorded(modules: dict[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Input and output of each module in a call of the model."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Any:
        def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            found[name] = (given.detach(), (output[0] if isinstance(output, tuple) else output).detach())

        return record

    handles = [each.register_forward_hook(hook(name), with_kwargs=True) for name, each in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def held(norm: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    """What an RMS norm makes of x, with the factor that it had in the call."""
    return x * (norm[1] / norm[0])


def parts(model: Any, ids: Tensor, head: int, *, rotated: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What each writer makes of the queries (times the scale) and of the keys of a head of layer 1, [tokens, size]; before
    positions rotate them, and without the scale, if not `rotated`."""
    made = _gpt2 if hasattr(model, "transformer") else _llama
    return made(model, ids, head, rotated)


def rotary(model: Any, tokens: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of layer 1, [1, tokens, size]."""
    kinds = [model.config.layer_types[LAYER]] if "Gemma" in type(model).__name__ else []
    cos, sin = model.model.rotary_emb(model.lm_head.weight, torch.arange(tokens)[None], *kinds)
    return cos, sin


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def llama_query(model: Any, norm: tuple[Tensor, Tensor], added: Tensor, head: int) -> Tensor:
    """What something that is added to the stream makes of the queries of a head of layer 1 of a Llama, [tokens, size]."""
    attention = model.model.layers[LAYER].self_attn
    at = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
    raw = held(norm, added) @ attention.q_proj.weight[at].T
    return (turned(raw, *rotary(model, added.shape[-2]))[0] * attention.scaling).detach()


def _llama(model: Any, ids: Tensor, head: int, rotated: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    first, own = model.model.layers[0], model.model.layers[LAYER]
    attention, config = own.self_attn, model.config
    gemma = hasattr(own, "pre_feedforward_layernorm")
    modules = {"first": first, "o": first.self_attn.o_proj, "mlp": first.mlp, "norm": own.input_layernorm}
    if gemma:
        modules |= {"behind": first.post_attention_layernorm, "mlp": first.post_feedforward_layernorm}
        modules |= {"q": attention.q_norm, "k": attention.k_norm}
    with recorded(modules) as found, torch.no_grad():
        model(input_ids=ids)
    size = attention.head_dim
    written = {"embedding": found["first"][0]}
    for unit in range(config.num_attention_heads):
        at = slice(unit * size, (unit + 1) * size)
        added = found["o"][0][..., at] @ first.self_attn.o_proj.weight[:, at].T
        written[f"attention.0.heads:{unit}"] = held(found["behind"], added) if gemma else added
    written["mlp.0.output"] = found["mlp"][1]
    cos, sin = rotary(model, ids.shape[1])

    def made(kind: str, unit: int, x: Tensor | None) -> Tensor:
        projection, at = getattr(attention, f"{kind}_proj"), slice(unit * size, (unit + 1) * size)
        if x is None:
            bias = projection.bias
            raw = (torch.zeros(size).double() if bias is None else bias[at]).expand(*ids.shape, size)
        else:
            raw = held(found["norm"], x) @ projection.weight[at].T
        if gemma:
            raw = held(tuple(each[:, unit] for each in found[kind]), raw)
        return (turned(raw, cos, sin) if rotated else raw)[0].detach()

    of = head * config.num_key_value_heads // config.num_attention_heads
    scale = attention.scaling if rotated else 1.0
    queries = {name: made("q", head, x) * scale for name, x in written.items()} | {"bias": made("q", head, None) * scale}
    return queries, {name: made("k", of, x) for name, x in written.items()} | {"bias": made("k", of, None)}


def _gpt2(model: Any, ids: Tensor, head: int, rotated: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    net = model.transformer
    first, own = net.h[0], net.h[LAYER]
    with recorded({"o": first.attn.c_proj, "mlp": first.mlp, "norm": own.ln_1}) as found, torch.no_grad():
        model(input_ids=ids)
    width, size = model.config.n_embd, model.config.n_embd // model.config.n_head
    written = {"embedding:tokens": net.wte(ids), "embedding:positions": net.wpe(torch.arange(ids.shape[1]))[None]}
    for unit in range(model.config.n_head):
        at = slice(unit * size, (unit + 1) * size)
        written[f"attention.0.heads:{unit}"] = found["o"][0][..., at] @ first.attn.c_proj.weight[at]
    written |= {"mlp.0.output": found["mlp"][1], "rest": first.attn.c_proj.bias.expand(*ids.shape, width)}
    deviation = (found["norm"][0].var(-1, correction=0, keepdim=True) + own.ln_1.eps).sqrt()

    def made(part: int, x: Tensor | None) -> Tensor:
        at = slice(part * width + head * size, part * width + (head + 1) * size)
        weight, bias = own.attn.c_attn.weight[:, at], own.attn.c_attn.bias[at]
        if x is None:
            return (own.ln_1.bias @ weight + bias).expand(ids.shape[1], size).detach()
        return ((x - x.mean(-1, keepdim=True)) / deviation * own.ln_1.weight @ weight)[0].detach()

    queries, keys = ({name: made(part, x) for name, x in (written | {"bias": None}).items()} for part in (0, 1))
    return {name: value / size**0.5 if rotated else value for name, value in queries.items()}, keys


@contextmanager
def moved_query(model: Any, position: int, head: int, by: Tensor) -> Iterator[None]:
    """The queries of this head of layer 1 at one position move by so much, before positions rotate them, in the model."""
    attention = model.transformer.h[LAYER].attn if hasattr(model, "transformer") else model.model.layers[LAYER].self_attn
    gemma, size = hasattr(attention, "q_norm"), by.shape[-1]

    def move(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        if gemma:
            output[0, head, position] += by
        else:
            output[0, position, head * size : (head + 1) * size] += by
        return output

    where = attention.q_norm if gemma else attention.c_attn if hasattr(attention, "c_attn") else attention.q_proj
    handle = where.register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def added_to_scores(model: Any, by: Tensor) -> Iterator[None]:
    """This is added to the scores [1, heads, queries, keys] of layer 1, in the model."""
    layer = model.transformer.h[LAYER].attn if hasattr(model, "transformer") else model.model.layers[LAYER].self_attn
    count = by.shape[-1]

    def add(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(count, count, dtype=torch.bool).tril()[None, None]
        if mask.dtype is torch.bool:
            mask = torch.zeros(mask.shape, dtype=by.dtype).masked_fill(~mask, torch.finfo(by.dtype).min)
        return args, {**kwargs, "attention_mask": mask + by}

    handle = layer.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def wide_softmax() -> Iterator[None]:
    """The softmax of eager attention in the dtype of its scores: the models cast it to float32."""
    softmax = torch.nn.functional.softmax
    torch.nn.functional.softmax = lambda x, dim=-1, dtype=None: softmax(x, dim)
    try:
        yield
    finally:
        torch.nn.functional.softmax = softmax


def attended(model: Any, ids: Tensor, layer: int) -> Tensor:
    """The pattern [heads, queries, keys] of a model with eager attention."""
    with wide_softmax(), torch.no_grad():
        found: Tensor = model(input_ids=ids, output_attentions=True).attentions[layer][0]
    return found


class Block(nn.Module):
    """A block of plain PyTorch, whose heads of keys and values are shared by torch's attention or copied before it."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.shared = shared
        self.norms = nn.ModuleList([nn.LayerNorm(16), nn.LayerNorm(16)])
        self.q, self.k, self.v, self.o = (nn.Linear(16, width) for width in (16, 8, 8, 16))
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        q, k, v = (each(y).unflatten(-1, (-1, 4)).transpose(1, 2) for each in (self.q, self.k, self.v))
        if not self.shared:
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.shared)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


class Decoder(nn.Module):
    """Two blocks between an embedding and logits."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.blocks = nn.Embedding(64, 16), nn.ModuleList([Block(shared), Block(shared)])
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 64)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(self.norm(x))}
