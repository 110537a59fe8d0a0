"""The first compile in two processes: who compiles what, and when no other process is asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rtsim_kernels

# Predicts a row with an empty cache and prints what this process has compiled itself.
FIRST = """
import sys, rtsim, rtsim_kernels
from numba.core import event
kernels = rtsim_kernels.compiled()
kernels.first_compile.n_cores = lambda: 2

class Compiled(event.Listener):
    def on_start(self, started):
        function = started.data["dispatcher"].py_func
        if function.__module__.startswith("rtsim_kernels"):
            print(function.__module__.rpartition(".")[2], function.__name__, sep=".")
    def on_end(self, ended):
        pass

event.register("numba:compile", Compiled())
found = rtsim.predict_many({"model": "gpt3-175b", "gpu": "h100", "tp": 8})
print(repr(float(found["e2e_latency_s"][0])))
"""


def first(cache: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", FIRST],
        env={**os.environ, "RTSIM_CACHE_DIR": str(cache)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_another_process_compiles_its_share(tmp_path: Path) -> None:
    *names, seconds = first(tmp_path)
    own = {"step.latent_s", "scan.scan_s", "row_figures.write_row", "bulk.predict_rows"}
    others = {"gemm.gemm_s", "moe.moe_s", "memory_bound.memory_bound_s", "step.operator_work"}
    assert own <= set(names)
    assert not others & set(names)
    # None is compiled again for types that nobody asks for; this one takes two kinds of rows.
    assert {name for name in names if names.count(name) > 1} <= {"mla._conversion"}
    assert first(tmp_path) == [seconds]  # from the cache


@pytest.fixture
def shared() -> Any:
    return rtsim_kernels.compiled().first_compile


@pytest.mark.parametrize(
    "helper", ["raise SystemExit(1)", "import time\ntime.sleep(60)"], ids=["fails", "hangs"]
)
def test_no_other_process_is_no_fault(
    helper: str, shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails or hangs is given up, and none is left behind."""
    begun: list[subprocess.Popen[bytes]] = []

    class Kept(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            begun.append(self)

    monkeypatch.setattr(shared.subprocess, "Popen", Kept)
    monkeypatch.setattr(shared, "_HELPER", helper)
    monkeypatch.setattr(shared, "LONGEST_S", 0.5)
    shared.compile_in_two((), "work")
    assert [process.poll() is None for process in begun] == [False]


def test_a_process_that_cannot_start_is_no_fault(
    shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any, **options: Any) -> None:
        raise BlockingIOError("no further process")

    monkeypatch.setattr(shared.subprocess, "Popen", refused)
    done: list[Any] = []
    monkeypatch.setattr(shared, "compile_share", done.append)
    shared.compile_in_two((), "work")
    assert done == []  # it is compiled as it is asked for


def test_when_a_second_process_is_of_use(
    shared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Path | None] = [tmp_path]
    monkeypatch.setattr(shared, "folder_of", lambda function: found[0])
    monkeypatch.setattr(shared, "n_cores", lambda: 2)
    assert shared.worth_sharing()
    with monkeypatch.context() as changed:
        changed.setattr(shared, "n_cores", lambda: 1)
        assert not shared.worth_sharing()
    with monkeypatch.context() as changed:
        changed.setattr(sys, "executable", "")
        assert not shared.worth_sharing()
    with monkeypatch.context() as changed:
        changed.setattr(sys, "frozen", True, raising=False)
        assert not shared.worth_sharing()
    found[0] = None
    assert not shared.worth_sharing()
    found[0] = tmp_path
    assert shared.worth_sharing()
    (tmp_path / "step.latent_s-203.py311.nbi").write_bytes(b"")
    assert not shared.worth_sharing()
