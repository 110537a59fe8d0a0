"""The columns of rtsim's measurement tables: its public format for measured times.

A table is a CSV file (plain or gzipped, UTF-8, one header line) or a Parquet file, and holds one
kind of measurement. `KINDS` lists every kind with every column: what it means, its unit, and
what an absent value stands for. Further columns are allowed and ignored.

Units are in the names: `_us`, `_ms`, `_s`, `_bytes`. Sizes of an operator are those of one GPU's
share. GPU names and stack names resolve through the catalogue's aliases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ColumnType = Literal["text", "count", "real", "measured"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `default` stands for an absent value or column; None: it must be there.

    type: "text"; "count", an integer of at least `least`; "real", a finite number; "measured",
    a finite number above zero.
    """

    name: str
    type: ColumnType
    meaning: str
    default: str | int | float | None = None
    least: int = 1


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of table."""

    name: str
    meaning: str
    columns: tuple[Column, ...]

    @property
    def required(self) -> tuple[Column, ...]:
        """The columns that must be there."""
        return tuple(c for c in self.columns if c.default is None)


NAN = float("nan")


def _text(name: str, meaning: str, default: str | None = None) -> Column:
    return Column(name, "text", meaning, default)


def _count(name: str, meaning: str, default: int | None = None, least: int = 1) -> Column:
    return Column(name, "count", meaning, default, least)


def _flag(name: str, meaning: str, default: int | None = None) -> Column:
    return Column(name, "count", meaning + " (1 or 0)", default, 0)


def _real(name: str, meaning: str, default: float | None = NAN) -> Column:
    return Column(name, "real", meaning, default)


def _measured(name: str, meaning: str) -> Column:
    return Column(name, "measured", meaning)


_SOURCE = _text("source", "who measured it", "")
_GPU = _text("gpu", "GPU name or alias")
_STACK = _text("stack", "software that ran it", "")
_VERSION = _text("stack_version", "its version", "")
_KERNEL = _text("kernel", "kernel or backend name", "")
_DTYPE = _text("dtype", "number format of the computation")
_KV_DTYPE = _text("kv_dtype", "number format of the KV cache; empty: that of dtype", "")
_MODEL = _text("model", "label of the model the shape comes from", "")
_TIME = _measured("time_us", "time of one execution, us")
_RUN = (_SOURCE, _GPU, _STACK, _VERSION)
ROLES = ("calibration", "validation", "variant")
_ROLE = _text("role", "calibration; validation, kept out of fits; variant, not the stack's usual "
              "kernel, kept out too; empty: as calibration", "")  # fmt: skip
TIMINGS = ("graph", "events", "wall")
RESIDENCIES = ("cold", "warm")
_METHOD = (
    _ROLE,
    _text("timing", "graph: replayed in a CUDA graph, no launch in it; events: calls issued one by "
          "one; wall: host clock; empty: as the tables of the stack are known to be timed", ""),
    _text("residency", "cold: operands come from DRAM (of products and experts the weights alone); "
          "warm: one set of operands again and again; empty: as the tables of the stack", ""),
)  # fmt: skip
_HEADS = (
    _count("num_heads", "query heads"),
    _count("num_kv_heads", "key/value heads"),
    _count("head_dim", "width of a head"),
)
_TP = _count("tp", "tensor-parallel degree the shape was split by; 0: not stated", 0, 0)

_ATTENTION = (
    *_RUN,
    _KERNEL,
    _DTYPE,
    _KV_DTYPE,
    _flag("causal", "whether a token sees only earlier ones", 1),
    _count("batch", "sequences"),
    _count("query_tokens", "new tokens per sequence"),
    _count("context_tokens", "tokens attended to, the new ones included"),
    *_HEADS,
    _count("window_size", "sliding window, 0: none", 0, 0),
    *_METHOD,
    _TIME,
)

_SERVING_SIDE = tuple(
    _count(f"{side}_{name}", f"{meaning} of the {side} workers; 0: not disaggregated", 0, 0)
    for side in ("prefill", "decode")
    for name, meaning in (
        ("workers", "number"),
        ("batch", "batch"),
        ("tp", "tensor parallelism"),
        ("pp", "pipeline parallelism"),
        ("attention_dp", "data parallelism of attention"),
        ("moe_tp", "tensor parallelism of experts"),
        ("moe_ep", "expert parallelism"),
    )
)

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "generation",
            "whole text generation: one prompt pass and output_tokens - 1 decode steps",
            (
                *_RUN,
                _DTYPE,
                _MODEL,
                _count("num_layers", "decoder layers"),
                _count("hidden_size", "model width"),
                _count("num_heads", "query heads"),
                _count("num_kv_heads", "key/value heads; 0: as many as num_heads", 0, 0),
                _count("head_dim", "width of a head; 0: hidden_size / num_heads", 0, 0),
                _count("ffn_size", "width of the MLP"),
                _flag("gated_mlp", "three MLP matrices instead of two", 0),
                _count("vocab_size", "rows of the embedding, padding included"),
                _count("max_positions", "longest sequence; 0: not stated", 0, 0),
                _count("tp", "tensor-parallel degree", 1),
                _count("pp", "pipeline-parallel degree", 1),
                _count("num_gpus", "GPUs in all; 0: tp x pp", 0, 0),
                _count("parameters_per_gpu", "as the run printed; 0: not stated", 0, 0),
                _count("batch", "sequences", 1),
                _count("prompt_tokens", "prompt length"),
                _count("output_tokens", "generated tokens, the first included"),
                _count("num_experts", "experts of every MLP; 0: dense", 0, 0),
                _count("top_k", "experts per token; 0: dense", 0, 0),
                _text(
                    "traits",
                    "what the stack runs, as NAME=VALUE words of a profile's [stack]; "
                    "empty: as its nearest profile",
                    "",
                ),
                _flag("bare_loop", "token ids in and out: nothing tokenised, scheduled, served", 0),
                _ROLE,
                _measured("runtime_s", "mean time of a whole generation, s"),
                _real("runtime_std_s", "its standard deviation between runs, s"),
            ),
        ),
        Kind(
            "gemm",
            "matrix product [m, k] x [k, n], `batch` of them",
            (
                *_RUN,
                _KERNEL,
                _DTYPE,
                _text("op", "linear, linear_bias, bmm, matmul, or the layer of a model", "linear"),
                _MODEL,
                _TP,
                _count("m", "rows (tokens)"),
                _count("n", "columns (outputs)"),
                _count("k", "inner dimension (inputs)"),
                _count("batch", "independent products", 1),
                *_METHOD,
                _TIME,
            ),
        ),
        Kind("attention_prefill", "fused attention over many new tokens", _ATTENTION),
        Kind("attention_decode", "fused attention of one new token per sequence", _ATTENTION),
        Kind(
            "mla",
            "multi-head latent attention: latent 512 + rope 64, heads of 128 + 64, values of 128",
            (
                *_RUN,
                _KERNEL,
                _text("op", "context_* or generation_* attention or module, bmm_pre, bmm_post"),
                _MODEL,
                _DTYPE,
                _KV_DTYPE,
                _text("gemm_dtype", "number format of the projections; empty: none run", ""),
                _count("num_heads", "query heads"),
                _count("batch", "sequences, or tokens for bmm_*"),
                _count("query_tokens", "new tokens per sequence"),
                _count("context_tokens", "tokens attended to; 0 for bmm_*", None, 0),
                _TIME,
            ),
        ),
        Kind(
            "moe",
            "mixture-of-experts layer on one GPU: routing, two GEMMs, activation, combine",
            (
                *_RUN,
                _KERNEL,
                _text("op", "fused_moe", "fused_moe"),
                _DTYPE,
                _text("distribution", "of tokens over experts", "balanced"),
                _count("num_tokens", "tokens entering"),
                _count("hidden_size", "model width"),
                _count("intermediate_size", "width of an expert, before the split by tp"),
                _count("top_k", "experts per token"),
                _count("num_experts", "experts in all"),
                _count("tp", "tensor-parallel degree of an expert", 1),
                _count("ep", "GPUs the experts are spread over", 1),
                *_METHOD,
                _TIME,
            ),
        ),
        Kind(
            "collective",
            "communication between GPUs",
            (
                *_RUN,
                _text("implementation", "nccl, nccl-tests, custom_graph, custom_eager", "nccl"),
                _text("topology", "nvswitch, nvlink-pairs, pcie4, ...", ""),
                _text("collective", "all_reduce, all_gather, reduce_scatter, alltoall, send_recv"),
                _text("dtype", "number format of the message", ""),
                _count("num_gpus", "GPUs taking part"),
                _count("num_nodes", "machines they stand in", 1),
                _count("message_bytes", "all_reduce, send_recv: one GPU's buffer; else the whole"),
                *_METHOD,
                _TIME,
            ),
        ),
        Kind(
            "elementwise",
            "operator bound by memory, on rows x cols",
            (
                *_RUN,
                _KERNEL,
                _text("op", "add, gelu, softmax, layernorm, rmsnorm, silu_and_mul, rope, ..."),
                _DTYPE,
                _MODEL,
                _TP,
                _count("rows", "rows of the output"),
                _count("cols", "columns of the output"),
                *_METHOD,
                _TIME,
            ),
        ),
        Kind(
            "launch",
            "what the host pays to issue kernels that do next to nothing, one after the other",
            (
                *_RUN,
                _text("mode", "eager, compiled or graph"),
                _count("kernels", "kernels issued in one go"),
                _ROLE,
                _measured("time_us", "host time of all of them, us"),
            ),
        ),
        Kind(
            "network_inference",
            "one forward pass of a whole network",
            (
                *_RUN,
                _DTYPE,
                _MODEL,
                _text("scope", "model", "model"),
                _text("phase", "prefill", "prefill"),
                _text("operator", "forward", "forward"),
                _count("num_layers", "layers"),
                _count("hidden_size", "model width"),
                _count("num_heads", "query heads"),
                _count("head_dim", "width of a head; 0: hidden_size / num_heads", 0, 0),
                _count("ffn_size", "width of the MLP"),
                _count("vocab_size", "rows of the embedding"),
                _count("tp", "tensor-parallel degree", 1),
                _count("batch", "sequences"),
                _count("query_tokens", "tokens per sequence"),
                _count("context_tokens", "tokens attended to; 0: query_tokens", 0, 0),
                _flag("fused", "compiled by torch.compile", 0),
                _measured("measured_ms", "time of the pass, ms"),
                _real("neusight_prediction_ms", "prediction of NeuSight, ms"),
                _real("roofline_prediction_ms", "its roofline, ms"),
                _real("habitat_prediction_ms", "prediction of Habitat, ms"),
                _real("micro_prediction_ms", "prediction of Li et al., ms"),
            ),
        ),
        Kind(
            "serving",
            "online serving at a fixed concurrency",
            (
                *_RUN,
                _text("model", "model name"),
                _text("precision", "as the source names it", ""),
                _text("gemm_dtype", "number format of dense weights", ""),
                _text("moe_dtype", "number format of expert weights", ""),
                _text("mode", "agg, or disagg with workers of their own for prefill", "agg"),
                _count("input_tokens", "prompt length"),
                _count("output_tokens", "generated tokens"),
                _count("concurrency", "requests in flight; 0: not stated", 0, 0),
                _count("batch", "batch as recorded; 0: not stated", 0, 0),
                _count("tp", "tensor-parallel degree; 0: not stated", 0, 0),
                _count("pp", "pipeline-parallel degree; 0: not stated", 0, 0),
                _count("attention_dp", "data parallelism of attention; 0: not stated", 0, 0),
                _count("moe_tp", "tensor parallelism of experts; 0: not stated", 0, 0),
                _count("moe_ep", "expert parallelism; 0: not stated", 0, 0),
                *_SERVING_SIDE,
                _measured("ttft_ms", "time to first token, queueing in, ms"),
                _measured("tpot_ms", "time per further token, ms"),
                _text("measured_date", "", ""),
                _text("container_image", "", ""),
                _flag("work_in_progress", "marked so by the source", 0),
                _flag("suspect_parallelism", "more GPUs than the node has", 0),
            ),
        ),
        Kind(
            "offline_batch",
            "one batch of equal prompts to the end",
            (
                *_RUN,
                _text("table", "part of the source", ""),
                _text("weight_dtype", "number format of the weights"),
                _KV_DTYPE,
                _text("model", "model name"),
                _count("num_gpus", "GPUs in all", 1),
                _text("parallelism", "tp, pp, ep, tp2-ep2, ...; empty: tp", ""),
                _count("batch", "sequences"),
                _count("prompt_tokens", "prompt length"),
                _count("output_tokens", "generated tokens"),
                _measured("runtime_s", "time of the batch, s"),
            ),
        ),
        Kind(
            "api_latency",
            "calls of a black-box text-generation API",
            (
                _SOURCE,
                _text("measured", "date", ""),
                _text("provider", "who answered"),
                _text("model", "model name"),
                _count("prompt_tokens", "prompt length"),
                _count("output_tokens", "tokens asked for"),
                _count("repeat", "running number of equal calls", 1),
                _measured("runtime_s", "time seen by the caller, queueing and network in, s"),
            ),
        ),
        Kind(
            "denoised",
            "denoised latencies: what such an API takes without queueing",
            (
                _SOURCE,
                _text("model", "model name"),
                _count("prompt_tokens", "prompt length"),
                _measured("prefill_s", "time of the prompt, s"),
                _measured("per_output_token_s", "time per generated token, s"),
                _real("overhead_s", "fixed time per call, s", None),
            ),
        ),
        Kind(
            "capability",
            "benchmark score of a model in a scenario",
            (
                _SOURCE,
                _text("scenario", "benchmark scenario"),
                _text("provider", "who answered", ""),
                _text("model", "model name"),
                _measured("mean_prompt_tokens", "mean prompt length"),
                _real("mean_output_tokens", "mean number of generated tokens", None),
                _measured("mean_runtime_s", "mean time of a call, s"),
                _real("exact_match", "score in [0, 1]", None),
            ),
        ),
    )
}
