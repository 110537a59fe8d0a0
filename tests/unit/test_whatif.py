"""Changes by path and value: what they mean, what they leave alone, and how they are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsim import whatif
from rtsim.catalog import load_gpu, load_model
from rtsim.console import to_text
from rtsim.errors import SpecError
from rtsim.named_system import system
from rtsim.predict import predict
from rtsim.prediction import OperatorTime, operator_changes
from rtsim.profile_choice import choose_profile
from rtsim.report import prediction_to_json, prediction_view
from rtsim.specs import GpuSpec, ModelSpec


def changed_gpu(settings: dict[str, object], name: str = "h100") -> GpuSpec:
    gpu = whatif.change(settings, gpu=load_gpu(name)).gpu
    assert gpu is not None
    return gpu


def changed_model(settings: dict[str, object], model: ModelSpec) -> ModelSpec:
    changed = whatif.change(settings, model=model).model
    assert changed is not None
    return changed


def two_groups() -> ModelSpec:
    """Layers with a window and without one, 20 and 12."""
    group = {"attention": {"n_heads": 8, "head_dim": 64}, "mlp": {"ffn_size": 2048}}
    return ModelSpec.from_mapping(
        {
            "name": "two-groups", "hidden_size": 512, "vocab_size": 1000, "max_positions": 512,
            "layers": [{"count": 20, **group}, {"count": 12, **group}],
        }
    )  # fmt: skip


# Values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "field", "wanted"),
    [
        ("gpu.hbm_bytes_per_s", "2x", "hbm_bytes_per_s", 6.7e12),
        ("gpu.hbm_bytes_per_s", " 0.5 X ", "hbm_bytes_per_s", 1.675e12),
        ("gpu.hbm_bytes_per_s", "4 TB/s", "hbm_bytes_per_s", 4e12),
        ("gpu.hbm_bytes_per_s", 4e12, "hbm_bytes_per_s", 4e12),
        ("gpu.hbm_bytes_per_s", "4e12", "hbm_bytes_per_s", 4e12),
        ("gpu.peak_bf16_flops_per_s", "1.5x", "peak_bf16_flops_per_s", 1.4841e15),
        ("gpu.sm_count", "1.5x", "sm_count", 198),
        ("gpu.sm_count", "120", "sm_count", 120),
        ("gpu.sm_count", 120, "sm_count", 120),
        ("gpu.memory_bytes", "1.5x", "memory_bytes", 128281214976),
        ("gpu.power_w", "0.5x", "power_w", 350.0),
        ("gpu.power_w", "none", "power_w", None),
        ("gpu.compute_capability", "10.0", "compute_capability", "10.0"),
        ("link", "none", "link", None),
    ],
)
def test_values(path: str, value: object, field: str, wanted: Any) -> None:
    assert getattr(changed_gpu({path: value}), field) == wanted


def test_links_by_short_and_by_full_path() -> None:
    for path in ("link.bytes_per_s", "gpu.link.bytes_per_s"):
        link = changed_gpu({path: "900GB/s"}).link
        assert link is not None
        assert (link.bytes_per_s, link.domain_size) == (9e11, 8)
    network = changed_gpu({"network.bytes_per_s": "800 Gb/s"}).network
    assert network is not None
    assert network.bytes_per_s == 1e11


def test_fields_of_layers() -> None:
    model = changed_model({"model.layers.attention.n_kv_heads": "8"}, load_model("gpt3-175b"))
    assert model.layers[0].attention.n_kv_heads == 8
    model = changed_model({"model.layers.mlp.ffn_size": "2x"}, two_groups())
    assert [group.mlp.ffn_size for group in model.layers] == [4096, 4096]
    model = changed_model({"model.layers.1.mlp.ffn_size": "2x"}, two_groups())
    assert [group.mlp.ffn_size for group in model.layers] == [2048, 4096]
    assert changed_model({"model.tied_embeddings": "true"}, two_groups()).tied_embeddings


@pytest.mark.parametrize(
    ("value", "counts"),
    [("64", [40, 24]), ("2x", [40, 24]), (40, [25, 15]), ("33", [21, 12]), ("2", [1, 1])],
)
def test_layers_keep_their_proportions(value: object, counts: list[int]) -> None:
    changed = whatif.change({"model.n_layers": value}, model=two_groups())
    assert changed.model is not None
    assert [group.count for group in changed.model.layers] == counts
    assert any("proportions" in note for note in changed.notes)


def test_one_group_takes_all_layers() -> None:
    changed = whatif.change({"model.n_layers": "120"}, model=load_model("gpt3-175b"))
    assert changed.model is not None
    assert changed.model.n_layers == 120
    assert changed.notes == ("what if: gpt3-175b with n_layers = 120 (before 96)",)


# What stays --------------------------------------------------------------------------------------


def test_stated_peaks_are_not_coupled() -> None:
    changed = whatif.change({"gpu.peak_bf16_flops_per_s": "2x"}, gpu=load_gpu("h100"))
    before, after = load_gpu("h100"), changed.gpu
    assert after is not None
    different = {f for f in GpuSpec.model_fields if getattr(before, f) != getattr(after, f)}
    assert different == {"peak_bf16_flops_per_s", "what_if"}
    assert any("only that of bf16" in note and "fp16, fp8" in note for note in changed.notes)


def test_inferred_figures_stay_and_are_named() -> None:
    """GB300 states no clock; it is inferred from the tensor rate, and the other 16-bit rate too."""
    stated = load_gpu("gb300").model_dump(exclude_unset=True)
    del stated["peak_fp16_flops_per_s"]
    bare = GpuSpec.from_mapping(stated)
    assert bare.peak_fp16_flops_per_s == bare.peak_bf16_flops_per_s
    changed = whatif.change({"gpu.peak_bf16_flops_per_s": "2x"}, gpu=bare)
    assert changed.gpu is not None
    assert changed.gpu.clock_hz == bare.clock_hz
    assert changed.gpu.tensor_clock_hz == bare.tensor_clock_hz
    assert changed.gpu.peak_fp16_flops_per_s == bare.peak_fp16_flops_per_s
    for field in ("clock_hz", "tensor_clock_hz", "peak_fp16_flops_per_s"):
        assert any(note.startswith(f"gpu.{field} stays at") for note in changed.notes)


def test_an_inferred_figure_can_be_set() -> None:
    gpu = load_gpu("gb300")
    assert "clock_hz" not in gpu.model_fields_set
    faster = changed_gpu({"gpu.clock_hz": "1.1x"}, "gb300")
    assert faster.clock_hz == pytest.approx(1.1 * gpu.clock_hz)
    assert faster.tensor_clock_hz == gpu.tensor_clock_hz
    assert faster.peak_bf16_flops_per_s == gpu.peak_bf16_flops_per_s


def test_an_absolute_sparse_peak_is_still_doubted() -> None:
    settings = {"gpu.peak_bf16_flops_per_s": "1979 TFLOP/s"}
    assert any("sparse" in n for n in whatif.change(settings, gpu=load_gpu("h100")).notes)
    settings = {"gpu.peak_bf16_flops_per_s": "2x"}
    assert not any("sparse" in n for n in whatif.change(settings, gpu=load_gpu("h100")).notes)


def test_a_price_that_is_set_is_not_the_listed_one() -> None:
    price = changed_gpu({"gpu.price.usd_per_hour": "2 USD/h"}).price
    assert price is not None
    assert price.usd_per_hour == 2.0
    assert price.source.startswith("set by the user; listed at $6.88: AWS")
    unlisted = changed_gpu({"gpu.price.usd_per_hour": "2"}, "h20").price
    assert unlisted is not None
    assert unlisted.source == "set by the user"


# Profile and interval ----------------------------------------------------------------------------


def log_width(prediction: Any) -> float:
    interval = prediction.interval_90.e2e_latency_s
    return float(interval.high / interval.low)


@pytest.mark.parametrize("gpu", ["h100", "a100", "h200", "rtx-4090", "gb200"])
@pytest.mark.parametrize("field", ["hbm_bytes_per_s", "peak_bf16_flops_per_s", "sm_count"])
def test_the_profile_stays(gpu: str, field: str) -> None:
    before = choose_profile(load_gpu(gpu))[0].name
    for factor in ("4x", "0.25x"):
        if field != "sm_count" or factor == "4x":
            assert choose_profile(changed_gpu({f"gpu.{field}": factor}, gpu))[0].name == before


def test_the_interval_widens_as_for_a_gpu_that_was_not_measured() -> None:
    result = predict("llama-3-8b", "h100", set={"gpu.hbm_bytes_per_s": "2x"})
    assert result.what_if is not None
    assert result.what_if.before is not None
    assert result.profile == result.what_if.before.profile
    assert log_width(result) > log_width(result.what_if.before)
    assert any("hbm_bytes_per_s = 6.70 TB/s (2x, before 3.35 TB/s)" in n for n in result.notes)
    assert any("the interval is wider" in n for n in result.notes)


@pytest.mark.parametrize(
    "settings", [{"gpu.memory_bytes": "2x"}, {"gpu.price.usd_per_hour": "3"}, {"gpu.sm_count": 132}]
)
def test_what_no_time_depends_on_leaves_the_interval(settings: dict[str, object]) -> None:
    result = predict("llama-3-8b", "h100", set=settings)
    assert result.what_if is not None
    assert result.what_if.before is not None
    assert result.interval_90 == result.what_if.before.interval_90


# Predictions -------------------------------------------------------------------------------------


def test_a_prediction_holds_the_system_before() -> None:
    plain = predict("gpt3-175b", "a100", tp=8, compiled=False)
    settings = {"gpu.hbm_bytes_per_s": "2x", "model.n_layers": 48}
    result = predict("gpt3-175b", "a100", tp=8, set=settings, compiled=False)
    assert result.what_if is not None
    assert result.what_if.before == plain
    assert result.what_if.settings == (("gpu.hbm_bytes_per_s", "2x"), ("model.n_layers", "48"))
    assert result.e2e_latency_s < 0.55 * plain.e2e_latency_s
    assert result.model.parameters < plain.model.parameters
    assert plain.what_if is None
    assert "what_if" not in prediction_to_json(plain)


def test_a_system_takes_changes() -> None:
    faster = system("llama-3-8b", "h100", set={"gpu.hbm_bytes_per_s": "2x"})
    assert faster.gpu.hbm_bytes_per_s == 6.7e12
    assert faster is system("llama-3-8b", "h100", set={"gpu.hbm_bytes_per_s": "2x"})
    assert faster is not system("llama-3-8b", "h100")


def test_changes_can_make_possible_what_was_not() -> None:
    result = predict("llama-3-8b", "l40s", tp=16, set={"gpu.gpus_per_node": 16,
                     "model.layers.attention.n_kv_heads": 16})  # fmt: skip
    assert result.what_if is not None
    assert result.num_gpus == 16
    result = predict("gpt3-175b", "a100", tp=5, set={"model.layers.attention.n_heads": 100,
                     "model.layers.attention.n_kv_heads": 100})  # fmt: skip
    assert result.what_if is not None
    assert result.what_if.before is None
    assert any("without the changes there is no prediction: tp = 5" in n for n in result.notes)
    assert prediction_to_json(result)["what_if"]["before"] is None
    assert "nothing to compare" not in to_text(prediction_view(result))


def test_json_and_text() -> None:
    result = predict("llama-3-8b", "h100", tp=8, set={"link.bytes_per_s": "2x"}, input_len=4000)
    body = json.loads(json.dumps(prediction_to_json(result), allow_nan=False))["what_if"]
    assert body["set"] == {"link.bytes_per_s": "2x"}
    assert {"ttft_s", "tpot_s", "e2e_latency_s", "output_throughput"} <= set(body["before"])
    assert body["changed"]
    keys = {"operator", "phase", "before_s", "after_s", "before_bound", "after_bound"}
    for row in body["changed"]:
        assert set(row) == keys
        assert row["after_s"] < row["before_s"]
        assert "all-" in row["operator"]
    text = to_text(prediction_view(result))
    assert "What if link.bytes_per_s = 2x" in text
    assert "Unchanged (within 1%)" in text
    assert max(map(len, text.splitlines())) <= 80


def row(operator: str, phase: Any, time_s: float, bound: Any = "memory") -> OperatorTime:
    return OperatorTime(operator, phase, 1, time_s, bound, 1.0, 1.0)


def test_operator_changes() -> None:
    before = [row("a", "decode", 1.0), row("a", "decode", 2.0, "compute"), row("b", "decode", 1.0),
              row("gone", "prefill", 0.5), row("a", "prefill", 1.0)]  # fmt: skip
    after = [row("a", "decode", 1.5), row("b", "decode", 1.009), row("new", "decode", 4.0),
             row("a", "prefill", 1.0)]  # fmt: skip
    changes = operator_changes(before, after)
    assert [(c.operator, c.phase) for c in changes] == [
        ("new", "decode"), ("a", "decode"), ("gone", "prefill"),
    ]  # fmt: skip
    new, a, gone = changes
    assert (a.before_s, a.before_bound, a.after_s, a.after_bound) == (3.0, "compute", 1.5, "memory")
    assert (new.before_s, new.before_bound) == (0.0, None)
    assert (gone.after_s, gone.after_bound) == (0.0, None)


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("gpu.hbm_byte_per_s", "2x", ("gpu.hbm_byte_per_s", "nearest: hbm_bytes_per_s")),
        ("gpu.bandwidth", "2x", ("gpu.bandwidth", "nearest: hbm_bytes_per_s")),
        ("hbm_bytes_per_s", "2x", ("must begin with gpu", "nearest: gpu.hbm_bytes_per_s")),
        ("modle.n_layers", "2x", ("must begin with gpu", "nearest: model.n_layers")),
        ("link.rate", "2x", ("link.rate", "bytes_per_s, domain_size")),
        ("model.layers.attention.heads", "2x", ("model.layers.attention.heads", "n_heads")),
        ("model.layers.9.count", "2", ("model.layers.9.count", "counted from 0")),
        ("gpu", "2x", ("such as gpu.hbm_bytes_per_s",)),
        ("link", "900 GB/s", ("such as link.bytes_per_s",)),
        ("gpu.hbm_bytes_per_s", "80GB", ("gpu.hbm_bytes_per_s", "'GB' is the unit of a size")),
        ("gpu.hbm_bytes_per_s", "fast", ("must be a number or text with a unit",)),
        ("gpu.hbm_bytes_per_s", "-1 TB/s", ("above zero",)),
        ("gpu.hbm_bytes_per_s", "-2x", ("above zero",)),
        ("gpu.hbm_bytes_per_s", "0x", ("above zero",)),
        ("gpu.hbm_bytes_per_s", "0", ("above zero",)),
        ("gpu.hbm_bytes_per_s", "nan", ("finite",)),
        ("gpu.hbm_bytes_per_s", "1e999x", ("finite",)),
        ("gpu.hbm_bytes_per_s", "1e9x", ("no plausible value",)),
        ("gpu.sm_count", "1.51x", ("gpu.sm_count", "199.32 is no whole number")),
        ("gpu.sm_count", "1.5", ("gpu.sm_count", "1.5")),
        ("gpu.sm_count", "many", ("whole number",)),
        ("gpu.last_level_cache_bytes", "2x", ("no value that a factor could apply to",)),
        ("model.n_layers", "1.01x", ("model.n_layers", "96.96")),
        ("model.n_layers", "0", ("model.n_layers", "whole number above zero")),
        ("model.n_layers", "-2", ("model.n_layers", "whole number above zero")),
        ("model.n_layers", "nan", ("model.n_layers", "whole number above zero")),
        ("model.n_layers", "inf", ("model.n_layers", "whole number")),
        ("model.n_layers", "9" * 5000, ("model.n_layers", "whole number")),
        ("model.n_layers", "many", ("model.n_layers", "whole number above zero")),
        ("model.n_layers", "1e9", ("model.layers[0].count", "10000")),
        ("model.dtype", "fp61", ("model.dtype", "fp16")),
        ("tp", "4", ("option of its own, --tp",)),
        ("parallelism.tp", "4", ("option of its own, --tp",)),
        ("workload.batch_size", "4", ("option of its own, --batch-size",)),
        ("workload.batch", "4", ("options of its own, such as --batch-size",)),
        ("parallelism.x", "4", ("--num-gpus",)),
    ],
)
def test_refused_in_one_line(path: str, value: object, words: tuple[str, ...]) -> None:
    with pytest.raises(SpecError) as caught:
        whatif.change({path: value}, load_model("gpt3-175b"), load_gpu("h100"))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    for word in words:
        assert word in message


TEXTS = st.one_of(
    st.text(max_size=8),
    st.from_regex(r"-?[0-9]{1,4}(\.[0-9])?(e-?[0-9]{1,3})?[xX]?", fullmatch=True),
    st.from_regex(r"[0-9]{1,4} ?[kMGT]?i?(B|B/s|FLOP/s|Hz|W|b/s)", fullmatch=True),
    st.sampled_from(["none", "true", "nan", "inf", "1_0", "fp8", "switch", "hopper"]),
)


NESTED = [
    *(f"model.layers.{f}" for f in ("count", "norm", "parallel", "mlp.bias", "mlp.ffn_size")),
    *(f"model.layers.1.attention.{f}" for f in ("n_heads", "n_kv_heads", "window", "rotary_dim")),
    *(f"gpu.{f}" for f in ("price.usd_per_hour", "price.date", "link.topology", "network.name")),
]


@settings(deadline=None, derandomize=True, max_examples=400)
@given(st.sampled_from([*whatif.known_paths(), *NESTED]), TEXTS)
def test_any_text_for_any_path_is_taken_or_refused_in_one_line(path: str, text: str) -> None:
    refusal = f"{path} taken"
    try:
        whatif.change({path: text}, two_groups(), load_gpu("h100"))
    except SpecError as error:
        refusal = str(error)
    assert path.split(".")[1] in refusal.replace("layers[0].count", "n_layers layers")
    assert "\n" not in refusal


def test_layers_of_every_group() -> None:
    with pytest.raises(SpecError, match="must be at least 2, a layer of each group"):
        whatif.change({"model.n_layers": 1}, model=two_groups())


def test_what_is_not_there_cannot_be_changed() -> None:
    with pytest.raises(SpecError, match="no model here"):
        whatif.change({"model.n_layers": 2}, gpu=load_gpu("h100"))
    with pytest.raises(SpecError, match="no value that a factor"):
        changed_gpu({"link.bytes_per_s": "2x"}, "l40s")
    with pytest.raises(SpecError, match=r"link\.domain_size: missing"):
        changed_gpu({"link.bytes_per_s": "900 GB/s"}, "l40s")
    gpu = changed_gpu({"link.bytes_per_s": "900 GB/s", "link.domain_size": "8"}, "l40s")
    assert gpu.link is not None


def test_twice_the_same() -> None:
    with pytest.raises(SpecError, match="twice"):
        whatif.parse_settings(["gpu.sm_count=2", "gpu.sm_count=3"])
    with pytest.raises(SpecError, match="twice"):
        changed_gpu({"link.bytes_per_s": "2x", "gpu.link.bytes_per_s": "3x"})


@pytest.mark.parametrize("text", ["", "=", "gpu.sm_count", "gpu.sm_count=", "=2x"])
def test_texts_that_are_no_settings(text: str) -> None:
    with pytest.raises(SpecError, match="must be PATH=VALUE"):
        whatif.parse_settings([text])


def test_a_number_of_layers_beyond_any_model_is_refused_at_once() -> None:
    """Not shared out one by one."""
    with pytest.raises(SpecError, match="at most 10000"):
        whatif.change({"model.n_layers": 1e30}, load_model("gpt2"))


def test_a_field_below_one_that_is_set_as_well_is_refused() -> None:
    with pytest.raises(SpecError, match="is set to 'fp8' as well"):
        whatif.change({"gpu.link": "fp8", "link.bytes_per_s": "2x"}, gpu=load_gpu("a100"))
