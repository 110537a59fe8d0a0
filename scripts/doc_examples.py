"""The examples of docs/extend.md: their files, commands and output, as the page has them.

    python scripts/doc_examples.py [--write]

A fenced block after `<!-- file: NAME -->` is a file, one after `<!-- run -->` a command with its
output ("| head -n N" keeps the first N lines). Without --write, says whether the page is current.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extend.md"
_FILE = re.compile(r"<!-- file: (\S+) -->\n\n```toml\n(.*?)```", re.DOTALL)
_RUN = re.compile(r"(<!-- run -->\n\n```\n)\$ rtsim (.*?)\n(.*?)(```)", re.DOTALL)


def current(page: str) -> str:
    """The page with the output that its commands give now."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in _FILE.findall(page):
            (Path(folder) / name).write_text(text, encoding="utf-8")
        return _RUN.sub(lambda found: _with_output(found, folder), page)


def _with_output(found: re.Match[str], folder: str) -> str:
    command, _, lines = found[2].partition(" | head -n ")
    run = subprocess.run(
        [sys.executable, "-c", "from rtsim.cli.main import main; main()", *command.split()],
        capture_output=True, text=True, check=True, cwd=folder,
        env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    output = run.stdout.splitlines()[: int(lines) if lines else None]
    return f"{found[1]}$ rtsim {found[2]}\n" + "".join(f"{line}\n" for line in output) + found[4]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    new = current(page)
    if options.write:
        PAGE.write_text(new, encoding="utf-8")
    elif new != page:
        print(f"{PAGE.name} is not current: run {Path(__file__).name} --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
