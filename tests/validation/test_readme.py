"""README says what the program does: its example is the program's own output, its code runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rtsim.cli import main as program

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def between(what: str) -> str:
    return README.partition(f"<!-- {what}: start -->")[2].partition(f"<!-- {what}: end -->")[0]


def test_the_example_is_real_output(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python scripts/accuracy.py --write` puts it there."""
    monkeypatch.setenv("COLUMNS", "80")
    command, output = between("example").strip().strip("`").strip().split("\n", 1)
    assert command.startswith("$ rtsim predict ")
    assert program.run(command.split()[2:]) == 0
    assert capsys.readouterr().out == output + "\n"


def test_the_first_command_is_the_example() -> None:
    start = re.search(r"^python -m venv .*bin/(rtsim predict .*)$", README, re.MULTILINE)
    assert start is not None
    assert f"$ {start[1]}\n" in between("example")


def test_every_command_is_in_the_table() -> None:
    for name in program.COMMANDS:
        assert f"| `rtsim {name}" in README, name


def test_the_python_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 3
