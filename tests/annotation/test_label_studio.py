"""Out to a real Label Studio, corrected in its page with a real browser, and back. ``make test-annotation`` runs it.

Screenshots are left in ``$ALPOSE_SCREENSHOTS`` where that is set.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("label_studio", reason="make test-annotation installs Label Studio")
playwright = pytest.importorskip("playwright.sync_api", reason="make test-annotation installs playwright")
Image = pytest.importorskip("PIL.Image", reason="make test-annotation installs Pillow")

from alpose.runtime.skeleton import LSP  # noqa: E402
from alpose.tools import sample  # noqa: E402
from alpose.tools.cli import main  # noqa: E402
from alpose.tools.dataset import ANNOTATIONS  # noqa: E402
from alpose.tools.inbox import Inbox  # noqa: E402
from alpose.tools.pull.pull import pull  # noqa: E402
from alpose.tools.pull.sources import LocalSource  # noqa: E402

from .studio import Studio, running  # noqa: E402

pytestmark = pytest.mark.slow

BUDGET = 6
DRAGGED_PX = (40.0, 25.0)
"""On the screen."""


def call(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inbox and its batch as a folder for Label Studio."""
    folder = tmp_path_factory.mktemp("work")
    sample.fill(folder / "car-17.db", count=20, device="car-17")
    with Inbox(folder / "inbox", create=True) as inbox:
        pull(inbox, LocalSource(folder / "car-17.db"))
    call("select", folder / "inbox", "--budget", BUDGET, "--seed", 0, "--name", "week-1")
    call("export", folder / "inbox", "--to", "label-studio", "--out", folder / "out")
    return folder


@pytest.fixture(scope="module")
def studio(work: Path) -> Iterator[Studio]:
    with running(work / "studio", work / "out", work / "studio.log") as started:
        yield started


@pytest.fixture(scope="module")
def page(studio: Studio) -> Iterator[Any]:
    """A browser, signed in."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium on this machine")
    with playwright.sync_playwright() as started:
        # Containers have no namespaces for its sandbox; the only page it opens is our own.
        browser = started.chromium.launch(executable_path=chromium, headless=True, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(f"{studio.url}/user/login/")
        page.fill("input[name=email]", studio.user)
        page.fill("input[name=password]", studio.password)
        page.click("button[type=submit]")
        page.wait_for_load_state("networkidle")
        yield page
        browser.close()


def opened(page: Any, studio: Studio, project: int, task: int) -> dict[str, float]:
    """Show a task; where its image stands on the screen."""
    page.goto(f"{studio.url}/projects/{project}/data?task={task}")
    page.locator("img[alt=image]").wait_for()
    page.get_by_role("button", name="Submit").wait_for()
    page.get_by_text("right_knee").first.wait_for()
    page.wait_for_timeout(1500)  # The regions are drawn after their names are listed.
    box: dict[str, float] = page.locator("img[alt=image]").bounding_box()
    return box


def on_screen(task: dict[str, Any], joint: str, box: dict[str, float]) -> tuple[float, float]:
    (value,) = (region["value"] for region in task["predictions"][0]["result"]
                if region["value"].get("keypointlabels") == [joint])  # fmt: skip
    return box["x"] + box["width"] * value["x"] / 100, box["y"] + box["height"] * value["y"] / 100


def submit(page: Any, studio: Studio, task: int, name: str) -> None:
    if folder := os.environ.get("ALPOSE_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))
    page.get_by_role("button", name="Submit").click()
    studio.wait_for_annotation(task)


def predicted(task: dict[str, Any], low: float = 5, high: float = 80) -> list[str]:
    """Joints that are shown well inside of the image, and on the screen without scrolling."""
    return [region["value"]["keypointlabels"][0] for region in task["predictions"][0]["result"]
            if region["type"] == "keypointlabels" and all(low < region["value"][axis] < high for axis in "xy")]  # fmt: skip


def alone(task: dict[str, Any], among: list[str]) -> list[str]:
    """Those of the joints that no other joint comes near: a click must not be able to mean two."""
    at = {region["value"]["keypointlabels"][0]: (region["value"]["x"], region["value"]["y"])
          for region in task["predictions"][0]["result"] if region["type"] == "keypointlabels"}  # fmt: skip
    return [one for one in among
            if all(other == one or np.hypot(*np.subtract(at[one], at[other])) > 5 for other in at)]  # fmt: skip


def sent(work: Path, name: str) -> Path:
    """The batch as Label Studio is given it, in a folder of its own."""
    out = work / "out" / name
    url = f"/data/local-files/?d={name}/images/"
    call("export", work / "inbox", "--to", "label-studio", "--out", out, "--image-url", url)
    return out


def exported(studio: Studio, project: int, path: Path) -> Path:
    """What the annotator's export button gives."""
    answer = studio.api("GET", f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true")
    path.write_text(json.dumps(answer))
    return path


def labels_of(dataset: Path, id_: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A picture of the dataset, and the people who are labelled in it."""
    document = json.loads((dataset / ANNOTATIONS).read_text())
    (image,) = (one for one in document["images"] if one["alpose"]["id"] == id_)
    return image, [one for one in document["annotations"] if one["image_id"] == image["id"]]


def test_a_correction_in_the_page_comes_back_and_nothing_else(work: Path, studio: Studio, page: Any) -> None:
    project = studio.project(work / "out")
    ours = json.loads((work / "out" / "tasks.json").read_text())
    theirs = studio.tasks(project)
    # The order of work is the order of the batch.
    assert [task["data"]["alpose_id"] for task in theirs] == [task["data"]["alpose_id"] for task in ours]
    number_of = {task["data"]["alpose_id"]: task["id"] for task in theirs}
    three = [task for task in ours if len(alone(task, predicted(task))) >= 2][:3]
    moved_task, hidden_task, _ = three
    ids = [task["data"]["alpose_id"] for task in three]

    # One joint dragged.
    moved_joint = alone(moved_task, predicted(moved_task))[0]
    box = opened(page, studio, project, number_of[ids[0]])
    moved_width = box["width"]
    assert page.get_by_text(moved_task["data"]["alpose_summary"]).first.is_visible()
    x, y = on_screen(moved_task, moved_joint, box)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + DRAGGED_PX[0] / 2, y + DRAGGED_PX[1] / 2, steps=4)
    page.mouse.move(x + DRAGGED_PX[0], y + DRAGGED_PX[1], steps=4)
    page.mouse.up()
    submit(page, studio, number_of[ids[0]], "moved")

    # One joint hidden, one deleted.
    hidden_joint, deleted_joint = alone(hidden_task, predicted(hidden_task))[:2]
    box = opened(page, studio, project, number_of[ids[1]])
    page.mouse.click(*on_screen(hidden_task, hidden_joint, box))
    page.locator("label", has_text="hidden").first.click()
    page.keyboard.press("Escape")
    page.wait_for_timeout(300)
    box = page.locator("img[alt=image]").bounding_box()
    page.mouse.click(*on_screen(hidden_task, deleted_joint, box))
    page.wait_for_timeout(300)
    page.keyboard.press("Backspace")
    page.wait_for_timeout(300)
    submit(page, studio, number_of[ids[1]], "hidden")

    # One submitted as it was.
    opened(page, studio, project, number_of[ids[2]])
    submit(page, studio, number_of[ids[2]], "same")

    came = exported(studio, project, work / "came.json")
    done = json.loads(call("import", came, "--inbox", work / "inbox", "--into", work / "dataset", "--json"))
    assert (done["problems"], done["unknown"], done["unopened"]) == ([], [], [])
    assert (done["corrected"], done["accepted"], done["merged"]["added"]) == (2, 1, 3)

    document = json.loads((work / "dataset" / ANNOTATIONS).read_text())
    row_of = {image["alpose"]["id"]: row for row, image in enumerate(document["images"])}
    for id_, changed in zip(ids, ({moved_joint}, {hidden_joint, deleted_joint}, set[str]()), strict=True):
        annotation, image = document["annotations"][row_of[id_]], document["images"][row_of[id_]]
        said_J3 = np.reshape(annotation["keypoints"], (-1, 3))
        predicted_J3 = np.reshape(annotation["alpose"]["predicted"], (-1, 3))
        assert annotation["alpose"]["annotator"]
        for joint, said, was in zip(LSP.joints, said_J3, predicted_J3, strict=True):
            inside = 0 <= was[0] <= image["width"] - 1 and 0 <= was[1] <= image["height"] - 1
            if joint not in changed and inside:
                assert said == pytest.approx([*was[:2], 2], abs=0.011), joint
    image = document["images"][row_of[ids[0]]]
    moved = np.array(DRAGGED_PX) * image["width"] / moved_width
    distance_J = document["annotations"][row_of[ids[0]]]["alpose"]["distance_px"]
    assert distance_J[LSP.index(moved_joint)] == pytest.approx(np.hypot(*moved), rel=0.05)
    visible_J = np.reshape(document["annotations"][row_of[ids[1]]]["keypoints"], (-1, 3))[:, 2]
    assert visible_J[LSP.index(hidden_joint)] == 1
    assert visible_J[LSP.index(deleted_joint)] == 0


def test_pictures_made_smaller_by_the_annotators_give_labels_of_the_known_picture(
    work: Path, studio: Studio, page: Any
) -> None:
    out = sent(work, "small")
    for path in (out / "images").iterdir():
        with Image.open(path) as picture:
            smaller = picture.resize((picture.width // 2, picture.height // 2))
        smaller.save(path)
    project = studio.project(out)
    task = next(one for one in json.loads((out / "tasks.json").read_text()) if alone(one, predicted(one)))
    id_ = task["data"]["alpose_id"]
    number = next(one["id"] for one in studio.tasks(project) if one["data"]["alpose_id"] == id_)
    joint = alone(task, predicted(task))[0]
    box = opened(page, studio, project, number)
    x, y = on_screen(task, joint, box)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + DRAGGED_PX[0] / 2, y + DRAGGED_PX[1] / 2, steps=4)
    page.mouse.move(x + DRAGGED_PX[0], y + DRAGGED_PX[1], steps=4)
    page.mouse.up()
    submit(page, studio, number, "smaller")
    came = exported(studio, project, work / "smaller.json")
    call("import", came, "--inbox", work / "inbox", "--into", work / "dataset-smaller")

    image, (person,) = labels_of(work / "dataset-smaller", id_)
    said_J3 = np.reshape(person["keypoints"], (-1, 3))
    predicted_J3 = np.reshape(person["alpose"]["predicted"], (-1, 3))
    for name, said, was in zip(LSP.joints, said_J3, predicted_J3, strict=True):
        if name != joint and 0 <= was[0] <= image["width"] - 1 and 0 <= was[1] <= image["height"] - 1:
            assert said[:2] == pytest.approx(was[:2], abs=0.011), name
    moved = np.array(DRAGGED_PX) * image["width"] / box["width"]
    place = LSP.index(joint)
    assert said_J3[place, :2] - predicted_J3[place, :2] == pytest.approx(moved, rel=0.05, abs=1)


def test_two_people_of_one_picture_are_two_people_of_the_dataset(work: Path, studio: Studio) -> None:
    out = sent(work, "two")
    project = studio.project(out)
    task = json.loads((out / "tasks.json").read_text())[0]
    id_ = task["data"]["alpose_id"]
    number = next(one["id"] for one in studio.tasks(project) if one["data"]["alpose_id"] == id_)
    regions = task["predictions"][0]["result"]
    (frame,) = (one for one in regions if one["type"] == "rectanglelabels")
    # A second person as the page would make one: a rectangle of their own, and joints below it.
    other = {
        **frame,
        "id": "somebody",
        "readonly": False,
        "value": {**frame["value"], "x": 2.0, "y": 2.0, "width": 20.0, "height": 40.0},
    }
    joints = [
        {**regions[0], "id": f"{joint}-of-somebody", "parentID": "somebody",
         "value": {**regions[0]["value"], "x": 5.0 + place, "y": 6.0 + place, "keypointlabels": [joint]}}
        for place, joint in enumerate(LSP.joints)
    ]  # fmt: skip
    studio.api("POST", f"/api/tasks/{number}/annotations/", {"result": [*regions, other, *joints]})
    came = exported(studio, project, work / "two.json")
    call("import", came, "--inbox", work / "inbox", "--into", work / "dataset-two")

    image, people = labels_of(work / "dataset-two", id_)
    assert len(people) == 2
    somebody = next(one for one in people if np.reshape(one["keypoints"], (-1, 3))[0, 0] == pytest.approx(
        5.0 / 100 * image["width"] - 0.5, abs=0.01))  # fmt: skip
    assert somebody["num_keypoints"] == len(LSP)
