"""How often ``redact="face"`` hides the true head: the test people of LSP, by what the bundle thinks of its own pose.

``python -m bench.redaction BUNDLE --data-root DATA`` takes a bundle that was trained on LSP. A monitor keeps the frames with the
highest failure probabilities, so their number is the one that counts.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from alpose.runtime import LSP, Bundle, open_engine
from alpose.runtime.frames import accept
from alpose.runtime.io import write_json
from alpose.runtime.redaction import head_joints, head_region
from alpose.trainer.data.lsp import read_lsp

TEST = range(1000, 2000)
"""LSP's own test people."""


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--data-root", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench/results/redaction.json"), show_default=True)
def main(bundle: Path, data_root: Path, out: Path) -> None:
    """Measure, and write the result."""
    opened, people = Bundle.open(bundle), read_lsp(data_root / "lsp")
    engine, head = open_engine(opened, "cpu").engine, list(head_joints(LSP))
    rows = []
    for row in TEST:
        image_HW3 = people.image(row)
        height, width = image_HW3.shape[:2]
        x0, y0, x1, y1 = (float(edge) for edge in people.boxes_N4[row])
        crop = opened.crop.crop_of((x0, y0, x1, y1))
        outputs = engine(accept(image_HW3, "rgb").cut(crop)[None])
        region = head_region(crop.to_frame(outputs.keypoints_NJ2[0]), head, width, height) or (0, 0, 0, 0)
        true_K2 = people.joints_NJ2[row][head]
        points_N2 = np.concatenate([true_K2, true_K2.mean(axis=0, keepdims=True)])
        hidden_N = np.all((points_N2 >= np.array(region[:2]) - 0.5) & (points_N2 <= np.array(region[2:]) - 0.5), axis=1)
        area = (region[2] - region[0]) * (region[3] - region[1]) / (width * height)
        rows.append((float(outputs.failure_probability_N[0]), float(hidden_N[-1]), float(hidden_N[:-1].all()), area))
    values = np.array(sorted(rows, reverse=True))
    tenth, half = len(values) // 10, len(values) // 2
    groups = {"everybody": values, "most doubtful tenth": values[:tenth], "surest half": values[half:]}
    result = {
        name: {"people": len(part), "middle hidden": round(float(part[:, 1].mean()), 3),
               "neck and top hidden": round(float(part[:, 2].mean()), 3), "share of the picture": round(float(part[:, 3].mean()), 3)}
        for name, part in groups.items()
    }  # fmt: skip
    write_json(out, {"bundle": opened.manifest.name, **result})
    for name, numbers in result.items():
        click.echo(f"{name:20} {numbers}")


if __name__ == "__main__":
    main()
