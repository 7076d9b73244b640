"""Unusual image files: each is decoded to the correct pixels or refused with the reason."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aecore.data.images import MAX_SCANS, decode_image, decode_rows
from aecore.data.synthetic_faces import draw_face

REPO = Path(__file__).parents[3]
FACE = draw_face(0, 0)[0]


def encode_with_pillow(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """Return a PNG written by hand: Pillow saves no 16-bit colour."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    encoded_chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(encoded_chunks)


def png16(colour: int, pixels: list) -> bytes:
    values = np.array(pixels, ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, colour, rows)


def test_16_bits_are_reduced_to_8():
    assert decode_image(png16(0, [[0, 257, 32896, 65535]])).ravel().tolist() == [0, 1, 128, 255]
    colour = decode_image(png16(2, [[[0, 257 * 7, 65535], [257 * 200, 0, 257]]]))
    assert colour.tolist() == [[[0, 7, 255], [200, 0, 1]]]
    alpha = decode_image(png16(6, [[[257 * 9, 0, 0, 65535], [0, 0, 0, 0]]]))
    assert alpha.tolist() == [[[9, 0, 0], [255, 255, 255]]]
    gray_alpha = decode_image(png16(4, [[[257 * 9, 65535], [0, 0]]]))
    assert gray_alpha.tolist() == [[[9] * 3, [255] * 3]]  # Pillow has no 16-bit gray with alpha and converts to colour
    hidden = png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 257 * 3, 257 * 80), (b"tRNS", struct.pack(">H", 257 * 80)))
    assert decode_image(hidden)[0, :, 0].tolist() == [3, 255]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_1_2_and_4_bits_are_expanded_to_8(bits: int):
    byte = {1: 0b10000000, 2: 0b11000000, 4: 0b11110000}[bits]
    assert decode_image(png(2, 1, bits, 0, bytes([0, byte])))[0, :, 0].tolist() == [255, 0]


def test_cmyk_with_and_without_adobes_inversion():
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, :16, 0], inks[:, 16:, 3] = 255, 128  # cyan, gray
    picture = Image.fromarray(inks, "CMYK")
    for image in (encode_with_pillow(picture, "JPEG", quality=100), encode_with_pillow(picture, "TIFF")):
        pixels = decode_image(image).astype(int)
        assert pixels.shape == (16, 32, 3)
        assert np.abs(pixels[4, 4] - [0, 255, 255]).max() < 6
        assert np.abs(pixels[4, 28] - 127).max() < 6
    face = decode_image(encode_with_pillow(Image.fromarray(FACE).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(face.astype(int) - FACE).mean() < 8


def test_palettes_with_and_without_transparency():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert decode_image(encode_with_pillow(palette, kind))[0, 0].tolist() == [9, 8, 7]
    assert decode_image(encode_with_pillow(palette, "PNG", transparency=1)).min() == 255
    assert decode_image(encode_with_pillow(palette, "PNG", transparency=b"\xff\x00")).min() == 255
    gray = Image.fromarray(np.full((4, 4, 3), 77, np.uint8)).quantize(2)
    assert (decode_image(encode_with_pillow(gray, "PNG")) == 77).all()


def test_half_transparent_pixels_are_composed_on_white():
    half = decode_image(encode_with_pillow(Image.new("RGBA", (2, 2), (200, 0, 100, 128)), "PNG"))
    assert np.abs(half[0, 0].astype(int) - [227, 127, 177]).max() <= 1
    assert decode_image(encode_with_pillow(Image.new("LA", (2, 2), (0, 0)), "PNG")).tolist() == [[[255]] * 2] * 2
    assert decode_image(encode_with_pillow(Image.new("RGBA", (2, 2), (1, 2, 3, 0)), "WEBP", lossless=True)).min() == 255


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_decodes_to_its_first_frame(kind: str):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    exact = {"lossless": True} if kind == "WEBP" else {}
    moving = encode_with_pillow(frames[0], kind, save_all=True, append_images=frames[1:], **exact)
    assert (decode_image(moving) == [255, 0, 0]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_each_exif_orientation_is_applied(kind: str, turn: int):
    corners = np.zeros((16, 32, 3), np.uint8)
    corners[:8, :16], corners[:8, 16:], corners[8:, :16] = 250, 160, 80
    exif = Image.Exif()
    exif[0x0112] = turn
    exact = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
    pixels = decode_image(encode_with_pillow(Image.fromarray(corners), kind, exif=exif, **exact)).astype(int)
    # How a picture so marked must be turned, by the standard's table, without Pillow's help.
    turned = {
        1: corners, 2: corners[:, ::-1], 3: corners[::-1, ::-1], 4: corners[::-1], 5: corners.transpose(1, 0, 2),
        6: np.rot90(corners, -1), 7: corners[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(corners),
    }[turn]  # fmt: skip
    assert pixels.shape == turned.shape
    assert np.abs(pixels - turned).max() < 6


def test_a_rotated_gray_jpeg_stays_gray():
    exif = Image.Exif()
    exif[0x0112] = 6
    gray = Image.fromarray(np.repeat([[0] * 20 + [250] * 20], 20, axis=0).astype(np.uint8))
    assert decode_image(encode_with_pillow(gray, "JPEG", exif=exif)).shape == (40, 20, 1)


def test_progressive_and_subsampled_jpegs_decode():
    for options in ({"progressive": True}, {"subsampling": 2}, {"optimize": True}):
        pixels = decode_image(encode_with_pillow(Image.fromarray(FACE), "JPEG", quality=95, **options))
        assert np.abs(pixels.astype(int) - FACE).mean() < 6


JPEG, PNG = encode_with_pillow(Image.fromarray(FACE), "JPEG"), encode_with_pillow(Image.fromarray(FACE), "PNG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><p>404", "not an image .it starts with b'<!DOCTYPE ht"),
        (b"\0" * 5000, "not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pointer of Git LFS.*`git lfs pull`"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[:-200], "truncated"),
        (JPEG[:30], "not an image|does not decode"),
        (PNG[: len(PNG) // 2], "does not decode"),
        (PNG[:20], "not an image|does not decode"),
        (PNG[:3000] + bytes([PNG[3000] ^ 255]) + PNG[3001:], "does not decode"),
        (encode_with_pillow(Image.fromarray(FACE), "GIF")[:900], "does not decode"),
        (encode_with_pillow(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
    ],
)
def test_damaged_images_are_refused_with_the_reason(data: bytes, reason: str):
    with pytest.raises(ValueError, match=reason):
        decode_image(data)


def bombs() -> dict[str, bytes]:
    """Return files of 20,000 x 20,000 pixels in a few bytes, and one that Pillow would only warn of."""
    jpeg = bytearray(JPEG)
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 20_000, 20_000)
    gif = bytearray(encode_with_pillow(Image.new("P", (4, 4)), "GIF"))
    gif[6:10] = struct.pack("<HH", 20_000, 20_000)
    return {
        "png": png(20_000, 20_000, 8, 2, b"\0"),
        "jpeg": bytes(jpeg),
        "gif": bytes(gif),
        "smaller": png(10_000, 9_000, 8, 2, b"\0"),
    }


@pytest.mark.parametrize("kind", bombs())
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_header(kind: str):
    size = "10000 x 9000" if kind == "smaller" else "400,000,000"
    with pytest.raises(ValueError, match=f"{size} pixels is over the limit of 64,000,000"):
        decode_image(bombs()[kind])


def test_a_bomb_takes_no_memory():
    code = """
import resource, sys
from aecore.data.images import decode_image
resource.setrlimit(resource.RLIMIT_AS, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + (1 << 30),) * 2)
try:
    decode_image(sys.stdin.buffer.read())
except ValueError as error:
    print(error)
"""
    for data in bombs().values():
        done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
        assert b"over the limit" in done.stdout, done.stderr


TURNED = Image.Exif()
TURNED[0x0112] = 6
LARGE = {  # PNGs of 16 megapixels: width, height, bits, colour type, bytes, chunks
    "gray": (4000, 4000, 8, 0, 16_004_000),
    "gray of 16 bits": (4000, 4000, 16, 0, 32_004_000),
    "RGB": (4000, 4000, 8, 2, 48_004_000),
    "RGBA": (4000, 4000, 8, 6, 64_004_000),
    "transparent palette": (4000, 4000, 1, 3, 2_004_000, (b"PLTE", bytes(6)), (b"tRNS", b"\0")),
    "turned": (4000, 4000, 8, 2, 48_004_000, (b"eXIf", TURNED.tobytes()[6:])),
    "one row": (16_000_000, 1, 8, 6, 64_000_001),
}


@pytest.mark.parametrize("kind", LARGE)
def test_decoding_takes_few_bytes_a_pixel(kind: str):
    """Pillow holds 4 bytes a pixel, the result 3; turning takes 4 more before. A PNG's row is there thrice."""
    code = """
import re, sys
from pathlib import Path
from aecore.data.images import decode_image
def peak():  # kB of this process; ru_maxrss begins with that of the process which started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
data = sys.stdin.buffer.read()
before = peak()
decode_image(data)
print(peak() - before)
"""
    width, height, depth, colour, length, *chunks = LARGE[kind]
    data = png(width, height, depth, colour, bytes(length), *chunks)
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True, cwd=REPO)
    assert int(done.stdout) * 1024 < (17 if kind == "one row" else 9) * 16_000_000


def scan_bomb(scans: int, comment: bytes = b"") -> bytes:
    """Return a progressive gray JPEG of 64 x 64 pixels whose AC coefficients come in many empty scans."""

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    tables = segment(0xDB, bytes([0] + [1] * 64))
    tables += segment(0xC2, struct.pack(">BHHB", 8, 64, 64, 1) + bytes([1, 0x11, 0]))
    # Huffman tables of one code of one bit: for DC a difference of 0, for AC the end of 2^5 + 32 blocks.
    tables += segment(0xC4, bytes([0x00, 1, *[0] * 15, 0x00])) + segment(0xC4, bytes([0x10, 1, *[0] * 15, 0x50]))
    dc = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(8)
    ac = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + bytes([0b00000011, 0b11111111])
    return b"\xff\xd8" + tables + dc + segment(0xFE, comment) + ac * scans + b"\xff\xd9"


def test_a_jpeg_of_too_many_scans_is_refused():
    """An image of 8,000 x 8,000 pixels takes 0.04 s a scan of 95 bytes."""
    bomb = scan_bomb(MAX_SCANS)
    two_images = encode_with_pillow(Image.fromarray(FACE), "MPO", save_all=True, append_images=[Image.fromarray(FACE)])
    start = two_images.index(b"\xff\xe2")
    mpo_header = two_images[start : start + 2 + int.from_bytes(two_images[start + 2 : start + 4])]
    bombs = {
        "plain": bomb,
        "an end in a comment": scan_bomb(MAX_SCANS, comment=b"\xff\xd9"),
        "fill bytes": bomb.replace(b"\xff\xda", b"\xff\xff\xda"),
        "MPO": bomb[:2] + mpo_header + bomb[2:],
    }
    for name, data in bombs.items():
        with pytest.raises(ValueError, match=f"more than {MAX_SCANS} scans"):
            print(name, decode_image(data).shape)
    assert decode_image(scan_bomb(MAX_SCANS - 1)).shape == (64, 64, 1)


def test_what_looks_like_scans_outside_the_image_is_not_counted():
    """Phones append a video to a JPEG, and cameras store a preview in it."""
    marks = b"\xff\xda" * MAX_SCANS
    preview = struct.pack(">BBH", 0xFF, 0xE1, len(marks) + 2) + marks
    np.testing.assert_array_equal(decode_image(JPEG[:2] + preview + JPEG[2:] + marks), decode_image(JPEG))


def test_no_external_program_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow decodes EPS by Ghostscript."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # Pillow has not looked for it yet
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ValueError, match="not an image"):
        decode_image(eps)
    with pytest.raises(ValueError, match="row 0 does not decode as png"):
        decode_rows([eps], "png", 4, 3, np.empty((1, 4, 4, 3), np.uint8))
    assert not (tmp_path / "was-run").exists()
