"""Selected people as pictures: a small JPEG with both skeletons as vector paths on top.

Shapes: G people in the gallery, J joints, S crop side.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ..results import Gallery
from .form import number, significant

SHOWN = 12
"""People per method."""
SIDE = 208
"""Side of the JPEG in pixels; the skeletons stay sharp."""
QUALITY = 80


@dataclass(frozen=True, slots=True)
class Picture:
    """One person: links and joints are SVG path data in pixels of the crop."""

    id: str
    source: str
    """JPEG data URI."""
    side: int
    true_links: str
    true_joints: str
    predicted_links: str
    predicted_joints: str
    true_loss: str
    pck: str
    score: str


def pictures(gallery: Gallery) -> tuple[Picture, ...]:
    """The first people of a gallery."""
    return tuple(picture(gallery, place) for place in range(min(SHOWN, len(gallery.ids))))


def picture(gallery: Gallery, place: int) -> Picture:
    """One person; joints that are not labelled or not finite are not drawn."""
    links = gallery.skeleton.links
    true_J2, predicted_J2 = gallery.true_GJ2[place], gallery.predicted_GJ2[place]
    labelled_J = gallery.labelled_GJ[place] & np.isfinite(true_J2).all(axis=1)
    found_J = np.isfinite(predicted_J2).all(axis=1)
    return Picture(
        id=gallery.ids[place],
        source=data_uri(gallery.crops_GSS3[place]),
        side=gallery.crops_GSS3.shape[1],
        true_links=links_path(true_J2, labelled_J, links),
        true_joints=joints_path(true_J2, labelled_J),
        predicted_links=links_path(predicted_J2, found_J, links),
        predicted_joints=joints_path(predicted_J2, found_J),
        true_loss=significant(float(gallery.true_loss_G[place])),
        pck=number(float(gallery.image_pck_G[place]), 2),
        score=significant(float(gallery.score_G[place])),
    )


def links_path(
    joints_J2: npt.NDArray[np.float32], drawn_J: npt.NDArray[np.bool_], links: tuple[tuple[int, int], ...]
) -> str:
    """Path data of the links whose two ends are drawn."""
    return "".join(f"M{at(joints_J2[a])}L{at(joints_J2[b])}" for a, b in links if drawn_J[a] and drawn_J[b])


def joints_path(joints_J2: npt.NDArray[np.float32], drawn_J: npt.NDArray[np.bool_]) -> str:
    """Path data of strokes without length, whose round ends are the joints."""
    return "".join(f"M{at(joint)}h0" for joint, drawn in zip(joints_J2, drawn_J, strict=True) if drawn)


def at(joint_2: npt.NDArray[np.float32]) -> str:
    """A joint in SVG's coordinates, where the centre of the first pixel is 0.5."""
    return f"{joint_2[0] + 0.5:.1f} {joint_2[1] + 0.5:.1f}"


def data_uri(crop_SS3: npt.NDArray[np.uint8], side: int = SIDE) -> str:
    """A crop as JPEG, made smaller where it is larger than it is shown."""
    bgr = np.ascontiguousarray(crop_SS3[..., ::-1])
    if len(bgr) > side:
        bgr = cv2.resize(bgr, (side, side), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
