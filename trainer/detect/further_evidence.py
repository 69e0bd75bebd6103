"""What the candidates read beside the evidence of the shipped head, by group; and errors that are made up for them.

Nothing here ships. Each group asks whether the pose net, the pixels or the labels hold something that the shipped head has
not used up: :data:`GROUPS`. Facing and skeleton are learned from the labels of the people who trained the pose net.

Shapes: N people or views, B batch, J joints, E further numbers of a joint, C channels, H W heatmap, P cells, K components,
F coordinates of a pose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional

from alpose.runtime.skeleton import Skeleton, body_axis

from ..augmented_views import augmented_views
from ..checkpoint import PoseModel
from ..data.crops import Crops
from ..device import DeviceContext
from ..heatmaps import decode, to_pixels
from ..models.expected_pck import SHARPNESS
from ..models.hourglass import STRIDE
from ..passes import Predicted, threshold_px

COMPONENTS, LEAST_PER_COMPONENT, COVARIANCE_FLOOR = 12, 20, 1e-3
"""Of the mixture of poses."""
ROTATIONS = 4
"""In which every labelled pose is learned, up to a quarter turn to either side, as the views are turned."""
FACING_VIEWS, RIDGE = 3, 30.0
PIXELS = 32
"""Side of the picture that the shallow branch sees."""
NEAR = 2.0
"""A keypoint within this many PCK thresholds of its joint, and not right, jitters."""


class ErrorRates(NamedTuple):
    """Shares of all joints by what happened to them, after PoseFix (Moon et al., CVPR 2019)."""

    jitter: float
    """Beside the joint: between one and two PCK thresholds away."""
    inversion: float
    """On the mirror partner."""
    miss: float
    """Anywhere else. Where one person of a picture is labelled, a joint of somebody else cannot be told from these."""


@dataclass(frozen=True)
class FurtherEvidence:
    """Reads :data:`GROUPS` of a batch."""

    model: PoseModel
    radius_cells: float
    """The PCK threshold of the person in the middle, in cells of the map."""
    facing: Tensor
    """Weights of the two coarsest scales' averages, with a constant, for :func:`facing_of`."""
    skeleton: Mixture | None
    """None where too few people have all joints labelled."""

    @classmethod
    def learn(cls, model: PoseModel, crops: Crops, machine: DeviceContext, seed: int) -> FurtherEvidence:
        """Learn facing and skeleton from labelled people."""
        unit_N = threshold_px(crops)
        radius = float(unit_N[unit_N.isfinite()].median()) / STRIDE if unit_N.isfinite().any() else 1.0
        coarse, facing, poses = [], [], []
        for view in augmented_views(model, crops, machine, views=FACING_VIEWS, seed=seed, what="learning to face"):
            whole_B = view.labelled_BJ.all(dim=1)
            coarse.append(_coarse(view).cpu())
            facing.append(torch.where(whole_B, facing_of(view.joints_BJ2, model.skeleton), torch.nan).cpu())
            poses.append(view.joints_BJ2[whole_B].cpu())
        return cls(model, max(radius, 1.0), _ridge(torch.cat(coarse), torch.cat(facing)).to(machine.device),
                   Mixture.learn(torch.cat(poses), model.skeleton, seed))  # fmt: skip

    def read(self, seen: Predicted) -> dict[str, Tensor]:
        """Every group of a batch, (B, J, E) each."""
        last_BJP = seen.features.heatmaps[-1].flatten(2) / self.model.target.peak
        look_BJP = (last_BJP * SHARPNESS).softmax(dim=2)
        return {
            "partner": self._partner(seen, last_BJP, look_BJP),
            "mass": self._mass(seen, last_BJP),
            "coarse": _for_each_joint(_coarse(seen), seen),
            "facing": self._facing(seen),
            "skeleton": self._skeleton(seen),
            "pixels": pixels(seen.images_B3SS, seen.keypoints_BJ2.shape[1]),
        }

    def _partner(self, seen: Predicted, last_BJP: Tensor, look_BJP: Tensor) -> Tensor:
        """The partner's map here, this map at the partner's place, both exchanged; and how alike the features are there."""
        other = list(self.model.skeleton.flip_order())
        there_BJ = (look_BJP * last_BJP[:, other]).sum(dim=2)
        here_BJ = (look_BJP[:, other] * last_BJP).sum(dim=2)
        own_BJ = (look_BJP * last_BJP).sum(dim=2)
        exchanged_BJ = there_BJ + there_BJ[:, other] - own_BJ - own_BJ[:, other]
        finest_BPC = seen.features.pyramid[0].flatten(2).transpose(1, 2)
        read_BJC = look_BJP @ finest_BPC
        alike_BJ = functional.cosine_similarity(read_BJC, read_BJC[:, other], dim=2)
        return torch.stack([there_BJ, here_BJ, exchanged_BJ, alike_BJ], dim=2)

    def _mass(self, seen: Predicted, last_BJP: Tensor) -> Tensor:
        """Share of the map within the PCK radius of its peak and within twice that, and the highest cell elsewhere."""
        side = seen.features.heatmaps[-1].shape[-1]
        cells = torch.arange(side, device=last_BJP.device, dtype=torch.float32)
        grid_P2 = torch.stack(torch.meshgrid(cells, cells, indexing="xy"), dim=-1).view(-1, 2)
        apart_BJP = torch.cdist(seen.keypoints_BJ2 / STRIDE, grid_P2.expand(len(last_BJP), -1, -1))
        mass_BJP = last_BJP.clamp_min(0)
        total_BJ = mass_BJP.sum(dim=2).clamp_min(1e-3)
        near = [(mass_BJP * (apart_BJP <= self.radius_cells * wide)).sum(dim=2) / total_BJ for wide in (1, 2)]
        elsewhere_BJ = last_BJP.masked_fill(apart_BJP <= 2 * self.radius_cells, 0.0).amax(dim=2)
        return torch.stack([*near, elsewhere_BJ], dim=2)

    def _facing(self, seen: Predicted) -> Tensor:
        """Facing by the coarse features, by the keypoints, and whether they agree."""
        coarse_BF = _coarse(seen)
        by_features_B = functional.pad(coarse_BF, (0, 1), value=1.0) @ self.facing
        by_keypoints_B = facing_of(seen.keypoints_BJ2, self.model.skeleton)
        return _for_each_joint(
            torch.stack([by_features_B, by_keypoints_B, by_features_B * by_keypoints_B], dim=1), seen
        )

    def _skeleton(self, seen: Predicted) -> Tensor:
        """How likely the pose is; how much likelier with each joint and its partner exchanged, and with all exchanged."""
        pose_BJ2, skeleton = seen.keypoints_BJ2, self.model.skeleton
        if self.skeleton is None:
            return pose_BJ2.new_zeros(*pose_BJ2.shape[:2], 3)
        own_B = self.skeleton.log_density(standing(pose_BJ2))
        gain_BJ = torch.zeros_like(pose_BJ2[..., 0])
        for pair in skeleton.flip_pairs:
            order = list(range(pose_BJ2.shape[1]))
            order[pair[0]], order[pair[1]] = pair[1], pair[0]
            gain_BJ[:, list(pair)] = (self.skeleton.log_density(standing(pose_BJ2[:, order])) - own_B)[:, None]
        whole_B = self.skeleton.log_density(standing(pose_BJ2[:, list(skeleton.flip_order())])) - own_B
        one_B2 = torch.stack([own_B, whole_B], dim=1)
        return torch.cat([_for_each_joint(one_B2, seen), gain_BJ[..., None]], dim=2)


GROUPS = ("partner", "mass", "coarse", "facing", "skeleton", "pixels")


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians over poses of one size and place."""

    log_weight_K: Tensor
    mean_KF: Tensor
    whiten_KFF: Tensor
    """Takes a difference from the mean, multiplied from the right, to a standard normal vector."""

    @classmethod
    def learn(cls, pose_NJ2: Tensor, skeleton: Skeleton, seed: int) -> Mixture | None:
        """Fit it to poses, to their mirror images, and to both turned."""
        components = min(COMPONENTS, len(pose_NJ2) // LEAST_PER_COMPONENT)
        if not components:
            return None
        mirrored_NJ2 = pose_NJ2[:, list(skeleton.flip_order())] * torch.tensor([-1.0, 1.0])
        both_NJ2 = torch.cat([pose_NJ2, mirrored_NJ2])
        value_NF = standing(both_NJ2).numpy()
        mixture = GaussianMixture(components, reg_covar=COVARIANCE_FLOOR, random_state=seed, max_iter=50).fit(value_NF)
        whiten_KFF = np.asarray(mixture.precisions_cholesky_, dtype=np.float32)
        return cls(*(torch.from_numpy(np.asarray(part, dtype=np.float32)) for part in
                     (np.log(mixture.weights_), mixture.means_, whiten_KFF)))  # fmt: skip

    def log_density(self, value_BF: Tensor) -> Tensor:
        """Logarithm of the density, (B,)."""
        mean_KF, whiten_KFF = self.mean_KF.to(value_BF), self.whiten_KFF.to(value_BF)
        white_BKF = torch.einsum("bkf,kfg->bkg", value_BF[:, None] - mean_KF, whiten_KFF)
        log_scale_K = whiten_KFF.diagonal(dim1=1, dim2=2).log().sum(dim=1) - 0.5 * value_BF.shape[1] * math.log(
            2 * math.pi
        )
        each_BK = self.log_weight_K.to(value_BF) + log_scale_K - 0.5 * white_BKF.square().sum(dim=2)
        return each_BK.logsumexp(dim=1)


def standing(pose_BJ2: Tensor) -> Tensor:
    """Poses about their centre in units of their root mean square, (B, 2J)."""
    centred_BJ2 = pose_BJ2 - pose_BJ2.mean(dim=1, keepdim=True)
    unit_B11 = centred_BJ2.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp_min(1e-3)
    return (centred_BJ2 / unit_B11).flatten(1)


def facing_of(pose_BJ2: Tensor, skeleton: Skeleton) -> Tensor:
    """How far people turn their front to the camera, (B,): largest from the front or from behind, 0 from the side.

    Which of two joints lies to the right of a body's axis tells; both ends of :func:`alpose.runtime.skeleton.body_axis` are
    taken to name the same side first, and which one decides the sign. Zeros for a skeleton without an axis.
    """
    axis = body_axis(skeleton)
    if axis is None or any(len(end) < 2 for end in axis):
        return pose_BJ2.new_zeros(len(pose_BJ2))
    left_hip, right_hip, left_shoulder, right_shoulder = (pose_BJ2[:, joint] for end in axis for joint in end)
    across_B2 = left_shoulder - right_shoulder + left_hip - right_hip
    up_B2 = left_shoulder + right_shoulder - left_hip - right_hip
    turned_B = across_B2[:, 1] * up_B2[:, 0] - across_B2[:, 0] * up_B2[:, 1]
    return turned_B / up_B2.square().sum(dim=1).clamp_min(1.0)


def pixels(images_B3SS: Tensor, joints: int) -> Tensor:
    """The picture at :data:`PIXELS`, its numbers dealt to the joints in turn and filled up with zeros, (B, J, E)."""
    small_BF = functional.adaptive_avg_pool2d(images_B3SS.float(), PIXELS).flatten(1)
    return functional.pad(small_BF, (0, -small_BF.shape[1] % joints)).unflatten(1, (joints, -1))


def picture(pixels_BJE: Tensor) -> Tensor:
    """The picture that :func:`pixels` dealt out, (B, 3, PIXELS, PIXELS)."""
    return pixels_BJE.flatten(1)[:, : 3 * PIXELS**2].unflatten(1, (3, PIXELS, PIXELS))


def _coarse(seen: Predicted) -> Tensor:
    """Averages of the two coarsest scales' features, (B, C)."""
    return torch.cat([scale.mean(dim=(2, 3)) for scale in seen.features.pyramid[-2:]], dim=1)


def _for_each_joint(value_BE: Tensor, seen: Predicted) -> Tensor:
    return value_BE[:, None].expand(-1, seen.keypoints_BJ2.shape[1], -1)


def _ridge(value_NF: Tensor, target_N: Tensor) -> Tensor:
    """Least squares with a constant, (F + 1,); rows without a target are left out."""
    known_N = target_N.isfinite()
    value_MF, target_M = functional.pad(value_NF[known_N], (0, 1), value=1.0).double(), target_N[known_N].double()
    weight = value_MF.T @ value_MF + RIDGE * torch.eye(value_MF.shape[1], dtype=torch.float64)
    return torch.linalg.solve(weight, value_MF.T @ target_M).float()


# --- Errors


def error_rates(distance_NJ: Tensor, partner_NJ: Tensor, counts_NJ: Tensor) -> ErrorRates:
    """What a net does wrong, of all joints that count.

    Args:
        distance_NJ: of keypoints to their joints, in PCK thresholds.
        partner_NJ: to the mirror partners of their joints; infinite where there is none.
        counts_NJ: joints that are judged.
    """
    wrong_NJ = counts_NJ & (distance_NJ >= 1)
    inverted_NJ = wrong_NJ & (partner_NJ < 1)
    jitter_NJ = wrong_NJ & ~inverted_NJ & (distance_NJ < NEAR)
    miss_NJ = wrong_NJ & ~inverted_NJ & ~jitter_NJ
    total = max(int(counts_NJ.sum()), 1)
    return ErrorRates(*(float(kind_NJ.sum()) / total for kind_NJ in (jitter_NJ, inverted_NJ, miss_NJ)))


def partner_distance(seen: Predicted, skeleton: Skeleton) -> Tensor:
    """From each keypoint to the label of its joint's mirror partner, in PCK thresholds, (B, J); infinite without one."""
    other = torch.tensor(skeleton.flip_order(), device=seen.joints_BJ2.device)
    apart_BJ = (seen.keypoints_BJ2 - seen.joints_BJ2[:, other]).norm(dim=2) / _threshold_px(seen)[:, None]
    known_BJ = seen.labelled_BJ[:, other] & (other != torch.arange(len(other), device=other.device))
    return torch.where(known_BJ, apart_BJ, torch.inf)


def with_errors(
    seen: Predicted, rates: ErrorRates, model: PoseModel, radius_cells: float, generator: torch.Generator
) -> Predicted:
    """Move whole heatmaps, so that a sharp map is wrong: beside the joint, onto the partner, where somebody else has it.

    Every view has a strength of its own, from nothing to twice the measured rates. A miss is, one half each, this map
    anywhere else, and the map of the same joint of the next person (PoseFix's swap, which the rates cannot tell apart).
    """
    maps_BSJHW = torch.stack(seen.features.heatmaps, dim=1)
    B, _, J, H, W = maps_BSJHW.shape
    strength_B1 = 2 * torch.rand(B, 1, generator=generator)
    drawn_BJ = torch.rand(B, J, generator=generator)
    edges = torch.tensor(rates).cumsum(dim=0)
    kind_BJ = torch.bucketize(drawn_BJ / strength_B1.clamp_min(1e-6), edges)  # 0 jitter, 1 inversion, 2 miss, 3 none
    elsewhere_BJ = torch.rand(B, J, generator=generator) < 0.5
    angle_BJ = 2 * math.pi * torch.rand(B, J, generator=generator)
    far_BJ = radius_cells * (1 + (NEAR - 1) * torch.rand(B, J, generator=generator))
    beside_BJ2 = torch.stack([far_BJ * angle_BJ.cos(), far_BJ * angle_BJ.sin()], dim=2).round().long()
    away_BJ2 = torch.stack([torch.randint(0, side, (B, J), generator=generator) for side in (W, H)], dim=2)
    other = list(model.skeleton.flip_order())
    changed = maps_BSJHW.clone()
    for b, j in torch.nonzero(kind_BJ < len(rates)).tolist():
        kind = int(kind_BJ[b, j])
        if kind == 1:
            changed[b, :, j] = maps_BSJHW[b, :, other[j]]
        elif kind == 2 and elsewhere_BJ[b, j]:
            changed[b, :, j] = maps_BSJHW[(b + 1) % B, :, j]
        else:
            x, y = (beside_BJ2 if kind == 0 else away_BJ2)[b, j].tolist()
            changed[b, :, j] = maps_BSJHW[b, :, j].roll((y, x), dims=(1, 2))
    cells_BJ2, peak_BJ = decode(changed[:, -1])
    keypoints_BJ2 = to_pixels(cells_BJ2, STRIDE)
    distance_BJ = (keypoints_BJ2 - seen.joints_BJ2).norm(dim=2) / _threshold_px(seen)[:, None]
    return seen._replace(
        features=seen.features._replace(heatmaps=tuple(changed.unbind(dim=1))), heatmaps_BSJHW=changed,
        keypoints_BJ2=keypoints_BJ2, peak_BJ=peak_BJ / model.target.peak, distance_BJ=distance_BJ,
    )  # fmt: skip


def _threshold_px(seen: Predicted) -> Tensor:
    """The PCK threshold of each person in pixels of the view, (B,); NaN for people who cannot be measured."""
    return ((seen.keypoints_BJ2 - seen.joints_BJ2).norm(dim=2) / seen.distance_BJ).nanmedian(dim=1).values
