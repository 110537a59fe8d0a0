"""Fused attention over many new tokens (prefill) and of one per sequence (decode).

scaled_dot_product_attention with one back end asked for by name: the one that PyTorch takes by
itself on the device is fitted (flash, or memory-efficient before Ampere), the others (cuDNN,
efficient, and `math`, which writes the scores out) are measured at a few sizes as variants.
Heads are grouped by `enable_gqa`. Sliding windows run in flex_attention, a compiled kernel, and
are variants too.

Cold cases rotate queries, keys and values: in a model the cache of a step comes from DRAM. Prompt
attention finds what the projections just wrote, so warm is the usual case there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rtsim.measure.case import (
    CALIBRATION,
    COLD,
    ELEMENT_BYTES,
    STACK,
    VALIDATION,
    VARIANT,
    WARM,
    Case,
    Scope,
)
from rtsim.measure.design import Axis, Point, design
from rtsim.measure.device import Unsupported
from rtsim.measure.program import Program
from rtsim.measure.torch_formats import compiled, deviation, random, tolerance, torch_dtype

FLASH, EFFICIENT, CUDNN, MATH = "sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "sdpa_math"
FLEX = "flex_attention"
_BACKENDS = {FLASH: "FLASH_ATTENTION", EFFICIENT: "EFFICIENT_ATTENTION",
             CUDNN: "CUDNN_ATTENTION", MATH: "MATH"}  # fmt: skip

_FITTED, _VALIDATED, _VARIANTS, _WINDOWS = 40, 36, 6, 3
_TOY_FITTED, _TOY_VALIDATED, _TOY_VARIANTS = 4, 2, 1
_WINDOW = 1024
_WINDOW_COMPILE_S = 20.0
_MOST_FLOPS = 6e12
_MOST_SCORE_BYTES = 2e9  # of written-out scores, for the math back end
_HEADS = (8, 16, 32, 64)
_HEAD_DIMS = (64, 128, 128, 256)
_GROUPS = (1, 4, 8)
_PREFILL_CORNERS = (
    {"batch": 1, "query_tokens": 128}, {"batch": 1, "query_tokens": 16384, "num_heads": 32},
    {"batch": 64, "query_tokens": 64}, {"batch": 1, "query_tokens": 2048, "group": 8},
    {"batch": 4, "query_tokens": 1000, "head_dim": 64},
)  # fmt: skip
_DECODE_CORNERS = (
    {"batch": 1, "context_tokens": 256}, {"batch": 1, "context_tokens": 131072, "group": 8},
    {"batch": 256, "context_tokens": 128, "group": 8}, {"batch": 64, "context_tokens": 4096},
    {"batch": 256, "context_tokens": 4096, "group": 8},
    {"batch": 16, "context_tokens": 1024, "group": 1, "head_dim": 64},
)  # fmt: skip


def cases(scope: Scope) -> list[Case]:
    """Prefill and decode in turn, fitted sizes first, then variants."""
    toy = scope.toy
    fitted = _TOY_FITTED if toy else _FITTED
    count = fitted + (_TOY_VALIDATED if toy else _VALIDATED)
    both = []
    for prefill in (True, False):
        points = design(_axes(scope, prefill), count,
                        accept=partial(_accepted, scope),
                        corners=() if toy else _corners(scope, prefill))  # fmt: skip
        usual = WARM if prefill else COLD
        own = []
        for i, point in enumerate(points):
            role = CALIBRATION if i < fitted else VALIDATION
            # A quarter the other way round, to tell what the L2 is worth.
            residency = usual if i % 4 else (COLD if usual == WARM else WARM)
            own.append(case_of(scope, point, scope.attention, role, residency))
        for kernel in scope.attention_variants:
            for point in points[: _TOY_VARIANTS if toy else _VARIANTS]:
                if kernel != MATH or _score_bytes(scope, point) <= _MOST_SCORE_BYTES:
                    own.append(case_of(scope, point, kernel, VARIANT, usual))
        if prefill and scope.compiler and not toy:
            for point in [p for p in points if p["query_tokens"] >= 2 * _WINDOW][:_WINDOWS]:
                windowed = {**point, "window_size": _WINDOW}
                own.append(case_of(scope, windowed, FLEX, VARIANT, WARM))
        both.append(own)
    return [case for own in both for case in own]


def _axes(scope: Scope, prefill: bool) -> list[Axis]:
    toy = scope.toy
    # The memory-efficient kernel does not group heads.
    groups = (1,) if scope.attention == EFFICIENT else (1, 4) if toy else _GROUPS
    shape = [Axis("num_heads", choices=(4, 8) if toy else _HEADS), Axis("group", choices=groups),
             Axis("head_dim", choices=(32, 64) if toy else _HEAD_DIMS)]  # fmt: skip
    if prefill:
        sizes = [Axis("batch", 1, 2 if toy else 64), Axis("query_tokens", 16, 64 if toy else 16384)]
    else:
        sizes = [Axis("batch", 1, 4 if toy else 512),
                 Axis("context_tokens", 16, 256 if toy else 131072)]  # fmt: skip
    return [*sizes, *shape]


def _corners(scope: Scope, prefill: bool) -> list[dict[str, int]]:
    usual = {"num_heads": 32, "group": 4, "head_dim": 128}
    corners = [{**usual, **c} for c in (_PREFILL_CORNERS if prefill else _DECODE_CORNERS)]
    return [{**c, "group": 1} if scope.attention == EFFICIENT else c for c in corners]


def _accepted(scope: Scope, p: Point) -> bool:
    flops, _, memory = _work(scope, p)
    return flops <= _MOST_FLOPS and scope.fits(2.0 * memory)


def _context(p: Point) -> tuple[int, int]:
    """New tokens and tokens attended to, of a point of either design."""
    queries = p.get("query_tokens", 1)
    return queries, p.get("context_tokens", queries)


def _work(scope: Scope, p: Point) -> tuple[float, float, float]:
    """FLOPs (causal), bytes moved, bytes of operands and result."""
    queries, context = _context(p)
    seen = min(context, p.get("window_size") or context)
    pairs = float(queries) * (seen - min(queries, seen) / 2.0 if queries > 1 else seen)
    heads, element = p["batch"] * p["num_heads"], ELEMENT_BYTES[scope.float_dtype]
    kv_heads = heads / p["group"]
    in_and_out = 2.0 * heads * queries * p["head_dim"] * element
    cache = 2.0 * kv_heads * p["head_dim"] * element
    return (4.0 * heads * p["head_dim"] * pairs, in_and_out + cache * seen,
            in_and_out + cache * context)  # fmt: skip


def _score_bytes(scope: Scope, p: Point) -> float:
    queries, context = _context(p)
    return p["batch"] * p["num_heads"] * queries * context * ELEMENT_BYTES[scope.float_dtype] * 2.0


def case_of(scope: Scope, p: Point, kernel: str, role: str, residency: str) -> Case:
    """The case of a point: batch, query_tokens or context_tokens, heads, group, head_dim."""
    queries, context = _context(p)
    flops, moved, memory = _work(scope, p)
    return Case(
        family="attention",
        kind="attention_prefill" if queries > 1 else "attention_decode",
        values={
            "stack": STACK, "kernel": kernel, "dtype": scope.float_dtype,
            "kv_dtype": scope.float_dtype, "causal": 1, "batch": p["batch"],
            "query_tokens": queries, "context_tokens": context, "num_heads": p["num_heads"],
            "num_kv_heads": p["num_heads"] // p["group"], "head_dim": p["head_dim"],
            "window_size": p.get("window_size", 0), "role": role, "residency": residency,
        },
        flops=flops,
        moved_bytes=moved,
        memory_bytes=memory,
        rotated_bytes=memory if residency == COLD else 0.0,
        setup_s=_WINDOW_COMPILE_S if kernel == FLEX else 0.0,
    )  # fmt: skip


# On the device -----------------------------------------------------------------------------------


def program(case: Case, device: str, copies: int) -> Program:
    """Attention of a case on `copies` caches. Raises Unsupported."""
    dtype = str(case.values["dtype"])
    stored = torch_dtype(dtype)
    batch, heads, kv_heads, queries, context, head_dim = (
        case.number(name)
        for name in ("batch", "num_heads", "num_kv_heads", "query_tokens", "context_tokens",
                     "head_dim")
    )  # fmt: skip
    sets = [
        (
            random((batch, heads, queries, head_dim), stored, device),
            random((batch, kv_heads, context, head_dim), stored, device),
            random((batch, kv_heads, context, head_dim), stored, device),
        )
        for _ in range(copies)
    ]
    window = case.number("window_size")
    kernel = str(case.values["kernel"])
    if kernel == FLEX:
        attend = _flex(queries, context, window, heads != kv_heads, device)
    else:
        attend = _sdpa(kernel, queries > 1, heads != kv_heads)
    return Program(
        [partial(attend, *s) for s in sets],
        lambda: _error(attend(*sets[0]), *sets[0], window),
        # Probabilities are rounded to the format before they weigh the values.
        2.0 * tolerance(dtype, context),
    )


def _sdpa(kernel: str, causal: bool, grouped: bool) -> Callable[..., Any]:
    from torch.nn import functional
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = getattr(SDPBackend, _BACKENDS[kernel], None)
    if backend is None:
        raise Unsupported(f"this PyTorch has no back end {kernel}")

    def attend(q: Any, k: Any, v: Any) -> Any:
        with sdpa_kernel(backend):
            return functional.scaled_dot_product_attention(
                q, k, v, is_causal=causal, enable_gqa=grouped
            )

    return attend


def _flex(
    queries: int, context: int, window: int, grouped: bool, device: str
) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q >= k) & (q - k < window)

    mask = create_block_mask(visible, None, None, queries, context, device=device)
    attend = compiled(flex_attention, dynamic=False)
    return lambda q, k, v: attend(q, k, v, block_mask=mask, enable_gqa=grouped)


def _error(result: Any, q: Any, k: Any, v: Any, window: int) -> float:
    """Against softmax(q k' / sqrt(d)) v in float64: first sequence, one head, some queries."""
    import torch

    queries, context = q.shape[2], k.shape[2]
    rows = torch.linspace(0, queries - 1, min(queries, 16), device=q.device).long()
    head = q.shape[1] - 1
    kv_head = head * k.shape[1] // q.shape[1]
    scores = q[0, head, rows].double() @ k[0, kv_head].double().t() / q.shape[3] ** 0.5
    places = torch.arange(context, device=q.device)
    last = rows[:, None] + context - queries
    hidden = places > last
    if window:
        hidden |= places <= last - window
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return deviation(result[0, head, rows], weights @ v[0, kv_head].double())
