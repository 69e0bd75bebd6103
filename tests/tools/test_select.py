"""The batch against the plain loop, and what users rely on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime.errors import ConfigError, DataError
from alpose.tools.batch import Batch, Choice
from alpose.tools.inbox_database import Columns
from alpose.tools.select import WAITING, Selection, select
from alpose.trainer.methods.diversity import FARTHEST, UNRELATED, Floats, Ints, Nearest, greedy, typical_distances
from alpose.trainer.methods.strategies import STRATEGIES


def unit(vectors: npt.NDArray[np.floating]) -> Floats:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def plain_greedy(
    weight_N: Floats, embedding_ND: Floats, space_N: Ints, device_N: Ints, before: list[tuple[Floats, int]], k: int,
    min_distance: float, fair: bool,
) -> list[int]:  # fmt: skip
    """The definition: look at everything, every time."""
    chosen = list(before)
    typical_S = typical_distances(embedding_ND, space_N)
    picks: list[int] = []
    devices = int(device_N.max()) + 1
    given_V = np.zeros(devices)
    for _ in range(k):
        best, best_value = None, 0.0
        for row in range(len(weight_N)):
            if row in picks:
                continue
            distance = FARTHEST
            for vector, space in chosen:
                near = (1 - float(embedding_ND[row] @ vector)) / typical_S[space_N[row]]
                distance = min(distance, near if space == space_N[row] else UNRELATED)
            if distance < min_distance:
                continue
            value = float(weight_N[row]) * distance / (1 + (given_V[device_N[row]] / (k / devices) if fair else 0))
            if value > best_value + 1e-6:
                best, best_value = row, value
        if best is None:
            break
        picks.append(best)
        chosen.append((embedding_ND[best], int(space_N[best])))
        given_V[device_N[best]] += 1
    return picks


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 12), st.booleans(), st.sampled_from([0.0, 0.1]))
def test_the_lazy_choice_is_the_plain_one(seed: int, count: int, k: int, fair: bool, min_distance: float) -> None:
    rng = np.random.default_rng(seed)
    embedding_ND = unit(rng.normal(size=(count, 4)))
    weight_N = rng.random(count).astype(np.float32)
    space_N, device_N = rng.integers(0, 2, count), rng.integers(0, 3, count)
    before = [(unit(rng.normal(size=(1, 4)))[0], int(space)) for space in rng.integers(0, 3, rng.integers(0, 4))]
    near = Nearest(embedding_ND, space_N)
    for vector, space in before:
        near.add(vector, space)

    picks = list(greedy(weight_N, near, embedding_ND, space_N, device_N, k, min_distance=min_distance, fair=fair))

    assert [pick.row for pick in picks] == plain_greedy(
        weight_N, embedding_ND, space_N, device_N, before, k, min_distance, fair
    )


def fleet(count: int = 3000, seed: int = 0, devices: int = 3, control: float = 0.1) -> Columns:
    """Frames around 40 scenes; the first device sends four fifths of them."""
    rng = np.random.default_rng(seed)
    scene_N = rng.integers(0, 40, count)
    embedding_ND = unit(unit(rng.normal(size=(40, 16)))[scene_N] + 0.1 * rng.normal(size=(count, 16)))
    control_N = rng.random(count) < control
    return Columns(
        id_N=np.array([f"{row:032x}" for row in range(count)], dtype="S32"),
        device_N=rng.choice(devices, count, p=[0.8, *[0.2 / (devices - 1)] * (devices - 1)]),
        devices=[f"car-{device}" for device in range(devices)],
        bundle_N=np.zeros(count, dtype=np.int64),
        failure_probability_N=rng.beta(2, 3, count).astype(np.float32),
        embedding_ND=embedding_ND.astype(np.float16),
        control_N=control_N,
        captured_ns_N=np.arange(count),
        pictures_N=np.ones(count, dtype=np.bool_),
        **{
            f"{name}_N": np.zeros(count, dtype=np.bool_)
            for name in ("fetched", "deleted", "drawn", "chosen", "annotated")
        },
    )


def rows(selection: Selection, stream: str | None = None) -> Ints:
    return np.array([int(c.id, 16) for c in selection.choices if stream in (None, c.stream)], dtype=np.int64)


def test_a_batch_is_hard_diverse_and_fair() -> None:
    candidates = fleet(control=0)
    by_value = rows(select(candidates, 100, np.random.default_rng(0), control=0))
    by_top = rows(select(candidates, 100, np.random.default_rng(0), control=0, strategy="top"))
    by_chance = rows(select(candidates, 100, np.random.default_rng(0), control=0, strategy="random"))
    failure_N, embedding_ND = candidates.failure_probability_N, candidates.embedding_ND.astype(np.float32)

    def nearest(picked: Ints) -> float:
        similar = embedding_ND[picked] @ embedding_ND[picked].T
        np.fill_diagonal(similar, -1)
        return float((1 - similar.max(axis=1)).mean())

    assert failure_N[by_top].mean() > failure_N[by_value].mean() > failure_N[by_chance].mean() + 0.15
    assert nearest(by_value) > 1.3 * nearest(by_top)
    shares = np.bincount(candidates.device_N[by_value], minlength=3) / 100
    assert shares.max() < 0.6
    assert np.bincount(candidates.device_N[by_top], minlength=3)[0] > 65


def test_coreset_reaches_further_than_chance() -> None:
    candidates = fleet()
    embedding_ND = candidates.embedding_ND.astype(np.float32)

    def radius(strategy: str) -> float:
        picked = rows(select(candidates, 60, np.random.default_rng(1), control=0, strategy=strategy))
        return float((1 - (embedding_ND @ embedding_ND[picked].T).max(axis=1)).max())

    assert radius("coreset") < radius("random")


def test_near_duplicates_are_left_out_and_counted() -> None:
    candidates = fleet(500, control=0)
    twice = np.arange(500) // 2 * 2  # every other frame is the one before it
    candidates = replace(candidates, embedding_ND=candidates.embedding_ND[twice])
    selection = select(candidates, 500, np.random.default_rng(0), control=0)

    picked = rows(selection)
    assert len({row // 2 for row in picked.tolist()}) == len(picked) <= 250
    assert selection.counted["near-duplicates"] >= 250
    assert sum(selection.counted.values()) + len(picked) == 500


def test_what_was_chosen_before_pushes_the_next_batch_away() -> None:
    candidates = fleet(400)
    first = rows(select(candidates, 40, np.random.default_rng(0), control=0))
    taken_N = np.isin(np.arange(400), first)
    second = rows(select(replace(candidates, chosen_N=taken_N), 40, np.random.default_rng(0), control=0))

    assert not set(first.tolist()) & set(second.tolist())
    embedding_ND = candidates.embedding_ND.astype(np.float32)
    apart = (1 - (embedding_ND[second] @ embedding_ND[first].T).max(axis=1)).min()
    assert apart >= 0.05 * typical_distances(embedding_ND, np.zeros(400, dtype=np.int64))[0] - 1e-3


def test_distances_are_relative_to_what_a_bundle_does() -> None:
    """A net whose embeddings share a large common part: the same choice, not a heap of duplicates."""
    candidates = fleet(400)
    narrow_ND = unit(candidates.embedding_ND.astype(np.float32) * 0.2 + unit(np.ones((1, 16))))
    wide, narrow = (
        select(replace(candidates, embedding_ND=embedding_ND), 60, np.random.default_rng(0), control=0)
        for embedding_ND in (candidates.embedding_ND, narrow_ND)
    )
    assert len(narrow.choices) == len(wide.choices) == 60
    assert len(set(rows(narrow).tolist()) & set(rows(wide).tolist())) > 30


def test_control_frames_are_a_random_sample_with_a_known_probability() -> None:
    candidates = fleet()
    hits_N = np.zeros(len(candidates))
    for seed in range(300):
        selection = select(candidates, 100, np.random.default_rng(seed), strategy="top")
        hits_N[rows(selection, "control")] += 1
        assert np.array_equal(selection.drawn_N, candidates.control_N)
    (probability,) = {c.select_probability for c in selection.choices if c.stream == "control"}

    assert probability == pytest.approx(20 / candidates.control_N.sum())
    shares_N = hits_N[candidates.control_N] / 300
    assert shares_N.mean() == pytest.approx(probability)
    # Chance does not look at the failure probability.
    assert abs(np.corrcoef(shares_N, candidates.failure_probability_N[candidates.control_N])[0, 1]) < 0.2
    assert not hits_N[~candidates.control_N].any()


def test_a_control_frame_is_not_chosen_for_its_value_before_its_draw() -> None:
    """Else the draw would be left with the easy ones, and the field would look better than it is."""
    candidates = fleet()
    for strategy in STRATEGIES:
        selection = select(candidates, 500, np.random.default_rng(0), control=0, strategy=strategy)
        assert not candidates.control_N[rows(selection)].any()
        assert selection.counted[WAITING] == candidates.control_N.sum()
        assert not selection.drawn_N.any()
    # Those that were passed over in their draw are free.
    drawn = select(candidates, 3000, np.random.default_rng(0), control=10, strategy="top")
    assert candidates.control_N[rows(drawn, "value")].sum() == candidates.control_N.sum() - 10


def test_a_model_that_answers_nan_is_as_wrong_as_can_be() -> None:
    candidates = fleet(50, control=0)
    candidates.failure_probability_N[17] = np.nan
    for strategy in ("value", "top"):
        (choice,) = select(candidates, 1, np.random.default_rng(0), strategy=strategy).choices
        assert int(choice.id, 16) == 17
        assert "nan" not in choice.reason


def test_a_control_frame_is_drawn_once() -> None:
    candidates = fleet()
    first = select(candidates, 100, np.random.default_rng(0))
    later = replace(candidates, drawn_N=first.drawn_N)

    assert not len(rows(select(later, 100, np.random.default_rng(1)), "control"))


def test_annotators_who_stop_early_leave_a_share_of_both() -> None:
    streams = [c.stream for c in select(fleet(), 100, np.random.default_rng(0)).choices]

    assert streams.count("control") == 20
    assert streams[:50].count("control") == 10


def test_embeddings_of_different_bundles_are_not_compared() -> None:
    """Two frames with one embedding, of different bundles: not duplicates."""
    candidates = replace(fleet(2), embedding_ND=np.tile(unit(np.ones((1, 4), dtype=np.float32)), (2, 1)))

    assert len(select(candidates, 2, np.random.default_rng(0), control=0).choices) == 1
    apart = replace(candidates, bundle_N=np.array([0, 1]))
    assert len(select(apart, 2, np.random.default_rng(0), control=0).choices) == 2


def test_every_choice_says_why() -> None:
    for strategy in STRATEGIES:
        choices = select(fleet(), 30, np.random.default_rng(0), strategy=strategy).choices
        assert all(choice.reason for choice in choices)
        assert [choice.rank for choice in choices] == list(range(1, 31))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"budget": 0}, "--budget"),
        ({"budget": 5, "control": 6}, "--control"),
        ({"budget": 5, "strategy": "best"}, "--strategy"),
        ({"budget": 5, "min_distance": 1.0}, "--min-distance"),
    ],
)
def test_what_cannot_be_done_is_said(options: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        select(fleet(10), rng=np.random.default_rng(0), **options)  # type: ignore[arg-type]


def test_an_inbox_without_anything_open_gives_an_empty_batch() -> None:
    candidates = fleet(10)
    nothing = replace(candidates, pictures_N=np.zeros(10, dtype=np.bool_))

    assert select(nothing, 5, np.random.default_rng(0)).choices == ()


def test_a_batch_survives_json_and_damage_is_named() -> None:
    choice = Choice(id="0" * 32, rank=1, reason="failure 0.9", stream="control", select_probability=0.5)
    batch = Batch(name="week-1", created="2026-01-01T00:00:00+00:00", strategy="value", budget=5, choices=(choice,),
                  counted={"not chosen": 3}, tallies=({"device": "car-1", "frames": 9},))  # fmt: skip

    assert Batch.from_json(batch.to_json()) == batch
    damages: list[tuple[str, object]] = [
        ("strategy", "x"),
        ("choices", [1]),
        ("name", "../up"),
        ("kind", "other"),
        ("counted", []),
    ]
    for path, value in damages:
        with pytest.raises(DataError):
            Batch.from_json({**batch.to_json(), path: value})
    of_choice: list[tuple[str, object]] = [("id", "../../etc"), ("stream", "x"), ("select_probability", 0.0)]
    for key, value in of_choice:
        damaged = batch.to_json()
        damaged["choices"] = [{**damaged["choices"][0], key: value}]
        with pytest.raises(DataError):
            Batch.from_json(damaged)
