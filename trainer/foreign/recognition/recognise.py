"""From an ONNX file alone to a :class:`~.spec.PoseSpec`: what the graph tells, what its family adds, what was stated.

A part is stated (by the user), read in the graph, known of the family, or guessed; :class:`Recognised` says which, so that a
guess can be looked at. What cannot be told is an error that lists what was found and what to state.

Shapes: N images, J joints, H W the input's height and width, h w a map's, C channels.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from alpose.runtime.errors import ConfigError
from alpose.runtime.io import to_json
from alpose.runtime.known_skeletons import KNOWN, known_skeleton, numbered
from alpose.runtime.skeleton import Skeleton

from ..net import run_once
from ..spec import Decoding, NetDecoder, PoseSpec, ScoreForm, Unit
from . import families
from .examination import Examination, Origin, Part, shown
from .graph import Graph
from .outputs import Candidate, candidates, guessed_columns, scores_beside
from .stated import PLACES, Stated
from .tracing import Traced

COMMON_COUNTS = {17: "coco", 16: "mpii", 14: "lsp", 26: "halpe-26", 133: "wholebody-133", 33: "blazepose-33", 68: "face-68",
                 468: "face-468", 21: "hand-21"}  # fmt: skip
SKELETON_OF = {len(skeleton): name for name, skeleton in KNOWN.items()}
_APPLIES: dict[str, tuple[Decoding, ...]] = {
    "refine": ("heatmaps", "simcc"), "columns": ("keypoints", "yolo"), "unit": ("keypoints", "yolo"),
}  # fmt: skip
"""Options that only some ways to decode have."""


@dataclass(frozen=True)
class Recognised:
    """A net's spec, and where each part of it comes from."""

    spec: PoseSpec
    parts: tuple[Part, ...]
    family: str | None
    graph: Graph = field(repr=False, compare=False)

    def guesses(self) -> tuple[Part, ...]:
        """What should be looked at."""
        return tuple(part for part in self.parts if part.origin == "guess")


def recognise(path: str | Path, **stated: Any) -> PoseSpec:
    """Return the spec of a pose net in an ONNX file; see :func:`examine`, which also tells where each part comes from."""
    return examine(path, stated_by_name(stated)).spec


def stated_by_name(stated: Mapping[str, Any]) -> Stated:
    """What keywords state. Raises :class:`ConfigError` for one that does not exist, with those that are near."""
    known = [one.name for one in dataclasses.fields(Stated)]
    for name in stated:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.5)
            hint = f"did you mean {', '.join(near)}? " if near else ""
            raise ConfigError(
                f"{name}: nothing of this name can be stated of a net; {hint}known are {', '.join(known)}"
            )
    return Stated(**stated)


def examine(path: str | Path, stated: Stated | None = None) -> Recognised:
    """Tell what a pose net takes and gives.

    The net runs on two or three pictures of noise: shapes that ONNX's inference leaves open, and whether it takes several
    images at once, are measured.

    Args:
        path: the ONNX file.
        stated: what is known of it.

    Raises:
        DataNotFoundError, CheckpointError: see :func:`~.graph.read_graph`.
        ConfigError: the file cannot be used, or something has to be stated; the message lists what was found.
    """
    return _Recognition(Path(path), stated or Stated()).result()


class _Recognition(Examination):
    """From what a file takes and answers to its spec."""

    def result(self) -> Recognised:
        found = self._candidate()
        decoder, skeleton = self._decoder(found)
        traced = Traced(self.graph, self.measured, self.image.name, self.batch or 1, self.size)
        hidden, logits = self._hidden(found, decoder, traced)
        taps = self._taps(found, (*decoder.outputs, *hidden.values()), traced)
        try:
            spec = PoseSpec(
                name=self.given.get("name") or self.family_name or self.path.stem,
                input=self._input(),
                crop=self._crop(),
                decoder=decoder,
                skeleton=skeleton,
                hidden=hidden,
                taps=taps,
                logits=logits,
                embedding=self.stated.embedding or self.given.get("embedding"),
            )
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from None
        self._check_tensors(spec)
        self._check_stated(spec)
        return Recognised(spec, tuple(self.parts), self.family_name, self.graph)

    # --- What is stated comes first, then the graph, the family, a guess

    # --- Input

    # --- Outputs

    def _candidate(self) -> Candidate:
        """The reading of the outputs."""
        wanted: tuple[str, ...] = self.values.get("outputs", ())
        decode: Decoding | None = self.values.get("decode")
        origin: Origin = self._origin("decode") if wanted or decode else "graph"
        if not wanted and self.family and self.family.outputs:
            names = [families.find(pattern, list(self.graph.outputs)) for pattern in self.family.outputs]
            wanted = tuple(name for name in names if name)
        for name in wanted:
            if name not in self.graph.tensors:
                near = difflib.get_close_matches(name, list(self.graph.tensors), 3, 0.5)
                raise ConfigError(f"{self.path} has no tensor {name}; it gives {self._said()}"
                                  + (f". Near it are {', '.join(near)}" if near else ""))  # fmt: skip
        inside = [name for name in wanted if name not in self.shapes]
        if inside:
            more = run_once(self.path, self.graph, self.image.name, self._blank_input(self.batch or 1), inside)
            self.shapes |= {name: value.shape[1:] for name, value in more.items()}
            self.answers |= more
            for name, value in more.items():
                rows = value.reshape(-1, value.shape[-1])
                self.low[name], self.high[name] = rows.min(axis=0), rows.max(axis=0)
        looked = {name: self.shapes[name] for name in wanted} if wanted else dict(self.shapes)
        joints = self._joints()
        found = [
            one
            for one in candidates(
                looked, self.size, () if joints is None else (joints,), self._point_shape(), self._loose(decode)
            )
            if decode in (None, one.kind)
        ]
        if self.family and not decode:
            found = [one for one in found if one.kind == self.family.kind] or found
        found = self._narrowed(found, wanted)
        if len(found) != 1:
            self._refuse(found, looked, decode)
        chosen = found[0]
        self._note(
            "decode",
            chosen.kind,
            self._origin("decode") if decode else "guess" if chosen.doubt else origin,
            "" if decode else chosen.doubt,
        )
        self._note("outputs", chosen.outputs, self._origin("outputs") if self.values.get("outputs") else origin)
        return chosen

    def _loose(self, decode: str | None) -> tuple[Decoding, ...]:
        """Kinds of outputs that are taken at the user's word."""
        placed = "stride" in self.given.get("decoder", {})
        named = self.family is not None and self.family.kind == "simcc"
        said = {"heatmaps": placed, "simcc": decode == "simcc" or named, "yolo": decode == "yolo"}
        return tuple(kind for kind, is_so in said.items() if is_so)  # type: ignore[misc]

    def _narrowed(self, found: list[Candidate], wanted: Sequence[str]) -> list[Candidate]:
        """Leave out readings that what is known speaks against, one reason after the other, as long as one is left."""
        joints = self._joints()
        columns = self.values.get("columns") or (self.family.decoder.get("columns") if self.family else None)
        if wanted:
            found = [one for one in found if set(one.outputs) <= set(wanted)]
        reasons: list[Callable[[Candidate], bool]] = [
            lambda one: joints is None or one.joints == joints,
            lambda one: not columns or not one.numbers or one.numbers == len(columns),
            lambda one: one.kind != "heatmaps" or one.joints > 1,
            lambda one: not (one.kind == "keypoints" and any(set(one.outputs) & set(other.outputs) and other.sure for other in found)),
            lambda one: not any(other.kind == "simcc" for other in found) or one.kind == "simcc",
            # A net's own decoding is kept: its heatmaps are hidden tensors then.
            lambda one: one.kind != "heatmaps" or not any(
                other.kind == "keypoints" and other.joints == one.joints for other in found),
            # 17 maps beside 34 offsets and 38 limbs are the joints.
            lambda one: one.joints in SKELETON_OF or len({other.kind for other in found}) > 1,
            lambda one: one.kind != "keypoints" or one.numbers > 2 or one.joints in COMMON_COUNTS,
        ]  # fmt: skip
        for reason in reasons:
            found = [one for one in found if reason(one)] or found
        return found

    def _point_shape(self) -> tuple[int, int] | None:
        """Joints and numbers of a point, as ultralytics writes them into its files."""
        found = re.fullmatch(r"\[(\d+), (\d+)\]", self.graph.metadata.get("kpt_shape", ""))
        return (int(found[1]), int(found[2])) if found else None

    def _joints(self) -> int | None:
        """How many points the outputs have, where that is known before they are looked at."""
        stated, family = self.skeleton_stated, self.family
        counts = (
            self.values.get("points"),
            family.decoder.get("points") if family else None,
            len(stated) if stated else None,
            len(family.skeleton) if family and family.skeleton else None,
        )
        return next((count for count in counts if count is not None), None)

    def _refuse(self, found: list[Candidate], looked: Mapping[str, tuple[int, ...]], decode: str | None) -> None:
        said = "; ".join(f"{name} (N, {', '.join(map(str, shape))})" for name, shape in looked.items())
        if found:
            readings = "; or ".join(str(one) for one in found[:6])
            usual = ""
            if {one.kind for one in found} == {"heatmaps"} and len({one.joints for one in found}) == 1:
                best = max(found, key=lambda one: math.prod(looked[one.outputs[0]]))  # of equal ones the first
                best = next(one for one in reversed(found) if looked[one.outputs[0]] == looked[best.outputs[0]])
                usual = f", usually the last and finest, --outputs {best.outputs[0]}"
            raise ConfigError(
                f"{self.path}: its outputs ({said}) can be read as {readings}. State which{usual}: --outputs NAME, --decode "
                f"{'|'.join(get_args(Decoding))}, --skeleton NAME (its number of joints) or --columns (the numbers of a point)"
            )
        stacked = [name for name, shape in looked.items() if len(shape) == 4]
        hint = (
            f" {stacked[0]} has five axes: name the tensor inside the graph that is its last stage, --outputs NAME."
            if stacked
            else ""
        )
        asked = f" as {decode}" if decode else ""
        joints = self._joints()
        loose = candidates(looked, self.size, () if joints is None else (joints,), loose=("heatmaps", "simcc", "yolo"))
        for one in loose:
            if decode not in (None, one.kind) or not (
                one.joints == joints or (joints is None and one.joints in SKELETON_OF)
            ):
                continue
            state = {
                "simcc": "--decode simcc",
                "yolo": "--decode yolo",
                "heatmaps": "where their cells lie, which their aspect does not tell: decoder.stride and decoder.offset, (x, y) in pixels of "
                "the input, in a file for --spec",
            }
            hint += f" If they are {one}, state {state[one.kind]}."
        raise ConfigError(
            f"{self.path}: its outputs ({said}) cannot be read{asked}. Expected heatmaps (N, J, h, w) of the input's aspect, SimCC "
            f"(N, J, bins) twice, points (N, J, 2 to 5) or (N, J x numbers) of a known skeleton, or a detector's candidates.{hint} State "
            "--outputs, --decode and --skeleton, or export the net up to such a tensor"
        )

    def _skeleton(self, joints: int) -> Skeleton:
        stated, points = self.skeleton_stated, self.values.get("points")
        if points not in (None, joints):
            raise ConfigError(f"--points {points}: {self.path} answers {joints} points")
        if stated is not None:
            self._note("skeleton", f"{stated.name} ({len(stated)})", self._origin("skeleton"))
            if len(stated) > joints:
                raise ConfigError(
                    f"{self.path} answers {joints} points; the skeleton {stated.name} has {len(stated)} joints"
                )
            if len(stated) < joints and points is None and not (self.family and "points" in self.family.decoder):
                known = f" ({SKELETON_OF[joints]} has as many)" if joints in SKELETON_OF else ""
                raise ConfigError(
                    f"{self.path} answers {joints} points; the skeleton {stated.name} has only {len(stated)} joints. State the net's "
                    f"own --skeleton{known}; or, if its first {len(stated)} points are those joints, --points {joints} too"
                )
            return stated
        if self.family and self.family.skeleton and len(self.family.skeleton) <= joints:
            self._note("skeleton", f"{self.family.skeleton.name} ({len(self.family.skeleton)})", "family")
            return self.family.skeleton
        if joints in SKELETON_OF:
            found = known_skeleton(SKELETON_OF[joints])
            self._note("skeleton", f"{found.name} ({joints})", "guess", f"it has {joints} joints")
            return found
        self._note("skeleton", f"{joints} numbered joints", "guess", "no known skeleton has as many: state --skeleton")
        return numbered(joints)

    def _decoder(self, found: Candidate) -> tuple[NetDecoder, Skeleton]:
        known = dict(self.family.decoder) if self.family and self.family.kind == found.kind else {}
        file = dict(self.given.get("decoder", {}))
        skeleton = self._skeleton(found.joints)
        more: dict[str, Any] = {"kind": found.kind, "outputs": found.outputs, "channels_last": found.channels_last,
                                "box_last": found.box_last}  # fmt: skip
        if found.joints != len(skeleton):
            more["points"] = found.joints
            self._note("points", found.joints, "graph", f"the first {len(skeleton)} are the joints")
        if found.kind in ("heatmaps", "simcc"):
            refine = "parabola" if found.kind == "heatmaps" else "none"
            more["refine"] = self._choose("refine", known.get("refine"), refine, "usual")
            more["score"] = self._choose("score", known.get("score"), "peak", "usual")
            more["peak"] = float(self._choose("peak", known.get("peak"), 1.0, "usual"))
            more |= self._cells(found, file)
        else:
            more |= self._points(found, known)
        try:
            return NetDecoder(**more), skeleton
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from None

    def _cells(self, found: Candidate, file: Mapping[str, Any]) -> dict[str, Any]:
        """How cells or bins lie on the input, where they do not tile it."""
        if "stride" in file or "offset" in file:
            return {name: tuple(file[name]) for name in ("stride", "offset") if file.get(name)}
        cells = self.family.cells if self.family else "tile"
        if cells == "tile":
            return {}
        shape = self.shapes[found.outputs[0]]
        if found.kind == "simcc":
            counts = (shape[1], self.shapes[found.outputs[1]][1])
        else:
            counts = (shape[1], shape[0]) if found.channels_last else (shape[2], shape[1])
        size = (self.size[1], self.size[0])
        less = 1 if cells == "aligned" else 0
        stride = tuple((length - less) / (count - less) for length, count in zip(size, counts, strict=True))
        self._note("cells", cells, "family", f"stride {shown(stride)} px, the first one at pixel 0")
        return {"stride": stride, "offset": (0.0, 0.0)}

    def _points(self, found: Candidate, known: Mapping[str, Any]) -> dict[str, Any]:
        """Columns, unit and scores of a net that gives points."""
        name = found.outputs[-1] if found.kind == "yolo" else found.outputs[0]
        value, numbers = self.answers[name], found.numbers
        more: dict[str, Any] = {}
        columns = known.get("columns")
        if columns is not None and len(columns) != numbers:
            columns = columns[:2] if numbers == 2 else None
        if found.kind == "keypoints":
            rows = value.reshape(-1, found.joints, numbers).reshape(-1, numbers)
            low, high = rows.min(axis=0), rows.max(axis=0)
            guess = guessed_columns(numbers, tuple(low), tuple(high))
            why = f"from their ranges over noise: {', '.join(f'{a:.2g} to {b:.2g}' for a, b in zip(low, high, strict=True))}"
            if "z" in guess and not {"score", "visibility"} & set(guess):
                why += "; if the last is the logit of a score, state --columns xys --score logit"
        else:
            guess, why = (("x", "y", "visibility") if numbers == 3 else ("x", "y")), "usual"
        columns = self._choose("columns", columns, guess, why)
        if len(columns) != numbers:
            raise ConfigError(
                f"{self.path}: {name} has {numbers} numbers a point, stated were {len(columns)}: {', '.join(columns)}"
            )
        more["columns"] = tuple(columns)
        offset = self.given.get("decoder", {}).get("offset") or known.get("offset")
        if offset:
            more["offset"] = tuple(offset)
        unit: Unit = "corner" if found.kind == "yolo" else "pixels"
        if found.kind == "keypoints":
            places = [columns.index(axis) for axis in "xy"]
            least, most = float(rows[:, places].min()), float(rows[:, places].max())
            if max(most, -least) <= 2:
                both_sides = -least > 0.2 * most and max(most, -least) <= 1.05
                unit = "centred" if both_sides else "share"
        more["unit"] = self._choose("unit", known.get("unit"), unit, "from their ranges over noise")
        scored = {"score", "visibility", "presence"} & set(columns)
        beside = None
        if found.kind == "keypoints" and not scored:
            beside = scores_beside(found, self.shapes)
            if beside and beside in self.values.get("outputs", (beside,)):
                more["outputs"] = (*found.outputs, beside)
                self._note("scores", beside, "graph", "one number for each joint")
            else:
                beside = None
        guess_score: ScoreForm = "none"
        why = "no column is one"
        if beside or scored or found.kind == "yolo":
            if beside:
                low_s, high_s = float(self.answers[beside].min()), float(self.answers[beside].max())
            elif scored and found.kind == "keypoints":
                place = columns.index(next(iter(scored)))
                low_s, high_s = float(rows[:, place].min()), float(rows[:, place].max())
            else:
                low_s, high_s = 0.0, 1.0
            guess_score = "probability" if low_s >= 0 and high_s <= 1.001 else "logit"
            why = "from its range over noise"
        more["score"] = self._choose("score", known.get("score"), guess_score, why)
        if more["score"] == "peak":
            more["peak"] = float(self._choose("peak", known.get("peak"), 1.0, "usual"))
        return more

    # --- Hidden tensors and taps

    def _hidden(self, found: Candidate, decoder: NetDecoder, traced: Traced) -> tuple[dict[str, str], tuple[str, ...]]:
        """Tensors that speak of the answer, by what they are; and those that are logits."""
        stated = self.stated.hidden if self.stated.hidden is not None else self.given.get("hidden")
        if stated is not None:
            self._note("hidden", dict(stated), self._origin("hidden"))
            return dict(stated), tuple(self.given.get("logits", ()))
        names = list(self.graph.tensors)
        if self.family and self.family.hidden:
            matched = {kind: families.find(pattern, names) for kind, pattern in self.family.hidden.items()}
            known = {kind: name for kind, name in matched.items() if name}
            if len(known) == len(self.family.hidden):
                self._note("hidden", known, "family")
                return known, tuple(known[kind] for kind in self.family.logits)
        hidden: dict[str, str] = {}
        if found.kind == "keypoints" and (maps := traced.hidden_heatmaps(found.joints)):
            hidden["heatmaps"] = maps
        flags = [name for name, shape in self.shapes.items() if math.prod(shape) == 1 and name not in decoder.outputs]
        if len(flags) == 1 and found.kind != "yolo":
            hidden["flag"] = flags[0]
        if hidden:
            self._note("hidden", hidden, "guess", "traced back from the outputs")
        return hidden, tuple(name for kind, name in hidden.items() if kind == "heatmaps" and traced.is_logit(name))

    def _taps(self, found: Candidate, answers: Sequence[str], traced: Traced) -> tuple[str, ...]:
        stated = self.stated.taps if self.stated.taps is not None else self.given.get("taps")
        if stated is not None:
            self._note("taps", tuple(stated), self._origin("taps"))
            return tuple(stated)
        if self.family and self.family.taps:
            names = [name for name in self.graph.tensors if "BiasAdd" not in name]
            matched = [families.find(pattern, names, last=True) for pattern in self.family.taps]
            if all(matched):
                taps = tuple(name for name in matched if name)
                self._note("taps", taps, "family")
                return taps
        taps = traced.taps(found.kind, found.joints, answers)
        self._note("taps", taps, "guess", "traced back from the outputs" if taps else "no feature map was found")
        return taps

    # --- At the end: does the net have all that was stated?

    def _check_tensors(self, spec: PoseSpec) -> None:
        for name in spec.tensors:
            if name not in self.graph.tensors:
                near = difflib.get_close_matches(name, list(self.graph.tensors), 3, 0.4)
                raise ConfigError(
                    f"{self.path} has no tensor {name}" + (f"; near it are {', '.join(near)}" if near else "")
                )

    def _check_stated(self, spec: PoseSpec) -> None:
        """Refuse what was stated and has no place in the spec: nothing that a user says goes unheard."""
        plain = to_json(spec)
        for name, value in self.values.items():
            group, key = PLACES[name]
            kinds = _APPLIES.get(name, get_args(Decoding))
            if spec.decoder.kind not in kinds and getattr(self.stated, name, None) is not None:
                raise ConfigError(
                    f"--{name} {shown(value)}: {self.path} is read as {spec.decoder.kind}; this option is for {' and '.join(kinds)}"
                )
            if (
                name != "outputs"
                and plain[group][key] != to_json(value)
                and not (name == "points" and value == len(spec.skeleton))
            ):
                raise ConfigError(
                    f"--{name} {shown(value)}: it was stated, but does not fit how {self.path} is read, with {key} "
                    f"{shown(plain[group][key])}"
                )
        for key in ("name", "number", "batch"):
            value, got = self.given.get("input", {}).get(key), plain["input"][key]
            if value is not None and value != got:
                raise ConfigError(
                    f"input.{key} of the spec is {shown(value)}; that of {self.path} is {shown(got)}: is it the spec of another net?"
                )
