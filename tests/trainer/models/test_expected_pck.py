"""The expected-PCK head against explicit loops, and what it must not do."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from alpose.runtime.errors import ConfigError
from alpose.trainer.models.expected_pck import SHARPNESS, ExpectedPckHead, lie_of, scales_read
from alpose.trainer.models.heads import Evidence, HeadConfig, build_head
from alpose.trainer.models.hourglass import Features
from alpose.trainer.models.joint_network import share_to_logit

JOINTS, CELLS, PEAK = 3, 8, 30.0
SIZES, WIDTHS = (8, 4, 2), (5, 6, 7)
EVIDENCE: tuple[Evidence, ...] = get_args(Evidence)


def config(evidence: Evidence = "maps+features", **changes: Any) -> HeadConfig:
    values: dict[str, Any] = {
        "name": "epck-slim" if evidence == "peaks" else "epck", "channels": WIDTHS, "sizes": SIZES, "joints": JOINTS,
        "peak": PEAK, "evidence": evidence,
    }  # fmt: skip
    return HeadConfig(**(values | changes))


def head(evidence: Evidence = "maps+features", **changes: Any) -> ExpectedPckHead:
    torch.manual_seed(0)
    made = build_head(config(evidence, **changes))
    assert isinstance(made, ExpectedPckHead)
    made.mean_JD.normal_()
    made.deviation_JD.uniform_(0.5, 2)
    return made.eval()


def features(batch: int, sizes: tuple[int, ...] = SIZES, widths: tuple[int, ...] = WIDTHS, stacks: int = 2) -> Features:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    maps = tuple(PEAK / 10 * random(batch, JOINTS, sizes[0], sizes[0]) for _ in range(stacks))
    pyramid = tuple(random(batch, c, size, size) for c, size in zip(widths, sizes, strict=True))
    return Features(pyramid, random(batch, widths[0], sizes[0], sizes[0]), maps)


def slow_evidence(seen: Features, image: int, joint: int, evidence: Evidence) -> list[float]:
    """The definition, one cell after the other."""
    last, first = (seen.heatmaps[stack][image, joint].double().numpy() / PEAK for stack in (-1, 0))
    if evidence == "peaks":
        return [last.max(), first.max()]
    if evidence == "peaks+pose":
        places = [highest(seen.heatmaps[-1][image, each]) for each in range(JOINTS)]
        row, column = places[joint]
        return [last.max(), first.max(), first[row, column], *slow_lie([grid(*place) for place in places], joint)]
    look = {(row, column): math.exp(SHARPNESS * last[row, column]) for row in range(CELLS) for column in range(CELLS)}
    total = sum(look.values())
    look = {place: value / total for place, value in look.items()}
    found = [last.max(), first.max(), sum(value * first[place] for place, value in look.items())]
    found += [sum(value * ((place[axis] + 0.5) / CELLS * 2 - 1) for place, value in look.items()) for axis in (1, 0)]
    if evidence.startswith("maps+features"):
        for scale in (0, 2):
            step = CELLS // SIZES[scale]
            maps = seen.pyramid[scale][image].double().numpy()
            found += [sum(value * maps[channel, row // step, column // step] for (row, column), value in look.items())
                      for channel in range(WIDTHS[scale])]  # fmt: skip
    if evidence.endswith("+pose"):
        of_maps = [slow_evidence(seen, image, each, "maps") for each in range(JOINTS)]
        found += slow_lie([(one[3], one[4]) for one in of_maps], joint)
    return found


def highest(map_HW: Tensor) -> tuple[int, int]:
    return divmod(int(map_HW.argmax()), CELLS)


def grid(row: int, column: int) -> tuple[float, float]:
    return ((column + 0.5) / CELLS * 2 - 1, (row + 0.5) / CELLS * 2 - 1)


def slow_lie(places: list[tuple[float, float]], joint: int) -> list[float]:
    """One pair of joints after the other."""
    centre = [sum(place[axis] for place in places) / len(places) for axis in (0, 1)]
    apart = [(x - centre[0], y - centre[1]) for x, y in places]
    unit = math.sqrt(sum(x * x + y * y for x, y in apart) / (2 * len(apart)))
    own = [(x / unit, y / unit) for x, y in apart]
    x, y = own[joint]
    dots = [x * other_x + y * other_y for other_x, other_y in own]
    crosses = [x * other_y - y * other_x for other_x, other_y in own]
    return [x, y, *dots, *crosses, math.log(unit)]


def slow_logits(model: ExpectedPckHead, evidence_JD: np.ndarray) -> list[float]:
    """One image, one joint after the other."""
    p = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    scaled_JD = (evidence_JD - p["mean_JD"]) / p["deviation_JD"]
    if not model.per_joint:
        hidden = np.maximum(p["shared.weight"] @ scaled_JD.reshape(-1) + p["shared.bias"], 0)
        return list(p["out_shared.weight"] @ hidden + p["out_shared.bias"])
    own = [np.maximum(scaled_JD[j] @ p["own"][j] + p["own_bias"][j, 0], 0) for j in range(JOINTS)]
    shared = np.maximum(p["shared.weight"] @ np.concatenate(own) + p["shared.bias"], 0)
    return [float(own[j] @ p["out_own"][j, :, 0] + p["out_shared.weight"][j] @ shared + p["out_shared.bias"][j])
            for j in range(JOINTS)]  # fmt: skip


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_it_says_what_its_definition_says(evidence: Evidence) -> None:
    model, seen = head(evidence), features(3)
    expected_BJD = np.array([[slow_evidence(seen, b, j, evidence) for j in range(JOINTS)] for b in range(3)])
    right_BJ = 1 / (1 + np.exp(-np.array([slow_logits(model, one_JD) for one_JD in expected_BJD])))
    wrong_B = 1 - right_BJ.mean(axis=1)

    with torch.no_grad():
        assert model.evidence(seen).shape == (3, JOINTS, model.depth)
        np.testing.assert_allclose(model.evidence(seen), expected_BJD, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(model.confidence(seen), right_BJ, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(model(seen), np.log(wrong_B / (1 - wrong_B)), rtol=1e-3, atol=1e-4)


def test_features_are_read_where_the_last_map_looks_and_nowhere_else() -> None:
    seen = features(1)
    seen.heatmaps[-1].zero_()
    places = [(1, 6), (7, 0), (3, 3)]
    for joint, (row, column) in enumerate(places):
        seen.heatmaps[-1][0, joint, row, column] = PEAK

    found = head().evidence(seen)[0]

    for joint, (row, column) in enumerate(places):
        agreed, x, y = found[joint, 2:5].tolist()
        assert agreed == pytest.approx(float(seen.heatmaps[0][0, joint, row, column]) / PEAK, abs=1e-4)
        assert (x, y) == pytest.approx(((column + 0.5) / 4 - 1, (row + 0.5) / 4 - 1), abs=1e-4)
        torch.testing.assert_close(found[joint, 5:10], seen.pyramid[0][0, :, row, column], rtol=0, atol=1e-4)
        torch.testing.assert_close(found[joint, 10:], seen.pyramid[2][0, :, row // 4, column // 4], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("sizes", "scales"),
    [
        ((64, 32, 16, 8, 4), (0, 2)),
        ((25, 13, 7), (0,)),  # no scale divides the finest
        ((14, 7, 3), (0, 1)),
        ((15, 7, 5), (0, 2)),  # the next one does not, the one after does
        ((10, 3), (0,)),
        ((6,), (0,)),
    ],
    ids=str,
)
def test_pyramid_sizes_that_do_not_divide(sizes: tuple[int, ...], scales: tuple[int, ...]) -> None:
    widths = tuple(range(2, 2 + len(sizes)))
    model = head(sizes=sizes, channels=widths)
    found = model.evidence(features(2, sizes, widths))

    assert scales_read(model.config) == scales
    assert found.shape == (2, JOINTS, 5 + sum(widths[scale] for scale in scales))
    assert found.isfinite().all()


def test_without_features_no_scale_is_read() -> None:
    seen = features(2)
    blind = seen._replace(pyramid=())

    torch.testing.assert_close(head("maps")(blind), head("maps")(seen))


def test_dropout_is_for_training_alone() -> None:
    model, seen = head(), features(4)

    assert torch.equal(model(seen), model(seen))
    model.train()
    assert not torch.equal(model(seen), model(seen))


def test_the_slim_head_has_nothing_to_drop() -> None:
    model, seen = head("peaks").train(), features(4)

    assert torch.equal(model(seen), model(seen))


def test_how_joints_lie_does_not_depend_on_place_size_and_turn() -> None:
    """But it does on whether left and right are exchanged: every cross product changes its sign in a mirror."""
    pose_BJ2 = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0))
    turn_22 = torch.tensor([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]])
    products = slice(2, 14)
    lie = lie_of(pose_BJ2)

    torch.testing.assert_close(
        lie_of(0.3 * pose_BJ2 @ turn_22 + 0.2)[..., products], lie[..., products], rtol=1e-4, atol=1e-4
    )
    mirrored = lie_of(pose_BJ2 * torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(mirrored[..., 2:8], lie[..., 2:8])
    torch.testing.assert_close(mirrored[..., 8:14], -lie[..., 8:14])
    assert lie_of(torch.zeros(1, 6, 2)).isfinite().all()


@pytest.mark.parametrize("share", [0.001, 0.3, 0.5, 0.999])
def test_the_logit_of_a_share_is_undone_by_a_sigmoid(share: float) -> None:
    assert float(torch.sigmoid(share_to_logit(torch.tensor([share])))) == pytest.approx(share, rel=1e-4)


def test_no_share_is_so_certain_that_its_logit_is_infinite() -> None:
    logit = share_to_logit(torch.tensor([-1e-7, 0.0, 0.2, 0.8, 1.0]))

    assert logit.isfinite().all()
    assert (logit.diff() >= 0).all()
    assert float(logit[-1]) == pytest.approx(-float(logit[0]), rel=1e-3)


def test_evidence_is_standardised_by_those_who_train() -> None:
    model = head()
    evidence_NJD = torch.randn(50, JOINTS, model.depth) * torch.linspace(0.1, 9, model.depth) + 4
    evidence_NJD[:, 1, 3] = 7.0  # never changes: not to be blown up where it changes one day
    model.standardise(evidence_NJD)
    scaled_NJD = (evidence_NJD - model.mean_JD) / model.deviation_JD

    torch.testing.assert_close(scaled_NJD.mean(dim=0), torch.zeros(JOINTS, model.depth), rtol=0, atol=1e-4)
    varies_JD = torch.ones(JOINTS, model.depth, dtype=torch.bool)
    varies_JD[1, 3] = False
    torch.testing.assert_close(scaled_NJD.std(dim=0)[varies_JD], torch.ones(int(varies_JD.sum())))
    assert float(model.deviation_JD[1, 3]) == pytest.approx(1e-3)


def test_a_single_view_standardises_to_numbers() -> None:
    model = head()
    model.standardise(torch.randn(1, JOINTS, model.depth))

    assert model.deviation_JD.isfinite().all()
    assert model(features(2)).isfinite().all()


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_a_joint_that_nobody_taught_says_the_same_of_everybody(evidence: Evidence) -> None:
    model, seen = head(evidence), features(6)
    before_BJ = model.confidence(seen)
    model.leave_out(torch.tensor([False, True, False]), 0.7)
    after_BJ = model.confidence(seen)

    torch.testing.assert_close(after_BJ[:, 1], torch.full((6,), 0.7))
    torch.testing.assert_close(after_BJ[:, [0, 2]], before_BJ[:, [0, 2]])


@pytest.mark.parametrize("changes", [{"joints": 0}, {"peak": 0.0}, {"peak": math.nan}], ids=str)
def test_it_must_know_joints_and_peak(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="joints and peak must be positive"):
        build_head(config(**changes))


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_a_net_without_maps_is_refused(evidence: Evidence) -> None:
    with pytest.raises(ConfigError, match=r"epck.* reads heatmaps, which this net does not hand over"):
        head(evidence)(features(1)._replace(heatmaps=()))


def test_a_net_of_another_size_or_skeleton_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"built for heatmaps \(3, 8, 8\), the net gives \(3, 16, 16\)"):
        head()(features(1, (16, 8, 4)))
    two = features(1)
    with pytest.raises(ConfigError, match=r"built for heatmaps \(3,\), the net gives \(2,\)"):
        head("peaks")(two._replace(heatmaps=tuple(maps[:, :2] for maps in two.heatmaps)))
