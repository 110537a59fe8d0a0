"""The grid integration of the decode steps against every step by itself, and both kernel forms."""

import numpy as np
import pytest
import rtsim_kernels
from rtsim_kernels import generation, step

from rtsim.named_system import system

CASES = [
    ("gpt3-175b", "a100", {"tp": 8}),
    ("gpt3-125m", "a100", {}),
    ("llama-2-7b", "h100", {}),
    ("mistral-7b", "v100", {"tp": 2}),
    ("gpt-j-6b", "a100", {"tp": 4, "pp": 2}),
]


def by_steps(made, batch: int, prompt: int, output: int) -> float:
    """Every decode step timed by itself: slow and obvious."""
    operators, segments, machine = made.plain()
    times = np.zeros((len(operators), 2))
    return sum(
        step.step_s(
            float(batch),
            1.0,
            float(context),
            0.0,
            0.0,
            0.0,
            0.0,
            operators,
            segments,
            machine,
            times,
        )
        for context in range(prompt + 1, prompt + output)
    )


@pytest.mark.parametrize(("arch", "gpu", "split"), CASES)
@pytest.mark.parametrize(("batch", "prompt", "output"), [(1, 1, 9), (1, 500, 40), (16, 1000, 30)])
def test_grid_integral_is_the_sum_of_the_steps(arch, gpu, split, batch, prompt, output):
    made = system(arch, gpu, **split)
    quick = made.evaluate(batch, prompt, output, compiled=False).decode_s
    assert quick == pytest.approx(by_steps(made, batch, prompt, output), rel=5e-3)


def test_grid_is_exact_for_short_contexts():
    """Below eight tokens every context is a grid point."""
    made = system("gpt3-125m", "a100")
    quick = made.evaluate(1, 1, 7, compiled=False).decode_s
    assert quick == pytest.approx(by_steps(made, 1, 1, 7), rel=1e-12)


@pytest.mark.parametrize("context", [1.0, 2.0, 7.0, 8.0, 9.0, 513.0, 640.0, 100000.0])
def test_grid_points_enclose(context):
    low, high = generation.grid_below(context), generation.grid_above(context)
    assert low <= context < high
    assert generation.grid_below(low) == low
    assert high - low <= max(1.0, low / 4)


def test_generations_add_up():
    """T(p, a + b) = T(p, a) + decode(p + a, b), to rounding: the grid does not move."""
    made = system("llama-2-7b", "a100")

    def decode(first: int, steps: int) -> float:
        return made.evaluate(1, first, steps + 1, compiled=False).decode_s

    assert decode(100, 300) == pytest.approx(decode(100, 130) + decode(230, 170), rel=1e-12)


@pytest.mark.parametrize(("arch", "gpu", "split"), CASES)
@pytest.mark.parametrize(("batch", "prompt", "output"), [(1, 512, 64), (7, 33, 200), (64, 2000, 2)])
def test_interpreted_and_compiled_agree(arch, gpu, split, batch, prompt, output):
    made = system(arch, gpu, **split)
    plain = made.evaluate(batch, prompt, output, compiled=False)
    compiled = made.evaluate(batch, prompt, output, compiled=True)
    assert compiled.ttft_s == pytest.approx(plain.ttft_s, rel=1e-12)
    assert compiled.decode_s == pytest.approx(plain.decode_s, rel=1e-12)
    np.testing.assert_allclose(compiled.prefill_times, plain.prefill_times, rtol=1e-12)
    np.testing.assert_allclose(compiled.decode_times, plain.decode_times, rtol=1e-12)
    bare = made.times(batch, prompt, output)
    assert bare.e2e_latency_s == pytest.approx(plain.ttft_s + plain.decode_s, rel=1e-12)


def test_many_workloads_are_the_single_ones():
    made = system("gpt3-13b", "a100", tp=4)
    batch, prompt, output = (np.array(x, float) for x in ([1, 2, 3], [10, 500, 77], [1, 2, 100]))
    owed = made.runtimes(batch, prompt, output)
    for i in range(3):
        single = made.evaluate(int(batch[i]), int(prompt[i]), int(output[i]), compiled=False)
        assert owed[i, 0].sum() == pytest.approx(single.ttft_s, rel=1e-12)
        assert owed[i, 1].sum() == pytest.approx(single.decode_s, rel=1e-12, abs=1e-15)


def test_compiled_twin_is_another_package():
    twin = rtsim_kernels.compiled()
    assert twin is rtsim_kernels.compiled()
    assert twin.__name__ == "rtsim_kernels_compiled"
    assert hasattr(twin.step.step_s, "py_func")
    assert not hasattr(step.step_s, "py_func")
