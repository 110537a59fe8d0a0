"""The system of a model on a stated number of GPUs, or on the fewest that hold it.

Tensor parallelism first, as in the runs of Narayanan et al. (NeurIPS 2023). Where a node does not
hold the model, pipeline stages of whole nodes (of as many GPUs as the model's heads allow): fewer
GPUs may hold it (`memory.Placement.min_gpus`), but with less tensor parallelism, which is slower.
"""

from __future__ import annotations

from pathlib import Path

from rtsim.errors import DoesNotFit, SpecError
from rtsim.memory import Placement
from rtsim.named_system import system
from rtsim.specs import GpuSpec, ModelSpec
from rtsim.system import System


def system_on(
    arch: str | Path | ModelSpec,
    gpu: str | Path | GpuSpec,
    stack: str | None = None,
    *,
    num_gpus: int | None = None,
    batch_size: int = 1,
    input_len: int = 512,
    output_len: int = 64,
    dtype: str | None = None,
    quantization: str | None = None,
) -> System:
    """The system with `num_gpus` GPUs; None: the fewest of a node, or whole nodes, that hold it.

    Raises SpecError where the GPUs cannot share the model, DoesNotFit where no number of them
    holds it; other RtsimErrors as `predict`.

    >>> system_on("gpt3-175b", "a100", num_gpus=8).parallelism.tp
    8
    """

    def with_split(tp: int, pp: int) -> System:
        return system(arch, gpu, tp=tp, pp=pp, stack=stack, dtype=dtype, quantization=quantization)

    alone = with_split(1, 1)
    sizes = (batch_size, input_len, input_len + output_len - 1)
    split = _fewest(alone, sizes) if num_gpus is None else _stated(alone, num_gpus)
    return alone if split == (1, 1) else with_split(*split)


def placement_of(chosen: System) -> Placement:
    """What memory depends on, of a system."""
    return Placement(
        chosen.model, chosen.gpu, chosen.parallelism, chosen.profile.traits, chosen.formats
    )


def _stated(alone: System, num_gpus: int) -> tuple[int, int]:
    """(tp, pp): the largest tensor parallelism that divides the GPUs."""
    if num_gpus < 1:
        raise SpecError("num_gpus", num_gpus, "must be at least 1")
    for tp in reversed(placement_of(alone).tensor_degrees()):
        if num_gpus % tp == 0 and num_gpus // tp <= alone.model.n_layers:
            return tp, num_gpus // tp
    raise SpecError(
        "num_gpus", num_gpus, f"cannot share {alone.model.name} with its {alone.model.n_layers} "
        f"layers and {alone.model.typical_heads} heads",
    )  # fmt: skip


def _fewest(alone: System, sizes: tuple[int, int, int]) -> tuple[int, int]:
    placement = placement_of(alone)
    tp = placement.smallest_fitting_tp(*sizes, 1)
    if tp is not None:
        return tp, 1
    widest = placement_of(alone).tensor_degrees()[-1]
    most_stages = alone.model.n_layers if alone.gpu.network is not None else 1
    for pp in range(2, most_stages + 1):
        if placement.split(widest, pp).use(*sizes).fits:
            return widest, pp
    raise DoesNotFit(
        f"{alone.model.name} fits on no number of {alone.gpu.name} in {alone.dtype}; try a "
        "narrower quantization or a smaller batch"
    )
