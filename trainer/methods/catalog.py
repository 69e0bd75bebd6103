"""The one list of selection methods, of the heads that they rank by, and of the failure detectors that are compared.

The command line, the benchmark, ``detect``, the report pages, the export and the tests all read it. It imports no torch:
code is named as ``module:function``, and imported when it is first used. To add a method, write one file and register
one :class:`Method`; ``docs/extending.md`` shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Literal

from alpose.runtime.errors import ConfigError

Lazy = str | Callable[..., Any]
"""A function or class, or where to import it from as ``module:name``; modules of the trainer may begin with a dot."""

HeadGroup = Literal["loss", "auxiliary"]
Truth = Literal["loss", "pck"]
DetectorKind = Literal["shipped", "slim", "free", "paper", "candidate", "costed", "ceiling", "oracle"]

RANDOM = "random"


def resolve(target: Lazy | None) -> Any:
    """Import what a catalog entry names; ConfigError where the entry does not name anything."""
    if target is None:
        raise ConfigError("the catalog entry of this method or head does not say how to do that")
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    return getattr(import_module(f"alpose.trainer{module}" if module.startswith(".") else module), name)


@dataclass(frozen=True, slots=True)
class Look:
    """How one method is drawn in all figures, and what it is in the tables.

    Colours are Okabe and Ito's (2008), darkened for white paper and lightened for a dark screen; dash and marker tell the
    lines apart without colour.
    """

    light: str
    """Colour on white paper."""
    dark: str
    """Colour on a dark screen."""
    dash: tuple[float, ...] = ()
    """Lengths on and off in units of the line width; empty is a solid line."""
    marker: str = "o"
    """matplotlib's name."""
    meaning: str = ""
    """A few words."""


@dataclass(frozen=True, slots=True)
class Head:
    """A small network on the features of a frozen pose net, by whose output a method ranks people."""

    module: Lazy
    """A class that takes the head's config, a ``LossHead`` or an ``AuxiliaryHead``."""
    loss: Lazy | None = None
    """The training objective: (head, ``HeadBatch``) to a loss. None for a head with a training procedure of its own."""
    _: KW_ONLY
    train: Lazy | None = None
    """That procedure, with the arguments and the result of :func:`alpose.trainer.training.train_heads`."""
    score: Lazy | None = None
    """Of an auxiliary head: (head, features, heatmaps, options) to scores (B,). A loss head's output is its score."""
    group: HeadGroup = "loss"
    reads_maps: bool = False
    """Whether a loss head reads heatmaps besides features, so that its config needs their joints and peak."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of its config that differ from the default."""


@dataclass(frozen=True, slots=True)
class Method:
    """A selection method: exactly one of ``score``, ``choose``, ``head`` and ``of_maps`` says how it ranks people."""

    name: str
    look: Look
    _: KW_ONLY
    score: Lazy | None = None
    """From a ``Pool`` to one score for each of its people; the highest scores are chosen."""
    choose: Lazy | None = None
    """From a ``Pool`` and a number k to a ``Selection``, for methods that choose people jointly."""
    head: Head | None = None
    """The head of the same name, by which the method ranks."""
    of_maps: Lazy | None = None
    """From heatmaps (B, J, H, W) of a training peak of 30 to scores (B,), computed when the pool is scored."""
    prepare: Lazy | None = None
    """Called with ``PoolImages`` before a selection, untimed: what has to be trained first."""
    check: Lazy | None = None
    """Called with the name, the run and the mask of initially labelled people; refuses what cannot work."""
    reads_images: bool = False
    """Whether it looks at the pool's pictures again, so that its time counts as scoring time."""
    fewest_labelled: int = 0
    """People who must be labelled before it can select."""
    truth: Truth | None = None
    """For an oracle, the truth by which it selects: a ceiling, not a competitor."""
    default: bool = False
    """Whether a benchmark runs it unless told otherwise."""

    def __post_init__(self) -> None:
        ways = [way for way in ("score", "choose", "head", "of_maps") if getattr(self, way) is not None]
        if len(ways) != 1:
            raise ConfigError(f"method {self.name!r} must rank in exactly one way (score, choose, head or of_maps), "
                              f"got {', '.join(ways) or 'none'}")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Detector:
    """A failure detector that ``alpose-train detect`` compares with the others."""

    name: str
    kind: DetectorKind
    what: str = ""
    """One sentence; by default what the method of this name means."""
    _: KW_ONLY
    ablates: str | None = None
    """The detector of which this is a form with one thing changed."""
    parts: tuple[str, ...] = ()
    """Of a fusion, the detectors that it combines."""
    other_nets: bool = False
    """Whether it needs the base model of another seed."""


METHODS: dict[str, Method] = {}
DETECTORS: dict[str, Detector] = {}


def register(method: Method) -> Method:
    """Add a method to the catalog; its name must be new."""
    if method.name in METHODS:
        raise ConfigError(f"a method named {method.name!r} is registered already")
    METHODS[method.name] = method
    return method


def heads_of(group: HeadGroup) -> tuple[str, ...]:
    """Names of the heads of a group."""
    return tuple(name for name, method in METHODS.items() if method.head and method.head.group == group)


def head_named(name: str) -> Head:
    """The head of a name; ConfigError where there is none."""
    if name not in METHODS or METHODS[name].head is None:
        raise ConfigError(f"unknown head {name!r}; known: {', '.join((*heads_of('loss'), *heads_of('auxiliary')))}")
    head = METHODS[name].head
    assert head is not None
    return head


def trained_with(loss: Lazy) -> tuple[str, ...]:
    """Names of the heads that learn by this objective."""
    return tuple(name for name, method in METHODS.items() if method.head and method.head.loss == loss)


def heads_for(methods: Iterable[str]) -> tuple[str, ...]:
    """The heads that these methods rank by."""
    return tuple(name for name in methods if METHODS[name].head)


def maps_for(methods: Iterable[str]) -> tuple[str, ...]:
    """Those of these methods whose scores are computed from the heatmaps when a pool is scored."""
    wanted = set(methods)
    return tuple(name for name, method in METHODS.items() if method.of_maps and name in wanted)


def is_oracle(method: str) -> bool:
    """Whether a method selects with the true labels."""
    return method in METHODS and METHODS[method].truth is not None


def is_scorer(method: str) -> bool:
    """Whether a method has to find failures by itself: neither random nor an oracle."""
    return method != RANDOM and not is_oracle(method)


def check_known(methods: Sequence[str]) -> None:
    """Refuse names that are not methods, with those that may have been meant."""
    if not methods:
        raise ConfigError(f"--methods names none; known: {', '.join(METHODS)}")
    unknown = [_unknown(name) for name in methods if name not in METHODS]
    if unknown:
        raise ConfigError(f"--methods: {'; '.join(unknown)}. Known: {', '.join(METHODS)}")


def _unknown(name: str) -> str:
    if name == "mc-dropout":
        return "there is no mc-dropout: it runs a net again with other units dropped, and no net here has dropout"
    near = [known for known in METHODS if name.lower() in known] or get_close_matches(name.lower(), METHODS, n=2)
    return f"{name!r} is not a method" + (f" (did you mean {' or '.join(near[:2])}?)" if near and name else "")


def check_labelled(methods: Sequence[str], labelled: int) -> None:
    """Refuse methods that need more labelled people than there are at the start."""
    for method in methods:
        if labelled < METHODS[method].fewest_labelled:
            raise ConfigError(
                f"{method} needs at least {METHODS[method].fewest_labelled} labelled people, there are {labelled} at "
                "the start: raise --initial, or leave it out of --methods"
            )


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct methods as the tables list them: known ones, then new ones as they came, then oracles."""
    distinct = dict.fromkeys(names)
    known = [name for name in METHODS if name in distinct and not is_oracle(name)]
    new = [name for name in distinct if name not in METHODS]
    return (*known, *new, *(name for name in METHODS if name in distinct and is_oracle(name)))


SPARE_LOOKS = (
    Look("#7a6a00", "#d6c84a", (3, 1), "<"),
    Look("#8a1f3c", "#f07f99", (3, 1), ">"),
    Look("#2f6f73", "#7fd0d4", (3, 1), "d"),
    Look("#5a5aa8", "#a9a9f5", (3, 1), "*"),
)
"""For methods in result files that this catalog does not know."""


def looks(methods: tuple[str, ...]) -> dict[str, Look]:
    """A look for each method; unknown ones take the spare looks in turn."""
    new = [name for name in methods if name not in METHODS]
    spare = {name: SPARE_LOOKS[place % len(SPARE_LOOKS)] for place, name in enumerate(new)}
    return {name: METHODS[name].look if name in METHODS else spare[name] for name in methods}


# --- The methods

MARGIN_LOSS, KL_LOSS = ".objectives:margin_loss", ".objectives:kl_loss"
"""Objectives of the heads that learn from pairs: Learning Loss, and LearningLoss++."""

_SELECTION, _EGL, _GAUSSIAN, _COMMITTEE = (
    f".methods.{name}:" for name in ("selection", "egl", "gaussian_heads", "committee")
)
_CHECK_LINKS = ".models.auxiliary:check_links"
_HEADS = ".models.heads:"
_EPCK = Head(".models.expected_pck:ExpectedPckHead", train=".epck:train_epck", reads_maps=True)
_ALEATORIC = Head(
    f"{_GAUSSIAN}AleatoricHead", f"{_GAUSSIAN}aleatoric_objective", score=f"{_GAUSSIAN}score", group="auxiliary"
)
_VL4POSE = Head(f"{_GAUSSIAN}LinkHead", f"{_GAUSSIAN}link_objective", score=f"{_GAUSSIAN}score", group="auxiliary")
_ENSEMBLE = Head(f"{_COMMITTEE}HeadCommittee", f"{_COMMITTEE}objective", score=f"{_COMMITTEE}score", group="auxiliary")

for _method in (
    Method(RANDOM, Look("#737b86", "#98a3b3", (4, 2), "x", "drawn uniformly from the pool"),
           score=f"{_SELECTION}random_scores", default=True),
    Method("coreset", Look("#b97a00", "#f0b23c", (), "s", "k-centre greedy: far from all that is labelled"),
           choose=".methods.coreset:choose", fewest_labelled=1, default=True),
    Method("entropy", Look("#2a8cc4", "#6cc3f2", (), "^", "entropy of the heatmaps"),
           score=f"{_SELECTION}entropy_scores", default=True),
    Method("multipeak", Look("#00835f", "#2cc699", (), "v", "entropy over the peaks of the heatmaps"),
           score=f"{_SELECTION}multipeak_scores", default=True),
    Method("multipeak-2021", Look("#00835f", "#2cc699", (2, 2), "v", "the same, by the code published with LearningLoss++"),
           of_maps=".heatmaps:multipeak_2021"),
    Method("multipeak-2022", Look("#00835f", "#2cc699", (5, 1.5), "v", "the same, by the published code's last release"),
           of_maps=".heatmaps:multipeak_2022"),
    Method("epck", Look("#b3261e", "#ff7b72", (), "H", "expected PCK: a head that says of each joint whether it is right"),
           head=_EPCK, default=True),
    Method("epck-slim", Look("#b3261e", "#ff7b72", (2, 2), "H", "the same, from the heights of the peaks alone"),
           head=replace(_EPCK, options={"evidence": "peaks"})),
    Method("ll", Look("#b8478a", "#ee9bc9", (), "D", "Learning Loss: a head that ranks pairs, with a margin"),
           head=Head(f"{_HEADS}MultiScaleGapHead", MARGIN_LOSS), default=True),
    Method("ll-gap", Look("#6a45a8", "#b49cf0", (6, 1.5), "P", "Learning Loss on globally averaged features"),
           head=Head(f"{_HEADS}GapHead", MARGIN_LOSS)),
    Method("ll++", Look("#00569c", "#5aa4f5", (), "o", "LearningLoss++: a head with the KL objective"),
           head=Head(f"{_HEADS}GapHead", KL_LOSS), default=True),
    Method("ll++conv", Look("#c44a00", "#ff8a4a", (), "h", "LearningLoss++ with the convolutional head"),
           head=Head(f"{_HEADS}ConvHead", KL_LOSS), default=True),
    Method("ll++conv-gap", Look("#c44a00", "#ff8a4a", (2, 2), "h", "the same, ending in an average as the paper writes"),
           head=Head(f"{_HEADS}ConvHead", KL_LOSS, options={"ending": "gap"})),
    Method("egl++", Look("#7a3b12", "#d99b6c", (), "p", "EGL++: expected gradient if the labels were a neighbour's"),
           score=f"{_EGL}tsne_scores", check=f"{_EGL}check", reads_images=True),
    Method("egl++-lle", Look("#7a3b12", "#d99b6c", (2, 2), "p", "EGL++ with neighbours by locally linear embedding"),
           score=f"{_EGL}lle_scores", check=f"{_EGL}check", reads_images=True),
    Method("aleatoric", Look("#2f6f73", "#7fd0d4", (), "d", "a head that predicts how far off each joint is"), head=_ALEATORIC),
    Method("aleatoric-official", Look("#2f6f73", "#7fd0d4", (2, 2), "d", "the same, by the published code's formula"),
           head=_ALEATORIC),
    Method("vl4pose", Look("#8a1f3c", "#f07f99", (), ">", "VL4Pose: how unlikely the limbs' lengths are"),
           head=_VL4POSE, check=_CHECK_LINKS),
    Method("vl4pose-official", Look("#8a1f3c", "#f07f99", (2, 2), ">", "the same, by the published code's formula"),
           head=_VL4POSE, check=_CHECK_LINKS),
    Method("ensemble", Look("#7a6a00", "#d6c84a", (), "*", "query by committee: heads that disagree about the heatmaps"),
           head=_ENSEMBLE),
    Method("ensemble-nets", Look("#7a6a00", "#d6c84a", (2, 2), "*", "query by committee: whole nets of other seeds"),
           score=f"{_COMMITTEE}net_scores", prepare=f"{_COMMITTEE}train_members", reads_images=True),
    Method("oracle-loss", Look("#1c2430", "#eef2f7", (1, 1.5), "1", "picks by the true loss: needs labels"),
           score=f"{_SELECTION}true_losses", truth="loss", default=True),
    Method("oracle-pck", Look("#1c2430", "#eef2f7", (5, 1.5, 1, 1.5), "2", "picks by the true PCK: needs labels"),
           score=f"{_SELECTION}true_pck", truth="pck", default=True),
):  # fmt: skip
    register(_method)

# --- The detectors

SHIPPED, SLIM = "epck", "epck-slim"

DETECTORS |= {detector.name: detector for detector in (
    Detector("peak", "free", "one minus the mean height of the last heatmaps' peaks"),
    Detector("entropy", "free"),
    Detector("multipeak", "free"),
    Detector("stacks", "free", "how little the first stack's maps hold where the last ones look"),
    Detector("ll", "paper"),
    Detector("ll++", "paper"),
    Detector("ll++conv", "paper"),
    Detector("aleatoric", "paper"),
    Detector("vl4pose", "paper"),
    Detector("ensemble", "paper"),
    Detector("ll++conv-damaged", "candidate", "the convolutional head, trained on damaged views and all pairs of a batch",
             ablates="ll++conv"),
    Detector(SHIPPED, "shipped"),
    Detector(SLIM, "slim", ablates=SHIPPED),
    Detector("epck-maps", "candidate", "without the features: heatmaps alone", ablates=SHIPPED),
    Detector("epck-pose", "candidate", "reading besides how the joints lie to each other: lengths, angles and sides",
             ablates=SHIPPED),
    Detector("epck-slim-pose", "candidate", "the slim form, reading besides how the highest cells of all joints lie to each "
             "other", ablates=SLIM),
    Detector("epck-mild", "candidate", "trained on the views of the papers' heads in place of damaged ones", ablates=SHIPPED),
    Detector("epck-image", "candidate", "every joint taught by the image's share of right joints in place of its own truth",
             ablates=SHIPPED),
    Detector("epck-unfitted", "candidate", "trained also on the people who only validated the pose net", ablates=SHIPPED),
    Detector("epck-out-of-fold", "candidate", "trained also on what copies of the pose net, trained on without them, make of "
             "people", ablates=SHIPPED),
    Detector("epck-distilled", "candidate", "trained also on unlabelled people of the pool, by what the committee makes of "
             "them", ablates=SHIPPED, other_nets=True),
    Detector("epck-partner", "candidate", "reading besides what maps and features hold at the mirror partner's place, and both "
             "exchanged", ablates=SHIPPED),
    Detector("epck-errors", "candidate", "trained also on made-up errors, as often as measured: jitter, inversion, swap and "
             "miss, after PoseFix", ablates=SHIPPED),
    Detector("epck-facing", "candidate", "reading besides front or back, learned from the two coarsest scales", ablates=SHIPPED),
    Detector("epck-coarse", "candidate", "reading besides the averages of the two coarsest scales", ablates=SHIPPED),
    Detector("epck-pixels", "candidate", "with a shallow branch of its own on the picture at 32 pixels", ablates=SHIPPED),
    Detector("epck-skeleton", "candidate", "reading besides how likely the pose and its exchanged forms are, by a mixture of 12 "
             "Gaussians", ablates=SHIPPED),
    Detector("epck-mass", "candidate", "reading besides the share of the map within the PCK radius, and the highest cell "
             "elsewhere", ablates=SHIPPED),
    Detector("epck-pairwise", "candidate", "with a term that ranks failures above successes, pair by pair", ablates=SHIPPED),
    Detector("epck-listwise", "candidate", "with a term that orders a whole batch (ListNet)", ablates=SHIPPED),
    Detector("epck-three", "candidate", "the mean of three heads", ablates=SHIPPED),
    Detector("epck-all", "candidate", "the mean of three heads that read all of these, with made-up errors and ranked pairs",
             ablates=SHIPPED),
    Detector("epck+free", "candidate", "monotone logistic fusion of the head, the peaks and the entropy", ablates=SHIPPED,
             parts=(SHIPPED, "peak", "entropy")),
    Detector("flip", "costed", "heatmaps of the mirrored image read where the first ones look: a second pass"),
    Detector("epck+flip", "costed", "monotone logistic fusion of the head and the mirrored image", parts=(SHIPPED, "flip")),
    Detector("auditor", "costed", "heatmaps of a second net of the same size, read where the first one looks", other_nets=True),
    Detector("committee", "costed", "the same, of all other seeds' nets", other_nets=True),
    Detector("epck+auditor", "costed", "monotone logistic fusion of the head and the second net", parts=(SHIPPED, "auditor"),
             other_nets=True),
    Detector("in-domain", "ceiling", "the shipped head trained on labels of the very domain, other people"),
    Detector("true-loss", "oracle", "the true loss itself"),
)}  # fmt: skip


def detectors_of(kind: DetectorKind, group: HeadGroup | None = None) -> tuple[str, ...]:
    """Names of the detectors of a kind; with a group, those that are heads of it."""
    names = [name for name, detector in DETECTORS.items() if detector.kind == kind]
    return tuple(name for name in names if group is None or name in heads_of(group))
