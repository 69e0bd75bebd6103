"""Poses of made-up people: joints, depth and occluders of many people at once, without a single pixel.

Shapes: N people, J joints (LSP order), S sides (right, left), T tips (toes and fingers), F body frames,
M occluders, A aspects of difficulty, K uniform numbers.

Body axes: x to the person's left, y up, z to the front. Camera axes: x right, y down, z towards the camera;
the picture is what x and y say (no perspective). Lengths are body heights until :func:`_place` makes them pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError
from alpose.runtime.skeleton import LSP

from .records import Bools

Array = npt.NDArray[np.float64]

ASPECTS = ("pose", "occlusion", "frame", "light", "blur", "contrast", "clutter")
"""What can be hard about a picture; each has a level in [0, 1] around the picture's own level."""
LEVELS: Mapping[str, tuple[float, float]] = {"easy": (0.0, 0.2), "hard": (0.15, 1.0)}
"""Range of the level of a picture, drawn uniformly: the hard domain runs from nearly easy to hopeless."""
OCCLUDERS = 3
# Uniform numbers that each step may use. The sum must divide by 4, as Philox counts in fours.
_DRAWS = {"level": 8, "view": 8, "trunk": 8, "arms": 12, "legs": 12, "body": 8, "frame": 8, "occluders": 24,
          "missing": 28}  # fmt: skip
_SIDE_S = np.array([-1.0, 1.0])
_TORSO_J = np.isin(np.arange(14), (2, 3, 8, 9))


@dataclass(frozen=True, slots=True)
class Occluders:
    """Opaque boxes and ellipses in front of a person; ``half_NM2`` are the half axes, all in pixels."""

    centre_NM2: Array
    half_NM2: Array
    angle_NM: Array
    box_NM: Bools
    present_NM: Bools


@dataclass(frozen=True, slots=True)
class People:
    """People as the renderer and the labels need them: camera axes, pixels, first pixel centre 0."""

    aspects_NA: Array
    joints_NJ3: Array
    tips_NT3: Array
    """Right toe, left toe, right fingers, left fingers."""
    frames_NF33: Array
    """Pelvis, chest and head: the columns are the body axes as the camera sees them."""
    unit_N: Array
    """Pixels per body height."""
    size_N2: npt.NDArray[np.int64]
    """Width and height of the picture."""
    occluders: Occluders
    labelled_NJ: Bools
    visible_NJ: Bools
    garbage_NJ2: Array
    """Where a joint that is not labelled is put: a coordinate 0 and the other 0 or negative, as in LSPET."""


def sample_people(seed: int, domain: str, start: int, count: int) -> People:
    """People ``start`` to ``start + count``; each depends on (seed, domain, its own number) alone."""
    draws = _uniforms(seed, domain, start, count)
    aspects_NA = _aspects(draws["level"], *LEVELS[domain])
    body_NP3, frames_NF33 = _body(draws, aspects_NA[:, 0])
    points_NP3, unit_N, size_N2 = _place(body_NP3, draws["frame"], aspects_NA[:, ASPECTS.index("frame")])
    joints_NJ3, tips_NT3 = points_NP3[:, :14], points_NP3[:, 14:]
    level_N = aspects_NA[:, ASPECTS.index("occlusion")]
    occluders = _occluders(draws["occluders"], level_N, joints_NJ3[..., :2], unit_N)
    covered_NJ = covered(occluders, joints_NJ3[..., :2])
    missing_NJ = _missing(draws["missing"][:, :14], covered_NJ, joints_NJ3[..., :2], size_N2, domain)
    return People(
        aspects_NA=aspects_NA,
        joints_NJ3=joints_NJ3,
        tips_NT3=tips_NT3,
        frames_NF33=frames_NF33,
        unit_N=unit_N,
        size_N2=size_N2,
        occluders=occluders,
        labelled_NJ=~missing_NJ,
        visible_NJ=~missing_NJ & ~covered_NJ,
        garbage_NJ2=_garbage(draws["missing"][:, 14:]),
    )


def walk(seed: int, phase_N: Array, yaw_N: Array) -> tuple[Array, Array]:
    """One upright person at N moments of walking: points (N, J + T, 3) in body heights from the pelvis, and the body frames.

    Args:
        seed: whose body it is, and how they hold their arms.
        phase_N: of the step, in radians; legs and arms swing with it, and are still where it stays.
        yaw_N: radians by which they are turned: 0 faces the camera, π/2 walks to the picture's right.
    """
    count = len(phase_N)
    draws = {name: np.repeat(block, count, axis=0) for name, block in _uniforms(seed, "easy", 0, 1).items()}
    easy_N = np.zeros(count)
    swing_NS = 0.5 + 0.5 * np.stack([np.sin(phase_N), -np.sin(phase_N)], axis=1)  # of the right and the left leg
    for name, flexion, bend, swings_NS in (("legs", 2, 4, swing_NS), ("arms", 2, 3, 1 - swing_NS)):
        u_NSK = draws[name].reshape(count, 2, 6).copy()
        u_NSK[..., 0] = 0.9  # nothing raised
        u_NSK[..., 1] = 0.4
        u_NSK[..., flexion] = swings_NS
        u_NSK[..., bend] = 0.15 + 0.3 * (1 - swings_NS)
        draws[name] = u_NSK.reshape(count, 12)
    draws["view"][:, 0], draws["view"][:, 1] = 1.0, 0.5
    points_NP3, frames_NF33 = _body(draws, easy_N)
    turn_N33 = _turn(1, yaw_N)
    return points_NP3 @ turn_N33.transpose(0, 2, 1), np.einsum("nij,nfjk->nfik", turn_N33, frames_NF33)


def _uniforms(seed: int, domain: str, start: int, count: int) -> dict[str, Array]:
    """The numbers in [0, 1) behind each person. Philox can jump: one person costs the same as one row of many."""
    if domain not in LEVELS:
        raise ConfigError(f"there is no synthetic domain {domain!r}; use one of: {', '.join(LEVELS)}")
    if min(seed, start, count) < 0:
        raise ConfigError(f"seed, first person and count must be 0 or more, got {seed}, {start}, {count}")
    entropy = np.random.SeedSequence([seed, list(LEVELS).index(domain)])
    stream = np.random.Philox(key=entropy.generate_state(2, np.uint64))
    width = sum(_DRAWS.values())
    stream.advance(start * width // 4)
    numbers_NK = np.random.Generator(stream).random((count, width))
    blocks = np.split(numbers_NK, np.cumsum(list(_DRAWS.values()))[:-1], axis=1)
    return dict(zip(_DRAWS, blocks, strict=True))


def _aspects(u_NK: Array, low: float, high: float) -> Array:
    """Levels (N, A): the aspects of one picture share its level but not exactly."""
    level_N1 = low + (high - low) * u_NK[:, :1]
    own_NA = (high - low) * 0.4 * (2 * u_NK[:, 1:] - 1)
    return np.clip(level_N1 + own_NA, 0.0, 1.0)


def _swing(u: Array, limit: Array | float) -> Array:
    """Signed values up to ``limit``, with the small ones the most frequent."""
    centred = 2 * u - 1
    return centred * np.sqrt(np.abs(centred)) * limit


def _blend(level_N: Array, easy_deg: float, hard_deg: float) -> Array:
    """Angle in radians between its easy and its hard value."""
    return np.deg2rad(easy_deg + (hard_deg - easy_deg) * level_N)


def _turn(axis: int, angle_N: Array) -> Array:
    """Rotation matrices (N, 3, 3) about one axis, right-handed."""
    matrix_N33 = np.zeros((len(angle_N), 3, 3))
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix_N33[:, axis, axis] = 1.0
    matrix_N33[:, first, first] = matrix_N33[:, second, second] = np.cos(angle_N)
    matrix_N33[:, second, first] = np.sin(angle_N)
    matrix_N33[:, first, second] = -matrix_N33[:, second, first]
    return matrix_N33


def _frames(view_NK: Array, trunk_NK: Array, pose_N: Array) -> Array:
    """Frames (N, F, 3, 3) of pelvis, chest and head in camera axes."""
    away_N = view_NK[:, 0] < 0.3 + 0.15 * pose_N
    yaw_N = np.pi * away_N + _swing(view_NK[:, 1], _blend(pose_N, 60, 95))
    lean_N = _swing(view_NK[:, 2], _blend(pose_N, 8, 55))
    tumbles_N = view_NK[:, 3] < 0.8 * (pose_N - 0.3)  # handstands, cartwheels, people who lie
    roll_N = np.where(tumbles_N, np.pi * (2 * view_NK[:, 4] - 1), _swing(view_NK[:, 4], _blend(pose_N, 10, 45)))
    camera_N = _swing(view_NK[:, 5], _blend(pose_N, 5, 45))
    pelvis_N33 = _turn(2, roll_N) @ _turn(0, camera_N) @ _turn(1, yaw_N) @ _turn(0, lean_N)
    pelvis_N33[:, 1] *= -1.0  # the camera's y points down
    flex_N = _blend(pose_N, 4, 20) + _swing(trunk_NK[:, 0], _blend(pose_N, 10, 60))
    bend_N = _swing(trunk_NK[:, 1], _blend(pose_N, 12, 35))
    twist_N = _swing(trunk_NK[:, 2], _blend(pose_N, 20, 45))
    chest_N33 = pelvis_N33 @ _turn(1, twist_N) @ _turn(2, bend_N) @ _turn(0, flex_N)
    nod_N = _swing(trunk_NK[:, 3], _blend(pose_N, 15, 45))
    tilt_N = _swing(trunk_NK[:, 4], _blend(pose_N, 15, 35))
    gaze_N = _swing(trunk_NK[:, 5], _blend(pose_N, 35, 70))
    head_N33 = chest_N33 @ _turn(1, gaze_N) @ _turn(2, tilt_N) @ _turn(0, nod_N)
    return np.stack([pelvis_N33, chest_N33, head_N33], axis=1)


def _hang(abduct_NS: Array, flex_NS: Array) -> tuple[Array, Array]:
    """Direction (N, S, 3) of a limb that hangs down at 0, and where its end goes when flexed further."""
    sine_NS, cosine_NS = _SIDE_S * np.sin(abduct_NS), np.cos(abduct_NS)
    along_NS3 = np.stack([sine_NS * np.cos(flex_NS), -cosine_NS * np.cos(flex_NS), np.sin(flex_NS)], axis=-1)
    front_NS3 = np.stack([-sine_NS * np.sin(flex_NS), cosine_NS * np.sin(flex_NS), np.cos(flex_NS)], axis=-1)
    return along_NS3, front_NS3


def _fold(along_NS3: Array, inwards_NS3: Array, angle_NS: Array, twist_NS: Array) -> tuple[Array, Array]:
    """Direction of the part beyond a knee or elbow, and the direction away from the fold (where toes point)."""
    across_NS3 = np.cross(along_NS3, inwards_NS3)
    towards_NS3 = np.cos(twist_NS)[..., None] * inwards_NS3 + np.sin(twist_NS)[..., None] * across_NS3
    sine_NS1, cosine_NS1 = np.sin(angle_NS)[..., None], np.cos(angle_NS)[..., None]
    return cosine_NS1 * along_NS3 + sine_NS1 * towards_NS3, sine_NS1 * along_NS3 - cosine_NS1 * towards_NS3


def _arms(u_NK: Array, pose_N: Array) -> tuple[Array, Array]:
    """Directions (N, S, 3) of upper arm and forearm in the chest's frame; the arms move on their own."""
    u_NSK, pose_N1 = u_NK.reshape(-1, 2, 6), pose_N[:, None]
    raised_NS = u_NSK[..., 0] < 0.15 + 0.4 * pose_N1
    low_NS = np.deg2rad(8) + u_NSK[..., 1] * _blend(pose_N1, 60, 85)
    high_NS = np.deg2rad(90) + u_NSK[..., 1] * _blend(pose_N1, 70, 85)
    flex_NS = np.deg2rad(10) + _swing(u_NSK[..., 2], _blend(pose_N1, 40, 85))
    along_NS3, front_NS3 = _hang(np.where(raised_NS, high_NS, low_NS), flex_NS)
    angle_NS = np.deg2rad(8) + u_NSK[..., 3] * _blend(pose_N1, 85, 140)
    twist_NS = _swing(u_NSK[..., 4], _blend(pose_N1, 60, 100))
    return along_NS3, _fold(along_NS3, front_NS3, angle_NS, twist_NS)[0]


def _legs(u_NK: Array, pose_N: Array) -> tuple[Array, Array, Array]:
    """Directions (N, S, 3) of thigh, shin and foot in the pelvis's frame."""
    u_NSK, pose_N1 = u_NK.reshape(-1, 2, 6), pose_N[:, None]
    abduct_NS = np.deg2rad(3) + u_NSK[..., 0] ** 2 * _blend(pose_N1, 20, 80)
    lifted_NS = u_NSK[..., 1] < 0.1 + 0.4 * pose_N1
    flex_NS = _swing(u_NSK[..., 2], _blend(pose_N1, 22, 50))
    flex_NS = flex_NS + lifted_NS * u_NSK[..., 3] * _blend(pose_N1, 40, 110)
    along_NS3, front_NS3 = _hang(abduct_NS, flex_NS)
    bend_NS = np.deg2rad(4) + u_NSK[..., 4] ** 1.5 * _blend(pose_N1, 50, 135)
    shin_NS3, front_NS3 = _fold(along_NS3, -front_NS3, bend_NS, _swing(u_NSK[..., 5], _blend(pose_N1, 10, 35)))
    return along_NS3, shin_NS3, 0.4 * shin_NS3 + 0.92 * front_NS3


def _carry(frame_N33: Array, vector_NS3: Array) -> Array:
    """Vectors of a body frame in camera axes."""
    return np.asarray(vector_NS3 @ frame_N33.transpose(0, 2, 1))


def _body(draws: Mapping[str, Array], pose_N: Array) -> tuple[Array, Array]:
    """Points (N, J + T, 3) in camera axes, body heights from the pelvis, and the body frames."""
    frames_NF33 = _frames(draws["view"], draws["trunk"], pose_N)
    pelvis_N33, chest_N33, head_N33 = frames_NF33.transpose(1, 0, 2, 3)
    lengths_K8 = np.array([0.29, 0.245, 0.245, 0.17, 0.15, 0.23, 0.17, 0.2])
    limits_K8 = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.15, 0.15, 0.1])
    length_8N11 = (lengths_K8 * (1 + _swing(draws["body"], limits_K8))).T[:, :, None, None]
    torso, thigh, shin, upper, fore, shoulders, hips, head = length_8N11
    sides_1S3 = np.stack([_SIDE_S, 0 * _SIDE_S, 0 * _SIDE_S], axis=-1)[None] / 2
    hips_NS3 = _carry(pelvis_N33, hips * sides_1S3)
    neck_N13 = torso * (0.4 * pelvis_N33[:, None, :, 1] + 0.6 * chest_N33[:, None, :, 1])
    top_N13 = neck_N13 + head * head_N33[:, None, :, 1]
    shoulders_NS3 = neck_N13 + _carry(chest_N33, shoulders * sides_1S3 - [0.0, 0.015, 0.0])
    arm_NS3, forearm_NS3 = (_carry(chest_N33, part) for part in _arms(draws["arms"], pose_N))
    thigh_NS3, shin_NS3, foot_NS3 = (_carry(pelvis_N33, part) for part in _legs(draws["legs"], pose_N))
    elbows_NS3 = shoulders_NS3 + upper * arm_NS3
    wrists_NS3 = elbows_NS3 + fore * forearm_NS3
    knees_NS3 = hips_NS3 + thigh * thigh_NS3
    ankles_NS3 = knees_NS3 + shin * shin_NS3
    right = [part[:, :1] for part in (ankles_NS3, knees_NS3, hips_NS3)]
    left = [part[:, 1:] for part in (hips_NS3, knees_NS3, ankles_NS3)]
    right += [part[:, :1] for part in (wrists_NS3, elbows_NS3, shoulders_NS3)]
    left += [part[:, 1:] for part in (shoulders_NS3, elbows_NS3, wrists_NS3)]
    tips = [ankles_NS3 + 0.085 * foot_NS3, wrists_NS3 + 0.06 * forearm_NS3]
    ordered = [*right[:3], *left[:3], *right[3:], *left[3:], neck_N13, top_N13, *tips]
    return np.concatenate(ordered, axis=1), frames_NF33


def _place(points_NP3: Array, u_NK: Array, level_N: Array) -> tuple[Array, Array, npt.NDArray[np.int64]]:
    """Points in pixels, pixels per body height and picture sizes.

    The longer side of a person is 110 to 150 pixels as in LSP, less for those who crouch. Pictures that are
    hard to frame cut a part of the person off.
    """
    joints_NJ2 = points_NP3[:, : len(LSP), :2]
    span_N = (joints_NJ2.max(axis=1) - joints_NJ2.min(axis=1)).max(axis=1)
    unit_N = (110 + 40 * u_NK[:, 0]) / np.maximum(span_N, 0.7)
    low_N2, high_N2 = points_NP3[..., :2].min(axis=1) - 0.04, points_NP3[..., :2].max(axis=1) + 0.04
    extent_N2 = (high_N2 - low_N2) * unit_N[:, None]
    size_N2 = np.clip(np.ceil(extent_N2 + 10 + 40 * u_NK[:, 1:3]), [112, 144], [200, 200])
    corner_N2 = 2 + (size_N2 - 4 - extent_N2) * u_NK[:, 3:5]
    cut_off_N = u_NK[:, 5] < 0.9 * (level_N - 0.3)
    angle_N = 2 * np.pi * u_NK[:, 6]
    way_N2 = np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1)
    far_N2 = way_N2 * extent_N2 * (0.15 + 0.25 * u_NK[:, 7:8])
    corner_N2 += np.where(cut_off_N[:, None], far_N2, 0.0)
    moved_NP3 = points_NP3 * unit_N[:, None, None]
    moved_NP3[..., :2] += (corner_N2 - low_N2 * unit_N[:, None])[:, None]
    return moved_NP3, unit_N, size_N2.astype(np.int64)


def _occluders(u_NK: Array, level_N: Array, joints_NJ2: Array, unit_N: Array) -> Occluders:
    """Up to M things in front of a person, each over a joint drawn at random."""
    u_NMK, level_N1 = u_NK.reshape(-1, OCCLUDERS, 8), level_N[:, None]
    pick_NM = (u_NMK[..., 0] * joints_NJ2.shape[1]).astype(np.intp)
    anchor_NM2 = np.take_along_axis(joints_NJ2, pick_NM[..., None], axis=1)
    shift_NM2 = 0.12 * (2 * u_NMK[..., 1:3] - 1) * unit_N[:, None, None]
    size_NM = (0.03 + (0.03 + 0.11 * level_N1) * u_NMK[..., 3]) * unit_N[:, None]
    ratio_NM = 1 + 1.2 * u_NMK[..., 4]
    return Occluders(
        centre_NM2=anchor_NM2 + shift_NM2,
        half_NM2=np.stack([size_NM * ratio_NM, size_NM / np.sqrt(ratio_NM)], axis=-1),
        angle_NM=np.pi * u_NMK[..., 5],
        box_NM=u_NMK[..., 6] < 0.6,
        present_NM=u_NMK[..., 7] < 1.1 * level_N1 - 0.25 * np.arange(OCCLUDERS),
    )


def covered(occluders: Occluders, points_NP2: Array) -> Bools:
    """Points (N, P) that lie under an occluder; the person's own body does not count."""
    offset_NPM2 = points_NP2[:, :, None] - occluders.centre_NM2[:, None]
    cosine_N1M, sine_N1M = np.cos(occluders.angle_NM)[:, None], np.sin(occluders.angle_NM)[:, None]
    along_NPM = offset_NPM2[..., 0] * cosine_N1M + offset_NPM2[..., 1] * sine_N1M
    across_NPM = offset_NPM2[..., 1] * cosine_N1M - offset_NPM2[..., 0] * sine_N1M
    along_NPM = np.abs(along_NPM) / occluders.half_NM2[:, None, :, 0]
    across_NPM = np.abs(across_NPM) / occluders.half_NM2[:, None, :, 1]
    in_box_NPM = np.maximum(along_NPM, across_NPM) <= 1
    in_ellipse_NPM = np.hypot(along_NPM, across_NPM) <= 1
    inside_NPM = np.where(occluders.box_NM[:, None], in_box_NPM, in_ellipse_NPM)
    return np.asarray((inside_NPM & occluders.present_NM[:, None]).any(axis=2))


def _missing(u_NJ: Array, covered_NJ: Bools, joints_NJ2: Array, size_N2: npt.NDArray[np.int64], domain: str) -> Bools:
    """Joints without a label: off the picture and, in the hard domain, many of those that are covered.

    Annotators guess covered hips and shoulders more readily than covered wrists, so torsos stay measurable.
    """
    outside_NJ = ((joints_NJ2 < 0) | (joints_NJ2 > size_N2[:, None] - 1)).any(axis=2)
    if domain == "easy":
        return np.asarray(outside_NJ)
    chance_NJ = np.where(covered_NJ, np.where(_TORSO_J, 0.15, 0.5), np.where(_TORSO_J, 0.005, 0.04))
    return np.asarray(outside_NJ | (u_NJ < chance_NJ))


def _garbage(u_NJ: Array) -> Array:
    """Positions (N, J, 2) for joints without a label."""
    depth_NJ = np.floor(np.abs(2 * u_NJ - 1) * 12)
    return np.stack([np.where(u_NJ < 0.5, -depth_NJ, 0.0), np.where(u_NJ < 0.5, 0.0, -depth_NJ)], axis=2)
