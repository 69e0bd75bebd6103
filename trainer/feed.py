"""Batches of crops on the training device.

Shapes: B batch, T crop side with context, J joints.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .data.crops import Crops
from .device import DeviceContext, to_device

RESIDENT_SHARE = 0.4
"""A dataset that takes less than this share of the GPU's free memory is kept there while it is trained on."""

AHEAD = 2
"""Batches that are read from the disk while another one is computed on."""


class Batch(NamedTuple):
    """Raw material of one step, on the device."""

    pixels_BTT3: Tensor
    joints_BJ2: Tensor
    labelled_BJ: Tensor


@dataclass(frozen=True, slots=True)
class Feed:
    """Random access to the people of ``crops`` as tensors of one machine."""

    crops: Crops
    machine: DeviceContext
    joints_NJ2: Tensor
    labelled_NJ: Tensor
    resident_NTT3: Tensor | None

    @classmethod
    def open(cls, crops: Crops, machine: DeviceContext, *, resident: bool = True) -> Feed:
        """Labels go to the device; pixels too when they fit and ``resident`` asks for it."""
        joints_NJ2 = torch.from_numpy(crops.joints_NJ2).to(machine.device)
        labelled_NJ = torch.from_numpy(crops.labelled_NJ).to(machine.device)
        kept = None
        if resident and machine.device.type == "cuda":
            size = len(crops) * int(np.prod(crops.pixels_NTS3.shape[1:]))
            if size < RESIDENT_SHARE * torch.cuda.mem_get_info(machine.device)[0]:
                kept = torch.empty((len(crops), *crops.pixels_NTS3.shape[1:]), dtype=torch.uint8, device=machine.device)
                for rows in np.array_split(np.arange(len(crops)), max(1, len(crops) // 256)):
                    kept[int(rows[0]) : int(rows[-1]) + 1] = torch.from_numpy(crops.read(rows)).to(machine.device)
        return cls(crops, machine, joints_NJ2, labelled_NJ, kept)

    def __len__(self) -> int:
        return len(self.crops)

    def batch(self, index_B: npt.NDArray[np.integer]) -> Batch:
        """These people."""
        return self._send(index_B, None if self.resident_NTT3 is not None else self._read(index_B))

    def stream(self, index: Iterable[npt.NDArray[np.integer]], ahead: int = AHEAD) -> Generator[Batch, None, None]:
        """These batches in their order; what is not on the device is read by a thread, so many batches ahead.

        ``ahead`` of 0 reads each batch when it is asked for.
        """
        if self.resident_NTT3 is not None or not ahead:
            yield from map(self.batch, index)
            return
        with ThreadPoolExecutor(1, "alpose-read") as reader:
            begun: deque[tuple[npt.NDArray[np.integer], Future[Tensor]]] = deque()
            try:
                for index_B in index:
                    begun.append((index_B, reader.submit(self._read, index_B)))
                    if len(begun) > ahead:
                        first_B, pixels = begun.popleft()
                        yield self._send(first_B, pixels.result())
                while begun:
                    first_B, pixels = begun.popleft()
                    yield self._send(first_B, pixels.result())
            finally:  # whoever stops early waits for no more than the batch that is being read
                for _, pixels in begun:
                    pixels.cancel()

    def _read(self, index_B: npt.NDArray[np.integer]) -> Tensor:
        """Pixels in the host's memory, page-locked where a GPU fetches them from it."""
        pixels = torch.from_numpy(self.crops.read(index_B))
        return pixels.pin_memory() if self.machine.device.type == "cuda" else pixels

    def _send(self, index_B: npt.NDArray[np.integer], pixels: Tensor | None) -> Batch:
        where_B = to_device(torch.from_numpy(np.asarray(index_B, dtype=np.int64)), self.machine.device)
        if pixels is None:
            assert self.resident_NTT3 is not None
            pixels = self.resident_NTT3[where_B]
        else:
            pixels = pixels.to(self.machine.device, non_blocking=True)
        return Batch(pixels, self.joints_NJ2[where_B], self.labelled_NJ[where_B])

    def bare(self, pixels_BTT3: Tensor) -> Tensor:
        """The crop without context, as evaluation and a monitor see it."""
        start = self.crops.config.context_px
        down, across = (slice(start, start + length) for length in self.crops.config.shape_px)
        return pixels_BTT3[:, down, across]
