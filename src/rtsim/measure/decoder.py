"""A plain decoder in PyTorch functions: GPT-2/3, Llama and Mixtral blocks, prefill and decode.

Two families, as `generation` tables know them: with a gated MLP it has RMSNorm, rotary positions,
no biases and an output head of its own (Llama), experts in place of the MLP if it has any
(Mixtral); without, LayerNorm, biases, learned positions and tied embeddings (GPT-2). Weights are
random. No module classes: what the host pays is the operators and this file's few lines.

A layer writes its keys and values into the cache with a copy each and attends through
scaled_dot_product_attention; logits are computed for the last token, the next one is the largest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rtsim.measure.moe import experts_layer, grouped_product
from rtsim.measure.torch_formats import random, torch_dtype

EPSILON = 1e-5
ROTARY_BASE = 10000.0

Weights = dict[str, Any]
Layer = Callable[..., Any]


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, named as the columns of a `generation` table."""

    model: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    ffn_size: int
    vocab_size: int
    gated_mlp: int = 1
    num_experts: int = 0
    top_k: int = 0

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads

    @property
    def layer_parameters(self) -> int:
        """Matrix elements of a layer."""
        return self._attention + self._mlp * max(self.num_experts, 1)

    @property
    def parameters(self) -> int:
        """Matrix elements in all: layers, embedding and an output head of its own."""
        heads = 2 if self.gated_mlp else 1
        return self.num_layers * self.layer_parameters + heads * self.vocab_size * self.hidden_size

    @property
    def active_parameters(self) -> int:
        """Matrix elements that a token is multiplied with, but for the output head."""
        return self.num_layers * (self._attention + self._mlp * max(self.top_k, 1))

    @property
    def _attention(self) -> int:
        heads = self.num_heads + 2 * self.num_kv_heads
        return self.hidden_size * self.head_dim * (heads + self.num_heads)

    @property
    def _mlp(self) -> int:
        return (3 if self.gated_mlp else 2) * self.hidden_size * self.ffn_size


@dataclass
class Decoder:
    """Weights of a decoder and a cache for `batch` sequences of up to `longest` tokens.

    layer: `decoder_layer`, or what a compiler made of it.
    """

    shape: Shape
    dtype: str
    device: str
    layer: Layer
    layers: list[Weights] = field(default_factory=list)
    ends: Weights = field(default_factory=dict)
    cache: list[tuple[Any, Any]] = field(default_factory=list)
    angles: tuple[Any, Any] | None = None

    def allocate(self, batch: int, longest: int) -> None:
        """An empty cache, and the angles of its positions."""
        import torch

        s, stored = self.shape, torch_dtype(self.dtype)
        size = (batch, s.num_kv_heads, longest, s.head_dim)
        self.cache = []  # the old one first
        self.cache = [
            (torch.zeros(size, dtype=stored, device=self.device),
             torch.zeros(size, dtype=stored, device=self.device))
            for _ in self.layers
        ]  # fmt: skip
        rates = ROTARY_BASE ** -(torch.arange(0, s.head_dim, 2, device=self.device) / s.head_dim)
        phase = torch.arange(longest, device=self.device)[:, None] * rates
        self.angles = phase.cos().to(stored), phase.sin().to(stored)
        if not s.gated_mlp:
            self.ends["positions"] = random((longest, s.hidden_size), stored, self.device)

    def forward(self, tokens: Any, start: int) -> Any:
        """Logits [batch, vocab] after `tokens` [batch, new], the first at position `start`."""
        from torch.nn import functional

        s, end = self.shape, start + tokens.shape[1]
        prompt, grouped = tokens.shape[1] > 1, s.num_heads != s.num_kv_heads
        x = functional.embedding(tokens, self.ends["embedding"])
        cos_sin = None
        if s.gated_mlp and self.angles is not None:
            cos_sin = self.angles[0][start:end], self.angles[1][start:end]
        else:
            x = x + self.ends["positions"][start:end]
        for weights, (keys, values) in zip(self.layers, self.cache, strict=True):
            x = self.layer(x, weights, keys, values, start, prompt, grouped, cos_sin, s)
        x = _norm(x[:, -1], self.ends, "norm", s)
        return functional.linear(x, self.ends["head"])


def make(shape: Shape, dtype: str, device: str, layer: Layer | None = None) -> Decoder:
    """A decoder with random weights, scaled so that activations keep their size."""
    import torch

    s, stored = shape, torch_dtype(dtype)
    h, d, wide = s.hidden_size, s.head_dim, (2 if s.gated_mlp else 1) * s.ffn_size

    def matrix(*size: int, inner: int) -> Any:
        return random(size, stored, device, inner**-0.5)

    def one_layer() -> Weights:
        ones = torch.ones(h, dtype=stored, device=device)
        w = {
            "norm1": ones, "norm2": ones.clone(),
            "qkv": matrix((s.num_heads + 2 * s.num_kv_heads) * d, h, inner=h),
            "out": matrix(h, s.num_heads * d, inner=h),
        }  # fmt: skip
        if s.num_experts:
            w["router"] = matrix(s.num_experts, h, inner=h)
            w["up"] = matrix(s.num_experts, h, wide, inner=h)
            w["down"] = matrix(s.num_experts, s.ffn_size, h, inner=s.ffn_size)
        else:
            w["up"] = matrix(wide, h, inner=h)
            w["down"] = matrix(h, s.ffn_size, inner=s.ffn_size)
        if not s.gated_mlp:
            for name in ("qkv", "out", "up", "down"):
                w[f"{name}_bias"] = random((len(w[name]),), stored, device, 0.02)
            for name in ("norm1_bias", "norm2_bias"):
                w[name] = torch.zeros(h, dtype=stored, device=device)
        return w

    embedding = matrix(s.vocab_size, h, inner=h)
    ends = {"embedding": embedding, "norm": torch.ones(h, dtype=stored, device=device),
            "norm_bias": torch.zeros(h, dtype=stored, device=device),
            "head": matrix(s.vocab_size, h, inner=h) if s.gated_mlp else embedding}  # fmt: skip
    layers = [one_layer() for _ in range(s.num_layers)]
    return Decoder(shape, dtype, device, layer or decoder_layer, layers, ends)


def decoder_layer(
    x: Any,
    w: Weights,
    keys: Any,
    values: Any,
    start: int,
    prompt: bool,
    grouped: bool,
    cos_sin: Any,
    s: Shape,
) -> Any:
    """One layer on x [batch, new, hidden]; writes keys and values at `start` of its cache.

    prompt: whether there are several new tokens, which see earlier ones only. grouped: whether
    heads share keys. Both are arguments so that a compiler takes them as constants.
    """
    from torch.nn import functional

    batch, new, _ = x.shape
    end = start + new
    joint = functional.linear(_norm(x, w, "norm1", s), w["qkv"], w.get("qkv_bias"))
    joint = joint.view(batch, new, s.num_heads + 2 * s.num_kv_heads, s.head_dim).transpose(1, 2)
    q, k, v = joint.split((s.num_heads, s.num_kv_heads, s.num_kv_heads), dim=1)
    if cos_sin is not None:
        q, k = _rotated(q, *cos_sin), _rotated(k, *cos_sin)
    keys[:, :, start:end] = k
    values[:, :, start:end] = v
    attended = functional.scaled_dot_product_attention(
        q, keys[:, :, :end], values[:, :, :end], is_causal=prompt,
        enable_gqa=grouped,
    )  # fmt: skip
    joined = attended.transpose(1, 2).reshape(batch, new, s.num_heads * s.head_dim)
    x = x + functional.linear(joined, w["out"], w.get("out_bias"))
    return x + _mlp(_norm(x, w, "norm2", s), w, s)


def _mlp(x: Any, w: Weights, s: Shape) -> Any:
    from torch.nn import functional

    if s.num_experts:
        flat = x.reshape(-1, s.hidden_size)
        logits = functional.linear(flat, w["router"]).float()
        made = experts_layer(flat, logits, w["up"], w["down"], s.top_k, grouped_product())
        return made.view(x.shape)
    wide = functional.linear(x, w["up"], w.get("up_bias"))
    if s.gated_mlp:
        gate, up = wide.chunk(2, dim=-1)
        wide = functional.silu(gate) * up
    else:
        wide = functional.gelu(wide)
    return functional.linear(wide, w["down"], w.get("down_bias"))


def _norm(x: Any, w: Weights, name: str, s: Shape) -> Any:
    from torch.nn import functional

    if s.gated_mlp:
        return functional.rms_norm(x, (s.hidden_size,), w[name], EPSILON)
    return functional.layer_norm(x, (s.hidden_size,), w[name], w[f"{name}_bias"], EPSILON)


def _rotated(x: Any, cos: Any, sin: Any) -> Any:
    import torch

    one, two = x.chunk(2, dim=-1)
    return torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)


def reference_logits(decoder: Decoder, tokens: Any) -> Any:
    """Logits after `tokens` [1, n] by one pass in fp32 without the cache of earlier steps."""
    import torch

    s = decoder.shape
    wide = Decoder(s, "fp32", decoder.device, decoder_layer)
    wide.layers = [{}] * s.num_layers
    wide.allocate(1, tokens.shape[1])
    wide.ends = {name: value.float() for name, value in decoder.ends.items()}
    x = torch.nn.functional.embedding(tokens, wide.ends["embedding"])
    cos_sin = wide.angles if s.gated_mlp else None
    grouped = s.num_heads != s.num_kv_heads
    if not s.gated_mlp:
        x = x + wide.ends["positions"][: tokens.shape[1]]
    for weights, (keys, values) in zip(decoder.layers, wide.cache, strict=True):
        exact = {name: value.float() for name, value in weights.items()}
        x = decoder_layer(x, exact, keys, values, 0, True, grouped, cos_sin, s)
    x = _norm(x[:, -1], wide.ends, "norm", s)
    return torch.nn.functional.linear(x, wide.ends["head"])
