"""One prediction from names or specifications, with what was assumed and what a change changes.

`predict` makes the system (kept for the next call) and asks it once. `system` gives it to those
who ask many times: `System.times` is the bare answer, `System.predict` the whole one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rtsim.errors import RtsimError
from rtsim.named_system import loaded, system
from rtsim.prediction import Prediction, WhatIf
from rtsim.specs.gpu import GpuSpec
from rtsim.specs.model import ModelSpec
from rtsim.specs.workload import WorkloadSpec
from rtsim.system import System, Times
from rtsim.whatif import change

__all__ = ["System", "Times", "predict", "system", "warm_up"]


def predict(
    arch: str | Path | ModelSpec,
    gpu: str | Path | GpuSpec,
    *,
    num_gpus: int | None = None,
    tp: int | None = None,
    pp: int | None = None,
    ep: int | None = None,
    dp: int | None = None,
    cp: int | None = None,
    attention_dp: int | None = None,
    micro_batches: int | None = None,
    stack: str | None = None,
    profile: str | None = None,
    batch_size: int | None = None,
    input_len: int | None = None,
    output_len: int | None = None,
    dtype: str | None = None,
    kv_cache_dtype: str | None = None,
    quantization: str | None = None,
    set: Mapping[str, object] | None = None,  # noqa: A002 (the option's name)
    compiled: bool | None = None,
) -> Prediction:
    """Predict one generation: `batch_size` prompts of `input_len` tokens, `output_len` each.

    arch, gpu: catalogue names, paths of .toml files, or specifications. What is None takes a
    default, named in `Prediction.assumed`: prompt 512, output 64, batch 1, one GPU, the model's
    own dtype, and the stack with the best evidence for the GPU. `set` changes figures of the model
    and the GPU, such as {"gpu.hbm_bytes_per_s": "2x"} (`rtsim.whatif`); `Prediction.what_if` then
    holds the system without it. `compiled` as in `System.predict`. Raises RtsimError (SpecError,
    UnknownName, DataError) on bad input.

    >>> result = predict("gpt3-175b", "a100", tp=8, output_len=1)
    >>> result.tpot_s is None
    True
    """
    if set is not None:
        request: dict[str, Any] = {
            "num_gpus": num_gpus, "tp": tp, "pp": pp, "ep": ep, "dp": dp, "cp": cp,
            "attention_dp": attention_dp, "micro_batches": micro_batches, "stack": stack,
            "profile": profile, "batch_size": batch_size, "input_len": input_len,
            "output_len": output_len, "dtype": dtype, "kv_cache_dtype": kv_cache_dtype,
            "quantization": quantization, "compiled": compiled,
        }  # fmt: skip
        return _predict_what_if(*loaded(arch, gpu), set, request)
    chosen = system(
        arch, gpu, tp, pp, ep, dp, num_gpus, stack, profile, dtype, kv_cache_dtype, quantization,
        cp, attention_dp, micro_batches,
    )  # fmt: skip
    if output_len is None and chosen.model.kind == "encoder":
        output_len = 1
    asked = {"batch_size": batch_size, "input_len": input_len, "output_len": output_len}
    workload = WorkloadSpec.from_mapping({k: v for k, v in asked.items() if v is not None})

    def assumed() -> tuple[str, ...]:
        found: list[str] = []
        if stack is None and profile is None:
            evidence = "nearest GPU with measurements"
            if chosen.profile.gpu == chosen.gpu.name:
                evidence = "best evidence for this GPU"
            if chosen.traits.attention == "unfused":
                evidence += "; eager, attention unfused: --stack vllm is a serving stack"
            found.append(f"stack = {chosen.profile.stack} ({evidence})")
        if all(degree is None for degree in (tp, pp, dp, num_gpus)):
            found.append("tp = 1 (one GPU)")
        elif num_gpus is not None and tp is None:
            found.append(f"tp = {chosen.parallelism.tp} (the rest of num_gpus)")
        found += [
            f"{name} = {getattr(workload, name)} (default)"
            for name, value in asked.items()
            if value is None
        ]
        if dtype is None:
            found.append(f"dtype = {chosen.dtype} (the model's own)")
        return tuple(found)

    return chosen.answer(workload, assumed, compiled)


def _predict_what_if(
    model: ModelSpec, gpu: GpuSpec, settings: Mapping[str, object], request: Mapping[str, Any]
) -> Prediction:
    """The prediction of the changed system, with that of the unchanged one beside it."""
    changed = change(settings, model, gpu)
    after = predict(changed.model or model, changed.gpu or gpu, **request)
    notes = changed.notes
    before = None
    try:
        before = predict(model, gpu, **request)
    except RtsimError as error:
        notes = (*notes, f"without the changes there is no prediction: {error}")
    texts = tuple((path, str(value)) for path, value in settings.items())
    return replace(after, notes=(*notes, *after.notes), what_if=WhatIf(texts, before))


def warm_up() -> None:
    """Compile the kernels, or load them from the cache on disk."""
    chosen = system("gpt3-6.7b", "a100-sxm4-80gb")
    chosen.times(1, 128, 8)
    one = np.ones(1)
    chosen.runtimes(one, one, one)
