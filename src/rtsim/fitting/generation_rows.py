"""Predicts the rows of `generation` tables: whole generations of models given by their shape.

The model is built from the columns of a row, never from its label. What the table does not
say is taken as in the models of that shape: plain MLPs go with LayerNorm, biases and learned
positions (GPT-2, GPT-3, OPT), gated ones with RMSNorm, no biases and rotary positions (Llama);
experts are gated, and none is shared (Mixtral).
Each distinct configuration is lowered once; its rows are then one call of the compiled core.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtsim.errors import RtsimError, SpecError, nearest_names
from rtsim.measurements import Columns
from rtsim.operators import TRAIT_VALUES, StackTraits
from rtsim.row_times import RowTimes

if TYPE_CHECKING:
    from rtsim.profile import Profile
    from rtsim.specs import ModelSpec, ParallelismSpec
    from rtsim.system import System

# What makes a configuration: everything but the sizes of the workload. The label is among them
# for messages only.
_CONFIGURATION = (
    *("gpu", "stack", "dtype", "tp", "pp", "num_gpus", "model"),
    *("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "ffn_size"),
    *("gated_mlp", "vocab_size", "max_positions"),
    *("num_experts", "top_k", "traits", "bare_loop"),
)
_FLAG_WORDS = {"0": False, "1": True}
PROMPT_ONLY = "prompt only"
WITH_DECODE = "with decode"


def predict_rows(columns: Columns, profile: str | None) -> dict[str, RowTimes]:
    """Runtime of every row; rows of an unknown GPU, stack or impossible split are skipped.

    Raises UnknownName or DataError where `profile` is no profile.
    """
    from rtsim.profile import load_profile

    chosen = None if profile is None else load_profile(profile)
    rows = len(columns["runtime_s"])
    predicted_s, low_s, high_s = (np.full(rows, np.nan) for _ in range(3))
    reasons = [""] * rows
    for configuration, members in grouped(columns):
        try:
            system = _system(configuration, chosen)
        except RtsimError as error:
            for i in members:
                reasons[i] = str(error)
            continue
        sizes = (columns[name][members] for name in ("batch", "prompt_tokens", "output_tokens"))
        owed = system.runtimes(*sizes).sum(axis=1)  # prompt pass and decode together
        factor = np.exp(system.interval_frac(owed, columns["batch"][members]))
        predicted_s[members] = owed.sum(axis=-1)
        low_s[members] = predicted_s[members] / factor
        high_s[members] = predicted_s[members] * factor
    regime = np.where(columns["output_tokens"] == 1, PROMPT_ONLY, WITH_DECODE)
    times = RowTimes(
        columns["runtime_s"], predicted_s, low_s, high_s, np.array(reasons, np.str_), regime
    )
    return {"runtime": times}


def grouped(columns: Columns) -> list[tuple[dict[str, Any], NDArray[np.intp]]]:
    """Each distinct configuration with the indices of its rows."""
    members: dict[tuple[Any, ...], list[int]] = {}
    names = [name for name in _CONFIGURATION if name in columns]
    keys = zip(*(columns[name].tolist() for name in names), strict=True)
    for i, key in enumerate(keys):
        members.setdefault(key, []).append(i)
    return [
        (dict(zip(names, key, strict=True)), np.array(indices)) for key, indices in members.items()
    ]


def _system(row: dict[str, Any], profile: Profile | None) -> System:
    from rtsim.catalog import load_gpu
    from rtsim.profile_choice import choose_profile
    from rtsim.system import System

    gpu = load_gpu(row["gpu"])
    if row.get("traits"):
        chosen = profile or choose_profile(gpu, row["stack"] or None)[0]
        profile = with_traits(chosen, row["traits"])
    return System(
        model_of(row),
        gpu,
        parallelism_of(row),
        profile=profile,
        # A profile that was asked for serves every row, whatever its stack.
        stack=row["stack"] or None if profile is None else None,
        dtype=row["dtype"],
    )


def with_traits(profile: Profile, text: str) -> Profile:
    """`profile` with the stack traits that a row states, "attention=fused logits=last ...".

    Flags are 0 or 1. Raises SpecError for a trait that there is not.

    >>> from rtsim.profile import load_profile
    >>> with_traits(load_profile("pytorch-t4"), "attention=fused fused_norm=1").traits.fused_norm
    True
    """
    traits: dict[str, Any] = {}
    known = [f.name for f in fields(StackTraits) if f.name in TRAIT_VALUES or f.type == "bool"]
    for word in text.split():
        name, _, value = word.partition("=")
        if name not in known:
            raise SpecError(
                "traits", word, f"must be of {', '.join(known)}", nearest=nearest_names(name, known)
            )
        allowed = TRAIT_VALUES.get(name, tuple(_FLAG_WORDS))
        if value not in allowed:
            raise SpecError(f"traits.{name}", value, f"must be one of {', '.join(allowed)}")
        traits[name] = _FLAG_WORDS.get(value, value)
    return replace(profile, traits=replace(profile.traits, **traits))


def parallelism_of(row: dict[str, Any]) -> ParallelismSpec:
    """The split that a row states; what it leaves out is derived."""
    from rtsim.specs import ParallelismSpec

    split = {name: row[name] for name in ("tp", "pp", "num_gpus") if row[name]}
    return ParallelismSpec.from_mapping(split)


def model_of(row: dict[str, Any]) -> ModelSpec:
    """The model with the shape that the columns of a `generation` row describe.

    Raises SpecError where they describe none.
    """
    from rtsim.specs import ModelSpec

    gated = bool(row["gated_mlp"])
    heads = row["num_heads"]
    mlp: dict[str, Any] = {
        "ffn_size": row["ffn_size"],
        "gated": gated,
        "bias": not gated,
        "activation": "silu" if gated else "gelu",
    }
    if row.get("num_experts"):
        mlp = {
            "kind": "moe",
            "n_experts": row["num_experts"],
            "top_k": row["top_k"],
            "expert_size": row["ffn_size"],
            "gated": gated,
        }
    return ModelSpec.from_mapping(
        {
            "name": row["model"] or "unnamed",
            "hidden_size": row["hidden_size"],
            "vocab_size": row["vocab_size"],
            "max_positions": row["max_positions"] or 2048,
            "position": "rotary" if gated else "learned",
            "tied_embeddings": not gated,
            "dtype": "bf16" if row["dtype"] == "bf16" else "fp16",
            "layers": [
                {
                    "count": row["num_layers"],
                    "norm": "rmsnorm" if gated else "layernorm",
                    "attention": {
                        "n_heads": heads,
                        "n_kv_heads": row["num_kv_heads"] or heads,
                        "head_dim": row["head_dim"] or max(1, row["hidden_size"] // heads),
                        "qkv_bias": not gated,
                        "out_bias": not gated,
                    },
                    "mlp": mlp,
                }
            ],
        }
    )
