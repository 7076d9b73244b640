"""Drawn faces with known factors: pictures to learn from, test and demonstrate with, without any owner.

Everything is drawn as soft-edged shapes in head coordinates: x to the right, y down, both -1 to 1 over the
picture, the eyes at y = 0, as in CelebA's aligned centre crop. A face is a pure function of (seed, index).
"""

import colorsys
from dataclasses import dataclass

import numpy as np

from aecore.data.canvas import Canvas, Window

# Anchors along a factor from 0 to 1, in RGB; what lies between is interpolated.
SKIN = np.array([[252, 216, 190], [236, 190, 155], [205, 150, 110], [158, 106, 72], [112, 73, 52]]) / 255
HAIR = np.array([[28, 22, 22], [72, 44, 30], [132, 62, 32], [214, 168, 96], [196, 190, 186]]) / 255
EYES = np.array([[70, 40, 22], [120, 84, 40], [88, 120, 70], [64, 112, 160]]) / 255


def face_factors(seed: int, index: int) -> dict[str, float]:
    """Draw the factors of face `index` of the set `seed`: independent of each other, each a float.

    From 0 to 1: skin, hair_colour, hair_length, hair_volume, eye_colour, eye_open, brow, mouth_open,
    background, clothes. From -1 to 1: parting, mouth_curve, yaw, tilt, face_width, light.
    0 or 1: fringe, beard, glasses.
    """
    draw = np.random.default_rng([seed, index])
    unit = draw.random(19)
    names = "skin hair_colour hair_length hair_volume eye_colour eye_open brow mouth_open background clothes"
    factors = dict(zip(names.split(), unit[:10].tolist(), strict=True))
    signed = "parting mouth_curve yaw tilt face_width light"
    factors |= dict(zip(signed.split(), (2 * unit[10:16] - 1).tolist(), strict=True))
    return factors | {
        "fringe": float(unit[16] < 0.3),
        "beard": float(unit[17] < 0.2),
        "glasses": float(unit[18] < 0.25),
    }


def draw_face(seed: int, index: int, size: int = 96) -> tuple[np.ndarray, dict[str, float]]:
    """Draw face `index` of the set `seed`: uint8 (size, size, 3), and its `face_factors`."""
    factors = face_factors(seed, index)
    return paint_face(factors, size), factors


def paint_face(factors: dict[str, float], size: int = 96) -> np.ndarray:
    """Paint the face that `factors` (all the keys of `face_factors`) describe: uint8 (size, size, 3)."""
    canvas = Canvas(size, angle=0.16 * factors["tilt"])
    _background(canvas, factors)
    look = _Look.of(factors)
    _hair_behind(canvas, factors, look)
    _body(canvas, factors, look)
    _head(canvas, factors, look)
    for side in (-1, 1):
        _eye(canvas, factors, look, side)
        _brow(canvas, factors, look, side)
    _nose(canvas, look)
    _mouth(canvas, factors, look)
    _hair_before(canvas, factors, look)
    if factors["glasses"]:
        _glasses(canvas, look)
    return canvas.picture()


def _along(anchors: np.ndarray, t: float) -> np.ndarray:
    place = min(max(t, 0.0), 1.0) * (len(anchors) - 1)
    low = min(int(place), len(anchors) - 2)
    return anchors[low] + (place - low) * (anchors[low + 1] - anchors[low])


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


@dataclass(frozen=True)
class _Look:
    """What several parts of one face share."""

    skin: np.ndarray
    hair: np.ndarray
    width: float  # of the face, half
    turn: float  # how far yaw moves the features sideways
    light: float
    light_skin: float  # 1 for the lightest skin, 0 for the darkest
    gloss: float  # how much brighter skin is where it faces the light; dark skin shows it more

    @staticmethod
    def of(factors: dict[str, float]) -> "_Look":
        return _Look(
            skin=_along(SKIN, factors["skin"]),
            hair=_along(HAIR, factors["hair_colour"]),
            width=0.50 + 0.045 * factors["face_width"],
            turn=0.075 * factors["yaw"],
            light=factors["light"],
            light_skin=1 - factors["skin"],
            gloss=1.08 + 0.16 * factors["skin"],
        )


def _background(canvas: Canvas, factors: dict[str, float]) -> None:
    hue = factors["background"]
    high, low = _hsv(hue, 0.30, 0.86), _hsv(hue + 0.06, 0.48, 0.50)
    fall = np.clip(0.5 + 0.42 * canvas.down + 0.22 * factors["light"] * canvas.across, 0, 1)
    canvas.planes[:] = high[:, None, None] + fall * (low - high)[:, None, None]
    whole = canvas.all()
    whole.shade(whole.glow(-0.7 * factors["light"], -0.5, 0.6, 0.6), 1.14)


def _strands(window: Window, look: _Look, middle: float) -> np.ndarray:
    """Give the colour of hair (3, h, w): strands that fall from the parting, and a gloss round the crown."""
    x, y = window.x - np.float32(middle), window.y + np.float32(0.75)
    along = np.arctan2(x, y + np.float32(0.35))
    radius = np.sqrt(x * x + y * y)
    tone = 0.07 * np.sin(23 * along + 3 * radius) + 0.05 * np.sin(51 * along - 5 * radius)
    gloss = np.maximum(1 - np.square((radius - 0.42) / 0.22), 0) * (0.35 + 0.25 * np.sin(31 * along))
    shine = gloss * np.clip(0.8 - 1.2 * look.light * x, 0.1, 1.6) * np.float32(0.20)
    lit = 0.94 - 0.14 * np.clip(radius - 0.7, 0, 1) - 0.12 * look.light * x
    return look.hair[:, None, None].astype(np.float32) * (lit + tone) + shine


def _hair_behind(canvas: Canvas, factors: dict[str, float], look: _Look) -> None:
    whole = canvas.all()
    length = factors["hair_length"]
    if length < 0.35:
        return
    a, end = look.width + 0.09 + 0.10 * factors["hair_volume"], -0.1 + 1.15 * length
    fall = whole.y - np.clip(whole.y, -0.2, end)
    wave = 0.02 * np.sin(9 * whole.y + 4)
    distance = np.sqrt(np.square((np.abs(whole.x) + wave) / a) + np.square(fall / 0.55)) - 1
    whole.fill(whole.inside(distance * a), _strands(whole, look, 0.2 * factors["parting"]) * 0.72)


def _body(canvas: Canvas, factors: dict[str, float], look: _Look) -> None:
    whole = canvas.all()
    neck = np.maximum(
        np.abs(whole.x - look.turn * 0.3) - 0.24 - 0.25 * np.square(np.maximum(whole.y - 0.75, 0)),
        0.4 - whole.y,
    )
    whole.fill(whole.inside(neck), look.skin * 0.80)
    whole.shade(whole.glow(look.turn, 0.80, 0.34, 0.13) * whole.inside(neck), 0.62)
    cloth = _hsv(factors["clothes"], 0.5, 0.35 + 0.5 * ((factors["clothes"] * 7) % 1))
    shoulders = whole.ellipse(0, 1.42, 1.02, 0.50)
    collar = whole.ellipse(look.turn * 0.3, 0.90, 0.30, 0.20)
    cover = whole.inside(np.maximum(shoulders, -collar))
    tone = 1 + 0.25 * (0.9 - whole.y) - 0.25 * look.light * whole.x
    whole.fill(cover, cloth[:, None, None] * tone)
    whole.shade(cover * whole.inside(np.abs(collar) - 0.035), 0.8)


def _head(canvas: Canvas, factors: dict[str, float], look: _Look) -> None:
    whole = canvas.all()
    for side in (-1, 1):
        ear = canvas.box(side * (look.width + 0.01) - look.turn * 0.4, 0.10, 0.13, 0.2)
        cover = ear.inside(ear.ellipse(0, 0, 0.075, 0.145))
        ear.fill(cover, look.skin * (0.90 - 0.12 * look.light * side))
        ear.shade(cover * ear.glow(-0.01 * side, 0.0, 0.04, 0.09), 0.78)
    y = whole.y - np.float32(0.08)
    jaw = np.clip(y / np.float32(0.72), 0, 1)
    half = look.width * (1 - 0.20 * jaw * jaw)
    across = (whole.x - np.float32(0.3 * look.turn)) / half
    down = np.where(y < 0, y / np.float32(0.78), y / np.float32(0.73))
    square = across * across + down * down  # of an egg
    cover = whole.inside((np.sqrt(square) - 1) * np.float32(0.48))
    depth = np.sqrt(np.maximum(1 - np.minimum(square, 1), 0))  # the skin's slope towards the eye, as on an ellipsoid
    lit = 0.66 + 0.34 * depth - 0.17 * look.light * across - 0.07 * down
    warm = np.array([1.0, 0.97, 0.94])[:, None, None] ** ((1 - depth) * 2)  # shadows in skin are reddish
    whole.fill(cover, look.skin[:, None, None] * lit * warm)
    for side in (-1, 1):
        cheek = canvas.box(side * 0.27 + look.turn, 0.30, 0.30, 0.26)
        cheek.fill(cheek.glow(0, 0, 0.14, 0.12), look.skin * [1.02, 0.68, 0.62], 0.28 * (0.4 + 0.6 * look.light_skin))
        cheek.shade(cheek.glow(0.02 * side, -0.09, 0.11, 0.06), look.gloss)
    whole.shade(whole.glow(look.turn - 0.1 * look.light, -0.30, 0.24, 0.14), look.gloss)
    if factors["beard"]:
        edge = np.clip((whole.y - 0.30 - 0.10 * np.cos(5 * (whole.x - look.turn))) * 6, 0, 1)
        mouth = 1 - 0.85 * whole.glow(look.turn, 0.50, 0.13, 0.06)
        whole.fill(cover * edge * mouth, look.hair * 0.75, 0.72)


def _eye(canvas: Canvas, factors: dict[str, float], look: _Look, side: int) -> None:
    nearer = 1 - 0.12 * side * factors["yaw"]  # the eye that turns away looks narrower
    x, half = side * 0.225 + look.turn, 0.132 * min(nearer, 1.05)
    high = 0.030 + 0.046 * factors["eye_open"]
    eye = canvas.box(x, 0.02, 0.26, 0.20)
    eye.shade(eye.glow(0, -0.05, 0.15, 0.085), 0.74)
    eye.shade(eye.glow(-0.10 * side, -0.02, 0.05, 0.07), 0.86)
    arch = 1 - np.square(eye.x / np.float32(half))
    lid, floor = -high * arch, 0.6 * high * arch
    opening = eye.inside(np.maximum(lid - eye.y, eye.y - floor) * np.float32(0.9))
    eye.fill(opening, np.array([0.95, 0.94, 0.93]) * (0.82 + 0.14 * look.light_skin))
    gaze = 0.016 * factors["yaw"]
    iris = opening * eye.inside(eye.ellipse(gaze, -0.006, 0.057, 0.062))
    colour = _along(EYES, factors["eye_colour"])
    eye.fill(iris, colour * 0.62)
    eye.fill(opening * eye.inside(eye.ellipse(gaze, 0.002, 0.040, 0.043), 0.02), colour * 1.15)
    eye.fill(opening * eye.inside(eye.ellipse(gaze, -0.006, 0.023, 0.025)), np.array([0.05, 0.04, 0.04]))
    eye.shade(opening * np.clip(1 - (eye.y - lid) * 30, 0, 1), 0.6)
    eye.fill(opening * eye.inside(eye.ellipse(gaze - 0.018, -0.024, 0.011, 0.011)), np.ones(3), 0.9)
    wide = eye.inside(np.abs(eye.x) - np.float32(half + 0.012))
    eye.fill(wide * eye.inside(np.abs(eye.y - lid + 0.006) - 0.011), look.skin * 0.12, 0.9)  # lashes
    eye.fill(wide * eye.inside(np.abs(eye.y - lid + 0.046) - 0.005, 0.01), look.skin * 0.5, 0.5)  # the lid's crease
    eye.fill(wide * eye.inside(np.abs(eye.y - floor) - 0.004, 0.01), look.skin * 0.5, 0.55)


def _brow(canvas: Canvas, factors: dict[str, float], look: _Look, side: int) -> None:
    brow = canvas.box(side * 0.235 + look.turn, -0.155, 0.22, 0.12)
    out = side * brow.x  # grows outwards
    line = -0.035 * (1 - np.square(out / np.float32(0.16))) - (0.10 * factors["brow"] - 0.03) * out
    thick = (0.020 + 0.010 * factors["brow"]) * np.clip(1.05 - 2.2 * out, 0.35, 1.15)
    ends = np.abs(out) - np.float32(0.165)
    cover = brow.inside(np.maximum(np.abs(brow.y - line) - thick, ends), 0.015)
    brow.fill(cover, 0.55 * look.hair, 0.85)


def _nose(canvas: Canvas, look: _Look) -> None:
    nose = canvas.box(look.turn * 1.35, 0.18, 0.2, 0.30)
    shadow_side = 1.0 if look.light >= 0 else -1.0
    strength = 0.16 + 0.12 * abs(look.light)
    nose.shade(nose.glow(0.062 * shadow_side, 0.0, 0.035, 0.14), 1 - strength)
    nose.shade(nose.glow(-0.05 * shadow_side, -0.02, 0.025, 0.10), 0.95)
    nose.shade(nose.glow(0, -0.01, 0.026, 0.16), look.gloss + 0.04)
    nose.shade(nose.glow(0, 0.155, 0.115, 0.04), 0.72)  # under the tip
    nose.shade(nose.glow(0, 0.085, 0.05, 0.045), look.gloss + 0.06)
    for side in (-1, 1):
        nose.shade(nose.glow(0.088 * side, 0.10, 0.028, 0.038), 0.82)
        nose.fill(nose.inside(nose.ellipse(0.048 * side, 0.145, 0.024, 0.014), 0.015), look.skin * 0.28, 0.8)


def _mouth(canvas: Canvas, factors: dict[str, float], look: _Look) -> None:
    curve, half = 0.3 + 0.7 * factors["mouth_curve"], 0.165 + 0.025 * factors["mouth_curve"]
    gape = 0.075 * max(factors["mouth_open"] - 0.45, 0) / 0.55
    mouth = canvas.box(look.turn * 1.1, 0.50, 0.30, 0.24)
    t = mouth.x / np.float32(half)
    arch = np.maximum(1 - t * t, 0)
    centre = (0.055 * curve + 0.005) * (arch - 0.6)  # corners rise with a smile
    top = centre - arch * gape * 0.4 - np.sqrt(arch) * 0.042 + 0.014 * np.maximum(1 - np.square(t / 0.25), 0)
    inner_top, inner_end = centre - arch * gape * 0.5, centre + arch * gape
    end = inner_end + np.sqrt(arch) * 0.062
    mouth.shade(mouth.glow(0, 0.125 + gape, 0.11, 0.035), 0.78)  # under the lower lip
    red = look.skin * [0.84, 0.55, 0.56] + np.array([0.03, 0.0, 0.01])
    wide = np.abs(mouth.x) - np.float32(half)
    lips = mouth.inside(np.maximum(np.maximum(top - mouth.y, mouth.y - end), wide), 0.008)
    mouth.fill(lips, red)
    mouth.shade(lips * mouth.inside(mouth.y - inner_top), 0.86)
    mouth.shade(mouth.glow(-0.03 * look.light, 0.035 + gape, 0.06, 0.014), 1.2)
    gap = mouth.inside(np.maximum(np.maximum(inner_top - mouth.y, mouth.y - inner_end) - 0.004, wide))
    mouth.fill(gap, look.skin * 0.22 + np.array([0.06, 0.0, 0.0]))
    if gape > 0.01:
        teeth = mouth.inside(np.maximum(inner_top + 0.004 - mouth.y, mouth.y - inner_top - 0.045), 0.01)
        mouth.fill(gap * teeth * np.clip(1.3 - np.abs(t), 0, 1), np.array([0.95, 0.93, 0.90]), 0.95)
    for side in (-1, 1):
        mouth.shade(mouth.glow(side * (half + 0.02), -0.02 * curve, 0.025, 0.03), 0.84)


def _hair_before(canvas: Canvas, factors: dict[str, float], look: _Look) -> None:
    whole = canvas.all()
    middle, volume = 0.28 * factors["parting"], factors["hair_volume"]
    width, height = look.width + 0.05 + 0.06 * volume, 0.76 + 0.08 * volume
    cube = np.abs((whole.x - np.float32(0.2 * look.turn)) / np.float32(width)) ** 2.5
    skull = (cube + np.abs((whole.y + np.float32(0.08)) / np.float32(height)) ** 2.5 - 1) * np.float32(0.3)
    if factors["fringe"]:
        line = -0.27 + 0.05 * np.cos(14 * (whole.x - middle)) + 0.5 * np.square(whole.x)
    else:  # two sweeps away from the parting
        line = -0.56 + 0.62 * np.abs(whole.x - np.float32(middle)) ** 1.15 + 0.9 * np.square(whole.x)
    temple = np.float32(look.width * 0.93) - np.abs(whole.x - np.float32(0.3 * look.turn))
    reach = 0.02 if factors["hair_length"] < 0.35 else 0.15 + 0.75 * (factors["hair_length"] - 0.35)
    lock = np.maximum(temple + 0.05 * np.maximum(whole.y, 0), whole.y - np.float32(reach))
    front = np.maximum(skull, np.minimum(whole.y - line, lock))
    under = np.maximum(skull, np.minimum(whole.y - line - 0.05, lock - 0.03))
    whole.shade(whole.inside(under, 0.08), 0.80)  # the shadow of the hair on the skin
    whole.fill(whole.inside(front, 0.012), _strands(whole, look, middle))


def _glasses(canvas: Canvas, look: _Look) -> None:
    frame = np.array([0.09, 0.08, 0.09])
    for side in (-1, 1):
        lens = canvas.box(side * 0.232 + look.turn, 0.03, 0.30, 0.22)
        fourth = np.square(np.square(lens.x / np.float32(0.178))) + np.square(np.square(lens.y / np.float32(0.130)))
        distance = (np.sqrt(np.sqrt(fourth)) - 1) * np.float32(0.14)
        lens.fill(lens.inside(distance), np.array([0.86, 0.92, 0.97]), 0.08)
        lens.fill(lens.inside(np.abs(distance) - 0.010), frame, 0.92)
        arm = np.maximum(np.abs(lens.y + 0.04) - 0.010, 0.178 - side * lens.x)
        lens.fill(lens.inside(arm) * (np.abs(lens.x) < 0.26), frame, 0.85)
    bridge = canvas.box(look.turn, 0.0, 0.08, 0.05)
    bridge.fill(
        bridge.inside(np.maximum(np.abs(bridge.y - 0.3 * bridge.x**2) - 0.010, np.abs(bridge.x) - 0.06)),
        frame,
    )
