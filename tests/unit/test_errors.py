"""Messages are one line with field, value, what is allowed and the nearest name."""

import doctest

import pytest

from rtsim import errors
from rtsim.errors import DataError, RtsimError, SpecError, UnknownName, nearest_names
from rtsim.specs import GpuSpec, ModelSpec


def test_doctests() -> None:
    result = doctest.testmod(errors)
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SpecError("tp", 0, "must be at least 1"), 2),
        (UnknownName("GPU", "a1000", ["a100"]), 2),
        (DataError("x.toml", "malformed"), 2),
        (errors.OutputError("/x", "no space"), 2),
        (errors.NotSupported("no"), 2),
        (errors.DoesNotFit("too big"), 1),
        (RtsimError("other"), 1),
    ],
)
def test_exit_status_and_one_tree(error: RtsimError, status: int) -> None:
    assert isinstance(error, RtsimError)
    assert error.exit_status == status
    assert "\n" not in str(error)


def test_spec_error_names_field_value_and_what_is_allowed() -> None:
    error = SpecError("tp", 5, "must divide 96", where="gpt3-175b")
    assert str(error) == "gpt3-175b: tp = 5: must divide 96"
    assert (error.field, error.value) == ("tp", 5)


def test_a_multi_line_or_long_value_stays_on_one_short_line() -> None:
    error = SpecError("name", "a\nb" * 500, "too long")
    assert "\n" not in str(error)
    assert len(str(error)) < 120


def test_unknown_name_offers_the_nearest() -> None:
    error = UnknownName("GPU", "a1O0-sxm4-80gb", ["h100-pcie-80gb", "a100-sxm4-80gb", "t4"])
    assert error.nearest[0] == "a100-sxm4-80gb"
    assert "a1O0-sxm4-80gb" in str(error)


def test_unknown_name_offers_what_an_alias_stands_for_once() -> None:
    stands_for = {"davinci": "gpt3-175b", "davinci-2": "gpt3-175b"}
    error = UnknownName("model", "davinc", ["gpt3-175b", "t5"], stands_for=stands_for)
    assert error.nearest == ("gpt3-175b",)


def test_unknown_name_without_a_near_one_says_how_many_there_are() -> None:
    text = str(UnknownName("model", "zzz", ["gpt3-175b", "opt-66b", "bloom-176b", "gpt2"]))
    assert text.endswith("4 are known, such as gpt3-175b, opt-66b, bloom-176b")


def test_unknown_name_says_all_known_ones_where_they_are_few() -> None:
    assert str(UnknownName("stack", "zzz", ["megatron-lm"])).endswith("; known: megatron-lm")


def test_nearest_names_of_nothing() -> None:
    assert nearest_names("", ["a100"]) == []
    assert nearest_names("a100", []) == []


def test_data_error_says_file_line_and_column() -> None:
    error = DataError("rows.csv", "not a number: 'x'", line=7, column="runtime_s")
    assert str(error) == "rows.csv, line 7, column runtime_s: not a number: 'x'"


GPU = {
    "name": "g",
    "sm_count": 108,
    "clock_hz": "1410 MHz",
    "memory_bytes": "80 GB",
    "hbm_bytes_per_s": "2039 GB/s",
    "peak_bf16_flops_per_s": "312 TFLOP/s",
}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"sm_counts": 5}, ["g.toml: sm_counts = 5: no such field", "nearest: sm_count"]),
        ({"memory_bytes": "80 TB/s"}, ["memory_bytes = '80 TB/s'", "unit of a rate"]),
        ({"link": {"byte_per_s": 1e9}}, ["link.byte_per_s = ", "nearest: bytes_per_s"]),
        ({"price": {"usd_per_hour": 1}}, ["price.source: missing, but required"]),
        ({"architecture": "hoper"}, ["architecture = 'hoper'", "'hopper'"]),
    ],
)
def test_pydantic_errors_become_one_line(change: dict[str, object], wanted: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        GpuSpec.from_mapping({**GPU, **change}, "g.toml")
    for text in wanted:
        assert text in str(caught.value)


def test_an_unknown_field_is_said_before_the_missing_one_it_stands_for() -> None:
    data = {key: value for key, value in GPU.items() if key != "memory_bytes"}
    with pytest.raises(SpecError) as caught:
        GpuSpec.from_mapping({**data, "memory_byte": "80 GB"}, "g.toml")
    assert caught.value.nearest[0] == "memory_bytes"


def test_nested_path_in_a_list() -> None:
    layer = {"attention": {"n_heads": 8, "head_dim": 0}, "mlp": {"ffn_size": 64}}
    with pytest.raises(SpecError) as caught:
        ModelSpec(name="m", hidden_size=64, vocab_size=9, max_positions=9, layers=[layer])
    assert caught.value.field == "layers[0].attention.head_dim"
    assert caught.value.value == 0
