import io

import numpy as np
from PIL import Image

from pipeline.errors import BadImage
from stages.base import Output, decode_ahead, group_by


def png(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def samples(*names, width=4, height=3):
    return group_by([{"image": name, "width": width, "height": height} for name in names], "image")


def test_images_come_decoded_in_order():
    names = [f"{k}.png" for k in range(7)]
    decoded = list(decode_ahead(samples(*names), dict.fromkeys(names, png(4, 3))))
    assert [image for image, _ in decoded] == names
    assert all(isinstance(pixels, np.ndarray) and pixels.shape == (3, 4, 3) for _, pixels in decoded)


def test_an_image_that_is_gone_or_broken_is_an_error_of_its_own():
    decoded = dict(decode_ahead(samples("gone", "broken", "good"), {"broken": b"x", "good": png(4, 3)}))
    assert isinstance(decoded["gone"], BadImage)
    assert isinstance(decoded["broken"], BadImage)
    assert isinstance(decoded["good"], np.ndarray)


def test_an_image_that_changed_its_size_since_it_was_loaded_is_an_error():
    [(_, found)] = decode_ahead(samples("a", width=8), {"a": png(4, 3)})
    assert isinstance(found, BadImage)
    assert "is 4x3, and was 8x3" in str(found)


def test_outputs_add_up():
    output = Output([{"a": 1}], [], {"n": 1})
    output.add(Output([{"a": 2}], [{"r": 1}], {"n": 2, "m": 5}))
    assert output == Output([{"a": 1}, {"a": 2}], [{"r": 1}], {"n": 3, "m": 5})
