"""A bundle is opened whole or not at all. The model is any bytes here: nothing of this reads a graph.

Shapes: G golden frames, S crop side, J joints, D dimensions.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpose.runtime.bundle import Bundle, check_files
from alpose.runtime.bundle.keys import Signature
from alpose.runtime.bundle.manifest import (
    HASHED,
    REQUIRED,
    Manifest,
    Threshold,
    check_against_engine,
    crop_to_json,
    tensors,
)
from alpose.runtime.crop import CropRule
from alpose.runtime.errors import BundleError, DataError, DataNotFoundError
from alpose.runtime.io import parse_json
from alpose.runtime.skeleton import COCO, LSP, Skeleton

G, S, D = 3, 8, 5
TINY = Skeleton("tiny", ("head", "left_foot", "right_foot"), ((0, 1), (0, 2)), ((1, 2),))
J = len(TINY)
Facts = dict[str, Any]


def golden_arrays(size_px: int = S, joints: int = J, dimensions: int = D) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    embedding_GD = np.zeros((G, dimensions), np.float32)
    embedding_GD[:, 0] = 1
    tolerances = {"keypoints_px": 0.05, "score": 0.01, "predicted_loss": 0.01, "probability": 0.01, "embedding": 0.01}
    return {
        "frames_GSS3": rng.integers(0, 256, (G, size_px, size_px, 3), dtype=np.uint8),
        "keypoints_GJ2": rng.uniform(0, size_px, (G, joints, 2)).astype(np.float32),
        "scores_GJ": rng.uniform(0, 1, (G, joints)).astype(np.float32),
        "predicted_loss_G": rng.normal(size=G).astype(np.float32),
        "failure_probability_G": rng.uniform(0, 1, G).astype(np.float32),
        "embedding_GD": embedding_GD,
        **{f"tol_{name}": np.float64(value) for name, value in tolerances.items()},
    }


def npz(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def calibration() -> Facts:
    return {
        "thresholds": [
            {"catch": 0.8, "confidence": 0.9, "threshold": 0.25, "reason": None, "failures": 60},
            {"catch": 0.95, "confidence": 0.9, "threshold": None, "reason": "60 failures, 45 more are needed"},
        ],
        "histogram": [3] * 64,
        "ece": 0.02,
    }


def facts() -> Facts:
    inputs, outputs = tensors(CropRule(width_px=S, height_px=S), J, D, confidence=False)
    return {
        "kind": "alpose bundle",
        "schema": 1,
        "name": "driver",
        "created": "2025-01-31T12:00:00+00:00",
        "alpose": "0.1.0",
        "skeleton": TINY.to_json(),
        "crop": {"size_px": S, "margin": 1.25},
        "precision": "fp32",
        "head": "ll++conv",
        "inputs": inputs,
        "outputs": outputs,
        "calibration": calibration(),
        "parity": {},
        "provenance": {"data": "synthetic"},
        "opset": 18,
    }


def facts_2(**crop: Any) -> Facts:
    """Schema 2: 12 by 8 pixels, and a sixth output."""
    rule = CropRule(width_px=8, height_px=12, margin=1.25, **crop)
    inputs, outputs = tensors(rule, J, D)
    own = {"schema": 2, "crop": crop_to_json(rule), "inputs": inputs, "outputs": outputs}
    return facts() | own


def golden_2() -> dict[str, Any]:
    arrays = golden_arrays()
    frames_GHW3 = np.random.default_rng(1).integers(0, 256, (G, 12, 8, 3), dtype=np.uint8)
    del arrays["frames_GSS3"]
    confidence_GJ = np.linspace(0, 1, G * J, dtype=np.float32).reshape(G, J)
    return arrays | {"frames_GHW3": frames_GHW3, "confidence_GJ": confidence_GJ, "tol_confidence": np.float64(0.01)}


def contents_2(change: Callable[[Facts], object] = lambda value: None, golden: bytes | None = None, **crop: Any) -> dict[
    str, bytes
]:  # fmt: skip
    files = {"model.onnx": b"graph" * 40, "golden.npz": golden or npz(golden_2()), "card.html": b"<!doctype html>"}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    value: Facts = json.loads(json.dumps(facts_2(**crop) | {"files": hashes}))
    change(value)
    return seal(files, json.dumps(value, indent=1).encode() + b"\n")


def seal(files: dict[str, bytes], manifest: bytes) -> dict[str, bytes]:
    return {**files, "bundle.json": manifest, "bundle.sha256": f"{hashlib.sha256(manifest).hexdigest()}\n".encode()}


def contents(change: Callable[[Facts], object] = lambda value: None, golden: bytes | None = None) -> dict[str, bytes]:
    """A bundle whose hashes agree, whatever ``change`` did to the manifest."""
    files = {"model.onnx": b"graph" * 40, "golden.npz": golden or npz(golden_arrays()), "card.html": b"<!doctype html>"}
    value = facts() | {"files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}}
    change(value)
    return seal(files, json.dumps(value, indent=1).encode() + b"\n")


def lay_out(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def bad_files(folder: Path) -> set[str]:
    return {check.name for check in check_files(folder) if check.problem}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return lay_out(tmp_path / "driver.alpose", contents())


def test_a_whole_bundle_opens_and_says_what_it_carries(bundle: Path) -> None:
    opened = Bundle.open(str(bundle))

    assert opened.skeleton == TINY
    assert (opened.crop.width_px, opened.crop.margin) == (S, 1.25)
    assert opened.crop.crop_of((0, 0, 8, 4)).width == 10
    assert (opened.manifest.name, opened.manifest.precision, opened.manifest.head) == ("driver", "fp32", "ll++conv")
    assert opened.manifest.dimensions == D
    assert (opened.golden.size_px, opened.golden.joints, len(opened.golden)) == ((S, S), J, G)
    assert opened.sha256 == (bundle / "bundle.sha256").read_text().strip()
    assert opened.signed_by is None
    assert opened.model_bytes() == b"graph" * 40
    assert opened.model_path == bundle / "model.onnx"
    assert [check.verdict for check in check_files(bundle)] == ["ok"] * 5
    assert {check.name for check in check_files(bundle)} == set(REQUIRED)


def test_thresholds_are_promised_or_refused_with_the_reason(bundle: Path) -> None:
    opened = Bundle.open(bundle)

    assert opened.thresholds[0] == Threshold(catch=0.8, confidence=0.9, threshold=0.25)
    assert opened.threshold(0.8) == 0.25
    with pytest.raises(DataError, match=r"catch 0\.95 of failures: 60 failures, 45 more are needed"):
        opened.threshold(0.95)
    with pytest.raises(DataError, match=r"no threshold for catch 0\.9; it has: 0\.8, 0\.95"):
        opened.threshold(0.9)
    assert opened.calibration is not None
    assert opened.calibration.histogram == (3,) * 64
    assert opened.calibration.facts["ece"] == 0.02


def test_a_bundle_without_calibration_opens_and_has_no_thresholds(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "raw.alpose", contents(lambda value: value.update(calibration=None)))

    opened = Bundle.open(folder)

    assert opened.thresholds == ()
    with pytest.raises(DataError, match="without calibration data"):
        opened.threshold(0.8)


def test_a_manifest_reads_back_as_it_was_written() -> None:
    content = contents()["bundle.json"]

    manifest = Manifest.from_bytes(content)

    assert list(manifest.to_json()) == list(json.loads(content))
    assert manifest.to_json() == json.loads(content)
    assert Manifest.from_json(manifest.to_json()) == manifest


# --- damage of files: whatever is changed, the file is named

SIGNED = contents()
SIGNED["bundle.sig"] = Signature(
    hashlib.sha256(SIGNED["bundle.json"]).hexdigest(), "ab" * 32, "cd" * 64
).to_bytes()  # its form is checked by everyone, who made it only with a key


def expect_refusal(files: dict[str, bytes], named: set[str]) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = lay_out(Path(parent) / "driver.alpose", files)
        assert bad_files(folder) == named
        with pytest.raises(BundleError) as caught:
            Bundle.open(folder)
        assert str(folder) in str(caught.value)
        for name in named:
            assert f"\n  {name}: " in str(caught.value)


def also_named(name: str) -> set[str]:
    """A manifest and what is said of it elsewhere can only be wrong together."""
    if name == "bundle.json":
        return {"bundle.json", "bundle.sha256", "bundle.sig"}
    return {name, "bundle.json"} if name == "bundle.sha256" else {name}


@given(st.data())
def test_flipping_any_byte_of_any_file_is_noticed_and_the_file_is_named(data: st.DataObject) -> None:
    files = dict(SIGNED)
    name = data.draw(st.sampled_from(sorted(files)))
    place = data.draw(st.integers(0, len(files[name]) - 1))
    spoiled = bytearray(files[name])
    spoiled[place] ^= data.draw(st.integers(1, 255))
    files[name] = bytes(spoiled)

    expect_refusal(files, also_named(name))


@given(st.data())
def test_a_file_that_lost_its_end_or_grew_is_named(data: st.DataObject) -> None:
    files = dict(SIGNED)
    name = data.draw(st.sampled_from(sorted(files)))
    length = data.draw(st.integers(0, len(files[name]) - 1))
    files[name] = data.draw(st.sampled_from([files[name][:length], files[name] + b"\n"]))

    expect_refusal(files, also_named(name))


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_file_is_named(name: str, bundle: Path) -> None:
    (bundle / name).unlink()

    assert bad_files(bundle) == {name}
    with pytest.raises(BundleError, match=f"{name}: is missing"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["notes.txt", ".DS_Store", "Model.onnx", "model.onnx.data", "weights/"])
def test_what_does_not_belong_is_named(name: str, bundle: Path) -> None:
    (bundle / name).mkdir() if name.endswith("/") else (bundle / name).write_bytes(b"")

    assert bad_files(bundle) == {name.rstrip("/")}
    with pytest.raises(BundleError, match="does not belong to a bundle: remove it"):
        Bundle.open(bundle)


def test_engines_that_were_built_here_are_left_alone(bundle: Path) -> None:
    (bundle / "engines").mkdir()
    (bundle / "engines" / "any.plan").write_bytes(b"x")

    assert Bundle.open(bundle).engines == bundle / "engines"
    (bundle / "engines" / "any.plan").unlink()
    (bundle / "engines").rmdir()
    (bundle / "engines").write_bytes(b"x")
    assert bad_files(bundle) == {"engines"}


@pytest.mark.parametrize("name", [*REQUIRED, "bundle.sig"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_plain_file_is_refused_and_never_read(name: str, kind: str, bundle: Path) -> None:
    place, outside = bundle / name, bundle.parent / "outside"
    if place.exists():
        place.rename(outside)
    else:
        outside.write_bytes(SIGNED[name])
    if kind == "link":
        place.symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()

    assert bad_files(bundle) == {name}


def test_two_bad_files_are_both_named(bundle: Path) -> None:
    (bundle / "card.html").write_bytes(b"")
    (bundle / "golden.npz").unlink()
    (bundle / "more").mkdir()

    assert bad_files(bundle) == {"card.html", "golden.npz", "more"}


def test_files_that_nothing_sound_vouches_for_are_not_called_good(bundle: Path) -> None:
    (bundle / "bundle.json").write_bytes(b"{}")

    verdicts = {check.name: check.verdict for check in check_files(bundle)}

    assert verdicts == dict.fromkeys(HASHED, "not checked") | dict.fromkeys(("bundle.json", "bundle.sha256"), "FAILED")


def test_a_digest_is_written_in_one_way_alone(bundle: Path) -> None:
    digest = (bundle / "bundle.sha256").read_bytes()
    for other in (digest.upper(), digest.strip(), digest + b"\n", b" " + digest):
        (bundle / "bundle.sha256").write_bytes(other)
        assert bad_files(bundle) == {"bundle.json", "bundle.sha256"}


def test_oversized_files_are_not_read_into_memory(bundle: Path) -> None:
    for names in (set(HASHED), {"bundle.json", "bundle.sha256", "bundle.sig"}):
        for name in names:
            with open(bundle / name, "wb") as file:
                file.truncate(1 << 33)  # sparse: 8 GiB of zeros

        assert bad_files(bundle) == names
        for name in set(HASHED) & names:
            (bundle / name).write_bytes(contents()[name])


def test_a_model_that_changed_after_opening_is_not_handed_out(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    (bundle / "model.onnx").write_bytes(b"other")

    with pytest.raises(BundleError, match=r"model\.onnx changed after the bundle was opened"):
        opened.model_bytes()


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"nowhere\.alpose does not exist"):
        Bundle.open(tmp_path / "nowhere.alpose")
    (tmp_path / "file.alpose").write_bytes(b"")
    with pytest.raises(BundleError, match=r"file\.alpose is a file: a bundle is a folder"):
        Bundle.open(tmp_path / "file.alpose")
    (tmp_path / ".gone.alpose.00ff.old").mkdir()
    with pytest.raises(DataNotFoundError, match=r"\.gone\.alpose\.00ff\.old, rename it back"):
        check_files(tmp_path / "gone.alpose")


# --- manifests whose hashes agree, and which are wrong


def put(*path: str, to: Any) -> Callable[[Facts], object]:
    def change(value: Facts) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return change


def drop(*path: str) -> Callable[[Facts], object]:
    def change(value: Facts) -> None:
        for key in path[:-1]:
            value = value[key]
        del value[path[-1]]

    return change


def first_threshold(**other: Any) -> Callable[[Facts], object]:
    return lambda value: value["calibration"]["thresholds"][0].update(other)


LIES: dict[str, tuple[Callable[[Facts], object], str]] = {
    "another kind": (put("kind", to="alpose pose model"), "kind must be 'alpose bundle', got 'alpose pose model'"),
    "a later schema": (put("schema", to=3), r"schema must be 1 or 2, got 3: use the alpose that wrote it \(0\.1\.0\)"),
    "schema true": (put("schema", to=True), "schema must be 1 or 2, got True"),
    "a key is missing": (drop("head"), r"missing \['head'\]"),
    "a key too many": (put("license", to="MIT"), r"unknown \['license'\]"),
    "no name": (put("name", to=""), "name must be a printable text"),
    "a name that is a path": (put("name", to="../driver"), "name must be .* without slashes"),
    "a name with a control character": (put("name", to="a\x1b[31m"), "name must be a printable text"),
    "a name with half a character": (put("name", to="\ud800"), "name must be a printable text"),
    "local time": (put("created", to="2025-01-31T12:00:00+01:00"), "created must be a UTC time"),
    "no such day": (put("created", to="2025-02-31T12:00:00+00:00"), "created must be a UTC time"),
    "a skeleton of others": (put("skeleton", to=COCO.to_json()),
                             r"skeleton 'coco' has 17 joints, .* fit outputs\.keypoints\.shape \['N', 3, 2\]"),
    "a skeleton with a bad link": (put("skeleton", "links", to=[[0, 7]]), r"skeleton: .*link \(0, 7\)"),
    "a skeleton with joints that are numbers": (put("skeleton", "joints", to=[1, 2, 3]), "joints.0. must be a text"),
    "a skeleton that is a list": (put("skeleton", to=[]), "skeleton: expected an object"),
    "crop of nothing": (put("crop", "size_px", to=0), r"width_px and height_px must be in \[8, 8192\]"),
    "half pixels": (put("crop", "size_px", to=8.5), r"crop\.size_px must be a whole number, got '8\.5'"),
    "a crop that is not the input": (put("crop", "size_px", to=16), r"inputs\.frames\.shape must be .*16, 16, 3\]"),
    "margin below 1": (put("crop", "margin", to=0.5), r"margin in \[1, 4\]"),
    "margin true": (put("crop", "margin", to=True), r"crop\.margin must be a finite number, got 'True'"),
    "a precision of others": (put("precision", to="bf16"), "precision must be one of fp32, fp16, int8, got 'bf16'"),
    "opset 0": (put("opset", to=0), "opset must be positive"),
    "no input": (put("inputs", to={}), r"inputs .* missing \['frames'\]"),
    "an output is missing": (drop("outputs", "embedding"), r"outputs .* missing \['embedding'\]"),
    "heatmaps": (put("outputs", "heatmaps", to={}), r"outputs .* unknown \['heatmaps'\]"),
    "BGR": (put("inputs", "frames", "colour", to="BGR"), r"inputs\.frames\.colour must be 'RGB', got 'BGR'"),
    "float frames": (put("inputs", "frames", "dtype", to="float32"), r"inputs\.frames\.dtype must be 'uint8'"),
    "channels first": (put("inputs", "frames", "axes", to=["N", "C", "H", "W"]), r"inputs\.frames\.axes must be"),
    "fixed batch": (put("outputs", "scores", "shape", to=[1, J]), r"outputs\.scores\.shape must be \['N', 3\], got"),
    "joints that differ": (put("outputs", "scores", "shape", to=["N", J + 1]), r"outputs\.scores\.shape must be"),
    "no embedding": (put("outputs", "embedding", "shape", to=["N", 0]), "D at least 1"),
    "shapes that are text": (put("outputs", "keypoints", "shape", to="N32"), r"keypoints\.shape must be a list"),
    "another unit": (put("outputs", "keypoints", "unit", to="metres"), r"outputs\.keypoints\.unit must be 'pixels"),
    "calibration as a list": (put("calibration", to=[]), "calibration must be an object"),
    "no thresholds": (drop("calibration", "thresholds"), r"calibration\.thresholds is missing"),
    "a threshold above 1": (first_threshold(threshold=1.5), r"thresholds\[0\]: .*in \[0, 1\], got 1\.5"),
    "a threshold as text": (first_threshold(threshold="0.5"), r"thresholds\[0\]\.threshold must be a finite number"),
    "no threshold, no reason": (first_threshold(threshold=None), r"thresholds\[0\]: .*no reason"),
    "catch of everything": (first_threshold(catch=1), r"thresholds\[0\]: catch and confidence"),
    "a short histogram": (put("calibration", "histogram", to=[1, 2]), "histogram must be 64 counts"),
    "a negative count": (put("calibration", "histogram", to=[-1] * 64), "histogram must be 64 counts"),
    "parity as text": (put("parity", to="fine"), "parity must be an object"),
    "a path among the files": (put("files", "../../etc/passwd", to="0" * 64), r"files .* unknown \['\.\./\.\./etc"),
    "a hash is missing": (drop("files", "card.html"), r"files .* missing \['card\.html'\]"),
    "upper-case hash": (lambda value: value["files"].update({"model.onnx": value["files"]["model.onnx"].upper()}),
                        r"files\.model\.onnx must be a sha256 in 64 lower-case"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_is_wrong_is_refused_with_the_key(lie: str, tmp_path: Path) -> None:
    change, message = LIES[lie]
    folder = lay_out(tmp_path / "driver.alpose", contents(change))

    assert bad_files(folder) == {"bundle.json"}
    with pytest.raises(BundleError, match=rf"(?s)driver\.alpose is refused.*bundle\.json: .*{message}"):
        Bundle.open(folder)


NO_JSON = {
    "not UTF-8": (b"\xff\xfe{}", "utf-8"),
    "half of it": (b'{"kind": "alpose', "not readable as JSON"),
    "nothing": (b"", "not readable as JSON"),
    "a key twice": (b'{"kind": 1, "kind": 2}', r"stands twice in one object: \['kind'\]"),
    "NaN": (b'{"kind": NaN}', "NaN is not a JSON number"),
    "infinity": (b'{"kind": -Infinity}', "-Infinity is not a JSON number"),
    "beyond a float": (b'{"kind": 1e999}', "beyond what a float holds"),
    "beyond 64 bits": (b'{"kind": 9223372036854775808}', "does not fit 64 bits"),
    "very many digits": (b'{"kind": ' + b"9" * 5000 + b"}", "not readable as JSON"),
    "very deep": (b"[" * 200_000 + b"]" * 200_000, "not readable as JSON"),
    "a list": (b"[]", "the manifest must be an object"),
}


@pytest.mark.parametrize("case", NO_JSON)
def test_what_is_no_strict_json_is_refused(case: str) -> None:
    content, message = NO_JSON[case]

    with pytest.raises(DataError, match=message):
        Manifest.from_bytes(content)


STRANGE: st.SearchStrategy[Any] = st.integers(-(1 << 62), 1 << 62) | st.sampled_from(
    [
        None,
        True,
        0,
        0.5,
        -1.0,
        1e308,
        "",
        "N",
        "\ud800",
        "x" * 1000,
        [],
        {},
        [[]],
        [None],
        [{}],
        {"": ""},
        [[0, 1]],
        ["N", 3],
    ]
)
MANIFEST = contents()["bundle.json"]


@given(st.data())
def test_any_value_anywhere_is_read_or_refused_as_data_error(data: st.DataObject) -> None:
    """Never a KeyError or TypeError: what a stranger wrote cannot end a program in an unplanned way."""
    value = json.loads(MANIFEST)
    spot = value
    while True:
        key = data.draw(st.sampled_from(sorted(spot) if isinstance(spot, dict) else range(len(spot))))
        if not isinstance(spot[key], dict | list) or not spot[key] or data.draw(st.booleans()):
            break
        spot = spot[key]
    spot[key] = data.draw(STRANGE)
    before = copy.deepcopy(value)
    try:
        manifest = Manifest.from_bytes(json.dumps(value).encode())
    except DataError:
        return
    assert manifest.to_json() == before


def test_strict_json_reads_what_it_should() -> None:
    assert parse_json(b'{"a": [1, 2.5, "\xc3\xa4", null, true, 9223372036854775807]}') == {
        "a": [1, 2.5, "ä", None, True, 9223372036854775807]
    }


# --- schema 2: crops of any shape and kind, and a confidence of every joint


@pytest.mark.parametrize("crop", [{}, {"kind": "letterbox", "fill": 114}, {"kind": "whole"}, {"fill": 255}], ids=str)
def test_a_bundle_of_schema_2_opens_and_reads_back(crop: dict[str, Any], tmp_path: Path) -> None:
    opened = Bundle.open(lay_out(tmp_path / "driver.alpose", contents_2(**crop)))

    assert opened.crop == CropRule(width_px=8, height_px=12, margin=1.25, **crop)
    assert opened.manifest.outputs[-1] == "confidence"
    assert opened.golden.size_px == (12, 8)
    assert opened.golden.expected.confidence_NJ is not None
    assert opened.golden.tolerances.by_output()["confidence"] == 0.01
    assert Manifest.from_json(opened.manifest.to_json()) == opened.manifest


def test_a_bundle_of_schema_1_has_a_square_crop_and_no_confidence(bundle: Path) -> None:
    opened = Bundle.open(bundle)

    assert opened.crop == CropRule(width_px=S, height_px=S, margin=1.25)
    assert "confidence" not in opened.manifest.outputs
    assert opened.golden.expected.confidence_NJ is None
    assert opened.golden.tolerances.confidence is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("crop", "kind", to="round"), "crop.kind must be one of box, turned, letterbox, whole, got 'round'"),
        (put("crop", "kind", to="turned"), "skeleton 'tiny' has no hips and shoulders to turn by"),
        (put("crop", "fill", to=256), r"fill in \[0, 255\]"),
        (put("crop", "height_px", to=16), r"inputs.frames.shape must be \['N', 16, 8, 3\]"),
        (drop("crop", "fill"), "crop has not the keys of schema 2: missing .'fill'."),
        (drop("outputs", "confidence"), r"outputs has not the keys of schema 2: missing \['confidence'\]"),
        (put("schema", to=1), r"crop has not the keys of schema 1"),
    ],
)
def test_a_manifest_of_schema_2_that_is_wrong_is_refused(
    change: Callable[[Facts], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=message):
        Bundle.open(lay_out(tmp_path / "driver.alpose", contents_2(change)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (golden_arrays(), "frames of height and width"),
        (golden_2() | {"frames_GHW3": np.zeros((G, 8, 12, 3), np.uint8)}, r"\(8, 12\) do not fit"),
        (golden_2() | {"confidence_GJ": np.full((G, J), 2, np.float32)}, "confidence must lie in .0, 1."),
        (golden_2() | {"confidence_GJ": np.zeros((G, J + 1), np.float32)}, "confidence is float32"),
        (golden_2() | {"tol_confidence": np.float64(1.0)}, "judge nothing"),
        ({name: value for name, value in golden_2().items() if name != "tol_confidence"}, "missing .'tol_confidence'."),
    ],
)
def test_golden_frames_of_schema_2_that_do_not_fit_are_refused(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=message):
        Bundle.open(lay_out(tmp_path / "driver.alpose", contents_2(golden=npz(arrays))))


def test_schema_1_cannot_hold_what_it_has_no_words_for() -> None:
    for crop in ({"height_px": 9}, {"kind": "whole"}, {"fill": 1}):
        with pytest.raises(DataError, match="write schema 2"):
            crop_to_json(CropRule(**{"width_px": 8, "height_px": 8, **crop}), 1)  # type: ignore[arg-type]


# --- golden frames and engines that do not fit the manifest


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            golden_arrays(size_px=16),
            r"frames of height and width \(16, 16\) do not fit bundle.json, which declares \(8, 8\)",
        ),
        (golden_arrays(joints=J + 1), "joints 4 do not fit"),
        (golden_arrays(dimensions=D + 2), "embedding dimensions 7 do not fit"),
        (
            golden_arrays() | {"scores_GJ": np.full((G, J), np.nan, np.float32)},
            "expected scores of frame 0 .* not finite",
        ),
    ],
)
def test_golden_frames_that_do_not_fit_are_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "driver.alpose", contents(golden=npz(arrays)))

    assert bad_files(folder) == {"golden.npz"}
    with pytest.raises(BundleError, match=f"golden.npz: .*{message}"):
        Bundle.open(folder)


INPUTS: dict[str, list[Any]] = {"frames": ["N", S, S, 3]}
OUTPUTS: dict[str, list[Any]] = {
    "keypoints": ["N", J, 2],
    "scores": ["N", J],
    "predicted_loss": ["N"],
    "failure_probability": ["N"],
    "embedding": ["N", D],
}


@pytest.mark.parametrize("batch", ["N", None, -1, 1, 8])
def test_an_engine_with_the_declared_shapes_is_accepted(batch: Any) -> None:
    manifest = Manifest.from_bytes(contents()["bundle.json"])

    check_against_engine(
        manifest,
        {name: (batch, *shape[1:]) for name, shape in INPUTS.items()},
        {name: (batch, *shape[1:]) for name, shape in OUTPUTS.items()},
    )


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({"frames": ["N", 2 * S, 2 * S, 3]}, {}, r"input frames has the shape \['N', 16, 16, 3\], .* \['N', 8, 8, 3\]"),
        ({"frames": ["N", "H", "W", 3]}, {}, r"input frames has the shape \['N', 'H', 'W', 3\]"),
        ({"frames": []}, {}, r"input frames has the shape \[\]"),
        ({"frames": [0, S, S, 3]}, {}, r"input frames has the shape \[0, 8, 8, 3\]"),
        ({"image": ["N", 3, S, S]}, {}, r"inputs are \['frames', 'image'\]"),
        ({}, {"keypoints": ["N", 14, 2]}, r"keypoints has the shape \['N', 14, 2\], .* \['N', 3, 2\]"),
        ({}, {"embedding": ["N", None]}, r"embedding has the shape \['N', None\]"),
        ({}, {"heatmaps": ["N", J, 2, 2]}, r"outputs are .*'heatmaps'"),
    ],
)
def test_a_manifest_that_lies_about_shapes_is_found_by_the_engine(
    inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], message: str
) -> None:
    manifest = Manifest.from_bytes(contents()["bundle.json"])

    with pytest.raises(BundleError, match=f"model.onnx of bundle 'driver' is not what bundle.json says: .*{message}"):
        check_against_engine(manifest, INPUTS | inputs, OUTPUTS | outputs)


def test_an_engine_without_an_output_is_refused() -> None:
    manifest = Manifest.from_bytes(contents()["bundle.json"])

    with pytest.raises(BundleError, match=r"its outputs are \['embedding'"):
        check_against_engine(manifest, INPUTS, {name: OUTPUTS[name] for name in ("embedding", "scores")})


def test_the_tensors_follow_the_skeleton() -> None:
    inputs, outputs = tensors(CropRule(width_px=256, height_px=256), len(LSP), 128, confidence=False)

    assert inputs["frames"]["shape"] == ["N", 256, 256, 3]
    assert {name: value["shape"] for name, value in outputs.items()} == {
        "keypoints": ["N", 14, 2],
        "scores": ["N", 14],
        "predicted_loss": ["N"],
        "failure_probability": ["N"],
        "embedding": ["N", 128],
    }
