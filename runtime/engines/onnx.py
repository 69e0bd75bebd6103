"""ONNX Runtime as an engine, and the one function that imports it.

ONNX Runtime goes on with the CPU when a provider does not start, and says so in its log alone. Here that is an error
unless it was allowed, and :attr:`OnnxEngine.provider` says what runs.

Shapes: N batch, H W height and width of a crop.
"""

from __future__ import annotations

import difflib
import importlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle
from ..bundle.manifest import check_against_engine
from ..crop import Crop, CropRule
from ..errors import CheckpointError, ConfigError, DataNotFoundError, MissingExtraError
from ..frames import DeviceFrame, Region
from ..types import CONFIDENCE, OUTPUT_AXES, PEOPLE, Outputs, joined, output_names
from .device import ANY_BATCH, batches, check_crops
from .onnx_device import CPU, CUDA, TENSORRT, OnnxDevice

INPUT = "frames"

SHORT = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
"""Providers that have a short name; every other goes by ONNX Runtime's own."""
LONG = {provider: name for name, provider in SHORT.items()}

REMOTE = "AzureExecutionProvider"
"""In every build, and sends frames to a service: it is not offered."""

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""ONNX Runtime's option that names the folder of weights which lie beside a graph."""

ERRORS_ONLY = 3
"""The level of ONNX Runtime's log: what its warnings say about providers is checked here."""

TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""The variable that keeps ONNX Runtime 1.32 and later from sending usage data, read when its library is loaded."""


PLUGIN = "plugin:"
DEVICE_TYPES = ("NPU", "GPU", "CPU")
_plugins: dict[str, tuple[str, ...]] = {}
"""Libraries of providers that this process has registered, and the names of the providers that each brought."""
_plugins_lock = threading.Lock()


def import_onnxruntime(feature: str = "running a bundle") -> Any:
    """The module ``onnxruntime``, with its telemetry switched off before its library is loaded.

    Every part of alpose that needs the module gets it here: ONNX Runtime 1.32 on Linux otherwise writes a device id below
    ``~/.cache`` and sends events to Microsoft. Where the app has imported it before, its events are switched off now.
    """
    os.environ[TELEMETRY] = "1"  # read by its library in C, which this sets too
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", feature, "cpu") from error
    if hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()
    return onnxruntime


class OnnxEngine:
    """A graph in an ONNX Runtime session.

    Args:
        source: a :class:`Bundle`, the path of its folder, or the path of a bare ``model.onnx``. A folder is opened with
            all its checks.
        provider: ``cpu``, ``cuda``, ``tensorrt``, a name as ONNX Runtime knows it, or ``plugin:`` and the library of a
            provider that is not part of ONNX Runtime; see :func:`plugin_device`.
        threads: within an operator; None leaves it to ONNX Runtime, which takes all cores.
        allow_fallback: go on with the CPU where the provider does not start.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ConfigError: the provider is unknown, not in this build, or did not start.
        CheckpointError: the file is not a graph of alpose, or a damaged one.
    """

    def __init__(
        self,
        source: Bundle | str | Path,
        provider: str = "cpu",
        threads: int | None = None,
        allow_fallback: bool = False,
    ) -> None:
        if threads is not None and threads < 1:
            raise ConfigError(f"threads must be at least 1, got {threads}")
        bundle, where, content, weights = _content(source)
        runtime = import_onnxruntime()
        options = _options(runtime, threads)
        if weights is not None:
            options.add_session_config_entry(WEIGHTS_FOLDER, str(weights.resolve()))
        chain: list[str] | None = None
        if provider.lower().startswith(PLUGIN):
            device = plugin_device(runtime, provider[len(PLUGIN) :])
            wanted = str(device.ep_name)
            options.add_provider_for_devices([device], {})
        else:
            wanted = _provider(runtime, provider, allow_fallback)
            chain = [wanted] if wanted == CPU else [wanted, CPU]
        try:
            self._session = runtime.InferenceSession(content, options, providers=chain)
        except Exception as error:  # its errors have no common parent
            raise CheckpointError(
                f"{where} does not load in ONNX Runtime {runtime.__version__} with {wanted}: {str(error)[:300]}. "
                "Copy or export it again if it is damaged; update onnxruntime if it is newer than this one"
            ) from error
        # Otherwise a provider that fails during a call is replaced without a word.
        self._session.disable_fallback()
        running = self._session.get_providers()[0]
        if running != wanted and not allow_fallback:
            raise ConfigError(
                f"{wanted} was chosen and did not start; ONNX Runtime took {running}. Look for the libraries that it "
                "misses in its log above, or allow the fallback"
            )
        self.provider: str = running
        """What runs, in ONNX Runtime's own words."""
        self.name = f"onnxruntime {LONG.get(running, running)}"
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        """The graph's ``metadata_props``."""
        self.crop, self._outputs = self._check(where, bundle)
        """How frames are cut for it."""
        rows = self._session.get_inputs()[0].shape[0]
        self.fixed_batch: int | None = rows if isinstance(rows, int) and rows > 0 else None
        """Frames of every run where the graph states them; None where it takes any number."""
        self._runtime, self._threads = runtime, threads
        self._device: OnnxDevice | None = None

    def __call__(self, frames_NHW3: npt.NDArray[np.uint8]) -> Outputs:
        """Answer N ≥ 1 crops in one call of the session, or in as many as a graph with a fixed batch takes."""
        check_crops(self.name, self.crop, frames_NHW3)
        return joined([self._run(frames_NHW3[list(rows)] if len(rows) != len(frames_NHW3) else frames_NHW3)
                       for rows in batches(len(frames_NHW3), self.fixed_batch)], len(frames_NHW3))  # fmt: skip

    @property
    def max_batch(self) -> int:
        """The most frames of one run."""
        return self.fixed_batch or ANY_BATCH

    def answer_device(self, frames: Sequence[DeviceFrame], crops: Sequence[Crop]) -> Outputs:
        """Cut and answer frames in the provider's own memory; see :class:`~.device.DeviceEngine`."""
        return self._device_part().answer(frames, crops)

    def to_host(self, frame: DeviceFrame, region: Region | None = None) -> npt.NDArray[np.uint8]:
        """A copy as RGB of a frame in the provider's own memory; see :class:`~.device.DeviceEngine`."""
        return self._device_part().to_host(frame, region)

    @property
    def copies_to_host(self) -> int:
        """Frames that :meth:`to_host` has copied so far."""
        return self._device.copies_to_host if self._device else 0

    def _run(self, frames_NHW3: npt.NDArray[np.uint8]) -> Outputs:
        return Outputs(*self._session.run(self._outputs, {INPUT: np.ascontiguousarray(frames_NHW3)}))

    def _device_part(self) -> OnnxDevice:
        """Made for the first frame that needs it: most engines never see one."""
        if self._device is None:
            options = _options(self._runtime, self._threads)
            self._device = OnnxDevice(self._runtime, self._session, options, INPUT, self.crop, self._outputs, self.name,
                                      self.fixed_batch)  # fmt: skip
        return self._device

    def _check(self, where: str, bundle: Bundle | None) -> tuple[CropRule, tuple[str, ...]]:
        """The crops and the names of the outputs; a graph with other inputs, outputs or dynamic axes is refused."""
        inputs = {value.name: (value.type, value.shape) for value in self._session.get_inputs()}
        outputs = {value.name: (value.type, value.shape) for value in self._session.get_outputs()}
        if bundle is not None:
            check_against_engine(
                bundle.manifest,
                {name: shape for name, (_, shape) in inputs.items()},
                {name: shape for name, (_, shape) in outputs.items()},
            )
        names = output_names(CONFIDENCE in outputs, PEOPLE in outputs)
        ours = set(inputs) == {INPUT} and set(outputs) == set(names)
        if ours:
            kind, shape = inputs[INPUT]
            ours = kind == "tensor(uint8)" and len(shape) == 4 and shape[3] == 3
            ours = ours and all(isinstance(length, int) for length in shape[1:])
            ours = ours and all(_fits(name, *outputs[name]) for name in names)
        if not ours:
            raise CheckpointError(
                f"{where} is not a graph of alpose: it takes {inputs} and gives {outputs}; expected uint8 {INPUT} "
                f"(N, H, W, 3) and float32 {', '.join(names)}. Export it with alpose-export"
            )
        height, width = inputs[INPUT][1][1:3]
        return bundle.crop if bundle is not None else CropRule(width_px=width, height_px=height), names


def _fits(name: str, kind: str, shape: list[Any]) -> bool:
    """Whether an output is float32 with the axes that its name wants, all but the first of a known length."""
    whole = all(isinstance(length, int) for length in shape[1:])
    return kind == "tensor(float)" and len(shape) == len(OUTPUT_AXES[name]) and whole


def providers() -> tuple[str, ...]:
    """The providers of the installed ONNX Runtime, by short name where they have one; empty where there is none."""
    try:
        runtime = import_onnxruntime()
    except MissingExtraError:
        return ()
    return tuple(LONG.get(name, name) for name in runtime.get_available_providers() if name != REMOTE)


def plugin_device(runtime: Any, text: str) -> Any:
    """The device of a provider from a library of its own, which is loaded and registered on its first use.

    Args:
        runtime: the module ``onnxruntime``, 1.23 or newer.
        text: the path of the library, or the name of a package that has ``get_library_path()``, such as
            ``onnxruntime-ep-openvino``. ``,GPU``, ``,NPU`` or ``,CPU`` behind it chooses the kind of device; without, it is the
            first one that the provider lists.

    Raises:
        ConfigError: there is no such library, it does not load, or it has no such device.
    """
    if not hasattr(runtime, "register_execution_provider_library"):
        raise ConfigError(f"a provider's own library needs onnxruntime 1.23 or newer, this is {runtime.__version__}")
    place, _, kind = text.rpartition(",") if text.upper().endswith(tuple(f",{each}" for each in DEVICE_TYPES)) else (
        text, "", "")  # fmt: skip
    library = _plugin_library(place)
    with _plugins_lock:  # a library can be registered once
        if library not in _plugins:
            before = {device.ep_name for device in runtime.get_ep_devices()}
            try:
                runtime.register_execution_provider_library(f"alpose {library}", library)
            except Exception as error:  # its errors have no common parent
                raise ConfigError(f"{library} is not a provider that ONNX Runtime {runtime.__version__} loads: "
                                  f"{str(error)[:300]}") from error  # fmt: skip
            brought = [device.ep_name for device in runtime.get_ep_devices() if device.ep_name not in before]
            _plugins[library] = tuple(dict.fromkeys(brought))
    devices = [device for device in runtime.get_ep_devices() if device.ep_name in _plugins[library]]
    chosen = [device for device in devices if not kind or _device_type(device) == kind.upper()]
    if not chosen:
        there = ", ".join(dict.fromkeys(_device_type(device) for device in devices)) or "none"
        wanted = f"no {kind.upper()}" if kind else "no device"
        raise ConfigError(f"the provider of {library} finds {wanted} that it can use here; it has: {there}")
    return chosen[0]


def _device_type(device: Any) -> str:
    return str(device.device.type).rpartition(".")[2]


def _plugin_library(place: str) -> str:
    """The path of a provider's library, from itself or from the package that has it."""
    if Path(place).is_file():
        return str(Path(place).resolve())
    module = place.replace("-", "_")
    if not module.isidentifier():
        raise DataNotFoundError(f"{place} does not exist: give a provider's library, or a package such as "
                                "onnxruntime-ep-openvino")  # fmt: skip
    try:
        return str(Path(importlib.import_module(module).get_library_path()).resolve())
    except ModuleNotFoundError:
        raise DataNotFoundError(f"there is neither a file nor a package {place}: pip install {place}") from None
    except (AttributeError, FileNotFoundError) as error:
        raise ConfigError(f"the package {place} has no library of a provider: {error}") from error


def _options(runtime: Any, threads: int | None) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    # Its threads otherwise wait in a loop for the next frame: at 30 frames/s that is a whole core for nothing.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _content(source: Bundle | str | Path) -> tuple[Bundle | None, str, bytes, Path | None]:
    """The graph's bytes, a name for messages, and the folder of weights that may lie beside it."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.is_file():
            return None, str(path), path.read_bytes(), path.parent
        if not path.exists():
            raise DataNotFoundError(f"{path} does not exist: give a bundle's folder or a model.onnx")
        source = Bundle.open(path)
    return source, str(source.model_path), source.model_bytes(), source.folder if source.weights_path else None


def _provider(runtime: Any, name: str, allow_fallback: bool) -> str:
    """The provider in ONNX Runtime's words, if this build has it."""
    known = runtime.get_all_providers()
    wanted = SHORT.get(name.lower(), name)
    if wanted not in known:
        near = difflib.get_close_matches(name, [*SHORT, *known], 3, 0.4) or [*SHORT]
        raise ConfigError(
            f"ONNX Runtime {runtime.__version__} does not know the provider {name!r}: did you mean {', '.join(near)}?"
        )
    available = runtime.get_available_providers()
    if wanted in available:
        return wanted
    if allow_fallback:
        return CPU
    raise ConfigError(
        f"this onnxruntime {runtime.__version__} was built without {wanted}; it has {', '.join(available)}. For NVIDIA "
        "GPUs install alpose[gpu] in place of alpose[cpu], or allow the fallback"
    )
