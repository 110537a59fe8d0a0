"""rtsim predicts how long a Transformer takes to run on a GPU system, without profiling it.

    >>> import rtsim
    >>> result = rtsim.predict("gpt3-175b", "a100", tp=8, input_len=512, output_len=64)
    >>> result.num_gpus, result.memory.fits
    (8, True)

Names are imported on first use: `import rtsim` itself loads nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtsim.bulk import predict_many
    from rtsim.calibrate import calibrate
    from rtsim.calibration import Calibration
    from rtsim.catalog import load_gpu, load_model
    from rtsim.compare import Comparison, compare
    from rtsim.curves import Curve, read_curves, write_curves
    from rtsim.denoise import Denoised, denoise
    from rtsim.errors import (
        DataError,
        DoesNotFit,
        NothingSatisfies,
        NotSupported,
        OutputError,
        RtsimError,
        SpecError,
        UnknownName,
    )
    from rtsim.explain import Explanation, explain
    from rtsim.idealized_against import against_idealized
    from rtsim.latencies import read_latencies
    from rtsim.lengths import read_lengths
    from rtsim.measurements import read_table
    from rtsim.plan import plan
    from rtsim.planned import Plan, PlannedSystem
    from rtsim.predict import predict
    from rtsim.prediction import Prediction
    from rtsim.profiled import ProfiledModel, profile_fit
    from rtsim.report import prediction_to_json
    from rtsim.scores import read_model_map
    from rtsim.serving.serve import ServingPrediction, serve
    from rtsim.serving.steady import SteadyState, steady_state
    from rtsim.simulation import Simulation, simulate
    from rtsim.specs import GpuSpec, ModelSpec, ParallelismSpec, WorkloadSpec
    from rtsim.study import load_study
    from rtsim.sweep import SweepResult, sweep
    from rtsim.table_text import write_table
    from rtsim.tradeoff import Tradeoff, tradeoff
    from rtsim.validate import ValidationReport, validate

    __version__: str

_HOME = {
    "predict": "predict",
    "predict_many": "bulk",
    "sweep": "sweep",
    "SweepResult": "sweep",
    "plan": "plan",
    "Plan": "planned",
    "simulate": "simulation",
    "Simulation": "simulation",
    "explain": "explain",
    "Explanation": "explain",
    "PlannedSystem": "planned",
    "serve": "serving.serve",
    "ServingPrediction": "serving.serve",
    "steady_state": "serving.steady",
    "SteadyState": "serving.steady",
    "read_lengths": "lengths",
    "validate": "validate",
    "calibrate": "calibrate",
    "Calibration": "calibration",
    "compare": "compare",
    "Comparison": "compare",
    "load_study": "study",
    "profile_fit": "profiled",
    "ProfiledModel": "profiled",
    "read_latencies": "latencies",
    "denoise": "denoise",
    "Denoised": "denoise",
    "Curve": "curves",
    "read_curves": "curves",
    "write_curves": "curves",
    "against_idealized": "idealized_against",
    "tradeoff": "tradeoff",
    "Tradeoff": "tradeoff",
    "read_model_map": "scores",
    "ValidationReport": "validate",
    "Prediction": "prediction",
    "prediction_to_json": "report",
    "load_model": "catalog",
    "load_gpu": "catalog",
    "ModelSpec": "specs",
    "GpuSpec": "specs",
    "ParallelismSpec": "specs",
    "WorkloadSpec": "specs",
    "read_table": "measurements",
    "write_table": "table_text",
    "RtsimError": "errors",
    "SpecError": "errors",
    "UnknownName": "errors",
    "DataError": "errors",
    "OutputError": "errors",
    "DoesNotFit": "errors",
    "NotSupported": "errors",
    "NothingSatisfies": "errors",
}

__all__ = [
    "Calibration",
    "Comparison",
    "Curve",
    "DataError",
    "Denoised",
    "DoesNotFit",
    "Explanation",
    "GpuSpec",
    "ModelSpec",
    "NotSupported",
    "NothingSatisfies",
    "OutputError",
    "ParallelismSpec",
    "Plan",
    "PlannedSystem",
    "Prediction",
    "ProfiledModel",
    "RtsimError",
    "ServingPrediction",
    "Simulation",
    "SpecError",
    "SteadyState",
    "SweepResult",
    "Tradeoff",
    "UnknownName",
    "ValidationReport",
    "WorkloadSpec",
    "__version__",
    "against_idealized",
    "calibrate",
    "compare",
    "denoise",
    "explain",
    "load_gpu",
    "load_model",
    "load_study",
    "plan",
    "predict",
    "predict_many",
    "prediction_to_json",
    "profile_fit",
    "read_curves",
    "read_latencies",
    "read_lengths",
    "read_model_map",
    "read_table",
    "serve",
    "simulate",
    "steady_state",
    "sweep",
    "tradeoff",
    "validate",
    "write_curves",
    "write_table",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("rtsim")
    if name not in _HOME:
        raise AttributeError(f"module 'rtsim' has no attribute '{name}'")
    return getattr(import_module(f"rtsim.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Keeps `rtsim.predict` the function, although there is a module of that name.

    Importing the module rtsim.predict sets the attribute `predict` of the package to the module;
    for public functions the function is set in its place. `from rtsim.predict import ...` finds
    the module all the same.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
