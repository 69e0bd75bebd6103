"""What 7-bit weights cost where the processor has VNNI, and what 8-bit weights cost where it has not.

    python -m bench.int8 lsp.alpose CROPS.npy --out bench/results/int8.json

The fp32 graph of a bundle is quantised twice from the same crops, with weights of 7 and of 8 bits. Other crops are then answered by
this processor and by an emulated one that has AVX2 and neither AVX-512 nor VNNI: ``qemu-x86_64 -cpu Haswell`` (Debian's
``qemu-user``) runs this very interpreter, and ONNX Runtime chooses its kernels by what that processor says of itself. Emulated
vector instructions give the same numbers and take a hundred times longer, so that times are of this processor alone.

Shapes: N crops, S crop side, J joints.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from alpose.export.parity import rank_correlation
from alpose.export.precision import Int8Config, to_int8
from alpose.runtime.bundle import Bundle
from alpose.runtime.bundle.manifest import MODEL
from alpose.runtime.engines.onnx import OnnxEngine
from alpose.runtime.io import write_json
from alpose.runtime.types import Outputs

QEMU = "qemu-x86_64"
AVX2_ONLY = "Haswell"
"""A processor as many edge boxes have: AVX2, and no instruction for products of bytes that adds in 32 bits."""
CONFIDENT = 0.3
"""A joint with a lower score is not where anything is: its place says nothing."""
ROUNDS = 200

_CHILD = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
frames = numpy.load(sys.argv[2])
names = [output.name for output in session.get_outputs()]
answers = [session.run(names, {"frames": frames[row : row + 1]}) for row in range(len(frames))]
numpy.savez(sys.argv[3], **{name: numpy.concatenate(each) for name, each in zip(names, zip(*answers))})
"""


def emulated(model: Path, frames_NSS3: npt.NDArray[np.uint8], cpu: str = AVX2_ONLY) -> Outputs:
    """What a graph answers on an emulated processor; :data:`QEMU` must be installed."""
    with tempfile.TemporaryDirectory() as folder:
        frames, answers = Path(folder) / "frames.npy", Path(folder) / "answers.npz"
        np.save(frames, frames_NSS3)
        command = [QEMU, "-cpu", cpu, sys.executable, "-c", _CHILD, str(model), str(frames), str(answers)]
        subprocess.run(command, check=True, capture_output=True)
        with np.load(answers) as found:
            return Outputs(*(found[name] for name in found.files))


def beside(plain: Outputs, other: Outputs) -> dict[str, float]:
    """How far answers are from those of float32."""
    distance_NJ = np.linalg.norm(other.keypoints_NJ2 - plain.keypoints_NJ2, axis=2)[plain.scores_NJ >= CONFIDENT]
    apart_N = np.abs(other.failure_probability_N - plain.failure_probability_N)
    return {
        "keypoints_median_px": float(np.median(distance_NJ)),
        "keypoints_p99_px": float(np.quantile(distance_NJ, 0.99)),
        "scores_max": float(np.abs(other.scores_NJ - plain.scores_NJ).max()),
        "probability_median": float(np.median(apart_N)),
        "probability_max": float(apart_N.max()),
        "loss_rank_correlation": rank_correlation(plain.predicted_loss_N, other.predicted_loss_N),
    }


def largest_difference(one: Outputs, other: Outputs) -> dict[str, float]:
    """Of each output, between two processors."""
    return {name: float(np.abs(array - other.named()[name]).max()) for name, array in one.named().items()}


def has_vnni() -> bool:
    """Whether this processor multiplies bytes and adds in 32 bits; False where Linux does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and not {"avx512_vnni", "avx_vnni"}.isdisjoint(cpuinfo.read_text().split())


def answered(engine: OnnxEngine, frames_NSS3: npt.NDArray[np.uint8]) -> Outputs:
    """One crop at a time, as a Monitor does."""
    parts = [engine(frames_NSS3[row : row + 1]).named().values() for row in range(len(frames_NSS3))]
    return Outputs(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def milliseconds(engines: dict[str, OnnxEngine], frame_1SS3: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Median time of a crop; engines take turns, so that all meet the same disturbances."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            began_s = time.perf_counter()
            engine(frame_1SS3)
            times[name].append(time.perf_counter() - began_s)
    return {name: float(np.median(each)) * 1e3 for name, each in times.items()}


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("crops", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--count", default=24, show_default=True, help="Crops that are answered, beside two of black and white alone."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results" / "int8.json")
def main(bundle: Path, crops: Path, count: int, out: Path) -> None:
    """Quantise the fp32 graph of BUNDLE with 7 and 8 bits, by uint8 CROPS (N, S, S, 3) of which the middle is taken."""
    opened = Bundle.open(bundle)
    all_NSS3, size = np.load(crops, mmap_mode="r", allow_pickle=False), opened.crop.width_px
    edge = (all_NSS3.shape[1] - size) // 2
    rows = np.linspace(0, len(all_NSS3) - 1, 200 + count).astype(int)
    frames_NSS3 = np.ascontiguousarray(all_NSS3[rows, edge : edge + size, edge : edge + size])
    measuring, asked = frames_NSS3[:200], frames_NSS3[200:]
    asked = np.concatenate([asked, np.where(asked[:2] > 127, 255, 0).astype(np.uint8)])
    plain = OnnxEngine(opened.folder / MODEL, threads=1)
    expected = answered(plain, asked)
    results: dict[str, Any] = {}
    engines = {"fp32": plain}
    with tempfile.TemporaryDirectory() as folder:
        for bits in (7, 8):
            path = Path(folder) / f"{bits}.onnx"
            to_int8(opened.folder / MODEL, path, measuring, Int8Config(weight_bits=bits))
            engine = engines[f"{bits} bits"] = OnnxEngine(path, threads=1)
            here = answered(engine, asked)
            results[f"{bits} bits"] = {"this processor": beside(expected, here)}
            if shutil.which(QEMU):
                there = emulated(path, asked)
                results[f"{bits} bits"] |= {
                    f"emulated {AVX2_ONLY}": beside(expected, there), "between the two": largest_difference(here, there)
                }  # fmt: skip
            for where, figures in results[f"{bits} bits"].items():
                print(
                    f"{bits}-bit weights, {where}: "
                    + ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
                )
        speed = milliseconds(engines, asked[:1])
    print("milliseconds a crop on this processor: " + ", ".join(f"{name} {value:.2f}" for name, value in speed.items()))
    found = {"bundle": opened.manifest.name, "crops": len(asked), "this processor": "with VNNI" if has_vnni() else "without VNNI",
             "milliseconds": speed, **results}  # fmt: skip
    print(f"written: {write_json(out, found)}")


if __name__ == "__main__":
    main()
