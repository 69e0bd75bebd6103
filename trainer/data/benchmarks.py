"""The benchmarks: who may be labelled, who is labelled at the start, and who tests.

======== ======================================= =============== =======================
dataset  everyone who can be labelled            labelled first  test
======== ======================================= =============== =======================
lsp      first 1,000 of LSP, then all of LSPET   the LSP part    last 1,000 of LSP
mpii     training images of Newell's split       drawn by seed   Newell's validation
coco     the folder's training part              drawn by seed   its validation part
synthetic easy domain, then hard domain          the easy part   easy domain, other people
======== ======================================= =============== =======================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError, DataError

from .records import PoseData, join


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How many people the synthetic benchmark renders."""

    initial: int = 1000
    pool: int = 10000
    test: int = 1000


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One dataset in its three roles."""

    name: str
    people: PoseData
    """Everyone who is or can be labelled."""
    test: PoseData
    first: int | None
    """The first so many people are the initial labelled set; None draws it by seed."""

    def initial(self, row_N: npt.NDArray[np.integer], count: int, seed: int) -> npt.NDArray[np.bool_]:
        """Who is labelled at the start, as a mask over ``row_N``: the rows of ``people`` that are usable."""
        if self.first is not None:
            return row_N < self.first
        if not 2 <= count < len(row_N):
            raise ConfigError(
                f"{self.name}: cannot label {count} of {len(row_N)} people at the start: set --initial between 2 and "
                f"{len(row_N) - 1}"
            )
        mask_N = np.zeros(len(row_N), dtype=np.bool_)
        mask_N[np.random.default_rng([seed, 1]).permutation(len(row_N))[:count]] = True
        return mask_N


def load_benchmark(dataset: str, data_root: Path | None, sizes: Sizes) -> Benchmark:
    """The benchmark of a dataset by name, or of a COCO keypoints folder by its path."""
    loaders: dict[str, Callable[[Path | None, Sizes], Benchmark]] = {
        "lsp": _lsp, "mpii": _mpii, "synthetic": _synthetic,
    }  # fmt: skip
    if dataset in loaders:
        return loaders[dataset](data_root, sizes)
    folder = Path(dataset)
    if folder.is_dir():
        return _folder(folder)
    raise ConfigError(f"--dataset {dataset!r} is neither one of {', '.join(loaders)} nor a folder")


def _lsp(data_root: Path | None, _sizes: Sizes) -> Benchmark:
    from .lsp import read_lsp, read_lspet
    from .sources import find

    lsp, lspet = read_lsp(find("lsp", data_root)), read_lspet(find("lspet", data_root))
    if len(lsp) != 2000:
        raise DataError(f"LSP has 2,000 people, {find('lsp', data_root)} has {len(lsp)}: the split would be another")
    everyone = join("lsp", lsp.subset(np.arange(1000)), lspet)
    return Benchmark("lsp", everyone, lsp.subset(np.arange(1000, 2000), "lsp-test"), first=1000)


def _synthetic(_data_root: Path | None, sizes: Sizes) -> Benchmark:
    from .synthetic import read_people

    easy = read_people(seed=0, count=sizes.initial + sizes.test, domain="easy")
    hard = read_people(seed=0, count=sizes.pool, domain="hard")
    everyone = join("synthetic", easy.subset(np.arange(sizes.initial)), hard)
    test = easy.subset(np.arange(sizes.initial, len(easy)), "synthetic-test")
    return Benchmark("synthetic", everyone, test, first=sizes.initial)


def _mpii(data_root: Path | None, _sizes: Sizes) -> Benchmark:
    from .mpii import read_mpii_parts
    from .sources import find

    train, valid = read_mpii_parts(find("mpii", data_root))
    return Benchmark("mpii", train, valid, first=None)


def _folder(folder: Path) -> Benchmark:
    """A COCO keypoints folder: its ``train`` and ``val`` files, or a fifth of the images of its only file as test."""
    from .coco import find_annotations, read_coco

    names = [path.stem for path in sorted((folder / "annotations").glob("*.json"))]
    if any("val" in name for name in names) and any("train" in name for name in names):
        return Benchmark(folder.name, read_coco(folder, "train"), read_coco(folder, "val"), first=None)
    everyone = read_coco(find_annotations(folder))
    # By image, so that two people of one photograph never lie on both sides.
    shuffled = np.random.default_rng(0).permutation(len(everyone.images))
    is_test_N = np.isin(everyone.image_N, shuffled[: max(1, len(shuffled) // 5)])
    if is_test_N.all() or not is_test_N.any():
        raise DataError(f"{folder}: {len(everyone)} people are too few to split into training and test")
    return Benchmark(
        folder.name,
        everyone.subset(np.flatnonzero(~is_test_N)),
        everyone.subset(np.flatnonzero(is_test_N), f"{everyone.name}-test"),
        first=None,
    )
