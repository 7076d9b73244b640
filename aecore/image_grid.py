"""Grids of images and contact sheets, as PNG."""

import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP, MARGIN, TITLE_HEIGHT = 2, 8, 14  # in pixels
TEXT_COLOUR, BACKGROUND = (40, 40, 40), (255, 255, 255)


def grid(rows: list[np.ndarray]) -> np.ndarray:
    """Return a uint8 image (H, W, 3) with one row per array of images uint8 (n, size, size, channels).

    torchvision's `make_grid` has no rows of different lengths, draws a frame around the grid and imports torch.
    """
    height, width = rows[0].shape[1:3]
    columns = max(len(row) for row in rows)
    canvas = np.full((len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            top, left = y * (height + GAP), x * (width + GAP)
            canvas[top : top + height, left : left + width] = image  # broadcasts one channel to three
    return canvas


def tile(images: np.ndarray) -> np.ndarray:
    """Return images uint8 (n, H, W, C) as one: row by row, ceil(sqrt(n)) columns, no gaps, black at the end."""
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:n] = images
    cells = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return cells.reshape(rows * height, columns * width, channels)


def titled_sheet(sections: list[tuple[str, list[np.ndarray]]], heading: str = "") -> np.ndarray:
    """Return the `grid` of each section under its title, one below the other under the heading; uint8 (H, W, 3)."""
    font = ImageFont.load_default(TITLE_HEIGHT - 2)
    grids = [(title, grid(rows)) for title, rows in sections]
    texts = [heading, *(title for title, _ in grids)]
    width = math.ceil(max(*(image.shape[1] for _, image in grids), *map(font.getlength, texts))) + 2 * MARGIN
    top = TITLE_HEIGHT + MARGIN // 2 if heading else 0
    height = top + sum(image.shape[0] + TITLE_HEIGHT + 2 * MARGIN for _, image in grids)
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN // 2), heading, fill=TEXT_COLOUR, font=font)
    for title, image in grids:
        draw.text((MARGIN, top + MARGIN // 2), title, fill=TEXT_COLOUR, font=font)
        sheet.paste(Image.fromarray(image), (MARGIN, top + TITLE_HEIGHT + MARGIN))
        top += image.shape[0] + TITLE_HEIGHT + 2 * MARGIN
    return np.asarray(sheet)


def to_png(image: np.ndarray) -> bytes:
    """Encode a uint8 image (H, W, 3) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
