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
from functools import partial
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
        self._silent: set[int] = set()  # numbers of GPUs that gave no answer once

    def measure(self, case: Case) -> Timed:
        """Time a case on as many GPUs as it asks for. Raises CaseFault."""
        wanted = case.number("num_gpus")
        if wanted in self._silent:
            raise CaseFault("failed", f"{wanted} GPUs gave no answer before")
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
            self._silent.add(len(self._processes))
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
            except Exception as error:  # told to the run, which goes on
                pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    except (EOFError, KeyboardInterrupt):
        pass
    finally:
        with suppress(Exception):  # the group may be broken
            dist.destroy_process_group()


def _timed(values: dict[str, Any], device: str, rank: int, count: int) -> tuple[list[float], str]:
    import time

    import torch
    import torch.distributed as dist

    operation = _Operation(values, device, rank, count)
    operation.check()
    run, how = _repeated(operation.call), "wall"
    if device == "cuda":
        try:
            run, how = captured([operation.call] * _CALLS).replay, "graph"
        except RuntimeError:
            torch.cuda.synchronize()
            how = "events"
    seconds = []
    for i in range(_WARM_UP + _REPEATS):
        operation.refill()
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


class _Operation:
    """A collective with its buffers. `call` runs it once."""

    def __init__(self, values: dict[str, Any], device: str, rank: int, count: int) -> None:
        import torch
        import torch.distributed as dist

        from rtsim.measure.torch_formats import torch_dtype

        stored = torch_dtype(str(values["dtype"]))
        elements = int(values["message_bytes"]) // stored.itemsize
        self.name, self.rank, self.count = str(values["collective"]), rank, count
        self.whole = torch.empty(elements, dtype=stored, device=device)
        self.part = torch.empty(elements // count, dtype=stored, device=device)
        self.result = self.whole
        whole, part = self.whole, self.part
        if self.name == "all_reduce":
            self.call: Call = partial(dist.all_reduce, whole)
        elif self.name == "all_gather":
            gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
            self.call = partial(gather, whole, part)
        elif self.name == "reduce_scatter":
            self.result = part
            scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
            self.call = partial(scatter, part, whole)
        elif self.name == "alltoall":
            self.result = torch.empty_like(whole)
            self.call = partial(dist.all_to_all_single, self.result, whole)
        else:
            self.call = partial(dist.recv, whole, 0) if rank else partial(dist.send, whole, 1)

    def refill(self) -> None:
        """Random data, anew for each replay: repeated sums would run out of the format."""
        self.whole.normal_()
        self.part.normal_()

    def check(self) -> None:
        """Run it once on the ranks' numbers; raises ValueError where the result is another."""
        import torch

        self.whole.fill_(self.rank + 1.0)
        self.part.fill_(self.rank + 1.0)
        self.call()
        made = self.result.float()
        if self.name in ("all_reduce", "reduce_scatter"):
            expected = torch.full_like(made, self.count * (self.count + 1) / 2.0)
        elif self.name == "send_recv":
            expected = torch.ones_like(made)
        else:
            ranks = torch.arange(1.0, self.count + 1.0, device=made.device)
            expected = ranks.repeat_interleave(len(made) // self.count)
        if not torch.equal(made, expected):
            raise ValueError(f"{self.name} gave a wrong result")
