"""EGL++: how much would the model change if an image had the labels of its neighbours?

Expected gradient length extended to pose (Shukla, "EGL++", 2021, Eq. 7 and Algorithm 1). The labels that a pool image
might have are those of labelled people whose embeddings are near; its score is the mean of the squared gradient of the
training loss over these labels, weighted by how probable each neighbour is: by the affinities of t-SNE (Eq. 8), or by
the weights of locally linear embedding (:mod:`alpose.trainer.methods.neighbour_weights`).

The gradient is taken over the weights and biases of convolutions and linear layers, in eval mode and in float32.

Shapes: N people of the pool, L labelled people, K neighbours of each, B batch, R vector-Jacobian products, S stacks,
J joints, H W heatmap, P = S·J·H·W, D embedding.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.overrides import TorchFunctionMode

from alpose.runtime.errors import DataError

from ..checkpoint import PoseModel
from ..data.augment import to_input
from ..data.crops import Crops
from ..data.records import Floats
from ..device import DeviceContext, evaluating
from ..feed import Feed
from ..heatmaps import draw, to_cells
from ..models.hourglass import STRIDE
from ..progress import progress
from ..scoring import Scored
from .neighbour_weights import Neighbours, by_affinity, by_reconstruction
from .options import EglConfig
from .selection import Pool

if TYPE_CHECKING:
    from ..cycles.run import Run

log = logging.getLogger("alpose")

Rows = npt.NDArray[np.int64]

ON_GPU = 2 * 256**2
"""Pixels of the images that a GPU works on together: at 256 channels some 0.4 GiB for each 256 x 256."""
SMALL = 20480
"""Values up to which torch keeps a single image from oneDNN."""


def tsne_scores(pool: Pool) -> Floats:
    """The method ``egl++``."""
    return _method_scores(pool, "egl++")


def lle_scores(pool: Pool) -> Floats:
    """The method ``egl++-lle``."""
    return _method_scores(pool, "egl++-lle")


def _method_scores(pool: Pool, method: str) -> Floats:
    images = pool.need_images(method)
    return expected_gradient(
        images.model, images.pool, images.labelled, pool.scored, pool.labelled, images.run.machine,
        images.run.config.egl, method=method, what=f"{method} with {len(images.labelled)} labelled",
    )  # fmt: skip


def check(method: str, run: Run, labelled_N: npt.NDArray[np.bool_]) -> None:
    """Refuse a benchmark with fewer initially labelled people than a selection needs neighbours."""
    run.config.egl.check(int((labelled_N & can_be_neighbour(run.people)).sum()), method)


def can_be_neighbour(crops: Crops) -> npt.NDArray[np.bool_]:
    """People (L,) with a labelled joint where the net can see it."""
    return np.asarray(_counts(crops).any(axis=1))


def _counts(crops: Crops) -> npt.NDArray[np.bool_]:
    """Joints (L, J) that a training would learn from: labelled, and inside the crop."""
    height, width = crops.config.shape_px
    inside_LJ = ((crops.joints_NJ2 > -0.5) & (crops.joints_NJ2 < np.array([width, height]) - 0.5)).all(axis=2)
    return np.asarray(crops.labelled_NJ & inside_LJ)


def expected_gradient(
    model: PoseModel, pool: Crops, labelled: Crops, pool_scored: Scored, labelled_scored: Scored,
    machine: DeviceContext, config: EglConfig | None = None, *, method: str = "egl++", what: str = "egl++",
) -> Floats:  # fmt: skip
    """Score everybody of a pool (N,): the expected squared gradient norm (EGL++ paper, Eq. 7).

    One forward pass and ``config.rank`` vector-Jacobian products per image; beside the net and one image's activations
    little is held (N·K neighbours).

    ``pool_scored`` and ``labelled_scored`` are for the embeddings. Labels of the pool are not looked at; labelled people
    without a single labelled joint in view are nobody's neighbours. ``method`` says whether neighbours are weighted by t-SNE
    or by locally linear embedding. The net's weights and modes are as before afterwards.

    Raises:
        ConfigError: fewer labelled people than neighbours.
        DataError: embeddings or scores that are not finite.
    """
    config = config or EglConfig()
    device = machine.device
    usable_M = np.flatnonzero(can_be_neighbour(labelled))
    if len(usable_M) < len(labelled):
        log.info("%s: %d labelled people have no labelled joint in view and are no neighbours", what,
                 len(labelled) - len(usable_M))  # fmt: skip
    points_ND = torch.from_numpy(embedding_of(pool_scored, config)).to(device)
    labelled_LD = torch.from_numpy(embedding_of(labelled_scored, config)[usable_M]).to(device)
    near = _neighbours(points_ND, labelled_LD, config, method, what)
    model.to(device)
    score_N = torch.cat(list(_scores(model, pool, labelled.subset(usable_M), near, machine, config, what))).numpy()
    if not np.isfinite(score_N).all():
        bad_N = np.flatnonzero(~np.isfinite(score_N))
        raise DataError(f"{what}: the gradient is not finite for {len(bad_N)} of {len(score_N)} people, first "
                        f"{pool.data.ids[bad_N[0]]}: the model's weights or its input are damaged")  # fmt: skip
    return score_N.astype(np.float32)


def _neighbours(points_ND: Tensor, labelled_LD: Tensor, config: EglConfig, method: str, what: str) -> Neighbours:
    """Whose labels everybody could have, and how probable each is; says in the log how they came out."""
    if method == "egl++-lle":
        near = by_reconstruction(points_ND, labelled_LD, count=config.neighbours)
        log.info("%s: %.1f of the %d nearest have a weight on average; %d of %d lie on all of theirs", what,
                 float((near.weight_NK > 0).sum(dim=1).double().mean()), config.neighbours, near.unsolved,
                 len(near.mass_N))  # fmt: skip
        return near
    near = by_affinity(points_ND, labelled_LD, perplexity=config.perplexity, count=config.neighbours)
    log.info("%s: the %d nearest hold %.2f of the probability on average; no bandwidth for %d of %d", what,
             config.neighbours, float(near.mass_N.mean()), near.unsolved, len(near.mass_N))  # fmt: skip
    return near


def embedding_of(scored: Scored, config: EglConfig) -> Floats:
    """The embeddings (N, D) that neighbours are found by."""
    return scored.coarsest_ND if config.embedding == "coarsest" else scored.embedding_ND


def residuals(heatmaps_SJHW: Tensor, target_KJHW: Tensor, labelled_KJ: Tensor) -> Tensor:
    """Gradient of the training loss of one image with respect to its heatmaps, for K targets: (K, S, J, H, W).

    The loss is :func:`alpose.trainer.objectives.heatmap_mse` averaged over stacks.
    """
    stacks, _, height, width = heatmaps_SJHW.shape
    # What stands where nothing is labelled is not looked at, NaN neither.
    target_KJHW = target_KJHW.masked_fill(~labelled_KJ[:, :, None, None], 0.0)
    mask_KJ = labelled_KJ.to(heatmaps_SJHW.dtype)
    weight_KJ = mask_KJ * (2 / (stacks * height * width)) / mask_KJ.sum(dim=1, keepdim=True).clamp_min(1.0)
    return (heatmaps_SJHW - target_KJHW[:, None]) * weight_KJ[:, None, :, None, None]


def cotangents(residual_KSJHW: Tensor, weight_K: Tensor, rank: int | None) -> Tensor:
    """Vectors (R, S, J, H, W) whose squared gradients add up to the expectation: Σ_j q_j |Jᵀr_j|² = Σ_s |Jᵀc_s|².

    Exact for ``rank`` None: c_j = √q_j r_j. Otherwise the leading principal directions of these vectors, each times its
    singular value; as many as there are neighbours would be exact again. What is left out is never negative, so the
    sum is a lower bound.
    """
    vectors_KP = residual_KSJHW.flatten(1) * weight_K.sqrt().to(residual_KSJHW.dtype)[:, None]
    shape = residual_KSJHW.shape[1:]
    if rank is None or rank >= len(vectors_KP):
        return vectors_KP.unflatten(1, shape)
    # K is small and P is not: eigenvectors of the Gram matrix in place of a decomposition of the vectors.
    gram_KK = (vectors_KP @ vectors_KP.T).double()
    leading_KR = torch.linalg.eigh(gram_KK)[1][:, -rank:].flip(1)
    return (leading_KR.T.to(vectors_KP.dtype) @ vectors_KP).unflatten(1, shape)


def squared_gradients(pose: nn.Module, image_3HW: Tensor, target_KJHW: Tensor, labelled_KJ: Tensor, weight_K: Tensor,
                      rank: int | None) -> Tensor:  # fmt: skip
    """Squared norms (R,) of the gradients of :func:`cotangents` for one image: one forward, R vector-Jacobian products.

    The net must be in eval mode. Works under ``torch.vmap`` over images.
    """
    trained, others = _split(pose)

    def heatmaps(parameters: dict[str, Tensor]) -> Tensor:
        maps: Tensor = functional_call(pose, (parameters, others), (image_3HW[None],)).heatmaps_BSJHW[0]
        return maps

    with _OneDnn() if image_3HW.device.type == "cpu" else nullcontext():
        maps_SJHW, pull, *_ = vjp(heatmaps, trained)
    vectors_RSJHW = cotangents(residuals(maps_SJHW, target_KJHW, labelled_KJ), weight_K, rank)
    # One product at a time: each is as large as the net.
    return torch.stack([_squared(pull(vector_SJHW)[0]) for vector_SJHW in vectors_RSJHW.unbind(0)])


class _OneDnn(TorchFunctionMode):
    """1x1 convolutions in a spelling that torch hands to oneDNN, forward and backward.

    With one thread and one image it has another implementation for them, through a product of matrices, which takes
    about twice as long on the CPUs looked at. It keeps from it what is dilated; a 1x1 kernel is the same however it is.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called for every function of torch inside."""
        if function is torch.conv2d and len(args) == 7 and not kwargs and torch.backends.mkldnn.is_available():
            x, weight, bias, stride, padding, _, groups = args
            if weight.shape[2:] == (1, 1) and x.numel() > SMALL:
                args = (x, weight, bias, stride, padding, (2, 2), groups)
        return function(*args, **(kwargs or {}))


def _squared(gradients: dict[str, Tensor]) -> Tensor:
    return torch.stack([(gradient**2).sum() for gradient in gradients.values()]).sum()


def _split(pose: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters of convolutions and linear layers, and everything else; without history."""
    chosen = {
        f"{name}.{own}"
        for name, module in pose.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        for own, _ in module.named_parameters(recurse=False)
    }
    everything = {**dict(pose.named_parameters()), **dict(pose.named_buffers())}
    return ({name: _ordered(value.detach()) for name, value in everything.items() if name in chosen},
            {name: value.detach() for name, value in everything.items() if name not in chosen})  # fmt: skip


def _ordered(value: Tensor) -> Tensor:
    """Weights as images lie in memory, which are channels last; a CPU would reorder them for every product."""
    on_cpu = value.dim() == 4 and value.device.type == "cpu"
    return value.contiguous(memory_format=torch.channels_last) if on_cpu else value


def _scores(
    model: PoseModel, pool: Crops, labelled: Crops, near: Neighbours, machine: DeviceContext, config: EglConfig,
    what: str,
) -> Iterator[Tensor]:  # fmt: skip
    """Scores in parts, in the order of the pool."""
    feed, row_NK = Feed.open(pool, machine, resident=False), near.row_NK.cpu().numpy()
    at_once = max(1, ON_GPU // model.crop.size_px**2) if machine.device.type == "cuda" else 1
    blocks = np.array_split(np.arange(len(pool)), max(1, -(-len(pool) // at_once)))
    with _neighbour_maps(model, labelled, machine, config, what) as maps_of, _evaluating(model.pose):
        for index_B in progress(blocks, f"{what}: gradients", len(blocks)):
            image_B3HW = to_input(feed.bare(feed.batch(index_B).pixels_BTT3))
            weight_BK = near.weight_NK[torch.from_numpy(index_B).to(machine.device)]
            rows = (image_B3HW, *maps_of(row_NK[index_B]), weight_BK)

            def one(image_3HW: Tensor, target_KJHW: Tensor, counts_KJ: Tensor, weight_K: Tensor) -> Tensor:
                return squared_gradients(model.pose, image_3HW, target_KJHW, counts_KJ, weight_K, config.rank)

            norms_BR = vmap(one)(*rows) if len(index_B) > 1 else one(*(part[0] for part in rows))[None]
            yield norms_BR.sum(dim=1).cpu()


MapsOf = Callable[[Rows], tuple[Tensor, Tensor]]
"""From rows of the labelled set (B, K) to heatmaps (B, K, J, H, W) and which of them count (B, K, J)."""


@contextmanager
def _neighbour_maps(
    model: PoseModel, labelled: Crops, machine: DeviceContext, config: EglConfig, what: str
) -> Iterator[MapsOf]:
    """Heatmaps of neighbours, made for one batch at a time."""
    feed, counts_LJ = (
        Feed.open(labelled, machine, resident=False),
        torch.from_numpy(_counts(labelled)).to(machine.device),
    )

    def truth(row_BK: Rows) -> tuple[Tensor, Tensor]:
        where_BK = torch.from_numpy(row_BK).to(machine.device)
        cells_MJ2 = to_cells(feed.joints_NJ2[where_BK].flatten(0, 1), STRIDE)
        target_MJHW = draw(cells_MJ2, model.size, sigma=model.target.sigma, peak=model.target.peak)
        return target_MJHW.unflatten(0, row_BK.shape), counts_LJ[where_BK]

    if config.labels == "truth":
        yield truth
        return
    # Thousands of sets of maps are more than memory should hold. float16 is a thousandth of what it stores.
    shape = (len(labelled), len(model.skeleton), model.size, model.size)
    with tempfile.TemporaryFile() as file:
        maps_LJHW = np.memmap(file, dtype=np.float16, mode="w+", shape=shape)
        blocks = np.array_split(np.arange(len(labelled)), max(1, len(labelled) // 16))
        with evaluating(model.pose):
            for index_B in progress(blocks, f"{what}: predictions for the labelled", len(blocks)):
                images = to_input(feed.bare(feed.batch(index_B).pixels_BTT3))
                maps_LJHW[index_B] = model.pose(images).heatmaps_BSJHW[:, -1].half().cpu().numpy()

        def predicted(row_BK: Rows) -> tuple[Tensor, Tensor]:
            target_BKJHW = torch.from_numpy(maps_LJHW[row_BK]).to(machine.device).float()
            return target_BKJHW, torch.ones(target_BKJHW.shape[:3], dtype=torch.bool, device=machine.device)

        yield predicted


@contextmanager
def _evaluating(pose: nn.Module) -> Iterator[None]:
    """Eval mode for gradients: what inference mode makes cannot be differentiated."""
    with evaluating(pose), torch.inference_mode(False), torch.no_grad():
        yield
