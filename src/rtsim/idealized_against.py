"""Idealized against denoised: how much of an API's time is its model's, and how much its stack's.

The ratio denoised / idealized of the time per output token, with every model on the same GPUs and
the same stack. Near 1: the API is as fast as that system would be. Above 1: its stack, hardware or
batching makes it slower. Below 1: it runs on more or faster GPUs, or on a better stack; how many
GPUs of the same kind would explain it, by tensor parallelism, is found by trying.

Overheads are left out of both sides. What an API batches together is not known: a large batch
makes a token slower, so a ratio above 1 is no proof of a poor stack; the smallest batch on these
GPUs that would explain it is found by trying, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rtsim import units
from rtsim.curves import Curve
from rtsim.errors import RtsimError
from rtsim.gpus_needed import placement_of, system_on
from rtsim.prediction import Interval
from rtsim.scores import ModelMap
from rtsim.study import Study, gpu_name
from rtsim.system import System

INPUT_LEN, OUTPUT_LEN = 512, 64
_VAGUE = 2.0  # an interval of a ratio whose ends are further apart tells nothing


@dataclass(frozen=True, slots=True)
class OnGpus:
    """The idealized time per output token on some number of GPUs."""

    num_gpus: int
    per_output_token_s: float


@dataclass(frozen=True, slots=True)
class Against:
    """One model's denoised time per output token beside the idealized one.

    ratio: denoised / idealized; its interval comes from that of the prediction and, where there is
    one, that of the fit. explained_by: the
    fewest GPUs on which the idealized time is no longer than the denoised one; None: more than a
    node, or no number of them. explained_by_batch: the smallest batch, in powers of two, with which
    the idealized time is no shorter; None: none that fits, or 1. reading: the ratio in words.
    """

    model: str
    arch: str
    num_gpus: int
    denoised_s: float
    idealized_s: float
    ratio: float
    ratio_interval_90: Interval
    prefill_ratio: float
    explained_by: int | None
    explained_by_batch: int | None
    by_gpus: tuple[OnGpus, ...]
    reading: str


@dataclass(frozen=True, slots=True)
class NotCompared:
    """A model without an idealized time, and why."""

    model: str
    reason: str


def against_idealized(
    curves: Iterable[Curve],
    *,
    gpu: str = "a100",
    stack: str | None = None,
    study: Study | None = None,
    model_map: ModelMap | None = None,
    known_within: Mapping[str, Interval] | None = None,
) -> tuple[list[Against], list[NotCompared]]:
    """Compare denoised curves with predictions at a prompt of 512 and 64 output tokens.

    known_within: the seconds between which the time per output token lies, of models whose curve
    was fitted here; published curves have none.

    Raises UnknownName for an unknown GPU or stack; a model that cannot be compared is returned
    with its reason.
    """
    gpu_name(gpu)  # an unknown GPU is the caller's fault, an unknown model the table's
    asked = model_map or ModelMap({})
    compared, rest = [], []
    for curve in curves:
        stand = asked.stand_for(curve.model)
        if stand.arch is None:
            rest.append(NotCompared(curve.model, stand.reason))
            continue
        wanted = stand.num_gpus
        if wanted is None and study is not None:
            wanted = study.gpus_for_name(stand.arch, gpu)
        try:
            within = (known_within or {}).get(curve.model)
            compared.append(_against(curve, stand.arch, gpu, stack, wanted, within))
        except RtsimError as error:
            rest.append(NotCompared(curve.model, str(error)))
    return compared, rest


def _against(
    curve: Curve, arch: str, gpu: str, stack: str | None, wanted: int | None,
    within: Interval | None,
) -> Against:  # fmt: skip
    chosen = system_on(
        arch, gpu, stack, num_gpus=wanted, input_len=INPUT_LEN, output_len=OUTPUT_LEN
    )
    p = chosen.predict(1, INPUT_LEN, OUTPUT_LEN)
    idealized_s = (p.e2e_latency_s - p.ttft_s) / (OUTPUT_LEN - 1)
    around = p.interval_90.tpot_s or Interval(idealized_s, idealized_s)
    denoised_s = curve.per_output_token_s
    by_gpus = []
    placement = placement_of(chosen)
    for tp in placement_of(chosen).tensor_degrees():
        if tp & (tp - 1):  # powers of two, as deployments are
            continue
        if placement.split(tp, 1).use(1, INPUT_LEN, INPUT_LEN + OUTPUT_LEN - 1).fits:
            times = system_on(arch, gpu, stack, num_gpus=tp).predict(1, INPUT_LEN, OUTPUT_LEN)
            by_gpus.append(OnGpus(tp, (times.e2e_latency_s - times.ttft_s) / (OUTPUT_LEN - 1)))
    enough = [one.num_gpus for one in by_gpus if one.per_output_token_s <= denoised_s]
    ratio = denoised_s / idealized_s
    batch = _batch_that_explains(chosen, denoised_s, p.memory.max_batch_size) if ratio > 1 else None
    seen = within or Interval(denoised_s, denoised_s)
    interval = Interval(seen.low / around.high, seen.high / around.low)
    prefill_s = curve.idle_runtime_s(INPUT_LEN, 1)
    return Against(
        curve.model, chosen.model.name, p.num_gpus, denoised_s, idealized_s, ratio, interval,
        prefill_s / p.ttft_s, min(enough, default=None), batch, tuple(by_gpus),
        _reading(interval, p.num_gpus, min(enough, default=None), batch),
    )  # fmt: skip


def _batch_that_explains(chosen: System, denoised_s: float, largest: int) -> int | None:
    """The smallest batch, in powers of two, with so slow a decode step; None: none that fits."""
    batch = 2
    while batch <= largest:
        p = chosen.predict(batch, INPUT_LEN, OUTPUT_LEN)
        if (p.e2e_latency_s - p.ttft_s) / (OUTPUT_LEN - 1) >= denoised_s:
            return batch
        batch *= 2
    return None


def _reading(ratio: Interval, num_gpus: int, explained_by: int | None, batch: int | None) -> str:
    if ratio.low <= 1.0 <= ratio.high:
        if ratio.high > _VAGUE * ratio.low:
            return "perhaps as fast as this system: too little is known to tell"
        return "as fast as this system"
    if ratio.low > 1.0:
        if batch is not None:
            return f"slower: batches of {batch} would explain it, or its stack or hardware"
        return "slower: its stack or hardware; no batch that fits would explain it"
    if explained_by is None:
        return "faster than any number of these GPUs: a better stack or faster GPUs"
    if explained_by > num_gpus:
        return f"faster: {units.counted(explained_by, 'GPU')} would explain it, or a better stack"
    return "faster: a better stack or faster GPUs"
