"""A mixture-of-experts layer on one GPU: routing, two grouped products, activation, combine.

Routing is real (softmax, top-k, sort by expert) on logits made so that every expert gets as many
tokens as any other. The products are torch._grouped_mm where the device has it, else a loop over
the experts with the counts known beforehand; the two are fitted apart by their kernel's name.
Cold cases rotate the experts' weights.
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
    WARM,
    Case,
    Scope,
)
from rtsim.measure.design import Axis, Point, design
from rtsim.measure.program import Program
from rtsim.measure.torch_formats import deviation, needs, random, tolerance, torch_dtype

GROUPED, LOOP = "torch_grouped_mm", "torch_expert_loop"
MATRICES = 3  # up, gate and down

_FITTED, _VALIDATED, _WARM_EVERY = 28, 24, 4
_TOY_FITTED, _TOY_VALIDATED = 3, 1
_MOST_FLOPS = 6e12
_LOOP_KERNELS = 6  # of one expert, issued one by one
_CORNERS = (
    {"num_tokens": 1, "hidden_size": 4096, "intermediate_size": 14336, "num_experts": 8},
    {"num_tokens": 4096, "hidden_size": 4096, "intermediate_size": 14336, "num_experts": 8},
    {"num_tokens": 64, "hidden_size": 2048, "intermediate_size": 768, "num_experts": 128},
    {"num_tokens": 16384, "hidden_size": 2048, "intermediate_size": 768, "num_experts": 128},
)


def cases(scope: Scope) -> list[Case]:
    """Layers from Mixtral's few wide experts to many narrow ones."""
    axes = [
        Axis("num_tokens", 1, 16384), Axis("hidden_size", 1024, 8192, 256),
        Axis("intermediate_size", 512, 16384, 256), Axis("num_experts", choices=(8, 16, 64, 128)),
        Axis("top_k", choices=(2, 4, 8)),
    ]  # fmt: skip
    corners: tuple[dict[str, int], ...] = _CORNERS
    fitted, validated = _FITTED, _VALIDATED
    if scope.toy:
        axes = [Axis("num_tokens", 4, 32), Axis("hidden_size", 64, 128, 64),
                Axis("intermediate_size", 64, 128, 64), Axis("num_experts", choices=(4, 8)),
                Axis("top_k", choices=(1, 2))]  # fmt: skip
        corners, fitted, validated = (), _TOY_FITTED, _TOY_VALIDATED

    def accept(p: Point) -> bool:
        flops, _, memory = _work(scope, p)
        return p["top_k"] <= p["num_experts"] and flops <= _MOST_FLOPS and scope.fits(memory)

    points = design(axes, fitted + validated, accept=accept, corners=corners)
    found = []
    for i, point in enumerate(points):
        role = CALIBRATION if i < fitted else VALIDATION
        found.append(case_of(scope, point, role, COLD))
        if i < fitted and i % _WARM_EVERY == 0:
            found.append(case_of(scope, point, role, WARM))
    return found


def _work(scope: Scope, p: Point) -> tuple[float, float, float]:
    """FLOPs, bytes moved (weights of visited experts, rows in and out), bytes of all operands."""
    element = ELEMENT_BYTES[scope.float_dtype]
    routed = float(p["num_tokens"]) * p["top_k"]
    expert = MATRICES * p["hidden_size"] * p["intermediate_size"]
    visited = min(float(p["num_experts"]), routed)
    rows = element * routed * (4.0 * p["hidden_size"] + 4.0 * p["intermediate_size"])
    return (2.0 * routed * expert, element * visited * expert + rows,
            element * p["num_experts"] * expert + 2.0 * rows)  # fmt: skip


def case_of(scope: Scope, p: Point, role: str, residency: str) -> Case:
    """The case of a point: tokens, widths, experts, experts per token."""
    flops, moved, memory = _work(scope, p)
    element = ELEMENT_BYTES[scope.float_dtype]
    weights = element * p["num_experts"] * MATRICES * p["hidden_size"] * p["intermediate_size"]
    return Case(
        family="moe",
        kind="moe",
        values={
            "stack": STACK, "kernel": GROUPED if scope.grouped_experts else LOOP,
            "op": "fused_moe", "dtype": scope.float_dtype, "distribution": "balanced", **p,
            "tp": 1, "ep": 1, "role": role, "residency": residency,
        },
        flops=flops,
        moved_bytes=moved,
        memory_bytes=memory,
        rotated_bytes=weights if residency == COLD else 0.0,
        host_kernels=1 if scope.grouped_experts else _LOOP_KERNELS * p["num_experts"],
    )  # fmt: skip


# On the device -----------------------------------------------------------------------------------


def program(case: Case, device: str, copies: int) -> Program:
    """Layers of a case with `copies` sets of experts. Raises Unsupported."""
    import torch

    dtype = str(case.values["dtype"])
    stored = torch_dtype(dtype)
    tokens, hidden, width, experts, top_k = (
        case.number(name)
        for name in ("num_tokens", "hidden_size", "intermediate_size", "num_experts", "top_k")
    )
    x = random((tokens, hidden), stored, device)
    slots = torch.arange(tokens * top_k, device=device).reshape(tokens, top_k) % experts
    logits = torch.rand((tokens, experts), device=device).scatter_add_(
        1, slots, torch.full((tokens, top_k), 8.0, device=device)
    )
    counts = torch.bincount(slots.flatten(), minlength=experts).tolist()
    sets = [
        (
            random((experts, hidden, 2 * width), stored, device, hidden**-0.5),
            random((experts, width, hidden), stored, device, width**-0.5),
        )
        for _ in range(copies)
    ]
    product = grouped_product() if case.values["kernel"] == GROUPED else _loop(counts)
    return Program(
        [partial(experts_layer, x, logits, up, down, top_k, product) for up, down in sets],
        lambda: _error(x, logits, *sets[0], top_k, product),
        4.0 * tolerance(dtype, max(hidden, width)),
        touch=(x, logits),
    )


Product = Callable[[Any, Any, Any], Any]


def grouped_product() -> Product:
    """Rows sorted by expert times each expert's weights, in one kernel. Raises Unsupported."""
    import torch

    grouped_mm = needs(torch, "_grouped_mm")
    return lambda rows, weights, ends: grouped_mm(rows, weights, offs=ends)


def _loop(counts: list[int]) -> Product:
    import torch

    def product(rows: Any, weights: Any, ends: Any) -> Any:
        parts = torch.split(rows, counts)
        return torch.cat([part @ w for part, w in zip(parts, weights, strict=True) if len(part)])

    return product


def experts_layer(x: Any, logits: Any, up: Any, down: Any, top_k: int, product: Product) -> Any:
    """Output of the layer, shape of x: [tokens, hidden].

    logits: [tokens, experts]. up: [experts, hidden, 2 width], gate first; down: [experts, width,
    hidden].
    """
    import torch
    from torch.nn import functional

    shares, chosen = torch.topk(torch.softmax(logits, -1), top_k)
    shares = (shares / shares.sum(-1, keepdim=True)).to(x.dtype)
    flat = chosen.flatten()
    order = torch.argsort(flat, stable=True)
    n_experts = len(up)
    ends = torch.searchsorted(flat[order], torch.arange(n_experts, device=x.device), right=True).to(
        torch.int32
    )
    source = order // top_k
    gate, value = product(x[source], up, ends).chunk(2, dim=-1)
    rows = product(functional.silu(gate) * value, down, ends)
    weighted = rows * shares.flatten()[order][:, None]
    return torch.zeros_like(x).index_add_(0, source, weighted)


def _error(x: Any, logits: Any, up: Any, down: Any, top_k: int, product: Product) -> float:
    """A few tokens against their experts one by one in float64."""
    import torch
    from torch.nn import functional

    result = experts_layer(x, logits, up, down, top_k, product)
    tokens = range(0, len(x), max(1, len(x) // 4))
    shares, chosen = torch.topk(torch.softmax(logits, -1), top_k)
    shares = shares / shares.sum(-1, keepdim=True)
    exact = torch.zeros((len(tokens), x.shape[1]), dtype=torch.float64, device=x.device)
    for i, token in enumerate(tokens):
        for share, expert in zip(shares[token].tolist(), chosen[token].tolist(), strict=True):
            gate, value = (x[token].double() @ up[expert].double()).chunk(2)
            exact[i] += share * ((functional.silu(gate) * value) @ down[expert].double())
    return deviation(result[list(tokens)], exact)
