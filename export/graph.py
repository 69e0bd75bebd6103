"""One graph for a device: RGB crops in; joints, scores, predicted loss, failure probability and embedding out.

The same :class:`MonitorGraph` answers in PyTorch and is written as ONNX, so that the two can be compared. Everything
that a device would otherwise do beside the net is inside: normalising, decoding, calibrating. No heatmap leaves it.

Shapes: N batch, S crop side, J joints, H W heatmap, C channels, D embedding, h w a scale.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from alpose.runtime.errors import CheckpointError, ConfigError, DataError
from alpose.runtime.skeleton import Skeleton
from alpose.runtime.types import Outputs
from alpose.trainer.checkpoint import PoseModel
from alpose.trainer.measures.joint_calibration import JointCalibration, identity
from alpose.trainer.models.heads import HeadName
from alpose.trainer.models.hourglass import STRIDE

from .calibration import Calibration
from .graph_parts import (
    Calibrate,
    Decode,
    Embedding,
    Head,
    HeatmapEvidence,
    JoinedEvidence,
    JointConfidence,
    Normalise,
    OwnTrunk,
    Raw,
    TappedTrunk,
    Trunk,
    form,
)
from .onnx_graph import GraphSpec, OnnxFacts, to_onnx

UNCALIBRATED = Calibration(
    np.zeros(3), np.ones(3), np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0]), np.array([0.0, 1.0])
)
"""Stands in where nothing was calibrated: one minus the mean score, cut to [0, 1]. It is no probability."""


G = TypeVar("G", bound="CalibratedGraph")


class CalibratedGraph(nn.Module):
    """What ours and anybody's net have in common: :class:`Raw` numbers in, six outputs with probabilities out.

    A subclass says what its inputs are and gives :meth:`read`.
    """

    spec: GraphSpec
    calibration: Calibration | None = None
    joints: JointCalibration | None = None

    def set_calibration(self, calibration: Calibration | None, joints: JointCalibration | None) -> None:
        """Take these probabilities; None stands for none."""
        self.calibration, self.joints = calibration, joints
        self.calibrate = Calibrate(calibration or UNCALIBRATED)
        self.confidence = JointConfidence(joints or identity(len(self.spec.skeleton)))
        self.eval()

    def with_calibration(self: G, calibration: Calibration, joints: JointCalibration | None = None) -> G:
        """The same graph with these probabilities."""
        other = copy.deepcopy(self)
        other.set_calibration(calibration, joints or self.joints)
        return other

    def read(self, *inputs: Tensor) -> Raw:
        """What the net says, before any calibration."""
        raise NotImplementedError

    def answers_and_evidence(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The six outputs; seventh, what the calibration is applied to (N, 3); eighth, the joints' logits (N, J)."""
        raw = self.read(*inputs)
        return (raw.keypoints_NJ2, raw.scores_NJ, raw.evidence_N3[:, 0], self.calibrate(raw.evidence_N3),
                raw.embedding_ND, self.confidence(raw.joint_logit_NJ), raw.evidence_N3, raw.joint_logit_NJ)  # fmt: skip

    def evidence(self, *inputs: Tensor) -> Tensor:
        """What a calibration is fitted to: (N, 3)."""
        return self.read(*inputs).evidence_N3


class MonitorGraph(CalibratedGraph):
    """uint8 crops (N, S, S, 3) to the six outputs, in the order of ``output_names``.

    Build it with :meth:`from_model` or :meth:`from_modules`. It holds copies, in eval mode, float32 and on the CPU:
    what it was built from stays as it was. The evidence for a failure is, in this order, the predicted loss, the
    entropy of the heatmaps, and one minus the mean score.
    """

    def __init__(
        self,
        trunk: Trunk,
        head: nn.Module,
        *,
        skeleton: Skeleton,
        size_px: int,
        peak: float,
        head_name: str,
        stride: float | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__()
        if peak <= 0 or size_px < 8:
            raise ConfigError(f"peak must be positive and size_px at least 8, got {peak} and {size_px}")
        self.trunk = _own(trunk)
        self.head = Head(_own(head), peak)
        _refuse_damaged(self)
        self.normalise = Normalise()
        cells, dimensions = self._try(skeleton, size_px)
        if stride is None and size_px % cells:
            raise ConfigError(
                f"a crop of {size_px} px and heatmaps of {cells} cells give no whole stride: state stride="
            )
        self.spec = GraphSpec(skeleton=skeleton, height_px=size_px, width_px=size_px, head=head_name,
                              dimensions=dimensions)  # fmt: skip
        self.stride, self.peak = size_px / cells if stride is None else stride, peak
        self.decode = Decode(self.stride, peak, cells)
        self.doubt = HeatmapEvidence(peak)
        self.join = JoinedEvidence(len(skeleton))
        self.embedding = Embedding()
        self.set_calibration(calibration, None)

    @classmethod
    def from_model(
        cls, model: PoseModel, head: HeadName | None = None, calibration: Calibration | None = None
    ) -> MonitorGraph:
        """From a checkpoint of ours; ``head`` may be left out where the model has one only."""
        known = ", ".join(model.heads) or "none"
        if head is None and len(model.heads) == 1:
            head = next(iter(model.heads))
        if head is None or head not in model.heads:
            raise ConfigError(f"the model has the loss heads {known}, asked for {head!r}: name one of them")
        return cls(OwnTrunk(model.pose), model.heads[head], skeleton=model.skeleton, head_name=head,
                   size_px=model.crop.size_px, peak=model.target.peak, stride=STRIDE,
                   calibration=calibration)  # fmt: skip

    @classmethod
    def from_modules(
        cls,
        pose_net: nn.Module,
        loss_head: nn.Module,
        *,
        skeleton: Skeleton,
        size_px: int,
        peak: float,
        taps: Sequence[str],
        penultimate: str,
        heatmaps: str | None = None,
        stride: float | None = None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        head_name: str | None = None,
        calibration: Calibration | None = None,
    ) -> MonitorGraph:
        """From anybody's net.

        Args:
            pose_net: images (N, 3, S, S) to heatmaps (N, J, H, H).
            loss_head: takes :class:`alpose.trainer.models.hourglass.Features`, gives the predicted loss (N,).
            skeleton: the joints, in the order of the heatmaps.
            size_px: S.
            peak: height of the heatmaps that the net was trained towards.
            taps: names of the modules whose outputs are the pyramid, finest first.
            penultimate: name of the module before the heatmaps; its global average is the embedding.
            heatmaps: name of the module that gives the heatmaps, where the net does not simply return them.
            stride: crop pixels per heatmap cell; S / H unless stated.
            mean: of each colour in [0, 1], subtracted before the net.
            std: of each colour, divided by.
            head_name: for the manifest; the head's class unless stated.
            calibration: from evidence to probability; without it the probability is none.

        Raises:
            ConfigError: a name that the net does not have, or shapes that do not fit.
            CheckpointError: weights that are not finite.
        """
        trunk = TappedTrunk(pose_net, taps=taps, penultimate=penultimate, heatmaps=heatmaps, mean=mean, std=std)
        return cls(trunk, loss_head, skeleton=skeleton, size_px=size_px, peak=peak, stride=stride,
                   head_name=head_name or type(loss_head).__name__, calibration=calibration)  # fmt: skip

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Keypoints (N, J, 2), scores (N, J), predicted loss (N,), failure probability (N,), embedding (N, D), and the
        confidence of the joints (N, J)."""
        return self.answers_and_evidence(frames)[:6]

    def read(self, *inputs: Tensor) -> Raw:
        """From frames (N, S, S, 3)."""
        maps_NJHW, features = self.trunk(self.normalise(inputs[0]))
        keypoints_NJ2, scores_NJ, peak_NJ1 = self.decode(maps_NJHW)
        negative_entropy_NJ, look_NJP = self.doubt(maps_NJHW)
        loss_N1, logit_NJ = self.head(features, peak_NJ1, scores_NJ, look_NJP)
        evidence_N3 = self.join(loss_N1, negative_entropy_NJ, scores_NJ)
        return Raw(keypoints_NJ2, scores_NJ, evidence_N3, logit_NJ, self.embedding(features.penultimate_BCHW))

    @property
    def joint_source(self) -> str:
        """Where the joints' logits come from."""
        return "head" if self.head.knows_joints else "score"

    def reference(self) -> TorchEngine:
        """The graph in PyTorch, which others are held against."""
        return TorchEngine(self)

    def parity_rows(self, frames_NHW3: npt.NDArray[np.uint8], given: Outputs) -> dict[str, Any]:
        """Nothing beyond what every bundle says."""
        return {}

    def write(self, path: Path) -> OnnxFacts:
        """Write it as ONNX; see :func:`~.onnx_graph.to_onnx`."""
        return to_onnx(self, path)

    def _try(self, skeleton: Skeleton, size_px: int) -> tuple[int, int]:
        """Run two black frames and check every shape; cells across a heatmap, and D."""
        frames = torch.zeros(2, size_px, size_px, 3, dtype=torch.uint8)
        with torch.inference_mode():
            try:
                maps, features = self.trunk.eval()(self.normalise(frames))
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                if isinstance(error, ConfigError):
                    raise
                raise ConfigError(f"the pose net does not take images of 3 x {size_px} x {size_px}: {error}") from error
            sizes = [tuple(scale.shape[1:]) for scale in features.pyramid]
            cells = maps.shape[-1]
            if maps.ndim != 4 or tuple(maps.shape) != (2, len(skeleton), cells, cells):
                raise ConfigError(f"heatmaps of {len(skeleton)} joints ({skeleton.name}) from 2 images must have the shape "
                                  f"(2, {len(skeleton)}, H, H), the net gives {tuple(maps.shape)}")  # fmt: skip
            if any(a[1] < b[1] or a[2] < b[2] for a, b in itertools.pairwise(sizes)):
                raise ConfigError(f"taps must go from the finest to the coarsest scale, their (C, h, w) are {sizes}")
            try:
                loss = self.head.head.eval()(features)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise ConfigError(f"the loss head does not take features of (C, h, w) {sizes} and penultimate "
                                  f"{tuple(features.penultimate_BCHW.shape[1:])}: {error}") from error  # fmt: skip
        if not isinstance(loss, Tensor) or tuple(loss.shape) != (2,):
            raise ConfigError(f"the loss head must give one number per image, shape (N,), it gives {form(loss)} for 2")
        return cells, int(features.penultimate_BCHW.shape[1])


def _own(module: nn.Module) -> Any:
    own = copy.deepcopy(module).to(device="cpu", dtype=torch.float32)
    return own.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


def _refuse_damaged(module: nn.Module) -> None:
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise CheckpointError(f"{bad} of {value.numel()} numbers of {name} are not finite: these weights are damaged, "
                                  "train again or take an earlier checkpoint")  # fmt: skip


class TorchEngine:
    """A :class:`MonitorGraph` behind the interface of every engine; the reference of the others."""

    def __init__(self, graph: MonitorGraph, batch: int = 32) -> None:
        self.graph, self.batch, self.name = graph.eval(), batch, "torch fp32"

    def __call__(self, frames_NHW3: npt.NDArray[np.uint8]) -> Outputs:
        """Answer N frames, ``batch`` at a time."""
        return self.answers_and_evidence(frames_NHW3)[0]

    def evidence(self, frames_NHW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """What a calibration is fitted to: (N, 3)."""
        return self._run(frames_NHW3, lambda frames: (self.graph.evidence(frames),))[0]

    def answers_and_evidence(
        self, frames_NHW3: npt.NDArray[np.uint8]
    ) -> tuple[Outputs, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """From one pass: the outputs, what the calibration is applied to (N, 3), and the joints' logits (N, J)."""
        *answers, evidence_N3, logit_NJ = self._run(frames_NHW3, self.graph.answers_and_evidence)
        return Outputs(*answers), evidence_N3, logit_NJ

    def _run(self, frames_NHW3: npt.NDArray[np.uint8], call: Any) -> list[npt.NDArray[np.float32]]:
        height, width = self.graph.spec.height_px, self.graph.spec.width_px
        if frames_NHW3.dtype != np.uint8 or frames_NHW3.shape[1:] != (height, width, 3) or not len(frames_NHW3):
            raise DataError(f"frames are uint8 (N, {height}, {width}, 3) with N >= 1, got {frames_NHW3.dtype} "
                            f"{frames_NHW3.shape}")  # fmt: skip
        with torch.inference_mode():
            parts = [call(torch.from_numpy(np.array(frames_NHW3[start : start + self.batch])))
                     for start in range(0, len(frames_NHW3), self.batch)]  # fmt: skip
        return [torch.cat(pieces).numpy() for pieces in zip(*parts, strict=True)]
