"""The compiled core of rtsim: scalars and rows in, numbers out.

It knows NumPy and Numba and nothing of rtsim. Importing `rtsim_kernels` gives the interpreted
form; `compiled()` gives the same functions compiled by Numba. Both agree to 1e-12.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from types import ModuleType

from ._jit import COMPILED_PACKAGE, n_cores

__all__ = ["compiled", "n_cores"]

_LOADING = threading.RLock()


def compiled() -> ModuleType:
    """The compiled twin of this package: `compiled().gemm.gemm_s(...)` and so on.

    The first call imports Numba (about a second); each function compiles on its first use with
    new argument types and is cached on disk after that.
    """
    with _LOADING:  # threads that ask at once wait until all of it is there
        if COMPILED_PACKAGE not in sys.modules:
            spec = importlib.util.spec_from_file_location(
                COMPILED_PACKAGE, __file__, submodule_search_locations=list(__path__)
            )
            if spec is None or spec.loader is None:
                raise ImportError(f"cannot load {COMPILED_PACKAGE} from {__file__}")
            twin = importlib.util.module_from_spec(spec)
            sys.modules[COMPILED_PACKAGE] = twin
            spec.loader.exec_module(twin)
            for name in (
                "tables",
                "gemm",
                "attention",
                "memory_bound",
                "collective",
                "step",
                "generation",
                "mixed",
                "load",
                "lockstep",
                "cycle",
                "steady",
                "one_batch",
                "pools",
                "moe",
                "mla",
                "bulk_memo",
                "bulk_rows",
                "bulk",
                "bulk_encoders",
                "serving_state",
                "timeline",
                "request_queue",
                "time_heap",
                "cache_blocks",
                "scheduling",
                "request_flow",
                "step_memo",
                "events",
                "first_compile",
            ):
                importlib.import_module(f"{COMPILED_PACKAGE}.{name}")
    return sys.modules[COMPILED_PACKAGE]
