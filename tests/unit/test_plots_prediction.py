"""Figures of a prediction: each kind is drawn, whole or not at all; other kinds are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import rtsim
from rtsim.cli.main import run
from rtsim.errors import SpecError, UnknownName
from rtsim.plots_prediction import KINDS, plot_prediction

COMMAND = ["predict", "--arch", "llama-2-7b", "--gpu", "a100"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_command_draws_each_kind(
    kind: str, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"figure.{ending}"
    assert run([*COMMAND, "--plot", str(path), "--plot-kind", kind]) == 0
    assert path.stat().st_size > 5000
    assert "Time to first token" in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        ["--output-len", "1"],
        ["--arch", "bert-large"],
        ["--arch", "mixtral-8x7b", "--tp", "8", "--batch-size", "100"],
        ["--arch", "gpt3-175b", "--tp", "8", "--set", "gpu.hbm_bytes_per_s=2x"],
        ["--arch", "t5-11b"],
    ],
    ids=" ".join,
)
def test_unusual_predictions_are_drawn(kind: str, options: list[str], tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    assert run([*COMMAND, *options, "--plot", str(path), "--plot-kind", kind]) == 0
    assert "<svg" in path.read_text()


def test_figures_name_their_axes_and_operators(tmp_path: Path) -> None:
    import matplotlib as mpl

    prediction = rtsim.predict("llama-2-7b", "a100", batch_size=4)
    wanted = {
        "breakdown": ("MLP up projection", "time on a GPU in the request", "bound by", "prefill"),
        "roofline": ("FLOP per byte of HBM", "TFLOP/s", "MLP up projection", "ridge at"),
        "batch": ("batch (sequences)", "time (s)", "output tokens per second", "does not fit"),
    }
    request = {"arch": "llama-2-7b", "gpu": "a100", "batch_size": 4}
    with mpl.rc_context({"svg.fonttype": "none"}):
        for kind, words in wanted.items():
            path = tmp_path / f"{kind}.svg"
            plot_prediction(prediction, str(path), kind, request=request)
            text = path.read_text()
            for word in words:
                assert word in text, (kind, word)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--plot", "a.txt"], "must end in"),
        (["--plot", "a.png", "--plot-kind", "rooflin"], "nearest: roofline"),
        (["--plot", "no/folder/a.png"], "no folder"),
        (["--plot-kind", "batch"], "--plot FILE"),
    ],
)
def test_bad_options(refused, options: list[str], words: str) -> None:
    assert words in refused(*COMMAND, *options)


def test_bad_calls(tmp_path: Path) -> None:
    prediction = rtsim.predict("llama-2-7b", "a100")
    with pytest.raises(UnknownName, match="kind of plot"):
        plot_prediction(prediction, str(tmp_path / "a.png"), "pie")
    with pytest.raises(SpecError, match="request"):
        plot_prediction(prediction, str(tmp_path / "a.png"), "batch")
