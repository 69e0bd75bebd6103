"""Several people on a frame: their boxes, their names, and one verdict for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime import Monitor
from alpose.runtime.crop import CropRule, cut
from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.locate.people import (
    MOST_KNOWN,
    MOST_PEOPLE,
    People,
    PeopleConfig,
    believed,
    match,
    overlaps,
    read_boxes,
)
from alpose.runtime.queue import Queue
from alpose.runtime.telemetry.counters import Count
from alpose.runtime.triggers import Budget, Cooldown, Episodes, Threshold, Trigger

from ..fakes import dots

RULE = CropRule(width_px=48, height_px=64)


def box(x: float, y: float = 50.0, side: float = 40.0) -> list[float]:
    return [x, y, x + side, y + 2 * side]


def names(people: People, *boxes: list[float], scores: list[float] | None = None) -> dict[str, int]:
    """Row by name."""
    seen = people.see(np.array(boxes).reshape(-1, 4), None if scores is None else np.array(scores))
    return dict(zip(seen.names, seen.rows, strict=True))


# --- names


def test_a_box_goes_on_with_whom_it_overlaps_whatever_its_row() -> None:
    people = People()

    assert names(people, box(0), box(100)) == {"person-1": 0, "person-2": 1}
    assert names(people, box(104), box(200), box(3)) == {"person-1": 2, "person-2": 0, "person-3": 1}


def test_two_who_walk_past_each_other_keep_their_names() -> None:
    people, right, left = People(), 0.0, 200.0
    for _ in range(40):
        found = names(people, box(right), box(left))
        assert found == {"person-1": 0, "person-2": 1}
        right, left = right + 8, left - 8


def test_a_name_is_kept_for_a_while_and_then_it_is_free() -> None:
    people = People(PeopleConfig(patience=3))
    names(people, box(0), box(100))

    for _ in range(3):
        assert names(people, box(100)) == {"person-2": 0}
    assert names(people, box(0), box(100)) == {"person-1": 0, "person-2": 1}
    for _ in range(3):
        assert not people.see(np.array([box(100)])).gone
    assert people.see(np.array([box(100)])).gone == ("person-1",)
    assert names(people, box(100), box(220)) == {"person-2": 0, "person-1": 1}


def test_a_middling_score_carries_a_person_on_and_makes_no_new_one() -> None:
    people = People()

    assert names(people, box(0), box(100), scores=[0.9, 0.4]) == {"person-1": 0}
    assert names(people, box(2), box(100), scores=[0.35, 0.4]) == {"person-1": 0}
    assert names(people, box(2), scores=[0.2]) == {}
    assert names(people, box(2), scores=[0.35]) == {"person-1": 0}


boxes = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=6, unique=True).map(
    lambda places: [box(17.0 * x, 17.0 * y) for x, y in places]
)


@given(frames=st.lists(boxes, max_size=6), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_every_box_has_one_name_whatever_their_order(frames: list[list[list[float]]], seed: int) -> None:
    """A name is nobody else's, and shuffled boxes are still the same people where no two overlap a person alike."""
    rng, one, other = np.random.default_rng(seed), People(), People()
    for found in frames:
        seen = one.see(np.array(found).reshape(-1, 4))
        assert seen.rows == tuple(range(len(found)))
        assert len(set(seen.names)) == len(found)
        shuffled = rng.permutation(len(found))
        other.see(np.array(found).reshape(-1, 4)[shuffled])
        assert len(one.known) == len(other.known)


def test_names_stay_few_however_wild_a_detector_is() -> None:
    people, rng, seen = People(), np.random.default_rng(0), set()
    for _ in range(50):
        corner_N2 = rng.uniform(0, 1e5, (MOST_PEOPLE, 2))
        seen |= set(people.see(np.hstack([corner_N2, corner_N2 + 30])).names)
        assert len(people.known) <= MOST_KNOWN
    assert len(seen) <= MOST_KNOWN


def test_overlaps_by_hand() -> None:
    one, other = np.array([[0, 0, 10, 10], [5, 0, 15, 10]]), np.array([[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 0, 0]])

    expected = np.array([[1, 0, 0], [1 / 3, 0, 0]])
    np.testing.assert_allclose(overlaps(one, other), expected)


def test_matching_takes_the_most_alike_first() -> None:
    assert match(np.array([[0.9, 0.8], [0.85, 0.1]]), 0.3) == [(0, 0)]
    assert match(np.array([[0.5, 0.8], [0.4, 0.1]]), 0.3) == [(0, 1), (1, 0)]
    assert match(np.empty((0, 3)), 0.3) == []


@pytest.mark.parametrize(
    ("given", "count", "scores"),
    [
        (None, 0, None),
        ([], 0, None),
        (np.empty((0, 5)), 0, None),
        ([[0, 0, 5, 5]], 1, None),
        (np.array([[0, 0, 5, 5, 0.5]]), 1, [0.5]),
        ((np.array([[0, 0, 5, 5]]), [0.7]), 1, [0.7]),
        ((np.empty((0, 4)), np.empty(0)), 0, None),
        ((0, 0, 5, 5), 1, None),
        (((0, 0, 5, 5), (1, 1, 6, 6)), 2, None),
    ],
)
def test_what_detectors_give_is_read(given: Any, count: int, scores: list[float] | None) -> None:
    boxes_N4, scores_N = read_boxes(given)

    assert boxes_N4.shape == (count, 4)
    assert (None if scores_N is None else scores_N.tolist()) == scores


@pytest.mark.parametrize(
    "given",
    [[[0, 0, 5]], "people", [[5, 0, 0, 5]], [[0, 0, np.nan, 5]], ([[0, 0, 5, 5]], [0.5, 0.6]), np.zeros((2, 7)), 3],
)
def test_what_is_no_box_is_an_error(given: Any) -> None:
    with pytest.raises(DataError, match="people are boxes"):
        read_boxes(given)


# --- a Monitor


def dropped(reason: str) -> Count:
    return Count("dropped_boxes_total", (("reason", reason),))


STANDING = [((60.0, 140.0), (60.0, 100.0)), ((200.0, 150.0), (200.0, 90.0))]


def around(person: Any, reach: float = 25.0) -> list[float]:
    (x0, y0), (x1, y1) = person
    return [min(x0, x1) - reach, min(y0, y1) - reach, max(x0, x1) + reach, max(y0, y1) + reach]


def test_everybody_on_a_frame_has_a_verdict_and_a_name(tmp_path: Path) -> None:
    folder, net = dots.write_bundle(tmp_path / "driver.alpose", RULE)
    frame = dots.frame_with(STANDING)

    with Monitor(folder, engine=net) as monitor:
        first = monitor.people(frame, [around(person) for person in STANDING])
        second = monitor.people(frame, [around(person) for person in STANDING[::-1]])
        stats = monitor.stats()

    assert [verdict.stream for verdict in first] == ["person-1", "person-2"]
    assert [verdict.stream for verdict in second] == ["person-2", "person-1"]
    for verdict, person in zip(first, STANDING, strict=True):
        np.testing.assert_allclose(verdict.keypoints[::2], person, atol=1.0)
    assert sum(stats.frames.values()) == 2
    assert len(net.crops) == 4


def test_a_detector_is_asked_for_every_frame_and_an_empty_room_counts_as_a_frame(tmp_path: Path) -> None:
    folder, net = dots.write_bundle(tmp_path / "driver.alpose", RULE)
    found: list[Any] = [
        np.array([[*around(STANDING[0]), 0.9], [*around(STANDING[1]), 0.35]]),
        [],
        (np.array([around(STANDING[0])]), np.array([0.4])),
        [[1000, 1000, 1100, 1100]],
    ]
    asked = iter(found)

    with Monitor(folder, engine=net, detect=lambda frame: next(asked)) as monitor:
        seen = [[verdict.stream for verdict in monitor.people(dots.frame_with(STANDING))] for _ in found]
        assert monitor.people(dots.frame_with(STANDING)) == []  # its StopIteration is counted
        counts = monitor.stats().counts

    assert seen == [["person-1"], [], ["person-1"], []]
    assert counts[dropped("score")] == 1
    assert counts[dropped("outside")] == 1
    assert counts[Count("internal_errors_total", (("where", "detect"),))] == 1
    assert counts[Count("unoccupied_frames_total")] == 3
    assert sum(n for (name, _), n in counts.items() if name == "frames_total") == 5


NAN, INF = float("nan"), float("inf")
BAD_BOXES: dict[str, list[tuple[float, ...]]] = {
    "not_finite": [(NAN, 0, 9, 9, 0.9), (0, 0, INF, 9, 0.9), (-INF, 0, 9, 9, 0.9), (0, 0, 50, 50, NAN), (0, 0, 50, 50, INF)],
    "empty": [(50, 10, 40, 90, 0.9), (10, 90, 40, 20, 0.9), (10, 10, 10, 50, 0.9), (7, 7, 7, 7, 0.9)],
    "outside": [(400, 10, 450, 50, 0.9), (10, -90, 50, -10, 0.9), (10, 10, 2.0**21, 50, 0.9), (-1e300, -1e300, 1e300, 1e300, 0.9)],
    "score": [(10, 10, 40, 90, 0.1), (10, 10, 40, 90, -5.0)],
}  # fmt: skip
"""Boxes with scores of a detector on a frame of 320 x 240, in none of which anybody is looked for, by why."""


@pytest.mark.parametrize(("reason", "bad"), [(reason, each) for reason, all_ in BAD_BOXES.items() for each in all_])
def test_a_bad_box_of_a_detector_is_dropped_alone(reason: str, bad: tuple[float, ...], tmp_path: Path) -> None:
    folder, net = dots.write_bundle(tmp_path / "driver.alpose", RULE)
    good = [[*around(person), 0.9] for person in STANDING]
    answers = iter([[*good[:place], list(bad), *good[place:]] for place in range(3)])

    with Monitor(folder, engine=net, detect=lambda frame: next(answers)) as monitor:
        for _ in range(3):
            for verdict, person in zip(monitor.people(dots.frame_with(STANDING)), STANDING, strict=True):
                np.testing.assert_allclose(verdict.keypoints[::2], person, atol=1.0)
        counts = monitor.stats().counts

    assert {str(key): n for key, n in counts.items() if key.name == "dropped_boxes_total"} == {str(dropped(reason)): 3}
    assert not any(key.name == "internal_errors_total" for key in counts)


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_whatever_numbers_a_detector_gives_every_box_is_a_person_or_counted_once(data: st.DataObject) -> None:
    number = st.one_of(st.floats(-50, 400), st.floats(), st.sampled_from([NAN, INF, -INF, 0.0, 1e308]))
    rows = st.lists(st.tuples(*[number] * 5), max_size=MOST_PEOPLE + 8)
    boxes_N5 = np.array(data.draw(rows), dtype=np.float64).reshape(-1, 5)
    scores_N = boxes_N5[:, 4] if data.draw(st.booleans()) else None
    found = believed(boxes_N5[:, :4], scores_N, 320, 240)

    kept_M4 = boxes_N5[found.rows_M, :4]
    assert len(found.rows_M) + sum(found.dropped.values()) == len(boxes_N5)
    assert len(found.rows_M) <= MOST_PEOPLE
    assert list(found.rows_M) == sorted(set(found.rows_M.tolist()))
    assert np.isfinite(kept_M4).all()
    assert (kept_M4[:, :2] < kept_M4[:, 2:]).all()
    for box_4 in kept_M4:
        RULE.crop_of(box_4)  # it can be cut


def test_a_bad_box_takes_no_good_one_with_it_where_one_person_is_searched(tmp_path: Path) -> None:
    folder, net = dots.write_bundle(tmp_path / "driver.alpose", RULE)
    found = [[NAN, 0, 5, 5], [9, 9, 3, 3], around(STANDING[1])]

    with Monitor(folder, engine=net, detect=lambda frame: found) as monitor:
        verdict = monitor(dots.frame_with(STANDING))
        counts = monitor.stats().counts

    assert (verdict.place, verdict.box) == ("search", tuple(around(STANDING[1])))
    assert (counts[dropped("not_finite")], counts[dropped("empty")]) == (1, 1)


def test_a_box_that_an_app_gives_is_an_error_and_changes_no_name(tmp_path: Path) -> None:
    folder, net = dots.write_bundle(tmp_path / "driver.alpose", RULE)
    good = [around(person) for person in STANDING]
    with Monitor(folder, engine=net) as monitor:
        for bad in ([NAN, 0, 9, 9], [9, 0, 3, 9], [1000, 0, 1010, 10]):
            with pytest.raises(DataError, match=r"people are boxes|lies outside"):
                monitor.people(dots.frame_with(STANDING), [*good[::-1], bad])
        verdicts = monitor.people(dots.frame_with(STANDING), good)

    assert [verdict.stream for verdict in verdicts] == ["person-1", "person-2"]


def test_a_crowd_is_looked_at_up_to_a_bound(tmp_path: Path) -> None:
    folder, net = dots.write_bundle(tmp_path / "driver.alpose", RULE)
    crowd = [[3.0 * n, 10.0, 3.0 * n + 2, 60.0 + n] for n in range(MOST_PEOPLE + 5)]

    with Monitor(folder, engine=net, detect=lambda frame: crowd) as monitor:
        verdicts = monitor.people(dots.frame_with(STANDING))
        assert monitor.stats().counts[dropped("many")] == 5

    assert [verdict.box for verdict in verdicts] == [tuple(each) for each in crowd[5:]]


def test_people_of_one_frame_are_records_of_their_own_with_one_picture(tmp_path: Path) -> None:
    folder, net = dots.write_bundle(tmp_path / "driver.alpose", RULE)
    with Monitor(folder, queue=tmp_path / "q.db", engine=net, trigger=Threshold(0.05), camera="front") as monitor:
        verdicts = monitor.people(dots.frame_with(STANDING), [around(person) for person in STANDING])
        assert monitor.flush()

    assert all(verdict.kept for verdict in verdicts)
    with Queue(tmp_path / "q.db", readonly=True) as queue:
        records = list(queue.peek())
    assert sorted(record.camera for record in records) == ["front/person-1", "front/person-2"]
    assert len({record.frame_sha256 for record in records}) == 1


def test_a_name_that_is_free_again_remembers_nothing_of_whom_it_was(tmp_path: Path) -> None:
    folder, net = dots.write_bundle(tmp_path / "driver.alpose", CropRule(width_px=48, height_px=64, kind="turned"))
    lying = ((100.0, 120.0), (160.0, 120.0))
    frame = dots.frame_with([lying])
    with Monitor(folder, engine=net) as monitor:
        for _ in range(2):
            monitor.people(frame, [around(lying)])
        for _ in range(16):
            monitor.people(frame, [])
        (verdict,) = monitor.people(frame, [around(lying)])

    assert verdict.stream == "person-1"
    first, turned, again = net.crops
    np.testing.assert_array_equal(first, again)
    assert (first != turned).any()


WHOLE = CropRule(width_px=160, height_px=160, kind="letterbox", fill=0)


def frame_of(*people: tuple[int, int, int, int], sure: int = 250) -> Any:
    """A frame with a blue rectangle for each, and a red and a green dot at a quarter and three quarters of its height."""
    frame = dots.frame_with([(((x0 + x1) / 2, y0 + 0.75 * (y1 - y0)), ((x0 + x1) / 2, y0 + 0.25 * (y1 - y0)))
                             for x0, y0, x1, y1 in people])  # fmt: skip
    for place, (x0, y0, x1, y1) in enumerate(people):
        frame[y0:y1, x0:x1, 2] = sure - place
    return frame


def test_a_net_of_whole_frames_finds_people_itself_and_looks_at_each(tmp_path: Path) -> None:
    folder, net = dots.write_bundle(tmp_path / "whole.alpose", WHOLE, people=True)
    people = [(20, 40, 60, 140), (120, 30, 160, 170), (250, 60, 300, 160)]
    with Monitor(folder, engine=net) as monitor:
        first = monitor.people(frame_of(*people))
        assert len(net.crops) == 4, "the frame, and each person on it"
        gone = monitor.people(frame_of(people[2], people[0]))
        assert monitor.people(frame_of()) == []
        given = monitor.people(frame_of(*people), [people[1]])
        alone = monitor(frame_of(people[0]))
        counts = monitor.stats().counts

    first.sort(key=lambda verdict: verdict.box[0])
    gone.sort(key=lambda verdict: verdict.box[0])
    assert {verdict.stream for verdict in first} == {"person-1", "person-2", "person-3"}
    for verdict, (x0, y0, x1, y1) in zip(first, people, strict=True):
        np.testing.assert_allclose(verdict.box, (x0, y0, x1 - 1, y1 - 1), atol=2.5)
        middle, wide = (x0 + x1) / 2, y1 - y0
        np.testing.assert_allclose(
            verdict.keypoints[::2], [[middle, y0 + 0.75 * wide], [middle, y0 + 0.25 * wide]], atol=3
        )
    assert [verdict.stream for verdict in gone] == [first[0].stream, first[2].stream]
    assert [verdict.stream for verdict in given] == [first[1].stream]
    assert (alone.place, alone.stream) == ("whole", "")
    assert all(verdict.occupied for verdict in (*first, *gone, *given))
    assert counts[Count("unoccupied_frames_total")] == 1
    assert not any(key.name in ("mistaken_people_total", "internal_errors_total") for key in counts)


def test_the_crop_of_one_of_several_people_is_as_a_picture_of_them_alone(tmp_path: Path) -> None:
    folder, net = dots.write_bundle(tmp_path / "whole.alpose", WHOLE, people=True)
    frame = frame_of((20, 40, 60, 140))
    with Monitor(folder, engine=net) as monitor:
        (verdict,) = monitor.people(frame)
    np.testing.assert_array_equal(net.crops[1], cut(frame, WHOLE.person_crop(verdict.box)))
    assert WHOLE.person_crop((0, 0, 10, 40)).height == pytest.approx(1.25 * 40)


def test_of_somebody_in_whose_crop_the_net_sees_another_there_is_no_probability(tmp_path: Path) -> None:
    """The one behind is found on the frame, and in their crop the one before them is surer."""
    folder, net = dots.write_bundle(tmp_path / "whole.alpose", WHOLE, people=True)
    real = type(net).__call__
    front, behind = (100.0, 60.0, 160.0, 200.0), (150.0, 60.0, 200.0, 200.0)

    class Confused(type(net)):  # type: ignore[misc]
        """In every crop of a person it sees the one before."""

        def __call__(self, frames_NHW3: Any) -> Any:
            outputs: Any = real(net, frames_NHW3)
            if len(frames_NHW3) == 2 and len(net.crops) > 1:
                seen_N4 = [
                    WHOLE.person_crop(box).to_crop(np.reshape(front, (2, 2))).reshape(4) for box in (front, behind)
                ]
                outputs.people_NP5[:, 0] = np.hstack([seen_N4, [[0.9]] * 2])
            return outputs

    monitor = Monitor(folder, engine=Confused(net.crops), trigger=Threshold(0.0))
    with monitor:
        verdicts = monitor.people(frame_of(), [front, behind])
        stats = monitor.stats()
    assert [verdict.occupied for verdict in verdicts] == [True, False]
    assert [verdict.flagged for verdict in verdicts] == [True, False]
    assert np.isnan(verdicts[1].shown_probability)
    assert stats.counts[Count("mistaken_people_total")] == 1
    assert sum(stats.scores.counts) == 1


def test_candidates_of_a_net_that_are_not_finite_cost_no_other(tmp_path: Path) -> None:
    folder, net = dots.write_bundle(tmp_path / "whole.alpose", WHOLE, people=True)
    real, people = type(net).__call__, [(20, 40, 60, 140), (120, 30, 160, 170)]

    class Damaged(type(net)):  # type: ignore[misc]
        def __call__(self, frames_NHW3: Any) -> Any:
            outputs: Any = real(net, frames_NHW3)
            outputs.people_NP5[:, 5] = np.nan, 0, 5, 5, 0.9
            outputs.people_NP5[:, 6] = 0, 0, 5, 5, np.nan
            return outputs

    with Monitor(folder, engine=Damaged(net.crops)) as monitor:
        assert len(monitor.people(frame_of(*people))) == 2
        assert monitor.stats().counts[dropped("not_finite")] == 2


@pytest.mark.parametrize("trigger", [Episodes(Threshold(0.5), best=1), Threshold(0.5) & Cooldown(30.0)])
def test_somebody_with_a_name_that_is_free_again_neither_replaces_nor_holds_back(
    trigger: Trigger, tmp_path: Path
) -> None:
    """Half a second after one has left, the next person has their name, and fails worse."""
    folder, net = dots.write_bundle(tmp_path / "driver.alpose", RULE)
    times = iter(range(10**18, 2 * 10**18, 33 * 10**6))
    with Monitor(folder, queue=tmp_path / "q.db", engine=net, trigger=trigger) as monitor:
        for person, probability in ((STANDING[0], 0.6), (STANDING[1], 0.9)):
            net.probability = probability
            (verdict,) = monitor.people(dots.frame_with([person]), [around(person)], time_ns=next(times))
            assert (verdict.stream, verdict.kept) == ("person-1", True)
            for _ in range(16):
                monitor.people(dots.frame_with([]), [], time_ns=next(times))
        assert monitor.flush()
    with Queue(tmp_path / "q.db", readonly=True) as queue:
        assert sorted(round(record.failure_probability, 1) for record in queue.peek()) == [0.6, 0.9]


def walk(rng: np.random.Generator, people: int, frames: int) -> tuple[int, int]:
    """People who walk to and fro across a frame, meet, are missed now and then, and whose boxes come in any order: how often one
    of them changed their name, and how often one was seen."""
    size_P2 = rng.uniform([40, 100], [60, 140], (people, 2))
    place_P2, step_P2 = rng.uniform([60, 100], [580, 380], (people, 2)), rng.uniform(2, 10, (people, 1)) * [1.0, 0.2]
    step_P2 *= rng.choice([-1.0, 1.0], (people, 2))
    known, changes, sightings = People(), 0, 0
    names: dict[int, str] = {}
    for _ in range(frames):
        place_P2 += step_P2
        step_P2[(place_P2 < 30) | (place_P2 > [610, 450])] *= -1
        there = rng.permutation(np.flatnonzero(rng.random(people) > 0.05))
        middle_N2, half_N2 = place_P2[there], size_P2[there] / 2
        seen = known.see(np.hstack([middle_N2 - half_N2, middle_N2 + half_N2]) + rng.normal(0, 2, (len(there), 4)))
        assert seen.rows == tuple(range(len(there)))
        for row, name in zip(seen.rows, seen.names, strict=True):
            changes += names.setdefault(there[row], name) != name
            names[there[row]] = name
            sightings += 1
    return changes, sightings


def test_people_who_meet_keep_their_names_but_for_one_sighting_in_five_hundred() -> None:
    found = np.array([walk(np.random.default_rng(seed), 2 + seed % 4, 100) for seed in range(24)])
    changes, sightings = found.sum(axis=0)
    assert changes < sightings / 500


def test_one_leaves_and_another_enters_whatever_the_order_of_boxes() -> None:
    rng, people = np.random.default_rng(0), People()
    seen_as: dict[str, set[str]] = {"stays": set(), "leaves": set(), "enters": set()}
    for number in range(60):
        there = {"stays": box(300 + number), **({"leaves": box(100 - 3.0 * number)} if number < 20 else {}),
                 **({"enters": box(600 - 3.0 * number)} if number >= 30 else {})}  # fmt: skip
        order = rng.permutation(list(there))
        seen = people.see(np.array([there[who] for who in order]))
        for row, name in zip(seen.rows, seen.names, strict=True):
            seen_as[order[row]].add(name)
    assert [len(names) for names in seen_as.values()] == [1, 1, 1]
    assert len(set.union(*seen_as.values())) == 3


def test_a_budget_is_one_for_everybody_and_drift_is_told_by_name(tmp_path: Path) -> None:
    """Four people on each frame do not spend four budgets; one who is seen worse than the calibration set is named."""
    folder, net = dots.write_bundle(tmp_path / "driver.alpose", RULE)
    boxes = [[20.0 + 70 * place, 40, 70.0 + 70 * place, 200] for place in range(4)]
    rng = np.random.default_rng(0)
    real = type(net).__call__

    class Doubtful(type(net)):  # type: ignore[misc]
        def __call__(self, frames_NHW3: Any) -> Any:
            outputs = real(net, frames_NHW3)
            if len(frames_NHW3) == 4:
                outputs.failure_probability_N[:] = rng.uniform(0, 1, 4)
                outputs.failure_probability_N[2] = 0.99
            return outputs

    with Monitor(folder, engine=Doubtful(net.crops), trigger=Budget(per_hour=60), seed=0) as monitor:
        frame = dots.frame_with([])
        for number in range(240):
            monitor.people(frame, boxes, time_ns=10**18 + 30 * 10**9 * number)
        stats = monitor.stats()
    assert 60 <= stats.persons["flagged"] <= 180, "two hours"
    assert (stats.drift.alarm, stats.drift.stream) == (True, "person-3")
    assert [name for name, one in stats.drift.streams.items() if one.alarm] == ["person-3"]


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    folder, net = dots.write_bundle(tmp_path / "driver.alpose", RULE)
    frame = dots.frame_with(STANDING)
    with Monitor(folder, engine=net) as monitor:
        with pytest.raises(ConfigError, match="give boxes of the people"):
            monitor.people(frame)
        with pytest.raises(DataError, match="lies outside the frame"):
            monitor.people(frame, [[1000, 0, 1010, 10]])
        with pytest.raises(DataError, match="a frame in RGB"):
            monitor.people(frame[..., 0], [])
    with pytest.raises(ConfigError, match="was closed"):
        monitor.people(frame, [])
    whole, net = dots.write_bundle(tmp_path / "whole.alpose", CropRule(width_px=48, height_px=64, kind="letterbox"))
    with Monitor(whole, engine=net) as monitor:
        with pytest.raises(ConfigError, match=r"looks at the whole frame \(letterbox\)"):
            monitor.people(frame, [around(STANDING[0])])
        with pytest.raises(DataError, match="give no box"):
            monitor(frame, around(STANDING[0]))
        verdict = monitor(dots.frame_with(STANDING[:1]))
        np.testing.assert_allclose(verdict.keypoints[::2], STANDING[0], atol=3)
        assert (verdict.place, verdict.box) == ("whole", (0, 0, 319, 239))
    for more in ({"track": True}, {"roi": (0, 0, 50, 50)}, {"detect": lambda frame: None}):
        with pytest.raises(ConfigError, match="leave roi, track and detect out"):
            Monitor(whole, engine=net, **more)
