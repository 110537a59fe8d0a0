"""Memory of the fullest GPU: weights, cache, activations, reserve; does it fit, what would?

Weights are split over tp and, by layers, over pp (the longest stage counts, with the embedding
or the head), experts over ep and moe_tp; norms are whole on every rank, biases of row-parallel
layers and routers are too, but small, and counted as split. KV heads are replicated when there
are fewer than tensor-parallel ranks, latents always. Recurrent layers keep a state per sequence
instead. Activations are the largest set alive at once in the prompt pass: a layer's widest
intermediate, the score matrix where attention is unfused, or the logits. The reserve holds CUDA
context, libraries and NCCL's buffers.

Ignored: allocator fragmentation, CUDA-graph pools. Known error: within 2 % for weights (golden
tests against published parameter counts); activations are an estimate within a factor of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rtsim.errors import SpecError
from rtsim.formats import Formats
from rtsim.operators import StackTraits
from rtsim.prediction import MemoryUse
from rtsim.specs.dtype import dtype_bytes
from rtsim.specs.gpu import GpuSpec
from rtsim.specs.mlp import MoeSpec
from rtsim.specs.model import LayerGroup, ModelSpec
from rtsim.specs.parallelism import ParallelismSpec

# CUDA context, cuBLAS and cuDNN workspaces: what nvidia-smi shows for an idle PyTorch process
# with one of each (0.5-1.2 GB, by driver); NCCL channels add about 0.5 GB (NCCL_BUFFSIZE 4 MiB x
# 32 channels x 2 directions x protocols).
_CONTEXT_BYTES = 1.0e9
_LIBRARY_LINKS_BYTES = 0.5e9
_MOST_SEQUENCES = 2**20
_MOST_TOKENS = 2**30


@dataclass(frozen=True)
class CacheTerm:
    """Bytes of one sequence: per_entry x tokens that `mixer` keeps (None: the source's) + state."""

    per_entry: float
    mixer: Any | None
    state_bytes: float = 0.0


@dataclass(frozen=True)
class Placement:
    """A model on GPUs: all that memory depends on beside the workload."""

    model: ModelSpec
    gpu: GpuSpec
    parallelism: ParallelismSpec
    traits: StackTraits
    formats: Formats

    def split(self, tp: int, pp: int) -> Placement:
        """The same with a replica of tp * pp GPUs, all of a stage in tensor parallelism."""
        p = self.parallelism
        changed = ParallelismSpec(
            tp=tp, pp=pp, ep=math.gcd(p.ep, tp), micro_batches=p.micro_batches
        )
        return replace(self, parallelism=changed)

    @cached_property
    def weights_bytes(self) -> float:
        """Weights on the fullest GPU."""
        model, p = self.model, self.parallelism
        layers = sum(g.stored_count * self._layer_bytes(g) for g in model.all_layers)
        # A tied head shares the token table, unless the two sit in different stages.
        table: float = max(model.embedding_parameters, model.head_parameters)
        if p.pp == 1:
            table = model.embedding_parameters + model.head_parameters
        table += model.other_parameters
        return layers * self._stage_frac + table / p.tp * dtype_bytes(self.formats.dtype)

    @property
    def _stage_frac(self) -> float:
        """A stage holds at most this share of the layers."""
        layers = self.model.n_layers
        return -(-layers // self.parallelism.pp) / layers

    def _layer_bytes(self, group: LayerGroup) -> float:
        hidden, p, formats = self.model.hidden_size, self.parallelism, self.formats
        attention = formats.weights("attention").bytes_per_weight
        mine = sum(float(m.rank_parameters(hidden, p.tp)) for m in group.mixers) * attention
        mlp = group.mlp
        if isinstance(mlp, MoeSpec):
            experts = mlp.rank_experts(p.ep) * mlp.expert_parameters(hidden) / p.moe_tp
            mine += experts * formats.weights("experts").bytes_per_weight
            common = mlp.common_parameters(hidden) / p.tp
            mine += common * formats.weights("mlp").bytes_per_weight
        elif mlp is not None:
            mine += mlp.rank_parameters(hidden, p.tp) * formats.weights("mlp").bytes_per_weight
        return mine + group.small_parameters(hidden) * dtype_bytes(formats.dtype)

    @cached_property
    def cache_terms(self) -> list[CacheTerm]:
        """Cache and state of one sequence on the fullest GPU, a term per layer group and mixer."""
        p, kv = self.parallelism, self.formats.kv_dtype
        terms = []
        for group in self.model.layers:
            if group.attention is not None and getattr(group.attention, "causal", True):
                mixer = group.attention
                scale = group.count * self._stage_frac
                # The state of a recurrent layer is split, not cached per token.
                state = mixer.state_bytes(self.formats.dtype) / p.tp
                one = mixer.cache_bytes_per_token(kv) * mixer.cache_share(p.tp) / p.cp
                terms.append(CacheTerm(scale * one, mixer, scale * state))
            if group.cross_attention is not None:
                mixer = group.cross_attention
                one = mixer.cache_bytes_per_token(kv) * mixer.cache_share(p.tp)
                terms.append(CacheTerm(group.count * self._stage_frac * one, None))
        return terms

    def cache_bytes(self, context: float, source: float = 0.0) -> float:
        """Cache and state of one sequence on the fullest GPU. source: tokens of an encoder."""
        total = 0.0
        for term in self.cache_terms:
            kept = source if term.mixer is None else term.mixer.cached_tokens(context)
            total += term.per_entry * kept + term.state_bytes
        return total

    @cached_property
    def activation_elements(self) -> tuple[float, float]:
        """Elements alive at once in a layer, per token; and per token and prompt token."""
        model, p = self.model, self.parallelism
        widest = 0.0
        scores = 0.0
        for group in model.all_layers:
            widest = max(widest, *(mixer.widest(p.tp) for mixer in group.mixers), 0.0)
            if isinstance(group.mlp, MoeSpec):
                widest = max(widest, group.mlp.widest(p.moe_tp) * p.attention_dp / p.ep)
            elif group.mlp is not None:
                widest = max(widest, group.mlp.widest(p.tp))
            if self.traits.attention == "unfused":
                heads = max((mixer.n_heads for mixer in group.mixers), default=0)
                scores = max(scores, 2.0 * heads / p.tp)
        return 2 * model.hidden_size + widest, scores

    @cached_property
    def logit_bytes(self) -> float:
        """Bytes of the logits of one token; 0 without a head."""
        if not self.model.has_head:
            return 0.0
        element = dtype_bytes(self.formats.dtype)
        return self.model.vocab_size / self.parallelism.tp * (element + 4.0)  # 4: the fp32 copy

    def activation_bytes(self, n_sequences: int, input_len: int) -> float:
        """The largest set alive at once in the prompt pass."""
        p = self.parallelism
        tokens = -(-n_sequences // p.micro_batches) * -(-input_len // p.cp)
        fixed, scores = self.activation_elements
        in_layers = tokens * dtype_bytes(self.formats.dtype) * (fixed + scores * input_len)
        logit_rows = tokens if self.traits.logits == "all" else n_sequences
        return max(in_layers, logit_rows * self.logit_bytes)

    def reserved_bytes(self) -> float:
        """CUDA context, libraries, and NCCL's buffers where GPUs talk."""
        return _CONTEXT_BYTES + (
            _LIBRARY_LINKS_BYTES if self.parallelism.gpus_per_replica > 1 else 0.0
        )

    def use(self, n_sequences: int, input_len: int, last_context: int) -> MemoryUse:
        """Memory of the fullest GPU at a workload. n_sequences: of one group of GPUs."""
        source = float(input_len) if self.model.encoder else 0.0
        context = last_context - input_len + 1 if self.model.encoder else last_context
        capacity = float(self.gpu.memory_bytes)
        weights, reserved = self.weights_bytes, self.reserved_bytes()
        cache = self.cache_bytes(context, source) * n_sequences
        activations = self.activation_bytes(n_sequences, input_len)
        fits = weights + cache + activations + reserved <= capacity
        return MemoryUse(weights, cache, activations, reserved, capacity, fits)

    def smallest_fitting_tp(
        self, n_sequences: int, input_len: int, last_context: int, pp: int
    ) -> int | None:
        """The smallest tensor parallelism of a node that fits with pp stages; None: none."""
        for tp in self.tensor_degrees():
            other = self.split(tp, pp)
            if other.use(n_sequences, input_len, last_context).fits:
                return tp
        return None

    def min_gpus(self, n_sequences: int, input_len: int, last_context: int) -> int | None:
        """Fewest GPUs of one replica that hold the workload, over tp and pp; None: none do.

        Stages beyond a node need a network. The sequences are those of the whole replica.
        """
        degrees = self.tensor_degrees()
        most_stages = self.model.n_layers if self.gpu.network is not None else 1
        found: int | None = None
        for tp in degrees:
            for pp in range(1, most_stages + 1):
                if found is not None and tp * pp >= found:
                    break
                if tp * pp > self.gpu.gpus_joined and self.gpu.network is None:
                    break
                if self.split(tp, pp).use(n_sequences, input_len, last_context).fits:
                    found = tp * pp
                    break
        return found

    def tensor_degrees(self) -> list[int]:
        """Tensor parallelism that a node and the model's heads allow, rising."""
        allowed = []
        for tp in range(1, self.gpu.gpus_joined + 1):
            try:
                ParallelismSpec(tp=tp).check_model(self.model)
            except SpecError:
                continue
            allowed.append(tp)
        return allowed

    def largest_batch(self, input_len: int, output_len: int) -> int:
        """Most sequences of the whole system that fit at these lengths; 0: not even one each."""
        last = input_len + output_len - 1
        one_group = _largest(lambda n: self.use(n, input_len, last).fits, _MOST_SEQUENCES)
        return one_group * self.parallelism.sequence_groups

    def longest_context(self, n_sequences: int) -> int:
        """Most tokens per sequence, prompt and output together, that fit; 0: not even one.

        The prompt is taken to be all but one token, which needs the most activations. Learned
        positions are a limit of their own.
        """
        learned = self.model.position == "learned"
        most = self.model.max_positions if learned else _MOST_TOKENS
        return _largest(lambda n: self.use(n_sequences, n, n).fits, most)


def memory_use(
    placement: Placement, *, n_sequences: int, input_len: int, last_context: int
) -> MemoryUse:
    """Memory of the fullest GPU of a replica, bytes, and what would fit instead.

    n_sequences: sequences of one group; last_context: tokens cached when the request ends.
    """
    here = placement.use(n_sequences, input_len, last_context)
    p = placement.parallelism
    together = n_sequences * p.attention_dp
    if here.fits and p.stage_gpus == 1:
        smallest: int | None = 1
    else:
        smallest = placement.smallest_fitting_tp(together, input_len, last_context, p.pp)
    if here.fits and p.gpus_per_replica == 1:
        fewest: int | None = 1
    else:
        fewest = placement.min_gpus(together, input_len, last_context)
    return replace(
        here,
        smallest_fitting_tp=smallest,
        min_gpus=fewest,
        max_batch_size=placement.largest_batch(input_len, last_context - input_len + 1),
        max_context=placement.longest_context(n_sequences),
    )


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """Largest n in 1..most that fits, by bisection, since less never needs more; 0: none."""
    if not fits(1):
        return 0
    low = 1
    while low < most and fits(min(2 * low, most)):
        low = min(2 * low, most)
    high = min(2 * low, most)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
