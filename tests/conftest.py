"""What several test modules share: refusals of the command line, and the value of a plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from rtsim.cli import main as program


class Refused:
    """Runs the command line and holds that it refuses in the one way there is."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str) -> str:
        """Status 2, nothing on standard output, one line on standard error, which is returned."""
        status = program.run(arguments)
        out, err = self.capsys.readouterr()
        assert (status, out) == (2, ""), err
        self.one_line(err)
        return err

    @staticmethod
    def one_line(err: str) -> None:
        """A message of rtsim, not the text of an exception of Python or of a library."""
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        for word in ("Traceback", "Error:", "errno", "pydantic", "0x"):
            assert word not in err
        assert len(err) < 400


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    monkeypatch.delenv("RTSIM_DEBUG", raising=False)
    return Refused(capsys)


@pytest.fixture(scope="session")
def value_of() -> Callable[[Any], float]:
    """What a plan was asked to make least."""

    def value(found: Any) -> float:
        best = found.best
        if found.objective == "latency":
            return float(best.e2e_latency_s)
        if found.objective == "energy":
            return best.energy_j_per_request or math.nan
        return -best.requests_per_s if found.rate_per_s is None else best.usd_per_hour or math.nan

    return value
