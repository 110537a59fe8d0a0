"""Power of a GPU while it works: its rating, or by how much of it is used.

The paper's idealized energy is runtime x GPUs x power. "power" takes the rated power for it all
the time, an upper bound. "utilisation" takes

    P = P_idle + (P_rated - P_idle) * max(FLOP rate / peak, byte rate / bandwidth)

over each phase, with the time the GPU waits for the host at idle. Ignored: clock and voltage
changes, link power, the host, cooling. Source of the idle share: inferred, from the 50-90 W that
A100 and H100 parts rated 400-700 W report with a CUDA context and nothing to do. Patel et al.
(POLCA, ASPLOS 2024) see prompt passes near the rating and decode well below it, as here. Known
error: not validated against measured power; good for comparing systems.
"""

from __future__ import annotations

from typing import Literal

from rtsim.errors import SpecError
from rtsim.prediction import Prediction

EnergyModel = Literal["power", "utilisation"]
ENERGY_MODELS: tuple[EnergyModel, ...] = ("power", "utilisation")
IDLE_FRAC = 0.15


def energy_j(
    prediction: Prediction, model: EnergyModel = "power", idle_frac: float = IDLE_FRAC
) -> float | None:
    """Joules of the whole request over all GPUs; None where the GPU's power is not known.

    Raises SpecError for an unknown model or an idle share outside [0, 1].
    """
    if model not in ENERGY_MODELS:
        raise SpecError("energy_model", model, f"must be one of {', '.join(ENERGY_MODELS)}")
    if not 0.0 <= idle_frac <= 1.0:
        raise SpecError("idle_frac", idle_frac, "must lie in [0, 1]")
    rated_w = prediction.gpu.power_w
    if rated_w is None:
        return None
    if model == "power":
        return prediction.energy_j
    total = 0.0
    gpu = prediction.gpu
    for phase, whole_s in (
        ("prefill", prediction.ttft_s),
        ("decode", prediction.e2e_latency_s - prediction.ttft_s),
    ):
        rows = [row for row in prediction.breakdown if row.phase == phase]
        busy = [row for row in rows if row.bound != "host"]
        flops = sum(row.flops for row in busy)
        moved = sum(row.bytes for row in busy if row.bound != "interconnect")  # not of the HBM
        if whole_s <= 0.0:
            continue
        # Work spread over the phase, so that waiting is at idle whatever its order.
        used = max(
            flops / (gpu.peak_flops_per_s * whole_s), moved / (gpu.hbm_bytes_per_s * whole_s)
        )
        total += whole_s * rated_w * (idle_frac + (1.0 - idle_frac) * min(1.0, used))
    return total * prediction.num_gpus
