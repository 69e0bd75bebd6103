from __future__ import annotations

import hashlib
import json
import logging
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from alpose.runtime.crop import cut
from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.skeleton import Skeleton
from alpose.trainer.data.crops import CropConfig, crop_config, prepare
from alpose.trainer.data.images import ImageError, ImageFiles, Images
from alpose.trainer.data.records import PoseData
from alpose.trainer.foreign.spec import NetCrop, NetDecoder, NetInput, PoseSpec

from ..fakes.people import made_people

Bytes = npt.NDArray[np.uint8]
CONFIG = CropConfig(size_px=64, context=0.25)


@dataclass
class Counted:
    """Noise, and a record of what was read."""

    count: int
    reads: list[int] = field(default_factory=list)
    stops_at: int | None = None
    broken: tuple[int, ...] = ()
    name: str = "noise"

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Bytes:
        self.reads.append(index)
        if index == self.stops_at:
            raise KeyboardInterrupt
        if index in self.broken:
            raise ImageError(f"picture-{index}.jpg: cannot be decoded")
        return np.random.default_rng(index).integers(0, 256, (50, 40, 3), dtype=np.uint8)

    def describe(self, index: int) -> str:
        return f"{self.name}:{index}"


def people(images: Images, count: int | None = None, **changes: Any) -> PoseData:
    n = len(images) if count is None else count
    joints_NJ2 = np.random.default_rng(0).uniform(5, 35, (n, 2, 2)).astype(np.float32)
    boxes_N4 = np.concatenate([joints_NJ2.min(axis=1), joints_NJ2.max(axis=1)], axis=1)
    values = {
        "skeleton": Skeleton("two", ("a", "b"), ((0, 1),), ()), "joints_NJ2": joints_NJ2, "name": "noise",
        "ids": tuple(f"person-{row}" for row in range(n)), "images": images, "boxes_N4": boxes_N4,
    }  # fmt: skip
    return made_people(**{**values, **changes})


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_crop_is_the_cut_of_its_box_and_joints_lie_in_it(tmp_path: Path) -> None:
    data = people(Counted(5))
    crops = prepare(data, CONFIG, tmp_path, workers=2)

    assert len(crops) == 5
    for row in range(5):
        crop = CONFIG.crop_of(data.boxes_N4[row])
        np.testing.assert_array_equal(crops.read(np.array([row]))[0], cut(data.image(row), crop))
        np.testing.assert_array_equal(crops.joints_NJ2[row], crop.to_crop(data.joints_NJ2[row]))
        assert crops.scale_N[row] == np.float32(crop.scale)


def test_the_bare_crop_is_the_centre_of_the_one_with_context(tmp_path: Path) -> None:
    data = people(Counted(3))
    with_context = prepare(data, CONFIG, tmp_path, workers=1)
    bare = prepare(data, replace(CONFIG, context=0.0), tmp_path, workers=1)
    rows = np.array([2, 0])

    assert with_context.read(rows).shape == (2, 96, 96, 3)
    np.testing.assert_array_equal(with_context.read_bare(rows), bare.read(rows))
    np.testing.assert_array_equal(with_context.joints_NJ2, bare.joints_NJ2)


def test_a_second_start_reads_no_image(tmp_path: Path) -> None:
    images = Counted(6)
    first = prepare(people(images), CONFIG, tmp_path, workers=2)
    assert sorted(images.reads) == list(range(6))
    images.reads.clear()
    again = prepare(people(images), CONFIG, tmp_path, workers=2)

    assert images.reads == []
    np.testing.assert_array_equal(first.read(np.arange(6)), again.read(np.arange(6)))


def test_a_picture_of_several_people_is_decoded_once(tmp_path: Path) -> None:
    images = Counted(3, broken=(1,))
    data = people(images, 7, image_N=np.array([2, 0, 2, 1, 2, 1, 0]))
    boxes_N4 = data.boxes_N4.copy()
    boxes_N4[4] = np.nan  # of the same picture as three others
    crops = prepare(replace(data, boxes_N4=boxes_N4), CONFIG, tmp_path, workers=2)

    assert sorted(images.reads) == [0, 1, 2]
    assert crops.data.ids == ("person-0", "person-1", "person-2", "person-6")
    assert [reason.split(":")[0] for reason in crops.left_out] == ["person-3", "person-4", "person-5"]
    for place, row in enumerate((0, 1, 2, 6)):
        expected = cut(data.image(row), CONFIG.crop_of(data.boxes_N4[row]))
        np.testing.assert_array_equal(crops.read(np.array([place]))[0], expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: (replace(data, boxes_N4=data.boxes_N4 + 1), CONFIG),
        lambda data: (replace(data, image_N=data.image_N[::-1].copy()), CONFIG),
        lambda data: (replace(data, images=Counted(3, name="other pixels")), CONFIG),
        lambda data: (data, replace(CONFIG, size_px=128)),
        lambda data: (data, replace(CONFIG, margin=1.3)),
        lambda data: (data, replace(CONFIG, context=0.5)),
    ],
    ids=["boxes", "images", "pixels", "size", "margin", "context"],
)  # fmt: skip
def test_anything_that_makes_a_crop_makes_another_cache(
    tmp_path: Path, change: Callable[[PoseData], tuple[PoseData, CropConfig]]
) -> None:
    data = people(Counted(3))
    prepare(data, CONFIG, tmp_path, workers=1)
    changed, config = change(data)
    assert isinstance(changed.images, Counted)
    changed.images.reads.clear()
    prepare(changed, config, tmp_path, workers=1)

    assert len(changed.images.reads) == 3
    assert len([name for name in files(tmp_path) if name.endswith(".npy")]) == 2


def test_another_name_or_another_label_needs_no_new_pixels(tmp_path: Path) -> None:
    data = people(Counted(3))
    prepare(data, CONFIG, tmp_path, workers=1)
    changed = replace(data, name="renamed", ids=("a", "b", "c"), joints_NJ2=data.joints_NJ2 + 1)
    crops = prepare(changed, CONFIG, tmp_path, workers=1)
    assert crops.data.ids == ("a", "b", "c")
    assert len([name for name in files(tmp_path) if name.endswith(".npy")]) == 1


@pytest.mark.parametrize("suffix", ["bmp", "jpg"])
def test_a_picture_that_changed_is_cut_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    box_14 = np.array([[5, 5, 60, 60]], dtype=np.float32)
    cv2.imwrite(str(path), np.full((80, 80, 3), 10, dtype=np.uint8))
    first = prepare(people(ImageFiles((path,)), boxes_N4=box_14), CONFIG, tmp_path / "cache").read(np.array([0]))
    size = path.stat().st_size
    cv2.imwrite(str(path), np.full((80, 80, 3), 200, dtype=np.uint8))
    assert path.stat().st_size == size, "the size alone does not tell"
    again = prepare(people(ImageFiles((path,)), boxes_N4=box_14), CONFIG, tmp_path / "cache").read(np.array([0]))
    assert int(first.max()) < 20
    assert int(again.max()) > 190


def test_a_broken_image_is_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = people(Counted(4, broken=(1,)))
    with caplog.at_level(logging.WARNING, "alpose"):
        crops = prepare(data, CONFIG, tmp_path, workers=2)

    assert crops.data.ids == ("person-0", "person-2", "person-3")
    assert crops.row_N.tolist() == [0, 2, 3]
    assert crops.left_out == ("person-1: picture-1.jpg: cannot be decoded",)
    assert "1 of 4 people left out" in caplog.text
    assert "picture-1.jpg" in caplog.text
    crop = CONFIG.crop_of(data.boxes_N4[3])
    np.testing.assert_array_equal(crops.read(np.array([2]))[0], cut(data.image(3), crop))


def test_who_was_left_out_is_said_again_on_the_second_start(tmp_path: Path) -> None:
    data = people(Counted(4, broken=(1,)))
    first = prepare(data, CONFIG, tmp_path, workers=1)

    assert prepare(data, CONFIG, tmp_path, workers=1).left_out == first.left_out


@pytest.mark.parametrize("box", [(np.nan,) * 4, (5, 5, 4, 9), (0, 0, 1e10, 1e10)])
def test_a_person_without_a_usable_box_is_left_out(tmp_path: Path, box: tuple[float, ...]) -> None:
    data = people(Counted(3))
    data.boxes_N4[2] = box
    crops = prepare(data, CONFIG, tmp_path, workers=1)

    assert crops.data.ids == ("person-0", "person-1")
    assert crops.left_out[0].startswith("person-2: ")
    assert "box" in crops.left_out[0]


def bomb() -> bytes:
    """A PNG whose header claims 2^21 x 2^21 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 2**21, 2**21, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_files_that_cannot_be_read_never_stop_a_run(tmp_path: Path) -> None:
    good = cv2.imencode(".png", np.full((50, 40, 3), 90, dtype=np.uint8))[1].tobytes()
    contents = {
        "good.png": good, "empty.png": b"", "cut.png": good[:40], "text.jpg": b"not an image", "bomb.png": bomb(),
        "folder.png": None, "missing.png": None,
    }  # fmt: skip
    for name, content in contents.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.png").mkdir()
    data = people(ImageFiles(tuple(tmp_path / name for name in contents)))

    crops = prepare(data, CONFIG, tmp_path / "cache", workers=1)

    assert crops.data.ids == ("person-0",)
    for place, name in enumerate(list(contents)[1:]):
        assert crops.left_out[place].startswith(f"person-{place + 1}: ")
        assert name in crops.left_out[place]


@pytest.mark.parametrize("kind", ["grey", "alpha", "sixteen bits"])
def test_other_kinds_of_images_become_rgb(tmp_path: Path, kind: str) -> None:
    image = {
        "grey": np.full((50, 40), 90, dtype=np.uint8),
        "alpha": np.full((50, 40, 4), 90, dtype=np.uint8),
        "sixteen bits": np.full((50, 40, 3), 90 * 257, dtype=np.uint16),
    }[kind]
    cv2.imwrite(str(tmp_path / "image.png"), image)
    read = ImageFiles((tmp_path / "image.png",)).read(0)

    assert read.shape == (50, 40, 3)
    assert read.dtype == np.uint8
    assert (read == 90).all()


def test_colours_are_rgb(tmp_path: Path) -> None:
    red = np.zeros((4, 4, 3), dtype=np.uint8)
    red[..., 2] = 200  # OpenCV writes BGR
    cv2.imwrite(str(tmp_path / "red.png"), red)

    assert ImageFiles((tmp_path / "red.png",)).read(0)[0, 0].tolist() == [200, 0, 0]


def test_a_set_of_which_nothing_can_be_cut_is_an_error_that_shows_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of its 2 people.*person-0.*picture-0"):
        prepare(people(Counted(2, broken=(0, 1))), CONFIG, tmp_path, workers=1)


def test_a_set_of_nobody_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="noise"):
        prepare(people(Counted(0)), CONFIG, tmp_path, workers=1)


def test_an_interrupted_cache_leaves_nothing_and_the_next_start_makes_it(tmp_path: Path) -> None:
    images = Counted(5, stops_at=3)
    with pytest.raises(KeyboardInterrupt):
        prepare(people(images), CONFIG, tmp_path, workers=1)

    assert files(tmp_path) == []
    images.stops_at = None
    assert len(prepare(people(images), CONFIG, tmp_path, workers=1)) == 5


def test_a_finished_cache_is_two_files_and_nothing_temporary(tmp_path: Path) -> None:
    prepare(people(Counted(3, broken=(0,))), CONFIG, tmp_path, workers=2)

    assert [name.rsplit(".")[-1] for name in files(tmp_path)] == ["json", "npy"]
    assert not any(name.startswith(".") for name in files(tmp_path))


@pytest.mark.parametrize("kind", ["npy", "json"])
@pytest.mark.parametrize("damage", [b"", b"garbage", b"[]", None])
def test_a_damaged_cache_is_an_error_that_names_the_file(tmp_path: Path, kind: str, damage: bytes | None) -> None:
    data = people(Counted(3))
    prepare(data, CONFIG, tmp_path, workers=1)
    (path,) = tmp_path.glob(f"*.{kind}")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)

    with pytest.raises(DataError, match=path.name):
        prepare(data, CONFIG, tmp_path, workers=1)


def test_a_subset_keeps_pixels_and_people_together(tmp_path: Path) -> None:
    data = people(Counted(6, broken=(1,)))
    crops = prepare(data, CONFIG, tmp_path, workers=1)
    some = crops.subset([3, 0]).subset(np.array([1, 0]))

    assert some.data.ids == ("person-0", "person-4")
    np.testing.assert_array_equal(some.read(np.array([1]))[0], cut(data.image(4), CONFIG.crop_of(data.boxes_N4[4])))
    np.testing.assert_array_equal(some.joints_NJ2, crops.joints_NJ2[[0, 3]])
    np.testing.assert_array_equal(some.scale_N, crops.scale_N[[0, 3]])


def test_the_order_of_threads_does_not_matter(tmp_path: Path) -> None:
    data = people(Counted(12))
    one, many = (prepare(data, CONFIG, tmp_path / str(n), workers=n) for n in (1, 4))

    np.testing.assert_array_equal(one.read(np.arange(12)), many.read(np.arange(12)))


@pytest.mark.parametrize(
    "changes",
    [{"size_px": 7}, {"height_px": 9000}, {"size_px": 0}, {"fill": 256}, {"kind": "round"}, {"kind": "whole"},
     {"margin": 0.9}, {"margin": 5.0}, {"context": -0.1},
     {"context": 1.5}, {"margin": float("nan")}],
    ids=str,
)  # fmt: skip
def test_a_crop_that_cannot_be_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="crop"):
        CropConfig(**changes)


# --- crops of any shape and kind


def test_a_crop_that_is_not_square_has_context_on_every_side(tmp_path: Path) -> None:
    data, config = people(Counted(4)), CropConfig(size_px=48, height_px=64, context=0.25, fill=114)

    crops = prepare(data, config, tmp_path)

    assert crops.read(np.arange(4)).shape == (4, 64 + 32, 48 + 32, 3)
    for row in range(4):
        bare = config.rule.crop_of(data.boxes_N4[row])
        np.testing.assert_array_equal(crops.read_bare(np.array([row]))[0], cut(data.image(row), bare))
        np.testing.assert_array_equal(crops.joints_NJ2[row], bare.to_crop(data.joints_NJ2[row]))
    np.testing.assert_allclose(crops.side_N, 64 * crops.scale_N)


@pytest.mark.parametrize("kind", ["letterbox", "whole"])
def test_a_whole_frame_is_placed_by_its_size_also_from_the_cache(kind: Any, tmp_path: Path) -> None:
    images = Counted(3)
    data = people(images)
    config = CropConfig(size_px=32, height_px=48, context=0, kind=kind, fill=114)
    first = prepare(data, config, tmp_path)
    reads = len(images.reads)

    again = prepare(data, config, tmp_path)

    assert len(images.reads) == reads
    expected = config.rule.crop_of((0, 0, 1, 1), (40, 50))
    for crops in (first, again):
        np.testing.assert_array_equal(crops.read_bare(np.array([1]))[0], cut(data.image(1), expected))
        np.testing.assert_array_equal(crops.joints_NJ2[2], expected.to_crop(data.joints_NJ2[2]))
        # One crop pixel to the right, and one down, in pixels of the frame.
        steps = np.tile(np.eye(2, dtype=np.float32), (3, 1, 1))
        np.testing.assert_allclose(crops.distance(steps)[0], [expected.across.scale, expected.down.scale], rtol=1e-6)


@pytest.mark.parametrize("kind", ["letterbox", "whole"])
def test_of_several_people_on_a_picture_a_net_of_whole_frames_is_shown_each_by_themselves(
    kind: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a monitor shows them: the answer to the whole picture could be anybody's."""
    data = replace(people(Counted(4)), image_N=np.array([0, 2, 0, 1]))
    config = CropConfig(size_px=32, height_px=48, context=0, kind=kind, fill=114)
    alone = prepare(people(Counted(4)), config, tmp_path)
    with caplog.at_level(logging.INFO, "alpose"):
        crops = [prepare(data, config, tmp_path) for _ in range(2)][1]  # from the cache
    assert "2 of 4 people share a picture" in caplog.text
    for row in range(4):
        whole = config.rule.crop_of((0, 0, 1, 1), (40, 50))
        expected = config.rule.person_crop(data.boxes_N4[row]) if row in (0, 2) else whole
        np.testing.assert_array_equal(crops.read_bare(np.array([row]))[0], cut(data.image(row), expected))
        np.testing.assert_array_equal(crops.joints_NJ2[row], expected.to_crop(data.joints_NJ2[row]))
    assert (alone.read_bare(np.array([0])) != crops.read_bare(np.array([0]))).any(), "another cache"


def body(count: int) -> PoseData:
    """People who lie on their backs: hips to the left, shoulders to the right."""
    skeleton = Skeleton("body", ("l_hip", "r_hip", "l_shoulder", "r_shoulder"), (), ((0, 1), (2, 3)))
    joints_NJ2 = np.tile(np.array([[10, 20], [10, 24], [30, 20], [30, 24]], np.float32), (count, 1, 1))
    labelled_NJ = np.ones((count, 4), dtype=np.bool_)
    labelled_NJ[-1, 0] = False
    return people(Counted(count), skeleton=skeleton, joints_NJ2=joints_NJ2, labelled_NJ=labelled_NJ,
                  visible_NJ=labelled_NJ, boxes_N4=np.tile(np.array([8, 18, 32, 26], np.float32), (count, 1)))  # fmt: skip


def test_a_turned_crop_goes_by_the_labels_or_by_what_is_given(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, config = body(3), CropConfig(size_px=32, height_px=40, context=0.1, kind="turned")

    by_labels = prepare(data, config, tmp_path)
    given = prepare(data, config, tmp_path, turn_N=np.array([0.3, np.nan, 0.0], np.float32))

    assert "1 of 3 people are cut upright" in caplog.text
    hips, shoulders = by_labels.joints_NJ2[0, :2].mean(axis=0), by_labels.joints_NJ2[0, 2:].mean(axis=0)
    assert shoulders[0] == pytest.approx(hips[0], abs=1e-3)
    assert shoulders[1] < hips[1]
    assert [crop.turn for crop in by_labels.crop_N] == pytest.approx([np.pi / 2, np.pi / 2, 0])
    assert [crop.turn for crop in given.crop_N] == pytest.approx([0.3, 0, 0])
    for crops in (by_labels, given):
        for row in range(3):
            crop = replace(crops.crop_N[row], context_px=0)
            np.testing.assert_array_equal(crops.read_bare(np.array([row]))[0], cut(data.image(row), crop))
    assert len({path.name for path in tmp_path.glob("*.npy")}) == 2


def test_turned_crops_need_a_body(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="need hips and shoulders, and 'two' has none"):
        prepare(people(Counted(2)), CropConfig(size_px=32, kind="turned", context=0), tmp_path)


def test_the_crop_of_somebody_elses_net_follows_its_description() -> None:
    spec = PoseSpec(
        name="net",
        input=NetInput(name="x", height_px=256, width_px=192),
        crop=NetCrop(kind="box", margin=1.3, fill=114),
        decoder=NetDecoder(kind="heatmaps", outputs=("maps",)),
        skeleton=Skeleton("two", ("a", "b"), ((0, 1),), ()),
    )

    assert crop_config(spec, 0.25) == CropConfig(size_px=192, height_px=256, margin=1.3, fill=114, context=0.25)
    whole = replace(spec, crop=NetCrop(kind="letterbox", fill=114))
    assert crop_config(whole, 0.25) == CropConfig(
        size_px=192, height_px=256, margin=1.25, kind="letterbox", fill=114, context=0
    )


def test_the_name_of_an_old_cache_is_what_it_was(tmp_path: Path) -> None:
    """Fields that a crop got later change it only where they are stated: a data set is not cut anew by an update."""
    prepare(people(Counted(2)), CONFIG, tmp_path)

    made_of = [4, people(Counted(2)).pictures(), people(Counted(2)).boxes_N4.tolist(),
               {"size_px": 64, "margin": 1.25, "context": 0.25}]  # fmt: skip
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:20]
    assert f"crops-{key}.npy" in files(tmp_path)
