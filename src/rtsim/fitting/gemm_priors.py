"""What a fit of matrix products believes before it sees a row: priors by number format and kernels.

The kernel module declares a prior for each coefficient; here are those that a class of products
changes. Each comes from fits to the calibration rows of the class as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rtsim_kernels import gemm
from rtsim_kernels.tables import Coefficient

from rtsim.specs.dtype import operand_format

HALF = ("bf16", "fp16")
WHOLE_L2_SPREAD = 0.15  # of l2_use where all SMs share one L2, which keeps what fits

# One call between two events from the host: that much of the time is launch and event.
EAGER_STACKS = ("pytorch",)
EAGER_LAUNCH_S = 30e-6
EAGER_CLOCK_HZ = 1.4e9  # typical of the GPUs timed so, to state that launch in clocks

# What fits of other GPUs found for a class of formats, as (prior, spread) by coefficient; other
# coefficients keep their declared prior. From 10 to 17 fits of trtllm, vllm and sglang tables.
_QUANTIZED = {  # both operands narrow: CUTLASS and DeepGEMM kernels, most without split-K
    "launch_clocks": (2600.0, 0.2), "compute_frac": (0.9, 0.2), "power_drop": (0.075, 0.8),
    "ramp_s": (1.2e-6, 0.7), "l2_use": (0.5, 0.7), "l2_edge": (150.0, 0.35),
    "start_clocks": (1000.0, 0.6), "sm_edge": (62.0, 0.3), "store_cost": (3.3, 0.7),
    "fill_clocks": (250.0, 1.0),
    "step_s": (1.6e-7, 0.5), "split_s": (4.5e-5, 1.1), "wave_round": (0.55, 0.6),
    "tile_round": (0.8, 0.3), "least_rows": (95.0, 0.6), "least_columns": (82.0, 0.25),
    "quantize_s": (5e-6, 0.7), "quantize_row_s": (5e-10, 1.5),
}  # fmt: skip
_WEIGHT_ONLY = {  # weights are widened in the loop
    "launch_clocks": (10600.0, 0.12), "compute_frac": (0.85, 0.12), "power_drop": (0.025, 0.7),
    "hbm_frac": (0.92, 0.06), "l2_use": (0.25, 0.5), "l2_edge": (137.0, 0.2),
    "store_cost": (2.6, 0.4), "fill_clocks": (1600.0, 0.3), "step_s": (1.3e-7, 0.7),
    "split_s": (8e-6, 0.5), "wave_round": (0.46, 0.45), "tile_round": (0.82, 0.25),
    "least_rows": (29.0, 0.35), "least_columns": (80.0, 0.3),
}  # fmt: skip
_ORDINARY_CORES = {  # fp32 without tensor cores: 128 FLOPs per clock and SM, 4-byte operands
    "compute_frac": (1.06, 0.06), "power_drop": (0.025, 0.6), "l2_use": (0.75, 0.35),
    "l2_edge": (13.0, 0.3), "sm_edge": (6.5, 0.5), "fill_clocks": (1000.0, 0.7),
    "step_s": (2e-8, 0.3), "wave_round": (0.55, 0.4), "tile_round": (0.87, 0.2),
    "least_rows": (50.0, 0.45), "least_columns": (75.0, 0.4), "split_s": (5e-6, 0.8),
}  # fmt: skip
# 16 bits: most boards are short of power in them, and a tile that does not wait for it is faster.
_HALF = {"power_frac": (0.8, 0.12), "compute_frac": (0.97, 0.08)}
# Persistent kernels spread the last wave and use tiles of 64 columns; classic ones pay whole waves.
# One fit each to H100 and B200, and to A100, A40 and L40S.
_PERSISTENT = {
    "wave_round": (0.36, 0.9), "tile_round": (0.73, 0.3), "least_columns": (62.0, 0.5),
}  # fmt: skip
_CLASSIC = {
    "wave_round": (0.97, 0.9), "tile_round": (0.73, 0.3), "least_columns": (84.0, 0.5),
}  # fmt: skip


def coefficients_for(
    stack: str,
    dtype: str,
    launched: bool | None = None,
    facts: Sequence[Mapping[str, float]] = (),
) -> tuple[Coefficient, ...]:
    """The declared coefficients with the priors of a stack and dtype.

    launched: whether a launch from the host is in the times; None: as the stack's tables are made.
    facts: of the machines, as in `gemm.Machine`, which may all run one class of kernels.
    """
    changed: dict[str, tuple[float, float]] = {}
    form = operand_format(dtype)
    if form is not None and form.quantize_bytes > 0:
        changed = dict(_QUANTIZED)
    elif form is not None and form.b_bytes < form.a_bytes:
        changed = dict(_WEIGHT_ONLY)
    elif dtype == "fp32":
        changed = dict(_ORDINARY_CORES)
    elif dtype in HALF:
        changed = dict(_HALF)
        persistent = {known["least_step"] == 1.0 for known in facts}
        if len(persistent) == 1:
            changed |= _PERSISTENT if persistent == {True} else _CLASSIC
    if stack in EAGER_STACKS if launched is None else launched:
        changed["launch_clocks"] = (EAGER_LAUNCH_S * EAGER_CLOCK_HZ, 0.4)
    coefficients = tuple(
        c._replace(prior=changed[c.name][0], spread=changed[c.name][1]) if c.name in changed else c
        for c in gemm.GEMM_COEFFICIENTS
    )
    if facts and all(known["l2_partitions"] == 1.0 for known in facts):
        return tuple(map(_in_one_l2, coefficients))
    return coefficients


def _in_one_l2(c: Coefficient) -> Coefficient:
    if c.name != "l2_use":
        return c
    return c._replace(prior=1.0, spread=min(c.spread, WHOLE_L2_SPREAD))
