"""The examples of pages in docs/: their files, commands and output, as the pages have them.

    python scripts/doc_examples.py [--write] [PAGE...]

A fenced block after `<!-- file: NAME -->` is a file, one after `<!-- run -->` a command with its
output ("| head -n N" keeps the first N lines). Without --write, says whether they are current.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

PAGES = ("extend", "sweep", "plan", "serving")
DOCS = Path(__file__).resolve().parents[1] / "docs"
_FILE = re.compile(r"<!-- file: (\S+) -->\n\n```toml\n(.*?)```", re.DOTALL)
_RUN = re.compile(r"(<!-- run -->\n\n```\n)\$ rtsim (.*?)\n(.*?)(```)", re.DOTALL)


def current(page: str) -> str:
    """The page with the output that its commands give now."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in _FILE.findall(page):
            (Path(folder) / name).write_text(text, encoding="utf-8")
        return _RUN.sub(lambda found: _with_output(found, folder), page)


def _with_output(found: re.Match[str], folder: str) -> str:
    text, _, lines = found[2].partition(" | head -n ")
    run = subprocess.run(
        [sys.executable, "-c", "from rtsim.cli.main import main; main()", *shlex.split(text)],
        capture_output=True, text=True, check=True, cwd=folder,
        env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    output = run.stdout.splitlines()[: int(lines) if lines else None]
    return f"{found[1]}$ rtsim {found[2]}\n" + "".join(f"{line}\n" for line in output) + found[4]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("pages", nargs="*", default=PAGES, metavar="PAGE")
    options = parser.parse_args()
    stale = 0
    for name in options.pages:
        file = DOCS / f"{name}.md"
        page = file.read_text(encoding="utf-8")
        new = current(page)
        if options.write:
            file.write_text(new, encoding="utf-8")
        elif new != page:
            print(f"{file.name} is not current: run {Path(__file__).name} --write")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
