"""Bundles of nets that somebody else trained: their graph, merged with what reads it.

Golden answers and calibration come from their file as it is, run by ONNX Runtime, with the reader in PyTorch behind it: the
slow exact twin of the one graph that is written. That the merged graph gives the same keypoints as their file alone, bit for
bit, is measured and stands in the bundle.

Shapes: N images, H W the input, J joints, D evidence of a joint.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alpose.runtime.bundle.manifest import WEIGHTS
from alpose.runtime.errors import ConfigError
from alpose.runtime.io import file_sha256, to_json, write_atomically
from alpose.runtime.types import CANDIDATES, Outputs
from alpose.trainer.data.catalog import open_dataset
from alpose.trainer.data.crops import CropConfig, Crops, crop_config, prepare, unseen_crops
from alpose.trainer.data.records import Floats, PoseData, who_trained
from alpose.trainer.data.synthetic import read_people
from alpose.trainer.device import device_context
from alpose.trainer.foreign import model as models
from alpose.trainer.foreign.fitting import turns_of
from alpose.trainer.foreign.heads import Detector, is_entropy
from alpose.trainer.foreign.joints import in_skeleton, match_joints
from alpose.trainer.foreign.net import ForeignNet, open_net
from alpose.trainer.foreign.reader import NetReader
from alpose.trainer.foreign.recognition.graph import weights_beside
from alpose.trainer.foreign.recognition.recognise import recognise
from alpose.trainer.foreign.spec import PoseSpec
from alpose.trainer.measures.joint_calibration import JointCalibration

from .calibration import Calibration
from .graph import CalibratedGraph
from .graph_parts import Raw, score_logit
from .merge import MOST_BYTES, bring_weights, load, made_dynamic, merge, wanted_opset
from .onnx_graph import FREE, GraphSpec, OnnxFacts, check_model, describe, exported, warn_outside_tensorrt
from .parity import ParityError
from .write import ExportConfig, write

log = logging.getLogger("alpose")

MOST_MOVED_PX = 0.01
"""Beyond this their keypoints are not theirs any more; another order of sums in another ONNX Runtime moves them by less."""
PICTURES = 64
"""Rendered people on whom a bundle without labels is tried; its golden frames are from them."""


class ReaderGraph(CalibratedGraph):
    """The tensors of ``spec.tensors`` to the six outputs: what stands behind somebody's net in a bundle.

    Args:
        reader: reads them.
        detector: takes a reading and the taps' averages, gives the predicted loss (N,) and the confidence of each joint
            (N, J). None where nothing was trained: then the net's own scores speak for the joints and, negated, for the image.
        spec: of the whole graph.
    """

    judged_L: Tensor

    def __init__(self, reader: NetReader, detector: Detector | None, spec: GraphSpec) -> None:
        super().__init__()
        self.spec = spec
        if detector is None:
            entropies = [name for name in reader.facts[: reader.count] if is_entropy(name)]
            reader = reader.narrowed(["score", *entropies])
        else:
            reader, detector = copy.deepcopy(detector).float().cpu().eval().for_graph(reader)
        self.reader, self.head = reader.float().eval(), detector
        self.entropies = [place for place, name in enumerate(reader.facts[: reader.count]) if is_entropy(name)]
        judged = range(len(spec.skeleton)) if detector is None else detector.config.joints
        self.register_buffer("judged_L", torch.tensor(list(judged)), persistent=False)
        self.set_calibration(None, None)

    @property
    def joint_source(self) -> str:
        """Where the joints' logits come from."""
        return "score" if self.head is None else "head"

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Keypoints, scores, predicted loss, failure probability, embedding, confidence; and candidates for people where the
        net finds several."""
        answers = self.answers_and_evidence(*tensors)[:6]
        return (*answers, self.reader.people(tensors, CANDIDATES)) if self.spec.people else answers

    def read(self, *inputs: Tensor) -> Raw:
        """From the tensors. Joints without labels enter no evidence of the image."""
        reading = self.reader(*inputs)
        everyone = self.judged_L.shape[0] == reading.scores_NJ.shape[1]
        judged_NL = reading.scores_NJ if everyone else reading.scores_NJ.index_select(1, self.judged_L)
        doubt_N = 1.0 - judged_NL.mean(dim=1)
        entropy_N = torch.zeros_like(doubt_N)
        if self.entropies:
            entropy_N = reading.evidence_NJD.index_select(1, self.judged_L)[:, :, self.entropies].mean(dim=(1, 2))
        if self.head is None:
            loss_N, logit_NJ = doubt_N, score_logit(reading.scores_NJ)
        else:
            loss_N, confidence_NJ = self.head(reading, self.head.summary(self.reader, inputs))
            logit_NJ = score_logit(confidence_NJ)
        evidence_N3 = torch.stack([loss_N, entropy_N, doubt_N], dim=1)
        return Raw(reading.keypoints_NJ2, reading.scores_NJ, evidence_N3, logit_NJ, unit(reading.embedding_NE))


def unit(embedding_NE: Tensor) -> Tensor:
    """Rows of unit length; a row of zeros points along its first axis."""
    length_N1 = embedding_NE.square().sum(dim=1, keepdim=True).sqrt()
    first_E = torch.zeros_like(embedding_NE[:1])
    first_E[:, 0] = 1.0
    return torch.where(length_N1 > 1e-6, embedding_NE / length_N1.clamp_min(1e-6), first_E)


class ForeignGraph:
    """Somebody's net with a reader behind it, as a bundle is made of it.

    Args:
        net: their file.
        reader: reads its tensors.
        detector: see :class:`ReaderGraph`.
        head_name: for the manifest.
        frames_NHW3: real crops, by which is decided whether their graph takes any number of images.

    Raises:
        ConfigError, DataNotFoundError, CheckpointError: see :func:`~.merge.load`.
    """

    def __init__(
        self, net: ForeignNet, reader: NetReader, detector: Detector | None, *, head_name: str,
        frames_NHW3: npt.NDArray[np.uint8], most_bytes: int = MOST_BYTES,
    ) -> None:  # fmt: skip
        given = net.spec.input
        if given.batch not in (None, 1):
            raise ConfigError(f"{net.path} takes {given.batch} images at a time: export it for one, or for any number")
        self.net, self.theirs = net, load(net.path, net.spec, most_bytes)
        # As many candidates as there are: those of two pictures would share an axis.
        if all(None not in net.shapes[name][1:] for name in net.spec.tensors):
            self.theirs = made_dynamic(self.theirs, net.spec, frames_NHW3)
        with torch.inference_mode():
            tried = reader.float().eval()(*tensors_of(net, frames_NHW3[:1]))
        spec = GraphSpec(skeleton=net.spec.skeleton, height_px=given.height_px, width_px=given.width_px, head=head_name,
                         dimensions=int(tried.embedding_NE.shape[1]), batch=self.theirs.batch,
                         people=reader.finds_people)  # fmt: skip
        self.graph = ReaderGraph(reader, detector, spec)
        self._tail: tuple[Any, list[str]] | None = None

    @property
    def spec(self) -> GraphSpec:
        """Names and sizes."""
        return self.graph.spec

    @property
    def joint_source(self) -> str:
        """Where the joints' logits come from."""
        return self.graph.joint_source

    def with_calibration(self, calibration: Calibration, joints: JointCalibration | None = None) -> ForeignGraph:
        """The same graph with these probabilities."""
        other = copy.copy(self)
        other.graph, other._tail = self.graph.with_calibration(calibration, joints), None
        return other

    def reference(self) -> ForeignEngine:
        """Their file as it is, and the reader in PyTorch."""
        return ForeignEngine(self.net, self.graph)

    def tail(self) -> tuple[Any, list[str]]:
        """What reads their tensors, as ONNX; and the names of its inputs. Exported once, as that takes seconds."""
        if self._tail is None:
            self._tail = self._exported_tail()
        model, names = self._tail
        return copy.deepcopy(model), names  # whoever merges it may change it

    def _exported_tail(self) -> tuple[Any, list[str]]:
        names = [f"tensor_{place}" for place in range(len(self.net.spec.tensors))]
        frames = np.zeros((2 if self.theirs.dynamic else 1, self.spec.height_px, self.spec.width_px, 3), np.uint8)
        examples = tensors_of(self.net, frames)
        # Detectors with their suppression inside give as many candidates as there are.
        free = [{axis: FREE for axis, size in enumerate(self.net.shapes[name]) if axis and size is None}
                for name in self.net.spec.tensors]  # fmt: skip
        # Several of them, for an axis of one would be taken for a constant.
        examples = tuple(
            value.new_zeros([5 if axis in axes else size for axis, size in enumerate(value.shape)]) if axes else value
            for value, axes in zip(examples, free, strict=True)
        )
        batch = {0: self.theirs.batch} if self.theirs.dynamic else {}
        axes = {"tensors": tuple({**batch, **each} or None for each in free)} if batch or any(free) else None
        return exported(self.graph, examples, names, axes, wanted_opset(self.theirs)), names

    def merged(self) -> Any:
        """The one graph, with the facts that it carries."""
        model = merge(self.theirs, self.net.spec, *self.tail())
        describe(model, self.graph, {"net": self.net.spec.name})
        return model

    def write(self, path: Path) -> OnnxFacts:
        """Write it as ONNX, checked."""
        model = self.merged()
        if self.theirs.outside is None:
            facts = check_model(model, self.spec)
            write_atomically(path, model.SerializeToString(deterministic=True))
        else:
            bring_weights(model, self.theirs.outside, path.with_name(WEIGHTS))
            write_atomically(path, model.SerializeToString(deterministic=True))
            facts = check_model(model, self.spec, path)
        warn_outside_tensorrt(path, facts)
        return facts

    def parity_rows(self, frames_NHW3: npt.NDArray[np.uint8], given: Outputs) -> dict[str, Any]:
        """How far the bundle's keypoints lie from those of their file alone: 0 where they are the same bits."""
        deviation = float(np.abs(self.alone(frames_NHW3) - given.keypoints_NJ2).max())
        if deviation > MOST_MOVED_PX:
            raise ParityError(
                f"the keypoints of {self.net.path.name} move by up to {deviation:.3g} px when it is merged with what reads it. "
                "Update onnxruntime, or export the net with another opset"
            )
        say = log.info if deviation == 0 else log.warning
        say("keypoints of %s with and without alpose: %s on %d crops", self.net.path.name,
            "the same bits" if deviation == 0 else f"up to {deviation:.3g} px apart", len(frames_NHW3))  # fmt: skip
        return {"their_file_alone_max_px": {"value": deviation, "limit": 0.0, "unit": "px"}}

    def alone(self, frames_NHW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Keypoints (N, J, 2) of their file by itself: its outputs from a session of its own, decoded as in the bundle."""
        from alpose.runtime.engines.onnx import import_onnxruntime

        runtime = import_onnxruntime()
        model, names = self.tail()
        options = runtime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        decoder = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        parts = []
        for row in range(len(frames_NHW3)):
            values = self.net(frames_NHW3[row : row + 1])
            given = {name: values[tensor] for name, tensor in zip(names, self.net.spec.tensors, strict=True)}
            taken = {value.name for value in decoder.get_inputs()}
            parts.append(decoder.run(["keypoints"], {name: value for name, value in given.items() if name in taken})[0])
        return np.concatenate(parts)


def tensors_of(net: ForeignNet, frames_NHW3: npt.NDArray[np.uint8]) -> tuple[Tensor, ...]:
    """The tensors that the reader takes, in its order."""
    values = net(frames_NHW3)
    return tuple(torch.from_numpy(np.array(values[name])) for name in net.spec.tensors)


class ForeignEngine:
    """Their file in ONNX Runtime and the reader in PyTorch behind it; the reference of the merged graph."""

    def __init__(self, net: ForeignNet, graph: ReaderGraph, batch: int = 32) -> None:
        self.net, self.graph, self.batch, self.name = net, graph.eval(), batch, "their file and torch fp32"

    def __call__(self, frames_NHW3: npt.NDArray[np.uint8]) -> Outputs:
        """Answer N frames."""
        return self.answers_and_evidence(frames_NHW3)[0]

    def answers_and_evidence(
        self, frames_NHW3: npt.NDArray[np.uint8]
    ) -> tuple[Outputs, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """From one pass: the outputs, what the calibration is applied to (N, 3), and the joints' logits (N, J)."""
        starts = range(0, len(frames_NHW3), self.batch)
        blocks = (frames_NHW3[start : start + self.batch] for start in starts)
        with torch.inference_mode():
            parts = [self.graph.answers_and_evidence(*tensors_of(self.net, block)) for block in blocks]
        *answers, evidence_N3, logit_NJ = (torch.cat(pieces).numpy() for pieces in zip(*parts, strict=True))
        return Outputs(*answers), evidence_N3, logit_NJ


# --- whole exports


def export_foreign(
    folder: Path,
    out: Path,
    *,
    config: ExportConfig | None = None,
    calibration: str | None = None,
    split: str | None = None,
    map_joints: str | None = None,
    data_root: Path | None = None,
    also: Sequence[str] = (),
    previous: Path | None = None,
    sign_key: Path | None = None,
    replace: bool = False,
    cache: Path,
) -> Path:
    """Write the bundle of somebody's net with the detector that ``alpose-train fit --pose`` trained for it.

    Args:
        folder: of the model.
        out: ``NAME.alpose``.
        config: precision, definition of failure, limits.
        calibration: labelled people that trained nothing, by name or folder; those that the detector was fitted from unless
            named, of whom the ones that trained it are left out.
        split: the part of a COCO folder that calibrates; its ``val`` part, or everybody, by default.
        map_joints: which joints of net and labels belong together, as ``NET:LABEL,…``; as in training unless stated.
        data_root: where datasets are.
        also: more labelled people, on which the card shows what the thresholds do.
        previous: an older bundle, whose calibration the card shows on the same people.
        sign_key: private key file.
        replace: whether a bundle that is there may be replaced.
        cache: for crops.

    Raises:
        CheckpointError, ConfigError, DataError: what is wrong with the model, the choices, or the people.
    """
    model = models.load(folder)
    name = calibration or model.facts.get("dataset")
    if not name:
        raise ConfigError(
            f"{folder} does not say which people it was fitted to: name labelled people with --calibration"
        )
    stated = map_joints or model.facts.get("map_joints")
    seen = who_trained(model.facts)

    net, crop = open_net(model.net, model.spec), crop_config(model.spec)

    def people(of: str) -> Crops:
        labelled = in_net(open_dataset(of, data_root, split=split).for_calibration(), model.spec, stated)
        turn_N = seen_turns(net, labelled, crop, cache) if crop.kind == "turned" else None
        return unseen_crops(labelled, model.spec.skeleton, crop, cache, seen, turn_N)

    crops = people(str(name))
    config = config or ExportConfig()
    graph = foreign_graph(
        net, model.detector, head_name=_head_name(model.detector), crops=crops, most_bytes=config.most_bytes
    )
    return write(
        graph, crops, [people(each) for each in also], out, config=_as_it_is(graph, config),
        provenance=provenance(graph, {key: value for key, value in model.facts.items() if _is_plain(value)}),
        previous=previous, sign_key=sign_key, replace=replace,
    )  # fmt: skip


def export_uncalibrated(
    path: Path, out: Path, *, like: str | None = None, spec: PoseSpec | None = None, config: ExportConfig | None = None,
    sign_key: Path | None = None, replace: bool = False,
) -> Path:  # fmt: skip
    """Write the bundle of somebody's net of which nothing is known but its file: no labels, no detector.

    Poses are theirs. The failure probability is one minus the mean of the net's own scores: it ranks at best, is no
    probability, and says nothing at all of a net without scores. Golden frames are rendered people.

    Args:
        path: the ONNX file, or a folder of a model, whose detector is then used uncalibrated.
        out: ``NAME.alpose``.
        like: the family that it is of, where that is not recognised.
        spec: in place of recognising it.
        config: precision, limits.
        sign_key: private key file.
        replace: whether a bundle that is there may be replaced.
    """
    detector = None
    if path.is_dir():
        model = models.load(path)
        net, detector = open_net(model.net, model.spec), model.detector
    else:
        net = open_net(path, spec or recognise(path, like=like))
    with tempfile.TemporaryDirectory() as scratch:
        rendered = read_people(seed=0, count=PICTURES)
        crops = prepare(rendered, crop_config(net.spec), Path(scratch))
        config = config or ExportConfig()
        graph = foreign_graph(
            net,
            detector,
            head_name="none" if detector is None else _head_name(detector),
            crops=crops,
            most_bytes=config.most_bytes,
        )
        if detector is None and net.spec.decoder.score == "none":
            log.warning("%s gives no score of its joints, and nothing was trained: its failure probability says nothing but "
                        "what its flag says, if it has one", path.name)  # fmt: skip
        way = (f"alpose-export {path} --calibration DATA" if path.is_dir()
               else f"alpose-train fit --pose {path} --data DATA --out MODEL, then alpose-export MODEL")  # fmt: skip
        log.warning(
            "not calibrated: the failure probability only ranks, and there are no thresholds. With labelled people: %s",
            way,
        )
        return write(graph, crops, (), out, config=_as_it_is(graph, config),
                     provenance=provenance(graph, {}), previous=None, sign_key=sign_key, replace=replace,
                     calibrate_it=False)  # fmt: skip


def foreign_graph(
    net: ForeignNet, detector: Detector | None, *, head_name: str, crops: Crops, most_bytes: int = MOST_BYTES
) -> ForeignGraph:
    """Somebody's net as an export takes it."""
    frames_NHW3 = crops.read_bare(np.arange(min(2, len(crops))))
    graph = ForeignGraph(net, NetReader(net.spec, net.shapes), detector, head_name=head_name, frames_NHW3=frames_NHW3,
                         most_bytes=most_bytes)  # fmt: skip
    if not graph.theirs.dynamic:
        log.info("%s takes one image at a time, and so does the bundle: people of one frame are looked at one by one",
                 net.path.name)  # fmt: skip
    return graph


def in_net(labelled: PoseData, spec: PoseSpec, stated: str | None) -> PoseData:
    """People with their labels in the skeleton of the net."""
    return in_skeleton(labelled, spec.skeleton, match_joints(spec.skeleton, labelled.skeleton, stated))


def provenance(graph: ForeignGraph, facts: dict[str, Any]) -> dict[str, Any]:
    """What the card says of a net's origin."""
    theirs, net = graph.theirs, graph.net
    beside = weights_beside(net.path)
    known = {
        "file": net.path.name,
        "sha256": file_sha256(net.path),
        **({"weights beside it": {name: file_sha256(net.path.parent / name) for name in beside}} if beside else {}),
        "family": net.spec.name,
        "opset": theirs.opset,
        "nodes left out, which nothing reads": theirs.dropped,
        "images of one call": "any number" if theirs.dynamic else "one",
        "quantised before it came": theirs.quantised,
    }
    return {"net": known, "spec": to_json(net.spec), **({"model": facts} if facts else {})}


def seen_turns(net: ForeignNet, people: PoseData, crop: CropConfig, cache: Path) -> Floats:
    """The turn of everybody's body by the net's own pose in an upright crop, radians (N,); NaN where there is none.

    ``people`` are labelled in the net's skeleton.

    As on a device. By the labels' axis a calibration would promise too much: BlazePose finds 80.9 % of the joints of LSP test in
    crops that are turned so, 76.8 % in these.
    """
    upright = prepare(people, dataclasses.replace(crop, kind="box", context=0.0), cache)
    reader = NetReader(net.spec, net.shapes).eval()
    return turns_of(net, reader, upright, device_context("cpu"), cache, f"{people.name}, upright", len(people))


def _head_name(detector: Detector) -> str:
    return detector.config.kind


def _is_plain(value: Any) -> bool:
    """Whether a fact is short enough for a card."""
    return isinstance(value, str | int | float | bool) or (isinstance(value, dict) and len(str(value)) < 2000)


def _as_it_is(graph: ForeignGraph, config: ExportConfig) -> ExportConfig:
    """A net that was quantised before it came keeps its numbers, and so does one whose weights lie beside its graph."""
    if graph.theirs.outside is not None:
        if config.precision != "fp32":
            raise ConfigError(
                f"{graph.net.path}: --precision {config.precision} reads graphs of at most 2 GiB, and this one's weights lie beside it: "
                "leave it out, or convert the net before"
            )
        log.info(
            "the weights of %s do not fit into the graph's file and lie beside it, in %s", graph.net.path.name, WEIGHTS
        )
    if config.precision == "fp32" or not graph.theirs.quantised:
        return config
    log.warning("%s was quantised before it came and stays as it is: --precision %s changes nothing",
                graph.net.path.name, config.precision)  # fmt: skip
    return dataclasses.replace(config, precision="fp32")
