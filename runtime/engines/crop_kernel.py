"""The crop as a CUDA kernel, bit for bit what ``crop.cut`` and ``HostFrame.cut`` give.

Shapes: S samples across the crop, K taps of a sample.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from ..crop import AFTER, BETWEEN, Crop
from ..device_frames import DeviceFrame
from ..dlpack import Where
from ..frames import CHROMA_GREY, LUMA_BLACK, RGB_OF_YUV, YUV_UNIT, FrameFormat, accept
from .cuda import Cuda, CudaError
from .cuda_kernel import Kernel
from .device import plane_cuts, probe, require_same

NAME = "alpose_crop"
BLOCK = 16
"""Threads of a block along each axis of the crop."""

# One thread makes one pixel. Each pixel of the frame is read by about four threads, as many as there are filters over
# it: doing rows and columns in one go costs no more than two kernels with memory between them. Whole numbers below 2^24
# throughout; shifting a negative one to the right rounds it down, as floor does.
SOURCE = """
struct Axis { const int *index, *weight; int count; };  // index and weight: [count][size]

__device__ int sample(const unsigned char *plane, long long pitch, int channels, int channel, int black,
                      Axis rows, Axis columns, int row, int column, int size) {
    int across = 0;
    for (int m = column; m < columns.count * size; m += size) {
        if (!columns.weight[m]) continue;
        const unsigned char *line = plane + (long long)columns.index[m] * channels + channel;
        int down = 0;
        for (int k = row; k < rows.count * size; k += size)
            if (rows.weight[k]) down += rows.weight[k] * (line[rows.index[k] * pitch] - black);
        across += columns.weight[m] * ((down + BETWEEN / 2) >> BETWEEN_BITS);
    }
    return (across + AFTER / 2) >> AFTER_BITS;
}

__device__ unsigned char mix(int y, int u, int v, int of_y, int of_u, int of_v) {
    int level = (of_y * y + of_u * u + of_v * v + YUV_UNIT / 2) >> YUV_BITS;
    return level < 0 ? 0 : level > 255 ? 255 : level;
}

// taps: for every plane the axes rows and columns, of each its indices and then its weights.
extern "C" __global__ void alpose_crop(const unsigned char *first, const unsigned char *chroma, long long pitch,
                                       const int *taps, int rows, int columns, int chroma_rows, int chroma_columns,
                                       int size, int form, unsigned char *out) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= size || column >= size) return;
    Axis down = {taps, taps + rows * size, rows};
    Axis across = {down.weight + rows * size, down.weight + (rows + columns) * size, columns};
    unsigned char *pixel = out + ((long long)row * size + column) * 3;
    if (form != NV12) {
        for (int c = 0; c < 3; ++c)
            pixel[form == BGR ? 2 - c : c] = sample(first, pitch, 3, c, 0, down, across, row, column, size);
        return;
    }
    int y = sample(first, pitch, 1, 0, LUMA_BLACK, down, across, row, column, size);
    down.index = across.weight + columns * size;
    down = {down.index, down.index + chroma_rows * size, chroma_rows};
    across = {down.weight + chroma_rows * size, down.weight + (chroma_rows + chroma_columns) * size, chroma_columns};
    int u = sample(chroma, pitch, 2, 0, CHROMA_GREY, down, across, row, column, size);
    int v = sample(chroma, pitch, 2, 1, CHROMA_GREY, down, across, row, column, size);
    const int of[9] = RGB_OF_YUV;
    for (int c = 0; c < 3; ++c) pixel[c] = mix(y, u, v, of[3 * c], of[3 * c + 1], of[3 * c + 2]);
}
"""

_FORMS = {FrameFormat.RGB: 0, FrameFormat.BGR: 1, FrameFormat.NV12: 2}
_TYPES = (
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_longlong, ctypes.c_void_p, *(ctypes.c_int,) * 6, ctypes.c_void_p,
)  # fmt: skip
"""Of the kernel's parameters."""


def source() -> str:
    """The kernel with the numbers that every implementation of the crop shares."""
    numbers = {
        "BETWEEN": BETWEEN, "BETWEEN_BITS": BETWEEN.bit_length() - 1, "AFTER": AFTER,
        "AFTER_BITS": AFTER.bit_length() - 1, "YUV_UNIT": YUV_UNIT, "YUV_BITS": YUV_UNIT.bit_length() - 1,
        "LUMA_BLACK": LUMA_BLACK, "CHROMA_GREY": CHROMA_GREY,
        "RGB_OF_YUV": "{" + ", ".join(map(str, RGB_OF_YUV.ravel())) + "}",
        **{form.name: number for form, number in _FORMS.items()},
    }  # fmt: skip
    return "".join(f"#define {name} {value}\n" for name, value in numbers.items()) + SOURCE


class CropKernel:
    """Cuts crops on the GPU. It is compiled when this is made; the memory for the taps grows and is kept.

    Args:
        cuda: with its device current.
        stream: in which everything is queued.
    """

    def __init__(self, cuda: Cuda, stream: Any) -> None:
        self._cuda, self._stream = cuda, stream
        self._taps, self._taps_bytes = 0, 0
        self._attested: set[FrameFormat] = set()
        self._kernel = Kernel(cuda, source(), NAME)

    def queue(self, frame: DeviceFrame, crop: Crop, address: int) -> npt.NDArray[np.int32]:
        """Queue the writing of a crop (S, S, 3) to an address.

        Returns:
            what must live and stay as it is until the stream was waited for.
        """
        if frame.form not in self._attested:
            self._attested.add(frame.form)
            try:
                self._attest(frame.form, crop.size_px)
            except BaseException:
                self._attested.discard(frame.form)
                raise
        cuts = plane_cuts(frame, crop)
        taps = np.concatenate([
            np.ravel(part).astype(np.int32)
            for cut in cuts
            for part in (cut.row_KS, cut.row_weight_KS, cut.column_KS, cut.column_weight_KS)
        ])  # fmt: skip
        self._grow(taps.nbytes)
        self._cuda.to_device(self._taps, taps, self._stream)
        luma, chroma = cuts[0], cuts[-1]  # one and the same where there is one plane
        counts = [len(index) for cut in (luma, chroma) for index in (cut.row_KS, cut.column_KS)]
        values = (
            luma.plane.address, chroma.plane.address, luma.plane.pitch, self._taps, *counts, crop.size_px,
            _FORMS[frame.form], address,
        )  # fmt: skip
        blocks = -(-crop.size_px // BLOCK)
        self._kernel.launch(
            (blocks, blocks, 1), (BLOCK, BLOCK, 1), list(zip(values, _TYPES, strict=True)), self._stream
        )
        return taps

    def _attest(self, form: FrameFormat, size_px: int) -> None:
        """Cut a frame of known pixels on this GPU: golden frames judge the model, not this."""
        cuda, stream = self._cuda, self._stream
        array, crops = probe(form, size_px)
        got_SS3 = np.empty((size_px, size_px, 3), np.uint8)
        address = int(cuda.call("cudaMalloc", array.nbytes + got_SS3.nbytes))
        try:
            cuda.to_device(address, array, stream)
            frame = DeviceFrame(form, Where.CUDA, cuda.device, address, array.shape, array.strides, None, array)
            for crop in crops:
                held = self.queue(frame, crop, address + array.nbytes)
                cuda.to_host(got_SS3, address + array.nbytes, stream)
                cuda.call("cudaStreamSynchronize", stream)
                del held
                require_same("the GPU's crop kernel", form, got_SS3, accept(array, form).cut(crop))
        finally:
            with suppress(CudaError):
                cuda.call("cudaStreamSynchronize", stream)  # what is queued works in the memory that goes now
            cuda.call("cudaFree", address)

    def close(self) -> None:
        """Give memory and code back, once nothing is queued any more."""
        taps, self._taps, self._taps_bytes = self._taps, 0, 0
        try:
            self._kernel.close()
        finally:
            if taps:
                self._cuda.call("cudaFree", taps)

    def _grow(self, size: int) -> None:
        if size <= self._taps_bytes:
            return
        self._cuda.call("cudaStreamSynchronize", self._stream)  # what is queued reads the memory that goes now
        old, self._taps, self._taps_bytes = self._taps, 0, 0
        if old:
            self._cuda.call("cudaFree", old)
        size = 1 << (size - 1).bit_length()  # a person who comes nearer would otherwise ask for more at every frame
        self._taps = int(self._cuda.call("cudaMalloc", size))
        self._taps_bytes = size
