"""Which joint of the labels is which joint of a net.

A net and the labels need not have the same joints: MoveNet answers the 17 of COCO, LSP labels 14 others, and they share 12.
Labels are rewritten in the net's skeleton, where a joint that the labels lack is unlabelled and enters nothing.

Shapes: N people, J joints of the net, K joints of the labels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError
from alpose.runtime.skeleton import SIDES, Skeleton

from ..data.records import PoseData

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+|\d+")
_SIDE = {word: ("left", "right")[k] for pair in SIDES for k, word in enumerate(pair)}
_SAME = (
    ("neck", "upper neck"), ("head top", "top head", "top of head", "head vertex"), ("foot index", "big toe"),
    ("pelvis", "mid hip", "hip center", "hip centre", "center hip", "root"),
)  # fmt: skip
"""Names of one place. MPII's thorax is not LSP's neck."""
_CANONICAL = {frozenset(name.split()): frozenset(names[0].split()) for names in _SAME for name in names}


def _words(joint: str) -> frozenset[str]:
    """A joint's name without its spelling: ``LeftKnee``, ``knee.L`` and ``left_knee`` are one."""
    words = [word.lower() for word in _WORD.findall(joint)]
    if len(words) == 1 and words[0] not in _SIDE:  # ``leftknee``
        for side in ("left", "right"):
            if words[0].startswith(side):
                words = [side, words[0][len(side) :]]
    named = frozenset(_SIDE.get(word, word) for word in words)
    sides = named & {"left", "right"}
    return _CANONICAL.get(named - sides, named - sides) | sides


def match_joints(
    net: Skeleton, labels: Skeleton, stated: Mapping[str, str] | str | None = None
) -> npt.NDArray[np.int64]:
    """Return, for each joint of the net, the joint of the labels that is the same place, or -1.

    By name, whatever the spelling.

    Args:
        net: J joints.
        labels: K joints.
        stated: joints of the net and of the labels that belong together although their names differ, as a mapping or as text:
            ``thorax:neck,head:head_top``. ``nose:-`` keeps a joint out. The rest goes by name.

    Raises:
        ConfigError: no joint is common to both, a stated one does not exist, or two joints of the net would take one label.
    """
    place = {_words(joint): k for k, joint in enumerate(labels.joints)}
    order_J = np.array([place.get(_words(joint), -1) for joint in net.joints])
    for left, right in _pairs(stated):
        if left not in net.joints:
            raise ConfigError(f"joints: the net has no joint {left!r}; it has {', '.join(net.joints)}")
        if right != "-" and right not in labels.joints:
            raise ConfigError(f"joints: the labels have no joint {right!r}; they have {', '.join(labels.joints)}")
        order_J[net.index(left)] = -1 if right == "-" else labels.index(right)
    used = [int(k) for k in order_J if k >= 0]
    if len(set(used)) != len(used):
        twice = next(k for k in used if used.count(k) > 1)
        both = ", ".join(net.joints[j] for j in np.flatnonzero(order_J == twice))
        raise ConfigError(
            f"joints: {both} of the net are both {labels.joints[twice]} of the labels; state one of them as NAME:-"
        )
    if not used:
        raise ConfigError(
            f"joints: the net ({net.name}: {_some(net)}) and the labels ({labels.name}: {_some(labels)}) have none in common "
            "by name; state which belong together as NET:LABEL,NET:LABEL"
        )
    return order_J


def in_skeleton(data: PoseData, net: Skeleton, order_J: npt.NDArray[np.int64]) -> PoseData:
    """Rewrite labels in a net's skeleton, ``order_J`` as :func:`match_joints` gives it; joints that are missing are unlabelled."""
    if data.skeleton == net and (order_J == np.arange(len(net))).all():
        return data
    there_J = order_J >= 0
    joints_NJ2 = np.where(there_J[:, None], data.joints_NJ2[:, order_J], 0).astype(np.float32)
    return replace(
        data,
        skeleton=net,
        joints_NJ2=joints_NJ2,
        labelled_NJ=data.labelled_NJ[:, order_J] & there_J,
        visible_NJ=data.visible_NJ[:, order_J] & there_J,
    )


def _pairs(stated: Mapping[str, str] | str | None) -> list[tuple[str, str]]:
    if stated is None:
        return []
    if not isinstance(stated, str):
        return list(stated.items())
    pairs = [tuple(part.strip() for part in pair.split(":")) for pair in stated.split(",") if pair.strip()]
    for pair in pairs:
        if len(pair) != 2 or not all(pair):
            raise ConfigError(f"joints: write NET:LABEL,NET:LABEL (LABEL may be - for none), got {stated!r}")
    return [(left, right) for left, right in pairs]


def _some(skeleton: Skeleton, most: int = 8) -> str:
    more = f" and {len(skeleton) - most} more" if len(skeleton) > most else ""
    return ", ".join(skeleton.joints[:most]) + more
