"""Golden frames: reference crops with their expected outputs, which detect an engine whose output is wrong.

Some pairs of engine and driver compute wrong numbers and raise no error. So an engine is not trusted because it loaded:
it answers these frames first, each alone, all of them in batches, and one frame in every row of a batch.

Shapes: G golden frames, N rows of an answer, B batch, H W height and width of a crop, J joints, D dimensions of the embedding.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, WrongAnswerError
from ..types import CONFIDENCE, OUTPUT_NAMES, Engine, Outputs, form_problems

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]

MIN_SCORE = 0.3
"""A joint is judged when its expected score reaches this. Below it the heatmap has several peaks of almost the same
height, and which of them is highest may change with the rounding of a correct engine."""

MAX_BYTES = 1 << 30
"""Unpacked size of a golden file; more is a damaged or hostile archive."""

ARRAYS = {
    "frames_GHW3": np.uint8,
    "keypoints_GJ2": np.float32,
    "scores_GJ": np.float32,
    "predicted_loss_G": np.float32,
    "failure_probability_G": np.float32,
    "embedding_GD": np.float32,
}
"""The arrays of ``golden.npz`` and their types; the tolerances, ``tol_*``, are float64 scalars beside them."""

CONFIDENCE_ARRAY = "confidence_GJ"
"""One more, float32, since schema 2."""

SQUARE_FRAMES = "frames_GSS3"
"""What the frames are called in schema 1."""

UNITS = {"keypoints": "px"}
"""Of a deviation; none of the other outputs has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """The largest deviation of each output that still passes. They are absolute, and judged per frame."""

    keypoints_px: float
    """Distance of a joint in pixels of the crop."""
    score: float
    predicted_loss: float
    probability: float
    embedding: float
    """Euclidean distance of two unit vectors: 0 to 2."""
    confidence: float | None = None
    """None where the graph does not give it."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None:
                continue
            if not math.isfinite(value) or value < 0:
                raise DataError(f"tolerance {item.name} must be finite and not negative, got {value}")
        # Beyond these no answer whatsoever could fail.
        if self.probability >= 1 or self.embedding >= 2 or (self.confidence or 0) >= 1:
            raise DataError(
                f"tolerances of probability and confidence (below 1) and embedding (below 2) judge nothing: {self}"
            )

    def by_output(self) -> dict[str, float]:
        """Tolerance by the name of the output."""
        values = (getattr(self, item.name) for item in fields(self))
        named = dict(zip((*OUTPUT_NAMES, CONFIDENCE), values, strict=True))
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Frames, expected answers and tolerances; finite, matching in shape, and read-only."""

    frames_GHW3: npt.NDArray[np.uint8]
    """RGB crops."""
    expected: Outputs
    tolerances: Tolerances

    def __post_init__(self) -> None:
        _require_form(self.frames_GHW3, self.expected)
        if (self.expected.confidence_NJ is None) != (self.tolerances.confidence is None):
            raise DataError("confidence has expected answers and a tolerance, or neither: one of them is missing")
        # Copies: the arrays that were given stay the caller's to change.
        object.__setattr__(self, "frames_GHW3", self.frames_GHW3.copy())
        object.__setattr__(self, "expected", Outputs(*(array.copy() for array in self.expected.named().values())))
        for array in self._arrays():
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.frames_GHW3)

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of the frames."""
        height, width = self.frames_GHW3.shape[1:3]
        return (height, width)

    @property
    def joints(self) -> int:
        """Joints of the expected answers."""
        return int(self.expected.scores_NJ.shape[1])

    @property
    def dimensions(self) -> int:
        """Length of the expected embeddings."""
        return int(self.expected.embedding_ND.shape[1])

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The content of ``golden.npz`` by name."""
        confident = self.expected.confidence_NJ is not None
        names = [*ARRAYS, CONFIDENCE_ARRAY] if confident else [SQUARE_FRAMES, *list(ARRAYS)[1:]]
        arrays = dict(zip(names, self._arrays(), strict=True))
        tolerances = asdict(self.tolerances).items()
        return arrays | {f"tol_{name}": np.array(value, np.float64) for name, value in tolerances if value is not None}

    def _arrays(self) -> list[npt.NDArray[Any]]:
        return [self.frames_GHW3, *self.expected.named().values()]

    @classmethod
    def from_bytes(cls, content: bytes, where: str = "golden.npz") -> Golden:
        """Read the bytes of a golden file; ``where`` is its name in messages.

        Raises :class:`DataError` for anything that is not a whole set of finite, matching arrays.
        """
        import zipfile  # only bundles need it, and not every import of the runtime
        import zlib

        # What a damaged archive raises; an array that claims an absurd size ends in the last two.
        damage = (DataError, zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, OSError, RuntimeError,
                  OverflowError, MemoryError)  # fmt: skip
        try:
            arrays = _unpack(content)
            named = [item.name for item in fields(Tolerances) if f"tol_{item.name}" in arrays]
            tolerances = Tolerances(**{name: _scalar(arrays, f"tol_{name}") for name in named})
            types = {name: dtype for name, dtype in {**ARRAYS, CONFIDENCE_ARRAY: np.float32}.items() if name in arrays}
            frames_GHW3, *answers = (_typed(arrays, name, dtype) for name, dtype in types.items())
            return cls(frames_GHW3, Outputs(*answers), tolerances)
        except damage as error:
            raise DataError(f"{where} holds no usable golden frames: {error}") from error


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """The largest deviation of one output."""

    output: str
    deviation: float
    """Infinite where ``problem`` says why there is none."""
    tolerance: float
    frame: int | None
    """Index of the golden frame; None where the answer as a whole has the wrong form."""
    where: str
    """In which call and row."""
    problem: str = ""
    """Wrong shape, wrong type or not finite; empty otherwise."""

    @property
    def passed(self) -> bool:
        """Whether the deviation is within the tolerance."""
        return not self.problem and self.deviation <= self.tolerance


@dataclass(frozen=True, slots=True)
class GoldenReport:
    """How one engine's answers compare with the expected ones; ``str(report)`` is a small table."""

    engine: str
    checks: tuple[OutputCheck, ...]
    """One per output, in the graph's order."""
    notes: tuple[str, ...] = ()
    """What was compared, and what was left out."""

    @property
    def passed(self) -> bool:
        """Whether every output passed."""
        return all(check.passed for check in self.checks)

    def require(self) -> GoldenReport:
        """This report, or :class:`WrongAnswerError` with its table when anything failed."""
        if not self.passed:
            raise WrongAnswerError(
                f"{self}\nThis engine is refused. Use another one, or build it again on this device."
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for a sidecar or a log; a deviation that is not finite becomes None."""
        checks = [
            asdict(check) | {"passed": check.passed, "deviation": _finite_or_none(check.deviation)}
            for check in self.checks
        ]
        return {"engine": self.engine, "passed": self.passed, "checks": checks, "notes": list(self.notes)}

    def __str__(self) -> str:
        head = ("output", "worst deviation", "tolerance", "frame", "where", "verdict")
        rows = [head, *(_cells(check) for check in self.checks)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        title = f"golden frames on {self.engine}: {'passed' if self.passed else 'FAILED'}"
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(line.rstrip() for line in (title, *lines, *self.notes))


def compare(golden: Golden, outputs: Outputs, *, engine: str = "engine", where: str = "given") -> GoldenReport:
    """Compare the answer to all golden frames in their order: row n is the answer to frame n."""
    checks = _judge(golden, golden.expected, outputs, np.arange(len(golden)), where)
    return GoldenReport(engine, tuple(checks), _unjudged(golden, [(outputs, np.arange(len(golden)))]))


def run_golden(engine: Engine, golden: Golden, *, batch: int = 8) -> GoldenReport:
    """Run the golden frames on an engine and compare its answers with the expected ones.

    Every frame is answered alone, then all of them in batches (rows that influence each other show), then one frame in
    every row of a batch: each row must match the expected answer, and its neighbours.

    Args:
        engine: what it raises is passed on.
        golden: the bundle's own frames.
        batch: rows of a batch; 1 for an engine that was built for single frames, which the report then says.
    """
    if batch < 1:
        raise DataError(f"golden frames: batch must be at least 1, got {batch}")
    # Answers are judged after the last call: an engine that gives the same buffer out twice is then caught.
    alone = [(engine(golden.frames_GHW3[[frame]]), np.array([frame])) for frame in range(len(golden))]
    batches, repeated = [], []
    steady = _steadiest(golden)
    if batch > 1:
        rows = np.arange(-(-len(golden) // batch) * batch) % len(golden)
        batches = [(engine(golden.frames_GHW3[frame_B]), frame_B) for frame_B in rows.reshape(-1, batch)]
        frame_B = np.full(batch, steady)
        repeated = [(engine(golden.frames_GHW3[frame_B]), frame_B)]

    found: list[OutputCheck] = []
    for outputs, frame_N in alone:
        found += _judge(golden, golden.expected, outputs, frame_N, "alone")
    for outputs, frame_N in batches:
        found += _judge(golden, golden.expected, outputs, frame_N, f"batch of {batch}")
    for outputs, frame_N in repeated:
        checks = _judge(golden, golden.expected, outputs, frame_N, f"same frame in {batch} rows")
        found += checks
        if not any(check.problem for check in checks):
            first = [outputs.named()[name][:1] for name in golden.expected.named()]
            spread = Outputs(*(np.repeat(value, len(golden), axis=0) for value in first))
            found += _judge(golden, spread, outputs, frame_N, f"same frame in {batch} rows, against row 0")

    compared = f"{len(golden)} frames, each alone"
    compared += (
        f" and in batches of {batch}; frame {steady} in all {batch} rows" if batch > 1 else "; no batch was tried"
    )
    worst = tuple(_worst(check for check in found if check.output == name) for name in golden.expected.named())
    return GoldenReport(engine.name, worst, (compared, *_unjudged(golden, alone)))


def _judge(golden: Golden, expected: Outputs, outputs: Outputs, frame_N: Indices, where: str) -> list[OutputCheck]:
    """One check per output for one answer; row n answers frame ``frame_N[n]``, whose row ``expected`` holds."""
    tolerance = golden.tolerances.by_output()
    form = form_problems(outputs, len(frame_N), golden.joints, golden.dimensions, expected.named())
    judged_NJ = golden.expected.scores_NJ[frame_N] >= MIN_SCORE
    checks = []
    for name, wanted in expected.named().items():
        if name in form:
            checks.append(OutputCheck(name, math.inf, tolerance[name], None, where, form[name]))
            continue
        value = outputs.named()[name]
        bad_N: Bools = np.asarray(~np.isfinite(value.reshape(len(frame_N), -1)).all(axis=1))
        deviation_N = _deviation(name, wanted[frame_N], value, judged_NJ)
        deviation_N[bad_N] = math.inf
        row = int(deviation_N.argmax())
        problem = (
            f"not finite: {np.count_nonzero(~np.isfinite(value[row]))} of {value[row].size} numbers"
            if bad_N[row]
            else ""
        )
        place = where if len(frame_N) == 1 else f"{where}, row {row}"
        checks.append(OutputCheck(name, float(deviation_N[row]), tolerance[name], int(frame_N[row]), place, problem))
    return checks


def _deviation(name: str, expected: Floats, value: Floats, judged_NJ: Bools) -> Doubles:
    """The deviation of every row in the unit of its tolerance, (N,)."""
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found beside this
        difference = value.astype(np.float64) - expected
        if name == "keypoints":
            return np.where(judged_NJ, np.hypot(difference[..., 0], difference[..., 1]), 0.0).max(axis=1)
        if name == "embedding":
            return np.sqrt(np.square(difference).sum(axis=1))
        return np.abs(difference).reshape(len(value), -1).max(axis=1)


def _unjudged(golden: Golden, answers: list[tuple[Outputs, Indices]]) -> tuple[str, ...]:
    """What the joints did that are too uncertain to be judged."""
    low_GJ: Bools = np.asarray(golden.expected.scores_NJ < MIN_SCORE)
    count = int(low_GJ.sum())
    if not count:
        return ()
    worst, worst_frame = 0.0, -1
    for outputs, frame_N in answers:
        if "keypoints" in form_problems(outputs, len(frame_N), golden.joints, golden.dimensions):
            continue
        wanted_NJ2 = golden.expected.keypoints_NJ2[frame_N]
        deviation_N = _deviation("keypoints", wanted_NJ2, outputs.keypoints_NJ2, low_GJ[frame_N])
        row = int(deviation_N.argmax())
        if deviation_N[row] > worst:
            worst, worst_frame = float(deviation_N[row]), int(frame_N[row])
    share = f"all {count}" if count == low_GJ.size else f"{count} of {low_GJ.size}"
    moved = f"the farthest moved {worst:.3g} px (frame {worst_frame})" if worst else "none of them moved"
    return (f"{share} joints have an expected score below {MIN_SCORE} and are not judged; {moved}",)


def _worst(checks: Iterable[OutputCheck]) -> OutputCheck:
    # An answer of the wrong form says more than one number in it that is not finite.
    return max(checks, key=lambda check: (not check.passed, bool(check.problem), check.deviation, check.frame is None))


def _steadiest(golden: Golden) -> int:
    """The frame with the most joints that are judged, then the highest scores: what is wrong there is wrong."""
    scores_GJ = golden.expected.scores_NJ
    return max(range(len(golden)), key=lambda g: (np.count_nonzero(scores_GJ[g] >= MIN_SCORE), scores_GJ[g].mean()))


def _cells(check: OutputCheck) -> tuple[str, ...]:
    deviation = "-" if check.problem else f"{check.deviation:.3g} {UNITS.get(check.output, '')}".strip()
    tolerance = f"{check.tolerance:.3g} {UNITS.get(check.output, '')}".strip()
    frame = "all" if check.frame is None else str(check.frame)
    verdict = f"FAILED: {check.problem}" if check.problem else "ok" if check.passed else "FAILED"
    return (check.output, deviation, tolerance, frame, check.where, verdict)


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _require_form(frames_GHW3: npt.NDArray[np.uint8], expected: Outputs) -> None:
    """Frames and answers must match in shape and be finite; every message names the array."""
    shape = frames_GHW3.shape
    if frames_GHW3.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise DataError(f"the frames must be uint8 (G, H, W, 3), got {frames_GHW3.dtype} {shape}")
    if expected.scores_NJ.ndim != 2 or expected.embedding_ND.ndim != 2:
        raise DataError(
            f"scores_GJ and embedding_GD must have two axes, got shapes {expected.scores_NJ.shape} and "
            f"{expected.embedding_ND.shape}"
        )
    joints, dimensions = expected.scores_NJ.shape[1], expected.embedding_ND.shape[1]
    if not joints or not dimensions:
        raise DataError(f"there must be joints and an embedding, got {joints} joints and {dimensions} dimensions")
    for name, problem in form_problems(expected, shape[0], joints, dimensions, expected.named()).items():
        raise DataError(f"the expected {name} {problem}")
    for name, value in expected.named().items():
        if not np.isfinite(value).all():
            frame = int(np.argwhere(~np.isfinite(value))[0][0])
            raise DataError(f"the expected {name} of frame {frame} holds numbers that are not finite")
    for name in ("failure_probability", CONFIDENCE):
        share = expected.named().get(name)
        if share is not None and (share.min() < 0 or share.max() > 1):
            raise DataError(f"the expected {name} must lie in [0, 1], got {share.min()} to {share.max()}")
    length_G = np.linalg.norm(expected.embedding_ND.astype(np.float64), axis=1)
    if np.abs(length_G - 1).max() > 1e-3:
        frame = int(np.abs(length_G - 1).argmax())
        raise DataError(f"the expected embedding of frame {frame} has length {length_G[frame]:.4g} instead of 1")


def _unpack(content: bytes) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an npz without pickle: exactly the wanted ones, and no more bytes than are sensible."""
    import zipfile

    wanted = [*ARRAYS, CONFIDENCE_ARRAY, *(f"tol_{item.name}" for item in fields(Tolerances))]
    schema_1 = [SQUARE_FRAMES, *list(ARRAYS)[1:], *(name for name in wanted if name.startswith("tol_"))][:-1]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = sorted(entry.filename.removesuffix(".npy") for entry in archive.infolist())
        wanted = schema_1 if CONFIDENCE_ARRAY not in names else wanted
        if names != sorted(wanted):
            missing, extra = sorted(set(wanted) - set(names)), sorted(set(names) - set(wanted))
            raise DataError(f"its arrays are not the ones of a golden file: missing {missing}, unknown {extra}")
        size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise DataError(f"it unpacks to {size} bytes, more than {MAX_BYTES}")
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        arrays = {name if name != SQUARE_FRAMES else "frames_GHW3": stored[name] for name in wanted}
    for name, value in arrays.items():
        if not isinstance(value, np.ndarray):  # numpy returns the bytes of an entry that is not an array
            raise DataError(f"{name} is not an array")
    return arrays


def _typed(arrays: Mapping[str, npt.NDArray[Any]], name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    value = arrays[name]
    if value.dtype != dtype:
        raise DataError(f"{name} must be {np.dtype(dtype)}, got {value.dtype}")
    return np.ascontiguousarray(value)


def _scalar(arrays: Mapping[str, npt.NDArray[Any]], name: str) -> float:
    value = arrays[name]
    if value.shape != () or value.dtype.kind != "f":
        raise DataError(f"{name} must be one floating-point number, got {value.dtype} {value.shape}")
    return float(value)
