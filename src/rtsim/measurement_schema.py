"""The columns of rtsim's measurement tables: its public format for measured times.

A table is a CSV file (plain or gzipped, UTF-8, one header line) or a Parquet file, and holds one
kind of measurement. `KINDS` lists every kind with every column: what it means, its unit, and
what an absent value stands for. Further columns are allowed and ignored.

Units are in the names: `_us`, `_ms`, `_s`, `_bytes`. Sizes of an operator are those of one GPU's
share. GPU names and stack names resolve through the catalogue's aliases.
"""

from __future__ import annotations

from rtsim.measurement_columns import Kind, count, flag, measured, real, text

_SOURCE = text("source", "who measured it", "")
_GPU = text("gpu", "GPU name or alias")
_STACK = text("stack", "software that ran it", "")
_VERSION = text("stack_version", "its version", "")
_KERNEL = text("kernel", "kernel or backend name", "")
_DTYPE = text("dtype", "number format of the computation")
_KV_DTYPE = text("kv_dtype", "number format of the KV cache; empty: that of dtype", "")
_MODEL = text("model", "label of the model the shape comes from", "")
_TIME = measured("time_us", "time of one execution, us")
_RUN = (_SOURCE, _GPU, _STACK, _VERSION)
ROLES = ("calibration", "validation", "variant")
_ROLE = text("role", "calibration; validation, kept out of fits; variant, not the stack's usual "
              "kernel, kept out too; empty: as calibration", "")  # fmt: skip
TIMINGS = ("graph", "events", "wall")
RESIDENCIES = ("cold", "warm")
_METHOD = (
    _ROLE,
    text("timing", "graph: replayed in a CUDA graph, no launch in it; events: calls issued one by "
          "one; wall: host clock; empty: as the tables of the stack are known to be timed", ""),
    text("residency", "cold: operands come from DRAM (of products and experts the weights alone); "
          "warm: one set of operands again and again; empty: as the tables of the stack", ""),
)  # fmt: skip
_HEADS = (
    count("num_heads", "query heads"),
    count("num_kv_heads", "key/value heads"),
    count("head_dim", "width of a head"),
)
_TP = count("tp", "tensor-parallel degree the shape was split by; 0: not stated", 0, 0)

_ATTENTION = (
    *_RUN,
    _KERNEL,
    _DTYPE,
    _KV_DTYPE,
    flag("causal", "whether a token sees only earlier ones", 1),
    count("batch", "sequences"),
    count("query_tokens", "new tokens per sequence"),
    count("context_tokens", "tokens attended to, the new ones included"),
    *_HEADS,
    count("window_size", "sliding window, 0: none", 0, 0),
    *_METHOD,
    _TIME,
)

_SERVING_SIDE = tuple(
    count(f"{side}_{name}", f"{meaning} of the {side} workers; 0: not disaggregated", 0, 0)
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
                count("num_layers", "decoder layers"),
                count("hidden_size", "model width"),
                count("num_heads", "query heads"),
                count("num_kv_heads", "key/value heads; 0: as many as num_heads", 0, 0),
                count("head_dim", "width of a head; 0: hidden_size / num_heads", 0, 0),
                count("ffn_size", "width of the MLP"),
                flag("gated_mlp", "three MLP matrices instead of two", 0),
                count("vocab_size", "rows of the embedding, padding included"),
                count("max_positions", "longest sequence; 0: not stated", 0, 0),
                count("tp", "tensor-parallel degree", 1),
                count("pp", "pipeline-parallel degree", 1),
                count("num_gpus", "GPUs in all; 0: tp x pp", 0, 0),
                count("parameters_per_gpu", "as the run printed; 0: not stated", 0, 0),
                count("batch", "sequences", 1),
                count("prompt_tokens", "prompt length"),
                count("output_tokens", "generated tokens, the first included"),
                count("num_experts", "experts of every MLP; 0: dense", 0, 0),
                count("top_k", "experts per token; 0: dense", 0, 0),
                text(
                    "traits",
                    "what the stack runs, as NAME=VALUE words of a profile's [stack]; "
                    "empty: as its nearest profile",
                    "",
                ),
                flag("bare_loop", "token ids in and out: nothing tokenised, scheduled, served", 0),
                _ROLE,
                measured("runtime_s", "mean time of a whole generation, s"),
                real("runtime_std_s", "its standard deviation between runs, s"),
            ),
        ),
        Kind(
            "gemm",
            "matrix product [m, k] x [k, n], `batch` of them",
            (
                *_RUN,
                _KERNEL,
                _DTYPE,
                text("op", "linear, linear_bias, bmm, matmul, or the layer of a model", "linear"),
                _MODEL,
                _TP,
                count("m", "rows (tokens)"),
                count("n", "columns (outputs)"),
                count("k", "inner dimension (inputs)"),
                count("batch", "independent products", 1),
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
                text("op", "context_* or generation_* attention or module, bmm_pre, bmm_post"),
                _MODEL,
                _DTYPE,
                _KV_DTYPE,
                text("gemm_dtype", "number format of the projections; empty: none run", ""),
                count("num_heads", "query heads"),
                count("batch", "sequences, or tokens for bmm_*"),
                count("query_tokens", "new tokens per sequence"),
                count("context_tokens", "tokens attended to; 0 for bmm_*", None, 0),
                _TIME,
            ),
        ),
        Kind(
            "moe",
            "mixture-of-experts layer on one GPU: routing, two GEMMs, activation, combine",
            (
                *_RUN,
                _KERNEL,
                text("op", "fused_moe", "fused_moe"),
                _DTYPE,
                text("distribution", "of tokens over experts", "balanced"),
                count("num_tokens", "tokens entering"),
                count("hidden_size", "model width"),
                count("intermediate_size", "width of an expert, before the split by tp"),
                count("top_k", "experts per token"),
                count("num_experts", "experts in all"),
                count("tp", "tensor-parallel degree of an expert", 1),
                count("ep", "GPUs the experts are spread over", 1),
                *_METHOD,
                _TIME,
            ),
        ),
        Kind(
            "collective",
            "communication between GPUs",
            (
                *_RUN,
                text("implementation", "nccl, nccl-tests, custom_graph, custom_eager", "nccl"),
                text("topology", "nvswitch, nvlink-pairs, pcie4, ...", ""),
                text("collective", "all_reduce, all_gather, reduce_scatter, alltoall, send_recv"),
                text("dtype", "number format of the message", ""),
                count("num_gpus", "GPUs taking part"),
                count("num_nodes", "machines they stand in", 1),
                count("message_bytes", "all_reduce, send_recv: one GPU's buffer; else the whole"),
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
                text("op", "add, gelu, softmax, layernorm, rmsnorm, silu_and_mul, rope, ..."),
                _DTYPE,
                _MODEL,
                _TP,
                count("rows", "rows of the output"),
                count("cols", "columns of the output"),
                *_METHOD,
                _TIME,
            ),
        ),
        Kind(
            "launch",
            "what the host pays to issue kernels that do next to nothing, one after the other",
            (
                *_RUN,
                text("mode", "eager, compiled or graph"),
                count("kernels", "kernels issued in one go"),
                _ROLE,
                measured("time_us", "host time of all of them, us"),
            ),
        ),
        Kind(
            "network_inference",
            "one forward pass of a whole network",
            (
                *_RUN,
                _DTYPE,
                _MODEL,
                text("scope", "model", "model"),
                text("phase", "prefill", "prefill"),
                text("operator", "forward", "forward"),
                count("num_layers", "layers"),
                count("hidden_size", "model width"),
                count("num_heads", "query heads"),
                count("head_dim", "width of a head; 0: hidden_size / num_heads", 0, 0),
                count("ffn_size", "width of the MLP"),
                count("vocab_size", "rows of the embedding"),
                count("tp", "tensor-parallel degree", 1),
                count("batch", "sequences"),
                count("query_tokens", "tokens per sequence"),
                count("context_tokens", "tokens attended to; 0: query_tokens", 0, 0),
                flag("fused", "compiled by torch.compile", 0),
                measured("measured_ms", "time of the pass, ms"),
                real("neusight_prediction_ms", "prediction of NeuSight, ms"),
                real("roofline_prediction_ms", "its roofline, ms"),
                real("habitat_prediction_ms", "prediction of Habitat, ms"),
                real("micro_prediction_ms", "prediction of Li et al., ms"),
            ),
        ),
        Kind(
            "serving",
            "online serving at a fixed concurrency",
            (
                *_RUN,
                text("model", "model name"),
                text("precision", "as the source names it", ""),
                text("gemm_dtype", "number format of dense weights", ""),
                text("moe_dtype", "number format of expert weights", ""),
                text("mode", "agg, or disagg with workers of their own for prefill", "agg"),
                count("input_tokens", "prompt length"),
                count("output_tokens", "generated tokens"),
                count("concurrency", "requests in flight; 0: not stated", 0, 0),
                count("batch", "batch as recorded; 0: not stated", 0, 0),
                count("tp", "tensor-parallel degree; 0: not stated", 0, 0),
                count("pp", "pipeline-parallel degree; 0: not stated", 0, 0),
                count("attention_dp", "data parallelism of attention; 0: not stated", 0, 0),
                count("moe_tp", "tensor parallelism of experts; 0: not stated", 0, 0),
                count("moe_ep", "expert parallelism; 0: not stated", 0, 0),
                *_SERVING_SIDE,
                measured("ttft_ms", "time to first token, queueing in, ms"),
                measured("tpot_ms", "time per further token, ms"),
                text("measured_date", "", ""),
                text("container_image", "", ""),
                flag("work_in_progress", "marked so by the source", 0),
                flag("suspect_parallelism", "more GPUs than the node has", 0),
            ),
        ),
        Kind(
            "offline_batch",
            "one batch of equal prompts to the end",
            (
                *_RUN,
                text("table", "part of the source", ""),
                text("weight_dtype", "number format of the weights"),
                _KV_DTYPE,
                text("model", "model name"),
                count("num_gpus", "GPUs in all", 1),
                text("parallelism", "tp, pp, ep, tp2-ep2, ...; empty: tp", ""),
                count("batch", "sequences"),
                count("prompt_tokens", "prompt length"),
                count("output_tokens", "generated tokens"),
                measured("runtime_s", "time of the batch, s"),
            ),
        ),
        Kind(
            "api_latency",
            "calls of a black-box text-generation API",
            (
                _SOURCE,
                text("measured", "date", ""),
                text("provider", "who answered"),
                text("model", "model name"),
                count("prompt_tokens", "prompt length"),
                count("output_tokens", "tokens asked for"),
                count("repeat", "running number of equal calls", 1),
                measured("runtime_s", "time seen by the caller, queueing and network in, s"),
            ),
        ),
        Kind(
            "denoised",
            "denoised latencies: what such an API takes without queueing",
            (
                _SOURCE,
                text("model", "model name"),
                count("prompt_tokens", "prompt length"),
                measured("prefill_s", "time of the prompt, s"),
                measured("per_output_token_s", "time per generated token, s"),
                real("overhead_s", "fixed time per call, s", None),
            ),
        ),
        Kind(
            "capability",
            "benchmark score of a model in a scenario",
            (
                _SOURCE,
                text("scenario", "benchmark scenario"),
                text("provider", "who answered", ""),
                text("model", "model name"),
                measured("mean_prompt_tokens", "mean prompt length"),
                real("mean_output_tokens", "mean number of generated tokens", None),
                measured("mean_runtime_s", "mean time of a call, s"),
                real("exact_match", "score in [0, 1]", None),
            ),
        ),
    )
}
