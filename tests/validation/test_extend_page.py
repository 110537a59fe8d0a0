"""docs/extend.md says what the program does: its output is the program's own, its code runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")


def test_the_examples_are_real_output() -> None:
    """`python scripts/doc_examples.py --write` puts it there."""
    script = ROOT / "scripts" / "doc_examples.py"
    run = subprocess.run(
        [sys.executable, script, "extend"], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert PAGE.count("<!-- run -->") == PAGE.count("$ rtsim ") == 3


def test_the_python_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    ratio, rate = map(float, run.stdout.split())
    assert ratio > 1.0
    assert rate == 6.7e12
