"""Embeddings of what was kept, and how far a frame is from all of them.

Shapes: D dimensions of the embedding, M places in the memory.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

PLACES = 512
"""M: at 20 frames an hour the last day. 512 × 64 float32 are 128 KiB, and one look costs a few microseconds."""


class Memory:
    """A ring of the last M unit embeddings that were flagged and kept."""

    def __init__(self, places: int = PLACES) -> None:
        self._places = places
        self._count = 0
        self._kept_MD: npt.NDArray[np.float32] | None = None
        self.now = math.nan
        """Distance of the frame now being judged; nan where nothing is known of it."""
        self._cosine_M: npt.NDArray[np.float32] = np.empty(places, dtype=np.float32)

    def __len__(self) -> int:
        return min(self._count, self._places)

    def measure(self, embedding_D: npt.NDArray[np.float32]) -> float:
        """Smallest cosine distance, 0 to 2; nan while nothing is kept, and for an embedding that is not finite."""
        self.now = math.nan
        if self._kept_MD is not None:
            used = len(self)
            cosine_M = np.dot(self._kept_MD[:used], embedding_D, out=self._cosine_M[:used])
            # Rounded as the score log keeps it, so that a replay decides as the device did.
            self.now = float(np.float16(1.0 - cosine_M.max()))
        return self.now

    def add(self, embedding_D: npt.NDArray[np.float32]) -> None:
        """Remember a frame, forgetting the oldest when full; an embedding that is empty or not finite is no memory."""
        if embedding_D.size == 0 or not np.isfinite(embedding_D).all():
            return
        if self._kept_MD is None:
            self._kept_MD = np.zeros((self._places, embedding_D.size), dtype=np.float32)
        self._kept_MD[self._count % self._places] = embedding_D
        self._count += 1
