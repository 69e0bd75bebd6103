"""A detector of people out of a YOLO file, for ``Monitor(detect=…)``: letterbox, run, boxes back in the frame.

It reads what ``ultralytics`` exports for detection and for pose, with and without its own end-to-end form. A candidate counts
where a person is the likeliest of its classes. Whatever else finds people is a function of yours that returns boxes.

Shapes: A candidates, N boxes.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..crop import CropRule, cut
from ..errors import CheckpointError, ConfigError, DataNotFoundError
from ..known_skeletons import KNOWN
from .people import MOST_OVERLAP, apart

log = logging.getLogger("alpose.monitor")

GREY = 114
"""What YOLO's letterbox is filled with."""
MOST_CANDIDATES = 300
"""That are compared with each other; the ones with the highest scores."""


class YoloDetector:
    """Finds people on RGB frames: boxes with scores (N, 5) as x0, y0, x1, y1, score, in pixels of the frame.

    ::

        find = YoloDetector("yolo11n-pose.onnx")
        with Monitor("driver.alpose", detect=find) as monitor:
            verdicts = monitor.people(frame)

    Args:
        path: a detection or pose net: one input (1, 3, H, W) in [0, 1], and ``output0`` as (1, 4 + 1 + …, A) or, end to end,
            (1, A, 6 or more).
        person: the number of the class that is a person, 0 in the nets that ``ultralytics`` trained.
        classes: how many the net has, where the file does not say (those of ``ultralytics`` do): otherwise one where the other
            columns are the points of a known skeleton, and all columns behind the box where they are not.
        least: the lowest score that is handed on.
        overlap: of two boxes that overlap more than this the one with the lower score is left out.
        bgr: frames are BGR, as OpenCV's.
        threads: of ONNX Runtime.

    Raises:
        ConfigError: a limit is not in [0, 1], or the net has no such class.
        CheckpointError: it is no such net.
    """

    def __init__(
        self, path: str | Path, *, person: int = 0, classes: int | None = None, least: float = 0.3, overlap: float = MOST_OVERLAP,
        bgr: bool = False, threads: int = 2,
    ) -> None:  # fmt: skip
        if not 0 <= least <= 1 or not 0 <= overlap <= 1 or threads < 1:
            raise ConfigError(f"least and overlap are 0 to 1 and threads at least 1, got {least}, {overlap}, {threads}")
        if not Path(path).is_file():
            raise DataNotFoundError(f"{path} does not exist: give the ONNX file of a YOLO net")
        from ..engines.onnx import ERRORS_ONLY, import_onnxruntime  # an import of alpose.runtime pays for no engine

        runtime = import_onnxruntime("finding people")
        options = runtime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = ERRORS_ONLY, threads
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common parent
            raise CheckpointError(f"{path} does not load in ONNX Runtime: {str(error)[:300]}") from error
        (given, *more), outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = given.shape
        if more or given.type != "tensor(float)" or len(shape) != 4 or shape[1] != 3:
            raise CheckpointError(f"{path} takes {given.type} {shape}, and a YOLO net takes float (1, 3, H, W)")
        names = class_names(self._session.get_modelmeta().custom_metadata_map)
        self._classes = classes or len(names) or None
        if person < 0 or (self._classes is not None and person >= self._classes):
            raise ConfigError(f"{path} has {self._classes or 'no'} classes, and none has the number {person}: "
                              f"{', '.join(f'{number} {name}' for number, name in list(names.items())[:9])}")  # fmt: skip
        if "person" in names.values() and names.get(person) != "person":
            log.warning(
                "%s calls class %d %r, which is taken for a person: state person=", path, person, names.get(person)
            )
        height, width = (length if isinstance(length, int) else 640 for length in shape[2:])
        self._rule = CropRule(width_px=width, height_px=height, kind="letterbox", fill=GREY)
        self._names = given.name, outputs[0].name
        self._least, self._overlap, self._bgr, self._person = least, overlap, bgr, person

    def __call__(self, frame: Any) -> npt.NDArray[np.float64]:
        """Boxes and scores (N, 5) of the people on a uint8 frame (H, W, 3), the surest first."""
        crop = self._rule.crop_of((0, 0, 1, 1), (frame.shape[1], frame.shape[0]))
        pixels_HW3 = cut(frame, crop)[..., :: -1 if self._bgr else 1]
        batch = np.ascontiguousarray(pixels_HW3.transpose(2, 0, 1)[None], dtype=np.float32) / np.float32(255)
        (found,) = self._session.run([self._names[1]], {self._names[0]: batch})
        boxes_N5 = people_of(found, self._least, self._overlap, self._person, self._classes)
        # YOLO counts from the corner of the input, and a crop from the centre of its first pixel.
        corners = boxes_N5[:, :4].reshape(-1, 2) - 0.5
        return np.hstack([crop.to_frame(corners).reshape(-1, 4).astype(np.float64), boxes_N5[:, 4:]])


def class_names(metadata: Mapping[str, str]) -> dict[int, str]:
    """The classes that a file of ``ultralytics`` names in its metadata; empty where it does not."""
    try:
        names = ast.literal_eval(metadata.get("names", "{}")[:100_000])
        return {int(number): str(name) for number, name in names.items()}
    except (ValueError, SyntaxError, AttributeError, TypeError, MemoryError, RecursionError):
        return {}  # somebody else's metadata


def guessed_classes(columns: int) -> int:
    """How many classes a net has of whose output only the columns are known: box, a score for each class, perhaps points."""
    for numbers in (3, 2):
        joints, rest = divmod(columns - 5, numbers)
        if rest == 0 and joints in {len(skeleton) for skeleton in KNOWN.values()}:
            return 1
    return columns - 4


def people_of(
    found: npt.NDArray[np.floating], least: float, overlap: float, person: int = 0, classes: int | None = None
) -> npt.NDArray[np.float64]:
    """Boxes and scores (N, 5) in pixels of the input, counted from its corner, from a YOLO net's output.

    Args:
        found: (1, C, A) with C = x, y, width, height, a score for each class, …, or end to end (1, A, C) with C = x0, y0, x1, y1,
            score, class, …
        least: the lowest score.
        overlap: the most that two people overlap.
        person: the class that counts: a candidate of which another class is likelier is none.
        classes: how many there are; None: :func:`guessed_classes`.

    Raises:
        CheckpointError: it has another form, or fewer columns than classes.
    """
    if found.ndim != 3 or found.shape[0] != 1 or min(found.shape[1:]) < 5:
        raise CheckpointError(f"a YOLO net gives (1, 5 or more, A) or (1, A, 6 or more), got {found.shape}")
    values = np.asarray(found[0], dtype=np.float64)
    if values.shape[0] > values.shape[1]:  # end to end: a row for each person
        kept_NC = values[(values[:, 4] >= least) & (values[:, 5] == person)]
        return kept_NC[np.argsort(-kept_NC[:, 4], kind="stable"), :5]
    count = classes or guessed_classes(len(values))
    if not person < count <= len(values) - 4:
        raise CheckpointError(f"a YOLO net whose class {person} of {count} is a person gives a score for each of them, got "
                              f"{found.shape}: state person= and classes=")  # fmt: skip
    score_A = values[4 + person]
    likeliest_A = score_A >= values[4 : 4 + count].max(axis=0)  # not with NaN
    rows_N = np.flatnonzero((score_A >= least) & likeliest_A)
    rows_N = rows_N[np.argsort(-score_A[rows_N], kind="stable")][:MOST_CANDIDATES]
    x_N, y_N, wide_N, high_N = values[:4, rows_N]
    boxes_N4 = np.stack([x_N - wide_N / 2, y_N - high_N / 2, x_N + wide_N / 2, y_N + high_N / 2], axis=1)
    chosen = apart(boxes_N4, overlap)
    return np.hstack([boxes_N4[chosen], score_A[rows_N[chosen], None]])
