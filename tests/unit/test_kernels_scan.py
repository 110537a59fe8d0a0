"""Recurrent mixers: hand-derived work, limits, both forms."""

import numpy as np
import pytest
import rtsim_kernels
from rtsim_kernels import scan, tables

from rtsim.catalog import load_gpu
from rtsim.device_facts import device_row, record

VALUES = {c.name: c.prior for c in scan.SCAN_COEFFICIENTS}
ROW = record(scan.SCAN, peak_flops_per_s=989.4e12, element_bytes=2.0, **VALUES)
DEVICE = device_row(load_gpu("h100"))
PLAIN = tables.as_row(ROW)
GPU = tables.as_row(DEVICE)
MAMBA2 = (1.0, 128.0, 80.0, 64.0, 0.0, 0.0)  # key heads, key size, heads, head size
DELTA = (16.0, 128.0, 32.0, 128.0, 1.0, 0.0)
MAMBA = (1.0, 16.0, 5120.0, 1.0, 0.0, 1.0)


def test_work_of_one_token_of_mamba2() -> None:
    """A multiply-add to update and one to read each element; states in fp32, there and back."""
    flops, moved = scan.scan_work(3.0, 1.0, *MAMBA2, PLAIN)
    state = 80 * 128 * 64
    assert flops == 3 * 4 * state
    inputs = 2 * 128 + 2 * 80 * 64 + 80
    assert moved == 3 * (2 * inputs + 2 * 4 * state)


def test_the_delta_rule_reads_the_state_once_more() -> None:
    with_rule, _ = scan.scan_work(1.0, 10.0, *DELTA, PLAIN)
    without, _ = scan.scan_work(1.0, 10.0, *DELTA[:4], 0.0, 0.0, PLAIN)
    assert with_rule == 1.5 * without


def test_one_token_is_a_pass_over_the_states() -> None:
    """64 sequences of 2.6 MB: 335 MB at three quarters of 3.35 TB/s."""
    seconds, bound = scan.scan_s(64.0, 1.0, *MAMBA2, PLAIN, GPU)
    state_s = 2 * 64 * 80 * 128 * 64 * 4 / (0.75 * 3350e9)
    assert seconds == pytest.approx(VALUES["launch_s"] + state_s, rel=0.02)
    assert bound == tables.BOUND_MEMORY


def test_a_decode_step_does_not_depend_on_the_prompt_but_a_prompt_does() -> None:
    long, _ = scan.scan_s(1.0, 65536.0, *MAMBA2, PLAIN, GPU)
    half, _ = scan.scan_s(1.0, 32768.0, *MAMBA2, PLAIN, GPU)
    assert 1.7 < long / half <= 2.0  # linear in the tokens, but for the launch


@pytest.mark.parametrize("shape", [MAMBA2, DELTA, MAMBA])
def test_more_tokens_and_sequences_never_take_less_time_nor_beat_the_bound(shape) -> None:
    before = 0.0
    for tokens in (1.0, 2.0, 63.0, 64.0, 65.0, 255.0, 256.0, 257.0, 1000.0, 8192.0):
        for n in (1.0, 7.0):
            seconds, _ = scan.scan_s(n, tokens, *shape, PLAIN, GPU)
            flops, moved = scan.scan_work(n, tokens, *shape, PLAIN)
            assert seconds >= max(flops / PLAIN.peak_flops_per_s, moved / GPU.hbm_bytes_per_s)
        seconds, _ = scan.scan_s(1.0, tokens, *shape, PLAIN, GPU)
        assert seconds >= before
        before = seconds


@pytest.mark.parametrize("shape", [MAMBA2, DELTA, MAMBA])
def test_both_forms_agree(shape) -> None:
    compiled = rtsim_kernels.compiled().scan
    for tokens in (1.0, 300.0):
        quick, code = compiled.scan_s(2.0, tokens, *shape, ROW[()], DEVICE[()])
        slow, same = scan.scan_s(2.0, tokens, *shape, PLAIN, GPU)
        assert quick == pytest.approx(slow, rel=1e-12)
        assert code == same


def test_a_faster_part_is_never_slower() -> None:
    for field in ("hbm_bytes_per_s", "vector_flops_per_s"):
        faster = GPU._replace(**{field: 2.0 * getattr(GPU, field)})
        for shape in (MAMBA2, DELTA, MAMBA):
            for tokens in (1.0, 4096.0):
                was, _ = scan.scan_s(4.0, tokens, *shape, PLAIN, GPU)
                now, _ = scan.scan_s(4.0, tokens, *shape, PLAIN, faster)
                assert now <= was
    assert np.isfinite(scan.scan_s(1.0, 1.0, *MAMBA, PLAIN, GPU)[0])
