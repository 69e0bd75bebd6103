"""From the tensors of somebody's pose net to keypoints, scores, and what speaks for or against every joint.

The same module reads stored tensors for training and stands in the exported graph, so that both see the same numbers. It
has no control flow that depends on values, takes any batch, and survives a net that answers with NaN.

At batch 1 a node of a graph costs more than its arithmetic, and what reads a net must cost little beside it: numbers of a
joint are computed together where they are of one kind, and places are read with the operator GridSample.

Shapes: N images, J joints, P points of an output (P >= J), K columns of a point or components of features, A candidates, H W
cells of a map, Q cells of a flattened map, L looks at a map, C channels, F facts of a joint, D evidence of a joint, E embedding,
B bins of a distribution, M numbers of the coarse maps.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from alpose.runtime.errors import ConfigError

from .maps import (
    NARROW,
    Shape,
    as_map,
    as_score,
    average,
    candidate_axis,
    crude_peaks,
    entropy,
    finite,
    mixing,
    peaks,
    peaks_1d,
    reduced,
    sampled,
    tap_layout,
    written,
)
from .spec import PoseSpec

Shapes = Mapping[str, Shape]
Facts = dict[tuple[str, ...], Tensor]
"""Numbers of every joint, (N, J, k), by their k names."""

FAR = 0.01
"""Distances are told in logarithms of this share of the input's longer side: log(1 + d / FAR)."""
FARTHEST_PX = 1e6
"""Points beyond this are here: a map's cells are counted in whole numbers."""
MANY = 4
"""Features with more than so many channels for each component are reduced before they are read, not behind it."""
COARSE = 8
"""Cells along a side of the coarse maps that ``ll++conv`` reads, at most."""


class Reading(NamedTuple):
    """What a net says of N images."""

    keypoints_NJ2: Tensor
    """Pixels of the input; the centre of its first pixel is (0, 0)."""
    scores_NJ: Tensor
    """The net's own, in [0, 1] where it means a probability or a share of the peak.

    A net without scores of joints gives its flag (is anybody there) for every joint, or else 1 for everybody.
    """
    evidence_NJD: Tensor
    """``NetReader.facts`` names the D numbers."""
    embedding_NE: Tensor


class NetReader(nn.Module):
    """Reads the tensors of ``spec.tensors``, in that order.

    Args:
        spec: the net.
        shapes: of every tensor of ``spec.tensors``; None where a size is free, as the batch.

    Raises:
        ConfigError: a shape does not fit what the spec says of its tensor.
    """

    facts: tuple[str, ...]
    """Names of the D numbers of the evidence, facts of the answer first, features at the joint last."""
    count: int
    """Leading facts of the evidence that speak of the answer; the rest are features."""
    flip_J: Tensor
    directions_CK: Tensor | None

    def __init__(self, spec: PoseSpec, shapes: Shapes) -> None:
        super().__init__()
        missing = [name for name in spec.tensors if name not in shapes]
        if missing:
            raise ConfigError(f"{spec.name}: the shape of {', '.join(missing)} is not known")
        self.spec, self.joints = spec, len(spec.skeleton)
        self.points = spec.decoder.points or self.joints
        self.numbers = self.points * len(spec.decoder.columns)
        self.size = (spec.input.width_px, spec.input.height_px)
        self.shapes = {name: tuple(shapes[name]) for name in spec.tensors}
        self.taps = {name: tap_layout(name, self.shapes[name], spec) for name in spec.taps}
        # Finer taps tell a head on the joints nothing that coarser ones do not, and reading them costs as much.
        self.features = {name: self.taps[name] for name in spec.taps[len(spec.taps) // 2 :]}
        self.wanted: frozenset[str] | None = None
        self.register_buffer("flip_J", torch.tensor(spec.skeleton.flip_order()), persistent=False)
        self.register_buffer("directions_CK", None, persistent=False)
        for place, tap in enumerate(self.taps.values()):
            self.register_buffer(f"mixed_{place}", mixing(tap.channels), persistent=False)
        self._name_facts()

    def _name_facts(self) -> None:
        names = self._fact_names()
        self.count = len(names)
        features = [f"{name}[{channel}]" for name, tap in self.features.items() for channel in range(tap.channels)]
        if self.directions_CK is not None:
            features = [f"component {place}" for place in range(self.directions_CK.shape[1])]
        self.facts = (*names, *features)

    def narrowed(self, wanted: Collection[str] | None = None, directions_CK: Tensor | None = None) -> NetReader:
        """A reader of less, for a graph: what is not told is not computed.

        Args:
            wanted: facts that are told, with those that are computed together with them; all of them without it.
            directions_CK: of all features; told instead of them are these components, or nothing of them without it.
        """
        other = copy.deepcopy(self)
        is_embedding = not self.taps and not self.spec.embedding  # then all facts describe the image
        other.wanted = None if wanted is None or is_embedding else frozenset(wanted)
        other.directions_CK = directions_CK
        if directions_CK is None:
            other.features = {}
        other._name_facts()
        return other

    def forward(self, *tensors: Tensor) -> Reading:
        """Read a batch; the tensors are those of ``spec.tensors``, in that order."""
        if len(tensors) != len(self.spec.tensors):
            raise ConfigError(f"{self.spec.name}: {len(tensors)} tensors given, the spec reads {self.spec.tensors}")
        given = {name: value.float() for name, value in zip(self.spec.tensors, tensors, strict=True)}
        keypoints_NJ2, scores_NJ, facts = self._decode(given)
        points_NJ2 = finite(keypoints_NJ2, FARTHEST_PX)
        told = list(self._facts(given, points_NJ2, scores_NJ, facts).values())
        if self.features:
            told.append(self._features(given, points_NJ2))
        evidence_NJD = finite(torch.cat(told, dim=2), 1e4)
        return Reading(keypoints_NJ2, scores_NJ, evidence_NJD, self._embedding(given, evidence_NJD))

    def maps(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The taps as maps (N, C, h, w), finest first, whatever their layout; vectors are maps of one cell."""
        given = dict(zip(self.spec.tensors, tensors, strict=True))
        return [as_map(given[name].float(), tap) for name, tap in self.taps.items()]

    def pooled(self, tensors: Sequence[Tensor]) -> Tensor:
        """The taps' averages over the image, one after the other, (N, sum of C)."""
        given = dict(zip(self.spec.tensors, tensors, strict=True))
        if not self.taps:
            return tensors[0].new_zeros(tensors[0].shape[0], 0)
        return torch.cat([average(given[name].float(), tap) for name, tap in self.taps.items()], dim=1)

    def coarse(self, tensors: Sequence[Tensor]) -> Tensor:
        """The taps as square maps of few cells and few channels, flattened one after the other, (N, M).

        Cells are averaged together, and of many channels fixed random sums are taken, which keep distances between vectors
        about as they are (Johnson and Lindenstrauss, 1984): so the maps of thousands of views fit on a disk.
        """
        parts = []
        for place, (tap_map, (channels, side)) in enumerate(zip(self.maps(tensors), self.pyramid, strict=True)):
            height, width = tap_map.shape[2:]
            small_NCss = functional.avg_pool2d(tap_map, (height // side, width // side))
            if channels < tap_map.shape[1]:
                mixed_C11 = self.get_buffer(f"mixed_{place}")[:, :, None, None]
                small_NCss = functional.conv2d(small_NCss, mixed_C11)
            parts.append(small_NCss.flatten(1))
        return torch.cat(parts, dim=1) if parts else tensors[0].new_zeros(tensors[0].shape[0], 0)

    @property
    def pyramid(self) -> list[tuple[int, int]]:
        """Channels and cells along a side of each of the coarse maps, finest first."""
        found: list[tuple[int, int]] = []
        for tap in self.taps.values():
            most = found[-1][1] if found else COARSE
            both = math.gcd(tap.height, tap.width)
            side = next(side for side in range(most, 0, -1) if both % side == 0)
            found.append((min(tap.channels, NARROW), side))
        return found

    @property
    def finds_people(self) -> bool:
        """Whether the net looks at whole frames and gives candidates for several people."""
        return self.spec.decoder.kind == "yolo" and self.spec.crop.kind in ("letterbox", "whole")

    def people(self, tensors: Sequence[Tensor], most: int) -> Tensor:
        """The candidates with the highest scores, those first: x0, y0, x1, y1 in pixels of the input, and the score, (N, most, 5).

        Where the net has fewer, rows of zeros follow.
        """
        given = {name: value.float() for name, value in zip(self.spec.tensors, tensors, strict=True)}
        rows_NAK, scores_NA, is_corners = self._candidates(given)
        boxes_NA4 = self._boxes(rows_NAK, is_corners)
        known = self._known_candidates()
        if known is None or known < most:
            none = boxes_NA4.new_zeros(1, most if known is None else most - known, 4).expand(boxes_NA4.shape[0], -1, -1)
            boxes_NA4, scores_NA = torch.cat([boxes_NA4, none], dim=1), torch.cat([scores_NA, none[:, :, 0]], dim=1)
        score_NP, place_NP = finite(scores_NA).topk(most, dim=1)
        box_NP4 = boxes_NA4.gather(1, place_NP[..., None].expand(-1, -1, 4))
        return torch.cat([box_NP4, score_NP[..., None]], dim=2)

    # --- Names and numbers of the facts, in one order

    def _fact_names(self) -> list[str]:
        """The names that :meth:`forward` gives its facts: taken from one run over an empty answer."""
        given = {
            name: torch.zeros([1, *(32 if size is None else size for size in shape[1:])])
            for name, shape in self.shapes.items()
        }
        with torch.no_grad():
            keypoints_NJ2, scores_NJ, facts = self._decode(given)
            return [name for names in self._facts(given, keypoints_NJ2, scores_NJ, facts) for name in names]

    def _facts(
        self, given: Mapping[str, Tensor], points_NJ2: Tensor, scores_NJ: Tensor, decoded: Mapping[str, Tensor]
    ) -> Facts:
        """All that is told of the joints, except features."""
        width, height = self.size
        # Where the joint is in the input, [-1, 1].
        place_NJ2 = (points_NJ2 * points_NJ2.new_tensor((2 / width, 2 / height)) - 1).clamp(-2, 2)
        hidden, far = self._hidden(given, points_NJ2)
        if self.spec.skeleton.flip_pairs:
            far = {"distance to mirror": points_NJ2.index_select(1, self.flip_J), **far}
        facts: Facts = {("x", "y"): place_NJ2, ("score",): scores_NJ[..., None]}
        facts |= {(name,): value_NJ[..., None] for name, value_NJ in decoded.items()} | hidden
        if self.wanted is not None:
            facts = {names: value for names, value in facts.items() if self.wanted & set(names)}
            far = {name: point_NJ2 for name, point_NJ2 in far.items() if name in self.wanted}
        if far:
            facts[tuple(far)] = self._far(points_NJ2, list(far.values()))
        return facts

    def _far(self, points_NJ2: Tensor, others: Sequence[Tensor]) -> Tensor:
        """How far each of the other points (N, J, 2) is from a joint, in logarithms, (N, J, k)."""
        apart_NJk2 = torch.cat(list(others), dim=2).unflatten(2, (len(others), 2)) - points_NJ2[:, :, None]
        # A square root of 0 has no gradient, and torch.norm is exported as a reduction that some engines lack.
        squared_NJk = apart_NJk2.square().sum(dim=3).clamp(1e-12, 1e12)
        return torch.log1p(squared_NJk.sqrt() / (FAR * max(self.size)))

    # --- The answer

    def _decode(self, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Keypoints, the net's own scores, and facts of the decoding."""
        decoder = self.spec.decoder
        if decoder.kind == "heatmaps":
            raw_NJHW = self._heatmaps(decoder.outputs[0], given)
            maps_NJHW = self._squashed(decoder.outputs[0], raw_NJHW)
            cells_NJ2, peak_NJ = peaks(maps_NJHW, decoder.refine)
            facts = {"peak": peak_NJ / decoder.peak, "entropy": entropy(raw_NJHW.flatten(2))}
            return self._to_pixels(cells_NJ2, maps_NJHW.shape[2:]), as_score(peak_NJ, decoder), facts
        if decoder.kind == "simcc":
            return self._simcc(given)
        if decoder.kind == "yolo":
            return self._yolo(given)
        return self._columns(self._points(given[decoder.outputs[0]]), given)

    def _heatmaps(self, name: str, given: Mapping[str, Tensor]) -> Tensor:
        """Maps of the joints (N, J, H, W), whichever axis the joints are on."""
        maps, shape = given[name], self.shapes[name]
        if len(shape) == 3:  # a batch of 1 that somebody squeezed away
            maps, shape = maps[None], (1, *shape)
        if len(shape) != 4 or self.points not in (shape[1], shape[3]):
            raise ConfigError(f"{self.spec.name}: {name} is {written(shape)}, expected {self.points} heatmaps; state points "
                              "(how many the output has) or another skeleton")  # fmt: skip
        last = self.spec.decoder.channels_last if shape[1] == shape[3] else shape[3] == self.points
        return (maps.permute(0, 3, 1, 2) if last else maps)[:, : self.joints]

    def _squashed(self, name: str, value: Tensor) -> Tensor:
        """Probabilities where the spec says that a tensor holds logits."""
        return torch.sigmoid(value) if name in self.spec.logits else value

    def _simcc(self, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        decoder, places, heights = self.spec.decoder, [], []
        facts: dict[str, Tensor] = {}
        for axis, name in enumerate(decoder.outputs):
            shape = self.shapes[name]
            if len(shape) != 3 or shape[1] != self.points or shape[2] is None:
                raise ConfigError(f"{self.spec.name}: {name} is {written(shape)}, expected (N, {self.points}, bins)")
            values_NJB = given[name][:, : self.joints]
            bin_NJ, height_NJ = peaks_1d(values_NJB, refine=decoder.refine != "none")
            step = decoder.stride[axis] if decoder.stride else self.size[axis] / shape[2]
            start = decoder.offset[axis] if decoder.offset else step / 2 - 0.5
            places.append(bin_NJ * step + start)
            heights.append(height_NJ)
            facts |= {f"peak {'xy'[axis]}": height_NJ / decoder.peak, f"entropy {'xy'[axis]}": entropy(values_NJB)}
        return torch.stack(places, dim=2), as_score(torch.minimum(*heights), decoder), facts

    def _points(self, output: Tensor) -> Tensor:
        """The points of a net that gives points, (N, J, K)."""
        decoder = self.spec.decoder
        points, columns = self.points, len(decoder.columns)
        shape = self.shapes[decoder.outputs[0]]
        if None not in shape[1:] and math.prod(size or 1 for size in shape[1:]) != points * columns:
            raise ConfigError(f"{self.spec.name}: {decoder.outputs[0]} is {written(shape)}, which is not {points} points of "
                              f"{columns} numbers ({', '.join(decoder.columns)}); state columns and points")  # fmt: skip
        return output.reshape(output.shape[0], points, columns)[:, : self.joints]

    def _yolo(self, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The candidate with the highest score: a crop shows one person."""
        decoder = self.spec.decoder
        rows_NAK, scores_NA, is_corners = self._candidates(given)
        best_N = finite(scores_NA).argmax(dim=1)
        row_NK = rows_NAK.gather(1, best_N[:, None, None].expand(-1, 1, rows_NAK.shape[2]))[:, 0]
        points_NJK = row_NK[:, -self.numbers :].reshape(row_NK.shape[0], -1, len(decoder.columns))[:, : self.joints]
        keypoints_NJ2, scores_NJ, facts = self._columns(points_NJK, given)
        candidate_NJ = scores_NA.gather(1, best_N[:, None]).expand(-1, self.joints)
        if not {"score", "visibility", "presence"} & set(decoder.columns):
            scores_NJ = candidate_NJ
        box_N4 = self._boxes(row_NK, is_corners)
        size_NJ = (
            torch.log((box_N4[:, 2:] - box_N4[:, :2]).clamp_min(1.0)).sum(dim=1, keepdim=True).expand(-1, self.joints)
        )
        return keypoints_NJ2, scores_NJ, {**facts, "candidate": candidate_NJ, "candidate's area": size_NJ}

    def _candidates(self, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, bool]:
        """Rows of all candidates (N, A, K), their scores (N, A), and whether boxes are corners, not middle and size.

        Graphs with NMS inside give candidates as rows, with the score and perhaps a class's number behind the box; the
        others give them as columns, with a score for every class.
        """
        outputs, columns = self.spec.decoder.outputs, self.numbers
        if len(outputs) == 2:
            boxes_NA5, points_NAJK = given[outputs[0]][:, :, :5], given[outputs[1]]
            rows_NAK = torch.cat([boxes_NA5, points_NAJK.flatten(2)], dim=2)
            if self._known_candidates() is None:  # there may be none at all, and of none there is no best one
                rows_NAK = functional.pad(rows_NAK, (0, 0, 0, 1))
            return rows_NAK, rows_NAK[:, :, 4], True
        if self.spec.decoder.box_last:
            y0, x0, y1, x1, score = given[outputs[0]][:, :, columns : columns + 5].split(1, dim=2)
            return torch.cat([x0, y0, x1, y1, score, given[outputs[0]][:, :, :columns]], dim=2), score[:, :, 0], True
        shape = self.shapes[outputs[0]]
        axis = candidate_axis(shape, columns, self.spec.name)
        classes = int(shape[3 - axis] or 0) - 4 - columns
        if axis == 1:
            rows_NAK = given[outputs[0]]
            return rows_NAK, rows_NAK[:, :, 4], classes == 2
        rows_NAK = given[outputs[0]].transpose(1, 2)
        return rows_NAK, rows_NAK[:, :, 4 : 4 + classes].amax(dim=2), False

    def _known_candidates(self) -> int | None:
        """How many candidates there are; None where that changes from picture to picture."""
        outputs = self.spec.decoder.outputs
        shape = self.shapes[outputs[0]]
        first = len(outputs) == 2 or self.spec.decoder.box_last
        return shape[1] if first else shape[candidate_axis(shape, self.numbers, self.spec.name)]

    def _boxes(self, rows: Tensor, is_corners: bool) -> Tensor:
        """Boxes (…, 4) of candidates (…, K) as x0, y0, x1, y1 in pixels of the input."""
        box = rows[..., :4]
        if not is_corners:
            box = torch.cat([box[..., :2] - box[..., 2:] / 2, box[..., :2] + box[..., 2:] / 2], dim=-1)
        return self._in_pixels(box, (*self.size, *self.size))

    def _in_pixels(self, places: Tensor, size: tuple[float, ...]) -> Tensor:
        """Places in the net's unit as pixels of the input; ``size`` has its side along each number."""
        unit = self.spec.decoder.unit
        if unit == "centred":
            places = (places + 1) * 0.5
        if unit in ("share", "centred"):
            places = places * places.new_tensor(size)
        return places if unit == "pixels" else places - 0.5

    def _columns(self, points_NJK: Tensor, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Keypoints, scores and facts from points with named columns."""
        decoder, column = self.spec.decoder, self.spec.decoder.columns.index
        both = torch.tensor([column("x"), column("y")], device=points_NJK.device)
        keypoints_NJ2 = self._in_pixels(points_NJK.index_select(2, both), tuple(self.size))
        facts: dict[str, Tensor] = {
            name: points_NJK[..., column(name)] for name in ("visibility", "presence") if name in decoder.columns
        }
        if decoder.kind == "keypoints" and len(decoder.outputs) == 2:
            return keypoints_NJ2, as_score(self._flat(given[decoder.outputs[1]]), decoder), facts
        for name in ("score", "visibility", "presence"):
            if name in decoder.columns and decoder.score != "none":
                return keypoints_NJ2, as_score(points_NJK[..., column(name)], decoder), facts
        if "flag" in self.spec.hidden:
            return keypoints_NJ2, self._flag(self.spec.hidden["flag"], given), facts
        return keypoints_NJ2, torch.ones_like(keypoints_NJ2[..., 0]), facts

    # --- What the net hides

    def _hidden(self, given: Mapping[str, Tensor], points_NJ2: Tensor) -> tuple[Facts, dict[str, Tensor]]:
        """Facts from tensors inside the graph, the second of a kind with its number behind its name; and other points (N, J, 2)
        whose distance from the joints is told."""
        found: Facts = {}
        far: dict[str, Tensor] = {}
        if self.spec.decoder.kind == "heatmaps" and self.spec.skeleton.flip_pairs:
            maps_NJHW = self._heatmaps(self.spec.decoder.outputs[0], given)
            found["mirror's map at the point",] = self._looks(maps_NJHW, points_NJ2)[1]
        for key, name in self.spec.hidden.items():
            kind, _, number = key.partition(".")
            end = f" {number}" if number else ""
            if kind == "heatmaps":
                maps_NJHW = self._heatmaps(name, given)
                cells_NJ2, peak_NJ1 = crude_peaks(maps_NJHW)
                far[f"distance to the map's peak{end}"] = self._to_pixels(cells_NJ2, maps_NJHW.shape[2:])
                read_NJ1, *mirrored = self._looks(maps_NJHW, points_NJ2)
                names = ("map's peak", "map at the point", "mirror's map at the point")[: 2 + len(mirrored)]
                told_NJk = torch.cat([peak_NJ1, read_NJ1, *mirrored], dim=2)
                found[tuple(f"{each}{end}" for each in names)] = self._squashed(name, told_NJk)
            elif kind == "flag":
                found[f"flag{end}",] = self._flag(name, given)[..., None]
            elif kind == "centre":
                highest_N11 = given[name].flatten(1).amax(dim=1)[:, None, None]
                found[f"centre{end}",] = self._squashed(name, highest_N11).expand(-1, self.joints, -1)
        if {"regression.x", "regression.y"} <= set(self.spec.hidden):
            x_NJ, y_NJ = (self._flat(given[self.spec.hidden[f"regression.{axis}"]]) for axis in "xy")
            second_NJ2 = self._to_pixels(torch.stack([x_NJ, y_NJ], dim=2), self._cells())
            far["distance to the regression"] = finite(second_NJ2)
        return found, far

    def _flag(self, name: str, given: Mapping[str, Tensor]) -> Tensor:
        value = self._squashed(name, given[name])
        return value.reshape(value.shape[0], -1)[:, :1].expand(-1, self.joints)

    def _flat(self, value: Tensor) -> Tensor:
        """One number of every joint, (N, J), whatever axes the tensor has."""
        return value.reshape(value.shape[0], -1)[:, : self.joints]

    def _cells(self) -> tuple[int, int]:
        """Height and width of the hidden heatmaps; of the input where there are none."""
        if "heatmaps" in self.spec.hidden:
            shape = self.shapes[self.spec.hidden["heatmaps"]]
            sizes = shape[1:3] if shape[-1] == self.points else shape[-2:]
            if None not in sizes:
                return int(sizes[0] or 0), int(sizes[1] or 0)
        return self.size[1], self.size[0]

    # --- Geometry

    def _stride_offset(self, cells: Sequence[int]) -> tuple[tuple[float, float], tuple[float, float]]:
        """Input pixels per cell, and of the first cell's centre, (x, y), for maps of (height, width) cells."""
        stride = self.spec.decoder.stride or (self.size[0] / cells[1], self.size[1] / cells[0])
        return stride, self.spec.decoder.offset or (stride[0] / 2 - 0.5, stride[1] / 2 - 0.5)

    def _to_pixels(self, cells_NJ2: Tensor, cells: Sequence[int]) -> Tensor:
        stride, offset = self._stride_offset(cells)
        return cells_NJ2 * cells_NJ2.new_tensor(stride) + cells_NJ2.new_tensor(offset)

    def _looks(self, maps_NJHW: Tensor, points_NJ2: Tensor) -> list[Tensor]:
        """Each joint's map at its point, and where joints have mirror partners the partner's map there, (N, J, 1) each."""
        height, width = maps_NJHW.shape[2:]
        (x_stride, y_stride), (x_offset, y_offset) = self._stride_offset((height, width))
        seen, mirrors = [points_NJ2], bool(self.spec.skeleton.flip_pairs)
        if mirrors:
            seen.append(points_NJ2.index_select(1, self.flip_J))
        # A cell's centre c is (2 c + 1) / size - 1 on GridSample's axis from edge to edge.
        step_4 = points_NJ2.new_tensor((2 / (width * x_stride), 2 / (height * y_stride)) * len(seen))
        start_4 = points_NJ2.new_tensor(((1 - 2 * x_offset / x_stride) / width - 1,
                                         (1 - 2 * y_offset / y_stride) / height - 1) * len(seen))  # fmt: skip
        grid_NJ4 = torch.cat(seen, dim=2) * step_4 + start_4
        read = sampled(maps_NJHW.reshape(-1, 1, height, width), grid_NJ4.reshape(-1, 1, len(seen), 2))
        read_NJL = read.reshape(-1, self.joints, len(seen))
        if not mirrors:
            return [read_NJL]
        # The partner's map at the joint's point is what the partner's own look at its mirror's point found.
        return [read_NJL[..., :1], read_NJL[..., 1:].index_select(1, self.flip_J)]

    def _features(self, given: Mapping[str, Tensor], points_NJ2: Tensor) -> Tensor:
        """Features at every joint, (N, J, C); or their components, (N, J, K)."""
        # Taps tile the input, whatever the maps of the answer do.
        width, height = self.size
        scale_2 = points_NJ2.new_tensor((2 / width, 2 / height))
        grid_N1J2 = (points_NJ2 * scale_2 + (scale_2 / 2 - 1))[:, None]
        parts, ready, directions = list[Tensor](), list[Tensor](), list[Tensor]()
        split = [tap.channels for tap in self.features.values()]
        for place, (name, tap) in enumerate(self.features.items()):
            value = given[name]
            if self.directions_CK is not None:
                directions_CK = self.directions_CK.split(split)[place]
                if tap.channels > MANY * directions_CK.shape[1]:
                    # Reading is linear: few components of every cell cost less than many features of every joint.
                    ready.append(sampled(reduced(value, tap, directions_CK), grid_N1J2))
                    continue
                directions.append(directions_CK)
            parts.append(sampled(as_map(value, tap), grid_N1J2))
        found = [torch.cat(parts, dim=1)[:, :, 0].transpose(1, 2)] if parts else []
        if self.directions_CK is None:
            return found[0]
        found = [read_NJC @ torch.cat(directions) for read_NJC in found]
        components = [*found, *(read_NK1J[:, :, 0].transpose(1, 2) for read_NK1J in ready)]
        return functools.reduce(torch.add, components)

    def _embedding(self, given: Mapping[str, Tensor], evidence_NJD: Tensor) -> Tensor:
        """Average of the embedding's tensor, or of the deepest tap; without any the facts of all joints."""
        name = self.spec.embedding or (self.spec.taps[-1] if self.spec.taps else None)
        if name is None:
            return finite(evidence_NJD.flatten(1))
        return finite(average(given[name], self.taps.get(name) or tap_layout(name, self.shapes[name], self.spec)))
