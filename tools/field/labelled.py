"""The labelled frames of a dataset, as arrays: what the model said, what is true, and how each frame was drawn.

Shapes: N labelled frames, J joints.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.io import from_json, read_json
from alpose.trainer.data.coco import find_annotations, read_coco
from alpose.trainer.data.records import PoseData
from alpose.trainer.measures.metrics import AnyFloats, Failure, ProfileName, judge, mean_error, profile_of

from ..batch import Batch

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
    failure: Failure = field(default_factory=Failure)
    """What ``failed_N`` follows."""
    definition: str = ""
    """The same for people."""

    def __len__(self) -> int:
        return len(self.id_N)

    def where(self, mask_N: Bools) -> Labelled:
        """These frames alone."""
        arrays = {name: getattr(self, name)[mask_N] for name in self.__slots__ if name.endswith("_N")}
        return replace(self, **arrays)


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


@dataclass(frozen=True, slots=True)
class Definition:
    """What a bundle calls a failure: the definition that its probabilities and thresholds were calibrated for."""

    failure: Failure = field(default_factory=Failure)
    profile: ProfileName = "standard"
    crop_margin: float | None = None
    """Side of the crop over the longer side of the person's box, where the failure is measured by it; else None."""

    @classmethod
    def of_bundle(cls, facts: Mapping[str, Any], where: str) -> Definition | None:
        """From what a queue knows of a bundle; None for a bundle that was never calibrated."""
        try:
            calibration = facts.get("calibration")
            if not calibration or "failure" not in calibration:
                return None
            failure = from_json(Failure, calibration["failure"], where)
            margin = float(facts["crop"]["margin"]) if failure.name == "mean-error" else None
            return cls(failure, calibration.get("profile", "standard"), margin)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{where}: its definition of a failure is damaged: {error}") from error

    def words(self, people: PoseData) -> str:
        """One sentence for people."""
        return self.failure.words(profile_of(self.profile, people))

    def failed(self, people: PoseData, distance_NJ: AnyFloats, score_NJ: AnyFloats) -> tuple[Bools, Bools]:
        """Who failed, and of whom that can be said at all."""
        judged = judge(people, distance_NJ, score_NJ, profile_of(self.profile, people))
        side_N = (people.boxes_N4[:, 2:] - people.boxes_N4[:, :2]).max(axis=1, initial=0.0) * (self.crop_margin or 1.0)
        error_N = mean_error(distance_NJ, people.labelled_NJ, np.where(side_N > 0, side_N, np.nan))
        return self.failure.failed(judged.image_pck(), error_N)


def read_labelled(dataset: Path, bundles: Collection[str] | None = None) -> Labelled:
    """Every frame of a harvested dataset that has both a prediction and a label.

    The PCK is the standard profile's, as everywhere; a failure is what the frames' bundles call one. Frames without a
    harvest's facts (people's own images) are left out and counted.

    Args:
        dataset: the folder.
        bundles: sha256 of the bundles whose frames are read; None reads all. :class:`DataError` where they do not agree on
            what a failure is.
    """
    json_path = find_annotations(dataset)
    value = read_json(json_path)
    people = read_coco(json_path)
    row_of = {id_.rpartition("#")[2]: row for row, id_ in enumerate(people.ids)}
    images = {image["id"]: image for image in value["images"]}
    response = _responses(dataset, _records(value))
    rows: list[dict[str, Any]] = []
    people_rows: list[int] = []
    predicted: list[Floats] = []
    dropped: Counter[str] = Counter()
    for annotation in value["annotations"]:
        said = annotation.get("alpose") or {}
        # Of several people on a frame each is a record of their own; the first one's facts are the image's.
        facts = said.get("record") or images[annotation["image_id"]].get("alpose")
        if not isinstance(facts, dict) or said.get("predicted") is None:
            dropped["people added by annotators" if said.get("status") == "added" else "not harvested"] += 1
        elif bundles is not None and facts.get("bundle") not in bundles:
            continue
        elif str(annotation["id"]) not in row_of:
            dropped["no joint labelled"] += 1
        else:
            rows.append(_facts(facts, response, json_path))
            people_rows.append(row_of[str(annotation["id"])])
            predicted.append(_predicted(said["predicted"], len(people.skeleton), json_path))
    if dropped and not rows and set(dropped) == {"not harvested"}:
        raise DataError(f"{dataset}: none of its {dropped['not harvested']} people comes from a harvest: give a dataset that "
                        "alpose-harvest import has filled")  # fmt: skip
    labelled = people.subset(people_rows)
    definition = _one_definition(dataset, {row["bundle"] for row in rows})
    predicted_NJ3 = np.array(predicted, dtype=np.float32).reshape(len(rows), len(people.skeleton), 3)
    distance_NJ = np.linalg.norm(predicted_NJ3[..., :2] - labelled.joints_NJ2, axis=2)
    judged = judge(labelled, distance_NJ, predicted_NJ3[..., 2], profile_of("standard", people))
    pck_N = judged.image_pck().astype(np.float64)
    failed_N, known_N = definition.failed(labelled, distance_NJ, predicted_NJ3[..., 2])
    defined_N = np.isfinite(pck_N) & known_N
    if not defined_N.all():
        dropped["too few joints labelled to measure by"] = int((~defined_N).sum())
    columns = {name: np.array([row[name] for row in rows]) for name in FACTS}
    return Labelled(
        id_N=columns["id"].astype(np.str_),
        device_N=columns["device"].astype(np.str_),
        bundle_N=columns["bundle"].astype(np.str_),
        pck_N=pck_N,
        failed_N=failed_N,
        flagged_N=columns["flagged"].astype(np.bool_),
        failure_probability_N=columns["failure_probability"].astype(np.float64),
        control_N=columns["control"].astype(np.float64),
        chosen_N=columns["chosen"].astype(np.float64),
        dropped=dict(dropped),
        failure=definition.failure,
        definition=definition.words(people),
    ).where(defined_N)


def _one_definition(dataset: Path, bundles: Collection[str]) -> Definition:
    """What all of these bundles call a failure; those that do not say follow the others, and PCK under 0.5 is the default."""
    path = dataset / "field" / "failures.json"
    stored = _object(path) if path.exists() else {}
    stated = {
        bundle: from_json(Definition, stored[bundle], str(path)) for bundle in sorted(bundles) if bundle in stored
    }
    different = list(dict.fromkeys(stated.values()))
    if len(different) > 1:
        names = bundle_names(dataset)
        said = ", ".join(f"{names.get(bundle, '')} {bundle[:12]} ({one.failure.name}, limit {one.failure.limit})".strip()
                         for bundle, one in stated.items())  # fmt: skip
        raise DataError(f"{dataset}: its bundles do not call the same thing a failure: {said}. Report on those that do: "
                        "alpose-harvest report --bundle NAME")  # fmt: skip
    return different[0] if different else Definition()


FACTS = ("id", "device", "bundle", "flagged", "failure_probability", "control", "chosen")


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


def _predicted(drawn: Any, joints: int, source: Path) -> Floats:
    try:
        return np.asarray(drawn, dtype=np.float64).reshape(joints, 3)
    except (TypeError, ValueError) as error:
        raise DataError(f"{source}: predicted must be {joints} times x, y, score: {str(drawn)[:120]}") from error


def _responses(dataset: Path, records: Sequence[Any]) -> dict[tuple[str, str], float]:
    """Share of each batch's stream that has been labelled: the rest is taken to be missing at random."""
    labelled = _labelled(records)
    shares: dict[tuple[str, str], float] = {}
    for path in sorted((dataset / "field" / "batches").glob("*.json")):
        streams = Counter(choice.stream for choice in _batch(path).choices)
        for stream, chosen in streams.items():
            shares[path.stem, stream] = min(1.0, labelled[path.stem, stream] / chosen)
    return shares


def _records(value: Mapping[str, Any]) -> list[Any]:
    """The facts of all records: an image's own, and those of further people on it."""
    people = ((annotation.get("alpose") or {}).get("record") for annotation in value["annotations"])
    return [*(image.get("alpose") for image in value["images"]), *people]


def _labelled(records: Sequence[Any]) -> Counter[tuple[str, str]]:
    """Labelled frames by batch and stream."""
    return Counter((str(one.get("batch")), str(one.get("stream"))) for one in records if isinstance(one, dict))


def read_tallies(dataset: Path, bundles: Collection[str] | None = None) -> tuple[Tally, ...]:
    """The monitors' own counts, by device and bundle; empty where the dataset has none, all where ``bundles`` is None.

    They are of the time at which the labelled control frames were drawn: what the monitors saw since then, drifted
    perhaps and with another bundle, is not what these frames stand for.
    """
    latest: dict[tuple[str, str], Tally] = {}
    labelled = _labelled(_records(read_json(find_annotations(dataset))))
    for path in sorted((dataset / "field" / "batches").glob("*.json")):
        if labelled[path.stem, "control"]:
            for tally in _tallies(_batch(path).tallies, path):
                known = latest.setdefault((tally.device, tally.bundle), tally)
                if tally.frames > known.frames:
                    latest[tally.device, tally.bundle] = tally
    path = dataset / "field" / "tallies.json"
    found = [latest[key] for key in sorted(latest)]
    if not found and path.exists():
        found = list(_tallies(read_json(path), path))
    return tuple(tally for tally in found if bundles is None or tally.bundle in bundles)


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


def bundles_called(dataset: Path, names: Collection[str]) -> frozenset[str]:
    """sha256 of the bundles of these names, or whose sha256 begins so; :class:`DataNotFoundError` lists the known ones."""
    known = bundle_names(dataset)
    found = {name: [sha256 for sha256, its in known.items() if name in (its, sha256[: len(name)])] for name in names}
    for name, matches in found.items():
        if not matches:
            there = ", ".join(f"{its} ({sha256[:12]})" for sha256, its in known.items()) or "none"
            raise DataNotFoundError(f"{dataset} knows no bundle {name!r}; it knows: {there}")
    return frozenset(sha256 for matches in found.values() for sha256 in matches)


def bundle_names(dataset: Path) -> dict[str, str]:
    """Names of bundles by sha256, as far as the dataset knows them."""
    path = dataset / "field" / "bundles.json"
    if not path.exists():
        return {}
    return {key: str(name) for key, name in _object(path).items()}


def _batch(path: Path) -> Batch:
    return Batch.from_json(read_json(path), str(path))


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path} is damaged: it must hold an object. Import the batch again")
    return value
