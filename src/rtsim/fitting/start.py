"""What tables say about themselves that a fit starts from, beyond their times.

Traits of the stack, the kind of host loop, the cost of an empty launch; and which rows of a section
can be fitted together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rtsim.errors import SpecError
from rtsim.fitting import generation
from rtsim.fitting.generation_rows import with_traits
from rtsim.fitting.kinds import Block
from rtsim.profile import DECLARED, Profile

# Where the host track of a bare loop over token ids starts from, seconds: it waits for a token and
# takes the next step; no tokeniser, no scheduler. Stated; the fit moves it.
BARE_LOOP = {"step_s": 5e-5, "prompt_token_s": 1e-8, "prefill_layer_s": 1e-6}


def informed(
    profile: Profile, systems: Sequence[generation.Configuration], issue_s: float | None,
    notes: list[str],
) -> Profile:  # fmt: skip
    """`profile` with what the rows of whole generations and of launches state.

    issue_s: median host seconds of an empty kernel; None where no row says. Adds to `notes`.
    Raises SpecError where rows of the stack state different traits.
    """
    stated = sorted({system.traits for system in systems} - {""})
    if len(stated) > 1:
        raise SpecError(
            "traits", stated[1], f"rows of one stack must agree; others state '{stated[0]}'"
        )
    if stated:
        profile = with_traits(profile, stated[0])
    if systems and all(system.bare_loop for system in systems):
        profile = _with_host(profile, **BARE_LOOP)
    if issue_s is not None:
        profile = _with_host(profile, launch_s=issue_s)
        notes.append(f"host.launch_s starts from {issue_s * 1e6:.3g} us, that of empty kernels")
    return profile


def _with_host(profile: Profile, **values: float) -> Profile:
    """`profile` with some host coefficients set, as far as their bounds allow."""
    host = profile.section("host")
    for c in DECLARED["host"]:
        if c.name in values:
            host[c.name] = min(max(values[c.name], c.lower), c.upper)
    return replace(profile, coefficients={**profile.coefficients, "host": host})


def timed_alike(blocks: Sequence[Block], notes: list[str]) -> list[Block]:
    """Blocks of a section without those that a launch is in, where others have none in."""
    without = [block for block in blocks if not block.launched]
    if not without or len(without) == len(blocks):
        return list(blocks)
    left_out = sum(len(block) for block in blocks if block.launched)
    notes.append(
        f"{blocks[0].section}: {left_out} rows timed with their launch are not fitted beside "
        "rows without"
    )
    return without
