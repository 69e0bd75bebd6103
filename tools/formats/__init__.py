"""Annotation formats: tasks out, answers in."""

from __future__ import annotations

from typing import Literal, get_args

FormatName = Literal["coco", "cvat", "label-studio"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)
