"""Profile files: what is written reads back the same, whole or not at all."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rtsim
from rtsim.errors import OutputError
from rtsim.operators import StackTraits
from rtsim.profile import DECLARED, GROUPS, Profile, load_profile, profile_names
from rtsim.profile_file import profile_toml, rounded, uncertainties, write_profile

FREEDOMS = ["host.launch_s", "gemm.fp16.hbm_frac"]
COVARIANCE = np.array([[0.0123456, -0.001], [-0.001, 2e-7]])


def made() -> Profile:
    """A profile with every kind of section: plain, per format, some left out, some partial."""
    first = DECLARED["gemm"][0].name
    return Profile(
        name="mine",
        stack="own",
        gpu="a100-sxm4-80gb",
        architecture="ampere",
        traits=StackTraits(attention="unfused", logits="all", fused_norm=False),
        coefficients={
            "host": {c.name: c.prior * 1.00012 for c in DECLARED["host"]},
            "gemm.fp16": {c.name: c.prior for c in DECLARED["gemm"]},
            "gemm.fp8": {first: 1.5 * DECLARED["gemm"][0].prior},
        },
        sigma_seen=dict.fromkeys(GROUPS, 0.0123),
        sigma_unseen={group: 0.01 * (i + 1) for i, group in enumerate(GROUPS)},
        sigma_row=0.004,
        transfer_sigma=dict.fromkeys(GROUPS, 0.2),
        fitted_shapes=((96.0, 12288.0, 96.0, 8.0), (28.0, 4096.0, 16.0, 1.0)),
        provenance={"kind": "fitted", "source": 'a "quoted" source', "tables": ["a.csv"]},
    )


def written(profile: Profile, folder: Path) -> Path:
    path = folder / "mine.toml"
    write_profile(path, profile_toml(profile, COVARIANCE, FREEDOMS, [True, False]))
    return path


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    profile = made()
    again = load_profile(str(written(profile, tmp_path)))
    exact = (*("name", "stack", "gpu", "architecture", "traits", "fitted_shapes"), "provenance")
    for name in exact:
        assert getattr(again, name) == getattr(profile, name), name
    for name in ("sigma_seen", "sigma_unseen", "sigma_row", "transfer_sigma"):
        assert getattr(again, name) == pytest.approx(getattr(profile, name), rel=1e-3), name
    assert again.coefficients.keys() == profile.coefficients.keys()
    for section, values in profile.coefficients.items():
        assert again.coefficients[section] == pytest.approx(values, rel=1e-4), section


def test_a_second_round_changes_nothing(tmp_path: Path) -> None:
    first = written(made(), tmp_path).read_text()
    again = load_profile(str(tmp_path / "mine.toml"))
    assert profile_toml(again, COVARIANCE, FREEDOMS, [True, False]) == first


@pytest.mark.parametrize("name", profile_names())
def test_shipped_profiles_are_as_written(name: str, tmp_path: Path) -> None:
    profile = replace(load_profile(name), name="copy")
    path = tmp_path / "copy.toml"
    write_profile(path, profile_toml(profile, COVARIANCE, FREEDOMS, [True, True]))
    assert load_profile(str(path)) == profile


def test_every_coefficient_says_unit_and_meaning(tmp_path: Path) -> None:
    text = written(made(), tmp_path).read_text()
    for c in (*DECLARED["host"], *DECLARED["gemm"]):
        assert f"# {c.unit}: {c.meaning}" in text


def test_uncertainty_is_kept(tmp_path: Path) -> None:
    body = tomllib.loads(written(made(), tmp_path).read_text())["uncertainty"]
    assert body["coefficients"] == FREEDOMS
    assert body["pinned"] == [True, False]
    np.testing.assert_allclose(body["covariance"], COVARIANCE, rtol=1e-2)


def test_what_is_not_fitted_is_not_written(tmp_path: Path) -> None:
    body = tomllib.loads(written(made(), tmp_path).read_text())
    assert "collective" not in body
    assert list(body["gemm"]["fp8"]) == [DECLARED["gemm"][0].name]


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (1.234567e-6, 5, 1.2346e-6),
        (99999.6, 5, 1e5),
        (0.0, 5, 0.0),
        (2.0, 3, 2.0),
        (-0.015, 1, -0.01),
    ],
)
def test_rounding_is_to_significant_digits(value: float, digits: int, expected: float) -> None:
    assert rounded(value, digits) == expected


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = written(made(), tmp_path)
    before = path.read_text()
    with pytest.raises(OutputError):
        write_profile(tmp_path / "none" / "mine.toml", "x")
    with pytest.raises(UnicodeEncodeError):
        write_profile(path, "\ud800")  # cannot be encoded
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mine.toml"]


def test_a_file_is_written_again_as_it_is() -> None:
    """What is read back of kernels is all that the file says of them."""
    path = Path(rtsim.__file__).parent / "data" / "profiles" / "sglang-h100-sxm5-80gb.toml"
    known = uncertainties(path)
    assert len(known) > 10
    text = profile_toml(load_profile(path.stem), kernels=known)
    assert text == path.read_text(encoding="utf-8")
