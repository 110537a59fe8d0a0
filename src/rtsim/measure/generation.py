"""Whole generations of plain decoders, for the host track: eager, compiled, and CUDA graphs.

A generation is one prompt pass and output_tokens - 1 decode steps; after each the host reads the
token, as a program that streams its answer does. Timed on the host's clock from an idle device to
the last token. Rows with one output token are the prompt pass alone.

Compiled: torch.compile of one layer, lengths dynamic. Graphs: the eager kernels of the prompt pass
and of every decode step, captured once each, so that each step attends to its own context.

Few layers of the true width stand for large models (two of Llama-3-8B, one of GPT-3-175B, two of
Mixtral-8x7B); small models are whole. Those kept for validation are other models, and other sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rtsim.measure.attention import EFFICIENT
from rtsim.measure.case import (
    CALIBRATION,
    COMPILED_STACK,
    ELEMENT_BYTES,
    GRAPHS_STACK,
    STACK,
    VALIDATION,
    Case,
    Scope,
)
from rtsim.measure.decoder import Decoder, Shape, decoder_layer, make, reference_logits
from rtsim.measure.device import Unsupported
from rtsim.measure.program import Program
from rtsim.measure.torch_formats import compiled

FITTED_SHAPES: tuple[Shape, ...] = (
    Shape("gpt2-124m", 12, 768, 12, 12, 3072, 50304, gated_mlp=0),
    Shape("llama-3-8b-2-layers", 2, 4096, 32, 8, 14336, 128256),
    Shape("llama-3.2-1b", 16, 2048, 32, 8, 8192, 128256),
    Shape("gpt-3-175b-1-layer", 1, 12288, 96, 96, 49152, 51200, gated_mlp=0),
    Shape("mixtral-8x7b-2-layers", 2, 4096, 32, 8, 14336, 32000, num_experts=8, top_k=2),
)
VALIDATED_SHAPES: tuple[Shape, ...] = (
    Shape("gpt2-xl", 48, 1600, 25, 25, 6400, 50304, gated_mlp=0),
    Shape("tinyllama-1.1b", 22, 2048, 32, 4, 5632, 32000),
    Shape("llama-3-8b", 32, 4096, 32, 8, 14336, 128256),
)
_TOY_SHAPES = (
    Shape("toy-gpt", 2, 64, 4, 4, 128, 256, gated_mlp=0),
    Shape("toy-llama", 2, 64, 4, 2, 128, 256),
)
Size = tuple[int, int, int]  # batch, prompt, output tokens
_SIZES: tuple[Size, ...] = ((1, 128, 1), (1, 128, 17), (1, 1024, 1), (1, 1024, 9),
                            (8, 512, 1), (8, 512, 9), (32, 128, 9))  # fmt: skip
_OTHER_SIZES: tuple[Size, ...] = ((1, 512, 1), (1, 512, 13), (4, 2048, 1), (16, 256, 11))
_TOY_SIZES, _TOY_OTHER_SIZES = ((1, 16, 1), (2, 8, 3)), ((1, 12, 2),)

MAX_POSITIONS = 4096  # as the models state it; a cache is as long as its generation

# What the modes run, as a profile's [stack] says it.
TRAITS = {
    STACK: "attention=fused logits=last fused_norm=0 eager_copies=1",
    COMPILED_STACK: "attention=fused logits=last fused_norm=1 eager_copies=1",
    GRAPHS_STACK: "attention=fused logits=last fused_norm=0 eager_copies=1",
}
_KERNELS_PER_LAYER = {STACK: 30, COMPILED_STACK: 14, GRAPHS_STACK: 1}
_COMPILE_S, _CAPTURE_S = 60.0, 0.3


def cases(scope: Scope) -> list[Case]:
    """Ways to run, then models, then sizes."""
    modes = [STACK, *((GRAPHS_STACK,) if scope.graphs else ()),
             *((COMPILED_STACK,) if scope.compiler else ())]  # fmt: skip
    fitted, validated = FITTED_SHAPES, VALIDATED_SHAPES
    sizes, others = _SIZES, _OTHER_SIZES
    if scope.toy:
        fitted, validated = _TOY_SHAPES[:1], _TOY_SHAPES[1:]
        sizes, others = _TOY_SIZES, _TOY_OTHER_SIZES
    found = []
    for shapes, shape_role in ((fitted, CALIBRATION), (validated, VALIDATION)):
        for mode in modes:  # outside: compiling takes long, and comes last
            for shape in shapes:
                if shape.num_experts and not scope.grouped_experts:
                    continue
                if shape.num_kv_heads != shape.num_heads and scope.attention == EFFICIENT:
                    continue  # grouped heads would write their scores out there
                for i, size in enumerate((*sizes, *others)):
                    role = VALIDATION if i >= len(sizes) else shape_role
                    case = case_of(scope, shape, mode, size, role, first=i == 0)
                    if scope.fits(case.memory_bytes):
                        found.append(case)
    return found


def case_of(
    scope: Scope, shape: Shape, mode: str, size: tuple[int, int, int], role: str, *, first: bool
) -> Case:
    """A generation of (batch, prompt, output) tokens. first: of its model and mode in a run."""
    batch, prompt, output = size
    element = ELEMENT_BYTES[scope.float_dtype]
    longest = prompt + output - 1
    head = shape.vocab_size * shape.hidden_size
    cache = 2.0 * shape.num_layers * shape.num_kv_heads * shape.head_dim * batch * longest
    passes = batch * (prompt + output - 1.0)
    pairs = batch * (prompt**2 / 2.0 + (output - 1.0) * (prompt + output / 2.0))
    flops = 2.0 * passes * shape.active_parameters + 2.0 * batch * output * head
    flops += 4.0 * shape.num_layers * shape.num_heads * shape.head_dim * pairs
    per_step = element * (shape.num_layers * shape.layer_parameters + head)
    setup = {GRAPHS_STACK: _CAPTURE_S * output, COMPILED_STACK: _COMPILE_S if first else 0.5}
    return Case(
        family="generation",
        kind="generation",
        values={
            "stack": mode, "dtype": scope.float_dtype, "model": shape.model,
            "num_layers": shape.num_layers, "hidden_size": shape.hidden_size,
            "num_heads": shape.num_heads, "num_kv_heads": shape.num_kv_heads,
            "head_dim": shape.head_dim, "ffn_size": shape.ffn_size, "gated_mlp": shape.gated_mlp,
            "vocab_size": shape.vocab_size, "max_positions": MAX_POSITIONS, "tp": 1, "pp": 1,
            "num_gpus": 1, "parameters_per_gpu": 0, "batch": batch, "prompt_tokens": prompt,
            "output_tokens": output, "num_experts": shape.num_experts, "top_k": shape.top_k,
            "traits": TRAITS[mode], "bare_loop": 1, "role": role,
        },
        flops=flops,
        moved_bytes=output * (per_step + element * cache),
        memory_bytes=element * (shape.parameters + cache) + 8e6 * batch,
        setup_s=setup.get(mode, 0.0),
        host_kernels=_KERNELS_PER_LAYER[mode] * shape.num_layers * output,
    )  # fmt: skip


# On the device -----------------------------------------------------------------------------------

# The model of the last case: cases of one model follow each other.
_last: dict[tuple[str, str, str], Decoder] = {}
_compiled: list[Callable[..., Any]] = []


def forget() -> None:
    """Give the memory of the last model back."""
    _last.clear()


def program(case: Case, device: str, copies: int) -> Program:
    """One call: a whole generation. Raises Unsupported."""
    import torch

    mode, dtype = str(case.values["stack"]), str(case.values["dtype"])
    batch, prompt, output = (
        case.number(name) for name in ("batch", "prompt_tokens", "output_tokens")
    )
    decoder = _decoder(case, dtype, device)
    decoder.layer = _compiled_layer() if mode == COMPILED_STACK else decoder_layer
    decoder.allocate(batch, prompt + output - 1)
    tokens = torch.randint(0, decoder.shape.vocab_size, (batch, prompt), device=device)
    if mode == GRAPHS_STACK:
        if device == "cpu":
            raise Unsupported("a CPU has no CUDA graphs")
        generate = _with_graphs(decoder, tokens, output)
    else:
        generate = _one_by_one(decoder, tokens, output)
    experts = decoder.shape.num_experts > 0
    return Program(
        [generate],
        lambda: _error(decoder, tokens, generate()),
        1e-3 if dtype == "fp32" else 0.5 if experts else 0.15,
        graphs=False,
        on_host=True,
    )


def _decoder(case: Case, dtype: str, device: str) -> Decoder:
    shape = Shape(
        str(case.values["model"]),
        *(case.number(name) for name in
          ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "ffn_size", "vocab_size",
           "gated_mlp", "num_experts", "top_k")),
    )  # fmt: skip
    key = (repr(shape), dtype, device)
    if key not in _last:
        forget()
        _last[key] = make(shape, dtype, device)
    return _last[key]


def _compiled_layer() -> Callable[..., Any]:
    if not _compiled:
        _compiled.append(compiled(decoder_layer, dynamic=True))
    return _compiled[0]


Generate = Callable[[], tuple[list[int], Any]]


def _one_by_one(decoder: Decoder, tokens: Any, output: int) -> Generate:
    """The tokens of the first sequence, and its last logits."""
    import torch

    def generate() -> tuple[list[int], Any]:
        with torch.inference_mode():
            logits = decoder.forward(tokens, 0)
            following = logits.argmax(-1, keepdim=True)
            found = [int(following[0, 0])]
            for start in range(tokens.shape[1], tokens.shape[1] + output - 1):
                logits = decoder.forward(following, start)
                following = logits.argmax(-1, keepdim=True)
                found.append(int(following[0, 0]))
            return found, logits[0]

    return generate


def _with_graphs(decoder: Decoder, tokens: Any, output: int) -> Generate:
    import torch

    from rtsim.measure.timing import captured

    following = torch.zeros((len(tokens), 1), dtype=torch.long, device=tokens.device)
    kept: list[Any] = [None]

    def step(given: Any, start: int) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                kept[0] = decoder.forward(given, start)
                following.copy_(kept[0].argmax(-1, keepdim=True))

        return run

    prompt = tokens.shape[1]
    pool = torch.cuda.graph_pool_handle()
    starts = range(prompt, prompt + output - 1)
    runs = [step(tokens, 0), *(step(following, start) for start in starts)]
    graphs = [captured([run], pool=pool) for run in runs]
    last_logits = kept[0]

    def generate() -> tuple[list[int], Any]:
        found = []
        for graph in graphs:
            graph.replay()
            found.append(int(following[0, 0]))
        return found, last_logits[0]

    return generate


def _error(decoder: Decoder, tokens: Any, made: tuple[list[int], Any]) -> float:
    """Root mean square deviation of the last logits from one exact pass over the whole text."""
    import torch

    found, logits = made
    with torch.inference_mode():
        after = torch.tensor([found[:-1]], dtype=torch.long, device=tokens.device)
        exact = reference_logits(decoder, torch.cat([tokens[:1], after], dim=1))[0]
        off = (logits.float() - exact).square().mean().sqrt()
        return float(off / exact.square().mean().sqrt())
