from __future__ import annotations

import math
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime.errors import DataError
from alpose.runtime.scorelog import _CRC_AT, _HEADER, MAGIC, ScoreLog, decode
from alpose.runtime.triggers import Decision, Observation

BUNDLE = "0f" * 32
EMPTY_D = np.empty(0, dtype=np.float32)


def seen(
    probability: float, *, predicted_loss: float = 0.0, jump: float = math.nan, limbs: float = math.nan
) -> Observation:
    return Observation(time_s=0.0, failure_probability=probability, predicted_loss=predicted_loss, embedding_D=EMPTY_D,
                       jump=jump, limbs=limbs)  # fmt: skip


def decision(flagged: bool = False, draw: float | None = None, distance: float = math.nan) -> Decision:
    return Decision(flagged or draw is not None, 1.0, flagged, control_draw=draw, distance=distance)


def written(count: int = 3, stream: str = "", step_ns: int = 33_333_333) -> bytes:
    log = ScoreLog(BUNDLE, stream)
    for i in range(count):
        assert log.add(seen(i / 10), decision(), 10**18 + i * step_ns, 5 * 10**9 + i * step_ns) is None
    data = log.finish()
    assert data is not None
    return data


def test_what_is_logged_is_read_back() -> None:
    log = ScoreLog(BUNDLE, "cabin/küche")
    log.add(seen(0.1, predicted_loss=-1.5, jump=0.25), decision(flagged=True), 10**18, 7 * 10**9)
    log.add(seen(math.nan, limbs=3.5), decision(draw=0.001, distance=0.125), 5, 7 * 10**9 + 40_120_000)
    log.add(seen(1.0, predicted_loss=1e9), decision(flagged=True, draw=0.0), 6, 7 * 10**9 + 40_120_000)
    data = log.finish()
    assert data is not None
    chunk = decode(data)

    assert len(data) == _HEADER.size + len("cabin/küche".encode()) + 3 * 16
    assert (chunk.bundle, chunk.stream, len(chunk)) == (BUNDLE, "cabin/küche", 3)
    assert (chunk.start_ns, chunk.start_monotonic_ns) == (10**18, 7 * 10**9)
    assert chunk.seconds_N == pytest.approx([0, 0.0401, 0.0401])
    np.testing.assert_array_equal(chunk.failure_probability_N, np.array([0.1, math.nan, 1.0], dtype=np.float32))
    np.testing.assert_array_equal(chunk.predicted_loss_N, np.array([-1.5, 0, 65504], dtype=np.float32))  # clipped
    np.testing.assert_array_equal(chunk.jump_N, np.array([0.25, math.nan, math.nan], dtype=np.float32))
    np.testing.assert_array_equal(chunk.limbs_N, np.array([math.nan, 3.5, math.nan], dtype=np.float32))
    np.testing.assert_array_equal(chunk.distance_N, np.array([math.nan, 0.125, math.nan], dtype=np.float32))
    assert chunk.flagged_N.tolist() == [True, False, True]
    assert chunk.control_N.tolist() == [False, True, True]


def test_a_full_chunk_comes_back_and_nothing_is_lost() -> None:
    log = ScoreLog(BUNDLE, rows=10)
    chunks = [log.add(seen(i / 100), decision(), i * 10**7, i * 10**7) for i in range(35)]
    full = [chunk for chunk in (*chunks, log.finish()) if chunk]

    assert [len(decode(chunk)) for chunk in full] == [10, 10, 10, 5]
    assert np.concatenate([decode(c).failure_probability_N for c in full]) == pytest.approx(np.arange(35) / 100)
    assert log.finish() is None


@pytest.mark.parametrize("later_ns", [-1, 200_000 * 10**9], ids=["backwards", "two days"])
def test_a_clock_that_the_chunk_cannot_hold_begins_a_new_one(later_ns: int) -> None:
    log = ScoreLog(BUNDLE)
    assert log.add(seen(0.1), decision(), 0, 10**9) is None
    first = log.add(seen(0.2), decision(), 1, 10**9 + later_ns)
    second = log.finish()

    assert first is not None
    assert second is not None
    assert decode(first).failure_probability_N == pytest.approx([0.1])
    assert decode(second).start_monotonic_ns == 10**9 + later_ns


def test_a_long_name_is_cut_between_letters() -> None:
    chunk = decode(written(stream="ü" * 1000))

    assert chunk.stream == "ü" * 512


@pytest.mark.parametrize("bundle", ["", "zz", "00" * 31])
def test_a_bundle_that_is_no_sha256_is_refused(bundle: str) -> None:
    with pytest.raises(DataError, match="64 hex digits"):
        ScoreLog(bundle)


def sealed(data: bytes) -> bytes:
    """With a checksum that fits."""
    crc = zlib.crc32(data[_HEADER.size :], zlib.crc32(data[:_CRC_AT]))
    return data[:_CRC_AT] + struct.pack("<I", crc) + data[_HEADER.size :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:10], "at least"),
        (lambda data: b"x" + data[1:], "not a chunk"),
        (lambda data: MAGIC + b"\7\0" + data[10:], "schema 7"),
        (lambda data: data[:-1], "3 rows has"),
        (lambda data: data + b"\0", "3 rows has"),
        (lambda data: data[:-1] + b"\1", "checksum"),
        (lambda data: sealed(data[: _HEADER.size] + b"\xff\xff" + data[_HEADER.size + 2 :]), "UTF-8"),
        (lambda data: sealed(data[:-32] + data[-16:] + data[-32:-16]), "backwards"),
    ],
)
def test_a_damaged_chunk_is_an_error_that_says_how(change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode(change(written(stream="ab")))


@settings(max_examples=300)
@given(st.data())
def test_no_bytes_break_the_decoder(data: Any) -> None:
    damaged = bytearray(written(stream="cam"))
    for _ in range(data.draw(st.integers(0, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))]) + data.draw(st.binary(max_size=20))
    for candidate in (cut, sealed(cut) if len(cut) >= _HEADER.size else cut):
        try:
            chunk = decode(candidate)
        except DataError:
            continue
        assert len(chunk.flagged_N) == len(chunk.seconds_N) == len(chunk)
