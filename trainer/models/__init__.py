"""Pose nets and heads. Here: the pose nets that there are, and how a checkpoint names them.

A net takes (B, 3, 4H, 4W) to a :class:`PoseOutput`. Its config knows ``joints``, and the ``widths`` and ``sizes`` of
the feature pyramid, from which loss heads are built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from alpose.runtime.errors import ConfigError

from .hourglass import HourglassConfig, StackedHourglass
from .hrnet import HRNet, HRNetConfig

PoseNet = StackedHourglass | HRNet
NetConfig = HourglassConfig | HRNetConfig

KIND = "net"


def build_net(config: NetConfig) -> PoseNet:
    """The net that a config describes, with fresh weights."""
    return HRNet(config) if isinstance(config, HRNetConfig) else StackedHourglass(config)


def channels_of(config: NetConfig) -> int | tuple[int, ...]:
    """One number where all scales of the pyramid have the same, as heads say it."""
    widths = config.widths
    return widths[0] if len(set(widths)) == 1 else widths


def net_to_json(config: NetConfig) -> dict[str, Any]:
    """Plain values. An hourglass does not name its kind: checkpoints are older than the second kind."""
    kind = {KIND: "hrnet"} if isinstance(config, HRNetConfig) else {}
    return {**kind, **asdict(config)}


def net_from_json(value: Mapping[str, Any]) -> NetConfig:
    """What :func:`net_to_json` gave. Raises ConfigError, TypeError or KeyError for anything else."""
    own = dict(value)
    match own.pop(KIND, "hourglass"):
        case "hourglass":
            return HourglassConfig(**own)
        case "hrnet":
            return HRNetConfig(**{**own, "modules": tuple(own["modules"])})
        case other:
            raise ConfigError(f"unknown kind of pose net {other!r}; known: hourglass, hrnet")
