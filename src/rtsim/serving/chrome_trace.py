"""A simulation as a Chrome trace: JSON that Perfetto (ui.perfetto.dev) and chrome://tracing read.

A process is a replica: its steps lie on one track, named by what they compute, with counters of
batch and queue, and its requests are asynchronous spans, waiting for the first token and decoding.
Times are microseconds from the start. Format: Trace Event Format (Google, 2016).
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from rtsim_kernels import serving_state as st

from rtsim.errors import SpecError
from rtsim.output import replacing
from rtsim.serving.deployment import Deployment
from rtsim.serving.simulate import Recorded

_US = 1e6
_ENDINGS = (".json", ".json.gz")
_ROLES = {st.ALL: "replica", st.PREFILL: "prefill replica", st.DECODE: "decode replica"}


def check_trace_file(path: str | Path) -> None:
    """SpecError for a file that the viewers would not open."""
    if not str(path).endswith(_ENDINGS):
        raise SpecError("chrome_trace", str(path), f"must end in {' or '.join(_ENDINGS)}")


@contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
    """A file for a trace, gzipped where its name says so, put in place at the end."""
    with replacing(path) as file:
        if not str(path).endswith(".gz"):
            yield file
            return
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed:
            yield cast("BinaryIO", packed)


class ChromeTrace:
    """Writes a trace piece by piece: memory does not grow with it. Use as a context."""

    def __init__(self, file: BinaryIO, deployment: Deployment) -> None:
        self._file = file
        self._before = b""
        groups = deployment.group_rows()
        self._replica_of = [replica for _, _, replica, _ in groups]
        self._named = {replica: role for _, role, replica, _ in groups}

    def __enter__(self) -> ChromeTrace:
        self._file.write(b'{"displayTimeUnit": "ms", "traceEvents": [\n')
        for replica, role in self._named.items():
            name = {"name": f"{_ROLES[role]} {replica}"}
            self._event(name="process_name", ph="M", pid=replica, tid=0, args=name)
            self._event(name="thread_name", ph="M", pid=replica, tid=0, args={"name": "steps"})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if kind is None:
            self._file.write(b"\n]}\n")

    def _event(self, **fields: Any) -> None:
        self._file.write(self._before + json.dumps(fields, allow_nan=False).encode())
        self._before = b",\n"

    def add(self, recorded: Recorded) -> None:
        """Write steps and requests."""
        for step in recorded.steps:
            replica, start = int(step["replica"]), float(step["start_s"]) * _US
            decodes, prompts = int(step["decodes"]), int(step["prompts"])
            tokens = int(step["prompt_tokens"])
            kind = "mixed" if decodes and tokens else "decode" if decodes else "prefill"
            counts = {"decodes": decodes, "prompts": prompts, "prompt_tokens": tokens}
            self._event(name=kind, cat="step", ph="X", pid=replica, tid=0, ts=start,
                        dur=float(step["end_s"]) * _US - start, args=counts)  # fmt: skip
            self._event(name="sequences", ph="C", pid=replica, ts=start,
                        args={"decodes": decodes, "prompts": prompts})  # fmt: skip
            self._event(name="waiting", ph="C", pid=replica, ts=start,
                        args={"requests": int(step["waiting"])})  # fmt: skip
        for row in recorded.requests:
            if row["status"] == st.FINISHED:
                self._request(row)

    def _request(self, row: Any) -> None:
        replica = self._replica_of[int(row["group"])]
        start = float(row["arrival_s"])
        first, end = start + float(row["ttft_s"]), start + float(row["e2e_latency_s"])
        args = {
            name: int(row[name]) for name in ("prompt_tokens", "output_tokens", "preemptions")
        } | {"waited_s": float(row["waited_s"])}
        spans = [("first token", start, first)]
        if math.isfinite(row["tpot_s"]):
            spans.append(("decode", first, end))
        for name, begin, finish in spans:
            common = {"cat": "request", "id": int(row["request"]), "pid": replica, "tid": 1}
            self._event(name=name, ph="b", ts=begin * _US, args=args, **common)
            self._event(name=name, ph="e", ts=finish * _US, **common)
