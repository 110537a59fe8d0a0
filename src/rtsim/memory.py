"""Memory of the fullest GPU: weights, KV cache, activations, reserve; does it fit?

Weights are split over tp and, by layers, over pp (the longest stage counts, with the embedding
or the head); norms and biases of row-parallel layers are replicated but small, and counted as
split. KV heads are replicated when there are fewer than tensor-parallel ranks. Activations are
the largest set alive at once in the prompt pass: a layer's widest intermediate, the score matrix
where attention is unfused, or the logits.

Ignored: allocator fragmentation, CUDA-graph pools. Known error: within 2 % for weights (golden
tests against published parameter counts); activations are an estimate within a factor of two.
"""

from __future__ import annotations

from dataclasses import replace

from rtsim.errors import SpecError
from rtsim.operators import StackTraits
from rtsim.prediction import MemoryUse
from rtsim.specs.dtype import WeightFormat, dtype_bytes
from rtsim.specs.gpu import GpuSpec
from rtsim.specs.model import ModelSpec
from rtsim.specs.parallelism import ParallelismSpec

# CUDA context, cuBLAS and cuDNN workspaces: what nvidia-smi shows for an idle PyTorch process
# with one of each (0.5-1.2 GB, by driver); NCCL channels add about 0.5 GB (NCCL_BUFFSIZE 4 MiB x
# 32 channels x 2 directions x protocols).
_CONTEXT_BYTES = 1.0e9
_LIBRARY_LINKS_BYTES = 0.5e9


def memory_use(
    model: ModelSpec,
    gpu: GpuSpec,
    parallelism: ParallelismSpec,
    traits: StackTraits,
    *,
    weights: WeightFormat,
    dtype: str,
    kv_dtype: str,
    n_sequences: int,
    input_len: int,
    last_context: int,
) -> MemoryUse:
    """Memory of the fullest GPU of a replica, bytes, and the smallest tp that fits a node.

    n_sequences: sequences of one replica; last_context: tokens cached when the request ends.
    """

    def use(tp: int) -> MemoryUse:
        return _use(model, gpu, tp, parallelism.pp, traits, weights, dtype, kv_dtype, n_sequences,
                    input_len, last_context)  # fmt: skip

    here = use(parallelism.tp)
    if here.fits and parallelism.tp == 1:
        smallest: int | None = 1
    else:
        candidates = (tp for tp in range(1, gpu.gpus_joined + 1) if _splits(model, tp))
        smallest = next((tp for tp in candidates if use(tp).fits), None)
    return replace(here, smallest_fitting_tp=smallest)


def _splits(model: ModelSpec, tp: int) -> bool:
    try:
        ParallelismSpec(tp=tp).check_model(model)
    except SpecError:
        return False
    return True


def _use(model: ModelSpec, gpu: GpuSpec, tp: int, pp: int, traits: StackTraits,
         weights: WeightFormat, dtype: str, kv_dtype: str, n_sequences: int, input_len: int,
         last_context: int) -> MemoryUse:  # fmt: skip
    element = dtype_bytes(dtype)
    hidden = model.hidden_size
    # A stage holds at most this share of the layers.
    stage_frac = -(-model.n_layers // pp) / model.n_layers
    layer_bytes = 0.0
    cache_bytes = 0.0
    widest = 0.0
    scores = 0.0
    tokens = n_sequences * input_len
    for group in model.layers:
        attention, mlp = group.attention, group.mlp
        matrices = attention.parameters(hidden) + mlp.parameters(hidden)
        kv_share = max(1.0, attention.n_kv_heads / tp) / attention.n_kv_heads  # of one rank
        kv_parameters = 2 * attention.kv_width * hidden
        mine = (matrices - kv_parameters) / tp + kv_parameters * kv_share
        norms = group.norms_per_layer * group.norm_parameters(hidden)
        layer_bytes += group.count * (mine * weights.bytes_per_weight + norms * element)
        cached = attention.kv_bytes_per_token(kv_dtype) * attention.cached_tokens(last_context)
        cache_bytes += group.count * cached * kv_share
        ups = 2 if mlp.gated else 1
        inside = max(
            (attention.q_width + 2 * attention.kv_width) / tp, (ups + 1) * mlp.ffn_size / tp
        )
        widest = max(widest, inside)
        if traits.attention == "unfused":
            scores = max(scores, 2.0 * attention.n_heads / tp * input_len)
    # A tied head shares the token table, unless the two sit in different stages.
    table = max(model.embedding_parameters, model.head_parameters)
    if pp == 1:
        table = model.embedding_parameters + model.head_parameters
    in_layers = tokens * element * (2 * hidden + widest + scores)
    logit_rows = tokens if traits.logits == "all" else n_sequences
    in_head = logit_rows * model.vocab_size / tp * (element + 4.0)  # 4: the fp32 copy
    capacity = float(gpu.memory_bytes)
    result = MemoryUse(
        weights_bytes=layer_bytes * stage_frac + table / tp * element,
        kv_cache_bytes=cache_bytes * stage_frac * n_sequences,
        activation_bytes=max(in_layers, in_head),
        reserved_bytes=_CONTEXT_BYTES + (_LIBRARY_LINKS_BYTES if tp * pp > 1 else 0.0),
        capacity_bytes=capacity,
        fits=False,
    )
    return replace(result, fits=result.used_bytes <= capacity)
