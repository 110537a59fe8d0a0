"""Files are written whole or not at all: beside the target first, then renamed over it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rtsim.errors import OutputError


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to fill; it takes the place of `path` when the block ends without an error.

    What was at `path` stays untouched until then, and nothing is left behind by a failure.
    Devices and pipes (/dev/stdout) cannot be replaced and are written directly.

    Raises OutputError where the folder is missing, the target is a folder, the disk is full, ...
    """
    target = Path(os.path.realpath(path))  # through a link: replace what it points at
    if target.exists() and not target.is_file() and not target.is_dir():
        try:
            with target.open("wb") as direct:
                yield direct
        except OSError as error:
            raise OutputError(path, _reason(error)) from error
        return
    if target.is_dir():
        raise OutputError(path, "it is a folder")
    if not target.parent.is_dir():
        raise OutputError(path, f"there is no folder {Path(path).parent}")
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            if target.exists():
                beside.chmod(target.stat().st_mode & 0o777)
            yield file
        beside.replace(target)
    except OSError as error:
        raise OutputError(path, _reason(error)) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` through `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
