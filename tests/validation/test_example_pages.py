"""Pages with examples say what the program does: output and refusals are its own, code runs.

`python scripts/doc_examples.py --write` puts the output there.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rtsim.cli.main import run

ROOT = Path(__file__).parents[2]
# Page -> (commands with output, commands that are refused, what its Python examples print).
PAGES = {
    "extend": (3, 0, r"^1\.\d+\n6700000000000\.0"),
    "sweep": (4, 0, "must divide the 16 attention heads"),
    "plan": (4, 1, ""),
    "serving": (4, 0, r"^0\.\d+ [34]\.\d+ \(\)"),
}


def text(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_are_real_output(page: str) -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "scripts" / "doc_examples.py", page],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    shown, refused, _ = PAGES[page]
    assert text(page).count("<!-- run -->") == shown
    assert text(page).count("$ rtsim ") == shown + refused


@pytest.mark.parametrize("page", [page for page, (_, refused, _) in PAGES.items() if refused])
def test_refusals_are_real(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = re.findall(r"\$ rtsim (.*)\n(error: .*)\n", text(page))
    assert len(found) == PAGES[page][1]
    for command, line in found:
        assert run(shlex.split(command)) == 2
        assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize("page", PAGES)
def test_the_python_examples_run(page: str) -> None:
    examples = re.findall(r"```python\n(.*?)```", text(page), re.DOTALL)
    assert examples
    printed = ""
    for code in examples:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    assert re.search(PAGES[page][2], printed), printed
