"""Annotated videos: pose and box on the frame, and on a strip below it what the monitor thinks.

The strip hides nothing of the frame: it shows the probability of failure, its last seconds, and the words.

Shapes: H W output, h w a part of it, J joints.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import drawing
from ..drawing import Colour, Image
from ..errors import ConfigError, DataError
from ..frames import FrameFormat, accept
from ..io import require_writable
from ..skeleton import Skeleton
from ..types import Verdict
from .capture import import_cv2
from .sources import Frame

BACK: Colour = (18, 20, 26)
GROOVE: Colour = (40, 44, 54)
GREY: Colour = (150, 157, 170)
WHITE: Colour = (240, 242, 246)
GOOD: Colour = (48, 196, 120)
DOUBTFUL: Colour = (255, 186, 48)
BAD: Colour = (255, 76, 76)
CONTROL: Colour = (120, 168, 255)
PLACES: dict[str, Colour] = {
    "search": DOUBTFUL,
    "track": WHITE,
    "motion": WHITE,
    "roi": CONTROL,
    "box": WHITE,
    "whole": GREY,
}

CODECS = {".mp4": ("avc1", "mp4v"), ".m4v": ("avc1", "mp4v"), ".mov": ("avc1", "mp4v"), ".webm": ("VP80",),
          ".avi": ("MJPG",), ".mkv": ("avc1", "mp4v")}  # fmt: skip
"""What is tried for a name, best first. The wheels of OpenCV have no H.264: there .mp4 becomes MPEG-4 part 2, which most
players know and browsers do not; .webm plays in browsers."""

WIDTHS_PX = (640, 1280)
"""An annotated video is at least and at most so wide: letters must be readable, and encoding keep up."""
LEAST_FREE_BYTES = 1 << 16
"""A disk with less room at a video's end has swallowed a part of it without a word of OpenCV."""
LONGEST_GAP_S = 5.0
"""Where a source was silent longer, the video goes on after this much of standstill."""
SLOW_FPS = 5.0
"""A source with fewer frames a second is shown faster than it was, frame after frame."""
WINDOW_S = 10.0
"""How far back the curve of failure probabilities goes."""
NOBODY = -1.0
"""In place of a probability of failure, where nobody is there: below all of them, so that a curve has a gap."""
BANNER_S = 1.0
"""How long a kept frame stays announced: one frame of a video cannot be read."""


class AnnotatedVideo:
    """Writes frames with pose, box, probability and flags to a file, at the speed of the source's clock.

    Raises:
        ConfigError: this OpenCV cannot write such a file.
        OSError: the disk is full, or cannot be written to.
    """

    def __init__(
        self, path: Path, skeleton: Skeleton, fps: float | None, frame_format: FrameFormat = FrameFormat.BGR
    ) -> None:
        self._format = frame_format
        self._cv2: Any = import_cv2("writing an annotated video")
        if path.suffix.lower() not in CODECS:
            raise ConfigError(f"{path}: a video's name ends in one of {', '.join(CODECS)}")
        require_writable(path)  # OpenCV does not tell
        self.path = path
        self.written = 0
        self._clocked = fps is None or fps >= SLOW_FPS
        self._fps = (min(fps, 240.0) if fps else 25.0) if self._clocked else SLOW_FPS
        self._overlay = Overlay(skeleton, Letters(self._cv2))
        self._writer: Any = None
        self._size: tuple[int, int] = (0, 0)
        self._last_s = 0.0
        self._skipped_s = 0.0

    def write(
        self, frame: Frame, found: Verdict | Sequence[Verdict], time_s: float, threshold: float | None
    ) -> None:  # fmt: skip
        """Add the frame of this time; one that came late is preceded by a standstill, so that the clock is right.

        ``found`` is the verdict of a frame that is watched for one person, or those of everybody on it.
        """
        bgr = self._format is FrameFormat.BGR
        frame_bgr_HW3 = frame if bgr else np.ascontiguousarray(accept(frame, self._format).to_rgb()[..., ::-1])
        height, width = frame_bgr_HW3.shape[:2]
        scale = min(max(1.0, WIDTHS_PX[0] / width), WIDTHS_PX[1] / width)
        size = (max(2, round(width * scale)), max(2, round(height * scale)))
        if scale != 1.0:
            way = self._cv2.INTER_AREA if scale < 1 else self._cv2.INTER_LINEAR
            frame_bgr_HW3 = self._cv2.resize(frame_bgr_HW3, size, interpolation=way)
        picture_HW3 = self._overlay.draw(frame_bgr_HW3, found, time_s, scale=scale, threshold=threshold)
        if self._writer is None:
            self._open(size)
        if (picture_HW3.shape[1], picture_HW3.shape[0]) != self._size:  # encoders take one even size
            picture_HW3 = _at_size(picture_HW3, self._size, self._cv2)
        self._skipped_s += max(0.0, time_s - self._last_s - LONGEST_GAP_S)
        self._last_s = time_s
        wanted = int((time_s - self._skipped_s) * self._fps + 0.5) + 1 if self._clocked else self.written + 1
        for _ in range(max(0, wanted - self.written)):
            self._writer.write(picture_HW3)
            self.written += 1

    def close(self) -> None:
        """Finish the file and read it back; :class:`DataError` where the disk was full or it does not decode."""
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        again = self._cv2.VideoCapture(str(self.path))
        decoded = again.read()[0]
        again.release()
        full = shutil.disk_usage(self.path.absolute().parent).free < LEAST_FREE_BYTES
        if not decoded:
            self.path.unlink(missing_ok=True)
        if full:
            became = "its end is missing" if decoded else "nothing of it could be played, and it was removed"
            raise DataError(f"{self.path}: the disk is full, {became}. Make room, or write the video elsewhere")
        if not decoded:
            raise DataError(f"{self.path} was written and does not decode again: try another ending, such as .avi")

    def _open(self, size: tuple[int, int]) -> None:
        width, height = size
        self._size = (width + width % 2, (height + strip_height(height)) // 2 * 2)
        self.path.unlink(missing_ok=True)
        for codec in CODECS[self.path.suffix.lower()]:
            code = self._cv2.VideoWriter_fourcc(*codec)
            writer = self._cv2.VideoWriter(str(self.path), code, self._fps, self._size)
            if writer.isOpened():
                self._writer = writer
                return
            writer.release()
        require_writable(self.path)
        raise ConfigError(f"this OpenCV cannot write {self.path}: try another ending of {', '.join(CODECS)}")


class Letters:
    """OpenCV's own letters: putting words on an image is the one thing that numpy cannot do."""

    def __init__(self, cv2: Any) -> None:
        self._cv2 = cv2

    def width(self, words: str, height_px: int, bold: bool = False) -> int:
        """How many pixels the words take."""
        face, scale, thickness = self._style(height_px, bold)
        return int(self._cv2.getTextSize(words, face, scale, thickness)[0][0])

    def put(
        self, image_bgr_HW3: Image, words: str, x: int, y: int, height_px: int, colour: Colour, bold: bool = False
    ) -> None:
        """Write on a contiguous BGR image; (x, y) is the left end of the base line, the height a capital's."""
        face, scale, thickness = self._style(height_px, bold)
        self._cv2.putText(image_bgr_HW3, words, (x, y), face, scale, colour[::-1], thickness, self._cv2.LINE_AA)

    def _style(self, height_px: int, bold: bool) -> tuple[int, float, int]:
        # A capital of this letter is 22 px high at scale 1.
        return (self._cv2.FONT_HERSHEY_DUPLEX if bold else self._cv2.FONT_HERSHEY_SIMPLEX), height_px / 22, 1


@dataclass(frozen=True, slots=True)
class _Moment:
    time_s: float
    probability: float
    """The highest of all people; :data:`NOBODY` where nobody is there."""
    flagged: bool
    kept: bool


class Overlay:
    """Draws verdict after verdict; it remembers the last seconds."""

    def __init__(self, skeleton: Skeleton, letters: Letters) -> None:
        self._skeleton = skeleton
        self._letters = letters
        self._past: deque[_Moment] = deque()
        self._banner: tuple[float, str, Colour] | None = None
        self._kept = self._frames = 0

    def draw(
        self, frame_bgr_HW3: Image, found: Verdict | Sequence[Verdict], time_s: float, *, scale: float = 1.0,
        threshold: float | None = None,
    ) -> Image:  # fmt: skip
        """The annotated picture, BGR, higher than the frame by its strip.

        Args:
            frame_bgr_HW3: the frame, already resized by ``scale``; it is copied.
            found: the verdict of one person, or those of everybody, in the coordinates of the frame before that.
            time_s: on the video's clock; must not fall.
            scale: pixels of the picture per pixel of the frame.
            threshold: on the probability, where the policy has one.
        """
        height, width = frame_bgr_HW3.shape[:2]
        picture_HW3 = np.empty((height + strip_height(height), width, 3), dtype=np.uint8)
        picture_HW3[:height] = frame_bgr_HW3
        picture_HW3[height:] = BACK[::-1]
        several = isinstance(found, Sequence)
        verdicts: list[Verdict] = list(found) if isinstance(found, Sequence) else [found]
        self._remember(verdicts, time_s)
        for verdict in sorted(verdicts, key=_shown):  # whoever is most likely wrong lies on top
            self._draw_person(picture_HW3[:height], verdict, scale, named=several)
        self._draw_banner(picture_HW3[:height], time_s)
        self._draw_strip(picture_HW3[height:], verdicts, several, time_s, threshold)
        return picture_HW3

    def _remember(self, verdicts: Sequence[Verdict], time_s: float) -> None:
        flagged, kept = any(one.flagged for one in verdicts), sum(one.kept for one in verdicts)
        self._past.append(_Moment(time_s, max(map(_shown, verdicts), default=NOBODY), flagged, kept > 0))
        while self._past[0].time_s < time_s - WINDOW_S:
            self._past.popleft()
        self._kept += kept
        told = [one for one in verdicts if one.kept or one.flagged]
        if told:
            first = max(told, key=lambda one: (one.flagged, _shown(one)))
            what, colour = ("FLAGGED", BAD) if first.flagged else ("CONTROL", CONTROL)
            who = f"{len(told)} people" if len(told) > 1 else ""
            self._banner = (time_s, "  ".join((what, *filter(None, (who,)), *map(str, first.reasons[:2]))), colour)

    def _draw_person(self, image_bgr_HW3: Image, verdict: Verdict, scale: float, named: bool) -> None:
        rgb_HW3 = image_bgr_HW3[..., ::-1]
        unit = _unit(image_bgr_HW3)
        keypoints_J2 = (np.asarray(verdict.keypoints, dtype=np.float64) + 0.5) * scale - 0.5
        height, width = image_bgr_HW3.shape[:2]
        rim = 2 * unit
        # A box beyond the frame is drawn at its edge: where the person was looked for should always be seen.
        x0, y0, x1, y1 = ((value + 0.5) * scale - 0.5 for value in verdict.box)
        box_4 = (max(x0, rim), max(y0, rim), min(x1, width - 1 - rim), min(y1, height - 1 - rim))
        probability = _shown(verdict)
        named_colour = _colour(probability) if probability >= 0 else GREY
        colour = named_colour if named else PLACES.get(verdict.place, WHITE)
        told = _written(probability) if verdict.occupied else "not seen"
        words = f"{verdict.stream} {told}" if named else verdict.place
        if box_4[0] < box_4[2] and box_4[1] < box_4[3]:
            drawing.corners(rgb_HW3, box_4, colour, 2 * unit)
            size = round(9 * unit)
            label_y = box_4[1] - 6 * unit if box_4[1] > size + 10 * unit else box_4[1] + size + 7 * unit
            label_x = round(box_4[0] + (0 if box_4[1] > size + 10 * unit else 7 * unit))
            if named:  # a name and a number are to be read, whatever is behind them
                pad, right = 3 * unit, label_x + self._letters.width(words, size, bold=True)
                drawing.fill(
                    rgb_HW3, label_x - pad, label_y - size - pad, right + pad, label_y + pad, drawing.DARK, 0.75
                )
            else:
                self._letters.put(image_bgr_HW3, words, label_x + 1, round(label_y) + 1, size, drawing.DARK)
            self._letters.put(image_bgr_HW3, words, label_x, round(label_y), size, colour, bold=named)
        if not verdict.occupied:  # what the net sees in an empty room is no pose
            return
        sure_J = verdict.scores if verdict.confidence is None else drawing.SURE * verdict.confidence
        drawing.pose(rgb_HW3, keypoints_J2, sure_J, self._skeleton, 3 * unit)

    def _draw_banner(self, image_bgr_HW3: Image, time_s: float) -> None:
        if self._banner is None or time_s - self._banner[0] > BANNER_S:
            return
        since_s, words, colour = self._banner
        rgb_HW3, unit = image_bgr_HW3[..., ::-1], _unit(image_bgr_HW3)
        opacity = 1.0 if time_s == since_s else 0.75 * (1 - (time_s - since_s) / BANNER_S)
        drawing.frame(rgb_HW3, colour, round(5 * unit if time_s == since_s else 3 * unit), opacity)
        size, pad = round(11 * unit), round(8 * unit)
        room = image_bgr_HW3.shape[1] - 4 * pad
        words = _shortened(self._letters, words, size, room)
        across, down = self._letters.width(words, size, bold=True) + 2 * pad, size + 2 * pad
        left, top = round(12 * unit), round(12 * unit)
        drawing.fill(rgb_HW3, left, top, left + across, top + down, colour, 0.9)
        dark = drawing.DARK if colour != BAD else WHITE
        self._letters.put(image_bgr_HW3, words, left + pad, top + pad + size, size, dark, bold=True)

    def _draw_strip(
        self, strip_bgr_HW3: Image, verdicts: Sequence[Verdict], several: bool, time_s: float, threshold: float | None
    ) -> None:  # fmt: skip
        height, width = strip_bgr_HW3.shape[:2]
        unit = height / 68
        pad, small, large = round(12 * unit), round(9 * unit), round(19 * unit)
        probability = self._past[-1].probability
        rgb_HW3 = strip_bgr_HW3[..., ::-1]

        block = round(168 * unit)
        people = sum(one.occupied for one in verdicts)
        colour = _colour(probability) if people else GREY
        self._letters.put(strip_bgr_HW3, _written(probability), pad, round(31 * unit), large, colour, True)
        if people:
            beside = pad + self._letters.width("0.00", large, True) + round(9 * unit)
            second = f"highest of {people}" if people > 1 else "of failure"
            self._letters.put(strip_bgr_HW3, "probability", beside, round(20 * unit), small, GREY)
            self._letters.put(strip_bgr_HW3, second, beside, round(32 * unit), small, GREY)
        bar_y, bar_height = round(43 * unit), round(12 * unit)
        drawing.fill(rgb_HW3, pad, bar_y, block, bar_y + bar_height, GROOVE)
        if people:
            drawing.fill(rgb_HW3, pad, bar_y, pad + (block - pad) * probability, bar_y + bar_height, colour)
        if threshold is not None and 0 <= threshold <= 1:
            x = pad + (block - pad) * threshold
            drawing.fill(rgb_HW3, x - unit, bar_y - 3 * unit, x + unit, bar_y + bar_height + 3 * unit, WHITE)

        self._frames += 1
        what = ("1 person" if people == 1 else f"{people} people") if several else verdicts[0].place
        number = self._frames - 1 if several else verdicts[0].sequence
        took = f"   {1e3 * verdicts[0].timings.total_s:.1f} ms" if verdicts else ""
        words = [f"{_clock(time_s)}   {what}", f"frame {number}{took}", f"kept {self._kept}"]
        right = width - pad - max(self._letters.width("frame 000000   00.0 ms", small), *(
            self._letters.width(line, small) for line in words))  # fmt: skip
        for place, line in enumerate(words):
            colour = GREY if place else WHITE
            self._letters.put(strip_bgr_HW3, line, right, round((20 + 18 * place) * unit), small, colour)
        left, end = block + 2 * pad, right - 2 * pad
        if end - left >= 40:
            self._draw_curve(rgb_HW3[round(9 * unit) : round(59 * unit), left:end], time_s, threshold)

    def _draw_curve(self, image_hw3: Image, time_s: float, threshold: float | None) -> None:
        """The last seconds, newest at the right end: each column shows the highest probability of its time."""
        height, width = image_hw3.shape[:2]
        image_hw3[...] = GROOVE
        column = [min(width - 1, int((1 - (time_s - moment.time_s) / WINDOW_S) * width)) for moment in self._past]
        column = [max(0, place) for place in column]
        value_w = np.full(width, np.nan)
        for place, moment in zip(column, self._past, strict=True):
            value_w[place] = np.fmax(value_w[place], moment.probability)
        value_w = _filled_forward(value_w)
        top_w = (1 - value_w) * (height - 1)
        cover_hw = np.clip(np.arange(height, dtype=np.float64)[:, None] - top_w + 0.5, 0.0, 1.0)
        cover_hw = np.nan_to_num(cover_hw) * 0.85
        colour_w3 = _colours(np.nan_to_num(value_w))
        image_hw3[...] = np.rint(image_hw3 + (colour_w3 - image_hw3) * cover_hw[..., None]).astype(np.uint8)
        if threshold is not None and 0 <= threshold <= 1:
            dashed_w = np.arange(width) % 8 < 4
            image_hw3[round((1 - threshold) * (height - 1)), dashed_w] = WHITE
        for place, moment in zip(column, self._past, strict=True):
            if moment.flagged or moment.kept:
                drawing.line(image_hw3, (place, 0), (place, height), WHITE, 1.0, 0.6)
                drawing.disc(image_hw3, (place, 4), 3.5, BAD if moment.flagged else CONTROL)


def strip_height(height: int) -> int:
    """Rows of the strip below a picture of this height."""
    return max(68, height * 4 // 25)


def _unit(image_HW3: Image) -> float:
    """Line widths and letters grow with the picture."""
    return max(1.0, image_HW3.shape[0] / 480)


def _shortened(letters: Letters, words: str, height_px: int, room_px: int) -> str:
    """The words, cut where they do not fit."""
    if letters.width(words, height_px, bold=True) <= room_px:
        return words
    while words and letters.width(f"{words}...", height_px, bold=True) > room_px:
        words = words[:-1]
    return f"{words.rstrip()}..."


def _filled_forward(value_w: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Fill columns between two frames with the older one; before the first frame there is nothing."""
    known_w = np.where(np.isnan(value_w), -1, np.arange(len(value_w)))
    last_w = np.maximum.accumulate(known_w)
    return np.where(last_w >= 0, value_w[np.maximum(last_w, 0)], np.nan)


def _shown(verdict: Verdict) -> float:
    """The probability of failure in [0, 1]; 1 where it is no number, and :data:`NOBODY` where nobody is there."""
    if not verdict.occupied:
        return NOBODY
    return float(np.clip(np.nan_to_num(verdict.failure_probability, nan=1.0), 0.0, 1.0))


def _written(probability: float) -> str:
    return "nobody" if probability < 0 else f"{probability:.2f}"


def _colours(value_w: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(w, 3): green, amber at one half, red."""
    stops = np.array([GOOD, DOUBTFUL, BAD], dtype=np.float64)
    return np.stack([np.interp(value_w, [0.0, 0.5, 1.0], stops[:, channel]) for channel in range(3)], axis=1)


def _colour(value: float) -> Colour:
    red, green, blue = (round(part) for part in _colours(np.array([value]))[0])
    return (red, green, blue)


def _clock(time_s: float) -> str:
    minutes, seconds = divmod(time_s, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{seconds:04.1f}" if hours else f"{minutes:02d}:{seconds:04.1f}"


def _at_size(picture_HW3: Image, size: tuple[int, int], cv2: Any) -> Image:
    """The picture at the size of the file: cut or padded by a pixel, or resized where the source changed its size."""
    width, height = size
    if abs(picture_HW3.shape[0] - height) > 1 or abs(picture_HW3.shape[1] - width) > 1:
        return np.asarray(cv2.resize(picture_HW3, size))
    short = ((0, max(0, height - picture_HW3.shape[0])), (0, max(0, width - picture_HW3.shape[1])), (0, 0))
    return np.ascontiguousarray(np.pad(picture_HW3[:height, :width], short, mode="edge"))
