"""The frame of a prediction's figures: size, title, and the file, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rtsim.output import replacing
from rtsim.prediction import Prediction


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches, for a file alone."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str) -> None:
    """Write a figure in the format of its ending. Raises OutputError."""
    with replacing(path) as out:
        figure.savefig(out, format=Path(path).suffix[1:].lower(), dpi=130)


def title_of(p: Prediction, *, batch: bool = True) -> str:
    """What was predicted, in two lines."""
    w = p.workload
    degrees = [
        f"{name} {n}"
        for name in ("tp", "pp", "ep", "dp")
        if (n := getattr(p.parallelism, name)) > 1
    ]
    sizes = f"batch {w.batch_size}, " if batch else ""
    formats = w.dtype if w.quantization is None else f"{w.dtype}, {w.quantization}"
    split = f" ({', '.join(degrees)})" if degrees else ""
    return (
        f"{p.model.name} on {p.num_gpus} x {p.gpu.name}{split}\n"
        f"{sizes}prompt {w.input_len:,}, output {w.output_len:,}, {formats}, {p.stack}"
    )
