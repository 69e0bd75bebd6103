"""Calls the official code's ways of selecting, drawing and evaluating, from a checkout of it, unchanged.

Its methods read files, load images and run a network before they come to what is measured, all in one function. Here
that part is answered with numbers that are there already: a loader that hands over one batch, and a network that
returns what it was given. What then runs is the official function, from the embeddings or heatmaps on to the selection.

Shapes: N people, L labelled, D embedding, K neighbours, S stacks, J joints, E links (edges), H W heatmap.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from alpose.runtime.errors import ConfigError, DataNotFoundError

from .reference import HOME, _commit, _importing_from, redirected

MODULES = ("activelearning", "evaluation", "utils")
NETWORK, LOADING = "models.stacked_hourglass.StackedHourglass", "dataloader"
"""Those that a part of the bench can do without."""
CPU = torch.device("cpu")

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
People = Callable[[int, bool], Any]
"""From a row, and whether the view is to be augmented, to its dataset's item: image, heatmaps, joints and more."""


class _Prepared(nn.Module):
    """A net whose answers without gradients are there already."""

    def __init__(self, net: nn.Module, answers: Sequence[Any]) -> None:
        super().__init__()
        self.net, self._answers = net, iter(answers)

    def forward(self, images: Any) -> Any:
        """The next answer, or the net's."""
        return self.net(images) if torch.is_grad_enabled() else next(self._answers)


def _read_image(path: str) -> npt.NDArray[np.uint8]:
    from PIL import Image  # type: ignore[import-not-found,import-untyped,unused-ignore]

    return np.asarray(Image.open(path))


@dataclass(frozen=True, slots=True)
class ReferenceMethods:
    """What is measured of the official code beside its network."""

    selecting: ModuleType
    evaluating: ModuleType
    drawing: ModuleType
    commit: str | None
    pose_net: Callable[..., nn.Module] | None = None
    """``(arch, auxnet, intermediate_features)``; the net takes images (B, H, W, 3)."""
    loading: ModuleType | None = None
    lacks: dict[str, str] = field(default_factory=dict)
    """Why one of these two is not there."""

    def coreset(self, embedding_ND: npt.NDArray[np.float32], labelled_L: Rows, k: int) -> Rows:
        """Rows picked, in order; ``embedding_ND`` holds pool and labelled."""
        batch = {"penultimate": torch.from_numpy(embedding_ND)}
        with self._learner(labelled_L, len(embedding_ND), k, (torch.empty(0), batch)) as (learner, train):
            return np.asarray(learner.coreset_sampling(train, None))[len(labelled_L) :].astype(np.int64)

    def multipeak(self, heatmaps_NJHW: Tensor) -> npt.NDArray[np.float32]:
        """Score of every image (N,)."""
        scores: list[npt.NDArray[np.float32]] = []

        def keep(score_N: npt.NDArray[np.float32]) -> Tensor:
            scores.append(score_N)
            return plain(score_N)

        plain = torch.from_numpy
        count = len(heatmaps_NJHW)
        # Row 0 is the labelled one: the method asks for one, and looks at the others only.
        with (
            self._learner(np.zeros(1, np.int64), count + 1, 1, (heatmaps_NJHW[:, None], {})) as (learner, train),
            patch.object(torch, "from_numpy", keep),
        ):
            learner.multipeak_entropy(train, None)
        return scores[-1]

    def heatmaps(self, joints_J3: npt.NDArray[np.float64], size: int, image: int) -> npt.NDArray[np.float32]:
        """Targets of one person (J, H, W) from (row, column, visible) in image pixels, peak 1."""
        return np.asarray(
            self.drawing.heatmap_generator(
                joints_J3[None].copy(), True, hm_shape=(size, size), img_shape=(image, image)
            )[0]
        )

    def pck_table(self, predicted: Any, truth: Any, joints: list[str]) -> Any:
        """Its table of PCK by joint and threshold, from data frames of its layout; occluded joints are dropped."""
        conf = SimpleNamespace(experiment_settings={"occlusion": False})
        with patch.object(self.evaluating, "tqdm", lambda items: items), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pandas has one for every joint
            return self.evaluating.PercentageCorrectKeypoint(predicted, truth, conf, joints)

    def affinities(
        self, pool_ND: Tensor, labelled_LD: Tensor, *, perplexity: float, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From embeddings to its affinities (N, L), and the largest of each row with their columns (N, K)."""
        seen = self._expected_gradient(nn.Identity(), pool_ND, labelled_LD, None, perplexity, count)
        return seen.affinity_NL, seen.weight_NK, seen.row_NK

    def gradients(
        self, net: nn.Module, image_HW3: Tensor, heatmaps_KSJHW: Tensor, *, perplexity: float
    ) -> tuple[Tensor, float]:
        """Of one image and K neighbours: their weights (K,), which it does not renormalise, and its score."""
        count = len(heatmaps_KSJHW)
        # As many labelled as neighbours, so that their order is all that its affinities decide.
        points_ND = torch.arange(count + 1.0)[:, None]
        seen = self._expected_gradient(
            net, points_ND[:1], points_ND[1:], (image_HW3, heatmaps_KSJHW), perplexity, count
        )
        return seen.weight_NK[0][seen.row_NK[0].argsort()], float(seen.score_N)

    def _expected_gradient(
        self, net: nn.Module, pool_ND: Tensor, labelled_LD: Tensor, looked_at: tuple[Tensor, Tensor] | None,
        perplexity: float, count: int,
    ) -> SimpleNamespace:  # fmt: skip
        """Its EGL++ from embeddings on, and what it comes to on the way; without images only up to the neighbours."""
        labelled_L = np.arange(len(pool_ND), len(pool_ND) + len(labelled_LD))
        image_HW3, heatmaps_LSJHW = looked_at or (torch.empty(0), torch.empty(len(labelled_LD), 0))
        batches = iter([[(None, None)], [None], [image_HW3[None]] if looked_at else []])
        model = _Prepared(net, [(heatmaps_LSJHW, {"penultimate": labelled_LD}), (None, {"penultimate": pool_ND})])
        seen, plain = SimpleNamespace(), torch.topk

        def topk(values: Tensor, k: int, **how: Any) -> Any:
            if values.dim() == 2:
                seen.affinity_NL = values
                seen.weight_NK, seen.row_NK = plain(values, k, **how)
                return seen.weight_NK, seen.row_NK
            seen.score_N = values
            return plain(values.reshape(-1), k, **how)  # one image alone has lost its axis on the way

        with (
            self._learner(labelled_L, len(pool_ND) + len(labelled_LD), 1, None) as (learner, train),
            patch.object(torch.utils.data, "DataLoader", lambda *_, **__: next(batches)),
            patch.object(self.selecting, "EGLpp_Dataset", lambda *_, **__: None),
            patch.object(torch, "topk", topk), warnings.catch_warnings(),
        ):  # fmt: skip
            warnings.simplefilter("ignore")  # its kind of hook has one
            learner.pose_model = model
            learner.conf.active_learning = {
                "egl": {"perplexity": perplexity, "tolerance": 1e-3, "k": count, "og_heatmap": False}
            }
            with torch.enable_grad():
                learner.expected_gradient_length_sampling(train, None)
        return seen

    def vl4pose(
        self, heatmaps_NJHW: Floats, parameters_NE2: Floats, links: Sequence[tuple[int, int]], *, peaks: int, apart: int
    ) -> npt.NDArray[np.float64]:
        """Log-likelihood of every skeleton (N,); links are (parent, child), and the first parent is the root."""
        names = {joint: f"joint {joint}" for joint in range(heatmaps_NJHW.shape[1])} | {links[0][0]: "head"}
        skeletons = self.selecting.Keypoint_ParallelWrapper(
            hm=heatmaps_NJHW, param=parameters_NE2, j2i={name: joint for joint, name in names.items()}, i2j=names,
            links=links, vl4pose_config={"num_peaks": peaks, "min_distance": apart},
        )  # fmt: skip
        return np.array([skeletons[row][0] for row in range(len(heatmaps_NJHW))])

    @contextmanager
    def people(self, folder: Path, names: Sequence[str], joints_NJ3: Floats, boxes_N4: Floats) -> Iterator[People]:
        """Its dataset: images of a folder by their names; joints as (x, y, visible) in its own order."""
        assert self.loading is not None
        loading, count, joints = self.loading, *joints_NJ3.shape[:2]
        dataset = loading.HumanPoseDataLoader.__new__(loading.HumanPoseDataLoader)
        dataset.conf = SimpleNamespace(experiment_settings={"num_hm": joints, "all_joints": True})
        dataset.viz, dataset.occlusion, dataset.hm_shape, dataset.hm_peak = False, True, [64, 64], 30
        zeros_N1 = np.zeros((count, 1))
        everybody = {
            "name": np.array(names), "gt": joints_NJ3[:, None].astype(float), "dataset": np.full(count, "lsp"),
            "num_gt": zeros_N1, "split": np.zeros(count), "num_persons": zeros_N1 + 1, "normalizer": zeros_N1 + 1,
            "bbox_coords": boxes_N4[:, None].astype(float),
        }  # fmt: skip
        library = loading.albu
        dataset.flip_prob = 0.5
        dataset.horizontal_flip = dataset.augmentation([library.HorizontalFlip(p=1)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a newer name for it
            dataset.shift_scale_rotate = dataset.augmentation(
                [library.ShiftScaleRotate(p=1, shift_limit=0.2, scale_limit=0.25, rotate_limit=45, border_mode=0)]
            )

        def read(row: int, augmented: bool) -> Any:
            dataset.train_flag, dataset.validate_flag = augmented, not augmented
            # It writes into the labels that it is given (defect); every reading gets them fresh.
            dataset.model_input_dataset = everybody | {"gt": everybody["gt"].copy()}
            with chdir(root / "code"):
                return dataset[row]

        with tempfile.TemporaryDirectory() as place:
            root = Path(place)
            (root / "data" / "lsp").mkdir(parents=True)
            (root / "code").mkdir()
            (root / "data" / "lsp" / "images").symlink_to(folder.resolve(), target_is_directory=True)
            # What its plotting library does with JPEG, without the library.
            with patch.object(loading, "plt", SimpleNamespace(imread=_read_image)):
                yield read

    @contextmanager
    def _learner(self, labelled_L: Rows, count: int, k: int, output: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Its object without a network, and its description of a dataset without images."""
        module = self.selecting
        learner = module.ActiveLearning.__new__(module.ActiveLearning)
        learner.pose_model = lambda _images: output
        learner.num_images = k
        learner._uniquecounts = lambda **_: None
        train = {"index": np.arange(count), "name": np.arange(count), "dataset": np.zeros(count)}
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            (Path(folder) / "model_checkpoints").mkdir()
            np.save(Path(folder) / "model_checkpoints" / "annotation.npy", labelled_L)
            learner.conf = SimpleNamespace(
                resume_training=False, model={"load": True, "load_path": folder, "save_path": folder},
                experiment_settings={"batch_size": 1},
            )  # fmt: skip
            stack.enter_context(patch.object(module, "tqdm", lambda items: items))
            stack.enter_context(patch.object(module, "ActiveLearningDataset", lambda *_, **__: [None]))
            stack.enter_context(patch.object(torch.utils.data, "DataLoader", lambda dataset, **_: dataset))
            stack.enter_context(redirected(CPU))
            yield learner, train


def load_methods(path: Path) -> ReferenceMethods:
    """Import them from a checkout; its modules are gone from ``sys.modules`` afterwards."""
    code = path.resolve() / "code"
    for name in MODULES:
        if not (code / f"{name}.py").exists():
            raise DataNotFoundError(f"{code / name}.py does not exist: --reference wants a checkout of {HOME}")
    with _importing_from(code):
        try:
            selecting, evaluating, drawing = map(importlib.import_module, MODULES)
        except ImportError as error:
            raise ConfigError(
                f"{code} cannot be imported ({error}): install what it wants (pandas, scikit-image), or leave out "
                "--reference"
            ) from error
        lacks: dict[str, str] = {}
        network, loading = (_optional(code, name, lacks) for name in (NETWORK, LOADING))
        return ReferenceMethods(
            selecting, evaluating, drawing, _commit(path), network.PoseNet if network else None, loading, lacks
        )


def _optional(code: Path, name: str, lacks: dict[str, str]) -> ModuleType | None:
    if not (code / f"{name.replace('.', '/')}.py").exists():
        lacks[name] = "the checkout has no such file"
        return None
    try:
        return importlib.import_module(name)
    except ImportError as error:
        lacks[name] = f"it cannot be imported: {error}"
        return None
