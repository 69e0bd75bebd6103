"""The field report on fleets whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from alpose.tools.field.labelled import Bools, Floats, Labelled, Tally
from alpose.tools.field.page import render, text
from alpose.tools.field.report import FieldReport, field_report

RATE = 0.02


@dataclass(frozen=True, slots=True)
class Fleet:
    """Every frame of two devices, one after the other: failures come in bursts, flags find most of them."""

    pck_N: Floats
    flagged_N: Bools
    probability_N: Floats
    device_N: np.ndarray

    @classmethod
    def made(cls, rng: np.random.Generator, frames: int = 24_000) -> Fleet:
        noise_N = np.convolve(rng.normal(size=frames + 50), np.ones(50) / 50, "valid")[:frames] * 7
        hard_N = noise_N + np.linspace(-2.2, -0.6, frames)
        pck_N = np.clip(1 / (1 + np.exp(2.5 * hard_N)) + 0.15 * rng.normal(size=frames), 0, 1)
        probability_N = 1 / (1 + np.exp(-(2.5 * hard_N + rng.normal(size=frames))))
        return cls(pck_N, probability_N > 0.55, probability_N, np.repeat(["car-1", "car-2"], frames // 2))

    @property
    def failed_N(self) -> Bools:
        return self.pck_N < 0.5

    def tallies(self, lost: int = 0) -> list[Tally]:
        return [
            Tally(name, "b" * 64, int(here.sum()), int((self.flagged_N & here).sum()), 0, lost)
            for name in ("car-1", "car-2")
            for here in [self.device_N == name]
        ]

    def label(self, rng: np.random.Generator, how: str, share: float = 0.5) -> Labelled:
        """What annotators got: part of the control stream, and of the flagged frames as ``how`` says."""
        frames = len(self.pck_N)
        in_control_N = rng.random(frames) < RATE
        control_N = in_control_N & (rng.random(frames) < share)
        queue_N = self.flagged_N & ~in_control_N
        chosen_N = np.full(frames, np.nan)
        if how == "all":
            value_N = self.flagged_N
        elif how == "random":
            value_N, chosen_N = queue_N & (rng.random(frames) < 0.2), np.full(frames, 0.2)
        else:  # the most valuable ones
            value_N = queue_N & (self.probability_N > np.quantile(self.probability_N[queue_N], 0.8))
        mask_N = control_N | value_N
        return Labelled(
            id_N=np.arange(frames).astype(str), device_N=self.device_N, bundle_N=np.full(frames, "b" * 64),
            pck_N=self.pck_N, failed_N=self.failed_N, flagged_N=self.flagged_N, failure_probability_N=self.probability_N,
            control_N=np.where(control_N, RATE * share, np.nan), chosen_N=chosen_N, dropped={},
        ).where(mask_N)  # fmt: skip


@pytest.mark.parametrize("how", ["value", "all", "random"])
def test_the_intervals_cover_the_truth(how: str) -> None:
    """200 draws from one fleet: the 95 % intervals miss in at most 7 %, and the plain mean misses always."""
    fleet = Fleet.made(np.random.default_rng(1))
    truth = {
        "pck": fleet.pck_N.mean(),
        "failure_rate": fleet.failed_N.mean(),
        "recall": fleet.flagged_N[fleet.failed_N].mean(),
        "precision": fleet.failed_N[fleet.flagged_N].mean(),
    }
    covered = dict.fromkeys(truth, 0)
    error = dict.fromkeys(truth, 0.0)
    width = dict.fromkeys(truth, 0.0)
    naive = 0
    for repetition in range(200):
        rng = np.random.default_rng([2, repetition])
        group = field_report(fleet.label(rng, how), fleet.tallies(lost=int(how == "value"))).fleet
        for name, value in truth.items():
            found = getattr(group, name)
            covered[name] += found.low - 1e-12 <= value <= found.high + 1e-12
            error[name] += (found.value - value) / 200
            width[name] += (found.high - found.low) / 200
        assert group.naive_pck is not None
        naive += abs(group.naive_pck - truth["pck"]) < 0.05

    assert group.flagged_by == {"value": "the control stream", "all": "all of them",
                                "random": "a random part of them"}[how]  # fmt: skip
    assert min(covered.values()) >= 0.93 * 200, covered
    assert max(width.values()) < 0.45, "an interval that says nothing covers everything"
    assert max(abs(value) for value in error.values()) < 0.02, error
    assert naive == 0


def made(how: str = "value", seed: int = 0, lost: int = 0, tallies: bool = True) -> tuple[Fleet, FieldReport]:
    fleet = Fleet.made(np.random.default_rng(1))
    labelled = fleet.label(np.random.default_rng(seed), how)
    return fleet, field_report(labelled, fleet.tallies(lost) if tallies else [])


def test_without_tallies_the_control_stream_stands_for_all() -> None:
    fleet, report = made(tallies=False)

    assert report.fleet.frames is None
    assert report.fleet.pck is not None
    assert report.fleet.pck.low < fleet.pck_N.mean() < report.fleet.pck.high


def test_devices_are_told_apart() -> None:
    fleet, report = made()
    first, second = (report.devices[name].pck for name in ("car-1", "car-2"))

    assert first is not None
    assert second is not None
    # The second half of the frames is harder.
    assert second.high < first.low
    assert report.devices["car-1"].frames == len(fleet.pck_N) // 2


def test_the_advised_thresholds_catch_what_they_say_on_average() -> None:
    caught: dict[float, list[float]] = {}
    for seed in range(60):
        fleet, report = made(seed=seed)
        for point in report.operating:
            found_N = fleet.probability_N >= point.threshold
            caught.setdefault(point.catch, []).append(float(found_N[fleet.failed_N].mean()))
            assert abs(found_N.mean() - point.flagged_share) < 0.15

    assert set(caught) == {0.8, 0.9, 0.95}
    for catch, found in caught.items():
        assert abs(np.mean(found) - catch) < 0.04, (catch, np.mean(found))


def test_lost_frames_are_said_and_keep_the_flagged_from_standing_for_all() -> None:
    _, whole = made("random")
    _, lossy = made("random", lost=40)

    assert whole.fleet.flagged_by == "a random part of them"
    assert lossy.fleet.flagged_by == "the control stream"
    assert any("80 flagged frames cannot be labelled" in line for line in lossy.advice)


def test_a_policy_that_flags_next_to_nothing_is_reported_too() -> None:
    """The default: 20 frames of 100,000 an hour. None of them is in the control stream, which stands for all then."""
    fleet = Fleet.made(np.random.default_rng(1))
    fleet = replace(fleet, flagged_N=fleet.probability_N >= np.sort(fleet.probability_N)[-20])
    truth = fleet.pck_N.mean()
    covered = 0
    for seed in range(40):
        labelled = fleet.label(np.random.default_rng(seed), "value")
        report = field_report(labelled, fleet.tallies(lost=1))
        assert report.fleet.pck is not None
        assert report.fleet.failure_rate is not None
        assert report.fleet.recall is not None
        covered += report.fleet.pck.low <= truth <= report.fleet.pck.high
        if not (labelled.flagged_N & np.isfinite(labelled.control_N)).any():
            assert report.fleet.precision is None
            assert any("what share of the flagged frames fails" in line for line in report.advice)
    assert covered >= 36


def test_without_a_control_stream_nothing_is_claimed() -> None:
    fleet = Fleet.made(np.random.default_rng(1))
    labelled = fleet.label(np.random.default_rng(0), "value", share=0.0)
    report = field_report(labelled, fleet.tallies(lost=1))

    assert report.fleet.pck is None
    assert report.fleet.recall is None
    assert "Control(rate" in report.advice[0]
    assert report.fleet.naive_pck is not None


def test_nothing_labelled_is_no_crash() -> None:
    fleet = Fleet.made(np.random.default_rng(1))
    nothing = fleet.label(np.random.default_rng(0), "value").where(np.zeros(0, dtype=np.int64))

    assert field_report(nothing, []).fleet.labelled == 0


def test_the_terminal_and_the_page_call_a_bundle_by_the_same_name() -> None:
    _, report = made()
    names = {"b" * 64: "driver-night"}
    assert "driver-night" in text(report, names)
    assert "b" * 12 not in text(report, names)
    assert "driver-night" in render(report, dataset="d", bundles=names)
    assert "b" * 12 in text(report)
    assert "b" * 12 in render(report, dataset="d")
