"""The score log: sixteen bytes for every frame, kept or not, so that another policy can be tried on what was seen.

A chunk is one stream's frames of a few minutes. All numbers are little-endian::

    header   magic 8s · schema u16 · length of the stream's name u16 · rows u32 · start, Unix ns i64 ·
             start, monotonic ns i64 · sha256 of the bundle 32s · CRC-32 of everything else u32
    name     of the stream, UTF-8
    rows     16 bytes each: time since the start in 0.1 ms << 2 | control << 1 | flagged u32 · failure probability f32 ·
             predicted loss f16 · jump f16 · limbs f16 · distance f16 (the last three nan where unknown)

The failure probability is exact, because thresholds compare it; the rest is for people, or good to three digits.

Shapes: N frames.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .triggers import Decision, Observation

MAGIC, SCHEMA = b"alposelg", 1
ROWS = 4096
"""Of one chunk: 64 KiB, two minutes at 30 frames a second. A crash loses the chunk that is being filled."""
TICK_NS = 100_000
MAX_STREAM_BYTES = 1024

_HEADER = struct.Struct("<8sHHIqq32sI")
_ROW = struct.Struct("<If4e")
_ROW_DTYPE = np.dtype([("time", "<u4"), ("failure_probability", "<f4"), ("predicted_loss", "<f2"), ("jump", "<f2"),
                       ("limbs", "<f2"), ("distance", "<f2")])  # fmt: skip
_MAX_TICKS = 1 << 30
_HALF_MAX = 65504.0
_CRC_AT = _HEADER.size - 4


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Consecutive frames of one stream, decoded."""

    bundle: str
    """sha256 of the bundle whose model looked, in hex."""
    stream: str
    """Camera or person."""
    start_ns: int
    """Unix time of the first frame, by the wall clock of the device."""
    start_monotonic_ns: int
    seconds_N: npt.NDArray[np.float64]
    """Since the start, never falling, to 0.1 ms."""
    failure_probability_N: npt.NDArray[np.float32]
    predicted_loss_N: npt.NDArray[np.float32]
    jump_N: npt.NDArray[np.float32]
    limbs_N: npt.NDArray[np.float32]
    distance_N: npt.NDArray[np.float32]
    """To what had been kept; nan where the policy of the time did not measure it."""
    flagged_N: npt.NDArray[np.bool_]
    """By the policy of the time, also where an episode replaced the frame later."""
    control_N: npt.NDArray[np.bool_]
    """In the control stream of the time."""

    def __len__(self) -> int:
        return len(self.seconds_N)


class ScoreLog:
    """Fills chunks for one stream. Every call costs one ``struct`` write into a buffer that is made once.

    Args:
        bundle: sha256 in hex.
        stream: camera or person; what exceeds :data:`MAX_STREAM_BYTES` in UTF-8 is cut off.
        rows: of a full chunk.
    """

    def __init__(self, bundle: str, stream: str = "", rows: int = ROWS) -> None:
        try:
            self._bundle = bytes.fromhex(bundle)
        except ValueError:
            self._bundle = b""
        if len(self._bundle) != 32:
            raise DataError(f"a bundle is named by the 64 hex digits of its sha256, got {bundle[:80]!r}")
        if rows < 2:
            raise DataError(f"a chunk has room for at least 2 rows, got {rows}")
        self._stream = stream.encode("utf-8", "replace")[:MAX_STREAM_BYTES].decode("utf-8", "ignore").encode()
        self._head = _HEADER.size + len(self._stream)
        self._buffer = bytearray(self._head + rows * _ROW.size)
        self._at = self._head
        self._start_ns = self._start_monotonic_ns = 0
        self._last_ticks = 0

    def add(self, seen: Observation, decision: Decision, captured_ns: int, monotonic_ns: int) -> bytes | None:
        """Log one frame; now and then this completes a chunk, which is returned to be stored.

        Args:
            seen: what the trigger was shown.
            decision: what it said.
            captured_ns: Unix time. Only the first of a chunk is kept: a wall clock may jump.
            monotonic_ns: a step backwards, or more than a day, begins a new chunk.
        """
        done = None
        if self._at > self._head:
            ticks = (monotonic_ns - self._start_monotonic_ns) // TICK_NS
            if not self._last_ticks <= ticks < _MAX_TICKS:
                done = self.finish()
        if self._at == self._head:
            self._start_ns, self._start_monotonic_ns, ticks = captured_ns, monotonic_ns, 0
        first = ticks << 2 | (decision.control_draw is not None) << 1 | decision.flagged
        numbers = (seen.failure_probability, seen.predicted_loss, seen.jump, seen.limbs, decision.distance)
        try:
            _ROW.pack_into(self._buffer, self._at, first, *numbers)
        except OverflowError:
            _ROW.pack_into(self._buffer, self._at, first, *(min(max(n, -_HALF_MAX), _HALF_MAX) for n in numbers))
        self._last_ticks = ticks
        self._at += _ROW.size
        if self._at == len(self._buffer):
            done = self.finish()  # not together with the one above: a chunk has room for two rows at least
        return done

    def finish(self) -> bytes | None:
        """The chunk as far as it is filled, and begin a new one; None where nothing was logged."""
        if self._at == self._head:
            return None
        rows = (self._at - self._head) // _ROW.size
        _HEADER.pack_into(self._buffer, 0, MAGIC, SCHEMA, len(self._stream), rows, self._start_ns,
                          self._start_monotonic_ns, self._bundle, 0)  # fmt: skip
        self._buffer[_HEADER.size : self._head] = self._stream
        chunk = bytearray(self._buffer[: self._at])
        struct.pack_into("<I", chunk, _CRC_AT, _crc(chunk))
        self._at, self._last_ticks = self._head, 0
        return bytes(chunk)


def decode(data: bytes) -> Chunk:
    """One chunk; :class:`DataError` says what is wrong with it."""
    if len(data) < _HEADER.size:
        raise DataError(f"a chunk of the score log has at least {_HEADER.size} bytes, got {len(data)}")
    magic, schema, name_bytes, rows, start_ns, start_monotonic_ns, bundle, crc = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise DataError(f"not a chunk of the score log: it begins with {magic!r}, not {MAGIC!r}")
    if schema != SCHEMA:
        raise DataError(f"this chunk of the score log has schema {schema}, this alpose reads {SCHEMA}")
    head = _HEADER.size + name_bytes
    if len(data) != head + rows * _ROW.size:
        raise DataError(f"a chunk of {rows} rows has {head + rows * _ROW.size} bytes, got {len(data)}")
    if _crc(data) != crc:
        raise DataError("this chunk of the score log is damaged: its checksum differs")
    try:
        stream = data[_HEADER.size : head].decode()
    except UnicodeDecodeError as error:
        raise DataError(f"the stream's name is not UTF-8: {data[_HEADER.size : head][:80]!r}") from error
    row_N = np.frombuffer(data, dtype=_ROW_DTYPE, offset=head)
    ticks_N = row_N["time"] >> 2
    if (ticks_N[1:] < ticks_N[:-1]).any():
        raise DataError("time runs backwards in this chunk of the score log")
    return Chunk(
        bundle=bundle.hex(),
        stream=stream,
        start_ns=start_ns,
        start_monotonic_ns=start_monotonic_ns,
        seconds_N=ticks_N.astype(np.float64) * (TICK_NS / 1e9),
        failure_probability_N=row_N["failure_probability"].astype(np.float32),
        predicted_loss_N=row_N["predicted_loss"].astype(np.float32),
        jump_N=row_N["jump"].astype(np.float32),
        limbs_N=row_N["limbs"].astype(np.float32),
        distance_N=row_N["distance"].astype(np.float32),
        flagged_N=(row_N["time"] & 1).astype(bool),
        control_N=(row_N["time"] & 2).astype(bool),
    )


def _crc(chunk: bytes | bytearray) -> int:
    """Over everything but the four bytes that hold it."""
    view = memoryview(chunk)
    return zlib.crc32(view[_HEADER.size :], zlib.crc32(view[:_CRC_AT]))
