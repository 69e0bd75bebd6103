"""The demo's simulation: what its devices see, and what its closing table says."""

from __future__ import annotations

import pytest

from alpose.tools.demo.page import Labelled, Measured, Outcome, Result
from alpose.tools.demo.simulation import HARD_SHARE, TURNED_SHARE, Stream


def test_a_stream_changes_in_its_middle_and_the_change_is_rare() -> None:
    stream = Stream.of("car-1", 7, 1000)
    kinds = ["turned" if id_.startswith("turned") else id_.split("/")[0] for id_ in stream.data.ids]

    assert [kind == "turned" for kind in kinds] == stream.turned_N.tolist()
    assert not stream.turned_N[:500].any()
    assert stream.turned_N[500:].mean() == pytest.approx(TURNED_SHARE, abs=0.03)
    assert kinds.count("synthetic-hard") / 1000 == pytest.approx(HARD_SHARE, abs=0.02)
    assert Stream.of("car-1", 7, 1000).data.ids == stream.data.ids
    assert not set(Stream.of("car-2", 8, 1000).data.ids) & set(stream.data.ids)


def _outcome(seed: int, harvest: float, chance: float) -> Outcome:
    turned = {"first": 0.1, "without": 0.1, "random": chance, "harvest": harvest}
    return Outcome(
        seed=seed, frames=100, turned=4, failures=10, true_pck=0.7, field={"pck": None},
        labelled={"random": Labelled(frames=20, turned=1, failures=2), "harvest": Labelled(frames=20, turned=4, failures=9)},
        measured={name: Measured(before=0.7, turned=pck, failures=5, frames=50) for name, pck in turned.items()},
    )  # fmt: skip


def test_the_closing_table_has_the_mean_over_the_seeds_and_says_what_is_not_measured() -> None:
    rows = {name: values for name, *values in Result((_outcome(0, 0.4, 0.1), _outcome(1, 0.6, 0.1))).rows()}

    assert rows["PCK, frames of the turned camera"] == [
        "0.100 ± 0.000",
        "0.100 ± 0.000",
        "0.100 ± 0.000",
        "0.500 ± 0.141",
    ]
    assert rows["newly labelled frames"] == ["—", "—", "20 ± 0", "20 ± 0"]


def test_what_the_harvest_gains_is_paired_by_seed() -> None:
    gain = Result((_outcome(0, 0.4, 0.1), _outcome(1, 0.6, 0.1), _outcome(2, 0.5, 0.2))).gain()

    assert gain["by_seed"] == pytest.approx([0.3, 0.5, 0.3])
    assert gain["mean"] == pytest.approx(1.1 / 3)
    assert gain["p_paired_t_two_sided"] == pytest.approx(
        1 - 5.5 / (5.5**2 + 2) ** 0.5
    )  # t = 5.5 at two degrees of freedom
    assert Result((_outcome(0, 0.4, 0.1),)).gain()["p_paired_t_two_sided"] is None
