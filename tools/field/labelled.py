"""The labelled frames of a dataset, as arrays: what the model said, what is true, and how each frame was drawn.

Shapes: N labelled frames, J joints.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError
from alpose.runtime.io import read_json
from alpose.trainer.data.coco import find_annotations, read_coco
from alpose.trainer.metrics import Failure, judge, profile_of

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Texts = npt.NDArray[np.str_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Frames that a monitor sent and somebody labelled, one row each."""

    id_N: Texts
    device_N: Texts
    bundle_N: Texts
    pck_N: Floats
    """Share of this frame's joints that the model had right on the device."""
    failed_N: Bools
    flagged_N: Bools
    """Whether the policy kept it for another reason than chance."""
    failure_probability_N: Floats
    control_N: Floats
    """Probability of having reached the annotators through the control stream; NaN for frames not in it."""
    chosen_N: Floats
    """Of a frame from the queue's flagged part, the probability of having been chosen for annotation; NaN where it was
    chosen by its value, which is no probability."""
    dropped: Mapping[str, int]
    """Labelled frames that say nothing here, by reason."""

    def __len__(self) -> int:
        return len(self.id_N)

    def where(self, mask_N: Bools) -> Labelled:
        """These frames alone."""
        arrays = {name: getattr(self, name)[mask_N] for name in self.__slots__ if name.endswith("_N")}
        return Labelled(**arrays, dropped=self.dropped)


@dataclass(frozen=True, slots=True)
class Tally:
    """What one monitor counted: the frames that the labelled ones stand for."""

    device: str
    bundle: str
    frames: int
    flagged: int
    control: int
    lost: int
    """Flagged frames that cannot be labelled: evicted, dropped, or replaced by another one of the same episode."""


def read_labelled(dataset: Path) -> Labelled:
    """Every frame of a harvested dataset that has both a prediction and a label.

    The PCK is the standard profile's, as everywhere. Frames without a harvest's facts (people's own images) are left out
    and counted.
    """
    json_path = find_annotations(dataset)
    value = read_json(json_path)
    people = read_coco(json_path)
    row_of = {id_.rpartition("#")[2]: row for row, id_ in enumerate(people.ids)}
    images = {image["id"]: image for image in value["images"]}
    response = _responses(dataset, images.values())
    rows: list[dict[str, Any]] = []
    people_rows: list[int] = []
    predicted: list[Floats] = []
    dropped: Counter[str] = Counter()
    for annotation in value["annotations"]:
        facts = images[annotation["image_id"]].get("alpose")
        drawn = (annotation.get("alpose") or {}).get("predicted")
        if not isinstance(facts, dict) or drawn is None:
            dropped["not harvested"] += 1
        elif str(annotation["id"]) not in row_of:
            dropped["no joint labelled"] += 1
        else:
            rows.append(_facts(facts, response, json_path))
            people_rows.append(row_of[str(annotation["id"])])
            predicted.append(_predicted(drawn, len(people.skeleton), json_path))
    labelled = people.subset(people_rows)
    predicted_NJ3 = np.array(predicted, dtype=np.float32).reshape(len(rows), len(people.skeleton), 3)
    distance_NJ = np.linalg.norm(predicted_NJ3[..., :2] - labelled.joints_NJ2, axis=2)
    judged = judge(labelled, distance_NJ, predicted_NJ3[..., 2], profile_of("standard", people))
    pck_N = judged.image_pck().astype(np.float64)
    defined_N = np.isfinite(pck_N)
    if not defined_N.all():
        dropped["too few joints labelled to measure by"] = int((~defined_N).sum())
    columns = {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else _facts_of_nothing())}
    return Labelled(
        id_N=columns["id"].astype(np.str_),
        device_N=columns["device"].astype(np.str_),
        bundle_N=columns["bundle"].astype(np.str_),
        pck_N=pck_N,
        failed_N=Failure().failed(pck_N)[0],
        flagged_N=columns["flagged"].astype(np.bool_),
        failure_probability_N=columns["failure_probability"].astype(np.float64),
        control_N=columns["control"].astype(np.float64),
        chosen_N=columns["chosen"].astype(np.float64),
        dropped=dict(dropped),
    ).where(defined_N)


def _facts(facts: Mapping[str, Any], response: Mapping[tuple[str, str], float], source: Path) -> dict[str, Any]:
    try:
        batch, stream = str(facts["batch"]), str(facts["stream"])
        answered = response.get((batch, stream), 1.0)
        chosen = facts["select_probability"]
        chosen = math.nan if chosen is None else float(chosen) * answered
        control = math.nan
        if facts["control_draw"] is not None and stream == "control":
            rate = min(float(facts["control_rate"]), 1.0)
            # A draw at or above the present rate belongs to a part of the stream that was given up since.
            control = rate * chosen if float(facts["control_draw"]) < rate else math.nan
        return {
            "id": str(facts["id"]),
            "device": str(facts["device"]),
            "bundle": str(facts["bundle"]),
            "flagged": bool(facts["flagged"]),
            "failure_probability": float(facts["failure_probability"]),
            "control": control,
            "chosen": math.nan if stream == "control" else chosen,
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{source}: the facts of a harvested image are damaged ({error}): {str(facts)[:200]}"
        ) from error


def _facts_of_nothing() -> tuple[str, ...]:
    return ("id", "device", "bundle", "flagged", "failure_probability", "control", "chosen")


def _predicted(drawn: Any, joints: int, source: Path) -> Floats:
    try:
        predicted_J3 = np.asarray(drawn, dtype=np.float64).reshape(joints, 3)
    except (TypeError, ValueError) as error:
        raise DataError(f"{source}: predicted must be {joints} times x, y, score: {str(drawn)[:120]}") from error
    return predicted_J3


def _responses(dataset: Path, images: Any) -> dict[tuple[str, str], float]:
    """Share of each batch's stream that has been labelled: the rest is taken to be missing at random."""
    labelled = _labelled(images)
    shares = {}
    for path in sorted((dataset / "field" / "batches").glob("*.json")):
        streams = Counter(str(choice["stream"]) for choice in read_json(path)["choices"])
        for stream, chosen in streams.items():
            shares[path.stem, stream] = min(1.0, labelled[path.stem, stream] / chosen)
    return shares


def _labelled(images: Any) -> Counter[tuple[str, str]]:
    """Labelled frames by batch and stream."""
    facts = [image.get("alpose") for image in images]
    return Counter((str(one.get("batch")), str(one.get("stream"))) for one in facts if isinstance(one, dict))


def read_tallies(dataset: Path) -> tuple[Tally, ...]:
    """The monitors' own counts, by device and bundle; empty where the dataset has none.

    They are of the time at which the labelled control frames were drawn: what the monitors saw since then, drifted
    perhaps and with another bundle, is not what these frames stand for.
    """
    latest: dict[tuple[str, str], Tally] = {}
    found = find_annotations(dataset)
    labelled = _labelled(read_json(found)["images"])
    for path in sorted((dataset / "field" / "batches").glob("*.json")):
        if labelled[path.stem, "control"]:
            for tally in _tallies(read_json(path).get("tallies", ()), path):
                known = latest.setdefault((tally.device, tally.bundle), tally)
                if tally.frames > known.frames:
                    latest[tally.device, tally.bundle] = tally
    path = dataset / "field" / "tallies.json"
    if latest or not path.exists():
        return tuple(latest[key] for key in sorted(latest))
    return _tallies(read_json(path), path)


def _tallies(rows: Any, path: Path) -> tuple[Tally, ...]:
    try:
        return tuple(
            Tally(
                str(row["device"]),
                str(row["bundle"]),
                *(int(row[name]) for name in ("frames", "flagged", "control", "lost")),
            )
            for row in rows
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): import the batch again") from error


def bundle_names(dataset: Path) -> dict[str, str]:
    """Names of bundles by sha256, as far as the dataset knows them."""
    path = dataset / "field" / "bundles.json"
    if not path.exists():
        return {}
    return {str(key): str(name) for key, name in read_json(path).items()}
