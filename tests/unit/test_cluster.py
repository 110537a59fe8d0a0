"""Sweeps on a local Dask cluster of two processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rtsim import cluster
from rtsim.errors import RtsimError, SpecError
from rtsim.sweep import sweep

distributed = pytest.importorskip("distributed", reason="dask is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of dask's own, on closing
]

GRID: dict[str, Any] = {
    "model": "gpt3-175b", "gpu": "a100,h100", "tp": "1,2,4,8", "batch_size": "1:16:1",
    "input_len": "8:1024:x2", "output_len": "1:1000:x3",
}  # fmt: skip


@pytest.fixture
def client() -> Iterator[Any]:
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as made,
        distributed.Client(made, set_as_default=False) as client,
    ):
        yield client


def test_a_lost_worker_costs_no_row(client: Any, tmp_path: Path) -> None:
    alone, path = tmp_path / "alone.csv", tmp_path / "out.csv"
    sweep(GRID, output=alone)
    workers = list(client.run(os.getpid).values())
    killed: list[int] = []

    def meanwhile(done: int, total: int) -> None:
        if done * 2 >= total and not killed:
            killed.append(workers[0])
            os.kill(workers[0], signal.SIGKILL)

    sweep(GRID, output=path, scheduler=client, progress=meanwhile)
    assert killed
    assert path.read_bytes() == alone.read_bytes()


def test_a_scheduler_by_its_address(client: Any) -> None:
    found = sweep({**GRID, "output_len": "64"}, scheduler=client.scheduler.address)
    assert found.n_kept == found.n_rows


def test_another_version_on_a_worker_is_refused(client: Any, monkeypatch) -> None:
    monkeypatch.setattr(cluster, "version", lambda _: "99.0")
    with pytest.raises(SpecError, match=r"has rtsim .*, here is 99.0"):
        sweep(GRID, scheduler=client)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x:1", "localhost:1"])
def test_a_scheduler_that_is_not_there(address: str, monkeypatch) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_S", 1.0)
    start = time.monotonic()
    with pytest.raises(RtsimError, match="does not answer") as caught:
        sweep(GRID, scheduler=address)
    assert time.monotonic() - start < 30
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["nonsense", "tcp://host", "host:port", "tcp://:8786"])
def test_what_is_no_address_is_refused_at_once(address: str) -> None:
    with pytest.raises(SpecError, match=r"must be an address, such as tcp://host:8786"):
        sweep({"model": "gpt-j-6b", "gpu": "h100"}, scheduler=address)
