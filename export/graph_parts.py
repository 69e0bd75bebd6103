"""What a device's graph is made of: the pose net with its features, normalising, decoding, and the probability of failure.

Shapes: N batch, S crop side, J joints, H W heatmap, P cells of a heatmap, C channels, D embedding, K knots and L segments
of the calibration, h w a scale.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from alpose.runtime.errors import ConfigError
from alpose.trainer.data.augment import to_input
from alpose.trainer.heatmaps import to_pixels
from alpose.trainer.measures.joint_calibration import JointCalibration
from alpose.trainer.models import PoseNet
from alpose.trainer.models.expected_pck import HEIGHTS, SHARPNESS, ExpectedPckHead
from alpose.trainer.models.hourglass import Features
from alpose.trainer.models.joint_network import CERTAIN
from alpose.trainer.scoring import ENTROPY_TEMPERATURE, REFERENCE_PEAK

from .calibration import Calibration

SURE = 1e-3
"""Scores nearer than this to 0 or 1 are told apart no more, where their logit is taken."""


class Raw(NamedTuple):
    """What a graph says of N images before its calibration."""

    keypoints_NJ2: Tensor
    scores_NJ: Tensor
    evidence_N3: Tensor
    """In the order of :data:`~.calibration.EVIDENCE`."""
    joint_logit_NJ: Tensor
    """Of each joint being right, by the head where it knows joints, otherwise by the score."""
    embedding_ND: Tensor


class Trunk(nn.Module):
    """A pose net as a graph sees it: images (N, 3, S, S) to the last heatmaps (N, J, H, W) and features."""

    def forward(self, images_N3SS: Tensor) -> tuple[Tensor, Features]:
        """Both in the net's own type."""
        raise NotImplementedError


class OwnTrunk(Trunk):
    """A net of ours. An hourglass's heatmaps are not stacked, which nobody would read."""

    def __init__(self, net: PoseNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images_N3SS: Tensor) -> tuple[Tensor, Features]:
        """The last heatmaps, and the features."""
        features = self.net(images_N3SS).features
        return features.heatmaps[-1], features


class TappedTrunk(Trunk):
    """Any net, whose features are the outputs of modules that are named.

    Args:
        net: takes images in [0, 1], scaled by ``(image - mean) / std``.
        taps: modules whose outputs (N, C, h, w) are the pyramid, finest first.
        penultimate: the module before the heatmaps.
        heatmaps: the module that gives them; None where the net itself returns them and nothing else.
        mean: of each colour, in [0, 1].
        std: of each colour.
    """

    mean_311: Tensor
    std_311: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        taps: Sequence[str],
        penultimate: str,
        heatmaps: str | None = None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(
                f"mean and std are three numbers for red, green and blue, std positive: got {mean}, {std}"
            )
        if not taps:
            raise ConfigError("taps names no module: give at least one whose output the loss head reads")
        self.names = tuple(dict.fromkeys([*taps, penultimate, *([heatmaps] if heatmaps else [])]))
        known = [name for name, _ in net.named_modules() if name]
        for name in self.names:
            if name not in known:
                near = difflib.get_close_matches(name, known, 3) or known[:8]
                raise ConfigError(f"{type(net).__name__} has no module {name!r}: did you mean {', '.join(near)}?")
        self.net, self.taps, self.penultimate, self.heatmaps = net, tuple(taps), penultimate, heatmaps
        self.plain = not any(mean) and all(value == 1 for value in std)
        self.register_buffer("mean_311", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std_311", torch.tensor(std, dtype=torch.float32).view(3, 1, 1))

    def forward(self, images_N3SS: Tensor) -> tuple[Tensor, Features]:
        """What the named modules gave."""
        if not self.plain:
            images_N3SS = (images_N3SS - self.mean_311) / self.std_311
        with _recorded_outputs(self.net, self.names) as outputs_of:
            answer = self.net(images_N3SS)
        if self.heatmaps is not None:
            answer = _single(outputs_of, self.heatmaps)
        elif not isinstance(answer, Tensor):
            raise ConfigError(f"{type(self.net).__name__} returns {form(answer)}, not one tensor of heatmaps: name the "
                              "module that gives them with heatmaps=")  # fmt: skip
        pyramid = tuple(_single(outputs_of, name) for name in self.taps)
        return answer, Features(pyramid, _single(outputs_of, self.penultimate), (answer,))


@contextmanager
def _recorded_outputs(net: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """The outputs of modules by name while the net runs; torch.export runs the same hooks."""
    outputs_of: dict[str, list[Any]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: outputs_of[name].append(output)

    handles = [net.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield outputs_of
    finally:
        for handle in handles:
            handle.remove()


def _single(outputs_of: Mapping[str, list[Any]], name: str) -> Tensor:
    outputs = outputs_of[name]
    if len(outputs) != 1:
        raise ConfigError(f"module {name!r} runs {len(outputs)} times in a forward pass: name one that runs once")
    if not isinstance(outputs[0], Tensor) or outputs[0].ndim != 4:
        raise ConfigError(f"module {name!r} gives {form(outputs[0])}, a tap needs one tensor (N, C, h, w)")
    return outputs[0]


def form(value: Any) -> str:
    """A value in words, for messages."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


class Normalise(nn.Module):
    """uint8 (N, S, S, 3) to float32 (N, 3, S, S) in [0, 1].

    It casts first: TensorRT takes uint8 at a graph's border and nowhere else.
    """

    def forward(self, frames_NSS3: Tensor) -> Tensor:
        """As in training."""
        return to_input(frames_NSS3.float())


class Decode(nn.Module):
    """Heatmaps to joints in pixels and scores; the twin of :func:`alpose.trainer.heatmaps.decode`.

    The five cells that decide are gathered together, which takes a third of the nodes: at batch 1 a node costs more
    than its arithmetic.
    """

    step_5: Tensor

    def __init__(self, stride: float, peak: float, cells: int) -> None:
        super().__init__()
        self.stride, self.peak, self.cells = stride, peak, cells
        # Centre, left, right, above, below: steps along the row, and along the flattened map.
        self.register_buffer("step_5", torch.tensor([0, -1, 1, -cells, cells]))

    def forward(self, maps_NJHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Joints (N, J, 2) in pixels of the crop, scores (N, J), and the heights that they are of (N, J, 1)."""
        flat_NJP = maps_NJHW.flatten(2)
        place_NJ1 = flat_NJP.argmax(dim=2, keepdim=True)
        # A step off the map is pulled back to some cell of it; at the border its value is not used.
        near_NJ5 = (place_NJ1 + self.step_5).clamp(0, self.cells * self.cells - 1)
        value_NJ5 = flat_NJP.gather(2, near_NJ5)
        peak_NJ1 = value_NJ5[..., :1]
        log_NJ5 = torch.maximum(value_NJ5, 1e-3 * peak_NJ1.clamp_min(1e-6)).log()
        before_NJ2, after_NJ2 = log_NJ5[..., 1::2], log_NJ5[..., 2::2]
        bend_NJ2 = 2 * log_NJ5[..., :1] - before_NJ2 - after_NJ2
        move_NJ2 = ((after_NJ2 - before_NJ2) / (2 * bend_NJ2.clamp_min(1e-6))).clamp(-0.5, 0.5)
        # Whole numbers in float32: exact, and fewer nodes than integer division, which exporters guard by its sign.
        row_NJ1 = ((place_NJ1 + 0.5) / self.cells).floor()
        cell_NJ2 = torch.cat([place_NJ1 - row_NJ1 * self.cells, row_NJ1], dim=2)
        inside_NJ2 = (bend_NJ2 > 1e-6) & (cell_NJ2 > 0) & (cell_NJ2 < self.cells - 1)
        joints_NJ2 = cell_NJ2 + torch.where(inside_NJ2, move_NJ2, 0.0)
        return to_pixels(joints_NJ2, self.stride), peak_NJ1[..., 0] / self.peak, peak_NJ1  # type: ignore[arg-type]


class HeatmapEvidence(nn.Module):
    """The evidence that heatmaps hold without a loss head: each map's entropy, negated (N, J), and where it looks, as a
    distribution over cells (N, J, P)."""

    def __init__(self, peak: float) -> None:
        super().__init__()
        self.scale = REFERENCE_PEAK / peak / ENTROPY_TEMPERATURE

    def forward(self, maps_NJHW: Tensor) -> tuple[Tensor, Tensor]:
        """As :func:`alpose.trainer.scoring.score` computes them."""
        log_NJP = functional.log_softmax(maps_NJHW.flatten(2) * self.scale, dim=2)
        look_NJP = log_NJP.exp()
        return (look_NJP * log_NJP).sum(dim=2), look_NJP


class Head(nn.Module):
    """A loss head with what it says of each joint: predicted loss (N, 1), logits of the joints being right (N, J).

    Args:
        head: the loss head; it belongs to the graph.
        peak: height of the heatmaps that the net was trained towards.
    """

    def __init__(self, head: nn.Module, peak: float) -> None:
        super().__init__()
        self.head = head
        self.knows_joints = isinstance(head, ExpectedPckHead)
        # Heatmaps are then read as HeatmapEvidence has read them already.
        shares_maps = (
            isinstance(head, ExpectedPckHead) and not head.reads_peaks and head.config.peak == peak
            and REFERENCE_PEAK / ENTROPY_TEMPERATURE == SHARPNESS
        )  # fmt: skip
        self.layers = JointLayers(head) if shares_maps else None  # type: ignore[arg-type]

    def forward(
        self, features: Features, peak_NJ1: Tensor, scores_NJ: Tensor, look_NJP: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Most heads judge the image alone: of their joints the net's own scores speak."""
        if not self.knows_joints:
            return self.head(features)[:, None], score_logit(scores_NJ)
        if self.layers is None:
            logits_NJ = self.head.logits(self.head.evidence(features))  # type: ignore[operator]
        else:
            first_NJP = features.heatmaps[0].flatten(2)
            logits_NJ = self.layers(self.head.evidence_of(features, peak_NJ1, first_NJP, look_NJP))  # type: ignore[operator]
        # share_to_logit() of one minus the mean; what is right is cut in place of what is wrong.
        right_N1 = torch.sigmoid(logits_NJ).mean(dim=1, keepdim=True).clamp(CERTAIN, 1 - CERTAIN)
        return ((1 - right_N1) / right_N1).log(), logits_NJ


class JointLayers(nn.Module):
    """:meth:`~alpose.trainer.models.joint_network.JointNetwork.logits` of a head that reads heatmaps, with few nodes.

    Every joint's own network is a group of one convolution, and its own share of the logits a matrix whose blocks do not
    touch. The deviation of the evidence is divided out of the weights; its mean stays, or small differences would drown.
    The heights of heatmaps, which come first, are taken as they are, without dividing by the training peak.
    """

    mean_JD: Tensor
    own_OD11: Tensor
    own_bias_O: Tensor
    shared_SO: Tensor
    shared_bias_S: Tensor
    out_own_JO: Tensor
    out_bias_J: Tensor
    out_shared_SJ: Tensor

    def __init__(self, head: ExpectedPckHead) -> None:
        super().__init__()
        unit_D = torch.ones(head.depth, dtype=torch.float64)
        unit_D[:HEIGHTS] = head.config.peak
        own_JDM = head.own.double() / (head.deviation_JD.double() * unit_D)[..., None]
        joints = len(own_JDM)
        for name, value in {
            "mean_JD": head.mean_JD.double() * unit_D,
            "own_OD11": own_JDM.transpose(1, 2).flatten(0, 1)[..., None, None],
            "own_bias_O": head.own_bias.flatten(),
            "shared_SO": head.shared.weight,
            "shared_bias_S": head.shared.bias,
            "out_own_JO": torch.block_diag(*(head.out_own[joint].T for joint in range(joints))),
            "out_bias_J": head.out_shared.bias,
            "out_shared_SJ": head.out_shared.weight.T,
        }.items():
            self.register_buffer(name, value.detach().float().contiguous().clone())

    def forward(self, evidence_NJD: Tensor) -> Tensor:
        """Logits (N, J)."""
        centred_NE11 = (evidence_NJD - self.mean_JD).flatten(1)[..., None, None]
        own_NO11 = functional.conv2d(centred_NE11, self.own_OD11, self.own_bias_O, groups=len(self.mean_JD))
        own_NO = functional.relu(own_NO11).flatten(1)
        shared_NS = functional.relu(functional.linear(own_NO, self.shared_SO, self.shared_bias_S))
        of_own_NJ = functional.linear(own_NO, self.out_own_JO, self.out_bias_J)
        return torch.addmm(of_own_NJ, shared_NS, self.out_shared_SJ)


class JoinedEvidence(nn.Module):
    """The evidence of an image (N, 3), in the order of :data:`~.calibration.EVIDENCE`.

    The means over joints, and what they are subtracted from, are one matrix product.
    """

    weight_E3: Tensor
    bias_3: Tensor

    def __init__(self, joints: int) -> None:
        super().__init__()
        weight_E3 = torch.zeros(1 + 2 * joints, 3)
        weight_E3[0, 0] = 1.0
        weight_E3[1 : 1 + joints, 1] = weight_E3[1 + joints :, 2] = -1.0 / joints
        self.register_buffer("weight_E3", weight_E3)
        self.register_buffer("bias_3", torch.tensor([0.0, 0.0, 1.0]))

    def forward(self, loss_N1: Tensor, negative_entropy_NJ: Tensor, scores_NJ: Tensor) -> Tensor:
        """Predicted loss, mean entropy of the maps, one minus the mean score."""
        return torch.addmm(self.bias_3, torch.cat([loss_N1, negative_entropy_NJ, scores_NJ], dim=1), self.weight_E3)


def score_logit(scores_NJ: Tensor) -> Tensor:
    """``ln(s / (1 - s))`` of scores that are about 0 to 1."""
    sure_NJ = scores_NJ.clamp(SURE, 1 - SURE)
    return torch.log(sure_NJ) - torch.log1p(-sure_NJ)


class Embedding(nn.Module):
    """Global average, scaled to unit length: (N, C, h, w) to (N, D)."""

    def forward(self, features_NChw: Tensor) -> Tensor:
        """A map of zeros stays zero."""
        mean_ND = features_NChw.mean(dim=(2, 3), keepdim=True).flatten(1)
        return mean_ND / torch.linalg.vector_norm(mean_ND, dim=1, keepdim=True).clamp_min(1e-12)


class Calibrate(nn.Module):
    """:meth:`Calibration.probability` as tensors: evidence (N, 3) to probability (N,).

    Standardising, weighing and measuring against a knot are one linear map to each of the L segments between knots.
    """

    weight_3L: Tensor
    start_L: Tensor
    rise_L1: Tensor
    first_1: Tensor

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        weight_3 = calibration.weight_3 / calibration.sd_3
        length_L = np.diff(calibration.score_K)
        start_L = calibration.score_K[:-1] + weight_3 @ calibration.mean_3
        for name, value in {
            "weight_3L": weight_3[:, None] / length_L,
            "start_L": -start_L / length_L,
            "rise_L1": np.diff(calibration.probability_K)[:, None],
            "first_1": calibration.probability_K[:1],
        }.items():
            self.register_buffer(name, torch.from_numpy(value.astype(np.float32)))

    def forward(self, evidence_N3: Tensor) -> Tensor:
        """A sum over the segments: how far each is walked, times its rise."""
        walked_NL = torch.addmm(self.start_L, evidence_N3, self.weight_3L).clamp(0.0, 1.0)
        return torch.addmm(self.first_1, walked_NL, self.rise_L1)[:, 0]


class JointConfidence(nn.Module):
    """:meth:`JointCalibration.confidence` as tensors: logits (N, J) to the probability that each joint is right (N, J)."""

    gain_JJ: Tensor
    offset_J: Tensor

    def __init__(self, calibration: JointCalibration) -> None:
        super().__init__()
        self.register_buffer("gain_JJ", torch.from_numpy(np.diag(calibration.gain_J).astype(np.float32)))
        self.register_buffer("offset_J", torch.from_numpy(calibration.offset_J.astype(np.float32)))

    def forward(self, logit_NJ: Tensor) -> Tensor:
        """A line for each joint, and the logistic function; as a matrix, which engines join with that function."""
        return torch.sigmoid(torch.addmm(self.offset_J, logit_NJ, self.gain_JJ))
