"""Nets whose weights lie beside their graph: as users bring them, in a model, and in a bundle whose graph would be too large."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from alpose.export import merge
from alpose.export.foreign import export_uncalibrated
from alpose.export.verify import verify
from alpose.export.write import ExportConfig
from alpose.runtime.bundle import Bundle, check_files
from alpose.runtime.bundle.keys import generate_key
from alpose.runtime.engines.onnx import OnnxEngine
from alpose.runtime.errors import BundleError, CheckpointError, ConfigError, DataNotFoundError
from alpose.trainer.foreign.heads import DetectorConfig, build_detector
from alpose.trainer.foreign.model import ForeignModel, load, save
from alpose.trainer.foreign.net import open_net
from alpose.trainer.foreign.reader import NetReader
from alpose.trainer.foreign.recognition.graph import digest, is_inside
from alpose.trainer.foreign.recognition.recognise import recognise

from ..trainer.foreign import nets

FEW = ExportConfig(most_bytes=20_000)


def outside(path: Path, location: str = "weights.bin") -> Path:
    """The net in two files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model = onnx.load(nets.hourglass(path))
    (path.parent / location).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=1024)
    return path


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return outside(tmp_path / "net.onnx", "parts/weights.bin")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a net whose weights do not fit into its graph's file, signed by the key beside it."""
    folder = tmp_path_factory.mktemp("bundle")
    generate_key(folder / "fleet.key")
    path = outside(folder / "net.onnx", "parts/weights.bin")
    return export_uncalibrated(path, folder / "net.alpose", config=FEW, sign_key=folder / "fleet.key")


def test_a_graph_that_would_be_too_large_keeps_its_weights_beside_it(bundle: Path, tmp_path: Path) -> None:
    """Hashed, signed, verified, and with the same answers to the bit as with its weights inside."""
    beside = Bundle.open(bundle, bundle.parent / "fleet.key.pub")
    assert beside.signed_by is not None
    assert sorted(path.name for path in bundle.iterdir()) == [
        "bundle.json", "bundle.sha256", "bundle.sig", "card.html", "golden.npz", "model.onnx", "model.weights"]  # fmt: skip
    kept = [tensor for tensor in onnx.load(beside.model_path, load_external_data=False).graph.initializer
            if tensor.data_location == tensor.EXTERNAL]  # fmt: skip
    assert kept
    assert all(
        int(entry.value) % 4096 == 0 for tensor in kept for entry in tensor.external_data if entry.key == "offset"
    )
    onnx.save(onnx.load(beside.model_path), tmp_path / "inside.onnx")
    assert (tmp_path / "inside.onnx").stat().st_size > beside.model_path.stat().st_size + 20_000
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    inside = OnnxEngine(tmp_path / "inside.onnx", threads=1)(frames).named()
    for name, value in OnnxEngine(beside, threads=1)(frames).named().items():
        np.testing.assert_array_equal(value, inside[name], err_msg=name)
    assert verify(bundle).passed
    assert beside.manifest.parity["their_file_alone_max_px"]["value"] == 0
    assert beside.manifest.provenance["net"]["weights beside it"].keys() == {"parts/weights.bin"}


def _changed(folder: Path, name: str) -> None:
    with (folder / name).open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))


def test_weights_beside_a_graph_are_held_to_the_rules_of_all_files(bundle: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(bundle, tmp_path / f"{name}.alpose"))

    changed = copy("changed")
    opened = Bundle.open(changed)
    _changed(changed, "model.weights")
    with pytest.raises(BundleError, match=r"model\.weights changed after the bundle was opened"):
        OnnxEngine(opened)
    for key in (None, bundle.parent / "fleet.key.pub"):
        with pytest.raises(BundleError, match=r"model\.weights: its sha256 is not the one in bundle\.json"):
            Bundle.open(changed, key)
    missing = copy("missing")
    (missing / "model.weights").unlink()
    with pytest.raises(BundleError, match=r"model\.weights: is missing"):
        Bundle.open(missing)
    linked = copy("linked")
    (linked / "model.weights").unlink()
    (linked / "model.weights").symlink_to(bundle / "model.weights")
    with pytest.raises(BundleError, match=r"model\.weights: is not a plain file"):
        Bundle.open(linked)


def test_weights_that_a_bundle_does_not_name_are_refused(bundle: Path, tmp_path: Path) -> None:
    """Its manifest is that of a graph with its weights inside."""
    strange = Path(shutil.copytree(bundle, tmp_path / "strange.alpose"))
    (strange / "bundle.sig").unlink()
    value = json.loads((strange / "bundle.json").read_bytes())
    del value["files"]["model.weights"]
    content = json.dumps(value).encode()
    (strange / "bundle.json").write_bytes(content)
    (strange / "bundle.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}\n")
    problems = {check.name: check.problem for check in check_files(strange)}
    assert "does not belong to this bundle" in str(problems["model.weights"])
    (strange / "model.weights").unlink()
    with pytest.raises(
        CheckpointError, match="does not load"
    ):  # a graph does not reach for files that nobody has hashed
        OnnxEngine(strange)


def test_what_cannot_be_done_with_such_a_graph_is_said(net: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="--precision fp16 reads graphs of at most 2 GiB, and this one's weights lie beside it"
    ):
        export_uncalibrated(net, tmp_path / "out.alpose", config=ExportConfig(precision="fp16", most_bytes=20_000))
    assert not (tmp_path / "out.alpose").exists()
    inside = nets.hourglass(tmp_path / "inside.onnx")
    assert merge.load(inside, recognise(inside), 20_000).outside is None  # nothing lies beside it


def test_a_model_brings_its_weights_along(net: Path, tmp_path: Path) -> None:
    """In the folder that they were in; and another file of weights is another net."""
    spec = recognise(net)
    opened = open_net(net, spec)
    reader = NetReader(spec, opened.shapes)
    joints = tuple(range(len(spec.skeleton)))
    detector = build_detector(DetectorConfig(kind="facts", joints=joints, facts=reader.count), len(joints))
    save(ForeignModel(spec, net, opened.shapes, detector, {}), tmp_path / "model")
    assert (tmp_path / "model" / "parts" / "weights.bin").read_bytes() == (
        net.parent / "parts" / "weights.bin"
    ).read_bytes()
    crops = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    again = load(tmp_path / "model")
    np.testing.assert_array_equal(open_net(again.net, again.spec)(crops)["heatmaps"], opened(crops)["heatmaps"])
    before = digest(net)
    _changed(net.parent / "parts", "weights.bin")
    assert digest(net) != before
    _changed(tmp_path / "model" / "parts", "weights.bin")
    with pytest.raises(CheckpointError, match=r"weights\.bin is not the file"):
        load(tmp_path / "model")
    named = outside(tmp_path / "other" / "net.onnx", "model.json")
    with pytest.raises(ConfigError, match=r"weights in model\.json, as a file of the model's own is called"):
        save(ForeignModel(spec, named, opened.shapes, detector, {}), tmp_path / "second")


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../weights.bin", "a/../../b", "C:/weights.bin", "..\\weights.bin", "", " "]
)
def test_weights_outside_the_folder_are_refused(net: Path, location: str) -> None:
    assert not is_inside(location)
    model = onnx.load(net, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == tensor.EXTERNAL:
            tensor.external_data[0].value = location
    onnx.save(model, net)
    with pytest.raises(CheckpointError, match="outside its own folder"):
        recognise(net)


def test_missing_weights_are_named_before_anything_else(net: Path) -> None:
    spec = recognise(net)
    (net.parent / "parts" / "weights.bin").unlink()
    with pytest.raises(DataNotFoundError, match=r"has its weights in parts/weights\.bin, which is not beside it"):
        merge.load(net, spec)
