"""Made-up people with the joints of LSP: a data set that needs no download, for tests, demonstrations and CI.

Two domains: ``easy`` plays the role of LSP (upright people, plain pictures, every joint labelled) and ``hard``
that of LSPET (gymnastics, occluders, bad light, blur, clutter, a tenth of the joints without a label). Within
``hard`` the difficulty differs from picture to picture, from nearly easy to hopeless.

Everything about picture i follows from (seed, domain, i), whatever is read before it and in which process.
Other versions of NumPy and OpenCV may round pixels differently.

Shapes: N people, J joints (LSP order), H W picture, P points of an outline. Pixels are uint8 RGB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError
from alpose.runtime.skeleton import LSP

from .records import PoseData, joint_boxes
from .synthetic_figure import PARTS, Colour, Figure, Look, Picture, capsules, figure, paint, paint_figure, tint
from .synthetic_pose import ASPECTS, LEVELS, Array, People, sample_people

DOMAINS = tuple(LEVELS)

_VERSION = 1
"""Part of every fingerprint: raise it when the same seed gives other pixels or labels."""
_PIXELS = 1000
"""Keeps the random numbers of pixels apart from those of poses."""

Rng = np.random.Generator

_SKINS: tuple[Colour, ...] = ((236, 196, 170), (224, 172, 138), (198, 140, 104), (150, 98, 68), (98, 64, 48))
_HAIRS: tuple[Colour, ...] = ((30, 24, 22), (70, 44, 28), (120, 80, 44), (196, 160, 96), (150, 146, 142))


@dataclass(frozen=True, slots=True)
class SyntheticImages:
    """Pictures rendered when they are read."""

    seed: int
    count: int
    domain: str

    def __post_init__(self) -> None:
        if self.domain not in DOMAINS:
            raise ConfigError(f"there is no synthetic domain {self.domain!r}; use one of: {', '.join(DOMAINS)}")

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """One picture, uint8 (H, W, 3) RGB, 144 to 200 pixels high."""
        if not 0 <= index < self.count:
            raise IndexError(f"synthetic-{self.domain} has {self.count} pictures, there is none at {index}")
        entropy = np.random.SeedSequence([self.seed, DOMAINS.index(self.domain), _PIXELS, index])
        people = sample_people(self.seed, self.domain, index, 1)
        return render(people, 0, np.random.Generator(np.random.Philox(entropy)), self.domain)

    def describe(self, index: int) -> str:
        """What the pixels follow from."""
        return f"synthetic-{self.domain}:v{_VERSION}:{self.seed}:{index}"


def read_people(*, seed: int = 0, count: int, domain: str = "easy") -> PoseData:
    """People and their labels; the pictures are rendered later, one at a time.

    A joint is visible when no occluder covers it; that the person's own body covers it does not count.

    Args:
        seed: 0 or more; other seeds give other people.
        count: number of people; the first ones are the same for every count.
        domain: ``easy`` or ``hard``.
    """
    people = sample_people(seed, domain, 0, count)
    shown_NJ2, labelled_NJ = people.joints_NJ3[..., :2], people.labelled_NJ
    joints_NJ2 = np.where(labelled_NJ[..., None], shown_NJ2, people.garbage_NJ2).astype(np.float32)
    return PoseData(
        name=f"synthetic-{domain}",
        skeleton=LSP,
        ids=tuple(f"synthetic-{domain}/{seed}-{index:05d}" for index in range(count)),
        images=SyntheticImages(seed, count, domain),
        image_N=np.arange(count, dtype=np.int64),
        joints_NJ2=joints_NJ2,
        labelled_NJ=labelled_NJ,
        visible_NJ=people.visible_NJ,
        boxes_N4=joint_boxes(joints_NJ2, labelled_NJ),
    )


# --- Pictures: background, other people, the person, occluders, light, blur and noise


def render(people: People, row: int, rng: Rng, domain: str) -> Picture:
    """The picture of one person. ``rng`` decides all that labels do not tell."""
    level = dict(zip(ASPECTS, people.aspects_NA[row].tolist(), strict=True))
    width, height = people.size_N2[row].tolist()
    person = figure(people, row)
    picture_HW3 = background(rng, width, height, level["clutter"])
    for _ in range(int(rng.binomial(2, 0.6 * level["clutter"] ** 2))):
        _bystander(picture_HW3, person, rng, domain)
    mean_3 = picture_HW3[::8, ::8].reshape(-1, 3).mean(axis=0)
    look = fade(sample_look(rng), mean_3, 0.85 * level["contrast"] * rng.random())
    paint_figure(picture_HW3, person, look)
    paint_occluders(picture_HW3, people, row, rng)
    picture_HW3 = _relight(picture_HW3, rng, level["light"])
    picture_HW3 = _blur(picture_HW3, rng, level["blur"])
    return _grain(picture_HW3, rng, level["blur"])


def sample_look(rng: Rng) -> Look:
    """Skin, hair and clothes of somebody. Left and right look alike: only the body tells them apart."""
    skin = tint(_SKINS[int(rng.integers(len(_SKINS)))], float(rng.uniform(0.9, 1.1)))
    # Hair as dark as the skin would hide whether a face looks at the camera.
    contrasts = [hair for hair in _HAIRS if abs(sum(hair) - sum(skin)) > 90]
    hair = tint(contrasts[int(rng.integers(len(contrasts)))], float(rng.uniform(0.85, 1.15)))
    shirt, trousers, shoes, strip = (_cloth(rng) for _ in range(4))
    colours = dict.fromkeys(PARTS, skin)
    colours.update(hair=hair, chest=shirt, pelvis=trousers, print=strip, eyes=(25.0, 20.0, 20.0))
    shorts, sleeves = rng.random() < 0.3, rng.random()
    for side in ("right", "left"):
        colours.update({f"{side}_thigh": trousers, f"{side}_foot": shoes})
        colours[f"{side}_shin"] = skin if shorts else trousers
        colours[f"{side}_upper_arm"] = skin if sleeves < 0.2 else shirt
        colours[f"{side}_forearm"] = shirt if sleeves > 0.65 else skin
    angle = -np.pi / 2 + rng.uniform(-1.2, 1.2)  # light comes from above
    light_2 = np.array([np.cos(angle), np.sin(angle)])
    return Look(colours, light_2, float(rng.uniform(0.2, 0.4)))


def fade(look: Look, towards_3: Array, amount: float) -> Look:
    """The same look with all colours nearer to one colour, as clothes that merge with the background."""
    faded: dict[str, Colour] = {}
    for part, colour in look.colours.items():
        red, green, blue = (1 - amount) * np.array(colour) + amount * towards_3
        faded[part] = (float(red), float(green), float(blue))
    return replace(look, colours=faded)


def _cloth(rng: Rng) -> Colour:
    """A colour of clothes: some grey, most of them coloured."""
    red, green, blue = rng.uniform(20, 240) + rng.uniform(0.0, 1.0) * rng.uniform(-110, 110, size=3)
    return tint((red, green, blue), 1.0)


def background(rng: Rng, width: int, height: int, clutter: float) -> Picture:
    """A gradient with noise of several grain sizes; clutter adds contrast, stripes, shapes and stray limbs."""
    base_3 = rng.uniform(0, 50, size=3) + rng.uniform(35, 165)
    corner_223 = np.clip(base_3 + rng.uniform(-1, 1, size=(3, 2, 3)) * (25 + 50 * clutter), 0, 255)
    picture_HW3 = cv2.resize(corner_223.astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)
    for cell in (40, 14, 5, 2):
        amount = rng.uniform(0.2, 1.0) * (0.07 + 0.22 * clutter)
        picture_HW3 = _speckle(picture_HW3, rng, cell, amount)
    if rng.random() < 0.2 + 0.4 * clutter:
        _stripes(picture_HW3, rng, base_3, 20 + 60 * clutter)
    for _ in range(int(rng.integers(0, 3 + int(14 * clutter)))):
        _shape(picture_HW3, rng, base_3, 35 + 85 * clutter)
    for _ in range(int(rng.integers(0, 2 + int(7 * clutter)))):
        _stray_limb(picture_HW3, rng)
    return picture_HW3


def _speckle(picture_HW3: Picture, rng: Rng, cell: int, amount: float) -> Picture:
    """Add smooth noise with a grain of ``cell`` pixels, up to 128 ``amount`` either way."""
    height, width, _ = picture_HW3.shape
    coarse_hw3 = rng.integers(0, 256, size=(height // cell + 2, width // cell + 2, 3), dtype=np.uint8)
    # Half grey, half coloured: natural textures vary in brightness more than in hue.
    coarse_hw3[..., 1:] = coarse_hw3[..., 1:] // 2 + coarse_hw3[..., :1] // 2
    noise_HW3 = cv2.resize(coarse_hw3, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.addWeighted(picture_HW3, 1.0, noise_HW3, amount, -128 * amount), dtype=np.uint8)


def _near_colour(rng: Rng, base_3: Array, spread: float) -> Colour:
    """A colour around another."""
    red, green, blue = np.clip(base_3 + rng.uniform(-spread, spread, size=3), 0, 255)
    return float(red), float(green), float(blue)


def _stripes(picture_HW3: Picture, rng: Rng, base_3: Array, spread: float) -> None:
    """Parallel bars across a part of the picture: fences, bleachers, court lines."""
    height, width, _ = picture_HW3.shape
    colour, angle, gap = _near_colour(rng, base_3, spread), rng.uniform(0, np.pi), rng.uniform(10, 30)
    along_2, across_2 = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    middle_2, thick = rng.uniform(0.2, 0.8, size=2) * [width, height], gap * rng.uniform(0.06, 0.25)
    centre_L2 = middle_2 + (np.arange(int(rng.integers(3, 11))) - 4)[:, None] * gap * across_2
    reach_2, thick_L = rng.uniform(40, 200) * along_2, np.full(len(centre_L2), thick)
    for outline_P2 in capsules(centre_L2 - reach_2, centre_L2 + reach_2, thick_L, thick_L):
        paint(picture_HW3, outline_P2, colour)


def _shape(picture_HW3: Picture, rng: Rng, base_3: Array, spread: float) -> None:
    """A random ellipse, box or triangle."""
    height, width, _ = picture_HW3.shape
    corners = (3, 4, 16)[int(rng.integers(3))]
    angle_P = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
    outline_P2 = np.stack([np.cos(angle_P), np.sin(angle_P)], axis=1) * rng.uniform(5, 40, size=2)
    middle_2 = rng.random(2) * [width, height]
    paint(picture_HW3, outline_P2 + middle_2, _near_colour(rng, base_3, spread))


def _stray_limb(picture_HW3: Picture, rng: Rng) -> None:
    """Two tapered rods joined like an arm or a leg that belongs to nobody."""
    height, width, _ = picture_HW3.shape
    colour = _cloth(rng) if rng.random() < 0.5 else _SKINS[int(rng.integers(len(_SKINS)))]
    angle_2 = np.cumsum(rng.uniform(-1.3, 1.3, size=2)) + rng.uniform(0, 2 * np.pi)
    step_22 = rng.uniform(18, 36) * np.stack([np.cos(angle_2), np.sin(angle_2)], axis=1)
    start_2, radius = rng.random(2) * [width, height], rng.uniform(3, 7)
    chain_32 = start_2 + np.concatenate([np.zeros((1, 2)), np.cumsum(step_22, axis=0)])
    radius_3 = radius * np.array([1.0, 0.75, 0.55])
    for narrow, factor in ((1.0, 0.7), (0.75, 1.0)):
        for outline_P2 in capsules(chain_32[:-1], chain_32[1:], radius_3[:-1] * narrow, radius_3[1:] * narrow):
            paint(picture_HW3, outline_P2, tint(colour, factor))


def _bystander(picture_HW3: Picture, person: Figure, rng: Rng, domain: str) -> None:
    """Another, smaller person behind and beside the one who is labelled."""
    other = figure(sample_people(int(rng.integers(2**31)), domain, 0, 1), 0)
    aside = rng.choice([-1.0, 1.0]) * rng.uniform(0.3, 0.6) * person.unit
    target_2 = person.points_P3[12, :2] + [aside, rng.uniform(-0.1, 0.3) * person.unit]
    shift_2 = target_2 - other.points_P3[12, :2]
    paint_figure(picture_HW3, other.moved(shift_2, float(rng.uniform(0.5, 0.85))), sample_look(rng))


def paint_occluders(picture_HW3: Picture, people: People, row: int, rng: Rng) -> None:
    """The boxes and ellipses that :func:`covered` knows, with a lighter core so that they are not mere holes."""
    occluders = people.occluders
    for index in np.flatnonzero(occluders.present_NM[row]):
        cosine, sine = np.cos(occluders.angle_NM[row, index]), np.sin(occluders.angle_NM[row, index])
        turn_P = np.arange(32) * np.pi / 16
        corner_P2 = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
        local_P2 = corner_P2 if occluders.box_NM[row, index] else np.stack([np.cos(turn_P), np.sin(turn_P)], axis=1)
        local_P2 = local_P2 * occluders.half_NM2[row, index] @ np.array([[cosine, sine], [-sine, cosine]])
        colour = _cloth(rng)
        for narrow, factor in ((1.0, 0.75), (rng.uniform(0.6, 0.9), 1.0), (rng.uniform(0.1, 0.5), 1.15)):
            paint(picture_HW3, occluders.centre_NM2[row, index] + local_P2 * narrow, tint(colour, factor))


def _relight(picture_HW3: Picture, rng: Rng, level: float) -> Picture:
    """Exposure, contrast and colour cast, and a shadow that falls across the picture."""
    height, width, _ = picture_HW3.shape
    gamma = np.exp(rng.uniform(-1, 1) * (0.1 + 0.7 * level))
    cast_3 = np.exp(rng.uniform(-1, 1, size=3) * (0.04 + 0.25 * level))
    contrast = 1 - 0.7 * level * rng.random()
    tone_256 = 255 * np.linspace(0, 1, 256) ** gamma
    centre = float(rng.uniform(60, 190))
    table_256x3 = (centre + contrast * (tone_256 - centre))[:, None] * cast_3
    table_256x3 = np.clip(table_256x3, 0, 255).astype(np.uint8)
    picture_HW3 = cv2.LUT(picture_HW3, table_256x3[None])
    dark_33 = 255 * (1 - rng.random((3, 3)) * 0.85 * level)
    shadow_HW = cv2.resize(dark_33.astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)
    shadow_HW3 = cv2.cvtColor(shadow_HW, cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.multiply(picture_HW3, shadow_HW3, scale=1 / 255), dtype=np.uint8)


def _blur(picture_HW3: Picture, rng: Rng, level: float) -> Picture:
    """Out of focus, in motion or of low resolution, by a random amount up to what the level allows."""
    amount, kind = level * rng.random(), rng.random()
    height, width, _ = picture_HW3.shape
    if kind < 0.4:
        picture_HW3 = cv2.GaussianBlur(picture_HW3, (0, 0), 0.4 + 3.0 * amount)
    elif kind < 0.7:
        step_2 = 7 * amount * np.array([np.cos(20 * kind), np.sin(20 * kind)])
        kernel_15x15 = np.zeros((15, 15), dtype=np.uint8)
        ends = np.rint(16 * (7 + np.stack([-step_2, step_2]))).astype(int)
        cv2.line(kernel_15x15, ends[0].tolist(), ends[1].tolist(), 255, 1, cv2.LINE_AA, 4)
        picture_HW3 = cv2.filter2D(picture_HW3, -1, kernel_15x15 / float(kernel_15x15.sum()))
    else:
        factor = 1 / (1 + 3.5 * amount)
        small_hw3 = cv2.resize(picture_HW3, (0, 0), fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        picture_HW3 = cv2.resize(small_hw3, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(picture_HW3, dtype=np.uint8)


def _grain(picture_HW3: Picture, rng: Rng, level: float) -> Picture:
    """Sensor noise."""
    noise_HW3 = rng.integers(0, 256, size=picture_HW3.shape, dtype=np.uint8)
    amount = 0.04 + 0.35 * level * rng.random()
    return np.asarray(cv2.addWeighted(picture_HW3, 1.0, noise_HW3, amount, -128 * amount), dtype=np.uint8)
