"""The one switch between interpreted and compiled kernels, and the one cache policy.

Every kernel function is decorated with `jit`. The sources of this package are loaded under two
names: as `rtsim_kernels`, where `jit` returns the function untouched and Numba is never imported
(a single prediction costs milliseconds), and as `rtsim_kernels_compiled`, where `jit` is
`numba.njit` (sweeps, planners, fits). `rtsim_kernels.compiled()` loads the second.

Numba's own file cache notices a change in the file of a function but not in the files of the
functions that it calls, and would go on returning stale numbers. So the cache folder is keyed
by a hash of all sources of this package, of Python's and of Numba's version: a change anywhere
starts an empty cache.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

COMPILED_PACKAGE = "rtsim_kernels_compiled"
COMPILED = __name__.partition(".")[0] == COMPILED_PACKAGE

COMPILE_S = 10  # CPU seconds of all kernels of a sweep on an ordinary core

Function = TypeVar("Function", bound=Callable[..., Any])


def cache_folder() -> Path:
    """Folder of the compiled kernels: `$RTSIM_CACHE_DIR`, or `rtsim` in the user's cache folder."""
    chosen = os.environ.get("RTSIM_CACHE_DIR")
    if chosen:
        root = Path(chosen)
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rtsim"
    return root / _sources_key()


def _sources_key() -> str:
    import hashlib  # here: only compiled use needs it
    from importlib.metadata import version

    digest = hashlib.sha256()
    digest.update(f"{sys.version}|{version('numba')}|{version('numpy')}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


if COMPILED:
    import logging
    from functools import partial

    import numba
    from numba.core import config, event

    _CACHE_FOLDER = cache_folder()

    class _FirstCompile(event.Listener):  # type: ignore[misc]
        """Logs one line when a kernel of this package is first compiled, not loaded."""

        said = False

        def on_start(self, started: Any) -> None:
            module = started.data["dispatcher"].py_func.__module__
            if not self.said and module.partition(".")[0] == COMPILED_PACKAGE:
                self.said = True
                logging.getLogger("rtsim_kernels").info(
                    "compiling kernels for this machine, once: about %d s", COMPILE_S
                )

        def on_end(self, ended: Any) -> None:
            pass

    event.register("numba:compile", _FirstCompile())

    def jit(function: Function) -> Function:
        """Compile `function` in nopython mode, without the GIL, cached in `cache_folder()`."""
        return _compiled(function, {})

    def inner(function: Function) -> Function:
        """`jit` for a function that only compiled ones call: no wrapper for Python is compiled.

        Worth it where arguments are many arrays and rows: unpacking them from Python objects
        takes longer to compile than the function.
        """
        return _compiled(function, {"no_cpython_wrapper": True})

    def _compiled(function: Function, options: dict[str, bool]) -> Function:
        # Numba picks the cache folder when the function is decorated: set it for that moment
        # only, so that other users of Numba in this process keep theirs.
        kept = config.CACHE_DIR
        config.CACHE_DIR = str(_CACHE_FOLDER)
        compiler = partial(numba.njit, nogil=True, error_model="numpy", no_cfunc_wrapper=True)
        try:
            return compiler(cache=True, **options)(function)  # type: ignore[no-any-return]
        except RuntimeError:  # no writable cache folder: compile for this process only
            return compiler(**options)(function)  # type: ignore[no-any-return]
        finally:
            config.CACHE_DIR = kept

else:

    def jit(function: Function) -> Function:
        """Leave `function` as plain Python."""
        return function

    inner = jit
