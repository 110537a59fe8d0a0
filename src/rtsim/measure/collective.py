"""Communication between the GPUs of a machine through NCCL: one process per GPU.

Worker processes stay for all cases of a number of GPUs; each replays a CUDA graph of a few calls
between two events (or issues them, where they cannot be captured) and answers with its times; the
slowest GPU counts. Messages as tables count them: the buffer of one GPU for all_reduce and
send_recv, the whole for the others.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from typing import Any

from rtsim.measure.case import CALIBRATION, STACK, VALIDATION, Case, Scope
from rtsim.measure.design import Axis, design
from rtsim.measure.device import CaseFault
from rtsim.measure.program import Call
from rtsim.measure.timing import Timed, captured, summary

FAMILY = "collective"
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "alltoall", "send_recv")
_FITTED, _VALIDATED = 6, 4  # per collective and number of GPUs
_TOY_FITTED, _TOY_VALIDATED = 1, 1
_GRAIN = 8192  # bytes; messages split evenly among up to 64 GPUs
_START_S = 20.0  # of the processes of a number of GPUs
_ANSWER_S = 120.0
_CALLS, _REPEATS, _WARM_UP = 10, 15, 3


def cases(scope: Scope, topology: str = "") -> list[Case]:
    """Powers of two of GPUs; [] for one GPU."""
    found = []
    fitted, validated = (_TOY_FITTED, _TOY_VALIDATED) if scope.toy else (_FITTED, _VALIDATED)
    most = 2**16 if scope.toy else 2**30
    sizes = design(
        [Axis("message_bytes", _GRAIN, most, _GRAIN)], fitted + validated,
        accept=lambda p: scope.fits(3.0 * p["message_bytes"]),
        corners=({"message_bytes": _GRAIN}, {"message_bytes": most}),
    )  # fmt: skip
    n_gpus = 2
    while n_gpus <= scope.n_gpus:
        for i, size in enumerate(sizes):
            for name in COLLECTIVES:
                if name == "send_recv" and n_gpus != 2:
                    continue
                role = CALIBRATION if i < fitted else VALIDATION
                found.append(_case(scope, name, n_gpus, size["message_bytes"], role, topology,
                                   first=i == 0 and name == COLLECTIVES[0]))  # fmt: skip
        n_gpus *= 2
    return found


def _case(
    scope: Scope, name: str, n_gpus: int, message_bytes: int, role: str, topology: str, *,
    first: bool,
) -> Case:  # fmt: skip
    return Case(
        family=FAMILY,
        kind="collective",
        values={
            "stack": STACK, "implementation": "gloo" if scope.toy else "nccl",
            "topology": topology, "collective": name, "dtype": scope.float_dtype,
            "num_gpus": n_gpus, "num_nodes": 1, "message_bytes": message_bytes, "role": role,
        },
        flops=0.0,
        moved_bytes=4.0 * message_bytes,
        memory_bytes=2.0 * message_bytes,
        setup_s=_START_S if first else 0.0,
    )  # fmt: skip


# On the devices ----------------------------------------------------------------------------------


class Workers:
    """The processes of the last number of GPUs."""

    def __init__(self, device: str, n_gpus: int) -> None:
        self.device, self.n_gpus = device, n_gpus
        self._processes: list[Any] = []
        self._pipes: list[Any] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def measure(self, case: Case) -> Timed:
        """Time a case on as many GPUs as it asks for. Raises CaseFault."""
        wanted = case.number("num_gpus")
        if len(self._processes) != wanted:
            self.close()
            self._start(wanted)
        try:
            for pipe in self._pipes:
                pipe.send(dict(case.values))
            answers = [self._answer(pipe) for pipe in self._pipes]
        except (OSError, EOFError, CaseFault) as error:
            self.close()  # a rank that failed leaves the others waiting
            if isinstance(error, CaseFault):
                raise
            raise CaseFault("failed", "a process of a GPU ended") from None
        return max((summary(seconds, how) for seconds, how in answers), key=lambda t: t.median_s)

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            with suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes, self._pipes = [], []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self, count: int) -> None:
        import torch.multiprocessing as processes

        context = processes.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="rtsim-measure-")
        meeting = f"file://{os.path.join(self._folder.name, 'meeting')}"  # noqa: PTH118 (an URL)
        for rank in range(count):
            here, there = context.Pipe()
            process = context.Process(
                target=_work, args=(there, self.device, rank, count, meeting), daemon=True
            )
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)

    def _answer(self, pipe: Any) -> tuple[list[float], str]:
        if not pipe.poll(_ANSWER_S):
            raise CaseFault("failed", f"no answer of a GPU within {_ANSWER_S:g} s")
        answer = pipe.recv()
        if isinstance(answer, str):
            raise CaseFault("failed", answer)
        seconds, how = answer
        return list(seconds), str(how)


def _work(pipe: Any, device: str, rank: int, count: int, meeting: str) -> None:
    """A process of one GPU: times what it is sent until it is sent None."""
    import torch
    import torch.distributed as dist

    try:
        if device == "cuda":
            torch.cuda.set_device(rank)
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo", init_method=meeting, rank=rank,
            world_size=count,
        )  # fmt: skip
        while (values := pipe.recv()) is not None:
            try:
                pipe.send(_timed(values, device, rank, count))
            except (RuntimeError, ValueError) as error:
                pipe.send(" ".join(str(error).split())[:200])
    except (EOFError, KeyboardInterrupt):
        pass
    finally:
        with suppress(Exception):  # the group may be broken
            dist.destroy_process_group()


def _timed(values: dict[str, Any], device: str, rank: int, count: int) -> tuple[list[float], str]:
    import time

    import torch
    import torch.distributed as dist

    call = _call(values, device, rank, count)
    run, how = _repeated(call), "wall"
    if device == "cuda":
        call()  # sets the group's channels up
        try:
            run, how = captured([call] * _CALLS).replay, "graph"
        except RuntimeError:
            torch.cuda.synchronize()
            how = "events"
    seconds = []
    for i in range(_WARM_UP + _REPEATS):
        dist.barrier()
        if device == "cuda":
            torch.cuda.synchronize()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            took = float(start.elapsed_time(end)) * 1e-3
        else:
            begin = time.perf_counter()
            run()
            took = time.perf_counter() - begin
        if i >= _WARM_UP:
            seconds.append(took / _CALLS)
    return seconds, how


def _repeated(call: Call) -> Call:
    def run() -> None:
        for _ in range(_CALLS):
            call()

    return run


def _call(values: dict[str, Any], device: str, rank: int, count: int) -> Call:
    import torch
    import torch.distributed as dist

    from rtsim.measure.torch_formats import random, torch_dtype

    stored = torch_dtype(str(values["dtype"]))
    elements = int(values["message_bytes"]) // stored.itemsize
    whole = random((elements,), stored, device)
    part = random((elements // count,), stored, device)
    name = values["collective"]
    if name == "all_reduce":
        return lambda: dist.all_reduce(whole)
    if name == "all_gather":
        return lambda: dist.all_gather_into_tensor(whole, part)
    if name == "reduce_scatter":
        return lambda: dist.reduce_scatter_tensor(part, whole)
    if name == "alltoall":
        other = torch.empty_like(whole)
        return lambda: dist.all_to_all_single(other, whole)
    return lambda: dist.send(whole, 1) if rank == 0 else dist.recv(whole, 0)
