"""What is remembered of each camera or person between two frames: where they are, and how they held themselves."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from .bundle import Bundle
from .errors import ConfigError, DataError
from .queue.record import MAX_NAME, is_name
from .signals import Signals
from .stats import Counters
from .where import Box, Region, Track, Where, Whole, usual_sureness

MOST = 64
"""Streams that are remembered: names are few. Whoever gives every passer-by a new one loses the oldest, counted."""


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """One camera, or one person before it."""

    name: str
    """As the app gave it; empty for the only one."""
    camera: str
    """As records have it: the Monitor's camera, then the name."""
    where: Where
    signals: Signals


class Streams:
    """All of them by name, each made when it is first seen.

    Args:
        camera: the Monitor's name of its camera.
        where: makes what says where the person is.
        signals: makes what compares a pose with those before.
        counters: where forgotten streams are counted.
    """

    def __init__(
        self, camera: str, where: Callable[[], Where], signals: Callable[[], Signals], counters: Counters
    ) -> None:
        self._camera, self._where, self._signals, self._counters = camera, where, signals, counters
        self._known: OrderedDict[str, Stream] = OrderedDict()

    def __call__(self, name: str) -> Stream:
        """The stream of this name; the one that was not seen for the longest makes room for a new one."""
        stream = self._known.get(name)
        if stream is None:
            camera = "/".join(part for part in (self._camera, name) if part)
            if not is_name(camera):
                raise DataError(
                    f"a stream's name, behind the camera's, has at most {MAX_NAME} printable letters, got {camera!r:.100}"
                )
            stream = self._known[name] = Stream(name, camera, self._where(), self._signals())
            if len(self._known) > MOST:
                self._known.popitem(last=False)
                self._counters.add("forgotten_streams_total")
        else:
            self._known.move_to_end(name)
        return stream


def where_of(bundle: Bundle, roi: Box | None, track: bool) -> Callable[[], Where]:
    """What makes the :class:`Where` of a new stream; :class:`ConfigError` for a region that is none."""
    margin = bundle.crop.margin
    if roi is not None and track:
        raise ConfigError("give roi= or track=True, not both: a person is in a fixed region, or is followed")
    if roi is not None:
        region = Region(roi)
        return lambda: region
    if track:
        usual = usual_sureness(bundle.golden.expected.scores_NJ)
        return lambda: Track(margin=margin, usual=usual)
    whole = Whole(margin)
    return lambda: whole
