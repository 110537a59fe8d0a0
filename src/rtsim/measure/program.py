"""What a family makes of a case on a device: calls to time, and how to check what they return.

Built once per case, thrown away after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Call = Callable[[], Any]


@dataclass(frozen=True)
class Program:
    """Calls of one case.

    calls: each runs the operator once, on operands of its own; they are rotated through. Where
    residency is warm there is one. error: largest deviation of the first call's result from the
    reference, relative to the reference's root mean square; None where there is nothing to
    compare. tolerance: rounding that the number format explains. per_call: executions of the case
    in a call. graphs: whether calls can be captured in a CUDA graph. on_host: what is timed is
    the host's clock, call by call. issue_only: the host's clock until the work is issued, not
    done. touch: operands that the L2 holds all the same, read after it was emptied.
    """

    calls: Sequence[Call]
    error: Callable[[], float] | None
    tolerance: float
    per_call: int = 1
    graphs: bool = True
    on_host: bool = False
    issue_only: bool = False
    touch: Sequence[Any] = field(default_factory=tuple)
