"""docs/plan.md says what the program does: its output is the program's own, its code runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rtsim.cli.main import run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")


def test_the_examples_are_real_output() -> None:
    """`python scripts/doc_examples.py --write` puts it there."""
    script = ROOT / "scripts" / "doc_examples.py"
    done = subprocess.run(
        [sys.executable, script, "plan"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert PAGE.count("<!-- run -->") == PAGE.count("$ rtsim ") - 1 >= 3


def test_the_refusal_is_real(capsys: pytest.CaptureFixture[str]) -> None:
    command, line = re.findall(r"\$ rtsim (.*)\n(error: .*)\n", PAGE)[0]
    assert run(shlex.split(command)) == 2
    assert capsys.readouterr().err == line + "\n"


def test_the_python_example_runs() -> None:
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
