"""Soft-edged shapes on a numpy picture, in coordinates that do not depend on its size."""

from dataclasses import dataclass

import numpy as np


class Canvas:
    """A float picture (3, size, size), its pixels at -1 to 1, turned by `angle` about (0, 0.5)."""

    def __init__(self, size: int, angle: float) -> None:
        self.size = size
        self.pixel = np.float32(2 / size)
        line = (np.arange(size, dtype=np.float32) + 0.5) * self.pixel - 1
        self.across, self.down = line[None, :], line[:, None]  # the picture's own coordinates
        cos, sin, pivot = np.float32(np.cos(angle)), np.float32(np.sin(angle)), np.float32(0.5)
        self.x = cos * self.across + sin * (self.down - pivot)
        self.y = pivot - sin * self.across + cos * (self.down - pivot)
        self.angle = angle
        self.planes = np.zeros((3, size, size), np.float32)

    def box(self, x: float, y: float, half_width: float, half_height: float) -> "Window":
        """Give the part of the picture around head point (x, y), so that small shapes cost little."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        centre = cos * x - sin * (y - 0.5), 0.5 + sin * x + cos * (y - 0.5)
        reach = half_width + abs(sin) * half_height, half_height + abs(sin) * half_width
        spans = []
        for middle, half in zip(centre, reach, strict=True):
            low, high = ((middle + side * (half + 0.03) + 1) / 2 * self.size for side in (-1, 1))
            spans.append(slice(max(int(low), 0), max(min(int(high) + 1, self.size), 0)))
        part = spans[1], spans[0]
        return Window(self.x[part] - x, self.y[part] - y, self.planes[:, part[0], part[1]], self.pixel)

    def all(self) -> "Window":
        """Give the whole picture."""
        return Window(self.x, self.y, self.planes, self.pixel)

    def picture(self) -> np.ndarray:
        """Give what was painted as uint8 (size, size, 3)."""
        planes = np.clip(self.planes * 255 + 0.5, 0, 255).astype(np.uint8)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))


@dataclass
class Window:
    """A part of the canvas, with coordinates from a point of its own."""

    x: np.ndarray
    y: np.ndarray
    planes: np.ndarray
    pixel: np.float32

    def inside(self, distance: np.ndarray, blur: float = 0.0) -> np.ndarray:
        """Turn a signed distance (negative inside) into cover 0 to 1, the edge one pixel plus `blur` wide."""
        return np.clip(np.float32(0.5) - distance * np.float32(1 / (self.pixel + blur)), 0, 1)

    def ellipse(self, x: float, y: float, a: float, b: float) -> np.ndarray:
        """Give the signed distance, roughly, to an axis-parallel ellipse about (x, y)."""
        across, down = (self.x - np.float32(x)) / np.float32(a), (self.y - np.float32(y)) / np.float32(b)
        return (np.sqrt(across * across + down * down) - 1) * np.float32(min(a, b))

    def glow(self, x: float, y: float, a: float, b: float) -> np.ndarray:
        """Give a soft spot about (x, y): 1 in the middle, 0 beyond (2 a, 2 b), without an edge."""
        across, down = (
            (self.x - np.float32(x)) / np.float32(2 * a),
            (self.y - np.float32(y)) / np.float32(2 * b),
        )
        near = np.maximum(1 - across * across - down * down, 0)
        return near * near * near

    def fill(self, cover: np.ndarray, colour: np.ndarray, opacity: float = 1.0) -> None:
        """Lay `colour`, (3,) or (3, h, w), over the pixels with `cover` (h, w)."""
        colour = np.asarray(colour, np.float32)
        colour = colour if colour.ndim == 3 else colour[:, None, None]
        self.planes += (cover * np.float32(opacity)) * (colour - self.planes)

    def shade(self, cover: np.ndarray, factor: float) -> None:
        """Multiply the pixels by `factor` where `cover` is 1: a shadow below 1, a light above."""
        self.planes *= 1 + cover * np.float32(factor - 1)
