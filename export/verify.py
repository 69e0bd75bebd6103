"""``alpose-export verify``: every file of a bundle, and its golden frames on every engine that this machine has."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from alpose.runtime.bundle import Bundle, FileCheck, check_files
from alpose.runtime.bundle.golden import GoldenReport
from alpose.runtime.engines.catalog import verify_engine
from alpose.runtime.engines.onnx import OnnxEngine, providers
from alpose.runtime.engines.tensorrt import TensorRTEngine
from alpose.runtime.engines.tensorrt_plans import unavailable
from alpose.runtime.errors import AlposeError, DataNotFoundError


@dataclass(frozen=True, slots=True)
class EngineCheck:
    """One engine of this machine."""

    engine: str
    report: GoldenReport | None
    """None where it could not be asked."""
    reason: str
    """Why it was not asked, or what it raised."""
    failed: bool


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """All that was checked."""

    bundle: str
    files: tuple[FileCheck, ...]
    engines: tuple[EngineCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every file is right, and every engine that was asked answered rightly; one at least was asked."""
        asked = any(check.report is not None for check in self.engines)
        return asked and not any(check.problem for check in self.files) and not any(c.failed for c in self.engines)

    def to_json(self) -> str:
        """As JSON, for scripts."""
        engines = [
            {**asdict(check), "report": check.report.to_json() if check.report else None} for check in self.engines
        ]
        value = {"bundle": self.bundle, "passed": self.passed, "files": [asdict(check) for check in self.files],
                 "engines": engines}  # fmt: skip
        return json.dumps(value, indent=1)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.files) if self.files else 0
        lines = [f"{self.bundle}"]
        lines += [
            f"  {check.name:<{width}}  {check.verdict}" + (f": {check.problem}" if check.problem else "")
            for check in self.files
        ]
        for engine in self.engines:
            if engine.report is not None:
                lines += ["", str(engine.report)]
            else:
                lines += ["", f"{engine.engine}: {'FAILED' if engine.failed else 'not checked'}: {engine.reason}"]
        return "\n".join([*lines, "", f"{self.bundle}: {'passed' if self.passed else 'FAILED'}"])


def verify(folder: Path, public_key: Path | None = None) -> VerifyReport:
    """Check a bundle; nothing is raised for what is wrong with it."""
    if not folder.is_dir():
        raise DataNotFoundError(f"{folder} is not a folder: a bundle is a folder NAME.alpose")
    files = check_files(folder, public_key)
    if any(check.problem for check in files):
        return VerifyReport(str(folder), files, ())
    bundle = Bundle.open(folder, public_key)
    return VerifyReport(str(folder), files, (*_onnx_checks(bundle), *_tensorrt_checks(bundle)))


def _onnx_checks(bundle: Bundle) -> list[EngineCheck]:
    found = providers()
    if not found:
        return [EngineCheck("onnxruntime", None, "it is not installed: pip install 'alpose[cpu]'", False)]
    checks = []
    for provider in found:
        name = f"onnxruntime {provider}"
        try:
            reports = verify_engine(OnnxEngine(bundle, provider), bundle.golden)
            checks += [EngineCheck(name, report, "", not report.passed) for report in reports]
        except AlposeError as error:
            # A provider that is compiled in but cannot start here (no GPU) is no fault of the bundle; the CPU's is.
            checks.append(EngineCheck(name, None, str(error), provider == "cpu"))
    return checks


def _tensorrt_checks(bundle: Bundle) -> list[EngineCheck]:
    reason = unavailable()
    if reason is not None:
        return [EngineCheck("tensorrt", None, reason, False)]
    try:
        with TensorRTEngine(bundle) as engine:
            reports = verify_engine(engine, bundle.golden)
        return [EngineCheck(report.engine, report, "", not report.passed) for report in reports]
    except DataNotFoundError as error:
        return [EngineCheck("tensorrt", None, str(error), False)]
    except AlposeError as error:
        return [EngineCheck("tensorrt", None, str(error), True)]
