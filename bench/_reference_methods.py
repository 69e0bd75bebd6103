"""Calls the official code's ways of selecting, drawing and evaluating, from a checkout of it, unchanged.

Its methods read files, load images and run a network before they come to what is measured, all in one function. Here
that part is answered with numbers that are there already: a loader that hands over one batch, and a network that
returns what it was given. What then runs is the official function, from the embeddings or heatmaps on to the selection.

Shapes: N people, L labelled, D embedding, J joints, H W heatmap.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alpose.runtime.errors import ConfigError, DataNotFoundError

from ._reference import HOME, _commit, _importing_from, redirected

MODULES = ("activelearning", "evaluation", "utils")
CPU = torch.device("cpu")

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ReferenceMethods:
    """What is measured of the official code beside its network."""

    selecting: ModuleType
    evaluating: ModuleType
    drawing: ModuleType
    commit: str | None

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
        return ReferenceMethods(selecting, evaluating, drawing, _commit(path))
