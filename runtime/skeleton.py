"""Skeletons: joint names, links to draw, and which joints swap when an image is mirrored.

Shapes: J joints, L links, P pairs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import DataError
from .io import fields_from_json, fields_to_json


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The joints of one dataset, in its own order.

    ``links`` and ``flip_pairs`` hold joint indices. A skeleton compares by value, so one that was read from
    a file equals the built-in one.
    """

    name: str
    joints: tuple[str, ...]
    links: tuple[tuple[int, int], ...]
    flip_pairs: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        count = len(self.joints)
        if count == 0 or len(set(self.joints)) != count:
            raise DataError(f"skeleton {self.name!r}: joint names must be unique and at least one, got {self.joints}")
        for kind, pairs in (("link", self.links), ("flip pair", self.flip_pairs)):
            for pair in pairs:
                if len(pair) != 2 or not all(0 <= j < count for j in pair):
                    raise DataError(f"skeleton {self.name!r}: {kind} {pair} does not name two of {count} joints")
        swapped = [joint for pair in self.flip_pairs for joint in pair]
        if len(set(swapped)) != len(swapped):
            raise DataError(f"skeleton {self.name!r}: a joint is in two flip pairs: {self.flip_pairs}")

    def __len__(self) -> int:
        return len(self.joints)

    def index(self, joint: str) -> int:
        """Index of a joint by name; an unknown name is an error that lists the known ones."""
        try:
            return self.joints.index(joint)
        except ValueError:
            known = ", ".join(self.joints)
            raise DataError(f"skeleton {self.name!r} has no joint {joint!r}; it has: {known}") from None

    def flip_order(self) -> tuple[int, ...]:
        """The joint order of a mirrored image: ``mirrored[j] = original[flip_order()[j]]``."""
        order = list(range(len(self.joints)))
        for a, b in self.flip_pairs:
            order[a], order[b] = b, a
        return tuple(order)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, which :meth:`from_json` reads back."""
        return fields_to_json(self)

    @classmethod
    def from_json(cls, value: Any, where: str = "skeleton") -> Skeleton:
        """Read the skeleton that :meth:`to_json` wrote."""
        return fields_from_json(cls, value, where)


SIDES = (
    ("left", "right"), ("l", "r"), ("lt", "rt"), ("lft", "rgt"), ("lh", "rh"), ("gauche", "droite"), ("gauche", "droit"),
    ("links", "rechts"), ("linke", "rechte"), ("linker", "rechter"), ("linkes", "rechtes"), ("izquierda", "derecha"),
    ("izquierdo", "derecho"), ("esquerda", "direita"), ("esquerdo", "direito"), ("sinistra", "destra"),
    ("sinistro", "destro"), ("sx", "dx"), ("hidari", "migi"), ("左", "右"),
)  # fmt: skip
"""What left and right are called in joint names."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+|\d+")


def flip_pairs_by_name(joints: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Return pairs of joints whose names differ only in left and right.

    Whatever the spelling: ``left_knee``, ``knee.L``, ``LeftKnee``, ``LKnee``, ``leftknee``, ``kneel``, ``genou_gauche``.
    A name is a pair only with its partner: ``lip`` alone has no side.
    """
    words = [tuple(word.lower() for word in _WORD.findall(name)) for name in joints]
    place = {"".join(parts): joint for joint, parts in enumerate(words)}
    pairs: set[tuple[int, int]] = set()
    paired: set[int] = set()
    for loosely in (False, True):  # the last letter of ``heel`` is a side only where nothing plainer is
        for joint, parts in enumerate(words):
            for swapped in _other_side(parts, loosely):
                partner = place.get(swapped, joint)
                if partner != joint and not {joint, partner} & paired:
                    pairs.add((min(joint, partner), max(joint, partner)))
                    paired |= {joint, partner}
    return tuple(sorted(pairs))


def is_left(joint: str) -> bool:
    """Return whether the first side that a joint's name tells is left."""
    words = [word.lower() for word in _WORD.findall(joint)]
    for word in words:
        for left, right in SIDES:
            if word in (left, right) or (_is_long(left) and (left in word or right in word)):
                return left in word
    return "l" in (joint[:1].lower(), joint[-1:].lower())


BODY_AXIS = ("hip", "shoulder")
"""The joints between whose middles a body's axis runs, as their names have it."""


def body_axis(skeleton: Skeleton) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the joints of both hips and both shoulders; None for a skeleton without either.

    A joint is one of them where a word of its name is (``left_hip``, ``RightShoulder``, ``hip.L``). Where several pairs are,
    the first two count.
    """
    ends = []
    for part in BODY_AXIS:
        named = [joint for joint, name in enumerate(skeleton.joints)
                 if any(word.lower() in (part, f"{part}s") for word in _WORD.findall(name))]  # fmt: skip
        paired = [pair for pair in skeleton.flip_pairs if set(pair) <= set(named)]
        ends.append(paired[0] if paired else tuple(named[:2]))
    return (ends[0], ends[1]) if all(ends) else None


def _is_long(side: str) -> bool:
    """Whether a word for a side may be a part of another word."""
    return len(side) > 3 or not side.isascii()


def _other_side(words: tuple[str, ...], loosely: bool) -> Iterator[str]:
    """Yield what the mirrored joint may be called, all its sides swapped at once."""
    name = "".join(words)
    for left, right in SIDES:
        swap = {left: right, right: left}
        if loosely:
            if len(left) == 1 and len(name) > 3:
                yield swap.get(name[0], name[0]) + name[1:]
                yield name[:-1] + swap.get(name[-1], name[-1])
        elif any(word in swap for word in words):
            yield "".join(swap.get(word, word) for word in words)
        elif _is_long(left) and (left in name or right in name):
            yield "".join(swap.get(part, part) for part in re.split(f"({left}|{right})", name))


def with_flip_pairs(skeleton: Skeleton, pairs: str | Sequence[Sequence[str | int]]) -> Skeleton:
    """Return a skeleton with stated pairs: ``leftear:rightear,2:3`` or pairs of names; numbers count joints from 1.

    ``none`` states that there are none.
    """
    if isinstance(pairs, str):
        pairs = [] if pairs == "none" else [pair.split(":") for pair in pairs.split(",")]
    found = []
    for pair in pairs:
        joints = [_joint(skeleton, str(joint).strip()) for joint in pair] if isinstance(pair, list | tuple) else []
        if len(joints) != 2 or joints[0] == joints[1]:
            raise DataError(f"flip pairs: {pair!r} is not two joints of {skeleton.name!r}; write LEFT:RIGHT,LEFT:RIGHT")
        found.append((joints[0], joints[1]))
    return dataclasses.replace(skeleton, flip_pairs=tuple(found))


def _joint(skeleton: Skeleton, joint: str) -> int:
    if joint not in skeleton.joints and joint.isdecimal() and 1 <= int(joint) <= len(skeleton):
        return int(joint) - 1
    return skeleton.index(joint)


# LSP and LSPET count from the right ankle, as seen by the person.
LSP = Skeleton(
    name="lsp",
    joints=(
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
        "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist",
        "neck", "head_top",
    ),
    links=((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 12), (12, 9), (9, 10), (10, 11),
           (12, 13), (8, 2), (9, 3)),
    flip_pairs=((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9)),
)  # fmt: skip

MPII = Skeleton(
    name="mpii",
    joints=(
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
        "pelvis", "thorax", "upper_neck", "head_top",
        "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist",
    ),
    links=((0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (10, 11), (11, 12),
           (12, 7), (7, 13), (13, 14), (14, 15)),
    flip_pairs=((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)),
)  # fmt: skip

COCO = Skeleton(
    name="coco",
    joints=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
        "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip",
        "left_knee", "right_knee", "left_ankle", "right_ankle",
    ),
    links=((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
           (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
)  # fmt: skip
