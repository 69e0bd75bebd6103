"""One made-up person as flat polygons in painting order.

Shapes: J joints, T tips, P points of an outline, L limbs.
Everything is in pixels and camera axes: x right, y down, z towards the camera; pixel centres are whole numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from .synthetic_pose import Array, People

Colour = tuple[float, float, float]
Picture = npt.NDArray[np.uint8]

# name: (from, to, radius there and here in body heights, bias of the depth order in body heights).
# Points 0-13 are the joints, 14 and 15 the toes, 16 and 17 the fingers.
LIMBS: Mapping[str, tuple[int, int, float, float, float]] = {
    "right_foot": (0, 14, 0.024, 0.018, 0.0),
    "right_shin": (1, 0, 0.038, 0.025, 0.0),
    "right_thigh": (2, 1, 0.052, 0.038, 0.0),
    "left_thigh": (3, 4, 0.052, 0.038, 0.0),
    "left_shin": (4, 5, 0.038, 0.025, 0.0),
    "left_foot": (5, 15, 0.024, 0.018, 0.0),
    "right_hand": (6, 16, 0.019, 0.016, 0.04),
    "right_forearm": (7, 6, 0.026, 0.019, 0.04),
    "right_upper_arm": (8, 7, 0.034, 0.027, 0.04),
    "left_upper_arm": (9, 10, 0.034, 0.027, 0.04),
    "left_forearm": (10, 11, 0.026, 0.019, 0.04),
    "left_hand": (11, 17, 0.019, 0.016, 0.04),
    "neck": (12, 13, 0.03, 0.03, -0.02),
}
PARTS = (*LIMBS, "chest", "pelvis", "hair", "face", "eyes", "print")
_CIRCLE_P2 = np.stack([np.cos(np.arange(16) * np.pi / 8), np.sin(np.arange(16) * np.pi / 8)], axis=1)
_HALF_P = np.linspace(-np.pi / 2, np.pi / 2, 7)


@dataclass(frozen=True, slots=True)
class Figure:
    """One person: 18 points (joints, toes, fingers), frames of pelvis, chest and head, pixels per body height."""

    points_P3: Array
    frames_F33: Array
    unit: float

    def moved(self, shift_2: Array, factor: float) -> Figure:
        """The same person elsewhere: scaled about its neck, then shifted."""
        points_P3 = (self.points_P3 - self.points_P3[12]) * factor + self.points_P3[12]
        points_P3[:, :2] += shift_2
        return Figure(points_P3, self.frames_F33, self.unit * factor)


@dataclass(frozen=True, slots=True)
class Look:
    """Colours of every part in :data:`PARTS`, the direction of the light and how deep its shadows are."""

    colours: Mapping[str, Colour]
    light_2: Array
    shade: float


class Fill(NamedTuple):
    """One polygon to paint."""

    outline_P2: Array
    colour: Colour


Layer = tuple[float, list[Fill]]  # depth (greater is nearer) and what to paint there


def figure(people: People, row: int) -> Figure:
    """One of many people."""
    points_P3 = np.concatenate([people.joints_NJ3[row], people.tips_NT3[row]])
    return Figure(points_P3, people.frames_NF33[row], float(people.unit_N[row]))


def paint_figure(picture_HW3: Picture, person: Figure, look: Look) -> None:
    """Paint a person, far parts first."""
    layers = [*_limbs(person, look), _pelvis(person, look), _chest(person, look), _head(person, look)]
    for _, fills in sorted(layers, key=lambda layer: layer[0]):
        for fill in fills:
            paint(picture_HW3, *fill)


def paint(picture_HW3: Picture, outline_P2: Array, colour: Colour) -> None:
    """Fill a convex polygon, smooth at its edges."""
    fixed_P2 = np.rint(outline_P2 * 16).astype(np.int32)  # OpenCV counts in sixteenths of a pixel: shift=4
    cv2.fillConvexPoly(picture_HW3, fixed_P2, colour, cv2.LINE_AA, 4)


def tint(colour: Colour, factor: float) -> Colour:
    """A colour in more or less light."""
    red, green, blue = (min(max(channel * factor, 0.0), 255.0) for channel in colour)
    return red, green, blue


def capsules(start_L2: Array, end_L2: Array, start_radius_L: Array, end_radius_L: Array) -> Array:
    """Outlines (L, P, 2) of rods with round ends."""
    delta_L2 = end_L2 - start_L2
    angle_LP = np.arctan2(delta_L2[:, 1], delta_L2[:, 0])[:, None] + _HALF_P
    arc_LP2 = np.stack([np.cos(angle_LP), np.sin(angle_LP)], axis=2)
    end_LP2 = end_L2[:, None] + arc_LP2 * end_radius_L[:, None, None]
    start_LP2 = start_L2[:, None] - arc_LP2 * start_radius_L[:, None, None]
    return np.concatenate([end_LP2, start_LP2], axis=1)


def _limbs(person: Figure, look: Look) -> list[Layer]:
    """Every limb in three tones: its shadow side, itself and a streak of light."""
    table_L5 = np.array(list(LIMBS.values()))
    start_L3, end_L3 = (person.points_P3[table_L5[:, end].astype(np.intp)] for end in (0, 1))
    end_L3[-1] = (start_L3[-1] + end_L3[-1]) / 2  # the neck ends inside the head
    radius_L, end_radius_L = table_L5[:, 2] * person.unit, table_L5[:, 3] * person.unit
    depth_L = (start_L3[:, 2] + end_L3[:, 2]) / 2 + table_L5[:, 4] * person.unit
    tones = []
    for narrow, aside, factor in (
        (1.0, 0.0, 1 - look.shade),
        (0.78, 0.2, 1.0),
        (0.3, 0.4, 1 + look.shade / 2),
    ):
        shift_L2 = look.light_2 * (aside * np.minimum(radius_L, end_radius_L))[:, None]
        outline_LP2 = capsules(
            start_L3[:, :2] + shift_L2, end_L3[:, :2] + shift_L2, radius_L * narrow, end_radius_L * narrow
        )
        tones.append([Fill(outline_LP2[row], tint(look.colours[name], factor)) for row, name in enumerate(LIMBS)])
    return [(float(depth), list(fills)) for depth, *fills in zip(depth_L, *tones, strict=True)]


def _ring(centre_3: Array, frame_33: Array, width: float, depth: float) -> Array:
    """Points (P, 3) of a flat ring round the trunk."""
    ring_P3: Array = centre_3 + _CIRCLE_P2 * [width, depth] @ frame_33[:, [0, 2]].T
    return ring_P3


def _trunk(rings: list[Array], colour: Colour, look: Look) -> list[Fill]:
    """The hull of some rings in three tones."""
    points_P2 = np.concatenate(rings)[:, :2]
    hull_P2 = cv2.convexHull(points_P2.astype(np.float32))[:, 0].astype(np.float64)
    centre_2 = hull_P2.mean(axis=0)
    reach = float(np.sqrt(((hull_P2 - centre_2) ** 2).sum(axis=1).min()))
    fills = [Fill(hull_P2, tint(colour, 1 - look.shade))]
    for narrow, aside, factor in ((0.84, 0.14, 1.0), (0.45, 0.3, 1 + look.shade / 3)):
        inner_P2 = centre_2 + (hull_P2 - centre_2) * narrow + look.light_2 * aside * reach
        fills.append(Fill(inner_P2, tint(colour, factor)))
    return fills


def _pelvis(person: Figure, look: Look) -> Layer:
    """Hips and belt."""
    points_P3, unit, frame_33 = person.points_P3, person.unit, person.frames_F33[0]
    middle_3, half = (points_P3[2] + points_P3[3]) / 2, np.linalg.norm(points_P3[2] - points_P3[3]) / 2
    rings = [
        _ring(middle_3 + frame_33[:, 1] * up * unit, frame_33, float(half) + wide * unit, deep * unit)
        for up, wide, deep in ((-0.03, 0.03, 0.05), (0.02, 0.045, 0.07), (0.09, 0.02, 0.06))
    ]
    return float(middle_3[2]), _trunk(rings, look.colours["pelvis"], look)


def _chest(person: Figure, look: Look) -> Layer:
    """Shirt from shoulders to waist, with a print on the front that tells front from back."""
    points_P3, unit, frame_33 = person.points_P3, person.unit, person.frames_F33[1]
    top_3, half = (points_P3[8] + points_P3[9]) / 2, float(np.linalg.norm(points_P3[8] - points_P3[9])) / 2
    hips_3 = (points_P3[2] + points_P3[3]) / 2
    length = float(np.linalg.norm(points_P3[12] - hips_3))
    waist_3 = hips_3 + person.frames_F33[0][:, 1] * 0.3 * length
    rings = [
        _ring(top_3 + frame_33[:, 1] * 0.012 * unit, frame_33, half * 0.8, 0.045 * unit),
        _ring(top_3 - frame_33[:, 1] * 0.02 * unit, frame_33, half + 0.012 * unit, 0.06 * unit),
        _ring(top_3 - frame_33[:, 1] * 0.09 * unit, frame_33, half * 0.92, 0.078 * unit),
        _ring(waist_3, person.frames_F33[0], 0.095 * unit, 0.068 * unit),
    ]
    fills = _trunk(rings, look.colours["chest"], look)
    if frame_33[2, 2] > 0.1:
        fills += _print(top_3, waist_3, frame_33, unit, look)
    depth = (top_3[2] + waist_3[2]) / 2 + 0.01 * unit
    return float(depth), fills


def _print(top_3: Array, waist_3: Array, frame_33: Array, unit: float, look: Look) -> list[Fill]:
    """The collar's skin and a strip down the front of a shirt."""
    left_3, front_3 = frame_33[:, 0] * unit, frame_33[:, 2] * unit
    low_3, high_3 = waist_3 + 0.066 * front_3, top_3 + 0.05 * front_3
    strip_P3 = np.stack(
        [low_3 - 0.016 * left_3, low_3 + 0.016 * left_3, high_3 + 0.016 * left_3, high_3 - 0.016 * left_3]
    )
    notch_3 = high_3 + 0.3 * (low_3 - high_3)
    collar_P3 = np.stack([high_3 - 0.045 * left_3, notch_3, high_3 + 0.045 * left_3])
    return [
        Fill(strip_P3[:, :2], look.colours["print"]),
        Fill(collar_P3[:, :2], tint(look.colours["neck"], 0.95)),
    ]


def _head(person: Figure, look: Look) -> Layer:
    """An ellipsoid of hair whose highest point is the joint, with the face as a cap on it."""
    unit, frame_33 = person.unit, person.frames_F33[2]
    axes_33 = frame_33 * (np.array([0.052, 0.07, 0.06]) * unit)
    centre_3 = person.points_P3[13] - axes_33[:, 1]
    outline_P2 = centre_3[:2] + _support(axes_33)
    fills = [Fill(outline_P2, tint(look.colours["hair"], 1 - look.shade / 2))]
    inner_P2 = centre_3[:2] + 0.75 * (outline_P2 - centre_3[:2]) + look.light_2 * 0.01 * unit
    fills.append(Fill(inner_P2, look.colours["hair"]))
    fills += _face(centre_3, axes_33, look)
    return float(centre_3[2] + 0.04 * unit), fills


def _support(axes_33: Array) -> Array:
    """Outline (P, 2) of an ellipsoid about 0 as the camera sees it."""
    spread_22 = axes_33[:2] @ axes_33[:2].T
    reach_P = np.sqrt(np.einsum("pi,ij,pj->p", _CIRCLE_P2, spread_22, _CIRCLE_P2))
    return np.asarray(_CIRCLE_P2 @ spread_22 / reach_P[:, None])


def _cap(axes_33: Array, way_3: Array, angle: float) -> Array | None:
    """The part of an ellipsoid's skin around a direction (head axes) that the camera sees: (P, 2) or None."""
    way_3 = way_3 / np.linalg.norm(way_3)
    side_3 = np.cross(way_3, [0.0, 0.0, 1.0] if abs(way_3[2]) < 0.9 else [0.0, 1.0, 0.0])
    side_3 /= np.linalg.norm(side_3)
    turned_P3 = _CIRCLE_P2 @ np.stack([side_3, np.cross(way_3, side_3)])
    rim_P3 = (np.cos(angle) * way_3 + np.sin(angle) * turned_P3) @ axes_33.T
    if (rim_P3[:, 2] <= 0).all():
        return None
    outline_P2 = rim_P3[:, :2]
    # What lies behind the horizon is drawn up to the horizon.
    inverse_22 = np.linalg.inv(axes_33[:2] @ axes_33[:2].T)
    length_P = np.sqrt(np.einsum("pi,ij,pj->p", outline_P2, inverse_22, outline_P2))
    grow_P = np.where(rim_P3[:, 2] < 0, 1 / np.maximum(length_P, 1e-6), 1.0)
    hull_P12 = cv2.convexHull((outline_P2 * grow_P[:, None]).astype(np.float32))
    return np.asarray(hull_P12[:, 0], dtype=np.float64)


def _face(centre_3: Array, axes_33: Array, look: Look) -> list[Fill]:
    """Skin, eyes, nose and mouth, as far as they are on the camera's side."""
    skin = look.colours["face"]
    features = (
        ((0.0, -0.35, 1.0), 1.0, skin),
        ((-0.42, 0.0, 1.0), 0.13, look.colours["eyes"]),
        ((0.42, 0.0, 1.0), 0.13, look.colours["eyes"]),
        ((0.0, -0.3, 1.0), 0.13, tint(skin, 0.72)),
        ((0.0, -0.75, 1.0), 0.15, tint(skin, 0.6)),
    )
    fills = []
    for way, angle, colour in features:
        outline_P2 = _cap(axes_33, np.array(way), angle)
        if outline_P2 is not None:
            fills.append(Fill(centre_3[:2] + outline_P2, colour))
    return fills
