"""The tracker is told poses that a person would have: joints on a grid in their box, or a net's guesses at furniture.

Shapes: J joints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime.crop import square_crop
from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.locate.search import Box, Movement, search_windows
from alpose.runtime.locate.tracking import (
    FixedRegion,
    Place,
    TrackConfig,
    Tracker,
    TrackState,
    WholeFrame,
    largest,
    pose_box,
    pose_confidence,
    typical_confidence,
)

WIDTH, HEIGHT, MARGIN, JOINTS = 768, 432, 1.25, 14
PERSON: Box = (380.0, 40.0, 520.0, 380.0)

Floats = npt.NDArray[np.float32]


def joints_in(box_4: Box) -> Floats:
    """Two columns of joints, from corner to corner."""
    x0, y0, x1, y1 = box_4
    rows = np.linspace(y0, y1, JOINTS // 2)
    return np.array([(x, y) for y in rows for x in (x0, x1)], dtype=np.float32)


@dataclass
class Room:
    """What a net sees: the person where the crop holds them at a good scale, furniture otherwise."""

    person: Box | None = PERSON
    sure: float = 0.8
    furniture: float = 0.3

    def look(self, place: Place) -> tuple[Floats, Floats]:
        crop = square_crop(place.box_4, margin=MARGIN, size_px=128)
        if self.person is not None:
            x0, y0, x1, y1 = self.person
            covers = crop.x0 <= x0 and crop.y0 <= y0 and crop.x0 + crop.width >= x1 and crop.y0 + crop.width >= y1
            if covers and crop.width <= 2.5 * max(x1 - x0, y1 - y0):
                return joints_in(self.person), np.full(JOINTS, self.sure, np.float32)
        third = crop.width / 3
        corner = (crop.x0 + third, crop.y0 + third, crop.x0 + 2 * third, crop.y0 + 2 * third)
        return joints_in(corner), np.full(JOINTS, self.furniture, np.float32)


def step(track: Tracker, room: Room) -> Place:
    place = track.locate(WIDTH, HEIGHT)
    track.update(*room.look(place), place, WIDTH, HEIGHT)
    return place


def watch(track: Tracker, room: Room, frames: int) -> list[str]:
    return [step(track, room).source for _ in range(frames)]


def iou(one: Box, other: Box) -> float:
    across = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    down = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return across * down / (sum(areas) - across * down)


def test_the_whole_frame_is_cut_by_its_longer_side() -> None:
    for width, height in ((640, 480), (480, 640), (100, 100)):
        place = WholeFrame(MARGIN).locate(width, height)
        crop = square_crop(place.box_4, margin=MARGIN, size_px=64)
        side = max(width, height)

        assert place.source == "whole"
        assert crop.width == pytest.approx(side)
        assert (crop.x0, crop.y0) == pytest.approx(((width - side) / 2 - 0.5, (height - side) / 2 - 0.5))


def test_a_region_is_looked_at_whatever_is_seen() -> None:
    region = FixedRegion((10, 20, 200, 300))
    for _ in range(3):
        place = region.locate(640, 480)
        assert place == Place((10, 20, 200, 300), "roi")
        region.update(*Room().look(place), place, 640, 480)


@pytest.mark.parametrize(
    "roi", [(10, 10, 10, 20), (10, 20, 20, 10), (0, 0, math.nan, 4), (0, 0, math.inf, 4), (1, 2, 3), (0, 0, 1e9, 5)]
)
def test_a_region_that_is_none_is_an_error(roi: Box) -> None:
    with pytest.raises(ConfigError, match="roi"):
        FixedRegion(roi)


def test_a_region_outside_the_frame_is_an_error_and_one_that_overlaps_is_not() -> None:
    with pytest.raises(ConfigError, match="outside the frame of 640 x 480"):
        FixedRegion((700, 10, 800, 100)).locate(640, 480)
    assert FixedRegion((600, 400, 800, 600)).locate(640, 480).source == "roi"


def test_sureness_is_of_the_better_half() -> None:
    assert pose_confidence(np.array([0.9, 0.1, 0.7, 0.0])) == pytest.approx(0.8)
    assert pose_confidence(np.array([0.9, 0.3, 0.6])) == pytest.approx(0.75)
    assert pose_confidence(np.array([0.9, math.nan, 0.7, 0.0])) == 0.0
    assert pose_confidence(np.array([0.9, math.inf])) == 0.0


def test_the_typical_confidence_is_that_of_most_golden_frames() -> None:
    assert typical_confidence(np.array([[0.9, 0.1], [0.7, 0.6], [0.1, 0.1]])) == pytest.approx(0.7)
    assert typical_confidence(np.zeros((2, 4))) > 0


@pytest.mark.parametrize(("width", "height"), [(768, 432), (640, 480), (480, 640), (1920, 1080), (500, 500), (300, 40)])
def test_the_windows_cover_the_frame_and_overlap_by_half(width: int, height: int) -> None:
    whole, *inner = search_windows(width, height, (1.0, 0.67), MARGIN)
    side = max(width, height)

    assert square_crop(whole, margin=MARGIN, size_px=64).width == pytest.approx(side)
    for share in (1.0, 0.67):
        squares = [square_crop(box, margin=MARGIN, size_px=64) for box in inner]
        squares = [square for square in squares if square.width == pytest.approx(share * min(width, height))]
        assert squares
        for start, length in (("x0", width), ("y0", height)):
            starts = sorted({round(getattr(square, start), 6) for square in squares})
            assert starts[0] == pytest.approx(-0.5)
            assert starts[-1] + squares[0].width == pytest.approx(length - 0.5)
            assert (np.diff(starts) <= squares[0].width / 2 + 1e-6).all()


def test_a_search_over_a_wide_frame_takes_about_a_second() -> None:
    assert len(search_windows(1920, 1080, TrackConfig().windows, MARGIN)) <= 16


def test_an_empty_room_is_searched_in_turn() -> None:
    track, room = Tracker(margin=MARGIN), Room(person=None)
    windows = search_windows(WIDTH, HEIGHT, track.config.windows, MARGIN)

    places = [step(track, room) for _ in range(2 * len(windows))]

    assert {place.source for place in places} == {"search"}
    assert [place.box_4 for place in places] == windows * 2


def test_a_person_is_found_within_one_round_and_followed() -> None:
    track, room = Tracker(margin=MARGIN), Room()
    windows = search_windows(WIDTH, HEIGHT, track.config.windows, MARGIN)

    sources = watch(track, room, len(windows) + 20)

    first = sources.index("track")
    assert first <= len(windows)
    assert set(sources[first:]) == {"track"}
    assert iou(track.locate(WIDTH, HEIGHT).box_4, PERSON) > 0.99


def test_a_walking_person_is_followed() -> None:
    track = Tracker(margin=MARGIN)
    watch(track, Room(), 20)
    for frame in range(1, 41):
        x0, y0, x1, y1 = PERSON
        person = (x0 - 6.0 * frame, y0, x1 - 6.0 * frame, y1)
        place = step(track, Room(person))
        assert place.source == "track"
        assert iou(place.box_4, person) > 0.6


def test_a_person_who_leaves_is_lost_and_the_next_one_found() -> None:
    track, empty = Tracker(margin=MARGIN), Room(person=None)
    watch(track, Room(), 20)

    left = watch(track, empty, 30)
    found = watch(track, Room((60.0, 30.0, 180.0, 350.0)), 20)

    patience = int(track.config.patience)
    assert left == ["track"] * patience + ["search"] * (30 - patience)
    assert found[-1] == "track"
    assert iou(track.locate(WIDTH, HEIGHT).box_4, (60.0, 30.0, 180.0, 350.0)) > 0.9


def test_a_blink_does_not_lose_the_person_and_widens_the_box_until_they_are_seen_again() -> None:
    track, empty = Tracker(margin=MARGIN), Room(person=None)
    watch(track, Room(), 20)
    before = track.locate(WIDTH, HEIGHT).box_4

    watch(track, empty, 3)
    wider = track.locate(WIDTH, HEIGHT).box_4
    sources = watch(track, Room(), 12)

    assert wider[2] - wider[0] == pytest.approx(1.3 * (before[2] - before[0]))
    assert set(sources) == {"track"}
    assert iou(track.locate(WIDTH, HEIGHT).box_4, PERSON) > 0.9


def test_furniture_that_nobody_would_be_sure_of_is_not_found() -> None:
    config = TrackConfig()

    sources = watch(Tracker(margin=MARGIN), Room(person=None, furniture=config.find - 0.01), 60)

    assert set(sources) == {"search"}


def test_furniture_that_is_taken_for_the_person_who_left_is_let_go() -> None:
    """The pose on it is between ``keep`` and ``find``."""
    track = Tracker(margin=MARGIN)
    watch(track, Room(), 20)

    sources = watch(track, Room(person=None, furniture=0.5), 60)

    limit = math.ceil(track.config.patience / track.config.doubt)
    assert sources.count("track") == limit
    assert set(sources[limit:]) == {"search"}


def test_the_limits_are_relative_to_what_is_usual_for_the_net() -> None:
    modest = Room(sure=0.3, furniture=0.1)

    assert set(watch(Tracker(margin=MARGIN), modest, 30)) == {"search"}
    assert "track" in watch(Tracker(margin=MARGIN, typical=0.35), modest, 30)


def test_the_box_grows_faster_than_it_shrinks() -> None:
    config, box = TrackConfig(), (300.0, 100.0, 400.0, 300.0)
    wide, narrow = (280.0, 80.0, 420.0, 320.0), (320.0, 120.0, 380.0, 280.0)
    moved = []
    for seen in (wide, narrow):
        track = Tracker(margin=MARGIN, config=config)
        track.state = TrackState(box)
        track.update(joints_in(seen), np.full(JOINTS, 0.9, np.float32), Place(box, "track"), WIDTH, HEIGHT)
        moved.append(track.state.box_4)

    assert moved[0] == pytest.approx((300 - 12, 100 - 12, 400 + 12, 300 + 12))
    assert moved[1] == pytest.approx((300 + 6, 100 + 6, 400 - 6, 300 - 6))


def test_a_person_of_whom_only_the_upper_half_is_sure_keeps_their_box() -> None:
    track = Tracker(margin=MARGIN)
    track.state = TrackState(PERSON)
    scores_J = np.where(np.arange(JOINTS) < JOINTS // 2, 0.9, 0.05).astype(np.float32)

    for _ in range(10):
        place = track.locate(WIDTH, HEIGHT)
        track.update(joints_in(PERSON), scores_J, place, WIDTH, HEIGHT)

    assert track.state.missed == 0
    height = place.box_4[3] - place.box_4[1]
    assert 0.65 * (PERSON[3] - PERSON[1]) < height < PERSON[3] - PERSON[1]


def test_a_box_of_the_app_is_believed_and_then_followed() -> None:
    track = Tracker(margin=MARGIN)
    unsure = np.full(JOINTS, 0.1, np.float32)

    track.update(joints_in(PERSON), unsure, Place(PERSON, "box"), WIDTH, HEIGHT)
    assert track.locate(WIDTH, HEIGHT) == Place(PERSON, "track")

    sure = np.full(JOINTS, 0.9, np.float32)
    elsewhere = (50.0, 60.0, 150.0, 300.0)
    track.update(joints_in(elsewhere), sure, Place((40.0, 50.0, 160.0, 310.0), "box"), WIDTH, HEIGHT)
    assert track.locate(WIDTH, HEIGHT) == Place(elsewhere, "track")


def test_joints_beyond_the_frame_are_clamped_to_it() -> None:
    box = pose_box(joints_in((-50.0, -20.0, 900.0, 300.0)), np.full(JOINTS, 0.9, np.float32), 0.3, WIDTH, HEIGHT)

    assert box == (0.0, 0.0, WIDTH - 1.0, 300.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_pose_of_no_numbers_is_nobody(value: float) -> None:
    broken = np.full((JOINTS, 2), value, np.float32)
    sure = np.full(JOINTS, 0.9, np.float32)

    assert pose_box(broken, sure, 0.3, WIDTH, HEIGHT) is None
    assert pose_box(np.full((JOINTS, 2), 100.0, np.float32), sure, 0.3, WIDTH, HEIGHT) is None


@given(data=st.data(), width=st.integers(1, 900), height=st.integers(1, 900))
@settings(deadline=None, max_examples=150)
def test_whatever_a_net_says_the_next_place_can_be_cut(data: st.DataObject, width: int, height: int) -> None:
    """Any numbers, NaN and infinity included; frames that change their size on the way; boxes from nowhere."""
    number = st.floats(width=32)
    track = Tracker(margin=MARGIN)
    for _ in range(4):
        place = track.locate(width, height)
        if data.draw(st.booleans()):
            place = replace(
                place, box_4=data.draw(st.sampled_from([(-900.0, -900.0, -800.0, -700.0), PERSON])), source="box"
            )
        keypoints = np.array(data.draw(st.lists(st.tuples(number, number), min_size=4, max_size=4)), dtype=np.float32)
        scores = np.array(data.draw(st.lists(number | st.floats(0, 1, width=32), min_size=4, max_size=4)), np.float32)
        track.update(keypoints, scores, place, width, height)
        width, height = data.draw(st.sampled_from([(width, height), (height, width), (64, 48)]))
        square_crop(track.locate(width, height).box_4, margin=MARGIN, size_px=64)


@pytest.mark.parametrize(
    "change",
    [{"find": 0.0}, {"keep": 0.9}, {"patience": 0.5}, {"windows": (1.5,)}, {"grow": math.nan}, {"wider": -1.0}],
)
def test_limits_that_make_no_sense_are_an_error(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="track"):
        TrackConfig(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(("margin", "usual"), [(0.5, 1.0), (1.25, 0.0), (1.25, math.nan), (math.nan, 1.0)])
def test_a_track_of_no_margin_is_an_error(margin: float, usual: float) -> None:
    with pytest.raises(ConfigError, match="track"):
        Tracker(margin=margin, typical=usual)


# --- proposals and doubts


def test_a_proposal_is_searched_in_turn_with_the_windows() -> None:
    track, windows = Tracker(margin=MARGIN), search_windows(WIDTH, HEIGHT, TrackConfig().windows, MARGIN)
    elsewhere = (10.0, 10.0, 100.0, 300.0)
    places = []
    for proposal in (PERSON, elsewhere, PERSON, elsewhere):
        place = track.locate(WIDTH, HEIGHT, proposal)
        track.update(*Room(person=None).look(place), place, WIDTH, HEIGHT)
        places.append(place)

    assert [place.box_4 for place in places] == [PERSON, windows[0], PERSON, windows[1]]
    assert {place.source for place in places} == {"search"}


def test_a_pose_that_the_net_takes_for_wrong_is_not_followed_for_long() -> None:
    track = Tracker(margin=MARGIN)
    track.state = TrackState(PERSON)
    for _ in range(math.ceil(track.config.patience / track.config.doubt)):
        place = track.locate(WIDTH, HEIGHT)
        assert place.source == "track"
        track.update(*Room().look(place), place, WIDTH, HEIGHT, 0.95)

    assert track.locate(WIDTH, HEIGHT).source == "search"


def test_where_somebody_moves_is_looked_at_however_wrong_every_pose_is() -> None:
    track, empty = Tracker(margin=MARGIN), Room(person=None)
    places = []
    for _ in range(60):
        place = track.locate(WIDTH, HEIGHT, PERSON)
        occupied = track.update(*empty.look(place), place, WIDTH, HEIGHT, 0.95)
        assert occupied == (place.source == "motion")
        places.append(place)

    assert [place.source for place in places[: track.config.steady]] == ["search", "search", "motion"]
    assert all(place.source == "motion" for place in places[track.config.steady :])
    assert sum(place.box_4 == PERSON for place in places[track.config.steady :]) > 0.6 * len(places)


def test_a_believed_pose_goes_before_movement_and_a_doubted_one_behind() -> None:
    track = Tracker(margin=MARGIN)
    wide = (PERSON[0] - 40, PERSON[1], PERSON[2] + 40, PERSON[3])
    sources = []
    for probability in [0.1] * 10 + [0.95] * 3:
        place = track.locate(WIDTH, HEIGHT, wide)
        track.update(*Room().look(place), place, WIDTH, HEIGHT, probability)
        sources.append(place.source)

    assert set(sources[3:10]) == {"track"}
    assert sources[11:] == ["motion", "motion"]


def test_a_proposal_that_jumps_about_is_nobody_yet() -> None:
    track, empty = Tracker(margin=MARGIN), Room(person=None)
    for number in range(20):
        place = track.locate(WIDTH, HEIGHT, (0.0, 0.0, 60.0, 200.0) if number % 2 else PERSON)
        track.update(*empty.look(place), place, WIDTH, HEIGHT)
        assert place.source == "search"


def test_a_search_takes_the_least_doubtful_pose_of_its_round() -> None:
    track = Tracker(margin=MARGIN)
    windows = search_windows(WIDTH, HEIGHT, track.config.windows, MARGIN)
    scores_J = np.full(JOINTS, 0.8, np.float32)
    for number in range(len(windows)):
        assert track.searching
        place = track.locate(WIDTH, HEIGHT)
        at = (50.0 * number, 20.0, 50.0 * number + 40, 120.0)
        track.update(joints_in(at), scores_J, place, WIDTH, HEIGHT, 0.6 if number == 2 else 0.75)

    assert iou(track.locate(WIDTH, HEIGHT).box_4, (100.0, 20.0, 140.0, 120.0)) > 0.99


def test_where_something_moves_and_no_pose_is_believed_a_larger_box_is_looked_at_now_and_then() -> None:
    track, legs = Tracker(margin=MARGIN), (380.0, 200.0, 520.0, 380.0)  # of somebody whose shirt is like the wall
    longer = []
    for _ in range(30):
        place = track.locate(WIDTH, HEIGHT, legs)
        if place.source == "motion":
            longer.append((place.box_4[3] - place.box_4[1]) / 180)
        found = iou(place.box_4, legs) < 0.9 and place.source == "motion"
        believed = joints_in(PERSON), np.full(JOINTS, 0.9, np.float32), 0.6
        doubted = joints_in(legs), np.full(JOINTS, 0.2, np.float32), 0.95
        joints_J2, scores_J, probability = believed if found else doubted
        track.update(joints_J2, scores_J, place, WIDTH, HEIGHT, probability)
    assert max(longer) == pytest.approx(1.33, abs=0.02)
    assert 1 / 5 < np.mean(np.array(longer) > 1.1) < 1 / 2.5  # a pose in it is believed only where it is sure
    track = Tracker(margin=MARGIN)
    for _ in range(30):
        place = track.locate(WIDTH, HEIGHT, legs)
        found = iou(place.box_4, legs) < 0.9 and place.source == "motion"
        joints_J2 = joints_in(PERSON) if found or place.source == "track" else joints_in(legs)
        sure = found or place.source == "track"
        track.update(
            joints_J2, np.full(JOINTS, 0.9 if sure else 0.2, np.float32), place, WIDTH, HEIGHT, 0.2 if sure else 0.95
        )
    assert place.source == "track"
    assert iou(place.box_4, PERSON) > 0.8


def test_a_round_in_which_every_pose_is_wrong_finds_nobody() -> None:
    track = Tracker(margin=MARGIN)
    for _ in range(40):
        place = track.locate(WIDTH, HEIGHT)
        assert not track.update(*Room().look(place), place, WIDTH, HEIGHT, 0.9)


def picture(person: Box | None, light: int = 0, shift: int = 0) -> npt.NDArray[np.uint8]:
    """A room of 96 x 54, with somebody in it."""
    room = np.tile(np.linspace(60, 160, 96).astype(int), (54, 1))
    room = np.roll(room + light, shift, axis=1)
    if person is not None:
        x0, y0, x1, y1 = (int(value) for value in person)
        room[y0:y1, x0:x1] = 20
    noise = np.random.default_rng(0).integers(-4, 5, room.shape)
    return np.clip(room + noise, 0, 255).astype(np.uint8)


def test_somebody_who_comes_in_is_where_the_picture_changes() -> None:
    movement, person = Movement(), (40.0, 10.0, 56.0, 50.0)
    assert all(movement(picture(None)) is None for _ in range(10))
    for _ in range(300):  # they stand still, and stay visible
        found = movement(picture(person))
        assert found is not None
        assert iou(found, person) > 0.8
    assert movement(picture(None)) is None, "they have left, and left nothing behind"


def test_light_and_a_camera_that_moves_are_not_somebody() -> None:
    movement = Movement()
    movement(picture(None))
    assert all(movement(picture(None, light=step)) is None for step in range(0, 60, 10))
    assert movement(picture(None, shift=48)) is None
    assert movement(picture(None, shift=48)) is None


def texture(seed: int = 0) -> npt.NDArray[np.uint8]:
    """A room of many edges, wider than the picture."""
    coarse = np.random.default_rng(seed).integers(40, 220, (20, 40)).astype(np.uint8)
    return np.kron(coarse, np.ones((4, 4), np.uint8))[:72, :140]


def test_before_a_camera_that_goes_on_moving_nothing_moves_until_it_is_still() -> None:
    movement, room = Movement(), texture()
    views = [room[:, round(place) : round(place) + 96] for place in (*np.linspace(0, 30, 60), *np.full(30, 30.0))]
    assert [movement(view) for view in views] == [None] * len(views)
    with_somebody = views[-1].copy()
    with_somebody[10:60, 40:56] = 5
    assert any(movement(with_somebody) is not None for _ in range(Movement.HOLD + 2)), "it is still again"


@pytest.mark.parametrize(("factor", "somebody"), [(0.6, False), (0.8, False), (0.2, True), (1.6, True)])
def test_a_shadow_darkens_all_by_one_factor_and_is_nobody(factor: float, somebody: bool) -> None:
    movement, room = Movement(), texture()[:, :96].clip(60, 150)
    assert movement(room) is None
    shaded = room.astype(np.float32)
    shaded[40:66, 30:60] *= factor
    assert (movement(shaded.astype(np.uint8)) is not None) is somebody


def test_a_person_in_their_own_shadow_is_somebody() -> None:
    movement, room = Movement(), texture()[:, :96].clip(60, 150)
    movement(room)
    shaded = room.astype(np.float32)
    shaded[50:60, 30:60] *= 0.6
    shaded[12:50, 40:52] = np.array([200.0, 30.0])[(np.arange(38) > 12).astype(int)][
        :, None
    ]  # a bright shirt, dark trousers
    found = movement(shaded.astype(np.uint8))
    assert found is not None
    assert iou(found, (30.0, 12.0, 59.0, 59.0)) > 0.5


@pytest.mark.parametrize(
    ("boxes", "wanted"),
    [(None, None), ([], None), ([[0, 0, 10, 10], [5, 5, 40, 50]], (5, 5, 40, 50)), ((1, 2, 3, 4), (1, 2, 3, 4)),
     ([[1, 2, 3, 4, 0.9]], (1, 2, 3, 4))],
)  # fmt: skip
def test_the_largest_box_of_a_detector_is_proposed(boxes: object, wanted: Box | None) -> None:
    assert largest(boxes) == wanted


@pytest.mark.parametrize("boxes", [[[1, 2, 3]], ["a"], [[3, 2, 1, 4]], [[0, 0, math.nan, 4]]])
def test_what_is_not_a_box_is_an_error(boxes: object) -> None:
    with pytest.raises(DataError, match="people are boxes"):
        largest(boxes)


def test_a_box_of_nan_is_an_error_where_it_is_cut() -> None:
    with pytest.raises(DataError, match="box"):
        square_crop((0.0, math.nan, 5.0, 5.0), margin=MARGIN, size_px=64)
