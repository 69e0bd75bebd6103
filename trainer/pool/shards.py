"""One shard of a pool: some pictures, read, cut, and answered; and the file that keeps what a model said of them.

A shard is one ``.npz`` without pickles. Nobody's numbers depend on who else is in it, so that pools may be cut up in any way.

Shapes: P pictures, N people on them, J joints, D embedding, H W picture.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from alpose.runtime.crop import Crop, CropRule, body_turn, cut
from alpose.runtime.errors import DataError
from alpose.runtime.skeleton import body_axis

from ..data.images import ImageError
from ..data.records import Floats
from .boxes import Boxes, Detect, checked, whole
from .pictures import Files, decode, digest
from .scorers import BLOCK, Answers, Scorer

SCHEMA = 1
AHEAD = 2
"""Pictures that each reading thread is ahead of the net."""
READERS = 2
"""Threads that read and decode."""
NOBODY = "nobody on it"
NOT_FINITE = "the model's answer is not finite"

_PER_PERSON = (
    "picture_N",
    "box_N4",
    "keypoints_NJ2",
    "scores_NJ",
    "confidence_NJ",
    "loss_N",
    "failure_N",
    "embedding_ND",
)
_BY = "by."


@dataclass(frozen=True, slots=True)
class Shard:
    """Pictures that are scored together; all that another machine needs to be told."""

    files: Files
    names: tuple[str, ...]
    states: tuple[str, ...]
    boxes: tuple[Boxes, ...] | Detect | None
    """Of each picture; or a function that finds them; None is the whole picture."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One picture of a shard."""

    name: str
    state: str
    sha256: str | None
    """Of its content; None where it could not be read."""
    problem: str | None
    """Why nobody on it can be chosen; where there are people all the same, why some others cannot."""
    width: int
    height: int
    people: int


@dataclass(frozen=True, slots=True, eq=False)
class ShardScores:
    """What a model said of the people of a shard, in the order of its pictures."""

    pictures: tuple[Seen, ...]
    picture_N: npt.NDArray[np.int32]
    """Row of ``pictures``."""
    box_N4: Boxes
    keypoints_NJ2: Floats
    """Pixels of the picture as it is shown."""
    scores_NJ: Floats
    confidence_NJ: Floats
    loss_N: Floats
    failure_N: Floats
    embedding_ND: npt.NDArray[np.float16]
    """Rows of unit length."""
    by: Mapping[str, Floats]

    def to_bytes(self) -> bytes:
        """The file; :meth:`from_bytes` reads it."""
        header = {
            "kind": "alpose pool scores",
            "schema": SCHEMA,
            "pictures": [list(asdict(one).values()) for one in self.pictures],
        }
        text = json.dumps(header, ensure_ascii=True).encode()
        arrays = {name: getattr(self, name) for name in _PER_PERSON} | {
            _BY + name: value for name, value in self.by.items()
        }
        out = io.BytesIO()
        np.savez(out, header=np.frombuffer(text, np.uint8), **arrays)
        return out.getvalue()


class ShardFile:
    """A stored shard, of which each array is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")  # noqa: SIM115  # until __exit__
        try:
            self._arrays = np.load(self._file, allow_pickle=False)
            header = json.loads(self._arrays["header"].tobytes())
            if header["kind"] != "alpose pool scores" or header["schema"] != SCHEMA:
                raise ValueError("another kind of file, or of another version")
            self.pictures = tuple(Seen(*row) for row in header["pictures"])
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            self._file.close()
            raise DataError(f"{path} is no shard of scores, or a damaged one: {error}") from error

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """An array by its name; the scores of a method as ``by.NAME``."""
        return self._arrays[name]

    def names(self) -> list[str]:
        """Of the methods whose scores are here."""
        return [name.removeprefix(_BY) for name in self._arrays.files if name.startswith(_BY)]

    def whole(self) -> ShardScores:
        """Everything at once."""
        return ShardScores(
            pictures=self.pictures, **{name: self[name] for name in _PER_PERSON},
            by={name: self[_BY + name] for name in self.names()})  # fmt: skip


def score_shard(shard: Shard, scorer: Scorer, *, block: int = 1) -> Generator[str, None, ShardScores]:
    """Read, cut and answer the pictures of a shard; one that is broken is noted and passed over.

    Yields the name of each picture that is done, and returns the scores.

    Args:
        shard: what.
        scorer: a model.
        block: crops that the model is given at a time; the last ones are filled up, so that its input has one shape.
    """
    pictures: list[Seen] = []
    parts: list[tuple[int, Boxes, Answers]] = []
    for row, found in enumerate(_read_ahead(shard)):
        name, state = shard.names[row], shard.states[row]
        if isinstance(found, str):
            pictures.append(Seen(name, state, None, found, 0, 0, 0))
        else:
            sha256, image_HW3, boxes = found
            height, width = image_HW3.shape[:2]
            boxes_N4 = checked(boxes(image_HW3)) if callable(boxes) else boxes
            boxes_N4, problem = _usable(boxes_N4, scorer.about.rule, (width, height))
            if len(boxes_N4):
                answers = answer(scorer, image_HW3, boxes_N4, block)
                finite_N = _finite(answers)
                if not finite_N.all():
                    problem = f"{NOT_FINITE} for {int((~finite_N).sum())} of {len(finite_N)} people"
                boxes_N4, answers = boxes_N4[finite_N], _rows(answers, finite_N)
                parts.append((row, boxes_N4, answers))
            pictures.append(Seen(name, state, sha256, problem, width, height, len(boxes_N4)))
        yield name
    return _joined(pictures, parts, scorer)


def answer(scorer: Scorer, image_HW3: npt.NDArray[np.uint8], boxes_N4: Boxes, block: int = 1) -> Answers:
    """What a model says of the people on one picture; keypoints in pixels of the picture.

    A net whose crops turn with the body takes two passes: the first, upright one finds the direction.
    """
    rule, size = scorer.about.rule, (image_HW3.shape[1], image_HW3.shape[0])
    crops = [rule.crop_of(box_4, size) for box_4 in boxes_N4]
    answers = _in_blocks(scorer, image_HW3, crops, block)
    if rule.kind == "turned" and (axis := body_axis(scorer.about.skeleton)) is not None:
        hips, shoulders = list(axis[0]), list(axis[1])
        turns = [body_turn(points_J2[hips], points_J2[shoulders]) for points_J2 in answers.keypoints_NJ2]
        crops = [rule.crop_of(box_4, size, turn) for box_4, turn in zip(boxes_N4, turns, strict=True)]
        answers = _in_blocks(scorer, image_HW3, crops, block)
    keypoints_NJ2 = np.stack([crop.to_frame(points) for crop, points in zip(crops, answers.keypoints_NJ2, strict=True)])
    return Answers(keypoints_NJ2, answers.scores_NJ, answers.confidence_NJ, answers.loss_N, answers.failure_N,
                   answers.embedding_ND, answers.by)  # fmt: skip


def block_for(device: str) -> int:
    """Crops that a model is given at a time on a kind of device."""
    return BLOCK if device == "cuda" else 1


def person_id(sha256: str, box_4: npt.NDArray[np.float32]) -> str:
    """32 hex digits: the same person in the same picture has them in every batch, whatever the picture is called."""
    return hashlib.sha256(f"{sha256} {box_4.astype('<f4').tobytes().hex()}".encode()).hexdigest()[:32]


def _in_blocks(scorer: Scorer, image_HW3: npt.NDArray[np.uint8], crops: Sequence[Crop], block: int) -> Answers:
    pixels_NHW3 = np.stack([cut(image_HW3, crop) for crop in crops])
    parts = []
    for start in range(0, len(pixels_NHW3), block):
        part = pixels_NHW3[start : start + block]
        missing = block - len(part)
        filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
        parts.append(_rows(scorer(filled), slice(0, len(part))))
    return parts[0] if len(parts) == 1 else _together(parts)


def _rows(answers: Answers, rows: Any) -> Answers:
    by = {name: value[rows] for name, value in answers.by.items()}
    return Answers(**{name: getattr(answers, name)[rows] for name in _ARRAYS}, by=by)


_ARRAYS = ("keypoints_NJ2", "scores_NJ", "confidence_NJ", "loss_N", "failure_N", "embedding_ND")


def _together(parts: Sequence[Answers]) -> Answers:
    by = {name: np.concatenate([part.by[name] for part in parts]) for name in parts[0].by}
    return Answers(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}, by=by)


def _finite(answers: Answers) -> npt.NDArray[np.bool_]:
    arrays = [*(getattr(answers, name) for name in _ARRAYS), *answers.by.values()]
    return np.logical_and.reduce([np.isfinite(value).reshape(len(value), -1).all(axis=1) for value in arrays])


def _usable(boxes_N4: Boxes, rule: CropRule, size: tuple[int, int]) -> tuple[Boxes, str | None]:
    """The boxes that a crop can be cut around and that touch the picture; and what is wrong with the others."""
    if not rule.around_person:
        return whole(*size), None
    width, height = size
    found = len(boxes_N4)
    _, first = np.unique(boxes_N4, axis=0, return_index=True)
    boxes_N4 = boxes_N4[np.sort(first)]  # somebody who is found twice in one place is one person
    good_N = (
        (boxes_N4[:, 2] > boxes_N4[:, 0]) & (boxes_N4[:, 3] > boxes_N4[:, 1])
        & (boxes_N4[:, 2] > 0) & (boxes_N4[:, 3] > 0) & (boxes_N4[:, 0] < width - 1) & (boxes_N4[:, 1] < height - 1)
    )  # fmt: skip
    if good_N.sum() == found:
        return boxes_N4, None if found else NOBODY
    return boxes_N4[
        good_N
    ], f"{found - int(good_N.sum())} of its {found} boxes lie outside of it, have no side, or are there twice"


Found = str | tuple[str, npt.NDArray[np.uint8], Any]
"""Why a picture cannot be read; or its hash, its pixels, and where people are."""


def _read_ahead(shard: Shard) -> Iterator[Found]:
    """The pictures in order, a few of them read while the net works on another."""
    cv2.setNumThreads(1)  # the threads here give the parallelism

    def read(row: int) -> Found:
        name = shard.names[row]
        try:
            content = shard.files.read(name)
            image_HW3 = decode(content, name)
        except ImageError as error:
            return str(error)
        except MemoryError:
            return f"{name}: too large for this machine's memory"
        boxes = shard.boxes
        if boxes is None:
            return digest(content), image_HW3, whole(image_HW3.shape[1], image_HW3.shape[0])
        return digest(content), image_HW3, boxes if callable(boxes) else boxes[row]

    with ThreadPoolExecutor(READERS) as threads:
        waiting: deque[Future[Found]] = deque()
        for row in range(len(shard.names)):
            waiting.append(threads.submit(read, row))
            if len(waiting) > AHEAD * READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _joined(pictures: list[Seen], parts: list[tuple[int, Boxes, Answers]], scorer: Scorer) -> ShardScores:
    joints = len(scorer.about.skeleton)
    if parts:
        all_of = _together([answers for _, _, answers in parts])
        box_N4 = np.concatenate([boxes_N4 for _, boxes_N4, _ in parts])
        picture_N = np.concatenate([np.full(len(boxes_N4), row, np.int32) for row, boxes_N4, _ in parts])
    else:  # nobody: arrays of the right width all the same
        none = np.empty((0, joints), np.float32)
        empty = np.empty(0, np.float32)
        all_of = Answers(
            np.empty((0, joints, 2), np.float32), none, none, empty, empty, np.empty((0, 0), np.float32), {}
        )
        box_N4, picture_N = np.empty((0, 4), np.float32), np.empty(0, np.int32)
    values: dict[str, npt.NDArray[Any]] = {name: np.asarray(getattr(all_of, name), np.float32) for name in _ARRAYS}
    values["embedding_ND"] = values["embedding_ND"].astype(np.float16)
    by = {name: np.asarray(value, np.float32) for name, value in all_of.by.items()}
    return ShardScores(pictures=tuple(pictures), picture_N=picture_N, box_N4=box_N4, **values, by=by)
