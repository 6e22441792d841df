import cv2
import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image
from torch.nn import functional
from torchvision import transforms
from transformers import CLIPModel, CLIPProcessor

from experts.base import Placement, Request, Scene
from experts.proposals import propose
from experts.region_alphaclip import RegionAlphaClip
from pipeline.errors import InputError
from tests.tiny import region_clip
from tests.tiny.region_alphaclip import GRID, HEADS, LAYERS, PATCH, WIDTH, save

FLOWER = cv2.resize(sklearn.datasets.load_sample_image("flower.jpg"), (90, 60), interpolation=cv2.INTER_AREA)
CHINA = cv2.resize(sklearn.datasets.load_sample_image("china.jpg"), (64, 100), interpolation=cv2.INTER_AREA)
PHRASES = ["a red flower", "leaf"]
RIVALS = ["object", "things", "stuff", "texture"]
SIDE = GRID * PATCH


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return _with_segmenter(save(tmp_path_factory.mktemp("alphaclip")))


def _with_segmenter(options):
    return {**options, "segmenter": {"name": "tests.helpers.box_segmenter", "checkpoint": "unused"}}


def _expert(options, batch=4, **changed):
    return RegionAlphaClip(RegionAlphaClip.Options(**options | changed), Placement(device="cpu", batch=batch))


def _regions(expert, image):
    encoded = expert.segmenter.encode([image])[0]
    return list(propose(expert.segmenter, encoded, expert.options.proposals).masks)


def _by_mask(candidates, phrase):
    return {c.mask.tobytes(): c.score for c in candidates if c.phrase == phrase}


def _black_square(image):
    side = max(image.shape[:2])
    above, left = (side - image.shape[0]) // 2, (side - image.shape[1]) // 2
    below, right = side - image.shape[0] - above, side - image.shape[1] - left
    return np.pad(image, ((above, below), (left, right), (0, 0))[: image.ndim])


def _encode_straight(weights, pixels, alpha):
    """AlphaCLIP's image encoder, as the paper's figure and the repository's model say, on the published names."""

    def layer_norm(x, name):
        return functional.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    patches = functional.conv2d(pixels, weights["conv1.weight"], stride=PATCH)
    patches = patches + functional.conv2d(alpha, weights["conv1_alpha.weight"], stride=PATCH)
    tokens = torch.cat([weights["class_embedding"][None], patches[0].reshape(WIDTH, -1).T])
    x = layer_norm(tokens + weights["positional_embedding"], "ln_pre")
    for layer in range(LAYERS):
        block = f"transformer.resblocks.{layer}"
        q, k, v = linear(layer_norm(x, f"{block}.ln_1"), f"{block}.attn.in_proj").split(WIDTH, dim=1)
        heads = []
        for head in range(HEADS):
            of = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            attention = (q[:, of] @ k[:, of].T / (WIDTH // HEADS) ** 0.5).softmax(dim=1)
            heads.append(attention @ v[:, of])
        x = x + linear(torch.cat(heads, dim=1), f"{block}.attn.out_proj")
        hidden = linear(layer_norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        x = x + linear(hidden * torch.sigmoid(1.702 * hidden), f"{block}.mlp.c_proj")
    return layer_norm(x[0], "ln_post") @ weights["proj"]


def test_scores_are_those_of_a_straight_line_computation_on_the_published_weights(options):
    expert = _expert(options)
    found = expert.ground(FLOWER, [Request("…", PHRASES)])[0]

    weights = torch.load(options["alpha_checkpoint"], weights_only=True)
    clip = CLIPModel.from_pretrained(options["checkpoint"])
    processor = CLIPProcessor.from_pretrained(options["checkpoint"])
    square = Image.fromarray(_black_square(FLOWER))
    pixels = processor(images=square, return_tensors="pt").pixel_values
    to_alpha = transforms.Compose(
        [transforms.ToTensor(), transforms.Resize((SIDE, SIDE)), transforms.Normalize(0.5, 0.26)]
    )
    inputs = processor(text=[f"a photo of {text}" for text in [*PHRASES, *RIVALS]], padding=True, return_tensors="pt")
    differences, scores = [], []
    with torch.inference_mode():
        texts = functional.normalize(clip.get_text_features(**inputs).pooler_output, dim=1)
        for mask in _regions(expert, FLOWER):
            alpha = to_alpha(_black_square(mask).astype(np.uint8) * 255)[None]
            region = functional.normalize(_encode_straight(weights, pixels, alpha), dim=0)
            logits = clip.logit_scale.exp() * texts @ region
            for k, phrase in enumerate(PHRASES):
                against_each = torch.stack([logits[[k, 2 + rival]].softmax(0)[0] for rival in range(len(RIVALS))])
                scores.append(float(against_each.min()))
                differences.append(abs(_by_mask(found, phrase)[mask.tobytes()] - scores[-1]))
    assert len(scores) == 24 and max(scores) - min(scores) > 0.05
    assert max(differences) < 1e-5


def test_batches_of_images_of_several_sizes_give_what_one_at_a_time_gives(options):
    scenes = [Scene(FLOWER, [Request("one", PHRASES), Request("two", ["leaf"])]), Scene(CHINA, [Request("x", ["sky"])])]
    together = _expert(options, batch=5).ground_batch(scenes)
    apart = [_expert(options, batch=1).ground(scene.image, scene.requests) for scene in scenes]
    assert [[len(found) for found in answers] for answers in together] == [[24, 12], [12]]
    for ours, theirs in zip(together, apart, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            for phrase in {c.phrase for c in one}:
                assert _by_mask(one, phrase) == pytest.approx(_by_mask(other, phrase), abs=1e-5)


def test_image_region_and_phrase_are_encoded_once_each(options, monkeypatch):
    expert = _expert(options)
    seen = {"prepared": 0, "regions": 0, "texts": 0}
    expert.model.vision_model.register_forward_hook(
        lambda _, __, output: seen.update(regions=seen["regions"] + len(output.pooler_output))
    )
    expert.model.text_model.register_forward_hook(
        lambda _, __, output: seen.update(texts=seen["texts"] + len(output.pooler_output))
    )
    prepare = expert.prepare
    monkeypatch.setattr(expert, "prepare", lambda image: seen.update(prepared=seen["prepared"] + 1) or prepare(image))
    requests = [Request(f"request {k}", ["leaf", f"thing {k}"]) for k in range(5)]
    expert.ground_batch([Scene(FLOWER, requests), Scene(CHINA, requests)])
    assert seen == {"prepared": 2, "regions": 24, "texts": 6 + len(RIVALS)}


@pytest.mark.parametrize("shape", [(1, 1), (2000, 3), (3, 3)])
def test_tiny_and_thin_images_do_not_fail(options, shape):
    [found] = _expert(options).ground(np.full((*shape, 3), 128, np.uint8), [Request("…", ["leaf"])])
    assert all(c.mask.shape == shape and 0 <= c.score <= 1 for c in found)


def test_bfloat16_gives_nearly_the_same_scores(options):
    exact, rough = (
        _by_mask(_expert(options, dtype=dtype).ground(FLOWER, [Request("…", ["leaf"])])[0], "leaf")
        for dtype in ("float32", "bfloat16")
    )
    assert rough == pytest.approx(exact, abs=0.03) and rough != exact


def test_half_precision_weights_as_published_models_may_have_are_taken(options, tmp_path):
    weights = torch.load(options["alpha_checkpoint"], weights_only=True)
    torch.save({name: weight.half() for name, weight in weights.items()}, tmp_path / "half.pth")
    exact, rough = (
        _by_mask(_expert(options, **changed).ground(FLOWER, [Request("…", ["leaf"])])[0], "leaf")
        for changed in ({}, {"alpha_checkpoint": str(tmp_path / "half.pth")})
    )
    assert rough == pytest.approx(exact, abs=0.01)


def _without_alpha(weights):
    del weights["conv1_alpha.weight"]


def _with_lora(weights):
    weights["transformer.resblocks.0.attn.in_proj.lora_A"] = torch.zeros(4, WIDTH)


def _shorter(weights):
    del weights["transformer.resblocks.1.mlp.c_fc.bias"]


def _of_another_size(weights):
    weights["positional_embedding"] = torch.zeros(50, WIDTH)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_without_alpha, "lacks conv1_alpha.weight"),
        (_with_lora, "not of this model.*lora_A"),
        (_shorter, "not of this model.*fc1.bias"),
        (_of_another_size, "not of this model.*position_embedding"),
        (lambda weights: weights.update(epoch=3), "other things than tensors"),
    ],
)
def test_file_that_is_no_alphaclip_of_this_clip_is_named(options, tmp_path, change, told):
    weights = torch.load(options["alpha_checkpoint"], weights_only=True)
    change(weights)
    torch.save(weights, tmp_path / "foreign.pth")
    with pytest.raises(InputError, match=rf"foreign\.pth.*{told}"):
        _expert(options, alpha_checkpoint=str(tmp_path / "foreign.pth"))


def test_missing_corrupt_or_wrong_checkpoint_is_named(options, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        _expert(options, checkpoint=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"gone\.pth does not exist"):
        RegionAlphaClip.Options(**options | {"alpha_checkpoint": str(tmp_path / "gone.pth")}).pinned()
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match=r"cut\.pth is corrupt"):
        _expert(options, alpha_checkpoint=str(tmp_path / "cut.pth"))
    siglip = region_clip.save(tmp_path / "siglip", "siglip")["checkpoint"]
    with pytest.raises(InputError, match="siglip is of a siglip model; give one of clip"):
        _expert(options, checkpoint=siglip)


def test_version_tells_the_alpha_weights_and_where_they_lie_does_not_matter(options, tmp_path):
    def told(path):
        segmenter = {**options["segmenter"], "checkpoint": options["alpha_checkpoint"]}
        changed = RegionAlphaClip.Options(**options | {"alpha_checkpoint": str(path), "segmenter": segmenter})
        return RegionAlphaClip.version(changed), changed.identity()

    weights = torch.load(options["alpha_checkpoint"], weights_only=True)
    torch.save(weights, tmp_path / "alpha.pth")
    torch.save(weights | {"class_embedding": torch.zeros(WIDTH)}, tmp_path / "other.pth")
    published, other = told(tmp_path / "alpha.pth"), told(tmp_path / "other.pth")
    assert published[0] == told(options["alpha_checkpoint"])[0] != other[0]
    assert published[1] == other[1]
