"""``alpose-train fit --pose``: what tells the failures of somebody else's net, chosen on people who trained nothing.

Scores that cost nothing are measured first; a head is kept only where it beats the best of them on held-out pictures and
their damaged views, by an interval that excludes 0.

Shapes: N people or views, J joints of the net, L labelled joints.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.crop import body_turn
from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.io import fields_to_json, write_json
from alpose.runtime.skeleton import body_axis

from ..cli_options import default_cache
from ..data.catalog import Sizes
from ..data.crops import Crops, crop_config, prepare
from ..data.records import Bools, Floats, PoseData, join
from ..device import DeviceContext, device_context, environment
from ..fit_data import FitData, Source, open_fit_data
from ..measures.metrics import Failure, fitted_failure
from .evidence import Evidence, collect
from .heads import HEADS, JOINT_HEADS, Detector, HeadKind, free_scores
from .joints import in_skeleton, match_joints
from .learning import Learning, config_of, learn, predict
from .measuring import MAX_EXTRA, OWN, Difference, ForeignFit, Row, Truth, difference, measure, shown, truth_of
from .model import FACTS as MODEL
from .model import ForeignModel, is_foreign, load, save
from .net import ForeignNet, open_net
from .reader import NetReader
from .recognition.recognise import examine
from .recognition.stated import Stated
from .timing import Clock, Cost
from .trial import try_net

log = logging.getLogger("alpose")
Said = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]
"""Predicted loss (N,) and confidences (N, L)."""

FACTS = "fit.json"
FEWEST = 20
"""People with labels, below whom nothing can be learned or held out."""
TRIED = 64
"""People on whom a net is tried before the costly pass."""
VIEWS = 8
"""Damaged views of every person, unless stated otherwise."""
NEARLY = 0.02
"""Of the views that are tried: with a smaller share of failures, or of successes, there is nothing to learn from."""
MOST_VIEWS = 60_000
"""Of all people together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignFitConfig:
    """Which net, on which labels."""

    data: tuple[str, ...]
    """COCO keypoints folders, or datasets by name."""
    pose: Path | None = None
    """The ONNX file; None: that of ``start``."""
    stated: Stated = field(default_factory=Stated)
    """What the user says of the net."""
    start: Path | None = None
    """An earlier model of the same net: its labelled people train again, a new head is made."""
    map_joints: str | None = None
    """Joints of the net and of the labels that belong together, see :func:`~.joints.match_joints`."""
    views: int | None = None
    """Damaged views of every person; None: as many as the model of ``start`` was made from, or else :data:`VIEWS`."""
    heads: tuple[HeadKind, ...] = HEADS
    group_by: str | None = None
    flip_pairs: str | None = None
    failure: Failure | None = None
    """When a pose counts as failed; None: as the model of ``start`` has it, or else :class:`~..measures.metrics.Failure`'s own."""
    hold_out: float = 0.25
    max_extra: float = MAX_EXTRA
    """Share of the net's time that a head may take, in one graph on one thread."""
    old_data: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("--data: name at least one COCO keypoints folder")
        unknown = [name for name in self.heads if name not in HEADS]
        if unknown:
            raise ConfigError(f"--heads: {', '.join(unknown)} unknown for --pose; known: {', '.join(HEADS)}")
        if self.views is not None and not 0 <= self.views <= 64:
            raise ConfigError(f"--views must be 0 to 64, got {self.views}")
        if (self.pose is None) == (self.start is None):
            raise ConfigError("name the net with --pose FILE, or an earlier model of it with --from FOLDER, not both")
        if self.start is not None and (said := self.stated.given()):
            raise ConfigError(
                f"{', '.join(f'--{name}' for name in said)}: with --from the net is described as in {self.start}; leave out, or begin "
                "anew with --pose"
            )

    def views_of(self, old: ForeignModel | None) -> int:
        """Damaged views of every person, before there are too many people."""
        if self.views is not None:
            return self.views
        return int(old.facts.get("views", VIEWS)) if old else VIEWS


@dataclass(frozen=True, slots=True)
class People:
    """Labelled people as a net is shown them, with its evidence."""

    crops: Crops
    """Everybody, also those of whom there is no evidence here."""
    evidence: Evidence

    def of(self, mask_P: Bools) -> People:
        """The views of some of the people, all of them in memory."""
        return People(self.crops, self.evidence.take(np.flatnonzero(mask_P[self.evidence.person_N])))

    def truth(self, failure: Failure) -> Truth:
        """On whom the net failed."""
        return truth_of(self.evidence, failure, self.crops.data.split_names())


def fit_foreign(
    config: ForeignFitConfig, out: Path, machine: DeviceContext, *, data_root: Path | None, cache: Path,
    net: ForeignNet | None = None,
) -> ForeignFit:  # fmt: skip
    """Collect evidence, train heads, measure every detector on held-out people, and write the chosen one with its net.

    An interrupted fit goes on where its pass over the people stopped.

    Args:
        config: what.
        out: folder of the model.
        machine: where to compute.
        data_root: where datasets are that go by a name.
        cache: where crops and evidence are kept.
        net: the net of ``config.pose``, where it is open already.
    """
    if (out / MODEL).exists():
        raise ConfigError(f"{out} holds a model already: choose another --out")
    started = time.perf_counter()
    old = None
    if net is None:
        net, old = open_foreign(config)
    data, joints = open_people(config, net, old, data_root)
    train, held_out = data.train, _held_out(data)
    refuse_too_few(train, held_out)
    views, failure = config.views_of(old), config.failure or fitted_failure(config.start)
    reader = NetReader(net.spec, net.shapes)
    try_out(net, reader, train, joints, machine, cache, failure)
    everybody = join("+".join(dict.fromkeys([train.name, held_out.name])), train, held_out)
    seen = see(net, reader, everybody, joints, machine, cache, views=views_for(views, len(everybody)), seed=config.seed,
               what="evidence")  # fmt: skip
    judges_P = np.isin(seen.crops.data.ids, held_out.ids)
    trained, judged = seen.of(~judges_P), seen.of(judges_P)
    looked = time.perf_counter()
    detectors = all_detectors(config.heads, reader, joints, trained.evidence, machine, seed=config.seed)
    learned = time.perf_counter()
    rows, best_free, chosen, over = choose(detectors, judged, failure, Clock(net, reader), config.max_extra)
    truth = judged.truth(failure)
    clean = truth.part(truth.clean_N)
    result = ForeignFit(
        net=net.spec.name, trained_on={source.name: len(source.train) for source in data.sources},
        held_out=len(clean.rows_N), failures=clean.failures, pck=share_right(judged.evidence, clean), views=len(truth.rows_N),
        view_failures=truth.failures, joints=tuple(net.spec.skeleton.joints[j] for j in joints), rows=rows,
        best_free=best_free, chosen=chosen, over_free=over, failure=failure.label, max_extra=config.max_extra,
        seconds={"evidence": looked - started, "heads": learned - looked, "measures": time.perf_counter() - learned},
    )  # fmt: skip
    facts = {
        "what": "fit --pose",
        "dataset": config.data[-1],
        "datasets": [source.name for source in data.sources],
        "seed": config.seed,
        "failure": asdict(failure),
        "views": views,
        "labelled": int((~judges_P).sum()),
        "map_joints": config.map_joints,
        "labelled_joints": list(result.joints),
        **data.facts(train, np.zeros(len(train), np.bool_),
                     old.facts.get("labelled_ids", ()) if old else ()),
        "chosen": chosen,
        "held_out": fields_to_json(next(row for row in rows if row.name == chosen)),
        "environment": environment(machine),
    }  # fmt: skip
    save(ForeignModel(net.spec, net.path, net.shapes, detectors[chosen], facts), out)
    write_json(out / FACTS, fields_to_json(result))
    return result


def fit_net(
    net: ForeignNet, data: str | Path | Sequence[str | Path], out: str | Path, *, data_root: str | Path | None = None,
    cache: str | Path | None = None, machine: DeviceContext | None = None, **options: Any,
) -> ForeignFit:  # fmt: skip
    """Learn what tells the failures of a net that :func:`alpose.trainer.wrap` opened.

    Args:
        net: stays as it is.
        data: COCO keypoints folders, or datasets by name.
        out: folder of the model, which ``alpose-export`` reads.
        data_root: where datasets are that go by a name; $ALPOSE_DATA by default.
        cache: where crops and evidence are kept; ``~/.cache/alpose`` by default.
        machine: where to compute; by default a GPU where there is one.
        options: other fields of :class:`ForeignFitConfig`: ``views``, ``heads``, ``failure``, ``seed``, …
    """
    names = (data,) if isinstance(data, str | Path) else tuple(data)
    config = ForeignFitConfig(data=tuple(map(str, names)), pose=net.path, **options)
    root = data_root or os.environ.get("ALPOSE_DATA")
    return fit_foreign(config, Path(out), machine or device_context(), data_root=Path(root) if root else None,
                       cache=Path(cache) if cache else default_cache(), net=net)  # fmt: skip


def views_for(views: int, people: int) -> int:
    """Damaged views of each of so many people."""
    return max(1, min(views, MOST_VIEWS // max(people, 1))) if views else 0


def open_foreign(config: ForeignFitConfig) -> tuple[ForeignNet, ForeignModel | None]:
    """The net of a fit, and the model that it goes on from."""
    if config.start is not None:
        if not is_foreign(config.start):
            raise ConfigError(f"--from {config.start}: this is not a model of a foreign net, which fit --pose writes")
        old = load(config.start)
        return open_net(old.net, old.spec), old
    assert config.pose is not None
    found = examine(config.pose, config.stated)
    return open_net(config.pose, found.spec), None


def open_people(
    config: ForeignFitConfig, net: ForeignNet, old: ForeignModel | None, data_root: Path | None
) -> tuple[FitData, tuple[int, ...]]:
    """Labelled people in the net's skeleton, each with one role; and the joints of the net that any of them has."""
    data = open_fit_data(config.data, old, data_root, sizes=Sizes(), old_sizes=Sizes(), hold_out=config.hold_out,
                         old_data=config.old_data, group_by=config.group_by, flip_pairs=config.flip_pairs)  # fmt: skip
    skeleton = net.spec.skeleton
    stated = config.map_joints or (old.facts.get("map_joints") if old else None)

    def rewritten(people: PoseData) -> PoseData:
        return in_skeleton(people, skeleton, match_joints(skeleton, people.skeleton, stated))

    sources = tuple(Source(each.name, rewritten(each.train), rewritten(each.held_out)) for each in data.sources)
    data = FitData(sources, data.history)
    labelled_J = np.asarray(data.train.labelled_NJ.any(axis=0))
    if not labelled_J.any():
        raise DataError(f"{', '.join(config.data)}: no joint of {skeleton.name} is labelled of anybody who trains")
    missing = [name for name, there in zip(skeleton.joints, list(labelled_J), strict=True) if not there]
    if missing:
        log.info("%d of the net's %d joints have no labels and enter no score: %s", len(missing), len(skeleton),
                 ", ".join(missing[:12]) + (" …" if len(missing) > 12 else ""))  # fmt: skip
    return data, tuple(int(j) for j in np.flatnonzero(labelled_J))


def see(
    net: ForeignNet, reader: NetReader, people: PoseData, joints: Sequence[int], machine: DeviceContext, cache: Path, *,
    views: int, seed: int, what: str,
) -> People:  # fmt: skip
    """Cut people as the net wants them and run it over them; crops that turn with the body take two passes.

    The direction of a body is what the net itself says of the upright crop, as on a device: labels would flatter it.
    """
    turn_N = None
    if net.spec.crop.kind == "turned":
        upright = replace(crop_config(net.spec), kind="box")
        turn_N = turns_of(net, reader, prepare(people, upright, cache), machine, cache, f"{what}, upright", len(people))
    crops = prepare(people, crop_config(net.spec, 0.25 if views else 0.0), cache, turn_N=turn_N)
    return People(crops, collect(net, reader, crops, joints, machine, cache, views=views, seed=seed, what=what))


def turns_of(
    net: ForeignNet, reader: NetReader, crops: Crops, machine: DeviceContext, cache: Path, what: str, people: int
) -> Floats:
    """The turn of everybody's body in an upright crop, radians, (N,); NaN where hips or shoulders coincide or nobody was cut."""
    turn_N = np.full(people, np.nan, dtype=np.float32)
    axis = body_axis(net.spec.skeleton)
    if axis is None:
        raise ConfigError(f"{net.spec.name}: crops that turn with the body need hips and shoulders; state --crop box")
    hips, shoulders = (list(joints) for joints in axis)
    seen = collect(net, reader, crops, (*hips, *shoulders), machine, cache, views=0, seed=0, what=what)
    for row, points_42 in zip(crops.row_N, seen.keypoints_NJ2, strict=True):
        turn = body_turn(points_42[: len(hips)], points_42[len(hips) :])
        turn_N[row] = np.nan if turn is None else turn
    return turn_N


def try_out(
    net: ForeignNet, reader: NetReader, people: PoseData, joints: Sequence[int], machine: DeviceContext, cache: Path,
    failure: Failure,
) -> None:  # fmt: skip
    """Refuse a net that fails nearly always, or never, on a few people and damaged views of them: before anything costly.

    Raises:
        DataError: so it is, or nobody can be measured.
    """
    step = max(1, len(people) // TRIED)
    few = people.subset(np.arange(0, len(people), step)[:TRIED])
    seen = see(net, reader, few, joints, machine, cache, views=2, seed=0, what="a first look")
    truth = seen.truth(failure)
    clean = truth.part(truth.clean_N)
    if not len(clean.rows_N):
        raise DataError(f"{people.name}: of {len(few)} people none can be measured: PCK needs both shoulders and hips labelled, "
                        "or a head box; choose another --failure")  # fmt: skip
    count, views = len(clean.rows_N), len(truth.rows_N)
    never, always = not truth.failures, clean.failures == count
    if NEARLY * views < truth.failures < (1 - NEARLY) * views and not always:
        return
    error_N = seen.evidence.error_N[clean.rows_N]
    error_N = error_N[np.isfinite(error_N)]
    middle = float(np.median(error_N)) if len(error_N) else None
    said = (
        f"{net.spec.name} fails on {clean.failures} of {count} labelled people that were tried ({_percent(clean.failures, count)}), "
        f"and on {truth.failures} of {views} views with damaged ones ({_percent(truth.failures, views)}), where a failure is "
        f'"{failure.label}"; its PCK is {shown(share_right(seen.evidence, clean))}, its median error {shown(middle)} of the crop\'s '
        "longer side. What tells failures is learned from failures and successes both"
    )
    if truth.failures < views / 2:
        said += f": bring harder people, or state a stricter failure, {_other_limit(failure, middle, stricter=True)}"
    else:
        said += (
            f". If this net should do better, it is described or fed wrongly: look at it with alpose-train pose describe, and state "
            "--colour, --mean, --std, --crop or --map-joints. If these people are beyond it, state a milder failure, "
            f"{_other_limit(failure, middle, stricter=False)}"
        )
        said += "".join(f". {text}" for text in try_net(net, reader).warnings)
    if never or always:
        raise DataError(said)
    log.warning("%s", said)


def _other_limit(failure: Failure, middle: float | None, *, stricter: bool) -> str:
    """What to state so that more people fail, or fewer, as options."""
    ways = []
    if failure.name == "image-pck":
        ways.append(f"--failure-limit {'above' if stricter else 'below'} {failure.limit}")
    if stricter and failure.name != "any-joint":
        ways.append("--failure any-joint")
    if middle and 0 < middle <= 1:
        ways.append(f"--failure mean-error --failure-limit {middle:.2g}, which half of them exceed")
    return ", or ".join(ways) or "another --failure"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.0f} %"


def all_detectors(
    heads: Sequence[HeadKind], reader: NetReader, joints: tuple[int, ...], evidence: Evidence, machine: DeviceContext, *,
    seed: int,
) -> dict[str, Detector]:  # fmt: skip
    """Every free score, and every head that the net has something for, by name."""
    how, count = Learning(), len(reader.spec.skeleton)
    detectors: dict[str, Detector] = {}
    few = evidence.take(np.arange(0, len(evidence), max(1, len(evidence) // 2000)))
    for name, config in free_scores(reader.facts, joints).items():
        detectors[name] = learn(config, count, few, how, machine, seed=seed)
    for kind in sorted(heads, key=lambda each: each == "epck"):  # which takes two of the others as they are
        if kind != "facts" and not reader.taps:
            log.info("%s reads feature taps, and the spec of this net names none: left out", kind)
            continue
        detectors[kind] = learn(
            config_of(kind, reader, joints), count, evidence, how, machine, seed=seed, parts=detectors
        )
    return detectors


def choose(
    detectors: Mapping[str, Detector], judged: People, failure: Failure,
    clock: Callable[[Mapping[str, Detector]], Mapping[str, Cost]], max_extra: float,
) -> tuple[tuple[Row, ...], str, str, Difference | None]:  # fmt: skip
    """Rows of every detector, the best free score, what is kept, and by how much a head is better.

    Timed by ``clock`` are the best free score and the heads that are better than it; those that take more than ``max_extra`` of
    the net's time are not kept. Without a time nobody is left out.
    """
    truth = judged.truth(failure)
    if not 0 < truth.failures < len(truth.rows_N):
        raise DataError(
            f'{truth.failures} of {len(truth.rows_N)} held-out views fail, where a failure is "{failure.label}": a detector is chosen by '
            "telling failures from successes, so bring more labelled people, or state another --failure or --failure-limit"
        )
    said: dict[str, Said] = {OWN: own_score(judged.evidence)}
    said |= {name: predict(detector, judged.evidence) for name, detector in detectors.items()}
    clean = truth.part(truth.clean_N)

    def row(name: str) -> Row:
        loss_N, confidence_NL = said[name]
        one, few = (measure(loss_N, confidence_NL, judged.evidence, part, probability=name in JOINT_HEADS)
                    for part in (truth, clean))  # fmt: skip
        return Row(name=name, learned=name in HEADS, all=one, clean=few,
                   against_own=difference([loss_N], [said[OWN][0]], truth))  # fmt: skip

    rows = sorted((row(name) for name in said), key=lambda row: -(row.all.auroc or 0.0))
    best_free = next(row.name for row in rows if not row.learned and row.name != OWN)
    over = {row.name: difference([said[row.name][0]], [said[best_free][0]], truth) for row in rows if row.learned}
    better = [name for name, more in over.items() if more.is_better]
    found = clock({name: detectors[name] for name in (best_free, *better)})
    extra = {name: cost.share for name, cost in found.items()}
    timed = tuple(replace(row, extra=extra.get(row.name)) for row in rows)
    chosen = _preferred([name for name in better if extra.get(name, 0.0) <= max_extra], said, truth)
    return timed, best_free, chosen or best_free, over[chosen] if chosen else None


def _preferred(heads: Sequence[str], said: Mapping[str, Said], truth: Truth) -> str | None:
    """The first of some heads, best first, in the order of :data:`~.heads.HEADS` that is not worse than the best of them beyond
    chance; None of none."""
    return next((
        name for name in HEADS
        if name in heads and (name == heads[0] or not difference([said[heads[0]][0]], [said[name][0]], truth).is_better)
    ), None)  # fmt: skip


def own_score(evidence: Evidence) -> Said:
    """The net's own score as a loss (N,); and of the labelled joints as confidences."""
    return -np.asarray(evidence.own_N, np.float32), np.asarray(evidence.scores_NJ, np.float32)


def _held_out(data: FitData) -> PoseData:
    parts = [source.held_out for source in data.sources if len(source.held_out)]
    if not parts:
        raise ConfigError("nobody is held out: every picture trains; bring more people with --data")
    return parts[0] if len(parts) == 1 else join("+".join(part.name for part in parts), *parts)


def refuse_too_few(train: PoseData, held_out: PoseData) -> None:
    """Refuse to learn from a handful of people."""
    people = len(train) + len(held_out)
    if people < FEWEST or len(train) < 2 or len(held_out) < 2:
        raise DataError(
            f"{people} labelled people ({len(train)} to train, {len(held_out)} held out) are too few to learn from and to judge "
            f"by: label at least {FEWEST}, some hundred are better"
        )


def share_right(evidence: Evidence, truth: Truth) -> float | None:
    """PCK over all their joints that count; None without any."""
    counts = evidence.counts_NJ[truth.rows_N]
    return float((evidence.distance_NJ[truth.rows_N][counts] < 1).mean()) if counts.any() else None
