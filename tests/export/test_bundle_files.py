"""What is written is what opens, and nothing half-written is ever found under a bundle's name.

Shapes: G golden frames, S crop side, J joints, D dimensions.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.export.bundle_files import golden_bytes, manifest_bytes, write_bundle
from alpose.runtime import io
from alpose.runtime.bundle import Bundle
from alpose.runtime.bundle.golden import Golden, Tolerances
from alpose.runtime.bundle.keys import generate_key
from alpose.runtime.bundle.manifest import Manifest, tensors
from alpose.runtime.crop import CropRule
from alpose.runtime.errors import BundleError, ConfigError, DataError, SignatureError
from alpose.runtime.skeleton import LSP
from alpose.runtime.types import Outputs

G, S, J, D = 3, 8, 14, 5
needs_pynacl = pytest.mark.skipif(importlib.util.find_spec("nacl") is None, reason="pynacl is not installed")
SPECIFICATION = Path(__file__).resolve().parents[2] / "docs" / "bundle.md"


def golden(joints: int = J) -> Golden:
    rng = np.random.default_rng(0)
    embedding_GD = np.zeros((G, D), np.float32)
    embedding_GD[:, 0] = 1
    expected = Outputs(
        rng.uniform(0, S, (G, joints, 2)).astype(np.float32),
        rng.uniform(0, 1, (G, joints)).astype(np.float32),
        rng.normal(size=G).astype(np.float32),
        rng.uniform(0, 1, G).astype(np.float32),
        embedding_GD,
    )
    tolerances = Tolerances(keypoints_px=0.05, score=0.01, predicted_loss=0.01, probability=0.01, embedding=0.01)
    return Golden(rng.integers(0, 256, (G, S, S, 3), dtype=np.uint8), expected, tolerances)


def facts(name: str = "driver") -> dict[str, Any]:
    inputs, outputs = tensors(CropRule(width_px=S, height_px=S), J, D, confidence=False)
    return {
        "name": name, "created": "2025-01-31T12:00:00+00:00", "alpose": "0.1.0", "skeleton": LSP.to_json(),
        "crop": {"size_px": S, "margin": 1.25}, "precision": "fp32", "head": "ll++conv", "inputs": inputs,
        "outputs": outputs, "calibration": None, "parity": {}, "provenance": {}, "opset": 18,
    }  # fmt: skip


def files(model: bytes = b"graph") -> dict[str, bytes]:
    return {"model.onnx": model, "golden.npz": golden_bytes(golden()), "card.html": b"<!doctype html>"}


def left_beside(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.parent.iterdir() if entry.name != folder.name)


def test_what_is_written_opens(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "driver.alpose", files(), facts())

    opened = Bundle.open(folder)

    assert opened.model_bytes() == b"graph"
    assert opened.skeleton == LSP
    assert opened.golden.tolerances == golden().tolerances
    np.testing.assert_array_equal(opened.golden.expected.keypoints_NJ2, golden().expected.keypoints_NJ2)
    assert left_beside(folder) == []
    assert (folder.stat().st_mode & 0o777) == 0o777 & ~current_umask()


def current_umask() -> int:
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_bundle(tmp_path / "a.alpose", files(), facts())
    second = write_bundle(tmp_path / "b.alpose", files(), facts())

    assert (first / "bundle.sha256").read_bytes() == (second / "bundle.sha256").read_bytes()


def test_a_bundle_is_replaced_only_on_request_and_its_engines_go(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "driver.alpose", files(b"old"), facts())
    (folder / "engines").mkdir()

    with pytest.raises(ConfigError, match=r"driver\.alpose exists: .*--force"):
        write_bundle(folder, files(b"new"), facts())
    assert Bundle.open(folder).model_bytes() == b"old"

    write_bundle(folder, files(b"new"), facts(), replace=True)
    assert Bundle.open(folder).model_bytes() == b"new"
    assert not (folder / "engines").exists()
    assert left_beside(folder) == []


def test_a_damaged_bundle_may_be_replaced(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "driver.alpose", files(), facts())
    (folder / "bundle.json").write_bytes(b"{")
    (folder / "card.html").unlink()

    write_bundle(folder, files(), facts(), replace=True)

    assert Bundle.open(folder)


def test_what_is_not_a_bundle_is_never_replaced(tmp_path: Path) -> None:
    photos = tmp_path / "photos.alpose"
    photos.mkdir()
    (photos / "wedding.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"holds \['wedding.jpg'\], which no bundle does"):
        write_bundle(photos, files(), facts(), replace=True)
    assert (photos / "wedding.jpg").exists()

    link = tmp_path / "link.alpose"
    link.symlink_to(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="a file or a link"):
        write_bundle(link, files(), facts(), replace=True)
    (tmp_path / "file.alpose").write_bytes(b"x")
    with pytest.raises(ConfigError, match="a file or a link"):
        write_bundle(tmp_path / "file.alpose", files(), facts(), replace=True)


def test_places_that_cannot_hold_a_bundle_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends with \.alpose, as in driver\.alpose"):
        write_bundle(tmp_path / "driver", files(), facts())
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(NotADirectoryError):
        write_bundle(tmp_path / "file" / "on the way" / "driver.alpose", files(), facts())


def refused(other_facts: dict[str, Any], other_files: dict[str, bytes]) -> None:
    manifest_bytes(facts() | other_facts, files() | other_files)


def test_what_would_not_open_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown \['\.\./evil'\]"):
        refused({}, {"../evil": b""})
    with pytest.raises(DataError, match=r"missing \['card\.html'\]"):
        manifest_bytes(facts(), {name: files()[name] for name in ("model.onnx", "golden.npz")})
    with pytest.raises(DataError, match=r"model\.onnx is empty"):
        refused({}, {"model.onnx": b""})
    with pytest.raises(DataError, match="precision must be one of"):
        refused({"precision": "fp8"}, {})
    with pytest.raises(DataError, match=r"manifest's \['schema'\] are set when"):
        refused({"schema": 2}, {})
    with pytest.raises(DataError, match=r"not plain JSON.*Out of range float"):
        refused({"parity": {"auroc": float("nan")}}, {})
    with pytest.raises(DataError, match=r"not plain JSON.*object"):
        refused({"parity": {"auroc": object()}}, {})
    with pytest.raises(DataError, match=r"golden frames with joints 15 do not fit"):
        refused({}, {"golden.npz": golden_bytes(golden(joints=15))})
    with pytest.raises(DataError, match="no usable golden frames"):
        write_bundle(tmp_path / "driver.alpose", files() | {"golden.npz": b"PK"}, facts())
    assert list(tmp_path.iterdir()) == []


def test_nan_among_expected_answers_cannot_even_be_built() -> None:
    expected = golden().expected
    spoiled = replace(expected, scores_NJ=np.full((G, J), np.nan, np.float32))

    with pytest.raises(DataError, match="expected scores of frame 0 holds numbers that are not finite"):
        Golden(golden().frames_GHW3, spoiled, golden().tolerances)


def test_an_error_on_the_way_leaves_the_old_bundle_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_bundle(tmp_path / "driver.alpose", files(b"old"), facts())
    real = os.rename

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    def stuck(source: Path, target: Path) -> None:
        if Path(source).suffix == ".tmp":
            raise OSError(5, "Input/output error")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(io, "sync", full)
        with pytest.raises(OSError, match="No space left"):
            write_bundle(folder, files(b"new"), facts(), replace=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", stuck)
        with pytest.raises(ConfigError, match="nothing was replaced"):
            write_bundle(folder, files(b"new"), facts(), replace=True)

    assert Bundle.open(folder).model_bytes() == b"old"
    assert left_beside(folder) == []


def test_everything_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real_sync, real_rename = os.fsync, os.rename

    def sync(descriptor: int) -> None:
        events.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.split(".")[-1])
        real_sync(descriptor)

    def rename(source: Path, target: Path) -> None:
        events.append(f"rename to {Path(target).name}")
        real_rename(source, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to see what is flushed")
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    (tmp_path / "parent").mkdir()

    write_bundle(tmp_path / "parent" / "driver.alpose", files(), facts())

    assert events == ["sync onnx", "sync npz", "sync html", "sync json", "sync sha256", "sync tmp",
                      "rename to driver.alpose", "sync parent"]  # fmt: skip


def test_what_killed_exports_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    old, young = tmp_path / ".driver.alpose.00000001.tmp", tmp_path / ".driver.alpose.00000002.tmp"
    other, former = tmp_path / ".other.alpose.00000001.tmp", tmp_path / ".driver.alpose.00000003.old"
    for place in (old, young, other, former):
        place.mkdir()
    for place in (old, other):
        os.utime(place, (time.time() - 9000, time.time() - 9000))

    folder = write_bundle(tmp_path / "driver.alpose", files(), facts())

    assert left_beside(folder) == [young.name, other.name]


WRITER = """
import json, os, sys
from pathlib import Path
from alpose.export.bundle_files import write_bundle
folder, source = Path(sys.argv[1]), Path(sys.argv[2])
bundles = []
for kind in ("a", "b"):
    files = {name: (source / kind / name).read_bytes() for name in ("model.onnx", "golden.npz", "card.html")}
    bundles.append((files, json.loads((source / kind / "facts.json").read_text())))
for first in sys.stdin:  # one writer per line, forked: what it imports is imported once
    writer, turn = os.fork(), int(first)
    while not writer:
        write_bundle(folder, *bundles[turn % 2], replace=True)
        turn += 1
    print(writer, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]), flush=True)
"""


def test_a_kill_at_any_moment_leaves_the_old_bundle_the_new_one_or_none(tmp_path: Path) -> None:
    """A writer replaces one bundle by another for ever; it is killed again and again, on top of what it left."""
    (tmp_path / "out").mkdir()
    folder = tmp_path / "out" / "driver.alpose"
    models = {"a": b"a" * 300_000, "b": b"b" * 200_000}
    for kind, model in models.items():
        (tmp_path / kind).mkdir()
        for name, content in files(model).items():
            (tmp_path / kind / name).write_bytes(content)
        (tmp_path / kind / "facts.json").write_text(json.dumps(facts(kind)))
    rng, found = np.random.default_rng(0), set[str]()
    start = time.perf_counter()
    write_bundle(folder, files(models["a"]), facts("a"))
    duration = time.perf_counter() - start

    def torn() -> list[Path]:
        return list(folder.parent.glob(".driver.alpose.*.tmp"))

    with subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(tmp_path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True, bufsize=1) as writers:  # fmt: skip
        assert writers.stdin is not None
        assert writers.stdout is not None
        for turn in range(80):
            if turn >= 20 and found == {"a", "b"} and torn():
                break  # enough was seen
            writers.stdin.write(f"{turn % 2}\n")
            writer = int(writers.stdout.readline())
            time.sleep(rng.uniform(0, duration * (1 + turn / 10)))
            os.kill(writer, signal.SIGKILL)
            assert int(writers.stdout.readline()) == -signal.SIGKILL  # it was still writing
            if folder.exists():
                opened = Bundle.open(folder)
                assert opened.model_bytes() == models[opened.manifest.name]
                found.add(opened.manifest.name)
            for former in folder.parent.glob(".driver.alpose.*.old"):
                # While nothing has the name, the former bundle is whole beside it.
                assert folder.exists() or Bundle.open(former)

    assert found == {"a", "b"}
    assert torn(), "no kill came between the first file and the last"
    write_bundle(folder, files(), facts(), replace=True)
    assert Bundle.open(folder).model_bytes() == b"graph"


@needs_pynacl
def test_a_signed_bundle_opens_with_its_key_and_with_no_other(tmp_path: Path) -> None:
    public = generate_key(tmp_path / "key")
    other = generate_key(tmp_path / "other")
    folder = write_bundle(tmp_path / "driver.alpose", files(), facts(), sign_key=tmp_path / "key")

    assert Bundle.open(folder, public).signed_by == public
    assert Bundle.open(folder).signed_by is None
    with pytest.raises(SignatureError, match="is signed by key"):
        Bundle.open(folder, other)
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"model\.onnx: its sha256"):
        Bundle.open(folder, public)


def test_the_example_in_the_specification_is_a_manifest() -> None:
    text = SPECIFICATION.read_text()
    example = re.search(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert example is not None

    manifest = Manifest.from_json(json.loads(example[1]))

    assert manifest.calibration is not None
    for key in manifest.to_json():
        assert f"`{key}`" in text
