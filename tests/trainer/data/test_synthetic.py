"""The renderer of made-up people: same seed same pixels, labels on the limbs they name, hard harder than easy.

Shapes: N people, J joints, P points, H W picture.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import fields

import numpy as np
import numpy.typing as npt
import pytest

from alpose.runtime.errors import ConfigError
from alpose.runtime.skeleton import LSP
from alpose.trainer.data.records import Bools, Floats, PoseData
from alpose.trainer.data.synthetic import DOMAINS, SyntheticImages, paint_occluders, read_people, render
from alpose.trainer.data.synthetic_figure import LIMBS, PARTS, Look, figure, paint, paint_figure
from alpose.trainer.data.synthetic_pose import People, covered, sample_people

Pixels = npt.NDArray[np.uint8]

# A flat colour per part, far apart: what is painted at a point tells which part it is.
PART_COLOUR = {part: (10.0 + 12 * row, 250.0 - 12 * row, 30.0 + 90 * (row % 3)) for row, part in enumerate(PARTS)}
FLAT = Look(PART_COLOUR, np.zeros(2), shade=0.0)
INNER_LIMBS = tuple(name for name in LIMBS if name.endswith(("shin", "thigh", "arm")))


def digest(images: SyntheticImages, order: list[int]) -> str:
    pixels = {index: images.read(index).tobytes() for index in order}
    return hashlib.sha256(b"".join(pixels[index] for index in sorted(pixels))).hexdigest()


def sheet(people: People, row: int) -> Pixels:
    """The person alone, in flat colours, on black."""
    width, height = people.size_N2[row].tolist()
    picture_HW3 = np.zeros((height, width, 3), dtype=np.uint8)
    paint_figure(picture_HW3, figure(people, row), FLAT)
    return picture_HW3


def painted(people: People, row: int) -> Bools:
    return np.asarray(sheet(people, row).any(axis=2), dtype=np.bool_)


def part_at(picture_HW3: Pixels, point_2: npt.NDArray[np.floating]) -> str | None:
    x, y = np.rint(point_2).astype(int).tolist()
    if not (0 <= x < picture_HW3.shape[1] and 0 <= y < picture_HW3.shape[0]):
        return None
    names = [part for part, colour in PART_COLOUR.items() if np.abs(picture_HW3[y, x] - np.array(colour)).max() <= 1]
    return names[0] if names else None


def torso_N(data: PoseData) -> Bools:
    """Has a labelled torso diagonal."""
    right, left = LSP.index("right_shoulder"), LSP.index("left_shoulder")
    right_hip, left_hip = LSP.index("right_hip"), LSP.index("left_hip")
    shown_NJ = data.labelled_NJ
    return np.asarray((shown_NJ[:, right] & shown_NJ[:, left_hip]) | (shown_NJ[:, left] & shown_NJ[:, right_hip]))


@pytest.mark.parametrize("domain", DOMAINS)
def test_same_pixels_in_any_order_count_and_process(domain: str) -> None:
    expected = digest(SyntheticImages(3, 40, domain), [0, 7, 39])
    assert digest(SyntheticImages(3, 999, domain), [39, 0, 7]) == expected
    code = f"""
import hashlib
from alpose.trainer.data.synthetic import SyntheticImages
images = SyntheticImages(3, 40, {domain!r})
print(hashlib.sha256(b"".join(images.read(i).tobytes() for i in (0, 7, 39))).hexdigest())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_labels_of_a_person_do_not_depend_on_the_others() -> None:
    many, alone = sample_people(5, "hard", 0, 60), sample_people(5, "hard", 41, 1)
    for field in fields(People):
        if field.name != "occluders":
            np.testing.assert_allclose(getattr(many, field.name)[41:42], getattr(alone, field.name), rtol=1e-9)
    few, more = read_people(seed=5, count=10, domain="hard"), read_people(seed=5, count=20, domain="hard")
    np.testing.assert_array_equal(more.joints_NJ2[:10], few.joints_NJ2)
    assert more.ids[:10] == few.ids


def test_seed_index_and_domain_all_change_the_picture() -> None:
    pictures = [
        SyntheticImages(seed, 3, domain).read(index).tobytes()
        for seed in (0, 1) for domain in DOMAINS for index in (0, 1)
    ]  # fmt: skip
    assert len(set(pictures)) == 8


def test_backgrounds_differ_between_pictures() -> None:
    images = SyntheticImages(0, 12, "easy")
    corner_N3 = np.array([images.read(row)[:6, :6].mean(axis=(0, 1)) for row in range(12)])
    assert corner_N3.std(axis=0).min() > 15


def test_descriptions_and_fingerprints_differ_between_seeds_indices_and_domains() -> None:
    sets = [read_people(seed=seed, count=4, domain=domain) for seed in (0, 1) for domain in DOMAINS]
    assert len({data.images.describe(row) for data in sets for row in range(4)}) == 16
    assert len({data.fingerprint() for data in sets}) == 4
    assert sets[0].fingerprint() == read_people(seed=0, count=4, domain="easy").fingerprint()


def test_names_ids_and_sizes() -> None:
    data = read_people(seed=4, count=13, domain="hard")
    assert (data.name, data.skeleton, data.ids[12]) == ("synthetic-hard", LSP, "synthetic-hard/4-00012")
    shapes = np.array([data.image(row).shape for row in range(13)])
    assert data.image(0).dtype == np.uint8
    assert shapes[:, 0].min() >= 144
    assert shapes[:, :2].max() <= 200


@pytest.mark.parametrize("domain", DOMAINS)
def test_labelled_joints_lie_inside_and_boxes_around_them(domain: str) -> None:
    data = read_people(seed=2, count=2000, domain=domain)
    size_N2 = sample_people(2, domain, 0, 2000).size_N2
    in_NJ2 = (data.joints_NJ2 >= 0) & (data.joints_NJ2 <= size_N2[:, None] - 1)
    inside_NJ = np.asarray(in_NJ2.all(axis=2))
    assert inside_NJ[data.labelled_NJ].all()
    some_N = data.labelled_NJ.any(axis=1)
    assert some_N.mean() > 0.99
    box_N22 = data.boxes_N4[some_N].reshape(-1, 2, 2)
    joints_NJ2, labelled_NJ = data.joints_NJ2[some_N], data.labelled_NJ[some_N]
    within_NJ2 = (joints_NJ2 >= box_N22[:, None, 0]) & (joints_NJ2 <= box_N22[:, None, 1])
    assert within_NJ2[labelled_NJ].all()
    person_px_N = (box_N22[:, 1] - box_N22[:, 0]).max(axis=1)
    assert 110 <= np.median(person_px_N) <= 150


def test_joints_without_a_label_hold_garbage_as_in_lspet() -> None:
    data = read_people(seed=2, count=500, domain="hard")
    garbage_P2 = data.joints_NJ2[~data.labelled_NJ]
    assert (garbage_P2.max(axis=1) == 0).all()
    assert (garbage_P2.min(axis=1) < 0).any()


@pytest.mark.parametrize("domain", DOMAINS)
def test_limbs_are_painted_between_the_joints_that_name_them(domain: str) -> None:
    """The pixel in the middle of a limb is that limb, or a part nearer to the camera that covers it."""
    people = sample_people(6, domain, 0, 60)
    own = hits = wrong_side = 0
    for row in range(60):
        picture_HW3, points_P3 = sheet(people, row), figure(people, row).points_P3
        for name in INNER_LIMBS:
            start, end = LIMBS[name][:2]
            found = part_at(picture_HW3, (points_P3[start] + points_P3[end])[:2] / 2)
            if found is None:
                continue
            hits += 1
            own += found == name
            wrong_side += found.split("_")[-1] == name.split("_")[-1] and found[0] != name[0]
    assert hits > 350
    assert own > 0.75 * hits
    assert wrong_side < 0.05 * hits


def test_a_person_has_paint_at_every_joint_and_none_far_from_the_joints() -> None:
    people = sample_people(7, "easy", 0, 40)
    for row in range(40):
        painted_HW = painted(people, row)
        x_J, y_J = np.rint(people.joints_NJ3[row, :13, :2]).astype(int).T
        assert painted_HW[y_J, x_J].all()
        top_2 = people.joints_NJ3[row, 13, :2]
        y_P, x_P = np.nonzero(painted_HW)
        assert np.hypot(x_P - top_2[0], y_P - top_2[1]).min() < 2  # the head ends at head_top
        ends_P3 = figure(people, row).points_P3
        low_2, high_2 = ends_P3[:, :2].min(axis=0), ends_P3[:, :2].max(axis=0)
        slack = 0.08 * people.unit_N[row]
        assert (np.array([x_P.min(), y_P.min()]) > low_2 - slack).all()
        assert (np.array([x_P.max(), y_P.max()]) < high_2 + slack).all()


def edges(picture_HW: Floats) -> Floats:
    edge_HW = np.hypot(*np.gradient(picture_HW))
    return (edge_HW - edge_HW.mean()) / (edge_HW.std() + 1e-6)


def test_finished_pictures_match_the_labels_to_the_pixel() -> None:
    """Outlines of the labelled person correlate best with the edges of the picture without any shift."""
    people, images = sample_people(8, "easy", 0, 30), SyntheticImages(8, 30, "easy")
    shifts = [(0, 0), (2, 0), (-2, 0), (0, 2), (0, -2)]
    score = dict.fromkeys(shifts, 0.0)
    for row in range(30):
        outline_HW = edges(painted(people, row).astype(np.float32))
        seen_HW = edges(np.asarray(images.read(row).mean(axis=2), dtype=np.float32))
        for shift in shifts:
            score[shift] += float((np.roll(outline_HW, shift, axis=(0, 1)) * seen_HW).mean())
    assert max(score, key=lambda shift: score[shift]) == (0, 0)
    # Half a pixel of systematic offset would tilt the two sides of an axis.
    assert score[2, 0] == pytest.approx(score[-2, 0], rel=0.25)
    assert score[0, 2] == pytest.approx(score[0, -2], rel=0.25)


def test_left_is_anatomical_and_the_face_tells_which_side_it_is() -> None:
    """Facing us, the left shoulder is on the picture's right; the eyes are painted then and not from behind."""
    people = sample_people(9, "easy", 0, 200)
    chest_N, head_N = people.frames_NF33[:, 1, 2, 2], people.frames_NF33[:, 2, 2, 2]
    right, left = LSP.index("right_shoulder"), LSP.index("left_shoulder")
    across_N = people.joints_NJ3[:, left, 0] - people.joints_NJ3[:, right, 0]
    assert (across_N[chest_N > 0.5] > 0).all()
    assert (across_N[chest_N < -0.5] < 0).all()
    eyes = np.array(PART_COLOUR["eyes"])
    for row in np.flatnonzero(np.abs(head_N) > 0.6).tolist():
        has_eyes = (np.abs(sheet(people, row) - eyes).max(axis=2) <= 1).any()
        assert has_eyes == (head_N[row] > 0)
    assert 0.1 < (chest_N < 0).mean() < 0.5


def test_flip_order_turns_a_mirrored_person_into_a_plausible_one() -> None:
    """Mirrored and renamed, the sides lie as the flipped camera sees them; renaming alone or mirroring alone not."""
    people = sample_people(9, "easy", 0, 300)
    facing_N = people.frames_NF33[:, 0, 2, 2] > 0.3
    joints_NJ2 = people.joints_NJ3[facing_N][..., :2]
    mirrored_NJ2 = joints_NJ2 * [-1, 1]
    renamed_NJ2 = mirrored_NJ2[:, LSP.flip_order()]
    right, left = LSP.index("right_hip"), LSP.index("left_hip")
    assert (renamed_NJ2[:, left, 0] > renamed_NJ2[:, right, 0]).all()
    assert (mirrored_NJ2[:, left, 0] < mirrored_NJ2[:, right, 0]).all()


def test_occluders_are_painted_where_they_cover() -> None:
    differ = total = 0
    for index in range(40):
        people = sample_people(10, "hard", index, 1)
        width, height = people.size_N2[0].tolist()
        canvases = [np.full((height, width, 3), value, dtype=np.uint8) for value in (0, 255)]
        for canvas_HW3 in canvases:
            paint_occluders(canvas_HW3, people, 0, np.random.default_rng(0))
        painted_HW = (canvases[0] == canvases[1]).all(axis=2)
        y_HW, x_HW = np.indices((height, width))
        points_1P2 = np.stack([x_HW.ravel(), y_HW.ravel()], axis=1)[None].astype(np.float64)
        covered_P = covered(people.occluders, points_1P2)[0]
        differ += int((painted_HW.ravel() != covered_P).sum())
        total += int(covered_P.sum())
    assert total > 10000
    assert differ < 0.08 * total  # the smooth rim


def test_occluders_end_up_in_the_picture() -> None:
    calm = sample_people(10, "hard", 0, 8)
    calm.aspects_NA[:] = 0.0  # without blur, so that only pixels under an occluder change
    row = int(np.flatnonzero(calm.occluders.present_NM.any(axis=1))[0])
    with_HW3 = render(calm, row, np.random.default_rng(0), "easy")
    calm.occluders.present_NM[:] = False
    without_HW3 = render(calm, row, np.random.default_rng(0), "easy")
    assert (np.abs(with_HW3.astype(int) - without_HW3).max(axis=2) > 60).sum() > 50


def test_paint_puts_whole_coordinates_on_pixel_centres() -> None:
    picture_HW3 = np.zeros((40, 40, 3), dtype=np.uint8)
    square_P2 = np.array([20.0, 12.0]) + np.array([[-4.5, -4.5], [4.5, -4.5], [4.5, 4.5], [-4.5, 4.5]])
    paint(picture_HW3, square_P2, (255.0, 255.0, 255.0))
    weight_HW = picture_HW3[..., 0].astype(np.float64)
    y_HW, x_HW = np.indices(weight_HW.shape)
    centre = ((x_HW * weight_HW).sum() / weight_HW.sum(), (y_HW * weight_HW).sum() / weight_HW.sum())
    assert centre == pytest.approx((20.0, 12.0), abs=0.25)
    assert 8.5**2 < weight_HW.sum() / 255 < 11**2


def test_hard_is_harder_and_more_varied() -> None:
    easy, hard = (read_people(seed=0, count=3000, domain=domain) for domain in ("easy", "hard"))
    assert easy.labelled_NJ.all()
    assert 0.07 < 1 - hard.labelled_NJ.mean() < 0.13
    hidden = [(data.labelled_NJ & ~data.visible_NJ).mean() for data in (easy, hard)]
    assert hidden[1] > 5 * hidden[0] > 0
    for data in (easy, hard):
        assert torso_N(data).mean() >= 0.9
    spread = []
    for domain in DOMAINS:
        people = sample_people(0, domain, 0, 3000)
        hips_N2 = people.joints_NJ3[:, 2:4, :2].mean(axis=1)
        spread.append(
            ((people.joints_NJ3[..., :2] - hips_N2[:, None]) / people.unit_N[:, None, None]).std(axis=0).mean()
        )
    assert spread[1] > 1.5 * spread[0]
    level_N = sample_people(0, "hard", 0, 3000).aspects_NA.mean(axis=1)
    assert level_N.std() > 0.15
    upside_down_N = hard.joints_NJ2[:, 13, 1] > hard.joints_NJ2[:, [2, 3], 1].max(axis=1)
    known_N = hard.labelled_NJ[:, [2, 3, 13]].all(axis=1)
    assert upside_down_N[known_N].mean() > 0.05


@pytest.mark.parametrize(("seed", "count", "domain"), [(0, 3, "medium"), (-1, 3, "easy"), (0, -1, "hard")])
def test_options_that_make_no_sense(seed: int, count: int, domain: str) -> None:
    with pytest.raises(ConfigError):
        read_people(seed=seed, count=count, domain=domain)


def test_pictures_beyond_the_count() -> None:
    with pytest.raises(IndexError):
        SyntheticImages(0, 3, "easy").read(3)


def test_nobody() -> None:
    assert len(read_people(count=0)) == 0
