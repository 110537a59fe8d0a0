"""The folder of a run: one growing table per kind, what could not be measured, and the device.

    device.json      facts and versions, measured ceilings
    gpu.toml         only for a GPU that the catalogue lacks: see `gpu_file`
    gemm.csv, ...    one table per kind, columns of the schema first, then the circumstances
    not_measured.jsonl   cases without a row, and why

A row is appended in one write and synced, so that whatever ends a run (Ctrl-C, a crash, a full
disk) leaves whole rows; a line that was cut off all the same is removed when the run goes on.
A case with a row, or with a reason, is not measured again.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rtsim.errors import DataError, OutputError
from rtsim.measure.case import Case, key_columns
from rtsim.measure.device import CaseFault, DeviceFacts, Measurement
from rtsim.measurement_schema import KINDS
from rtsim.output import write_text

SOURCE = "rtsim measure"
DEVICE_FILE = "device.json"
GPU_FILE = "gpu.toml"
FAULTS_FILE = "not_measured.jsonl"
# Columns after those of the schema.
CIRCUMSTANCES = (
    "measured_at", "repeats", "spread", "max_error", "tflop_per_s", "gbyte_per_s", "clock_mhz",
    "memory_clock_mhz", "power_w", "temperature_c", "throttle", "device", "driver", "cuda",
)  # fmt: skip
# What two runs into one folder must agree on.
_SAME = ("name", "kind", "torch", "cuda", "driver")
_DIGITS = 6


class Folder:
    """The tables of one device, opened for adding. `done`: keys of cases that need no run."""

    def __init__(self, path: str | Path, facts: DeviceFacts, gpu: str, *, retry: bool) -> None:
        """Open a folder, or make it.

        gpu: name of the GPU in the rows. retry: cases that gave no row are open again.
        Raises DataError where it holds tables of another device or software, or of something
        else; OutputError where it cannot be written.
        """
        self.path, self.facts, self.gpu = Path(path), facts, gpu
        self.done: set[tuple[str, ...]] = set()
        self.rows_before = 0
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(path, _reason(error)) from None
        self._check_device()
        for kind in KINDS:
            if self.table(kind).exists():
                self._resume(kind)
        self._resume_faults(retry)

    def table(self, kind: str) -> Path:
        """The file of a kind."""
        return self.path / f"{kind}.csv"

    def add(self, case: Case, measured: Measurement) -> None:
        """Append the row of a case. Raises OutputError; the table is then as before."""
        file = self.table(case.kind)
        text = _line(self._cells(case, measured))
        if not file.exists():
            text = _line(_header(case.kind)) + text  # never a header without a row
        _append(file, text)
        self.done.add(case.key)

    def add_fault(self, case: Case, fault: CaseFault) -> None:
        """Record why a case has no row. Raises OutputError."""
        entry = {"kind": case.kind, "case": list(case.key[1:]), "what": str(case),
                 "reason": fault.reason, "details": fault.details, "at": _now()}  # fmt: skip
        _append(self.path / FAULTS_FILE, json.dumps(entry) + "\n")
        self.done.add(case.key)

    def write_device(self, ceilings: Mapping[str, float]) -> None:
        """Write facts and ceilings (work per second by name). Raises OutputError."""
        content = {**self.facts.as_dict(), "gpu": self.gpu, "ceilings": dict(ceilings)}
        write_text(self.path / DEVICE_FILE, json.dumps(content, indent=1) + "\n")

    def ceilings(self) -> dict[str, float]:
        """Ceilings that an earlier run wrote."""
        found = self._device().get("ceilings", {})
        return {str(k): float(v) for k, v in found.items()}

    def _cells(self, case: Case, measured: Measurement) -> list[str]:
        run = {
            "source": SOURCE, "gpu": self.gpu, "stack_version": self.facts.torch,
            "timing": measured.timing, "time_us": _number(measured.time_s * 1e6),
            "runtime_s": _number(measured.time_s), "runtime_std_s": _number(measured.std_s),
        }  # fmt: skip
        cells = [
            run[c.name] if c.name in run else case.text(c.name) for c in KINDS[case.kind].columns
        ]
        facts = self.facts
        circumstances = {
            "measured_at": _now(), "repeats": str(measured.repeats),
            "spread": _number(measured.spread, 3), "max_error": _number(measured.error, 3),
            "tflop_per_s": _number(case.flops / measured.time_s * 1e-12 or math.nan, 5),
            "gbyte_per_s": _number(case.moved_bytes / measured.time_s * 1e-9 or math.nan, 5),
            "clock_mhz": _number(measured.clock_mhz, 5),
            "memory_clock_mhz": _number(measured.memory_clock_mhz, 5),
            "power_w": _number(measured.power_w, 4),
            "temperature_c": _number(measured.temperature_c, 3), "throttle": measured.throttle,
            "device": facts.name, "driver": facts.driver, "cuda": facts.cuda,
        }  # fmt: skip
        return cells + [circumstances[name] for name in CIRCUMSTANCES]

    def _device(self) -> dict[str, Any]:
        file = self.path / DEVICE_FILE
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise DataError(file, f"cannot be read as JSON: {error}") from None
        if not isinstance(found, dict):
            raise DataError(file, "is not the description of a device")
        return found

    def _check_device(self) -> None:
        before, now = self._device(), self.facts.as_dict()
        for name in _SAME if before else ():
            if before.get(name) != now[name]:
                raise DataError(
                    self.path / DEVICE_FILE,
                    f"the folder was measured with {name} {before.get(name)!r}, here it is "
                    f"{now[name]!r}; name another folder",
                )

    def _resume(self, kind: str) -> None:
        file = self.table(kind)
        content = _read(file)
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            _truncate(file, len(whole))
        if not whole:  # nothing but a part of the header
            _remove(file)
            return
        rows = csv.reader(io.StringIO(_decoded(file, whole)))
        if next(rows, None) != list(_header(kind)):
            raise DataError(file, "has other columns than this version writes: nothing was added "
                            "to it; name another folder", line=1)  # fmt: skip
        names = [c.name for c in KINDS[kind].columns]
        places = [names.index(name) for name in key_columns(kind)]
        count = 0
        for row in rows:
            if len(row) == len(names) + len(CIRCUMSTANCES):
                self.done.add((kind, *(row[i] for i in places)))
                count += 1
        self.rows_before += count
        if count == 0:
            _remove(file)

    def _resume_faults(self, retry: bool) -> None:
        file = self.path / FAULTS_FILE
        if not file.exists():
            return
        if retry:
            _remove(file)
            return
        content = _read(file)
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            _truncate(file, len(whole))
        for number, line in enumerate(_decoded(file, whole).splitlines(), start=1):
            try:
                entry = json.loads(line)
                self.done.add((str(entry["kind"]), *map(str, entry["case"])))
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    file, "is no record of what was not measured", line=number
                ) from None


def _header(kind: str) -> tuple[str, ...]:
    return (*(c.name for c in KINDS[kind].columns), *CIRCUMSTANCES)


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _number(value: float, digits: int = _DIGITS) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}g}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _append(file: Path, text: str) -> None:
    """Add whole lines and sync them; on a fault the file is cut back to what it was."""
    content = text.encode()
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise OutputError(file, _reason(error)) from None
    try:
        before = os.fstat(descriptor).st_size
        try:
            written = 0
            while written < len(content):
                written += os.write(descriptor, content[written:])
            os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, before)
            if before == 0:
                file.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(file, _reason(error)) from None
    finally:
        os.close(descriptor)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise OutputError(file, _reason(error)) from None


def _decoded(file: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(file, "not a text file in UTF-8") from None


def _truncate(file: Path, size: int) -> None:
    try:
        os.truncate(file, size)
    except OSError as error:
        raise OutputError(file, _reason(error)) from None


def _remove(file: Path) -> None:
    try:
        file.unlink()
    except OSError as error:
        raise OutputError(file, _reason(error)) from None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
