"""Run by the Python of an environment with transformers: a small ViTPose, trained for a minute or two, exported, and its own answers.

    python vitpose.py CROPS.npz OUT STEPS

CROPS.npz holds ``train`` and ``test``, uint8 (N, 256, 192, 3) RGB, and ``joints`` (N, J, 2) of train in pixels, NaN where not
labelled. OUT gets ``net.onnx`` and ``keypoints.npy``, (M, J, 2) of test, by the library's own post-processing.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
HEIGHT, WIDTH = 256, 192


def own_decoding() -> Any:
    """The library's functions from heatmaps to keypoints; their module wants torchvision only to cut crops."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision.transforms.v2"].functional = None  # type: ignore[attr-defined]
        import transformers.image_processing_backends as backends

        if not hasattr(backends, "TorchvisionBackend"):
            backends.TorchvisionBackend = object
    # By its path: the package hands out a placeholder where torchvision is not installed.
    return importlib.import_module("transformers.models.vitpose.image_processing_vitpose")


class Maps(torch.nn.Module):
    """The net without the rest of its output, as an exporter wants it."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.net(pixel_values).heatmaps


def pixels(crops_NHW3: np.ndarray) -> torch.Tensor:
    return ((torch.from_numpy(crops_NHW3).float() / 255 - MEAN) / STD).permute(0, 3, 1, 2)


def main(crops: Path, out: Path, steps: int) -> None:
    torch.manual_seed(0)
    given = np.load(crops)
    train, test, joints = given["train"], given["test"], torch.from_numpy(given["joints"])
    backbone = VitPoseBackboneConfig(image_size=[HEIGHT, WIDTH], patch_size=[16, 16], hidden_size=96, num_hidden_layers=4,
                                     num_attention_heads=3)  # fmt: skip
    net = VitPoseForPoseEstimation(
        VitPoseConfig(backbone_config=backbone, num_labels=joints.shape[1], use_simple_decoder=False)
    )
    maps = Maps(net)
    cells = torch.stack(torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="xy"), dim=-1)  # (64, 48, 2)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    net.train()
    for _step in range(steps):
        rows = torch.randint(0, len(train), (8,))
        places = joints[rows] * torch.tensor([47 / (WIDTH - 1), 63 / (HEIGHT - 1)])
        wanted = torch.exp(-(cells - places[:, :, None, None]).square().sum(-1) / (2 * 2.0**2))
        known = torch.isfinite(places).all(-1)[..., None, None]
        wanted = torch.nan_to_num(wanted)
        # Cells that belong to a joint count more, as most of a map is empty.
        loss = ((maps(pixels(train[rows.numpy()])) - wanted).square() * (0.1 + 2 * wanted) * known).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    maps.eval()  # the wrapper too: the exporter puts a net back into the mode that its outermost module was in
    torch.onnx.export(maps, (torch.zeros(1, 3, HEIGHT, WIDTH),), str(out / "net.onnx"), input_names=["pixel_values"],
                      output_names=["heatmaps"], dynamo=False, opset_version=17,
                      dynamic_axes={"pixel_values": {0: "batch"}, "heatmaps": {0: "batch"}})  # fmt: skip
    library = own_decoding()
    found, settled = [], []
    with torch.no_grad():
        for start in range(0, len(test), 16):
            heatmaps = maps(pixels(test[start : start + 16])).numpy()
            coords, _ = library.get_keypoint_predictions(heatmaps)
            cells = coords.copy()
            coords = library.post_dark_unbiased_data_processing(coords, heatmaps, kernel=11)
            inner = (cells >= 4).all(axis=2) & (cells < np.array(heatmaps.shape[:1:-1]) - 4).all(axis=2)
            settled.append((np.abs(coords - cells) <= 0.75).all(axis=2) & inner)
            # The crop itself is the picture: its first and last pixels are the box's edges, as the library's warp has it.
            centre, scale = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2]), np.array([WIDTH - 1, HEIGHT - 1]) / 200
            found += [library.transform_preds(person, centre, scale, heatmaps.shape[2:]) for person in coords]
    np.save(out / "keypoints.npy", np.asarray(found))
    np.save(out / "settled.npy", np.concatenate(settled))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
