import io
import resource
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import BadImage
from pipeline.images import MAX_PIXELS, decode_image, open_image

RNG = np.random.default_rng(0)
PIXELS = np.kron(RNG.integers(0, 256, (6, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8)  # 24 high, 32 wide
GREY = PIXELS[..., 0]


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand: Pillow cannot write 16-bit RGB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


JPEG = encode(Image.fromarray(PIXELS), "JPEG", quality=95, exif=exif(1))
PNG = encode(Image.fromarray(PIXELS), "PNG", exif=exif(1))
SEEDS = [
    *(JPEG, PNG),
    *(encode(Image.fromarray(PIXELS), form) for form in ("GIF", "WEBP", "TIFF", "BMP", "PPM")),
    encode(Image.fromarray(PIXELS), "TIFF", compression="tiff_lzw"),
    encode(Image.fromarray(PIXELS).convert("P"), "PNG", transparency=3),
]


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_exact_pixels_read_only(form: str) -> None:
    pixels = decode_image(encode(Image.fromarray(PIXELS), form))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, PIXELS)
    assert not pixels.flags.writeable


@pytest.mark.parametrize(("form", "options"), [("JPEG", {"quality": 98}), ("WEBP", {"lossless": True})])
def test_other_formats_give_near_pixels(form: str, options: dict[str, Any]) -> None:
    pixels = decode_image(encode(Image.fromarray(GREY), form, **options))
    assert np.abs(pixels.astype(int) - GREY[..., None]).mean() < 3


def test_cmyk_jpeg_is_converted_to_rgb() -> None:
    red = decode_image(encode(Image.new("RGB", (16, 16), (230, 20, 30)).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(red.astype(int) - (230, 20, 30)).max() < 12


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_one_bit_grey_and_palette_images_become_rgb(mode: str) -> None:
    image = Image.fromarray(GREY).convert(mode)
    assert np.array_equal(decode_image(encode(image, "PNG")), np.asarray(image.convert("RGB")))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    for form in ("PNG", "TIFF"):
        assert decode_image(encode(Image.fromarray(levels), form))[0, :, 1].tolist() == [0, 0, 1, 128, 255]


def test_sixteen_bit_pgm_is_scaled_not_clipped() -> None:
    levels = np.array([0, 256, 32768, 65535], ">u2").tobytes()
    assert decode_image(b"P5 4 1 65535\n" + levels)[0, :, 2].tolist() == [0, 1, 128, 255]


def test_sixteen_bit_rgb_png_is_scaled() -> None:
    row = b"\0" + np.array([[0, 32768, 65535], [65535, 256, 0]], ">u2").tobytes()
    assert decode_image(png(2, 1, 16, 2, row)).tolist() == [[[0, 128, 255], [255, 1, 0]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    pixels = decode_image(encode(image.convert(mode), "PNG"))
    assert pixels.tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_half_alpha_is_mixed_with_white() -> None:
    assert abs(int(decode_image(encode(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), "PNG"))[0, 0, 0]) - 127) <= 1


def test_palette_transparency_is_laid_over_white() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((1, 0), 1)
    assert decode_image(encode(image, "PNG", transparency=0)).tolist() == [[[255, 255, 255], [200, 0, 0]]]
    assert decode_image(encode(image, "PNG")).tolist() == [[[10, 20, 30], [200, 0, 0]]]


def test_the_transparent_colour_of_an_rgb_png_is_laid_over_white() -> None:
    image = Image.new("RGB", (1, 1), (1, 2, 3))
    assert decode_image(encode(image, "PNG", transparency=(1, 2, 3))).tolist() == [[[255, 255, 255]]]


UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_exif_orientation_is_applied(orientation: int) -> None:
    pixels = decode_image(encode(Image.fromarray(PIXELS), "PNG", exif=exif(orientation)))
    assert np.array_equal(pixels, UPRIGHT[orientation](PIXELS))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_exif_orientation_is_ignored(orientation: int) -> None:
    assert np.array_equal(decode_image(encode(Image.fromarray(PIXELS), "PNG", exif=exif(orientation))), PIXELS)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(form: str) -> None:
    first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
    data = encode(
        first, form, save_all=True, append_images=[second], duration=100, **{"lossless": True} if form == "WEBP" else {}
    )
    assert (decode_image(data) == (250, 0, 0)).all()


def test_one_pixel_is_an_image() -> None:
    assert decode_image(encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).tolist() == [[[1, 2, 3]]]


def test_floating_point_pixels_are_refused_because_their_range_is_unknown() -> None:
    with pytest.raises(BadImage, match="floating-point"):
        decode_image(encode(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"))


def test_an_empty_file_says_so() -> None:
    with pytest.raises(BadImage, match="zero bytes"):
        decode_image(b"")


@pytest.mark.parametrize(
    "data", [b"<html>404 Not Found</html>", b"a,b\n1,2\n", b"\x00" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_what_is_no_image_says_which_formats_are(data: bytes) -> None:
    with pytest.raises(BadImage, match=r"known format.*JPEG"):
        decode_image(data)


@pytest.mark.parametrize("data", [JPEG, PNG], ids=["jpeg", "png"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_file_is_refused_not_half_grey(data: bytes, share: float) -> None:
    with pytest.raises(BadImage, match="cannot be decoded"):
        decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("side", [10_001, 100_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_by_its_header_at_no_cost(side: int) -> None:
    bomb = png(side, side, 8, 2, bytes(1000))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(BadImage, match=r"limit|cannot be decoded|known format"):
        decode_image(bomb)
    assert time.process_time() - started < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_the_limit_counts_pixels_not_sides() -> None:
    with pytest.raises(BadImage, match="100000001x1 pixels, the limit is 100,000,000"):
        decode_image(png(MAX_PIXELS + 1, 1, 8, 0, b""))


def test_open_image_keeps_the_mode_and_turns_upright() -> None:
    image = open_image(encode(Image.fromarray(GREY), "PNG", exif=exif(6)))
    assert (image.mode, image.size) == ("L", (24, 32))


@settings(max_examples=150)
@given(st.binary(max_size=300))
def test_random_bytes_are_a_bad_image(data: bytes) -> None:
    with pytest.raises(BadImage):
        decode_image(data)


@settings(max_examples=400)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, 20),
)
def test_a_damaged_file_gives_pixels_or_a_bad_image(data: bytes, edits: list[tuple[float, int]], cut: int) -> None:
    damaged = bytearray(data[: len(data) - cut])
    for place, value in edits:
        damaged[int(place**3 * len(damaged))] = value  # mostly in the header, where it hurts
    try:
        pixels = decode_image(bytes(damaged))
    except BadImage:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2:] == (3,)
