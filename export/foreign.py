"""Bundles of nets that somebody else trained: their graph, merged with what reads it.

Golden answers and calibration come from their file as it is, run by ONNX Runtime, with the reader in PyTorch behind it: the
slow exact twin of the one graph that is written. That the merged graph gives the same keypoints as their file alone, bit for
bit, is measured and stands in the bundle.

Shapes: N images, H W the input, J joints, D evidence of a joint.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from alpose.runtime.errors import ConfigError
from alpose.runtime.io import write_atomically
from alpose.runtime.types import Outputs
from alpose.trainer.foreign.heads import Detector
from alpose.trainer.foreign.net import ForeignNet
from alpose.trainer.foreign.reader import NetReader
from alpose.trainer.models.joint_network import share_to_logit

from .calibration import Calibration
from .graph import CalibratedGraph
from .graph_parts import Raw, score_logit
from .joint_calibration import JointCalibration
from .merge import load, made_dynamic, merge, wanted_opset
from .onnx_graph import GraphSpec, OnnxFacts, check_model, describe, exported, warn_outside_tensorrt

log = logging.getLogger("alpose")


class ReaderGraph(CalibratedGraph):
    """The tensors of ``spec.tensors`` to the six outputs: what stands behind somebody's net in a bundle.

    Args:
        reader: reads them.
        head: the detector of a :class:`~alpose.trainer.foreign.model.ForeignModel`; or a module whose ``logits`` takes evidence
            (N, J, D) and gives a logit of each joint being right (N, J). None where nothing was trained: then the net's own scores speak for the joints and, negated, for the image.
        spec: of the whole graph.
    """

    def __init__(self, reader: NetReader, head: nn.Module | None, spec: GraphSpec) -> None:
        super().__init__()
        self.spec = spec
        self.reader = copy.deepcopy(reader).float().eval()
        self.head = None if head is None else copy.deepcopy(head).float().cpu().eval()
        self.entropies = [place for place, name in enumerate(reader.facts[: reader.count]) if is_entropy(name)]
        self.set_calibration(None, None)

    @property
    def joint_source(self) -> str:
        """Where the joints' logits come from."""
        return "score" if self.head is None else "head"

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Keypoints, scores, predicted loss, failure probability, embedding, confidence."""
        return self.answers_and_evidence(*tensors)[:6]

    def read(self, *inputs: Tensor) -> Raw:
        """From the tensors."""
        reading = self.reader(*inputs)
        doubt_N = 1.0 - reading.scores_NJ.mean(dim=1)
        entropy_N = torch.zeros_like(doubt_N)
        if self.entropies:
            entropy_N = reading.evidence_NJD[:, :, self.entropies].mean(dim=(1, 2))
        if self.head is None:
            loss_N, logit_NJ = doubt_N, score_logit(reading.scores_NJ)
        elif isinstance(self.head, Detector):
            loss_N, confidence_NJ = self.head(reading, self.reader.pooled(inputs))
            logit_NJ = score_logit(confidence_NJ)
        else:
            logit_NJ = self.head.logits(reading.evidence_NJD)  # type: ignore[operator]
            loss_N = share_to_logit(1 - torch.sigmoid(logit_NJ).mean(dim=1))
        evidence_N3 = torch.stack([loss_N, entropy_N, doubt_N], dim=1)
        return Raw(reading.keypoints_NJ2, reading.scores_NJ, evidence_N3, logit_NJ, unit(reading.embedding_NE))


def is_entropy(fact: str) -> bool:
    """Whether a fact is the entropy of a map or a distribution, of the joint itself."""
    return "entropy" in fact and not fact.startswith("mirror")


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
        head: see :class:`ReaderGraph`.
        head_name: for the manifest.
        frames_NHW3: real crops, by which is decided whether their graph takes any number of images.

    Raises:
        ConfigError, DataNotFoundError, CheckpointError: see :func:`~.merge.load`.
    """

    def __init__(
        self, net: ForeignNet, reader: NetReader, head: nn.Module | None, *, head_name: str,
        frames_NHW3: npt.NDArray[np.uint8],
    ) -> None:  # fmt: skip
        given = net.spec.input
        if given.batch not in (None, 1):
            raise ConfigError(f"{net.path} takes {given.batch} images at a time: export it for one, or for any number")
        self.net, self.theirs = net, load(net.path, net.spec)
        self.theirs = made_dynamic(self.theirs, net.spec, frames_NHW3)
        with torch.inference_mode():
            tried = reader.float().eval()(*tensors_of(net, frames_NHW3[:1]))
        spec = GraphSpec(skeleton=net.spec.skeleton, height_px=given.height_px, width_px=given.width_px, head=head_name,
                         dimensions=int(tried.embedding_NE.shape[1]), batch=self.theirs.batch)  # fmt: skip
        self.graph = ReaderGraph(reader, head, spec)

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
        other.graph = self.graph.with_calibration(calibration, joints)
        return other

    def reference(self) -> ForeignEngine:
        """Their file as it is, and the reader in PyTorch."""
        return ForeignEngine(self.net, self.graph)

    def tail(self) -> tuple[Any, list[str]]:
        """What reads their tensors, as ONNX; and the names of its inputs."""
        names = [f"tensor_{place}" for place in range(len(self.net.spec.tensors))]
        frames = np.zeros((2 if self.theirs.dynamic else 1, self.spec.height_px, self.spec.width_px, 3), np.uint8)
        examples = tensors_of(self.net, frames)
        axes = {"tensors": tuple({0: self.theirs.batch} for _ in names)} if self.theirs.dynamic else None
        return exported(self.graph, examples, names, axes, wanted_opset(self.theirs)), names

    def merged(self) -> Any:
        """The one graph, with the facts that it carries."""
        model = merge(self.theirs, self.net.spec, *self.tail())
        describe(model, self.graph, {"net": self.net.spec.name})
        return model

    def write(self, path: Path) -> OnnxFacts:
        """Write it as ONNX, checked."""
        model = self.merged()
        facts = check_model(model, self.spec)
        warn_outside_tensorrt(path, facts)
        write_atomically(path, model.SerializeToString(deterministic=True))
        return facts

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
