"""What the host pays to issue a kernel: eager, from compiled code, and by replaying a CUDA graph.

The kernels add to one number. Timed is the host until all are issued, not until they are done.
"""

from __future__ import annotations

from typing import Any

from rtsim.measure.case import CALIBRATION, COMPILED_STACK, GRAPHS_STACK, STACK, Case, Scope
from rtsim.measure.program import Program
from rtsim.measure.torch_formats import compiled

EAGER, COMPILED, GRAPH = "eager", "compiled", "graph"
_STACKS = {EAGER: STACK, COMPILED: COMPILED_STACK, GRAPH: GRAPHS_STACK}
_KERNELS = (50, 200, 400)  # fewer than the driver queues before the host has to wait
_TOY_KERNELS = (20,)
_COMPILE_S = 10.0


def cases(scope: Scope) -> list[Case]:
    """Every way to issue that there is, with a few numbers of kernels."""
    modes = [EAGER, *((GRAPH,) if scope.graphs else ()), *((COMPILED,) if scope.compiler else ())]
    return [
        Case(
            family="launch",
            kind="launch",
            values={"stack": _STACKS[mode], "mode": mode, "kernels": kernels, "role": CALIBRATION},
            flops=0.0,
            moved_bytes=0.0,
            memory_bytes=0.0,
            setup_s=_COMPILE_S if mode == COMPILED else 0.0,
            host_kernels=kernels,
        )
        for mode in modes
        for kernels in (_TOY_KERNELS if scope.toy else _KERNELS)
    ]


def program(case: Case, device: str, copies: int) -> Program:
    """One call that issues all kernels of a case."""
    import torch

    kernels = case.number("kernels")
    x = torch.zeros(1, device=device)
    step: Any = x.add_
    if case.values["mode"] == COMPILED:

        def add(value: Any) -> Any:
            return value.add_(1.0)

        one = compiled(add, dynamic=False)
        one(x)

        def issue() -> None:
            for _ in range(kernels):
                one(x)

    elif case.values["mode"] == GRAPH:
        from rtsim.measure.timing import captured

        def all_at_once() -> None:
            for _ in range(kernels):
                step(1.0)

        issue = captured([all_at_once]).replay
    else:

        def issue() -> None:
            for _ in range(kernels):
                step(1.0)

    return Program([issue], None, 0.0, graphs=False, on_host=True, issue_only=True)
