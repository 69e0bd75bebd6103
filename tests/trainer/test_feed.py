"""Batches of people on their way to the device."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from alpose.trainer.data.crops import Crops
from alpose.trainer.device import DeviceContext
from alpose.trainer.feed import AHEAD, Feed


class Noting(Crops):
    """Crops that note who was read, and by which thread."""

    def read(self, index_B: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """As ever."""
        notes.append(list(index_B))
        threads.add(threading.current_thread().name)
        if 7 in index_B:
            raise OSError("the disk is gone")
        return super().read(index_B)


notes: list[list[int]] = []
threads: set[str] = set()


@pytest.fixture
def feed(make_crops: Callable[..., Crops], cpu: DeviceContext) -> Feed:
    notes.clear()
    threads.clear()
    crops = make_crops(8)
    fields: dict[str, Any] = {name: getattr(crops, name) for name in Crops.__slots__}
    return replace(Feed.open(crops, cpu), crops=Noting(**fields))


ROWS = [np.array(rows) for rows in ([0, 3], [1], [5, 2], [4], [6])]


@pytest.mark.parametrize("ahead", [0, 1, AHEAD, 9])
def test_a_stream_is_its_batches_in_their_order(feed: Feed, ahead: int) -> None:
    found = list(feed.stream(ROWS, ahead))

    assert notes == [list(rows) for rows in ROWS]  # each read once
    assert threads == ({"alpose-read_0"} if ahead else {"MainThread"})
    for batch, rows in zip(found, ROWS, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(batch, feed.batch(rows), strict=True))


def test_no_more_is_read_than_so_many_batches_ahead(feed: Feed) -> None:
    stream = feed.stream(ROWS, 2)
    next(stream)
    stream.close()

    assert len(notes) <= 3


def test_a_batch_that_cannot_be_read_is_an_error_at_its_turn(feed: Feed) -> None:
    stream = feed.stream([np.array([0]), np.array([7])], 1)
    next(stream)

    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
