"""EGL++ beside the official code: who is a neighbour of whom, and the gradients that their labels would give.

``python -m bench.parts.methods_egl SIZE RANK`` does one image in a process of its own and prints its peak memory in MiB.

Shapes: N people of the pool, L labelled, D embedding, K neighbours, R vector-Jacobian products, S stacks, J joints,
H W heatmap.
"""

from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from alpose.trainer.heatmaps import draw
from alpose.trainer.methods.egl import squared_gradients
from alpose.trainer.methods.neighbour_weights import Neighbours, by_affinity
from alpose.trainer.methods.options import EglConfig
from alpose.trainer.models.hourglass import STRIDE, HourglassConfig, StackedHourglass

from .measure import Task
from .methods_work import OURS, REFERENCE, TINY, Check, Sizes, Work, embeddings
from .reference import redirected
from .reference_methods import CPU, NETWORK, ReferenceMethods

RANK, LOWER = EglConfig().rank or 1, 4
MEMORY_MIB = 1024
"""What one image may take, with the process around it."""


def true_perplexity(asked: float) -> float:
    """What the official code computes when asked for a perplexity: it measures entropy in nats and takes it for bits."""
    return math.exp(math.log2(asked))


def asked_perplexity(true: float) -> float:
    """What it must be asked for, to compute this one."""
    return 2.0 ** math.log(true)


# --- Affinities


def affinities(sizes: Sizes, reference: ReferenceMethods | None) -> Work:
    """The probabilities of neighbours, of a whole pool."""
    points_MD = torch.from_numpy(embeddings(sizes.pool + sizes.labelled, sizes.width))
    pool_ND, labelled_LD = points_MD[: sizes.pool], points_MD[sizes.pool :]
    perplexity, count = true_perplexity(sizes.perplexity), sizes.neighbours
    found: dict[str, Neighbours] = {}
    theirs: list[tuple[Tensor, Tensor, Tensor]] = []

    def ours() -> None:
        found[OURS] = by_affinity(pool_ND, labelled_LD, perplexity=perplexity, count=count)

    def official() -> None:
        assert reference is not None
        theirs[:] = [reference.affinities(pool_ND, labelled_LD, perplexity=sizes.perplexity, count=count)]

    def check() -> list[Check]:
        return [_same_affinities(found[OURS], *theirs[0], perplexity)] if theirs else []

    says = (f"{sizes.pool} x {sizes.labelled} from {sizes.width}-d embeddings to the {count} nearest; asked for "
            f"{sizes.perplexity:g} it computes a perplexity of {perplexity:.1f}, ours is asked for that")  # fmt: skip
    tasks: dict[str, Task] = {OURS: ours}
    if reference:
        tasks[REFERENCE] = official
    return Work("EGL++ affinities", says, sizes.pool, "image", tasks, check)


def _same_affinities(ours: Neighbours, q_NL: Tensor, weight_NK: Tensor, row_NK: Tensor, perplexity: float) -> Check:
    q_NL = q_NL.double()
    entropy_N = -(q_NL * q_NL.log()).sum(dim=1)
    solved_N = (entropy_N - math.log(perplexity)).abs() < 1e-3
    flat_N = q_NL.amax(dim=1) < 1.001 * q_NL.amin(dim=1)
    # Both have the largest first, so that near ties may change places but not values.
    off_NK = (ours.weight_NK * ours.mass_N[:, None] - weight_NK.double()).abs()
    off = float(off_NK[solved_N].max()) if solved_N.any() else 0.0
    same = float((ours.row_NK == row_NK)[solved_N].double().mean()) if solved_N.any() else 1.0
    said = (f"probabilities differ by {off:.1e} at most where it finds its bandwidth ({int(solved_N.sum())} of "
            f"{len(q_NL)}), {same:.1%} of the neighbours are in the same place")  # fmt: skip
    lost = int((~solved_N).sum())
    if lost:
        said += f"; {lost} rows are far from everybody, where it loses all weights and spreads them evenly ({int((flat_N & ~solved_N).sum())})"
    return Check(OURS, REFERENCE, off < 1e-3 and bool((flat_N | solved_N).all()), said)


# --- Gradients


@dataclass(frozen=True, slots=True)
class _Case:
    """One image and what its neighbours lend."""

    image_3HW: Tensor
    target_KJHW: Tensor
    counts_KJ: Tensor
    weight_K: Tensor


def _net(sizes: Sizes) -> StackedHourglass:
    torch.manual_seed(0)
    return StackedHourglass(HourglassConfig(joints=sizes.joints, channels=sizes.channels)).eval()


def _case(sizes: Sizes, seed: int = 0) -> _Case:
    """Smooth noise, and poses that stand about one another: neighbours look alike."""
    generator = torch.Generator().manual_seed(seed)
    side, cells = sizes.side, sizes.side // STRIDE
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    image_13HW = nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    pose_J2 = torch.rand(sizes.joints, 2, generator=generator) * cells
    poses_KJ2 = pose_J2 + 0.06 * cells * torch.randn(sizes.neighbours, sizes.joints, 2, generator=generator)
    counts_KJ = torch.ones(sizes.neighbours, sizes.joints, dtype=torch.bool)
    weight_K = torch.rand(sizes.neighbours, generator=generator, dtype=torch.float64).sort(descending=True).values
    return _Case(image_13HW[0].contiguous(memory_format=torch.preserve_format), draw(poses_KJ2, cells, sigma=1.75, peak=30.0),
                 counts_KJ, weight_K / weight_K.sum())  # fmt: skip


def _directions(net: nn.Module, case: _Case, rank: int | None) -> Tensor:
    with torch.no_grad():
        image_3HW = case.image_3HW[None].contiguous(memory_format=torch.channels_last)[0]
        return squared_gradients(net, image_3HW, case.target_KJHW, case.counts_KJ, case.weight_K, rank)


def gradients(sizes: Sizes, reference: ReferenceMethods | None) -> Work:
    """The score of one image."""
    net, case = _net(sizes), _case(sizes)
    named: dict[str, int | None] = {OURS: RANK, f"ours, rank {LOWER}": LOWER, "ours, exact": None}

    def of_rank(rank: int | None) -> Task:
        return lambda: _directions(net, case, rank)

    tasks: dict[str, Task] = {name: of_rank(rank) for name, rank in named.items()}
    left_out: tuple[str, ...] = ()
    theirs: nn.Module | None = None
    official: list[tuple[Tensor, float]] = []
    if reference and reference.pose_net and sizes.side == 256:
        with redirected(CPU):
            torch.manual_seed(0)
            arch = {"nstack": 2, "channels": sizes.channels, "num_hm": sizes.joints}
            theirs = reference.pose_net(arch, True, "conv").eval()

        def its_score() -> None:
            assert reference is not None
            assert theirs is not None
            image_HW3 = case.image_3HW.permute(1, 2, 0).contiguous()
            lent_KSJHW = case.target_KJHW[:, None].expand(-1, 2, -1, -1, -1)
            official[:] = [reference.gradients(theirs, image_HW3, lent_KSJHW, perplexity=asked_perplexity(20.0))]

        tasks[REFERENCE] = its_score
    elif reference:
        left_out = (f"its network: {reference.lacks.get(NETWORK, 'it takes images of 256 px only')}",)
    tasks[OURS]()  # what a first call sets up is not of any round

    def check() -> list[Check]:
        checks = [_memory(sizes), *_ranks(sizes)]
        if theirs is not None and official:
            checks.append(_same_score(theirs, case, *official[0]))
        return checks

    says = (f"one image of {sizes.side} px, {sizes.neighbours} neighbours, hourglass of 2 x {sizes.channels} channels; ours is "
            f"of rank {RANK}, its default; the reference has its own net of that size")  # fmt: skip
    return Work("EGL++ gradients", says, 1, "image", tasks, check, rounds=3, left_out=left_out)


class _Theirs(nn.Module):
    """The official net as ours are called."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images_B3HW: Tensor) -> SimpleNamespace:
        """Heatmaps of every stack."""
        with redirected(CPU):
            return SimpleNamespace(heatmaps_BSJHW=self.net(images_B3HW.permute(0, 2, 3, 1))[0])


def _same_score(net: nn.Module, case: _Case, weight_K: Tensor, score: float) -> Check:
    mine = float(_directions(_Theirs(net), replace(case, weight_K=weight_K.double()), None).sum())
    off = abs(mine / score - 1)
    return Check("ours, exact", REFERENCE, off < 1e-3, f"of its own net and with its weights they differ by {off:.1e} of the "
                 "score; its labels are given, and it does not renormalise its weights")  # fmt: skip


def _ranks(sizes: Sizes) -> list[Check]:
    """What lower ranks leave of the exact sum, of a smaller net."""
    small = replace(sizes, channels=max(8, sizes.channels // 4), side=max(64, sizes.side // 2))
    net, cases = _net(small), [_case(small, seed) for seed in range(sizes.compared)]
    exact_N = np.array([float(_directions(net, case, None).sum()) for case in cases])
    leading_NR = np.stack([_directions(net, case, RANK).numpy() for case in cases])  # the leading directions come first
    checks = []
    for rank in (RANK, LOWER):
        found_N = leading_NR[:, :rank].sum(axis=1)
        share_N, order = found_N / exact_N, float(spearmanr(found_N, exact_N)[0])
        fine = bool((share_N <= 1 + 1e-4).all() and (share_N > 0).all())
        checks.append(Check(f"ours, rank {rank}", "ours, exact", fine, f"{share_N.mean():.3f} of the exact sum, at least "
                            f"{share_N.min():.3f}, rank correlation {order:.3f}, over {len(cases)} images of a net of "
                            f"{small.channels} channels at {small.side} px with random weights (trained ones need more)"))  # fmt: skip
    return checks


def _memory(sizes: Sizes) -> Check:
    """In a process of its own: that of the bench holds everybody's inputs."""
    here, threads = Path(__file__).resolve().parents[2], str(torch.get_num_threads())
    name = "tiny" if replace(sizes, data_root=None) == TINY else "paper"
    run = subprocess.run(
        [sys.executable, "-m", "bench.parts.methods_egl", name, str(RANK)], cwd=here, env=os.environ | {"OMP_NUM_THREADS": threads},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if run.returncode:
        return Check(OURS, "memory", False, f"its process failed: {run.stderr.strip()[-200:]}")
    before, peak = map(float, run.stdout.split())
    return Check(OURS, f"{MEMORY_MIB} MiB", peak <= MEMORY_MIB, f"peak memory of a process that does one image: {peak:.0f} MiB, "
                 f"{before:.0f} MiB before it begins")  # fmt: skip


def _peak_mib() -> float:
    """Of this program alone where Linux tells it: what getrusage says begins at the size of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return (
            float(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))) / 2**10
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    chosen = TINY if sys.argv[1] == "tiny" else Sizes()
    one = _net(chosen), _case(chosen)
    memory_before = _peak_mib()
    _directions(*one, int(sys.argv[2]))
    print(memory_before, _peak_mib())
