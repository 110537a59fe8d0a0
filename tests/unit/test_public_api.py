"""The lazy public API."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

import rtsim


@pytest.mark.parametrize("name", rtsim.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(rtsim, name)
    assert value is not None
    assert not isinstance(value, types.ModuleType)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'perdict'"):
        rtsim.perdict  # noqa: B018


def test_dir_lists_the_api() -> None:
    assert set(rtsim.__all__) <= set(dir(rtsim))


@pytest.mark.parametrize(
    "name", ["predict", "validate", "sweep", "compare", "denoise", "tradeoff", "plan", "explain"]
)
def test_functions_are_not_hidden_by_their_modules(name: str) -> None:
    """Importing the submodule rtsim.predict must not replace the function rtsim.predict."""
    code = f"import rtsim.{name}, rtsim; assert rtsim.{name}.__name__ == '{name}', rtsim.{name}"
    code += f"; assert callable(rtsim.{name}); from rtsim import {name}; assert callable({name})"
    subprocess.run([sys.executable, "-c", code], check=True)
