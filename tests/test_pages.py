"""What every HTML page of alpose must be, whatever it shows: complete, offline, legible, and safe from what it is told."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from alpose.export import shift
from alpose.export.card import render_card
from alpose.runtime.skeleton import COCO
from alpose.tools.demo import page as demo_page
from alpose.tools.field.page import render as render_field
from alpose.tools.field.report import field_report
from alpose.tools.inbox import Inbox
from alpose.trainer.cycles.results import Gallery, Results, stage_folder
from alpose.trainer.detect.evaluation import evaluate
from alpose.trainer.detect.stored import DetectorInfo
from alpose.trainer.pages import cycles, detect, theory
from alpose.trainer.theory.theory_run import study

from .export import test_card as cards
from .tools import test_field_report as fields
from .tools import test_gallery as galleries
from .trainer.detect import runs as detect_runs
from .trainer.foreign import test_describe as describes
from .trainer.foreign import test_detect as detect_poses
from .trainer.gain import pages as gains
from .trainer.pages import runs
from .trainer.theory import test_theory as theories

HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>\"'&"
VOID = ("meta", "br", "img", "input", "link")


def cycles_page(folder: Path, name: str) -> str:
    runs.write_run(folder, ["random", "ll", "ll++", name], seeds=2, stages=2, dataset=name, note=name)
    path = stage_folder(folder, 0, "ll", 1) / "gallery.npz"
    gallery = Gallery.load(path)
    replace(gallery, ids=(name, *gallery.ids[1:])).save(path)
    return cycles.write_report(folder).read_text()


def bare_cycles_page(folder: Path, name: str) -> str:
    """A run that has just begun: no row, no file, hardly any setting."""
    Results({"methods": ["random", name]}, {}, ()).save(folder)
    return cycles.write_report(folder).read_text()


def published_page(folder: Path, name: str) -> str:
    """The dataset that the papers have numbers of; every method has all its values undefined."""
    Results({"dataset": "lsp", "note": name}, {}, (runs.row("random", 0), runs.row("ll", 0))).save(folder)
    return cycles.write_report(folder).read_text()


def theory_page(folder: Path, name: str) -> str:
    found = study(theories.made_run(folder))
    return theory.write_theory(folder, replace(found, run=name, problems=(name,))).read_text()


def detect_page(folder: Path, name: str, scores: bool = True) -> str:
    detectors = (DetectorInfo(name="entropy", kind="free", what=name), DetectorInfo(name=f"x{name}", kind="shipped", what=""),
                 DetectorInfo(name="fused", kind="candidate", what="", probability=True))  # fmt: skip
    noise = {"entropy": 1.0, f"x{name}": 0.5, "fused": 0.6}
    run = detect_runs.write_run(
        folder, 1, 40, noise, detectors=detectors, sets=detect_runs.SETS[1:], config={"dataset": name}
    )
    evaluate(run, resamples=10)
    for file in run.rglob("*.npz") if not scores else ():
        file.unlink()
    return detect.write_report(run).read_text()


def bare_detect_page(folder: Path, name: str) -> str:
    return detect_page(folder, name, scores=False)


def card(_: Path, name: str) -> str:
    report = cards.report_of(data=name)
    moved = shift.apply(report, *cards.people(2, 700, base=1.5), data=name)
    facts = cards.bundle(name=name, provenance={"trained": {"data": name}, "note": name})
    return render_card(facts, report, previous=moved, elsewhere=[moved])


def bare_card(_: Path, name: str) -> str:
    """A bundle that was exported without labelled data, its origin unknown."""
    return render_card(cards.bundle(COCO, name=name, precision="fp32", parity={}, provenance={}), None)


def card_of_few(_: Path, name: str) -> str:
    """Too few failures for any threshold."""
    return render_card(cards.bundle(name=name), cards.report_of(60))


def gallery_page(folder: Path, name: str) -> str:
    texts = {"device": name, "camera": name, "place": name, "reasons": ((name, 1.0, 0.5),)}
    if not (folder / "inbox").exists():
        galleries.filled(folder, [texts, {"store": "keypoints", "failure_probability": float("nan")}],
                         [[galleries.picture()], []])  # fmt: skip
    return galleries.show(folder)[1]


def bare_gallery_page(folder: Path, _: str) -> str:
    Inbox(folder / "inbox", create=True).close()
    return galleries.show(folder)[1]


def field_page(_: Path, name: str) -> str:
    report = fields.made()[1]
    bundles = {next(iter(report.bundles)): name}
    return render_field(replace(report, dropped={name: 2}, advice=(name,)), dataset=name, bundles=bundles)


def bare_field_page(_: Path, name: str) -> str:
    """Nothing is labelled."""
    fleet = fields.Fleet.made(np.random.default_rng(1), frames=200)
    nothing = fleet.label(np.random.default_rng(0), "value").where(np.zeros(0, dtype=np.int64))
    return render_field(field_report(nothing, []), dataset=name)


def demo(_: Path, name: str) -> str:
    return demo_page.render(demo_page.Result((demo_outcome(0),)), [(f"alpose-train {name}", 3.5)], 600.0)


def demo_of_seeds(_: Path, name: str) -> str:
    """Several seeds, and no field report."""
    result = demo_page.Result(tuple(replace(demo_outcome(seed), field={"pck": None}) for seed in range(3)))
    return demo_page.render(result, [(f"alpose-train {name}", 3.5)], 600.0)


def demo_outcome(seed: int) -> demo_page.Outcome:
    turned = {"first": 0.12, "without": 0.13, "random": 0.15, "harvest": 0.4 + 0.01 * seed}
    return demo_page.Outcome(
        seed=seed, frames=2400, turned=96, failures=400, true_pck=0.7,
        field={"pck": {"value": 0.7, "low": 0.6, "high": 0.8}},
        labelled={"random": demo_page.Labelled(frames=200, turned=8, failures=33),
                  "harvest": demo_page.Labelled(frames=200, turned=88, failures=140)},
        measured={name: demo_page.Measured(before=0.75, turned=value, failures=300, frames=600)
                  for name, value in turned.items()},
    )  # fmt: skip


def described_net(folder: Path, name: str) -> str:
    return describes.page_of(folder, name)


def bare_described_net(folder: Path, name: str) -> str:
    """A net without pictures."""
    return describes.page_of(folder, name, pictures=False)


def watched_net(folder: Path, name: str) -> str:
    return detect_poses.page_of(name)


def gain_page(_: Path, name: str) -> str:
    return gains.page_of(name)


PAGES: dict[str, Callable[[Path, str], str]] = {
    page.__name__: page
    for page in (cycles_page, bare_cycles_page, published_page, theory_page, detect_page, bare_detect_page, card,
                 bare_card, card_of_few, gallery_page, bare_gallery_page, field_page, bare_field_page, demo, demo_of_seeds, described_net, bare_described_net,
                 watched_net, gain_page)
}  # fmt: skip
"""Each page with all of its parts, and with as little as it can have."""


class Elements(HTMLParser):
    """Elements with their attributes; fails where tags do not close in the order in which they were opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style", "pre"):
            self.words.append(data.strip())

    def values(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.found if name in attributes]


@pytest.fixture(scope="module", params=PAGES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The name of a page and its HTML, told plain words."""
    return request.param, PAGES[request.param](tmp_path_factory.mktemp("page"), "a name")


def test_a_page_is_well_formed_and_its_references_resolve(made: tuple[str, str]) -> None:
    elements = Elements(made[1])
    ids = elements.values("id")
    targets = [target[1:] for target in elements.values("href") if target.startswith("#")]
    targets += re.findall(r"url\(#([^)]*)\)", made[1])

    assert made[1].startswith("<!doctype html>\n")
    assert len(ids) == len(set(ids))
    assert set(targets) <= set(ids)


def test_a_page_loads_nothing_and_forbids_the_browser_to_load_anything(made: tuple[str, str]) -> None:
    elements = Elements(made[1])
    links = [link for link in elements.values("href") if not link.startswith(("#", "data:image/"))]
    loads = re.findall(r"url\((?!#)[^)]*\)|@import|srcset=|<link", made[1])

    assert loads == []
    assert all(source.startswith("data:image/") for source in elements.values("src"))
    assert not [link for link in links if "://" in link or link.startswith("/")]
    assert "://" not in re.sub(r"<script.*?</script>|<pre.*?</pre>", "", made[1], flags=re.S)
    (policy,) = (a["content"] for _, a in elements.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_a_page_has_a_title_and_a_light_and_a_dark_form(made: tuple[str, str]) -> None:
    page = made[1]
    style = page.split("<style>")[1].split("</style>")[0]

    assert re.search(r"<title>[^<]*\w[^<]*</title>", page)
    assert '<meta name="color-scheme" content="light dark">' in page
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style
    assert "max-width: 640px" in style or "max-width: 760px" in style
    assert set(re.findall(r"var\((--[\w-]+)", page)) <= set(re.findall(r"(--[\w-]+):", page)) | {"--w"}
    assert re.findall(r"#f[de]0\w{3}\b", page) == [], "a placeholder colour was left in a figure"


def test_pictures_have_words_for_those_who_do_not_see_them(made: tuple[str, str]) -> None:
    for tag, attributes in Elements(made[1]).found:
        if tag == "img":
            assert attributes.get("alt")
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label"), attributes


def test_no_undefined_value_is_printed(made: tuple[str, str]) -> None:
    assert not [word for word in Elements(made[1]).words if word.lower() in ("none", "nan", "inf", "undefined", "null")]
    assert not re.search(r'(?<!title)="[^"]*\b(nan|None|undefined)\b', made[1])


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_is_told_stays_text(name: str, tmp_path: Path) -> None:
    page = PAGES[name](tmp_path, HOSTILE)
    elements = Elements(page)
    scripts = [tag for tag, _ in elements.found].count("script")

    assert scripts == (2 if name == "gallery_page" else 2 if name == "bare_gallery_page" else 0)
    assert not [a for tag, a in elements.found if tag == "img" and not a["src"].startswith("data:")]
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]


@pytest.mark.parametrize("name", PAGES)
def test_the_same_input_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    assert PAGES[name](tmp_path, "a name") == PAGES[name](tmp_path, "a name")


def test_pages_of_tools_and_cards_need_no_torch() -> None:
    code = "import sys, alpose.export.card, alpose.tools.gallery, alpose.tools.field.page; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
