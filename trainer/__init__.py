"""The offline trainer: datasets, models, loss heads, selection methods, and the active-learning benchmark.

::

    from alpose import trainer

    machine = trainer.device_context("cuda")
    trainer.fit(trainer.FitConfig(data=("my-keypoints/",)), Path("models/first"), machine, data_root=None, cache=cache)
    model = trainer.load_checkpoint(Path("models/first"))

Nothing is imported before it is first asked for: torch takes seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import PoseModel
    from .checkpoint import load as load_checkpoint
    from .checkpoint import save as save_checkpoint
    from .cycles.benchmark import run_benchmark
    from .cycles.run import RunConfig
    from .data.catalog import Dataset, open_dataset, read_parts
    from .data.crops import CropConfig, prepare
    from .data.records import PoseData
    from .detect.evaluation import evaluate
    from .detect.experiment import DetectConfig, run_detect
    from .device import DeviceContext, device_context
    from .fitting import FitConfig, fit
    from .foreign.wrap import wrap
    from .measures.metrics import Failure, judge, profile_of
    from .passes import predict
    from .presets import Recipe, preset
    from .scoring import Scored, score

_PLACES = {
    ".cycles.benchmark": ("run_benchmark",),
    ".checkpoint": ("PoseModel", "load_checkpoint", "save_checkpoint"),
    ".data.catalog": ("Dataset", "open_dataset", "read_parts"),
    ".data.crops": ("CropConfig", "prepare"),
    ".data.records": ("PoseData",),
    ".detect.evaluation": ("evaluate",),
    ".detect.experiment": ("DetectConfig", "run_detect"),
    ".device": ("DeviceContext", "device_context"),
    ".fitting": ("FitConfig", "fit"),
    ".foreign.wrap": ("wrap",),
    ".measures.metrics": ("Failure", "judge", "profile_of"),
    ".passes": ("predict",),
    ".presets": ("Recipe", "preset"),
    ".cycles.run": ("RunConfig",),
    ".scoring": ("Scored", "score"),
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "CropConfig",
    "Dataset",
    "DetectConfig",
    "DeviceContext",
    "Failure",
    "FitConfig",
    "PoseData",
    "PoseModel",
    "Recipe",
    "RunConfig",
    "Scored",
    "device_context",
    "evaluate",
    "fit",
    "judge",
    "load_checkpoint",
    "open_dataset",
    "predict",
    "prepare",
    "preset",
    "profile_of",
    "read_parts",
    "run_benchmark",
    "run_detect",
    "save_checkpoint",
    "score",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name], __name__), name.removesuffix("_checkpoint"))
