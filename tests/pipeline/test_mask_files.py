"""Human masks that are image files: what `pipeline.masks.mask_from_spec` makes of `file` and `heatmap`."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from manifests.records import mask_spec
from pipeline.errors import BadImage, BadMask
from pipeline.masks import mask_from_spec, mask_iou

HEIGHT, WIDTH = 30, 40


def read_mask(kind: str, data: bytes, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return mask_from_spec(mask_spec(kind, "m.png"), height, width, {"m.png": data}.__getitem__)


def encode(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def blob() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:20, 8:31] = True
    mask[10:12, 12:14] = False
    return mask


def palette(mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(mask.astype(np.uint8)).convert("P")
    image.putdata(mask.astype(np.uint8).ravel().tolist())
    image.putpalette([0, 0, 0, 128, 0, 0])
    return image


MASK_FILES = {
    "one bit": encode(Image.fromarray(blob())),
    "0 and 1": encode(Image.fromarray(blob().astype(np.uint8))),
    "0 and 255": encode(Image.fromarray(blob().astype(np.uint8) * 255)),
    "16 bits": encode(Image.fromarray(blob().astype(np.uint16) * 65535)),
    "16 bits, 0 and 1": encode(Image.fromarray(blob().astype(np.uint16))),
    "palette": encode(palette(blob())),
    "colour": encode(Image.fromarray(np.stack([blob().astype(np.uint8) * 255] * 3, axis=2))),
    "colour with alpha": encode(
        Image.fromarray(np.stack([blob().astype(np.uint8) * 255] * 3 + [np.full((HEIGHT, WIDTH), 9, np.uint8)], axis=2))
    ),
    "float": encode(Image.fromarray(blob().astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("data", MASK_FILES.values(), ids=MASK_FILES)
def test_every_kind_of_mask_file_is_read(data: bytes) -> None:
    assert np.array_equal(read_mask("file", data), blob())


def test_a_jpeg_mask_is_read_but_for_its_ringing() -> None:
    data = encode(Image.fromarray(blob().astype(np.uint8) * 255), "JPEG", quality=90)
    assert mask_iou(read_mask("file", data), blob()) > 0.99


@pytest.mark.parametrize("data", [b"", b"text", MASK_FILES["palette"][:60]])
@pytest.mark.parametrize("kind", ["file", "heatmap"])
def test_an_unreadable_mask_file_is_named(kind: str, data: bytes) -> None:
    with pytest.raises(BadMask, match=r"mask file 'm\.png'"):
        read_mask(kind, data)


@pytest.mark.parametrize("kind", ["file", "heatmap"])
def test_a_black_mask_file_has_no_pixel(kind: str) -> None:
    with pytest.raises(BadMask, match="no pixel"):
        read_mask(kind, encode(Image.new("L", (WIDTH, HEIGHT))))


def test_a_released_heatmap_is_cut_at_half_after_brightening_and_stretching() -> None:
    levels = np.array([[20, 80, 100, 120, 200, 255]], np.uint8)  # brightened: 30 120 150 180 255 255; half way: 142.5
    mask = read_mask("heatmap", encode(Image.fromarray(levels)), 1, 6)
    assert mask.tolist() == [[False, False, True, True, True, True]]


def test_a_constant_released_heatmap_is_all_mask() -> None:
    assert read_mask("heatmap", encode(Image.new("L", (WIDTH, HEIGHT), 40))).all()


def test_a_mask_file_of_another_size_names_both_sizes() -> None:
    with pytest.raises(BadMask, match=r"'m\.png': the human mask is 30x40 \(width x height\), its image 40x30"):
        read_mask("file", encode(Image.fromarray(blob().T)))


def test_what_the_reader_cannot_read_is_passed_on() -> None:
    def missing(path: str) -> bytes:
        raise BadImage(f"{path}: no such file")

    with pytest.raises(BadImage, match=r"m\.png: no such file"):
        mask_from_spec(mask_spec("file", "m.png"), HEIGHT, WIDTH, missing)
