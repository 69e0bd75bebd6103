"""What the camera thread hands over for one kept frame, and how it becomes pictures.

Nothing of a frame beyond what its queue's ``store`` says may reach the disk:

- ``full``: the frame.
- ``crop``: the square that the net looked at, in whole pixels of the frame, and nothing else; of clips the same region.
- ``keypoints``: no picture at all.

In each case the numbers of the record stay: box, keypoints, scores, and the embedding, 64 or so numbers about what the
net saw. Nobody can look at an embedding, but whoever has the net and many pictures may tell which resemble it.

Shapes: H W frame or region.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..bundle.keys import sealer
from ..crop import Crop
from ..errors import ConfigError
from . import images
from .record import STORES, Picture, Record

Region = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in whole pixels of the frame: columns x0 … x1 - 1, rows y0 … y1 - 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """Pixels of one moment: a frame, or the region of it that is to be kept. They are the recorder's from now on."""

    captured_ns: int
    """Unix time."""
    rgb_HW3: npt.NDArray[np.uint8]
    offset: tuple[int, int] = (0, 0)
    """Column and row in the frame of the first pixel."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """A frame that is to be kept."""

    record: Record
    """All that the monitor knows; ``id``, ``episode``, ``store`` and ``frame_*`` are filled in later."""
    shot: Shot | None
    """None where the queue keeps keypoints alone."""
    crop: Crop
    """What the net looked at."""
    sequence: int
    """The trigger's number of this observation, to which ``supersedes`` of later ones refers."""
    supersedes: tuple[int, ...] = ()
    """Numbers of frames kept before, which this one replaces."""
    episode: int | None = None
    """The trigger's running number of the episode."""
    before: tuple[Shot, ...] = ()
    """The frames before, nearest last."""

    @property
    def nbytes(self) -> int:
        """Of pixels."""
        return sum(shot.rgb_HW3.nbytes for shot in (*self.before, *([self.shot] if self.shot else [])))


def kept_region(store: str, crop: Crop, width: int, height: int) -> Region | None:
    """What of a frame of ``width`` x ``height`` is kept; None for nothing.

    The square of a crop is widened to the pixels that its filter reads beyond the edge, half a sample: from a lossless
    picture of the region the net's input comes out again.
    """
    if store == "keypoints":
        return None
    if store == "full":
        return 0, 0, width, height
    reach = max(crop.scale, 1.0) - crop.scale / 2
    x0, x1 = _whole(crop.x0 - reach, crop.x0 + crop.side + reach, width)
    y0, y1 = _whole(crop.y0 - reach, crop.y0 + crop.side + reach, height)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _whole(first: float, last: float, length: int) -> tuple[int, int]:
    """The pixels that an interval touches; pixel i covers [i - 0.5, i + 0.5]."""
    return min(max(math.floor(first + 0.5), 0), length), min(max(math.ceil(last + 0.5), 0), length)


class PictureMaker:
    """Turns pixels into the pictures of a record: cut, encoded, sealed.

    Args:
        store: ``full``, ``crop`` or ``keypoints``.
        media_type, quality, long_side: as in :func:`alpose.runtime.queue.images.encode`.
        seal_to: the fleet's public key; None leaves pictures open.

    Raises:
        ConfigError: a setting that cannot be carried out.
        MissingExtraError: sealing without pynacl.
    """

    def __init__(
        self, *, store: str, media_type: str, quality: int, long_side: int | None, seal_to: str | Path | None
    ) -> None:
        if store not in STORES:
            raise ConfigError(f"store is one of {', '.join(STORES)}, got {store!r}")
        images.check_options(media_type, quality, long_side)
        self.store = store
        self._options = (media_type, quality, long_side)
        self._seal: Callable[[bytes], bytes] | None = None if seal_to is None else sealer(seal_to)

    def region(self, crop: Crop, width: int, height: int) -> Region | None:
        """What of a frame is kept."""
        return kept_region(self.store, crop, width, height)

    def picture(self, shot: Shot, region: Region) -> tuple[Picture, str | None]:
        """A picture at position 0, and what stood in for the encoder that was wanted.

        Raises:
            DataError: the shot is no picture.
            Exception: whatever an encoder raises.
        """
        (left, top), (x0, y0, x1, y1) = shot.offset, region
        height, width = shot.rgb_HW3.shape[:2]
        x0, y0 = max(x0, left), max(y0, top)
        kept_HW3 = shot.rgb_HW3[y0 - top : min(y1 - top, height), x0 - left : min(x1 - left, width)]
        encoded = images.encode(kept_HW3, *self._options, offset=(x0, y0))
        picture = Picture.of(
            encoded.data if self._seal is None else self._seal(encoded.data),
            width=encoded.width,
            height=encoded.height,
            captured_ns=shot.captured_ns,
            media_type=encoded.media_type,
            sealed=self._seal is not None,
            origin=encoded.origin,
            scale=encoded.scale,
        )
        return picture, encoded.fallback
