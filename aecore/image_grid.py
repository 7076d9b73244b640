"""Pictures for people: grids of images as PNG."""

import io

import numpy as np
from PIL import Image, ImageDraw

GAP, MARGIN, TEXT = 2, 8, 14
INK, PAPER = (40, 40, 40), (255, 255, 255)


def grid(rows: list[np.ndarray]) -> np.ndarray:
    """One uint8 picture (H, W, 3) with a row per array of images uint8 (n, size, size, channels)."""
    height, width = rows[0].shape[1:3]
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            top, left = y * (height + GAP), x * (width + GAP)
            sheet[top : top + height, left : left + width] = image  # one channel spreads over three
    return sheet


def titled_sheet(parts: list[tuple[str, list[np.ndarray]]]) -> np.ndarray:
    """Grids one below the other, each under its title; uint8 (H, W, 3)."""
    grids = [(title, grid(rows)) for title, rows in parts]
    width = max(g.shape[1] for _, g in grids) + 2 * MARGIN
    height = sum(g.shape[0] + TEXT + 2 * MARGIN for _, g in grids)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw, top = ImageDraw.Draw(sheet), 0
    for title, picture in grids:
        draw.text((MARGIN, top + MARGIN // 2), title, fill=INK, font_size=TEXT - 2)
        sheet.paste(Image.fromarray(picture), (MARGIN, top + TEXT + MARGIN))
        top += picture.shape[0] + TEXT + 2 * MARGIN
    return np.asarray(sheet)


def to_png(picture: np.ndarray) -> bytes:
    """PNG of a uint8 picture (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
