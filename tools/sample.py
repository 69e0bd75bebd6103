"""A queue as a device would have filled it, from rendered people: to try the harvest without a device.

``python -m alpose.tools.sample car-17.db`` — poses with errors, a failure probability that knows of them more or less, a
control stream, and the counts of a monitor. Nothing in it is a real measurement.

Shapes: N frames, J joints, D embedding.
"""

from __future__ import annotations

from pathlib import Path

import click
import cv2
import numpy as np

from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.queue import Picture, Queue, Record
from alpose.runtime.skeleton import LSP
from alpose.trainer.data.synthetic import read_people

BUNDLE = "5a3b1e00" * 8
NAME = "sample"
ENLARGED = 3
"""The rendered people are small: pictures are this many times larger."""
CONTROL_RATE = 0.01
CONTROL_SHARE = 0.2
"""Of the frames in the queue."""
THRESHOLD = 0.5
EMBEDDING_D = 16
WORST_PX = 40.0
"""Standard deviation of a joint's error where the failure probability is 1."""


def fill(path: Path, *, count: int, device: str, seed: int = 0) -> list[str]:
    """Put frames into a queue and give their ids; :class:`DataError` where the file exists."""
    if path.exists():
        raise DataError(f"{path} exists already: nothing was written")
    people = read_people(seed=seed, count=count, domain="hard")
    rng = np.random.default_rng([seed, count])
    control_N = np.arange(count) < round(CONTROL_SHARE * count)
    rng.shuffle(control_N)
    # The control stream is drawn from all frames; whatever else is here was flagged.
    doubt_N = np.where(control_N, rng.beta(1, 2, count), rng.uniform(THRESHOLD, 1, count))
    flagged_N = doubt_N >= THRESHOLD
    ids = []
    with Queue(path) as queue:
        queue.add_bundle(BUNDLE, NAME, {"skeleton": LSP.to_json()})
        for row in range(count):
            image_HW3 = people.images.read(row)
            height, width = (ENLARGED * side for side in image_HW3.shape[:2])
            large_HW3 = cv2.resize(image_HW3, (width, height), interpolation=cv2.INTER_CUBIC)
            done, jpeg = cv2.imencode(".jpg", large_HW3[..., ::-1])
            if not done:
                raise DataError(f"picture {row} cannot be encoded: OpenCV was built without JPEG")
            true_J2 = (people.joints_NJ2[row] + 0.5) * ENLARGED - 0.5
            error_J2 = rng.normal(0, 2 + WORST_PX * doubt_N[row] ** 2, true_J2.shape)
            record = _record(queue, rng, device, true_J2 + error_J2, float(doubt_N[row]), bool(control_N[row]),
                             people.boxes_N4[row] * ENLARGED, (width, height))  # fmt: skip
            queue.put(record, [Picture.of(jpeg.tobytes(), width=width, height=height, captured_ns=record.captured_ns)])
            ids.append(record.id)
        control = int(control_N.sum())
        queue.tally(device=device, bundle=BUNDLE, at_ns=10**18, frames=count + round(control / CONTROL_RATE),
                    flagged=int(flagged_N.sum()), control=control, kept=count)  # fmt: skip
    return ids


def _record(
    queue: Queue, rng: np.random.Generator, device: str, keypoints_J2: np.ndarray, doubt: float, control: bool,
    box_4: np.ndarray, size: tuple[int, int],
) -> Record:  # fmt: skip
    draw = float(rng.uniform(0, CONTROL_RATE)) if control else None
    reasons = [("budget", doubt, THRESHOLD)] if doubt >= THRESHOLD else []
    reasons += [("control", draw, CONTROL_RATE)] if draw is not None else []
    embedding_D = rng.normal(size=EMBEDDING_D)
    x0, y0, x1, y1 = (float(value) for value in box_4)
    return Record(
        id=queue.new_id(),
        captured_ns=int(1.7e18 + rng.integers(0, 10**13)),
        captured_monotonic_ns=1,
        device=device,
        camera="cabin",
        bundle=BUNDLE,
        frame_width=size[0],
        frame_height=size[1],
        box=(x0, y0, x1, y1),
        place="box",
        keypoints_J2=keypoints_J2.astype(np.float32),
        scores_J=rng.uniform(0.3, 1.0, len(keypoints_J2)).astype(np.float32),
        predicted_loss=4 * doubt,
        failure_probability=doubt,
        embedding_D=(embedding_D / np.linalg.norm(embedding_D)).astype(np.float16),
        flagged=doubt >= THRESHOLD,
        reasons=tuple(reasons),
        threshold=THRESHOLD,
        inclusion_probability=1.0 if doubt >= THRESHOLD else CONTROL_RATE,
        control_draw=draw,
    )


@click.command()
@click.argument("queue", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--frames", default=40, show_default=True, type=click.IntRange(1, 100_000), metavar="FRAMES",
              help="How many frames.")  # fmt: skip
@click.option("--device", help="Its name. [default: that of the file]")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), metavar="NUMBER", help="Other people for another."
)
def main(queue: Path, frames: int, device: str | None, seed: int) -> None:
    """Fill the file QUEUE with frames of rendered people."""
    try:
        ids = fill(queue, count=frames, device=device or queue.stem, seed=seed)
    except (DataError, ConfigError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{queue}: {len(ids)} frames of rendered people")


if __name__ == "__main__":
    main()
