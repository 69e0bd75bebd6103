"""Open what arrived under seal: the pictures of a fleet that encrypts them, with the key that no device has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alpose.runtime.bundle.keys import opener
from alpose.runtime.errors import AlposeError, DataError
from alpose.runtime.queue import images
from alpose.runtime.queue.record import PictureInfo

from .inbox import Inbox

Report = Callable[[int, int], None]
"""(done, of)."""


@dataclass(frozen=True, slots=True)
class Unsealed:
    """What became of the sealed frames of an inbox."""

    opened: int
    """Frames; every picture of each."""
    problems: tuple[str, ...]
    """One line a frame that stays sealed."""


def unseal(inbox: Inbox, private_key: Path, report: Report = lambda done, of: None) -> Unsealed:
    """Open every sealed frame of an inbox; one that does not open is listed, and the others go on.

    Interrupted, it goes on with the same call: the frame itself is written after its neighbours, and is what counts.

    Raises:
        DataError: the inbox can only be read.
        ConfigError: no private key for sealing, or one that others can read.
        DataNotFoundError: its file does not exist.
        MissingExtraError: pynacl is not installed.
    """
    open_box = opener(private_key)
    inbox.require_writable()
    ids = inbox.sealed()
    problems = []
    images_of = dict[str, Path]()
    for place, id_ in enumerate(ids, start=1):
        (entry,) = inbox.entries([id_])
        try:
            for fact in sorted(entry.pictures, key=lambda fact: fact.position == 0):
                if not fact.sealed:
                    continue
                same = images_of.get(fact.sha256)  # several people may be on one picture
                if same is not None:
                    inbox.link_unsealed(id_, fact, same)
                else:
                    images_of[fact.sha256] = inbox.store_unsealed(id_, fact, _opened(inbox, id_, fact, open_box))
        except AlposeError as error:
            problems.append(f"{id_}: {error}")
        report(place, len(ids))
    return Unsealed(len(ids) - len(problems), tuple(problems))


def _opened(inbox: Inbox, id_: str, fact: PictureInfo, open_box: Callable[[bytes], bytes]) -> bytes:
    """The image in a box. Anybody can seal to a public key: that it decodes is all that is known of it."""
    sealed = inbox.picture_bytes(id_, fact)
    if sealed is None:
        raise DataError(f"the sealed picture at position {fact.position} is not here whole: pull it again")
    image = open_box(sealed)
    height, width, _ = images.decode(image).shape
    if (width, height) != (fact.width, fact.height):
        raise DataError(f"the box holds {width} x {height} px, and its record says {fact.width} x {fact.height}")
    return image
