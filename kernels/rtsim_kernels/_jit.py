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

# What the kernels of a module are for, and seconds to compile all that they need on two ordinary
# cores (`first_compile.py`); less where others are in the cache already.
COMPILED_FOR = {
    "bulk": ("sweeps", 9),
    "bulk_encoders": ("sweeps of models with an encoder", 9),
    "steady": ("serving", 10),
    "events": ("simulations", 12),
    "mixed": ("serving", 7),
    "generation": ("predictions", 6),
    "one_batch": ("serving", 7),
    "pools": ("serving", 10),
}
SILENT_S = 1.0  # of compiling: what takes no longer is not worth a line

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


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if COMPILED:
    import logging
    import time
    from functools import cache, partial

    import numba
    from numba.core import config, event
    from numba.core.registry import CPUDispatcher

    _CACHE_FOLDER = cache_folder()

    class _LongCompile(event.Listener):  # type: ignore[misc]
        """Logs one line when kernels of this package take long to compile, and what they are for.

        A function is compiled within its caller, so that the first of some is what is asked for.
        """

        def __init__(self) -> None:
            self.depth = 0
            self.since = 0.0
            self.module = ""
            self.said: set[str] = set()

        def on_start(self, started: Any) -> None:
            self.depth += 1
            if self.depth == 1:
                self.since = time.perf_counter()
                self.module = started.data["dispatcher"].py_func.__module__
            elif time.perf_counter() - self.since > SILENT_S:
                self.say()

        def say(self) -> None:
            package, _, module = self.module.partition(".")
            if package == COMPILED_PACKAGE and module not in self.said:
                self.said.add(module)
                purpose, seconds = COMPILED_FOR.get(module, ("fits", 5))
                logging.getLogger("rtsim_kernels").info(
                    "compiling the kernels of %s for this machine, once: about %d s",
                    purpose, seconds,
                )  # fmt: skip

        def on_end(self, ended: Any) -> None:
            self.depth -= 1

    event.register("numba:compile", _LongCompile())

    class _BeforeCompiles(event.Listener):  # type: ignore[misc]
        """Calls a function before each function of this package that compiles, until it is true."""

        def __init__(self, call: Callable[[Any, tuple[Any, ...]], bool]) -> None:
            self.call = call
            self.done = False

        def on_start(self, started: Any) -> None:
            function = started.data["dispatcher"].py_func
            if not self.done and function.__module__.startswith(f"{COMPILED_PACKAGE}."):
                self.done = True  # what it compiles itself is not asked for
                self.done = self.call(function, started.data["args"])

        def on_end(self, ended: Any) -> None:
            pass

    def before_compiles(call: Callable[[Any, tuple[Any, ...]], bool]) -> None:
        """Have `call(function, argument types)` called before compiles, until it returns true."""
        event.register("numba:compile", _BeforeCompiles(call))

    def compile_for(function: Any, arguments: tuple[Any, ...]) -> None:
        """Compile, or load, a function for arguments like these, values or Numba types."""
        given = (a if isinstance(a, numba.types.Type) else numba.typeof(a) for a in arguments)
        function.compile(tuple(given))

    def folder_of(function: Any) -> Path | None:
        """Where the compiled function is cached, None: nowhere."""
        path = function.stats.cache_path
        return None if path is None else Path(path)

    class _Inner(CPUDispatcher):  # type: ignore[misc]
        """A compiled function without a wrapper for Python, which gets one when Python calls it."""

        def __call__(self, *arguments: Any) -> Any:
            return _entry(self)(*arguments)

    @cache
    def _entry(function: Any) -> Any:
        return numba.njit(lambda *arguments: function(*arguments))  # noqa: PLW0108 (a wrapper)

    def jit(function: Function) -> Function:
        """Compile `function` in nopython mode, without the GIL, cached in `cache_folder()`."""
        return _compiled(function, {})

    def inner(function: Function) -> Function:
        """`jit` for a function that other compiled ones call: no wrapper for Python is compiled.

        Unpacking many arrays and rows from Python objects takes longer to compile than most
        functions. A call from Python, as tests do, compiles a small function that calls it.
        """
        compiled = _compiled(function, {"no_cpython_wrapper": True})
        compiled.__class__ = _Inner
        return compiled

    def _compiled(function: Function, options: dict[str, bool]) -> Any:
        # Numba picks the cache folder when the function is decorated: set it for that moment
        # only, so that other users of Numba in this process keep theirs.
        kept = config.CACHE_DIR
        config.CACHE_DIR = str(_CACHE_FOLDER)
        compiler = partial(numba.njit, nogil=True, error_model="numpy", no_cfunc_wrapper=True)
        try:
            return compiler(cache=True, **options)(function)
        except RuntimeError:  # no writable cache folder: compile for this process only
            return compiler(**options)(function)
        finally:
            config.CACHE_DIR = kept

else:

    def jit(function: Function) -> Function:
        """Leave `function` as plain Python."""
        return function

    inner = jit

    def before_compiles(call: Callable[[Any, tuple[Any, ...]], bool]) -> None:
        """Nothing compiles."""

    def compile_for(function: Any, arguments: tuple[Any, ...]) -> None:
        """Nothing compiles."""

    def folder_of(function: Any) -> Path | None:
        """Nothing is cached."""
