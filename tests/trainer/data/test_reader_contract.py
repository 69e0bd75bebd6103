"""What every registered reader of dataset folders promises, whatever the folder's form."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from alpose.runtime.errors import ConfigError, DataError, DataNotFoundError
from alpose.trainer.data import catalog
from alpose.trainer.data.catalog import READERS, Reader, open_dataset, read_parts, reader_of, register
from alpose.trainer.data.images import ImageError, ImageFiles
from alpose.trainer.data.mpii import MAT_NAME
from alpose.trainer.data.records import PoseData
from alpose.trainer.data.verify import verify

from .folders import coco_document, rect, two_points, write_coco, write_lsp, write_lspet, write_mpii, write_yolo


@dataclass(frozen=True)
class Sample:
    """How the suite makes a folder for a reader, and how it breaks it."""

    write: Callable[[Path], Path]
    labels: str
    write_escaping: Callable[[Path], Path] | None = None
    """A folder whose labels name an image outside it; None for forms that hold no names."""


SAMPLES = {
    "lsp": Sample(write_lsp, "joints.mat"),
    "lspet": Sample(write_lspet, "joints.mat"),
    "mpii": Sample(
        write_mpii, MAT_NAME,
        lambda root: write_mpii(root, [("../evil.jpg", rect(two_points()), 1)]),
    ),
    "coco": Sample(
        write_coco, "annotations/mine.json",
        lambda root: write_coco(root, coco_document(images=[{"id": 7, "file_name": "../evil.jpg"}])),
    ),
    "yolo-pose": Sample(write_yolo, "data.yaml", lambda root: write_yolo(root, "../../evil/images")),
}  # fmt: skip


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> Reader:
    assert request.param in SAMPLES, f"give the suite a sample folder for the reader {request.param!r}"
    return READERS[request.param]


@pytest.fixture
def sample(reader: Reader) -> Sample:
    return SAMPLES[reader.name]


@pytest.fixture
def folder(sample: Sample, tmp_path: Path) -> Path:
    return sample.write(tmp_path / "one")


def test_the_folder_is_recognised_by_its_reader_alone(reader: Reader, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert reader_of(folder) is reader
    assert not reader.recognises(tmp_path / "empty")
    with pytest.raises(DataNotFoundError, match="is not a dataset that can be read"):
        reader_of(tmp_path / "empty")


def test_the_records_are_valid(reader: Reader, folder: Path) -> None:
    data = reader.read(folder, None)
    assert len(data) == 3
    assert np.isfinite(data.joints_NJ2[data.labelled_NJ]).all()
    assert data.labelled_NJ.any(axis=1).all(), "somebody without a labelled joint teaches nothing"
    assert np.isfinite(data.boxes_N4).all()
    assert (data.boxes_N4[:, 2:] > data.boxes_N4[:, :2]).all()
    for row in range(len(data)):
        assert data.image(row).dtype == np.uint8
        assert data.image(row).shape[2] == 3


def test_a_copy_of_the_folder_has_the_same_people(reader: Reader, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere" / "one")
    first, again = (reader.read(place, None) for place in (folder, tmp_path / "elsewhere" / "one"))
    assert first.ids == again.ids
    assert first.fingerprint() == again.fingerprint()


def test_every_part_can_be_read_by_its_name(reader: Reader, folder: Path) -> None:
    parts = reader.parts(folder)
    assert [len(reader.read(folder, part)) for part in parts or (None,)] == [3]
    assert [len(data) for data in read_parts(folder)] == [3]


def test_damaged_labels_are_named(reader: Reader, sample: Sample, folder: Path) -> None:
    labels = folder / sample.labels
    content = labels.read_bytes()
    for damage in (content[: len(content) // 2], b"", b"\xff\xfe no such format"):
        labels.write_bytes(damage)
        with pytest.raises(DataError, match=labels.name.replace(".", r"\.")):
            reader.read(folder, None)


def test_no_name_in_the_labels_leaves_the_folder(reader: Reader, sample: Sample, tmp_path: Path) -> None:
    if sample.write_escaping is None:
        pytest.skip("the labels hold no names")
    with pytest.raises(DataError, match="leaves the folder"):
        reader.read(sample.write_escaping(tmp_path / "evil"), None)


def test_a_missing_image_is_counted_and_named_when_it_is_read(
    reader: Reader, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = reader.read(folder, None)
    assert isinstance(whole.images, ImageFiles)
    gone = whole.images.paths[-1]
    gone.unlink()
    data = reader.read(folder, None)
    assert "1 of" in caplog.text
    assert gone.name in caplog.text
    row = int(np.flatnonzero(data.image_N == len(whole.images) - 1)[0])
    with pytest.raises(ImageError, match=gone.name):
        data.image(row)


def test_a_folder_without_parts_is_split_by_image(reader: Reader, folder: Path) -> None:
    dataset = open_dataset(str(folder))
    images = [{int(row) for row in part.image_N} for part in (dataset.train, dataset.test)]
    assert all(images)
    assert not images[0] & images[1]
    assert dataset.for_calibration().ids == reader.read(folder, None).ids


def test_what_cannot_be_opened_is_said() -> None:
    with pytest.raises(ConfigError, match=r"'nowhere' is neither one of lsp, .* nor a folder"):
        open_dataset("nowhere")


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "READERS", dict(READERS))


@pytest.mark.usefixtures("readers")
def test_a_reader_that_is_added_is_asked_first_and_verified(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "own")
    (folder / "own.txt").touch()

    def read(place: Path, _part: str | None) -> PoseData:
        return READERS["coco"].read(place, None)

    added = register(Reader(name="own", recognises=lambda place: (place / "own.txt").exists(), read=read))
    assert reader_of(folder) is added
    report = verify(folder)
    assert report.ok, report.lines()
    assert report.parts[0].dataset == "own"
