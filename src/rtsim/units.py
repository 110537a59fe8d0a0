"""Quantities with units, to and from text. The only home of prefixes in rtsim.

Inside rtsim everything is in base SI units (bytes, bytes/s, FLOP/s, Hz, s, W) and US dollars per
hour. `parse` reads "80 GB", "3.35 TB/s", "312 TFLOP/s", "1410 MHz", "700 W", "1.5 us",
"2 USD/h"; a plain number is in the base unit already. GB is 10^9 bytes, GiB 2^30; a small b
is a bit ("400 Gb/s" is 50 GB/s), so the case of B matters. `format_*` write them for people.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Integral, Real

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_SMALL = {"m": 1e-3, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "n": 1e-9}
_BITS_PER_BYTE = 8.0
_NUMBER = re.compile(
    r"\s*([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf)\w*)\s*(.*?)\s*"
)


@dataclass(frozen=True)
class Quantity:
    """A physical quantity: its name and base unit in words, an example, and its unit texts.

    `factors` maps each accepted unit text to its size in the base unit. `lowest` and `highest`
    bound what is plausible for one machine; they catch a forgotten or wrong prefix.
    """

    name: str
    base_unit: str
    example: str
    factors: dict[str, float]
    lowest: float
    highest: float


def _prefixed(prefixes: dict[str, float], *units: str, size: float = 1.0) -> dict[str, float]:
    return {p + unit: factor * size for p, factor in prefixes.items() for unit in units}


_ALL_BYTE_PREFIXES = {**_DECIMAL, "K": 1e3, **_BINARY}
_BIT = 1.0 / _BITS_PER_BYTE

BYTES = Quantity(
    "a size in bytes",
    "B",
    "80 GB",
    {
        **_prefixed(_ALL_BYTE_PREFIXES, "B"),
        "byte": 1.0,
        "bytes": 1.0,
    },
    lowest=1e4,
    highest=1e16,
)
BYTES_PER_SECOND = Quantity(
    "a rate in bytes per second",
    "B/s",
    "3.35 TB/s",
    {
        **_prefixed(_ALL_BYTE_PREFIXES, "B/s", "Bps"),
        **_prefixed(_DECIMAL, "b/s", "bit/s", "bps", size=_BIT),
    },
    lowest=1e6,
    highest=1e15,
)
FLOPS_PER_SECOND = Quantity(
    "a rate in FLOP per second",
    "FLOP/s",
    "312 TFLOP/s",
    _prefixed(
        _DECIMAL,
        *("FLOPS", "FLOP/s", "FLOPs", "FLOPs/s", "flop/s", "flops", "Flop/s", "OPS", "OP/s"),
    ),
    lowest=1e9,
    highest=1e18,
)
HERTZ = Quantity(
    "a frequency", "Hz", "1410 MHz", _prefixed(_DECIMAL, "Hz"), lowest=1e6, highest=1e11
)
SECONDS = Quantity(
    "a time",
    "s",
    "1.5 us",
    {
        **_prefixed({**_SMALL, "": 1.0}, "s"),
        "sec": 1.0,
        "second": 1.0,
        "seconds": 1.0,
        "min": 60.0,
        "h": 3600.0,
    },
    lowest=1e-12,
    highest=1e9,
)
WATTS = Quantity(
    "a power", "W", "700 W", _prefixed({**_DECIMAL, "m": 1e-3}, "W"), lowest=1.0, highest=1e6
)
USD_PER_HOUR = Quantity(
    "a price per hour",
    "USD/h",
    "2 USD/h",
    {
        unit + per: 1.0
        for unit in ("USD", "usd", "$")
        for per in ("/h", "/hr", "/hour", " per hour", " / h")
    },
    lowest=1e-4,
    highest=1e5,
)
QUANTITIES = (
    BYTES,
    BYTES_PER_SECOND,
    FLOPS_PER_SECOND,
    HERTZ,
    SECONDS,
    WATTS,
    USD_PER_HOUR,
)


def is_number(value: object, *, whole: bool = False) -> bool:
    """Whether a caller's value is a real number (whole: an integer), NumPy's included.

    >>> is_number(1.5), is_number("4"), is_number(4, whole=True), is_number(4.0, whole=True)
    (True, False, True, False)
    """
    return isinstance(value, Integral if whole else Real)


def parse(value: str | float, quantity: Quantity) -> float:
    """`value` in the base unit of `quantity`.

    Raises ValueError with one clear line: not a number, NaN or infinite, an unknown unit, the
    unit of another quantity, zero or negative, or outside what is plausible for the quantity.

    >>> parse("3.35 TB/s", BYTES_PER_SECOND)
    3350000000000.0
    >>> parse("80 GiB", BYTES)
    85899345920.0
    >>> parse(1.41e9, HERTZ)
    1410000000.0
    """
    number = _read(value, quantity)
    if math.isnan(number) or math.isinf(number):
        raise ValueError(f"must be a finite number, such as '{quantity.example}'")
    if number <= 0.0:
        raise ValueError(f"must be above zero, such as '{quantity.example}'")
    if not quantity.lowest <= number <= quantity.highest:
        raise ValueError(
            f"{format_number(number)} {quantity.base_unit} is no plausible value for "
            f"{quantity.name}; is the unit right? An example is '{quantity.example}'"
        )
    return number


def _read(value: str | float, quantity: Quantity) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"must be a number or text with a unit, such as '{quantity.example}'")
    if not isinstance(value, str):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    text = value.strip()
    if text.startswith("$"):  # "$2/h" is written before the number
        text = text[1:].lstrip()
        slash = text.find("/")
        text = text[:slash] + " $" + text[slash:] if slash > 0 else text + " $"
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"must be a number or text with a unit, such as '{quantity.example}'")
    try:
        number = float(match.group(1))
    except ValueError:
        raise ValueError(
            f"must be a number or text with a unit, such as '{quantity.example}'"
        ) from None
    unit = " ".join(match.group(2).split())
    if not unit:
        return number
    if unit in quantity.factors:
        return number * quantity.factors[unit]
    raise ValueError(_wrong_unit(unit, quantity))


def _wrong_unit(unit: str, quantity: Quantity) -> str:
    for other in QUANTITIES:
        if unit in other.factors:
            return (
                f"'{unit}' is the unit of {other.name}; "
                f"{quantity.name} is wanted, such as '{quantity.example}'"
            )
    lowered = unit.casefold()
    close = [known for known in quantity.factors if known.casefold() == lowered]
    if close:
        return f"unknown unit '{unit}'; case matters, there are {' and '.join(close)}"
    return f"unknown unit '{unit}'; {quantity.name} is wanted, such as '{quantity.example}'"


def _scaled(number: float, prefixes: dict[str, float], digits: int) -> tuple[str, str]:
    """`number` with the largest prefix that leaves at least 1, to `digits` significant figures."""
    if number == 0.0 or not math.isfinite(number):
        return f"{number:g}", ""
    rounded = float(f"{number:.{digits - 1}e}")  # 999.96 GB is to read 1 TB, not 1000 GB
    best = min(prefixes.items(), key=lambda item: item[1])
    for prefix, factor in sorted(prefixes.items(), key=lambda item: item[1]):
        if abs(rounded) >= factor:
            best = (prefix, factor)
    return _significant(rounded / best[1], digits), best[0]


def _significant(number: float, digits: int) -> str:
    whole = len(str(int(abs(number))))
    return f"{number:,.{max(digits - whole, 0)}f}"


def format_number(number: float, digits: int = 3) -> str:
    """A bare number, short: 3.35e+12, 80, 0.25.

    >>> format_number(80.0)
    '80'
    """
    return f"{number:.{digits}g}"


def format_rate(per_second: float, digits: int = 3) -> str:
    """A few digits, and whole numbers with separators from a thousand on.

    >>> format_rate(12.345), format_rate(7523.4)
    ('12.3', '7,523')
    """
    return f"{per_second:,.0f}" if per_second >= 1000.0 else format_number(per_second, digits)


def format_bytes(size_bytes: float, digits: int = 3) -> str:
    """Decimal prefixes, as in datasheets.

    >>> format_bytes(80e9)
    '80.0 GB'
    """
    text, prefix = _scaled(size_bytes, _DECIMAL, digits)
    return f"{text} {prefix}B"


def format_bytes_per_s(rate_bytes_per_s: float, digits: int = 3) -> str:
    """
    >>> format_bytes_per_s(2.039e12)
    '2.04 TB/s'
    """
    return format_bytes(rate_bytes_per_s, digits) + "/s"


def format_flops(flops: float, digits: int = 3) -> str:
    """An amount of work.

    >>> format_flops(1.79e14)
    '179 TFLOP'
    """
    text, prefix = _scaled(flops, _DECIMAL, digits)
    return f"{text} {prefix}FLOP"


def format_flops_per_s(rate_flops_per_s: float, digits: int = 3) -> str:
    """
    >>> format_flops_per_s(312e12)
    '312 TFLOP/s'
    """
    return format_flops(rate_flops_per_s, digits) + "/s"


def format_hertz(frequency_hz: float, digits: int = 3) -> str:
    """
    >>> format_hertz(1.41e9)
    '1.41 GHz'
    """
    text, prefix = _scaled(frequency_hz, _DECIMAL, digits)
    return f"{text} {prefix}Hz"


def format_seconds(time_s: float, digits: int = 3) -> str:
    """
    >>> format_seconds(0.0853)
    '85.3 ms'
    >>> format_seconds(5.326)
    '5.33 s'
    >>> format_seconds(45_000_000.0)
    '521 days'
    >>> format_seconds(1e9), format_seconds(2000.0)
    ('11,574 days', '2,000 s')
    """
    for name, unit_s in (("days", 86_400.0), ("h", 3600.0)):
        if 2.0 * unit_s <= time_s < float("inf"):
            return f"{format_rate(time_s / unit_s, digits)} {name}"
    text, prefix = _scaled(time_s, {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0}, digits)
    return f"{text} {prefix}s"


def format_watts(power_w: float, digits: int = 3) -> str:
    """
    >>> format_watts(3200.0)
    '3.20 kW'
    """
    text, prefix = _scaled(power_w, _DECIMAL, digits)
    return f"{text} {prefix}W"


def format_watt_hours(energy_j: float, digits: int = 3) -> str:
    """An energy given in joules.

    >>> format_watt_hours(17e3), format_watt_hours(0.05)
    ('4.72 Wh', '13.9 uWh')
    """
    watt_hours = energy_j / 3600.0
    if watt_hours >= 0.01 or watt_hours == 0.0:
        return f"{format_number(watt_hours, digits)} Wh"
    text, prefix = _scaled(watt_hours, {"n": 1e-9, "u": 1e-6, "m": 1e-3}, digits)
    return f"{text} {prefix}Wh"


def format_count(count: float, digits: int = 3) -> str:
    """Parameters and tokens, with the field's letters.

    >>> format_count(174.6e9)
    '175 B'
    """
    text, prefix = _scaled(count, {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}, digits)
    return f"{text} {prefix}".rstrip()


def counted(number: float, noun: str, nouns: str | None = None) -> str:
    """A count with its noun, in the plural where it is not one; nouns: an irregular plural.

    >>> counted(1, "row"), counted(8192, "row"), counted(2, "batch", "batches")
    ('1 row', '8,192 rows', '2 batches')
    """
    return f"{number:,.10g} {noun if number == 1 else nouns or noun + 's'}"


def format_usd(amount_usd: float, digits: int = 3) -> str:
    """
    >>> format_usd(0.0405), format_usd(1.95e-06)
    ('$0.0405', '$0.00000195')
    """
    if amount_usd >= 1.0 or amount_usd == 0.0:
        return f"${amount_usd:,.2f}"
    text = f"{amount_usd:.{digits}g}"
    if "e" in text:  # no exponents in an amount of money
        after_point = digits - 1 - math.floor(math.log10(amount_usd))
        text = f"{amount_usd:.{after_point}f}"
    return f"${text}"
