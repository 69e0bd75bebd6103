"""Do engines start and answer rightly? Each is made and asked; a list of what was compiled in proves nothing."""

from __future__ import annotations

import base64
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..bundle import Bundle, check_files
from ..bundle.golden import UNITS, GoldenReport, run_golden
from ..engines.catalog import verify_engine
from ..engines.onnx import OnnxEngine
from ..engines.tensorrt import TensorRTEngine
from ..engines.tensorrt_plans import rebuild, unavailable
from ..errors import AlposeError, DataNotFoundError, MissingExtraError, WrongAnswerError
from ..types import Engine
from .environment import Environment
from .report import Finding, failed, ok, warning

NVIDIA = ("cuda", "tensorrt")
TIMED = 20

TINY = (
    b"c-oawOHaZ;5N5UownHjq2@w*E+9N0R=m{|~kwg!A^Fp@mlx*mObW0-thJWeR*6@(Z#ZBfi-)l1;=l5SG4zUqtGA1n`bj?Sp^O1!tPy4U|h7Sm#"
    b"I9p~EC_krQ7NuId_(s9Xrx%jRsEwxlBt3>P8yg#F77M;0S_UfC{aR`9R9bXHsiIXzvt^cg(o>Pj*Z=gnD}5k7QrQR9NlgzS77gvE8EKb42bAPR"
    b"F!sx}MX^UgppyA7<hBf9i<_gA)-L5_#w8Yf1dTulQdkRGFH@D|+O5Aw$|nKy(SS3jIRQO&YL&NxXzCc-6{|pU>OckhxZbyRjy=vq2MqzQ$T;7Q"
    b";a%b3E24`X4#M8CjAEEK!0l;78|?zN_ON$>mC{8Et%6ejp?EHyD)g8$#KVRE1WZh<IrcXoJBMN"
)
"""A graph with a bundle's inputs and outputs whose every answer is a mean of pixels, opset 13, zlib in base85: without a
bundle, a provider must at least compute this."""

Make = Callable[[Bundle, str], Engine]


def check_bundle(folder: Path, public_key: Path | None = None) -> tuple[Bundle | None, Finding]:
    """Open a bundle with all its checks."""
    try:
        problems = [f"{check.name}: {check.problem}" for check in check_files(folder, public_key) if check.problem]
        bundle = None if problems else Bundle.open(folder, public_key)
    except AlposeError as error:
        return None, failed("bundle", str(error), "", "")
    if bundle is None:
        return None, failed("bundle", "\n".join([f"{folder} is refused", *problems]),
                            "no monitor starts with it: copy or export it again")  # fmt: skip
    facts = f"{bundle.manifest.name}, {bundle.manifest.precision}, {len(bundle.skeleton)} joints, sha256 {bundle.sha256[:12]}"
    if bundle.calibration is None:
        return bundle, warning("bundle", facts, "exported without calibration data: its failure probabilities rank "
                               "frames and mean nothing else; there are no thresholds to catch a share of failures",
                               "alpose-export CHECKPOINT --calibration DATA -o NAME.alpose")  # fmt: skip
    return bundle, ok("bundle", facts + (", signed" if bundle.signed_by else ""))


def check_engines(bundle: Bundle | None, here: Environment, make: Make | None = None) -> Iterator[Finding]:
    """Start every provider of the installed ONNX Runtime, and TensorRT's own engines; let each answer golden frames.

    Args:
        bundle: without one, only whether a provider starts is looked at.
        here: what is installed, and whether there is a GPU that has to work.
        make: an engine for a provider; for tests.
    """
    for provider in here.providers:
        yield _onnx(provider, bundle, here, make or OnnxEngine)
    if bundle is not None and ("tensorrt" in here.packages or any(bundle.engines.glob("*"))):
        yield from _native(bundle, here)


def _onnx(provider: str, bundle: Bundle | None, here: Environment, make: Make) -> Finding:
    name = f"engine {provider}"
    try:
        if bundle is None:
            _try_tiny(provider)
            return ok(name, "starts and computes; give a BUNDLE to have golden frames asked")
        engine = make(bundle, provider)
        report = run_golden(engine, bundle.golden)
        return _judged(name, report, _seconds(engine, bundle))
    except Exception as error:  # whatever a library raises is what the doctor is there to tell
        why = (str(error).splitlines() or [type(error).__name__])[0]
        if provider in NVIDIA and not here.gpu:
            return ok(name, "compiled in, and there is no GPU")
        if provider == "cpu":
            return failed(name, why, "no bundle runs on this machine's processor",
                          "pip install --force-reinstall onnxruntime")  # fmt: skip
        if provider in NVIDIA:
            return failed(name, why, "this machine's GPU is not used through ONNX Runtime: see the libraries above")
        return warning(name, why, "this provider cannot be used")


def _try_tiny(provider: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.onnx"
        path.write_bytes(zlib.decompress(base64.b85decode(TINY)))
        answer = OnnxEngine(path, provider)(np.full((2, 8, 8, 3), 7, dtype=np.uint8))
    if not all((values == 7).all() for values in answer.named().values()):
        raise WrongAnswerError(f"{provider} computes wrongly: the mean of sevens is {answer.predicted_loss_N}")


def _native(bundle: Bundle, here: Environment) -> Iterator[Finding]:
    reason = unavailable()
    if reason is not None:
        tell = failed if here.gpu else warning
        yield tell("engine tensorrt-native", reason, "engines of TensorRT cannot run here")
        return
    try:
        with TensorRTEngine(bundle) as engine:
            reports = verify_engine(engine, bundle.golden)
        for report in reports:
            yield _judged(f"engine {report.engine}", report, None)
    except (DataNotFoundError, MissingExtraError) as error:
        yield ok("engine tensorrt-native", str(error).splitlines()[0], "", rebuild(bundle))
    except AlposeError as error:
        yield failed("engine tensorrt-native", str(error).splitlines()[0], "it is refused", rebuild(bundle))


def _judged(name: str, report: GoldenReport, seconds: float | None) -> Finding:
    if not report.passed:
        return failed(name, str(report), "this engine answers wrongly on this machine, and every monitor refuses it. "
                      "Another version of the library or driver may be right; until then use another engine")  # fmt: skip
    worst = ", ".join(
        f"{check.output} {check.deviation:.2g} of {check.tolerance:.2g} {UNITS[check.output]}".rstrip()
        for check in report.checks
    )
    speed = f"; {1e3 * seconds:.1f} ms a frame" if seconds is not None else ""
    return ok(name, f"golden frames answered rightly{speed}\nworst deviations: {worst}")


def _seconds(engine: Engine, bundle: Bundle) -> float:
    """Median time of one crop."""
    crop_1SS3 = bundle.golden.frames_GSS3[:1]
    taken = []
    for _ in range(TIMED):
        before = time.perf_counter()
        engine(crop_1SS3)
        taken.append(time.perf_counter() - before)
    return float(np.median(taken))
