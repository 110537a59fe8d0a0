"""Units: text to base SI and back."""

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsim import units


def test_doctests() -> None:
    result = doctest.testmod(units)
    assert result.attempted >= 10
    assert result.failed == 0


@pytest.mark.parametrize(
    ("text", "quantity", "value"),
    [
        ("80 GB", units.BYTES, 80e9),
        ("80GiB", units.BYTES, 80 * 2**30),
        ("81920 MiB", units.BYTES, 85_899_345_920),
        ("3.35 TB/s", units.BYTES_PER_SECOND, 3.35e12),
        ("2_039 GB/s", units.BYTES_PER_SECOND, 2039e9),
        ("400 Gb/s", units.BYTES_PER_SECOND, 50e9),
        ("100 Gbps", units.BYTES_PER_SECOND, 12.5e9),
        ("312 TFLOPS", units.FLOPS_PER_SECOND, 312e12),
        ("312 TFLOP/s", units.FLOPS_PER_SECOND, 312e12),
        ("1.979 PFLOPs", units.FLOPS_PER_SECOND, 1.979e15),
        ("624 TOPS", units.FLOPS_PER_SECOND, 624e12),
        ("1410 MHz", units.HERTZ, 1.41e9),
        ("700 W", units.WATTS, 700.0),
        ("1.5 us", units.SECONDS, 1.5e-6),
        ("1.5 µs", units.SECONDS, 1.5e-6),
        ("2 ms", units.SECONDS, 2e-3),
        ("2 USD/h", units.USD_PER_HOUR, 2.0),
        ("$2.5/h", units.USD_PER_HOUR, 2.5),
        ("1e12", units.BYTES_PER_SECOND, 1e12),
        (1.41e9, units.HERTZ, 1.41e9),
        (80_000_000_000, units.BYTES, 80e9),
    ],
)
def test_parse(text: str | float, quantity: units.Quantity, value: float) -> None:
    assert units.parse(text, quantity) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "quantity", "wanted"),
    [
        ("3.35 TB", units.BYTES_PER_SECOND, "'TB' is the unit of a size in bytes"),
        ("80 GB/s", units.BYTES, "unit of a rate in bytes per second"),
        ("1410 W", units.HERTZ, "unit of a power"),
        ("80 gb", units.BYTES, "case matters, there are GB"),
        ("80 parsec", units.BYTES, "unknown unit 'parsec'"),
        ("eighty GB", units.BYTES, "such as '80 GB'"),
        ("", units.BYTES, "such as '80 GB'"),
        ("nan", units.HERTZ, "finite"),
        ("inf GB", units.BYTES, "finite"),
        (float("nan"), units.HERTZ, "finite"),
        (float("inf"), units.BYTES, "finite"),
        (10**400, units.BYTES, "finite"),
        (0, units.BYTES, "above zero"),
        ("-80 GB", units.BYTES, "above zero"),
        (True, units.WATTS, "must be a number"),
        (None, units.WATTS, "must be a number"),
        (1410, units.HERTZ, "no plausible value"),
        ("2039 TB/s", units.BYTES_PER_SECOND, "no plausible value"),
        (312, units.FLOPS_PER_SECOND, "no plausible value"),
    ],
)
def test_refusals_are_one_clear_line(
    text: str | float, quantity: units.Quantity, wanted: str
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        units.parse(text, quantity)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_unit_text_means_two_quantities() -> None:
    """Else 'the unit of another quantity' would depend on the order of a list."""
    seen: dict[str, str] = {}
    for quantity in units.QUANTITIES:
        for text in quantity.factors:
            assert seen.setdefault(text, quantity.name) == quantity.name


@settings(deadline=None)
@given(st.floats(min_value=1e6, max_value=9e14))
def test_what_is_formatted_can_be_read_again(rate: float) -> None:
    text = units.format_bytes_per_s(rate, digits=6)
    assert units.parse(text, units.BYTES_PER_SECOND) == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (units.format_bytes(999.96e9), "1.00 TB"),
        (units.format_bytes(0), "0 B"),
        (units.format_bytes(512), "512 B"),
        (units.format_seconds(1.5e-6), "1.50 us"),
        (units.format_seconds(59.98), "60.0 s"),
        (units.format_flops(2.5e15), "2.50 PFLOP"),
        (units.format_count(51_972_000_000), "52.0 B"),
        (units.format_usd(3.431), "$3.43"),
        (units.format_usd(0.000123), "$0.000123"),
    ],
)
def test_format(text: str, wanted: str) -> None:
    assert text == wanted


@settings(deadline=None)
@given(st.text(max_size=20), st.sampled_from(units.QUANTITIES))
def test_any_text_gives_a_plausible_number_or_a_value_error(
    text: str, quantity: units.Quantity
) -> None:
    try:
        value = units.parse(text, quantity)
    except ValueError:
        return
    assert quantity.lowest <= value <= quantity.highest
