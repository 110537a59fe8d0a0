"""Measures a GPU: programs that run on it and write tables in rtsim's measurement schema.

    case, design, budget    what to measure, and what it will take: no PyTorch needed
    gemm, attention, memory_bound, moe, collective, launch, generation, ceilings
                            one family of operators each: its sizes, its work, its program
    torch_device, timing, sampling, facts
                            the device: how calls are timed, what the driver says meanwhile
    folder, collect         rows as they come, kept whatever happens

PyTorch is imported inside the functions that run on a device.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rtsim.errors import OutputError, RtsimError, SpecError, nearest_names
from rtsim.measure.case import Case, Scope
from rtsim.measure.collect import Collected, Progress, collect
from rtsim.measure.device import Device, DeviceFacts, Measurement
from rtsim.measure.folder import GPU_FILE, Folder
from rtsim.measure.gpu_file import gpu_name, gpu_toml
from rtsim.output import write_text

__all__ = ["FAMILIES", "Case", "Collected", "Device", "DeviceFacts", "Measurement", "Scope",
           "all_cases", "measure"]  # fmt: skip

# In the order in which they take turns.
FAMILIES = ("ceilings", "launch", "gemm", "attention", "memory_bound", "moe", "generation",
            "collective")  # fmt: skip
MINUTES = 5.0
_MOST_MINUTES = 24 * 60.0
_SECONDS = 60.0


def measure(
    output: str | Path,
    *,
    device: Device | None = None,
    device_name: str = "cuda",
    minutes: float = MINUTES,
    only: Sequence[str] = (),
    retry: bool = False,
    progress: Progress | None = None,
) -> Collected:
    """Measure what the folder `output` lacks, for about `minutes`, and add it there.

    device: what to measure on; None opens `device_name`, "cuda" or "cpu" (toy sizes, a trial of
    the programs). only: families, see FAMILIES; all without any. retry: cases that gave no row in
    an earlier run are tried again.

    Raises SpecError, NotSupported (no PyTorch, no GPU), DataError (a folder of another device or
    of something else), OutputError (nothing measured is lost), DeviceLost.
    """
    if not 0.0 < minutes <= _MOST_MINUTES:
        raise SpecError("minutes", minutes, f"must be in (0, {_MOST_MINUTES:g}]")
    chosen = checked_families(only)
    opened = None
    if device is None:
        from rtsim.measure.torch_device import TorchDevice

        device = opened = TorchDevice(device_name)
    try:
        name, known = gpu_name(device.facts)
        folder = Folder(output, device.facts, name, retry=retry)
        cases = all_cases(device.scope, chosen, device.facts.topology)
        try:
            done = collect(device, cases, folder, minutes * _SECONDS, progress=progress)
        except RtsimError:
            with suppress(OutputError):  # what ended the run is what is to be said
                _describe(folder, known)
            raise
        _describe(folder, known)
    finally:
        if opened is not None:
            opened.close()
    return done


def _describe(folder: Folder, known: bool) -> None:
    """Write the file of a GPU that the catalogue lacks, unless it is there: it may be edited."""
    file, ceilings = folder.path / GPU_FILE, folder.ceilings()
    if not known and ceilings and not file.exists():
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        write_text(file, gpu_toml(folder.gpu, folder.facts, ceilings, today))


def checked_families(only: Sequence[str]) -> tuple[str, ...]:
    """The named families in their order, all where none is named; ceilings always come along.

    Raises SpecError.

    >>> checked_families(["moe", "gemm"])
    ('ceilings', 'gemm', 'moe')
    """
    for name in only:
        if name not in FAMILIES:
            raise SpecError(
                "only", name, f"must be of {', '.join(FAMILIES)}",
                nearest=nearest_names(name, FAMILIES),
            )  # fmt: skip
    return tuple(name for name in FAMILIES if not only or name in only or name == FAMILIES[0])


def all_cases(
    scope: Scope, families: Sequence[str] = FAMILIES, topology: str = ""
) -> dict[str, list[Case]]:
    """Every case of some families, none twice: what an earlier family has stays with it."""
    from rtsim.measure import (
        attention,
        ceilings,
        collective,
        gemm,
        generation,
        launch,
        memory_bound,
        moe,
    )

    designs: Mapping[str, Callable[[Scope], list[Case]]] = {
        "ceilings": ceilings.cases, "launch": launch.cases, "gemm": gemm.cases,
        "attention": attention.cases, "memory_bound": memory_bound.cases, "moe": moe.cases,
        "generation": generation.cases,
        "collective": lambda s: collective.cases(s, topology),
    }  # fmt: skip
    seen: set[tuple[str, ...]] = set()
    found: dict[str, list[Case]] = {}
    for family in families:
        own = found[family] = []
        for case in designs[family](scope):
            if case.key not in seen:
                seen.add(case.key)
                own.append(case)
    return found
