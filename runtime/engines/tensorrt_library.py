"""TensorRT as this machine has it: finding it and the GPU that it would use, and hearing what it says.

Its package on PyPI can be installed and still hold no library, and a call that fails returns nothing: the reason stands
in its log alone. Both become errors here.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections import deque
from dataclasses import dataclass
from typing import Any

from ..bundle import Bundle
from ..bundle.manifest import MODEL
from ..errors import AlposeError, MissingExtraError
from .cuda import Cuda, CudaError
from .tensorrt_sidecar import EngineKey

log = logging.getLogger("alpose")


class TensorRTError(AlposeError, RuntimeError):
    """TensorRT cannot be used, or it failed; the message holds what it said."""


@dataclass(frozen=True, slots=True)
class Machine:
    """TensorRT and the GPU of this process. Make it with :meth:`here`."""

    trt: Any
    cuda: Cuda

    @classmethod
    def here(cls) -> Machine:
        """What this process can use.

        Raises:
            MissingExtraError: tensorrt or cuda-python is not installed.
            TensorRTError: tensorrt is installed but does not load.
            CudaError: there is no GPU that can be used.
        """
        return cls(load(), Cuda())

    def key(self, bundle: Bundle) -> EngineKey:
        """The key of a bundle's engine on this machine."""
        gpu = self.cuda.gpu()
        return EngineKey(
            tensorrt=str(self.trt.__version__),
            gpu=gpu.name,
            compute_capability=gpu.compute_capability,
            precision=bundle.manifest.precision,
            model_sha256=bundle.manifest.files[MODEL],
        )


# --- What is there


def load() -> Any:
    """The module ``tensorrt``, or an error that says in one sentence why there is none."""
    try:
        trt = importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        if error.name == "tensorrt" and _installed() is None:
            raise MissingExtraError("tensorrt", "A TensorRT engine", "tensorrt") from None
        raise _broken(error) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise _broken(error) from error
    if not hasattr(trt, "Runtime") or not hasattr(trt, "__version__"):
        raise _broken("it has no Runtime")
    return trt


def unavailable() -> str | None:
    """Why no TensorRT engine can run here, in one sentence; None where one can. Nothing is built or loaded."""
    try:
        Machine.here()
    except (MissingExtraError, TensorRTError, CudaError) as error:
        return str(error)
    return None


def _installed() -> str | None:
    """The version of the package, whether or not anything can be imported from it."""
    from importlib import metadata  # a tenth of what importing alpose.runtime would take

    try:
        return metadata.version("tensorrt")
    except metadata.PackageNotFoundError:
        return None


def _broken(why: object) -> TensorRTError:
    version = _installed()
    return TensorRTError(
        f"tensorrt{f' {version}' if version else ''} is installed but not whole ({why}): its package on PyPI holds no "
        "libraries and fetches them from NVIDIA while it is installed, so install it again where that can be reached "
        "(pip install --force-reinstall 'alpose[tensorrt]'), or on a Jetson use the TensorRT of JetPack"
    )


# --- What TensorRT says


class Messages:
    """The warnings and errors of TensorRT, which says why something failed nowhere else."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=8)

    def add(self, text: str, error: bool) -> None:
        """Called by TensorRT, from any thread."""
        log.debug("TensorRT: %s", text)
        if error:
            self._errors.append(" ".join(text.split()))

    def clear(self) -> None:
        """Forget what was said so far."""
        self._errors.clear()

    def explain(self, what: str) -> TensorRTError:
        """An error with what was said since :meth:`clear`."""
        return TensorRTError(f"{what}: {' | '.join(self._errors) or 'TensorRT gave no reason'}")


@functools.cache  # the library keeps the first logger that it is given, and warns about a second one
def logger(trt: Any) -> tuple[Any, Messages]:
    """The process's logger for TensorRT, and what it heard."""
    messages = Messages()
    serious = {trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR}
    kept = {*serious, trt.ILogger.Severity.WARNING}

    class Log(trt.ILogger):  # type: ignore[misc]
        """Hands on what is worth a line."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind wants its own constructor, not super()

        def log(self, severity: Any, msg: str) -> None:
            """Called by TensorRT."""
            if severity in kept:
                messages.add(msg, severity in serious)

    return Log(), messages


def create(make: Any, what: str, messages: Messages) -> Any:
    """What ``make`` returns; a library that has no GPU or no memory gives nothing or a TypeError instead."""
    messages.clear()
    try:
        made = make()
    except (TypeError, RuntimeError) as error:
        raise messages.explain(f"{what} failed ({error})") from error
    if made is None:
        raise messages.explain(f"{what} failed")
    return made
