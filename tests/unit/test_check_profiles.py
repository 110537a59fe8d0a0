"""The lint of profiles finds what is wrong, and nothing in the shipped ones."""

from dataclasses import replace

import pytest

from rtsim.check_profiles import check_profiles, problems
from rtsim.profile import load_profile


def test_shipped_profiles_are_in_order():
    assert [str(finding) for finding in check_profiles()] == []


@pytest.fixture
def profile():
    return load_profile("megatron-lm-a100-sxm4-80gb")


def test_name_must_be_the_file_name(profile):
    assert any("differs" in problem for problem in problems(profile, "other"))


def test_provenance_must_be_whole(profile):
    bare = replace(profile, provenance={"kind": "fitted"})
    assert "provenance lacks source" in problems(bare, profile.name)


def test_coefficients_must_be_within_their_bounds(profile):
    wrong = {**profile.coefficients, "host": {**profile.coefficients["host"], "corner": 1e6}}
    found = problems(replace(profile, coefficients=wrong), profile.name)
    assert any("[host] corner" in problem for problem in found)


def test_gpu_must_be_known_and_agree(profile):
    assert any("gpu" in p for p in problems(replace(profile, gpu="no-such-gpu"), profile.name))
    found = problems(replace(profile, architecture="turing"), profile.name)
    assert any("architecture" in problem for problem in found)


def test_scatter_must_name_every_group(profile):
    found = problems(replace(profile, sigma_unseen={}), profile.name)
    assert "[error.unseen] lacks host" in found
