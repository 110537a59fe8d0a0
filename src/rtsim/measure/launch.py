"""What the host pays to issue a kernel: eager, from compiled code, and by replaying a CUDA graph.

The kernels add to one number; compiled code multiplies small matrices. Timed is the host until all
are issued, not until they are done.
"""

from __future__ import annotations

from typing import Any

from rtsim.measure.case import CALIBRATION, COMPILED_STACK, GRAPHS_STACK, STACK, Case, Scope
from rtsim.measure.program import Program
from rtsim.measure.torch_formats import compiled

EAGER, COMPILED, GRAPH = "eager", "compiled", "graph"
_STACKS = {EAGER: STACK, COMPILED: COMPILED_STACK, GRAPH: GRAPHS_STACK}
_KERNELS = (48, 200, 400)  # fewer than the driver queues before the host has to wait
_TOY_KERNELS = (24,)
_CHAIN = 8  # kernels of one compiled call, as of a part of a layer
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
        small = torch.ones((16, 16), device=device)

        def chain(value: Any) -> Any:
            for _ in range(_CHAIN):  # products: a compiler would make one kernel of additions
                value = value @ small
            return value

        together = compiled(chain, dynamic=False)
        together(small)

        def issue() -> None:
            for _ in range(kernels // _CHAIN):
                together(small)

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
