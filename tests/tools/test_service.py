"""A small annotation service: whatever it does to files and names on their way, each label comes back to its own record.

Services store pictures under names of their own, deal work out to several people, put files into archives and folders, sort and number
anew, write numbers as texts, add fields, and end lines as their system does. None of that is a label.
"""

from __future__ import annotations

import hashlib
import json
import random
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from alpose.runtime.skeleton import LSP
from alpose.tools.annotation.exporting import entries_known, gather
from alpose.tools.batch import Batch
from alpose.tools.dataset import ANNOTATIONS
from alpose.tools.formats import FORMATS
from alpose.tools.formats.files import open_files
from alpose.tools.inbox import Inbox
from alpose.tools.labels import HIDDEN, id_in
from alpose.trainer.data.coco import read_coco

from .harvest import BUDGET, call, value_of

NEWLINES = {"unix": "\n", "windows": "\r\n"}
Files = dict[str, bytes]
"""Content by the path in what comes back."""


@dataclass
class Service:
    """What one service does to what it gets; every choice follows from the seed."""

    seed: int
    dropped: int = 2
    """Pictures that nobody came to."""
    emptied: int = 1
    """Pictures on which the annotator found nobody."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)  # noqa: S311  # nothing secret

    def renamed(self, name: str) -> str:
        """A picture's name as this service has it."""
        path = PurePosixPath(name)
        digest = hashlib.sha256(f"{self.seed}{path.name}".encode()).hexdigest()
        ways = (
            lambda: f"{digest[:8]}-{path.name}",
            lambda: f"{path.stem}_jpg.rf.{digest[:32]}{path.suffix}",
            lambda: f"uploads/{self.seed}/{path.name.upper()}",
            lambda: f"https://service.example.org/p/{digest[:16]}/{path.name}?sig={digest[:32]}",
            lambda: f"C:\\work\\{digest[:6]}_{path.name}",
        )
        return ways[self.seed % len(ways)]()

    def pick(self, ids: Sequence[str]) -> tuple[set[str], set[str]]:
        """Which records nobody came to, and on which nobody is; the last one in the order of work is neither."""
        some = self.rng.sample(list(ids[:-1]), self.dropped + self.emptied)
        return set(some[: self.dropped]), set(some[self.dropped :])

    def number(self, value: float) -> Any:
        """A number as a text, a float or itself."""
        return (value, str(value), float(value))[self.seed % 3]

    def text(self, text: str) -> bytes:
        """With the line ends and the mark of this service's system."""
        encoding = ("utf-8-sig", "utf-8", "utf-16")[self.seed % 3]
        newline = NEWLINES["windows" if self.seed % 2 else "unix"]
        return text.replace("\n", newline).encode(encoding)

    def value(self, value: Any) -> bytes:
        """JSON as this service writes it."""
        return self.text(json.dumps(value, indent=self.seed % 3 or None))


def noise(seed: int) -> dict[str, Any]:
    """Fields that a service adds."""
    return {
        "track_id": None,
        "meta": {"score": seed, "tags": ["ö", None]},
        "segmentation": [],
        "created_at": "2026-01-02T03:04:05Z",
    }


def mirrored(points_J2: Any) -> Any:
    """What annotators of this service do to every pose: a correction that can be told from all others."""
    return np.round(points_J2 * 0.9 + 7.0, 3)


# --- What each format looks like when it comes back


def of_coco(service: Service, files: Files, gone: set[str], empty: set[str]) -> Files:
    """One JSON for each of two annotators, numbered and ordered anew."""
    (document,) = (json.loads(content) for name, content in files.items() if "person_keypoints" in name)
    names = {image["id"]: image["file_name"] for image in document["images"]}
    number = {id_: place for place, id_ in enumerate(service.rng.sample(sorted(names), len(names)), start=100)}
    parts: Files = {}
    for part in range(2):
        images = [
            {**noise(service.seed), **image, "id": service.number(number[image["id"]]),
             "file_name": service.renamed(image["file_name"])}
            for image in document["images"] if id_in(image["file_name"]) not in gone and image["id"] % 2 == part
        ]  # fmt: skip
        annotations = []
        for one in document["annotations"]:
            record = id_in(names[one["image_id"]])
            if record in gone or one["image_id"] % 2 != part:
                continue
            joints_J3 = np.reshape(one["keypoints"], (-1, 3)).astype(float)
            placed_J = joints_J3[:, 2] > 0
            joints_J3[placed_J, :2] = mirrored(joints_J3[placed_J, :2])
            joints_J3 *= record not in empty
            annotations.append({**noise(service.seed), "id": one["id"], "image_id": service.number(number[one["image_id"]]),
                                "category_id": service.number(3), "iscrowd": service.number(0),
                                "keypoints": [service.number(value) for value in joints_J3.ravel().tolist()]})  # fmt: skip
        service.rng.shuffle(images)
        service.rng.shuffle(annotations)
        categories = [{"id": 9, "name": "seat belt"}, {**document["categories"][0], "id": 3, **noise(service.seed)}]
        value = {"info": {"service": "Ä"}, "images": images, "annotations": annotations, "categories": categories}
        parts[f"job_{part}/annotations/instances.json"] = service.value(value)
    return parts


def of_cvat(service: Service, files: Files, gone: set[str], empty: set[str]) -> Files:
    """As COCO, from the archive that CVAT was given."""
    return of_coco(
        service, {name: content for name, content in files.items() if "annotations.zip" in name}, gone, empty
    )


def of_label_studio(service: Service, files: Files, gone: set[str], empty: set[str]) -> Files:
    """One export, in which several people have submitted, skipped and drafted."""
    (tasks,) = (json.loads(content) for name, content in files.items() if name.endswith("tasks.json"))
    out = []
    for place, task in enumerate(tasks):
        record = task["data"].pop("alpose_id")  # some imports keep the picture alone
        task["data"]["image"] = service.renamed(task["data"]["image"].rpartition("/")[2])
        result = task.pop("predictions")[0]["result"]
        joints = [one for one in result if one["type"] == "keypointlabels"]
        for one in joints:
            size = np.array([one["original_width"], one["original_height"]])
            point = mirrored(np.array([one["value"]["x"], one["value"]["y"]]) * size / 100 - 0.5)
            one["value"]["x"], one["value"]["y"] = ((point + 0.5) / size * 100).tolist()
            one |= noise(service.seed)
        if record in empty:
            result = [one for one in result if one["type"] != "keypointlabels"]
        service.rng.shuffle(result)
        draft = {"id": 1, "result": [], "was_cancelled": True, "updated_at": "2026-01-03"}
        done = {
            "id": 2,
            "result": result,
            "completed_by": {"id": 7, "email": "a@example.org"},
            "updated_at": "2026-01-02",
        }
        annotations = [] if record in gone else [done, draft] if service.seed % 2 else [done]
        out.append(
            {
                **noise(service.seed),
                **task,
                "id": 1000 + place,
                "annotations": annotations,
                "drafts": [],
                "predictions": [3],
            }
        )
    service.rng.shuffle(out)
    return {"project-3.json": service.value(out)}


def of_yolo_pose(service: Service, files: Files, gone: set[str], empty: set[str]) -> Files:
    """A text for each picture, in the folders of two parts."""
    parts: Files = {"data.yaml": b"names: [person]\n", "README.roboflow.txt": service.text("exported\nby us\n")}
    for name, content in files.items():
        record = id_in(name)
        if PurePosixPath(name).parent.name != "labels" or record in gone:
            continue
        words = content.decode().split()
        joints_J3 = np.array(words[5:], dtype=float).reshape(-1, 3)
        placed_J = joints_J3[:, 2] > 0
        size = SIZES[str(record)]
        joints_J3[placed_J, :2] = (mirrored(joints_J3[placed_J, :2] * size - 0.5) + 0.5) / size
        joints_J3 *= record not in empty
        numbers = [service.number(value) for value in joints_J3.ravel().tolist()]
        # A name in a folder is a name of this system: addresses and drives stay behind.
        stem = PurePosixPath(
            service.renamed(f"{PurePosixPath(name).stem}.jpg").partition("?")[0].replace("\\", "/")
        ).stem
        line = " ".join(map(str, ["0" if service.seed % 2 else "0.0", *words[1:5], *numbers]))
        parts[f"{service.rng.choice(['train', 'valid'])}/labels/{stem}.txt"] = service.text(f"{line}\n")
    return parts


SIZES: dict[str, Any] = {}
"""Width and height of each record's picture, which texts of YOLO-pose do not state."""
RETURNS: dict[str, Callable[[Service, Files, set[str], set[str]], Files]] = {
    "coco": of_coco, "cvat": of_cvat, "label-studio": of_label_studio, "yolo-pose": of_yolo_pose,
}  # fmt: skip


def went_out(folder: Path) -> Files:
    """What an export wrote, as the service gets it."""
    return {file.name: file.content for file in open_files(folder, (".json", ".txt"))[0]}


def laid_down(files: Mapping[str, bytes], form: str) -> Path:
    """What the service gives back: loose files, one archive, or a folder with an archive for each of its folders."""
    root = Path("came")
    root.mkdir()
    if form == "archive":
        with zipfile.ZipFile("came.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return Path("came.zip")
    for name, content in files.items():
        first, _, rest = name.partition("/")
        if form == "archives" and rest:
            with zipfile.ZipFile(root / f"{first}.zip", "a") as archive:
                archive.writestr(rest, content)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
    return root


def test_every_format_has_a_service() -> None:
    assert RETURNS.keys() >= FORMATS.keys(), "a format is registered that no service gives back: add it to RETURNS"


@pytest.mark.parametrize("name", RETURNS)
@pytest.mark.parametrize(("seed", "form"), list(enumerate(["loose", "archive", "archives", "loose", "archive"])))
def test_every_label_comes_back_to_its_own_record(name: str, seed: int, form: str, inbox: Path, batch: Batch) -> None:
    call("export", inbox, "--to", name, "--out", "work")
    ids = [choice.id for choice in batch.choices]
    with Inbox(inbox) as opened:
        tasks = {item.task.id: item.task for items in gather(opened, batch).items.values() for item in items}
        assert entries_known(opened, ids).keys() == set(ids)
    SIZES.update({id_: np.array([task.width, task.height]) for id_, task in tasks.items()})
    service = Service(seed)
    gone, empty = service.pick(ids)
    came = laid_down(RETURNS[name](service, went_out(Path("work")), gone, empty), form)

    done = value_of(call("import", came, "--into", "dataset", "--json"))

    assert done["unknown"] == []
    assert done["unopened"] == []
    assert [one for one in done["problems"] if "annotations: the latest is taken" not in one] == []
    assert done["merged"]["added"] == BUDGET - len(gone)
    assert (done["corrected"], done["nobody"]) == (BUDGET - len(gone), len(empty))
    document = json.loads((Path("dataset") / ANNOTATIONS).read_text())
    records = {image["id"]: image["alpose"]["id"] for image in document["images"]}
    assert set(records.values()) == set(ids) - gone
    for one in document["annotations"]:
        task = tasks[records[one["image_id"]]]
        joints_J3 = np.reshape(one["keypoints"], (-1, 3))
        if task.id in empty:
            assert not joints_J3.any()
            continue
        assert np.array_equal(joints_J3[:, 2], task.visibility_J)
        placed_J = task.visibility_J != HIDDEN
        assert np.abs(joints_J3[placed_J, :2] - mirrored(task.keypoints_J2[placed_J])).max() < 0.02
    assert len(read_coco(Path("dataset"))) == BUDGET - len(gone) - len(empty)
    assert read_coco(Path("dataset")).skeleton.joints == LSP.joints
