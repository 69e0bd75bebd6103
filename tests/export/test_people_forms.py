"""Nets of whole frames that find several people themselves, in each of their forms: from the file to verdicts for everybody."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.export.foreign import export_uncalibrated
from alpose.export.merge import load
from alpose.runtime import Monitor
from alpose.runtime.bundle import Bundle
from alpose.runtime.engines.onnx import OnnxEngine
from alpose.runtime.locate.people import overlaps
from alpose.runtime.types import CANDIDATES
from alpose.trainer.foreign.net import open_net
from alpose.trainer.foreign.recognition.recognise import recognise

from ..trainer.foreign import nets

PEOPLE = [(60, 100), (180, 140), (260, 100)]
"""In the middle of cells of the net, on a frame of 320 x 240."""


def frame_of(people: list[tuple[int, int]]) -> Any:
    frame = np.zeros((240, 320, 3), np.uint8)
    for x, y in people:
        frame[y - 20 : y + 20, x - 20 : x + 20, 0] = 255
    return frame


def box_of(x: int, y: int) -> tuple[float, ...]:
    """Two cells wide and three high; a cell is 8 px of the input, and 40 of the frame."""
    return (x - 40.5, y - 60.5, x + 39.5, y + 59.5)


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    @functools.cache
    def made(form: str) -> Bundle:
        folder = tmp_path_factory.mktemp(form)
        path = nets.people(folder / "net.onnx", form)
        assert recognise(path).name == form
        return Bundle.open(export_uncalibrated(path, folder / "net.alpose"))

    return made


@pytest.mark.parametrize("form", nets.PEOPLE_FORMS)
def test_everybody_on_a_frame_is_found_and_looked_at_by_one_file(form: str, bundle_of: Callable[[str], Bundle]) -> None:
    bundle = bundle_of(form)
    assert bundle.manifest.people
    assert list(bundle.manifest.to_json()["outputs"]["people"]["shape"]) == ["N", CANDIDATES, 5]
    assert bundle.manifest.parity["their_file_alone_max_px"]["value"] == 0, "their nodes are as they were"
    with Monitor(bundle) as monitor:
        for there in (PEOPLE, PEOPLE[1:], [], PEOPLE[::-1]):
            verdicts = monitor.people(frame_of(there))
            assert len({verdict.stream for verdict in verdicts}) == len(there)
            boxes = np.array([box_of(*each) for each in there]).reshape(-1, 4)
            found = np.array([verdict.box for verdict in verdicts]).reshape(-1, 4)
            assert ((overlaps(found, boxes) > 0.95).sum(axis=0) == 1).all()
            for verdict in verdicts:
                x0, y0, x1, y1 = verdict.box
                low, high = verdict.keypoints.min(axis=0), verdict.keypoints.max(axis=0)
                assert (low >= (x0, y0)).all()
                assert (high <= (x1, y1)).all()
        assert monitor(frame_of(PEOPLE)).place == "whole", "one person, on the whole frame"
        counts = {str(key): n for key, n in monitor.stats().counts.items()}
    assert counts["persons_total{decision=passed}"] == 9
    assert not any(name.startswith(("dropped_boxes", "internal_errors", "mistaken")) for name in counts)


def test_rows_that_a_graph_counts_are_as_many_as_there_are(tmp_path: Path) -> None:
    """Noise shows nobody: that there is one row on every trial does not fix their number."""
    path = nets.people(tmp_path / "net.onnx", "rtmo")
    net = open_net(path, recognise(path))
    assert net.shapes["dets"] == (None, None, 5)
    crops = np.stack([frame_of(people)[:64, :64] for people in ([], [(28, 28)])])
    crops[1, 24:32, 24:32, 0] = 255
    assert net(crops)["dets"].shape[0] == 2
    assert load(path, net.spec).dynamic is False


def test_an_empty_frame_and_a_full_one_go_through_one_engine(bundle_of: Callable[[str], Bundle]) -> None:
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    for x in range(4, 64, 16):
        frames[1, 24:32, x - 4 : x + 4, 0] = 255
    people = OnnxEngine(bundle_of("rtmo"))(frames).people_NP5
    assert people is not None
    assert (people[..., 4] > 0.5).sum(axis=1).tolist() == [0, 4]
