"""The bytes of a record, and what its hash covers.

Shapes: J joints, D embedding.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpose.runtime.errors import DataError
from alpose.runtime.queue import Record
from alpose.runtime.queue.record import decode, encode

Kit = Any  # of conftest.py, which cannot be imported
ID = "0199c0ffee007000800000000000000a"
NOT_HASHED = {"state", "control_rate", "sha256"}

numbers = st.floats(width=64)
texts = st.text(st.characters(categories=("L", "N", "P", "Zs")), max_size=20).filter(
    lambda text: not text or text.isprintable()
)


def same(a: Record, b: Record) -> None:
    for field in fields(Record):
        if field.name in NOT_HASHED:
            continue
        was, now = getattr(a, field.name), getattr(b, field.name)
        if isinstance(was, np.ndarray):
            np.testing.assert_array_equal(was, now)
            assert was.dtype == now.dtype
        else:
            assert repr(was) == repr(now), field.name  # repr tells 1 from 1.0, and lets NaN equal itself


@given(
    loss=numbers,
    probability=numbers,
    device=texts,
    threshold=st.none() | numbers,
    reasons=st.lists(st.tuples(texts, numbers, numbers), max_size=4),
    joints=st.integers(0, 20),
    width=st.integers(0, 70),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_record_comes_back_bit_for_bit(
    kit: Kit,
    loss: float,
    probability: float,
    device: str,
    threshold: float | None,
    reasons: list[tuple[str, float, float]],
    joints: int,
    width: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    record = kit.record(
        ID,
        predicted_loss=loss,
        failure_probability=probability,
        device=device,
        threshold=threshold,
        reasons=tuple(reasons),
        # Every bit pattern is some number, NaNs with payloads among them.
        keypoints_J2=np.frombuffer(rng.bytes(8 * joints), np.float32).reshape(joints, 2),
        scores_J=np.frombuffer(rng.bytes(4 * joints), np.float32),
        embedding_D=np.frombuffer(rng.bytes(2 * width), np.float16),
    )
    encoded = encode(record, [])

    back, pictures = decode(encoded.manifest, encoded.arrays, encoded.sha256)

    same(record, back)
    assert pictures == ()
    assert back.keypoints_J2.tobytes() == record.keypoints_J2.tobytes()


def test_the_hash_is_what_the_specification_says(kit: Kit) -> None:
    """A second implementation, from the text of QUEUE.md alone."""
    picture = kit.picture(100)
    encoded = encode(kit.record(ID), [picture])

    hashed = hashlib.sha256(b"alpose record 1\n" + encoded.manifest + b"\n" + encoded.arrays).hexdigest()
    manifest = json.loads(encoded.manifest)

    assert hashed == encoded.sha256
    assert b"\n" not in encoded.manifest
    assert manifest["pictures"][0]["sha256"] == hashlib.sha256(picture.data).hexdigest()
    assert len(encoded.arrays) == 12 * manifest["joints"] + 2 * manifest["embedding"]
    assert np.frombuffer(encoded.arrays, "<f4", 2).tolist() == kit.record(ID).keypoints_J2[0].tolist()


def test_every_field_of_a_record_is_covered_by_its_hash(kit: Kit) -> None:
    record = kit.record(ID, control_draw=0.25, jump=1.0, limbs=2.0, episode=ID)
    picture = kit.picture(100)
    base = encode(record, [picture]).sha256
    other: dict[str, Any] = {
        "id": ID.replace("a", "b"), "bundle": "0" * 64, "box": (0.0, 0.0, 1.0, 1.0), "episode": None, "store": "crop",
        "reasons": (), "flagged": False, "keypoints_J2": record.keypoints_J2 + 1, "scores_J": record.scores_J + 1,
        "embedding_D": record.embedding_D + np.float16(1), "device": "x", "camera": "x", "place": "x", "redacted": "face", "occupied": False, "confidence": (0.5,) * len(record.scores_J),
    }  # fmt: skip
    for field in fields(Record):
        if field.name in {*NOT_HASHED, "frame_bytes", "frame_sha256"}:
            continue
        value = getattr(record, field.name)
        changed = other[field.name] if field.name in other else value + 1 if isinstance(value, int) else value / 2
        assert encode(replace(record, **{field.name: changed}), [picture]).sha256 != base, field.name

    for change in ({"position": 1}, {"captured_ns": 1}, {"media_type": "image/png"}, {"sealed": True}, {"scale": 2.0}):
        assert encode(record, [replace(picture, **change)]).sha256 != base, change


def test_a_flipped_bit_anywhere_shows(kit: Kit) -> None:
    encoded = encode(kit.record(ID), [kit.picture(100)])
    for place in range(len(encoded.manifest)):
        torn = bytearray(encoded.manifest)
        torn[place] ^= 1
        with pytest.raises(DataError, match="sha256"):
            decode(bytes(torn), encoded.arrays, encoded.sha256)
    with pytest.raises(DataError, match="sha256"):
        decode(encoded.manifest, encoded.arrays[:-1], encoded.sha256)
    with pytest.raises(DataError, match="sha256"):
        decode(encoded.manifest + b"\n" + encoded.arrays[:3], encoded.arrays[3:], encoded.sha256)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"id": "7"}, "'id'"),
        ({"id": ID.upper()}, "'id'"),
        ({"bundle": "../../etc/passwd"}, "'bundle'"),
        ({"store": "everything"}, "'store'"),
        ({"device": "a\nb"}, "'device'"),
        ({"device": "x" * 2000}, "'device'"),
        ({"device": "\ud800"}, "Unicode"),
        ({"control_draw": 1.5}, "'control_draw'"),
        ({"inclusion_probability": math.nan}, "'inclusion_probability'"),
        ({"frame_width": 0}, "'frame_width'"),
        ({"captured_ns": 2**63}, "'captured_ns'"),
        ({"keypoints_J2": np.zeros((3, 2), np.float32)}, "keypoints"),
        ({"scores_J": np.zeros((14, 1), np.float32)}, "keypoints"),
        ({"frame_bytes": 7}, "says its frame"),
        ({"store": "keypoints"}, "keypoints alone"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(kit: Kit, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        encode(replace(kit.record(ID), **changes), [kit.picture(100)])


def test_pictures_that_contradict_themselves_are_refused(kit: Kit) -> None:
    picture = kit.picture(100)
    for bad, says in [
        ([replace(picture, sha256="0" * 64)], "sha256"),
        ([picture, picture], "same position"),
        ([replace(picture, media_type="text/html")], "media_type"),
        ([replace(picture, width=0)], "width"),
    ]:
        with pytest.raises(DataError, match=says):
            encode(kit.record(ID), bad)


@given(st.data())
def test_a_foreign_manifest_with_a_right_hash_is_an_error_and_no_crash(kit: Kit, data: st.DataObject) -> None:
    """A queue comes from a device that somebody else may hold: its hashes prove nothing about its good will."""
    encoded = encode(kit.record(ID), [kit.picture(100)])
    values = json.loads(encoded.manifest)
    junk = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers())
    key = data.draw(st.sampled_from(sorted(values)))
    values[key] = data.draw(junk | st.dictionaries(st.text(max_size=3), st.integers()))
    manifest = json.dumps(values).encode()
    sha256 = hashlib.sha256(b"alpose record 1\n" + manifest + b"\n" + encoded.arrays).hexdigest()

    try:
        decode(manifest, encoded.arrays, sha256)
    except DataError:
        return


def test_confidence_is_kept_where_there_is_one_and_leaves_other_records_as_they_were(kit: Kit) -> None:
    plain = kit.record(ID)
    assert b"confidence" not in encode(plain, []).manifest
    known = replace(plain, confidence=tuple(np.linspace(0, 1, len(plain.scores_J)).tolist()))
    encoded = encode(known, [])
    read, _ = decode(encoded.manifest, encoded.arrays, encoded.sha256)
    assert read.confidence == known.confidence
    assert read.certainty_J.tolist() == pytest.approx(list(known.confidence or ()))
    assert plain.certainty_J.tolist() == plain.scores_J.tolist()
    with pytest.raises(DataError, match="a confidence of 1 joints"):
        encode(replace(plain, confidence=(0.5,)), [])
