"""However many instructions an image has, every expert of the mixture encodes it once."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from pipeline.config import load_expert, load_profile, pin_experts
from stages.ground import Ground
from tests import tiny_profile

IMAGES = {"cat.png": (300, 240), "cup.png": (240, 300), "rocket.png": (260, 260)}
INSTRUCTIONS = ["the cat's face", "a cup on a saucer", "the rocket", "what is round", "the leftmost thing"]

SAM: Callable[[Any], Any] = lambda expert: expert.segmenter.model.image_encoder  # noqa: E731
SAM_HF: Callable[[Any], Any] = lambda expert: expert.segmenter.model.vision_encoder  # noqa: E731
IMAGE_ENCODERS: dict[str, list[Callable[[Any], torch.nn.Module]]] = {
    "clipseg": [lambda expert: expert.model.clip.vision_model],
    "florence2": [lambda expert: expert.model.model.vision_tower],
    "sam3": [lambda expert: expert.model.vision_encoder],
    "lisa": [lambda expert: expert.model.llava.model.vision_tower, lambda expert: expert.model.sam.image_encoder],
    "grounding_dino": [lambda expert: expert.backbone, SAM],
    "groundingdino_py": [lambda expert: expert.model.backbone[0], SAM],
    "owlv2": [lambda expert: expert.model.owlv2.vision_model, SAM_HF],
    "region_clip": [SAM],
    "region_alphaclip": [SAM_HF],
}


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    return pin_experts(load_profile(str(tiny_profile.make(tmp_path_factory.mktemp("tiny")))))


def shard() -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    samples, encoded = [], {}
    for name, (width, height) in IMAGES.items():
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(skimage.data.astronaut()[:height, :width])).save(buffer, format="PNG")
        encoded[name] = buffer.getvalue()
        samples += [
            {"uuid": f"{name}-{k}", "image": name, "width": width, "height": height}
            | {"instruction": instruction, "phrases": [instruction, "a thing"]}
            for k, instruction in enumerate(INSTRUCTIONS)
        ]
    return samples, encoded


def images_in(inputs: tuple[Any, ...], named: dict[str, Any]) -> int:
    [first, *_] = [*inputs, *named.values()]
    return len(getattr(first, "tensors", first))


def test_the_table_is_of_all_experts_with_weights(profile):
    assert set(IMAGE_ENCODERS) == set(profile.experts)


@pytest.mark.parametrize("name", IMAGE_ENCODERS)
def test_forward_passes_are_images_and_not_pairs(profile, name):
    expert = load_expert(profile, name)
    passed = []
    for k, of_expert in enumerate(IMAGE_ENCODERS[name]):
        passed.append(0)

        def count(module, inputs, named, k=k):
            passed[k] += images_in(inputs, named)

        of_expert(expert).register_forward_pre_hook(count, with_kwargs=True)
    samples, encoded = shard()
    output = Ground(name, expert, "1").run(samples, encoded)
    assert output.rejects == []
    assert len(output.rows) > len(IMAGES)
    assert passed == [len(IMAGES)] * len(passed)
