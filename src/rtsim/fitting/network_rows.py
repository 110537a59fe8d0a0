"""Predicts the rows of `network_inference` tables: whole forward passes of PyTorch modules.

The model is built from the columns of a row. Its label says only the family (`FAMILIES`), which
decides what no column states: an encoder or a decoder, separate or joint projections, and the
small kernels that the library's modules run one after the other. Decoders compute logits of
every token; the head of an encoder sees one token per sequence and is left out.

Kernels follow each other without waiting for the host, so the launch that eager calls carry when
they are timed one by one (the kernel tables of the same source) is taken out of the coefficients.
`fused` rows (torch.compile) run one kernel per chain of elementwise operators.

The interval takes the errors of kernels of different shapes as independent, as they were when
their scatter was measured one by one; a shape is off by the same in every layer. Shapes of models
are even ones, and scatter less than those of the kernel tables, which were drawn at random: the
share `MODEL_SHAPES_FRAC`. Set by the passes of the other GPUs, 88 % of a GPU's passes
lie in their interval; by those of the other models, 91 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import rtsim_kernels
from numpy.typing import NDArray
from rtsim_kernels import gemm, memory_bound

from rtsim.catalog import load_gpu
from rtsim.errors import NotSupported, RtsimError
from rtsim.formats import Formats
from rtsim.machine import MachineRows, machine_rows
from rtsim.measurements import Columns
from rtsim.operators import OperatorTable, PlainForward, StackTraits, lower
from rtsim.profile import GROUPS, Profile, interval_half_width, load_profile
from rtsim.profile_choice import choose_profile
from rtsim.row_times import RowTimes
from rtsim.specs.dtype import dtype_bytes
from rtsim.specs.gpu import GpuSpec

if TYPE_CHECKING:
    from rtsim.specs import ModelSpec

Array = NDArray[np.float64]

MODEL_SHAPES_FRAC = 0.55

# What the passes are: modules called one by one, scores written out, nothing fused.
EAGER = StackTraits(attention="unfused", logits="all", fused_norm=False)

# tanh GELU as the library spells it out:
# 0.5 x (1 + tanh(c (x + 0.044715 x^3))), from left to right and inside out.
TANH_GELU = (
    *("mul_scalar", "pow_scalar", "mul_scalar", "add", "mul_scalar", "tanh", "add_scalar", "mul"),
)


@dataclass(frozen=True)
class Family:
    """What a family of models runs beyond its shape. Kernels: see `operators.PlainForward`."""

    plain: PlainForward
    activation: str
    final_norm: bool = True
    embedding_norm: bool = False


# By the first letters of the label. HuggingFace transformers 4: modeling_bert, modeling_gpt2,
# modeling_opt. The scores are scaled, masked and normalised by a kernel each; OPT scales the
# queries instead and clamps the masked scores.
FAMILIES: dict[str, Family] = {
    "bert": Family(
        PlainForward(head=False, separate_qkv=True,
                     score_kernels=("div_scalar", "add_scalar", "softmax")),
        "gelu", final_norm=False, embedding_norm=True,
    ),
    "gpt": Family(
        PlainForward(score_kernels=("div_scalar", "add_scalar", "softmax"),
                     activation_kernels=TANH_GELU),
        "gelu",
    ),
    "opt": Family(
        PlainForward(separate_qkv=True, head_copies=5,
                     score_kernels=("add_scalar", "add_scalar", "softmax")),
        "relu",
    ),
}  # fmt: skip
NOT_EXPRESSED = {"switch": "eager loops over experts are not described"}


def predict_rows(columns: Columns, profile: str | None) -> dict[str, RowTimes]:
    """Time of every forward pass; rows of unknown GPUs or families are skipped.

    Raises UnknownName or DataError where `profile` is no profile.
    """
    chosen = None if profile is None else load_profile(profile)
    measured_s = columns["measured_ms"] * 1e-3
    predicted_s, factor = (np.full(len(measured_s), np.nan) for _ in range(2))
    skip = np.full(len(measured_s), "", dtype=object)
    for i in range(len(measured_s)):
        row = {name: columns[name][i].item() for name in columns}
        try:
            gpu = load_gpu(row["gpu"]).one_device()
            used = chosen or choose_profile(gpu, stack_of(row["stack"]))[0]
            run = forward_pass(row, gpu, used)
        except RtsimError as error:
            skip[i] = str(error)
            continue
        predicted_s[i] = run.seconds
        sigmas = MODEL_SHAPES_FRAC * sigmas_of(used, gpu)[run.group]
        factor[i] = np.exp(interval_half_width(run.owed_s, sigmas, used.sigma_row))
    times = RowTimes(
        measured_s, predicted_s, predicted_s / factor, predicted_s * factor, skip.astype(np.str_),
        np.where(columns["fused"] > 0, "compiled", "eager"), ("eager", "compiled"),
    )  # fmt: skip
    return {"forward": times}


def stack_of(name: str) -> str | None:
    """Stack that a table's name stands for: "pytorch/transformers" runs PyTorch's kernels."""
    return name.partition("/")[0] or None


def sigmas_of(profile: Profile, gpu: GpuSpec) -> Array:
    """Deviation of ln(error) by group, for a model outside the fit."""
    own = np.array([profile.sigma_unseen[group] for group in GROUPS])
    if gpu.name == profile.gpu:
        return own
    further = np.array([profile.transfer_sigma[group] for group in GROUPS])
    return np.asarray(np.hypot(own, further))


@dataclass(frozen=True)
class Pass:
    """Seconds of a forward pass by what they are owed to: one part per shape, then the host.

    group: of `profile.GROUPS`, for each part.
    """

    owed_s: Array
    group: NDArray[np.int64]

    @property
    def seconds(self) -> float:
        """Time of the whole pass."""
        return float(self.owed_s.sum())


def forward_pass(row: Mapping[str, Any], gpu: GpuSpec, profile: Profile) -> Pass:
    """Time of one pass.

    row: a row of the table by column name. Raises NotSupported for what cannot be expressed.
    """
    if (row["scope"], row["operator"]) != ("model", "forward"):
        raise NotSupported("only forward passes of whole models are predicted")
    kernels = rtsim_kernels.compiled()
    table = operator_table(row, gpu)
    rows = issued_ahead(machine_rows(profile, gpu, formats_of(row["dtype"])))
    times = np.zeros((len(table.rows), 2))
    seconds = kernels.step.step_s(
        float(row["batch"]), float(row["query_tokens"]),
        float(row["context_tokens"] or row["query_tokens"]), 0.0,
        float(row["query_tokens"] > 1), 0.0, 0.0,
        table.rows, table.segments, rows.joined()[()], times,
    )  # fmt: skip
    owed_s = times[:, 1] * table.executions
    by_shape: dict[bytes, float] = {}
    group_of: dict[bytes, int] = {}
    for operator, part_s in zip(table.rows, owed_s.tolist(), strict=True):
        shape = operator.tobytes()
        by_shape[shape] = by_shape.get(shape, 0.0) + part_s
        group_of[shape] = int(operator["kind"])
    host_s = seconds - float(owed_s.sum())
    host_group = kernels.generation.GROUP_PROMPT_HOST
    return Pass(np.array([*by_shape.values(), host_s]), np.array([*group_of.values(), host_group]))


def formats_of(dtype: str) -> Formats:
    """Number formats of a pass in which everything is of one dtype."""
    return Formats(dtype, dtype)


def operator_table(row: Mapping[str, Any], gpu: GpuSpec) -> OperatorTable:
    """The kernels of a pass; raises NotSupported for a family that is not described."""
    from rtsim.specs import ParallelismSpec

    family = family_of(row["model"])
    traits, plain = EAGER, family.plain
    if row["fused"]:
        traits = replace(traits, fused_norm=True)
        plain = replace(plain, score_kernels=("softmax",), activation_kernels=())
    parallelism = ParallelismSpec.from_mapping({"tp": row["tp"]})
    element_bytes = dtype_bytes(row["dtype"])
    return lower(model_of(row), parallelism, traits, element_bytes, gpu.gpus_per_node, plain)


def family_of(label: str) -> Family:
    """What the family of a model runs; decoders of the GPT-2 kind where the label says nothing.

    >>> family_of("bert_large").plain.head
    False
    """
    for start, reason in NOT_EXPRESSED.items():
        if label.lower().startswith(start):
            raise NotSupported(f"{label}: {reason}")
    for start, family in FAMILIES.items():
        if label.lower().startswith(start):
            return family
    return FAMILIES["gpt"]


def model_of(row: Mapping[str, Any]) -> ModelSpec:
    """The model with the shape that the columns describe. Raises SpecError where there is none."""
    from rtsim.specs import ModelSpec

    family = family_of(row["model"])
    heads = row["num_heads"]
    return ModelSpec.from_mapping(
        {
            "name": row["model"] or "unnamed",
            "hidden_size": row["hidden_size"],
            "vocab_size": row["vocab_size"],
            "max_positions": row["context_tokens"] or row["query_tokens"],
            "position": "learned",
            "tied_embeddings": True,
            "final_norm": family.final_norm,
            "embedding_norm": family.embedding_norm,
            "dtype": row["dtype"],
            "layers": [
                {
                    "count": row["num_layers"],
                    "attention": {
                        "n_heads": heads,
                        "head_dim": row["head_dim"] or max(1, row["hidden_size"] // heads),
                        "qkv_bias": True,
                        "out_bias": True,
                    },
                    "mlp": {
                        "ffn_size": row["ffn_size"], "bias": True, "activation": family.activation
                    },
                }
            ],
        }
    )  # fmt: skip


def issued_ahead(rows: MachineRows) -> MachineRows:
    """The same machine with kernels that the host has issued long before they start.

    Launches fall back to those of kernels in a queue (the declared priors), and what stands for
    tokenising, caches and fused score kernels in a serving stack is off.
    """
    priors = {
        c.name: c.prior for c in (*gemm.GEMM_COEFFICIENTS, *memory_bound.MEMORY_BOUND_COEFFICIENTS)
    }
    gemm_rows, memory, host = rows.gemm.copy(), rows.memory.copy(), rows.host.copy()
    gemm_rows["launch_clocks"] = np.minimum(gemm_rows["launch_clocks"], priors["launch_clocks"])
    memory["launch_s"] = min(float(memory["launch_s"]), priors["launch_s"])
    host["prompt_token_s"] = 0.0
    host["prefill_layer_s"] = 0.0
    host["score_passes"] = 1.0
    return replace(rows, gemm=gemm_rows, memory=memory, host=host)
