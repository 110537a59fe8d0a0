"""The switch between interpreted and compiled kernels, and the cache of compiled ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import rtsim_kernels
from rtsim_kernels import _jit

PACKAGE = Path(rtsim_kernels.__file__).parent

# Times one small product with a copy of the package, and says where its cache is.
TIMED = """
import rtsim_kernels
from rtsim_kernels import _jit
kernels = rtsim_kernels.compiled()
print(kernels._jit.cache_folder().name, kernels.generation.grid_above(9.0))
"""


def run(code: str, folder: Path, cache: Path) -> list[str]:
    """Run code with the package of `folder` in a fresh interpreter; the words it prints."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "RTSIM_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the kernels' sources that a test may change."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "sources" / "rtsim_kernels", ignore=ignored)
    return tmp_path / "sources"


def key() -> str:
    return _jit.cache_folder().name


def test_the_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTSIM_CACHE_DIR", str(tmp_path / "mine"))
    assert _jit.cache_folder().parent == tmp_path / "mine"
    monkeypatch.delenv("RTSIM_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert _jit.cache_folder().parent == tmp_path / "user" / "rtsim"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _jit.cache_folder().parent == tmp_path / ".cache" / "rtsim"


def test_the_key_follows_every_source(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = package / "rtsim_kernels"
    original = key()
    monkeypatch.setattr(_jit, "__file__", str(copied / "_jit.py"))
    assert key() == original  # the place does not matter, the content does
    for path in sorted(copied.glob("*.py")):
        before = path.read_bytes()
        path.write_bytes(before + b"\n# a change\n")
        assert key() != original, path.name
        path.write_bytes(before)
        assert key() == original
    (copied / "another.py").write_text("")
    assert key() != original


@pytest.mark.parametrize("package_name", ["numba", "numpy"])
def test_the_key_follows_the_versions(package_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    original, version = key(), metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "0.0.0" if name == package_name else version(name)
    )
    assert key() != original


def test_the_key_follows_python(monkeypatch: pytest.MonkeyPatch) -> None:
    original = key()
    monkeypatch.setattr(sys, "version", "4.0")
    assert key() != original


def test_a_changed_callee_is_not_served_from_the_cache(package: Path, tmp_path: Path) -> None:
    """Numba alone would return the old number: the caller's own file has not changed.

    `generation.decode_s` calls `step.step_s` of another file; a small pair stands for them.
    """
    kernels = package / "rtsim_kernels"
    (kernels / "callee.py").write_text(
        "from ._jit import jit\n\n\n@jit\ndef callee(x):\n    return x + 1.0\n"
    )
    (kernels / "caller.py").write_text(
        "from ._jit import jit\nfrom .callee import callee\n\n\n"
        "@jit\ndef caller(x):\n    return 2.0 * callee(x)\n"
    )
    code = (
        "import importlib, rtsim_kernels\n"
        "rtsim_kernels.compiled()\n"
        "module = importlib.import_module('rtsim_kernels_compiled.caller')\n"
        "print(module.caller(3.0), sum(module.caller.stats.cache_hits.values()))"
    )
    cache = tmp_path / "cache"
    assert run(code, package, cache) == ["8.0", "0"]
    assert run(code, package, cache) == ["8.0", "1"]  # the cache does serve what is unchanged
    (kernels / "callee.py").write_text(
        "from ._jit import jit\n\n\n@jit\ndef callee(x):\n    return x + 2.0\n"
    )
    assert run(code, package, cache) == ["10.0", "0"]


def test_the_cache_is_where_it_is_said_to_be(package: Path, tmp_path: Path) -> None:
    folder, value = run(TIMED, package, tmp_path / "cache")
    assert float(value) == 10.0
    assert list((tmp_path / "cache" / folder).rglob("*.nbi"))
    assert not list(package.rglob("*.nbi"))


def test_an_unwritable_cache_is_no_fault(package: Path, tmp_path: Path) -> None:
    """A file where the folder should be: compiled for this process only."""
    blocked = tmp_path / "cache"
    blocked.write_text("in the way")
    _, value = run(TIMED, package, blocked)
    assert float(value) == 10.0
    assert blocked.read_text() == "in the way"


def test_other_users_of_numba_keep_their_cache(tmp_path: Path) -> None:
    """Numba's own setting is the same before and after the kernels are loaded."""
    code = (
        "from numba.core import config\n"
        "config.CACHE_DIR = 'theirs'\n"
        "import rtsim_kernels\n"
        "rtsim_kernels.compiled()\n"
        "print(config.CACHE_DIR)"
    )
    assert run(code, PACKAGE.parent, tmp_path / "cache") == ["theirs"]


# A small kernel in the place of that of sweeps, which compiles for SILENT_S or longer.
BULK = """
from ._jit import inner, jit

@inner
def one(x):
    return x + 1.0

@inner
def two(x):
    return one(x) + 1.0

@jit
def predict_rows(x):
    return two(x) + two(x)
"""
SAID = """
import logging, sys, rtsim_kernels
logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stdout)
kernels = rtsim_kernels.compiled()
kernels._jit.SILENT_S = {silent}
kernels.first_compile.n_cores = lambda: 1  # the operators are not to be compiled
print("loaded")
kernels.bulk.predict_rows(9.0)
kernels.bulk.predict_rows(9)
"""


def test_a_long_compile_is_logged_once(package: Path, tmp_path: Path) -> None:
    (package / "rtsim_kernels" / "bulk.py").write_text(BULK)
    quick = run(SAID.format(silent=100.0), package, tmp_path / "quick")
    assert quick == ["loaded"]
    said = " ".join(run(SAID.format(silent=0.0), package, tmp_path / "cache"))
    assert said == (
        "loaded rtsim_kernels: compiling the kernels of sweeps for this machine, once: about 9 s"
    )
    again = run(SAID.format(silent=0.0), package, tmp_path / "cache")
    assert again == ["loaded"]  # from the cache: nothing to say


def test_inner_functions_can_be_called_from_python() -> None:
    """They have no wrapper for Python of their own; without one the process would end."""
    from rtsim_kernels import gemm

    twin = rtsim_kernels.compiled().gemm.miss_frac
    assert twin(2.0, 4.0) == gemm.miss_frac(2.0, 4.0)
    assert twin(0.1, 4.0) == 0.0


def test_interpreted_kernels_are_plain_functions() -> None:
    import numba
    from rtsim_kernels import generation

    assert not _jit.COMPILED
    assert type(generation.grid_below).__name__ == "function"
    compiled = rtsim_kernels.compiled().generation
    assert isinstance(compiled.grid_below, numba.core.registry.CPUDispatcher)
    for context in (1.0, 7.0, 8.0, 100.0, 4097.0):
        assert compiled.grid_below(context) == generation.grid_below(context)


def test_interpreted_kernels_do_not_load_numba(tmp_path: Path) -> None:
    code = "import rtsim_kernels.generation, sys\nprint('numba' in sys.modules)"
    assert run(code, PACKAGE.parent, tmp_path) == ["False"]
