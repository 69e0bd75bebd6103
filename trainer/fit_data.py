"""Who trains in a fit, who chooses its epoch, and who is held out: no picture is ever in two of these roles.

People go by the content of their picture, so that a renamed copy of a folder, or the same photograph in two datasets, is
known again; and by a group, such as the driver, where the labels have one: neighbouring frames are nearly the same.

Shapes: N people.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from alpose.runtime.errors import AlposeError, ConfigError, DataError
from alpose.runtime.skeleton import Skeleton

from .data.catalog import Sizes, open_dataset
from .data.records import Bools, PoseData, join
from .training import validation_mask, validation_place

log = logging.getLogger("alpose")


@dataclass(frozen=True, slots=True)
class Source:
    """One dataset in its two roles."""

    name: str
    train: PoseData
    held_out: PoseData

    def with_skeleton(self, skeleton: Skeleton) -> Source:
        """The same people with the model's links and mirror pairs."""
        return Source(self.name, self.train.with_skeleton(skeleton), self.held_out.with_skeleton(skeleton))


class WithFacts(Protocol):
    """A model that says what it was trained on: ours, or the head of somebody else's net."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Provenance in plain JSON values."""


@dataclass(frozen=True, slots=True)
class History:
    """Who a checkpoint knows, by pictures; those of version 0.1.0 know ids alone."""

    pictures: frozenset[str] = frozenset()
    """Of everybody who was labelled for it or for its ancestors."""
    validated: frozenset[str] = frozenset()
    """Of those among them who only chose an epoch, and trained nothing."""
    ids: frozenset[str] = frozenset()
    validated_ids: frozenset[str] = frozenset()
    people: frozenset[str] = frozenset()
    datasets: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: WithFacts | None) -> History:
        """Read it from a checkpoint's facts."""
        if model is None:
            return cls()
        facts = model.facts
        datasets = tuple(facts.get("datasets") or [facts["dataset"]] if "dataset" in facts else [])
        if "labelled_people" in facts:
            people = frozenset(facts["labelled_people"])
            pictures = frozenset(key.rpartition("@")[0] for key in people)
            return cls(pictures, frozenset(facts.get("validated_pictures", ())), people=people, datasets=datasets)
        ids, validated = tuple(facts.get("labelled_ids", ())), frozenset[str]()
        if "seed" in facts and "recipe" in facts:  # validation was by id
            mask_N = validation_mask(ids, float(facts["recipe"]["pose"]["validation"]), int(facts["seed"]))
            validated = frozenset(id_ for id_, is_in in zip(ids, mask_N, strict=True) if is_in)
        return cls(ids=frozenset(ids), validated_ids=validated, datasets=datasets)

    def completed(self, data_root: Path | None, sizes: Sizes) -> History:
        """Add the pictures of those who are known by their ids alone, of every dataset that can be read."""
        if self.pictures:
            return self
        labelled, learned, people = set[str](), set[str](), set[str]()
        for name in self.datasets:
            with suppress(AlposeError, OSError):
                dataset = open_dataset(name, data_root, sizes=sizes)
                for data in (dataset.train, dataset.test):
                    known_N = self.labelled(data)
                    labelled |= _where(data.pictures(), known_N)
                    people |= _where(data.people_keys(), known_N)
                    learned |= _where(data.pictures(), self.trained(data))
        return replace(self, pictures=frozenset(labelled), validated=frozenset(labelled - learned),
                       people=frozenset(people))  # fmt: skip

    def labelled(self, data: PoseData) -> Bools:
        """Who of these people was labelled for the checkpoint, (N,)."""
        return self._known(data, self.pictures, self.ids)

    def trained(self, data: PoseData) -> Bools:
        """Who of these people trained it: they can judge no net that goes on from it, and choose no epoch of one."""
        return self._known(data, self.pictures - self.validated, self.ids - self.validated_ids)

    def _known(self, data: PoseData, pictures: frozenset[str], ids: frozenset[str]) -> Bools:
        known = [picture in pictures or id_ in ids for picture, id_ in zip(data.pictures(), data.ids, strict=True)]
        return np.array(known, dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class FitData:
    """The people of a fit in their three roles."""

    sources: tuple[Source, ...]
    history: History

    @property
    def train(self) -> PoseData:
        """Everybody who trains or chooses the epoch."""
        parts = [source.train for source in self.sources]
        return parts[0] if len(parts) == 1 else join("+".join(part.name for part in parts), *parts)

    def with_skeleton(self, skeleton: Skeleton) -> FitData:
        """The same people with the model's links and mirror pairs."""
        return replace(self, sources=tuple(source.with_skeleton(skeleton) for source in self.sources))

    def validates(self, data: PoseData, share: float, seed: int) -> Bools:
        """Who of the training people chooses the epoch: whole pictures, or groups, of nobody who trained the net before."""
        names = data.split_names()
        eligible = sorted(set(names) - _where(names, self.history.trained(data)))
        if not eligible:
            raise ConfigError(
                "everybody here trained the checkpoint of --from, so that nobody is left to choose the epoch: bring "
                "people that it has not seen with --data"
            )
        place_of = {name: validation_place(name, seed) for name in eligible}
        chosen = {name for name, place in place_of.items() if place < share} or {
            min(place_of, key=place_of.__getitem__)
        }
        mask_N = np.array([name in chosen for name in names], dtype=np.bool_)
        if mask_N.all():
            raise ConfigError(f"all {len(mask_N)} people are of one picture or group: there is nobody left to train on")
        return mask_N

    def facts(self, data: PoseData, validates_N: Bools, old_ids: Collection[str]) -> dict[str, Any]:
        """What the new checkpoint knows of people: it is the history of the next fit, and keeps calibrations apart."""
        learned, chose = _where(data.pictures(), ~validates_N), _where(data.pictures(), validates_N)
        return {
            "labelled_ids": sorted({*data.ids, *old_ids}),
            "labelled_people": sorted({*data.people_keys(), *self.history.people}),
            "validated_pictures": sorted((chose | self.history.validated) - learned),
        }


def open_fit_data(
    names: Sequence[str], old: WithFacts | None, data_root: Path | None, *, sizes: Sizes, old_sizes: Sizes,
    hold_out: float, old_data: bool, group_by: str | None = None, flip_pairs: str | None = None,
) -> FitData:  # fmt: skip
    """Read every dataset, and give each person one role.

    Args:
        names: folders, or datasets by name.
        old: the checkpoint that is trained on.
        data_root: where datasets are that go by a name.
        sizes: how many people are rendered.
        old_sizes: how many were rendered for the checkpoint.
        hold_out: share of the images of a folder without a ``val`` part.
        old_data: whether those who trained the checkpoint train again.
        group_by: field of the labels' images, whose values are never on both sides.
        flip_pairs: joints that change places in a mirror, in place of what their names say.
    """
    history = History.of(old).completed(data_root, old_sizes)
    sources = []
    for name in names:
        dataset = open_dataset(
            name, data_root, sizes=sizes, hold_out=hold_out, flip_pairs=flip_pairs, group_by=group_by
        )
        train, test = dataset.train, dataset.test
        known_N = history.labelled(test)
        if known_N.any():
            train = join(train.name, train, test.subset(np.flatnonzero(known_N)))
            test = test.subset(np.flatnonzero(~known_N))
        sources.append(Source(name, train, test))
    if old and old_data:
        sources = [*_old_sources(history, names, sources, data_root, old_sizes), *sources]
    return FitData(tuple(_apart(history, _without_copies(sources))), history)


def _old_sources(
    history: History, names: Sequence[str], new: Sequence[Source], data_root: Path | None, sizes: Sizes
) -> list[Source]:
    """The people that trained the checkpoint, from the datasets that it names, without those that are given anew."""
    if not history.datasets:
        raise ConfigError("--from: this checkpoint does not say what trained it: give that data with --data and "
                          "--without-old-data")  # fmt: skip
    given = {_resolved(name) for name in names}
    here = {picture for source in new for part in (source.train, source.held_out) for picture in part.pictures()}
    sources = []
    for name in history.datasets:
        if _resolved(name) in given or (history.pictures and history.pictures <= here):
            continue
        try:
            dataset = open_dataset(name, data_root, sizes=sizes)
        except (ConfigError, DataError, FileNotFoundError) as error:
            raise ConfigError(
                f"the data that trained this checkpoint cannot be read again ({name}: {error}). Without it the model "
                "forgets it; name its place with --data-root, or go on with --without-old-data"
            ) from error
        everyone = dataset.train
        if Path(name).is_dir():  # its own split, whatever it was: who trained is known
            everyone = join(everyone.name, everyone, dataset.test)
        labelled_N = history.labelled(everyone)
        if not labelled_N.any():
            raise ConfigError(
                f"{name} holds nobody of those who trained this checkpoint: is it another version of the data?"
            )
        new_N = np.array([picture not in here for picture in everyone.pictures()], dtype=np.bool_)
        rest = dataset.test if not Path(name).is_dir() else everyone.subset(np.flatnonzero(~labelled_N & new_N))
        if (labelled_N & new_N).any():
            sources.append(Source(name, everyone.subset(np.flatnonzero(labelled_N & new_N)), rest))
    return sources


def _without_copies(sources: Sequence[Source]) -> list[Source]:
    """Every source without training people whose very picture trains under another name: the last source keeps them."""
    name_of: dict[str, tuple[str, str]] = {}
    kept = []
    for source in reversed(sources):
        keep = [name_of.setdefault(picture, (source.name, id_.rpartition("#")[0])) == (source.name, id_.rpartition("#")[0])
                for picture, id_ in zip(source.train.pictures(), source.train.ids, strict=True)]  # fmt: skip
        if not all(keep):
            log.warning("%s: %d of %d people are copies of others by the content of their picture, and left out",
                        source.name, len(keep) - sum(keep), len(keep))  # fmt: skip
            source = replace(source, train=source.train.subset(np.flatnonzero(keep)))
        if len(source.train) or len(source.held_out):
            kept.append(source)
    return kept[::-1]


def _apart(history: History, sources: Sequence[Source]) -> list[Source]:
    """Every source without held-out people whose picture, or group, trains anywhere, or trained the checkpoint."""
    pictures = {picture for source in sources for picture in source.train.pictures()}
    groups = {group for source in sources for group in source.train.groups or ()}
    apart = []
    for source in sources:
        held_out = source.held_out
        keep_N = ~history.labelled(held_out) & np.array([
            picture not in pictures and group not in groups
            for picture, group in zip(held_out.pictures(), held_out.split_names(), strict=True)
        ], dtype=np.bool_)  # fmt: skip
        if not keep_N.all():
            log.warning("%s: %d of %d people cannot be held out, their picture or group trains or trained the net",
                        source.name, int((~keep_N).sum()), len(keep_N))  # fmt: skip
        apart.append(replace(source, held_out=held_out.subset(np.flatnonzero(keep_N))))
    return apart


def _where(names: Sequence[str], mask_N: Bools) -> set[str]:
    return {name for name, is_in in zip(names, mask_N.tolist(), strict=True) if is_in}


def _resolved(name: str) -> str:
    """One name for a folder, however its path is written."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
