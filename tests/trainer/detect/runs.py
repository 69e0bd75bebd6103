"""Runs of the detector experiment that never were: scores of a chosen quality, files as the experiment writes them.

Shapes: N people, J joints.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alpose.runtime.skeleton import LSP
from alpose.trainer.detect.stored import Catalogue, DetectorInfo, SetInfo, SetScores

JOINTS = 14
NOISE = {"entropy": 0.9, "peak": 1.1, "ll++conv": 1.0, "robust": 0.75, "robust-plain": 0.95, "fused": 0.55,
         "fused-slim": 0.6, "flip": 0.7, "in-domain": 0.6, "oracle-loss": 0.0}  # fmt: skip
"""How far each detector's score lies from the logarithm of the true loss; 0 is the loss itself."""
KNOW_JOINTS = ("peak", "fused", "fused-slim")
"""Detectors that say something of each joint."""
SETS = (
    SetInfo(name="fold", what="LSP's training images, each by a net that has not seen it", role="choice"),
    SetInfo(name="lsp-test", what="LSP's 1,000 test images", role="test"),
    SetInfo(name="lspet", what="LSPET, another domain", role="test"),
)


def detectors() -> tuple[DetectorInfo, ...]:
    return (
        DetectorInfo(name="entropy", kind="free", what="entropy of the heatmaps", parameters=0, latency_share=0.0),
        DetectorInfo(name="peak", kind="free", what="one less the mean peak", parameters=0, latency_share=0.0),
        DetectorInfo(name="ll++conv", kind="paper", what="the paper's head", parameters=99_000, latency_ms=0.4,
                     latency_share=0.07),
        DetectorInfo(name="robust", kind="candidate", what="a head trained under occluders and blur",
                     parameters=99_000, latency_ms=0.4, latency_share=0.07),
        DetectorInfo(name="robust-plain", kind="candidate", what="the same without them", ablates="robust"),
        DetectorInfo(name="fused", kind="shipped", what="entropy and the robust head, fused", parameters=99_104,
                     latency_ms=0.2, latency_share=0.04, probability=True),
        DetectorInfo(name="fused-slim", kind="slim", what="the same with few channels", parameters=7_000,
                     latency_ms=0.05, latency_share=0.008, probability=True),
        DetectorInfo(name="flip", kind="costed", what="disagreement with the mirrored image", latency_ms=5.1,
                     latency_share=1.02),
        DetectorInfo(name="in-domain", kind="ceiling", what="trained on half of the labels of LSPET"),
        DetectorInfo(name="oracle-loss", kind="oracle", what="the true loss"),
    )  # fmt: skip


def catalogue(seeds: int = 3, **changes: Any) -> Catalogue:
    values: dict[str, Any] = {
        "detectors": detectors(),
        "sets": SETS,
        "seeds": tuple(range(seeds)),
        "config": {"dataset": "lsp", "preset": "laptop", "profile": "standard"},
        "environment": {"processor": "made up"},
        "looks": {"lsp-test": 2, "lspet": 1},
        "joints": LSP.joints,
    } | changes
    names = {info.name for info in values["sets"]}
    values["looks"] = {name: count for name, count in values["looks"].items() if name in names}
    return Catalogue(**values)


def one_set(seed: int, name: str, noise: Mapping[str, float], people: int) -> SetScores:
    """The people and their labels depend on the set alone, right and wrong on the seed too."""
    of_set = np.random.default_rng((3, *name.encode()))
    rng = np.random.default_rng((seed, *name.encode()))
    labelled_NJ = of_set.random((people, JOINTS)) < 0.95
    labelled_NJ[:2] = False  # nothing to normalise by
    log_loss_N = of_set.normal(0, 1, people) + rng.normal(0, 0.3, people)
    chance_N1 = 1 / (1 + np.exp(2 * log_loss_N + (0 if name == "lspet" else -1.5)))[:, None]
    right_NJ = rng.random((people, JOINTS)) < chance_N1
    loss_N = np.exp(log_loss_N).astype(np.float32)
    scores = {}
    for detector, size in noise.items():
        score_N = log_loss_N + size * rng.normal(0, 1, people)
        scores[detector] = 1 / (1 + np.exp(-2 * score_N)) if detector.startswith("fused") else score_N
    loss_N[:2] = np.nan
    confidences = {
        detector: np.clip(chance_N1 + size * rng.normal(0, 0.1, right_NJ.shape), 0, 1).astype(np.float32)
        for detector, size in noise.items() if detector in KNOW_JOINTS
    }  # fmt: skip
    return SetScores(tuple(f"{name}/{row:05d}" for row in range(people)), right_NJ, labelled_NJ, loss_N,
                     {detector: value_N.astype(np.float32) for detector, value_N in scores.items()}, confidences)  # fmt: skip


def write_run(run: Path, seeds: int = 3, people: int = 240, noise: Mapping[str, float] = NOISE, **changes: Any) -> Path:
    found = catalogue(seeds, **changes)
    found.save(run)
    for seed in found.seeds:
        for info in found.sets:
            here = {name: size for name, size in noise.items() if name != "in-domain" or info.name == "lspet"}
            one_set(seed, info.name, here, people).save(run, seed, info.name)
    return run
