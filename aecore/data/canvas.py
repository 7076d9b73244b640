"""Soft-edged shapes painted on a numpy image, in coordinates that do not depend on its size."""

from dataclasses import dataclass

import numpy as np


class Canvas:
    """A float image (3, size, size) with coordinates -1 to 1, rotated by `angle` (radians) about (0, 0.5)."""

    def __init__(self, size: int, angle: float) -> None:
        self.size = size
        self.pixel = np.float32(2 / size)
        centres = (np.arange(size, dtype=np.float32) + 0.5) * self.pixel - 1
        self.image_x, self.image_y = centres[None, :], centres[:, None]  # not rotated
        cos, sin, pivot = np.float32(np.cos(angle)), np.float32(np.sin(angle)), np.float32(0.5)
        self.x = cos * self.image_x + sin * (self.image_y - pivot)
        self.y = pivot - sin * self.image_x + cos * (self.image_y - pivot)
        self.angle = angle
        self.planes = np.zeros((3, size, size), np.float32)

    def window(self, x: float, y: float, half_width: float, half_height: float) -> "Window":
        """Return the window around the rotated point (x, y), so that small shapes are cheap."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        centre = cos * x - sin * (y - 0.5), 0.5 + sin * x + cos * (y - 0.5)
        half_extents = half_width + abs(sin) * half_height, half_height + abs(sin) * half_width
        spans = []
        for middle, half_extent in zip(centre, half_extents, strict=True):
            low, high = ((middle + side * (half_extent + 0.03) + 1) / 2 * self.size for side in (-1, 1))
            spans.append(slice(max(int(low), 0), max(min(int(high) + 1, self.size), 0)))
        columns, rows = spans
        return Window(self.x[rows, columns] - x, self.y[rows, columns] - y, self.planes[:, rows, columns], self.pixel)

    def full_window(self) -> "Window":
        """Return a window of the entire canvas."""
        return Window(self.x, self.y, self.planes, self.pixel)

    def to_image(self) -> np.ndarray:
        """Return the image as uint8 (size, size, 3)."""
        planes = np.clip(self.planes * 255 + 0.5, 0, 255).astype(np.uint8)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))


@dataclass
class Window:
    """A rectangle of the canvas, with coordinates relative to a point in it."""

    x: np.ndarray
    y: np.ndarray
    planes: np.ndarray
    pixel: np.float32

    def coverage(self, distance: np.ndarray, blur: float = 0.0) -> np.ndarray:
        """Convert a signed distance (negative inside) to coverage 0 to 1; the edge is one pixel plus `blur` wide."""
        return np.clip(np.float32(0.5) - distance * np.float32(1 / (self.pixel + blur)), 0, 1)

    def ellipse(self, x: float, y: float, a: float, b: float) -> np.ndarray:
        """Return the approximate signed distance to an ellipse about (x, y) with semi-axes `a`, `b`."""
        u, v = (self.x - np.float32(x)) / np.float32(a), (self.y - np.float32(y)) / np.float32(b)
        return (np.sqrt(u * u + v * v) - 1) * np.float32(min(a, b))

    def glow(self, x: float, y: float, a: float, b: float) -> np.ndarray:
        """Return a soft spot about (x, y), without an edge: 1 at its centre, 0 beyond (2 a, 2 b)."""
        u, v = (
            (self.x - np.float32(x)) / np.float32(2 * a),
            (self.y - np.float32(y)) / np.float32(2 * b),
        )
        falloff = np.maximum(1 - u * u - v * v, 0)
        return falloff * falloff * falloff

    def fill(self, coverage: np.ndarray, colour: np.ndarray, opacity: float = 1.0) -> None:
        """Blend `colour`, (3,) or (3, h, w), over the pixels by `coverage` (h, w) times `opacity`."""
        colour = np.asarray(colour, np.float32)
        colour = colour if colour.ndim == 3 else colour[:, None, None]
        self.planes += (coverage * np.float32(opacity)) * (colour - self.planes)

    def shade(self, coverage: np.ndarray, factor: float) -> None:
        """Multiply the pixels by `factor`, in proportion to `coverage`: below 1 for a shadow, above for a light."""
        self.planes *= 1 + coverage * np.float32(factor - 1)
