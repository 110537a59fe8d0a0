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
    import numba
    from numba.core import config

    _CACHE_FOLDER = cache_folder()

    def jit(function: Function) -> Function:
        """Compile `function` in nopython mode, without the GIL, cached in `cache_folder()`."""
        return _compiled(function)

    def jit_inner(function: Function) -> Function:
        """`jit` for what only compiled code calls: without the entry from Python, which costs
        much of the compilation where arguments are tuples of many arrays.
        """
        return _compiled(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)

    def _compiled(function: Function, **options: bool) -> Function:
        # Numba picks the cache folder when the function is decorated: set it for that moment
        # only, so that other users of Numba in this process keep theirs.
        kept = config.CACHE_DIR
        config.CACHE_DIR = str(_CACHE_FOLDER)
        try:
            return numba.njit(cache=True, nogil=True, error_model="numpy", **options)(function)  # type: ignore[no-any-return]
        except RuntimeError:  # no writable cache folder: compile for this process only
            return numba.njit(nogil=True, error_model="numpy", **options)(function)  # type: ignore[no-any-return]
        finally:
            config.CACHE_DIR = kept

else:

    def jit(function: Function) -> Function:
        """Leave `function` as plain Python."""
        return function

    jit_inner = jit
