"""The experiment end to end on a handful of synthetic people: what it stores, and what may have a say in it."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result

from alpose.runtime.errors import ConfigError, DataError
from alpose.trainer.cli import main
from alpose.trainer.cycles.run import RunConfig
from alpose.trainer.data.crops import Crops
from alpose.trainer.detect import ablations, costs, experiment
from alpose.trainer.detect.candidates import CANDIDATES
from alpose.trainer.detect.costs import has_costs
from alpose.trainer.detect.experiment import DetectConfig, _costs, _pool, _probabilities, run_detect
from alpose.trainer.detect.scoring import ScoredViews
from alpose.trainer.detect.stored import Catalogue, SetScores, infos
from alpose.trainer.device import DeviceContext, device_context
from alpose.trainer.epck import EpckTraining
from alpose.trainer.measures.metrics import Failure
from alpose.trainer.methods.catalog import DETECTORS

NAMES = tuple(DETECTORS)
OF_OTHER_NETS = tuple(name for name, detector in DETECTORS.items() if detector.other_nets)

SETS = ("synthetic-test", "synthetic-hard", "synthetic-choice")
SHORT = EpckTraining(views=2, epochs=2)
Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def cpu() -> DeviceContext:
    return device_context("cpu", "fp32")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def no_clock(_model: object, names: tuple[str, ...], _machine: DeviceContext) -> dict[str, Any]:
    return {"pose_ms": 2.0, "detectors": {name: [5, 0.5, 0.25] for name in has_costs(names)}}


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    """Everything once or twice in place of dozens of times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "SYNTHETIC_PEOPLE", 16)
        patch.setattr(experiment, "CALIBRATION_VIEWS", 2)
        patch.setattr(ablations, "CEILING_VIEWS", 1)
        patch.setattr(ablations, "FOLD_EPOCHS", 2)
        patch.setattr(ablations, "CROSS_VIEWS", 1)
        patch.setattr(experiment, "measure_costs", no_clock)  # a graph for each head takes longer than all the rest
        patch.setattr(costs, "ROUNDS", 2)
        patch.setattr(costs, "CALLS", 1)
        patch.setattr("alpose.trainer.epck.EpckTraining", lambda: SHORT)  # of the command
        yield


@pytest.fixture(scope="module")
def command(cache: Path) -> Callable[..., Result]:
    def call(folder: Path, *words: str) -> Result:
        words = ("detect", "--dataset", "synthetic", "--preset", "smoke", "--out", str(folder), *words)
        return CliRunner().invoke(main, [*words, "--cache", str(cache), "--device", "cpu", "--precision", "fp32"])

    return call


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., Result]) -> Path:
    """Two seeds of everything, by the command."""
    folder = tmp_path_factory.mktemp("detect")
    result = command(folder, "--seeds", "2")
    assert result.exit_code == 0, result.output
    assert "report:" in result.output
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def config(seeds: int = 2, detectors: tuple[str, ...] = NAMES, **changes: Any) -> DetectConfig:
    base = RunConfig.from_preset("smoke", "synthetic", methods=("random",), seeds=seeds, budget=1, select_only=True)
    return DetectConfig(base=base, epck=changes.get("epck", SHORT), detectors=detectors)


def arrays(folder: Path, seed: int, name: str) -> Arrays:
    with np.load(folder / f"seed-{seed}" / f"{name}.npz", allow_pickle=False) as found:
        return dict(found)


def differing(one: Arrays, other: Arrays) -> set[str]:
    equal = {key for key in one if key in other and one[key].dtype == other[key].dtype and (
        np.array_equal(one[key], other[key], equal_nan=one[key].dtype.kind == "f"))}  # fmt: skip
    return (set(one) | set(other)) - equal


# --- What a run leaves


def test_every_detector_scores_everybody(run: Path) -> None:
    catalogue = Catalogue.load(run)

    assert tuple(detector.name for detector in catalogue.detectors) == NAMES
    assert tuple(info.name for info in catalogue.sets) == SETS
    assert catalogue.looks == {"synthetic-test": 1, "synthetic-hard": 1}  # not of the set that choices were made on
    assert (run / "detect.json").exists()
    assert (run / "detect.html").exists()
    for name in SETS:
        one, two = (SetScores.load(run, seed, name) for seed in (0, 1))
        assert one.ids == two.ids
        assert len(set(one.ids)) == len(one.ids) == {"synthetic-test": 24, "synthetic-hard": 32}.get(name, 16)
        np.testing.assert_array_equal(one.labelled_NJ, two.labelled_NJ)
        assert set(one.scores) == set(NAMES) - ({"in-domain"} if name == "synthetic-choice" else set())
        for stored in (one, two):
            for detector, score_N in stored.scores.items():
                if detector != "true-loss":
                    assert ((score_N >= 0) & (score_N <= 1)).all(), detector
            np.testing.assert_array_equal(stored.scores["true-loss"], stored.true_loss_N)


def test_those_that_know_joints_say_how_probably_each_is_right(run: Path) -> None:
    """Heads that learn joints, and what reads a map of each joint; no others."""
    stored = SetScores.load(run, 0, "synthetic-hard")

    assert set(stored.confidences) == {name for name in NAMES if name.startswith("epck") and "+" not in name} - {*CANDIDATES} | {
        "peak", "stacks", "flip", "auditor", "committee"}  # fmt: skip
    for name, confidence_NJ in stored.confidences.items():
        assert ((confidence_NJ >= 0) & (confidence_NJ <= 1)).all(), name
    assert "AUROC of a wrong joint" in (run / "detect.html").read_text()
    assert stored.oks_N is not None
    oks_N = stored.oks_N[stored.counted_N]
    assert ((oks_N >= 0) & (oks_N <= 1)).all()
    assert oks_N.std() > 0
    assert "Correlation with OKS" in (run / "detect.html").read_text()


def test_base_models_differ_and_so_do_their_scores(run: Path) -> None:
    for name in SETS:
        changed = differing(arrays(run, 0, name), arrays(run, 1, name))
        assert {"score.peak", "score.epck", "score.auditor", "true_loss_N"} <= changed
        assert not {"ids", "labelled_NJ"} & changed


def test_variants_are_not_the_shipped_head_again(run: Path) -> None:
    scores = SetScores.load(run, 0, "synthetic-choice").scores
    for detector in NAMES:
        if detector.startswith("epck-"):
            assert not np.array_equal(scores[detector], scores["epck"]), detector
    assert not np.array_equal(scores["ll++conv-damaged"], scores["ll++conv"])
    # With two seeds the committee is the auditor.
    np.testing.assert_array_equal(scores["committee"], scores["auditor"])


def test_costs_stand_in_the_catalogue(run: Path) -> None:
    for detector in Catalogue.load(run).detectors:
        expected = (5, 0.5, 0.25) if detector.name in has_costs(NAMES) else (None, None, None)
        assert (detector.parameters, detector.latency_ms, detector.latency_share) == expected


# --- Going on


def test_a_seed_whose_file_was_lost_comes_back_bit_for_bit(
    copy: Path, run: Path, command: Callable[..., Result]
) -> None:
    (copy / "seed-0" / "synthetic-hard.npz").unlink()
    bases = [copy / f"seed-{seed}" / "base" / "model.safetensors" for seed in (0, 1)]
    untouched = [copy / "seed-1" / f"{name}.npz" for name in SETS] + [copy / "costs.json"] + bases
    times = [path.stat().st_mtime_ns for path in untouched]
    result = command(copy, "--seeds", "2")

    assert result.exit_code == 0, result.output
    assert [path.stat().st_mtime_ns for path in untouched] == times
    for name in SETS:
        assert differing(arrays(copy, 0, name), arrays(run, 0, name)) == set()


def test_one_seed_leaves_out_who_wants_another_net(
    copy: Path, cache: Path, cpu: DeviceContext, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "alpose"):
        catalogue = run_detect(config(seeds=1), copy, cpu, data_root=None, cache=cache)

    assert {detector.name for detector in catalogue.detectors} == set(NAMES) - set(OF_OTHER_NETS)
    assert f"{', '.join(name for name in NAMES if name in OF_OTHER_NETS)} want another seed's net" in caplog.text
    assert catalogue.seeds == (0,)


def test_scores_of_other_people_are_made_again(copy: Path, cache: Path, cpu: DeviceContext) -> None:
    stored = SetScores.load(copy, 0, "synthetic-test")
    replace(stored, ids=tuple(reversed(stored.ids))).save(copy, 0, "synthetic-test")
    run_detect(config(seeds=1, detectors=("peak",)), copy, cpu, data_root=None, cache=cache)

    assert SetScores.load(copy, 0, "synthetic-test").ids == stored.ids


# --- Refusals


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda: config(epck=replace(SHORT, views=3)), "another run .of expected-PCK heads trained"),
        (lambda: config(seeds=3), "another run .*'seeds': 2.*, now 3.*--bases"),
        (lambda: replace(config(), base=replace(config().base, initial=31)), "another run .initial was 32, now 31"),
    ],
    ids=["heads", "committee", "base"],
)
def test_a_folder_of_another_run_is_refused(
    changed: Callable[[], DetectConfig], message: str, copy: Path, cache: Path, cpu: DeviceContext
) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=message):
        run_detect(changed(), copy, cpu, data_root=None, cache=cache)

    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("detectors", "message"),
    [("peak,oracel", "--detectors: oracel unknown; known: peak, entropy"), ("peak,peak", "each once, got peak, peak"),
     (",", "name at least one"), ("auditor", "auditor: they want another seed's net, run with --seeds 2")],
)  # fmt: skip
def test_detectors_that_cannot_be_are_refused_before_anything_is_done(
    detectors: str, message: str, tmp_path: Path, command: Callable[..., Result]
) -> None:
    result = command(tmp_path / "new", "--detectors", detectors)

    assert result.exit_code != 0
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "new").exists()


# --- Who may have a say


def test_labels_of_the_pool_are_for_the_ceiling_alone(
    run: Path, tmp_path: Path, cache: Path, cpu: DeviceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labels of the half that may be seen are made up anew: nothing changes but the ceiling of the pool.

    The pictures of the half that is reported become negatives: nothing changes on other sets.
    """
    wanted = ("peak", "ll++conv-damaged", "epck", "epck-unfitted", "epck-out-of-fold", "epck-distilled", "epck+free",
              "epck+auditor", "in-domain")  # fmt: skip

    def scrambled(people: Crops, *, pictures: bool = False) -> Crops:
        if pictures:
            return replace(people, pixels_NTS3=255 - people.pixels_NTS3)
        rng = np.random.default_rng(0)
        labelled_NJ = rng.uniform(size=people.labelled_NJ.shape) < 0.8
        data = replace(people.data, joints_NJ2=rng.permutation(people.data.joints_NJ2), labelled_NJ=labelled_NJ,
                       visible_NJ=labelled_NJ)  # fmt: skip
        return replace(people, data=data, joints_NJ2=rng.permutation(people.joints_NJ2))

    def other(name: str, pool: Callable[..., Crops]) -> Path:
        monkeypatch.setattr(experiment, "_pool", pool)
        folder = tmp_path / name
        run_detect(config(detectors=wanted), folder, cpu, data_root=None, cache=cache, bases=run)
        return folder

    labels = other("labels", lambda run, half: scrambled(_pool(run, half)) if half == 0 else _pool(run, half))
    pictures = other("pictures", lambda run, half: scrambled(_pool(run, half), pictures=half == 1))
    for seed in (0, 1):
        for name in SETS:
            theirs = {key: value for key, value in arrays(run, seed, name).items()
                      if not key.startswith(("score.", "joint.")) or key.partition(".")[2] in wanted}  # fmt: skip
            ceiling = {"score.in-domain"} if name == "synthetic-hard" else set()
            assert differing(arrays(labels, seed, name), theirs) == ceiling
            changed = differing(arrays(pictures, seed, name), theirs)
            assert ({"score.peak", "score.epck"} <= changed) if ceiling else not changed


def test_halves_of_a_pool_share_no_picture_with_each_other_or_with_who_is_labelled() -> None:
    """Where seeds label other people and pictures hold several: one set of people for all of them."""
    image_N = np.repeat(np.arange(40), 3)[np.random.default_rng(0).permutation(120)]

    def initial(_rows: object, count: int, seed: int) -> npt.NDArray[np.bool_]:
        return np.isin(np.arange(120), np.random.default_rng(seed).permutation(120)[:count])

    def subset(rows_M: npt.NDArray[np.int64]) -> list[int]:
        return rows_M.tolist()

    people = SimpleNamespace(data=SimpleNamespace(image_N=image_N), row_N=np.arange(120), subset=subset)
    benchmark = SimpleNamespace(name="many", initial=initial)
    config = SimpleNamespace(seeds=2, initial=8)
    one: Any = SimpleNamespace(
        people=people, benchmark=benchmark, config=config, initial=lambda seed: initial(None, config.initial, seed)
    )
    halves: Any = [_pool(one, half) for half in (0, 1)]
    pictures = [set(image_N[half].tolist()) for half in halves]
    labelled = {int(image) for seed in (0, 1) for image in image_N[initial(None, 8, seed)]}

    assert not pictures[0] & pictures[1]
    assert pictures[0] | pictures[1] == set(range(40)) - labelled
    assert len(pictures[0]) - len(pictures[1]) in (0, 1)

    one.config.initial = 100
    with pytest.raises(ConfigError, match="many: 40 pictures are too few"):
        _pool(one, 1)


def test_the_pool_of_one_person_a_picture_is_every_other_person(run: Path) -> None:
    ids = SetScores.load(run, 0, "synthetic-hard").ids

    assert ids == tuple(f"synthetic-hard/0-{index:05d}" for index in range(1, 64, 2))


def test_a_score_that_is_no_number_is_an_error_that_names_its_detector() -> None:
    people = 6
    right_NJ = np.random.default_rng(0).uniform(size=(people, 3)) < 0.5
    counts_NJ = np.ones((people, 3), dtype=np.bool_)
    counts_NJ[2] = False  # who cannot be measured calibrates nothing
    scores = {name: np.linspace(0, 1, people, dtype=np.float32) for name in ("peak", "entropy", "epck")}
    scores["entropy"][2] = np.nan
    view = ScoredViews(np.arange(people), right_NJ, counts_NJ, np.zeros(people, dtype=np.float32),
                       np.zeros((people, 3), dtype=np.float32), scores, None)  # fmt: skip

    found = _probabilities(view, ("peak", "entropy", "epck+free", "epck+auditor", "in-domain"), Failure())
    assert list(found) == ["peak", "entropy", "epck+free"]
    scores["entropy"][1] = np.inf
    with pytest.raises(DataError, match=r"entropy, on the 5 views of people who validated.*finite"):
        _probabilities(view, ("peak", "entropy"), Failure())


# --- Costs


@pytest.fixture
def tiny(make_model: Callable[..., Any]) -> Any:
    return make_model(stacks=1, depth=2)


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx"])
def test_without_onnx_runtime_times_are_not_measured_and_that_is_said(
    missing: str, tiny: Any, cpu: DeviceContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    real = importlib.util.find_spec
    monkeypatch.setattr(experiment, "measure_costs", costs.measure_costs)
    monkeypatch.setattr(costs, "find_spec", lambda name: None if name == missing else real(name))
    run: Any = SimpleNamespace(folder=tmp_path, machine=cpu)
    with caplog.at_level(logging.WARNING, "alpose"):
        found = _costs(run, ("epck", "flip", "peak"), tiny)

    assert f"not measured: {missing} is not installed" in caplog.text
    assert found["epck"][0] > 0
    assert found["epck"][1:] == (None, None)
    assert found["flip"] == (0, None, 1.0)
    assert [each.latency_ms for each in infos(("epck", "flip", "peak"), found)] == [None, None, None]
    assert not (tmp_path / "costs.json").exists()  # the next call may have it


def test_costs_are_measured_once_and_again_for_who_was_not_there(
    tiny: Any, cpu: DeviceContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "measure_costs", costs.measure_costs)
    run: Any = SimpleNamespace(folder=tmp_path, machine=cpu)
    assert _costs(run, ("peak",), tiny) == {}
    before = {key: value.clone() for key, value in tiny.pose.state_dict().items()}
    first = _costs(run, ("peak", "epck-slim", "flip"), tiny)
    written = (tmp_path / "costs.json").read_bytes()
    parameters, latency_ms, share = first["epck-slim"]

    # Two peaks of three joints to 32 units to three logits.
    assert parameters == (6 * 32 + 32) + (32 * 3 + 3)
    assert latency_ms is not None
    assert share is not None
    assert min(latency_ms, share) >= 0
    assert first["flip"] == (0, json.loads(written)["pose_ms"], 1.0)
    assert list(json.loads(written)["quartiles_ms"]) == ["epck-slim"]
    assert _costs(run, ("epck-slim",), tiny) == first
    assert (tmp_path / "costs.json").read_bytes() == written
    assert set(_costs(run, ("auditor",), tiny)) == {"auditor"}
    assert all(value.equal(before[key]) for key, value in tiny.pose.state_dict().items())
    assert tiny.pose.training
