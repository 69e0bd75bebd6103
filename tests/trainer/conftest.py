"""Tiny data for the tests of the trainer: made in memory, learnable, no renderer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from alpose.runtime.skeleton import Skeleton
from alpose.trainer.checkpoint import PoseModel, TargetConfig, new_model
from alpose.trainer.data.crops import CropConfig, Crops
from alpose.trainer.device import DeviceContext
from alpose.trainer.models.hourglass import HourglassConfig

from ..fakes.people import made_people

DOTS = Skeleton("dots", ("left_dot", "right_dot", "top"), ((0, 2), (1, 2)), ((0, 1),))


@pytest.fixture(autouse=True, scope="session")
def _one_thread(one_torch_thread: None) -> None:
    """For every test here."""


def _make_crops(count: int, *, seed: int = 0, context: float = 0.25, unlabelled: float = 0.0) -> Crops:
    """People of three joints, each a blurred dot of its own colour on noise, in crops of 64 px."""
    rng = np.random.default_rng(seed)
    config = CropConfig(size_px=64, context=context)
    side = config.size_px + 2 * config.context_px
    joints_NJ2 = rng.uniform(8, 55, (count, 3, 2)).astype(np.float32)
    axis_S = np.arange(side) - config.context_px
    bell_NJ2S = np.exp(-((axis_S - joints_NJ2[..., None]) ** 2) / (2 * 3.0**2))
    dots_NSSJ = np.einsum("njs,njt->nstj", bell_NJ2S[:, :, 1], bell_NJ2S[:, :, 0])
    pixels_NTS3 = (200 * dots_NSSJ + rng.uniform(0, 40, dots_NSSJ.shape)).clip(0, 255).astype(np.uint8)
    labelled_NJ = rng.uniform(size=(count, 3)) >= unlabelled
    scale_N = rng.uniform(0.5, 3, count).astype(np.float32)
    data = made_people(
        DOTS, joints_NJ2 * scale_N[:, None, None], name="dots", ids=tuple(f"dots/{seed}-{row}" for row in range(count)),
        labelled_NJ=labelled_NJ, boxes_N4=np.tile(np.array([0, 0, 64, 64], np.float32), (count, 1)) * scale_N[:, None],
    )  # fmt: skip
    return Crops(data, config, pixels_NTS3, np.arange(count), scale_N, joints_NJ2, ())


def _make_model(seed: int = 0, **changes: int) -> PoseModel:
    size = {"joints": len(DOTS), "stacks": 1, "channels": 8, "depth": 4, **changes}
    return new_model(HourglassConfig(**size), DOTS, CropConfig(size_px=64), TargetConfig(), seed)


@pytest.fixture(scope="session")
def make_crops() -> Callable[..., Crops]:
    return _make_crops


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PoseModel]:
    return _make_model


@pytest.fixture(scope="session")
def cpu() -> DeviceContext:
    return DeviceContext(torch.device("cpu"), torch.float32)
