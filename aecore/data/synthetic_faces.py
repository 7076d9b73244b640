"""Synthetic faces with ground-truth factors: images without a licence, for training, tests and demos.

A face is drawn as soft-edged shapes in head coordinates: x to the right, y down, both -1 to 1 over the image,
the eyes at y = 0, as in CelebA's aligned centre crop. A face is a pure function of (seed, index).
"""

import colorsys
from dataclasses import dataclass

import numpy as np

from aecore.data.canvas import Canvas, Window

# RGB anchors of a factor from 0 to 1; colours between them are interpolated.
SKIN = np.array([[252, 216, 190], [236, 190, 155], [205, 150, 110], [158, 106, 72], [112, 73, 52]]) / 255
HAIR = np.array([[28, 22, 22], [72, 44, 30], [132, 62, 32], [214, 168, 96], [196, 190, 186]]) / 255
EYES = np.array([[70, 40, 22], [120, 84, 40], [88, 120, 70], [64, 112, 160]]) / 255


def face_factors(seed: int, index: int) -> dict[str, float]:
    """Sample the factors of face `index` of the set `seed`: independent floats.

    From 0 to 1: skin, hair_colour, hair_length, hair_volume, eye_colour, eye_open, brow, mouth_open,
    background, clothes. From -1 to 1: parting, mouth_curve, yaw, tilt, face_width, light.
    0 or 1: fringe, beard, glasses.
    """
    unit = np.random.default_rng([seed, index]).random(19)
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
    """Paint the face of `factors` (all keys of `face_factors`): uint8 (size, size, 3)."""
    canvas = Canvas(size, angle=0.16 * factors["tilt"])
    _background(canvas, factors)
    face = _Face.of(factors)
    _hair_behind(canvas, factors, face)
    _body(canvas, factors, face)
    _head(canvas, factors, face)
    for side in (-1, 1):
        _eye(canvas, factors, face, side)
        _brow(canvas, factors, face, side)
    _nose(canvas, face)
    _mouth(canvas, factors, face)
    _hair_in_front(canvas, factors, face)
    if factors["glasses"]:
        _glasses(canvas, face)
    return canvas.to_image()


def _interpolate(anchors: np.ndarray, t: float) -> np.ndarray:
    position = min(max(t, 0.0), 1.0) * (len(anchors) - 1)
    lower = min(int(position), len(anchors) - 2)
    return anchors[lower] + (position - lower) * (anchors[lower + 1] - anchors[lower])


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


@dataclass(frozen=True)
class _Face:
    """The properties that several features of a face depend on."""

    skin: np.ndarray
    hair: np.ndarray
    half_width: float
    turn: float  # shift of the features to the side by yaw
    light: float
    light_skin: float  # 1 for the lightest skin, 0 for the darkest
    gloss: float  # brightness factor of skin that faces the light; higher for dark skin

    @staticmethod
    def of(factors: dict[str, float]) -> "_Face":
        return _Face(
            skin=_interpolate(SKIN, factors["skin"]),
            hair=_interpolate(HAIR, factors["hair_colour"]),
            half_width=0.50 + 0.045 * factors["face_width"],
            turn=0.075 * factors["yaw"],
            light=factors["light"],
            light_skin=1 - factors["skin"],
            gloss=1.08 + 0.16 * factors["skin"],
        )


def _background(canvas: Canvas, factors: dict[str, float]) -> None:
    hue = factors["background"]
    top_colour, bottom_colour = _hsv(hue, 0.30, 0.86), _hsv(hue + 0.06, 0.48, 0.50)
    gradient = np.clip(0.5 + 0.42 * canvas.image_y + 0.22 * factors["light"] * canvas.image_x, 0, 1)
    canvas.planes[:] = top_colour[:, None, None] + gradient * (bottom_colour - top_colour)[:, None, None]
    window = canvas.full_window()
    window.shade(window.glow(-0.7 * factors["light"], -0.5, 0.6, 0.6), 1.14)


def _strands(window: Window, face: _Face, parting_x: float) -> np.ndarray:
    """Return the colour of hair (3, h, w): strands from the parting, and a gloss around the crown."""
    x, y = window.x - np.float32(parting_x), window.y + np.float32(0.75)
    angle = np.arctan2(x, y + np.float32(0.35))
    radius = np.sqrt(x * x + y * y)
    tone = 0.07 * np.sin(23 * angle + 3 * radius) + 0.05 * np.sin(51 * angle - 5 * radius)
    gloss = np.maximum(1 - np.square((radius - 0.42) / 0.22), 0) * (0.35 + 0.25 * np.sin(31 * angle))
    shine = gloss * np.clip(0.8 - 1.2 * face.light * x, 0.1, 1.6) * np.float32(0.20)
    brightness = 0.94 - 0.14 * np.clip(radius - 0.7, 0, 1) - 0.12 * face.light * x
    return face.hair[:, None, None].astype(np.float32) * (brightness + tone) + shine


def _hair_behind(canvas: Canvas, factors: dict[str, float], face: _Face) -> None:
    window = canvas.full_window()
    length = factors["hair_length"]
    if length < 0.35:
        return
    half_width, bottom = face.half_width + 0.09 + 0.10 * factors["hair_volume"], -0.1 + 1.15 * length
    beyond_ends = window.y - np.clip(window.y, -0.2, bottom)
    wave = 0.02 * np.sin(9 * window.y + 4)
    distance = np.sqrt(np.square((np.abs(window.x) + wave) / half_width) + np.square(beyond_ends / 0.55)) - 1
    window.fill(window.coverage(distance * half_width), _strands(window, face, 0.2 * factors["parting"]) * 0.72)


def _body(canvas: Canvas, factors: dict[str, float], face: _Face) -> None:
    window = canvas.full_window()
    neck = np.maximum(
        np.abs(window.x - face.turn * 0.3) - 0.24 - 0.25 * np.square(np.maximum(window.y - 0.75, 0)),
        0.4 - window.y,
    )
    window.fill(window.coverage(neck), face.skin * 0.80)
    window.shade(window.glow(face.turn, 0.80, 0.34, 0.13) * window.coverage(neck), 0.62)
    cloth = _hsv(factors["clothes"], 0.5, 0.35 + 0.5 * ((factors["clothes"] * 7) % 1))
    shoulders = window.ellipse(0, 1.42, 1.02, 0.50)
    collar = window.ellipse(face.turn * 0.3, 0.90, 0.30, 0.20)
    coverage = window.coverage(np.maximum(shoulders, -collar))
    brightness = 1 + 0.25 * (0.9 - window.y) - 0.25 * face.light * window.x
    window.fill(coverage, cloth[:, None, None] * brightness)
    window.shade(coverage * window.coverage(np.abs(collar) - 0.035), 0.8)


def _head(canvas: Canvas, factors: dict[str, float], face: _Face) -> None:
    window = canvas.full_window()
    for side in (-1, 1):
        ear = canvas.window(side * (face.half_width + 0.01) - face.turn * 0.4, 0.10, 0.13, 0.2)
        coverage = ear.coverage(ear.ellipse(0, 0, 0.075, 0.145))
        ear.fill(coverage, face.skin * (0.90 - 0.12 * face.light * side))
        ear.shade(coverage * ear.glow(-0.01 * side, 0.0, 0.04, 0.09), 0.78)
    y = window.y - np.float32(0.08)
    jaw = np.clip(y / np.float32(0.72), 0, 1)
    half_width = face.half_width * (1 - 0.20 * jaw * jaw)
    u = (window.x - np.float32(0.3 * face.turn)) / half_width
    v = np.where(y < 0, y / np.float32(0.78), y / np.float32(0.73))
    radius_squared = u * u + v * v  # of an egg shape
    coverage = window.coverage((np.sqrt(radius_squared) - 1) * np.float32(0.48))
    # How much the skin faces the viewer, as on an ellipsoid.
    depth = np.sqrt(np.maximum(1 - np.minimum(radius_squared, 1), 0))
    brightness = 0.66 + 0.34 * depth - 0.17 * face.light * u - 0.07 * v
    tint = np.array([1.0, 0.97, 0.94])[:, None, None] ** ((1 - depth) * 2)  # shadows in skin are reddish
    window.fill(coverage, face.skin[:, None, None] * brightness * tint)
    for side in (-1, 1):
        cheek = canvas.window(side * 0.27 + face.turn, 0.30, 0.30, 0.26)
        cheek.fill(cheek.glow(0, 0, 0.14, 0.12), face.skin * [1.02, 0.68, 0.62], 0.28 * (0.4 + 0.6 * face.light_skin))
        cheek.shade(cheek.glow(0.02 * side, -0.09, 0.11, 0.06), face.gloss)
    window.shade(window.glow(face.turn - 0.1 * face.light, -0.30, 0.24, 0.14), face.gloss)
    if factors["beard"]:
        edge = np.clip((window.y - 0.30 - 0.10 * np.cos(5 * (window.x - face.turn))) * 6, 0, 1)
        mouth = 1 - 0.85 * window.glow(face.turn, 0.50, 0.13, 0.06)
        window.fill(coverage * edge * mouth, face.hair * 0.75, 0.72)


def _eye(canvas: Canvas, factors: dict[str, float], face: _Face, side: int) -> None:
    foreshortening = 1 - 0.12 * side * factors["yaw"]  # the eye on the far side is narrower
    x, half_width = side * 0.225 + face.turn, 0.132 * min(foreshortening, 1.05)
    lid_height = 0.030 + 0.046 * factors["eye_open"]
    eye = canvas.window(x, 0.02, 0.26, 0.20)
    eye.shade(eye.glow(0, -0.05, 0.15, 0.085), 0.74)
    eye.shade(eye.glow(-0.10 * side, -0.02, 0.05, 0.07), 0.86)
    arch = 1 - np.square(eye.x / np.float32(half_width))
    upper_lid, lower_lid = -lid_height * arch, 0.6 * lid_height * arch
    opening = eye.coverage(np.maximum(upper_lid - eye.y, eye.y - lower_lid) * np.float32(0.9))
    eye.fill(opening, np.array([0.95, 0.94, 0.93]) * (0.82 + 0.14 * face.light_skin))
    gaze = 0.016 * factors["yaw"]
    iris = opening * eye.coverage(eye.ellipse(gaze, -0.006, 0.057, 0.062))
    colour = _interpolate(EYES, factors["eye_colour"])
    eye.fill(iris, colour * 0.62)
    eye.fill(opening * eye.coverage(eye.ellipse(gaze, 0.002, 0.040, 0.043), 0.02), colour * 1.15)
    eye.fill(opening * eye.coverage(eye.ellipse(gaze, -0.006, 0.023, 0.025)), np.array([0.05, 0.04, 0.04]))
    eye.shade(opening * np.clip(1 - (eye.y - upper_lid) * 30, 0, 1), 0.6)
    eye.fill(opening * eye.coverage(eye.ellipse(gaze - 0.018, -0.024, 0.011, 0.011)), np.ones(3), 0.9)
    between_corners = eye.coverage(np.abs(eye.x) - np.float32(half_width + 0.012))
    lashes = between_corners * eye.coverage(np.abs(eye.y - upper_lid + 0.006) - 0.011)
    eye.fill(lashes, face.skin * 0.12, 0.9)
    crease = between_corners * eye.coverage(np.abs(eye.y - upper_lid + 0.046) - 0.005, 0.01)
    eye.fill(crease, face.skin * 0.5, 0.5)
    eye.fill(between_corners * eye.coverage(np.abs(eye.y - lower_lid) - 0.004, 0.01), face.skin * 0.5, 0.55)


def _brow(canvas: Canvas, factors: dict[str, float], face: _Face, side: int) -> None:
    brow = canvas.window(side * 0.235 + face.turn, -0.155, 0.22, 0.12)
    outward = side * brow.x  # increases away from the nose
    line = -0.035 * (1 - np.square(outward / np.float32(0.16))) - (0.10 * factors["brow"] - 0.03) * outward
    half_thickness = (0.020 + 0.010 * factors["brow"]) * np.clip(1.05 - 2.2 * outward, 0.35, 1.15)
    end_distance = np.abs(outward) - np.float32(0.165)
    coverage = brow.coverage(np.maximum(np.abs(brow.y - line) - half_thickness, end_distance), 0.015)
    brow.fill(coverage, 0.55 * face.hair, 0.85)


def _nose(canvas: Canvas, face: _Face) -> None:
    nose = canvas.window(face.turn * 1.35, 0.18, 0.2, 0.30)
    shadow_side = 1.0 if face.light >= 0 else -1.0
    strength = 0.16 + 0.12 * abs(face.light)
    nose.shade(nose.glow(0.062 * shadow_side, 0.0, 0.035, 0.14), 1 - strength)
    nose.shade(nose.glow(-0.05 * shadow_side, -0.02, 0.025, 0.10), 0.95)
    nose.shade(nose.glow(0, -0.01, 0.026, 0.16), face.gloss + 0.04)
    nose.shade(nose.glow(0, 0.155, 0.115, 0.04), 0.72)  # under the tip
    nose.shade(nose.glow(0, 0.085, 0.05, 0.045), face.gloss + 0.06)
    for side in (-1, 1):
        nose.shade(nose.glow(0.088 * side, 0.10, 0.028, 0.038), 0.82)
        nose.fill(nose.coverage(nose.ellipse(0.048 * side, 0.145, 0.024, 0.014), 0.015), face.skin * 0.28, 0.8)


def _mouth(canvas: Canvas, factors: dict[str, float], face: _Face) -> None:
    curve, half_width = 0.3 + 0.7 * factors["mouth_curve"], 0.165 + 0.025 * factors["mouth_curve"]
    opening = 0.075 * max(factors["mouth_open"] - 0.45, 0) / 0.55
    mouth = canvas.window(face.turn * 1.1, 0.50, 0.30, 0.24)
    t = mouth.x / np.float32(half_width)
    arch = np.maximum(1 - t * t, 0)
    centre_line = (0.055 * curve + 0.005) * (arch - 0.6)  # a smile raises the corners
    top = centre_line - arch * opening * 0.4 - np.sqrt(arch) * 0.042 + 0.014 * np.maximum(1 - np.square(t / 0.25), 0)
    inner_top, inner_bottom = centre_line - arch * opening * 0.5, centre_line + arch * opening
    bottom = inner_bottom + np.sqrt(arch) * 0.062
    mouth.shade(mouth.glow(0, 0.125 + opening, 0.11, 0.035), 0.78)  # under the lower lip
    lip_colour = face.skin * [0.84, 0.55, 0.56] + np.array([0.03, 0.0, 0.01])
    beyond_corners = np.abs(mouth.x) - np.float32(half_width)
    lips = mouth.coverage(np.maximum(np.maximum(top - mouth.y, mouth.y - bottom), beyond_corners), 0.008)
    mouth.fill(lips, lip_colour)
    mouth.shade(lips * mouth.coverage(mouth.y - inner_top), 0.86)
    mouth.shade(mouth.glow(-0.03 * face.light, 0.035 + opening, 0.06, 0.014), 1.2)
    inner_mouth = mouth.coverage(
        np.maximum(np.maximum(inner_top - mouth.y, mouth.y - inner_bottom) - 0.004, beyond_corners)
    )
    mouth.fill(inner_mouth, face.skin * 0.22 + np.array([0.06, 0.0, 0.0]))
    if opening > 0.01:
        teeth = mouth.coverage(np.maximum(inner_top + 0.004 - mouth.y, mouth.y - inner_top - 0.045), 0.01)
        mouth.fill(inner_mouth * teeth * np.clip(1.3 - np.abs(t), 0, 1), np.array([0.95, 0.93, 0.90]), 0.95)
    for side in (-1, 1):
        mouth.shade(mouth.glow(side * (half_width + 0.02), -0.02 * curve, 0.025, 0.03), 0.84)


def _hair_in_front(canvas: Canvas, factors: dict[str, float], face: _Face) -> None:
    window = canvas.full_window()
    parting_x, volume = 0.28 * factors["parting"], factors["hair_volume"]
    half_width, half_height = face.half_width + 0.05 + 0.06 * volume, 0.76 + 0.08 * volume
    x_term = np.abs((window.x - np.float32(0.2 * face.turn)) / np.float32(half_width)) ** 2.5
    y_term = np.abs((window.y + np.float32(0.08)) / np.float32(half_height)) ** 2.5
    outline = (x_term + y_term - 1) * np.float32(0.3)
    if factors["fringe"]:
        hairline = -0.27 + 0.05 * np.cos(14 * (window.x - parting_x)) + 0.5 * np.square(window.x)
    else:  # swept to both sides of the parting
        hairline = -0.56 + 0.62 * np.abs(window.x - np.float32(parting_x)) ** 1.15 + 0.9 * np.square(window.x)
    temple = np.float32(face.half_width * 0.93) - np.abs(window.x - np.float32(0.3 * face.turn))
    side_length = 0.02 if factors["hair_length"] < 0.35 else 0.15 + 0.75 * (factors["hair_length"] - 0.35)
    side_lock = np.maximum(temple + 0.05 * np.maximum(window.y, 0), window.y - np.float32(side_length))
    hair = np.maximum(outline, np.minimum(window.y - hairline, side_lock))
    shadow = np.maximum(outline, np.minimum(window.y - hairline - 0.05, side_lock - 0.03))
    window.shade(window.coverage(shadow, 0.08), 0.80)
    window.fill(window.coverage(hair, 0.012), _strands(window, face, parting_x))


def _glasses(canvas: Canvas, face: _Face) -> None:
    frame = np.array([0.09, 0.08, 0.09])
    for side in (-1, 1):
        lens = canvas.window(side * 0.232 + face.turn, 0.03, 0.30, 0.22)
        x_term, y_term = (
            np.square(np.square(axis)) for axis in (lens.x / np.float32(0.178), lens.y / np.float32(0.130))
        )
        distance = (np.sqrt(np.sqrt(x_term + y_term)) - 1) * np.float32(0.14)  # of a superellipse
        lens.fill(lens.coverage(distance), np.array([0.86, 0.92, 0.97]), 0.08)
        lens.fill(lens.coverage(np.abs(distance) - 0.010), frame, 0.92)
        arm = np.maximum(np.abs(lens.y + 0.04) - 0.010, 0.178 - side * lens.x)
        lens.fill(lens.coverage(arm) * (np.abs(lens.x) < 0.26), frame, 0.85)
    bridge = canvas.window(face.turn, 0.0, 0.08, 0.05)
    bridge.fill(
        bridge.coverage(np.maximum(np.abs(bridge.y - 0.3 * bridge.x**2) - 0.010, np.abs(bridge.x) - 0.06)),
        frame,
    )
