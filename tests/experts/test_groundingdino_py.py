from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision.ops import box_convert
from transformers import AutoTokenizer, BertConfig, BertModel

from experts.base import Placement, Request, Scene
from experts.groundingdino_py import GroundingDinoPy, read_config
from pipeline.errors import InputError
from tests.tiny.groundingdino_py import save

PHRASES = ["a Red dog", "cat. on grass", "the zebra on a bus ?"]
SEGMENTER = {"name": "tests.helpers.box_segmenter", "checkpoint": "unused"}


def _picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[: height // 2, : width // 3] = (255, 0, 0)
    return image


def _expert(options, batch=4, **changes):
    options = options | {"segmenter": SEGMENTER} | changes
    return GroundingDinoPy(GroundingDinoPy.Options(**options), Placement(batch=batch))


def _boxes(detections) -> np.ndarray:
    """(n, 5): box and score, best first."""
    found = np.array([[*one.box, one.score] for one in detections]).reshape(-1, 5)
    return found[np.argsort(-found[:, 4])]


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return save(tmp_path_factory.mktemp("groundingdino"))


@pytest.fixture(scope="module")
def expert(options):
    # Without suppression, as the package's own call.
    return _expert(options, nms=1.0)


@pytest.fixture(scope="module")
def package_model(options, tmp_path_factory):
    """The model as the package itself builds and loads it, with three methods that BERT had in transformers 4."""
    from groundingdino.models import build_model
    from groundingdino.util.misc import clean_state_dict
    from groundingdino.util.slconfig import SLConfig

    bert = tmp_path_factory.mktemp("bert")
    BertModel(BertConfig.from_pretrained(options["text_encoder"]["checkpoint"])).save_pretrained(bert)
    AutoTokenizer.from_pretrained(options["text_encoder"]["checkpoint"]).save_pretrained(bert)
    settings = SLConfig.fromfile(options["config"])
    settings.use_checkpoint = settings.use_transformer_ckpt = False
    settings.text_encoder_type = str(bert)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BertModel, "invert_attention_mask", None, raising=False)
        patch.setattr(BertModel, "get_head_mask", lambda *_: None, raising=False)
        patch.setattr(
            BertModel,
            "get_extended_attention_mask",
            lambda _, mask, *__: torch.where(mask.bool(), 0.0, -1e9).unsqueeze(1),
            raising=False,
        )
        model = build_model(settings).eval()
    saved = torch.load(options["checkpoint"], weights_only=True)["model"]
    assert set(model.load_state_dict(clean_state_dict(saved), strict=False).missing_keys) == set()
    return model


def _predicted(model, image, phrase, short_side):
    """What groundingdino.util.inference.predict does; that module needs supervision. Boxes clipped as the expert's."""
    import groundingdino.datasets.transforms as package_transforms

    transform = package_transforms.Compose(
        [
            package_transforms.RandomResize([short_side], max_size=int(short_side * 1333 / 800)),
            package_transforms.ToTensor(),
            package_transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    pixels, _ = transform(Image.fromarray(image), None)
    with torch.no_grad():
        outputs = model(pixels[None], captions=[phrase.lower().strip() + ("" if phrase.endswith(".") else ".")])
    height, width = image.shape[:2]
    scores = outputs["pred_logits"].sigmoid()[0].max(dim=1)[0]
    boxes = box_convert(outputs["pred_boxes"][0] * torch.tensor([width, height, width, height]), "cxcywh", "xyxy")
    found = torch.cat([boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height])), scores[:, None]], 1)
    found = found[(found[:, 2:4] > found[:, :2]).all(1)].numpy()
    return found[np.argsort(-found[:, 4])]


@pytest.mark.filterwarnings("ignore:.*torch.cuda.amp.autocast:FutureWarning")
@pytest.mark.parametrize("shape", [(60, 90), (200, 70), (96, 96), (50, 400)])
def test_boxes_and_scores_are_those_of_the_package(options, expert, package_model, shape):
    image = _picture(*shape)
    [found] = expert.detect([image], [PHRASES])
    for phrase, detections in zip(PHRASES, found, strict=True):
        expected = _predicted(package_model, image, phrase, options["short_side"])
        expected = expected[expected[:, 4] >= options["threshold"]]
        assert len(expected) > 9 and np.ptp(expected[:, 4]) > 0.1 and np.ptp(expected[:, 0]) > 10
        ours = _boxes(detections)
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours[:, :4], expected[:, :4], atol=1e-2)
        np.testing.assert_allclose(ours[:, 4], expected[:, 4], atol=1e-4)


@pytest.mark.parametrize("batch", [2, 16])
def test_batched_equals_one_at_a_time(options, expert, batch):
    together = _expert(options, batch=batch, nms=1.0)
    images = [_picture(60, 90, 1), _picture(50, 40, 2), _picture(60, 90, 3), _picture(120, 180, 4)]
    texts = [PHRASES, ["x"], ["one quite long phrase, with a comma", "x", "a. b. c"], ["dog"]]
    for image, of_image, found in zip(images, texts, together.detect(images, texts), strict=True):
        for text, one in zip(of_image, found, strict=True):
            [[other]] = expert.detect([image], [[text]])
            assert one
            np.testing.assert_allclose(_boxes(one)[:, :4], _boxes(other)[:, :4], atol=1e-2)
            np.testing.assert_allclose(_boxes(one)[:, 4], _boxes(other)[:, 4], atol=1e-4)


def test_different_phrases_and_places_get_different_boxes(expert):
    image = _picture(60, 90)
    [first, second, _], [mirrored, *_] = expert.detect([image, image[:, ::-1].copy()], [PHRASES, PHRASES])
    for other in (second, mirrored):
        assert not np.allclose(_boxes(first)[:5], _boxes(other)[:5], atol=0.1)


def test_each_image_is_encoded_once_and_each_phrase_of_it_asked_once(expert):
    passes = {"image": 0, "phrase": 0}

    def count_images(module, inputs, output):
        passes["image"] += len(inputs[0].tensors)

    def count_phrases(module, inputs, output):
        passes["phrase"] += len(output[0][0])

    hooks = [
        expert.model.backbone[0].register_forward_hook(count_images),
        expert.model.transformer.register_forward_hook(count_phrases),
    ]
    image, other = _picture(60, 90), _picture(40, 40)
    requests = [Request("i", ["a"]), Request("j", ["b", "a"]), Request("k", ["c", "d"])]
    answers = expert.ground_batch([Scene(image, requests), Scene(other, requests[:1]), Scene(other, [])])
    for hook in hooks:
        hook.remove()
    assert passes == {"image": 2, "phrase": 5}
    assert [len(of_scene) for of_scene in answers] == [3, 1, 0]
    assert {found.phrase for found in answers[0][1]} == {"a", "b"}


def test_candidates_are_inside_the_image_best_first_and_at_most_top(options):
    expert = _expert(options, top=3)
    image = _picture(70, 50)
    [answer] = expert.ground(image, [Request("i", ["dog"])])
    assert len(answer) == 3
    assert [found.score for found in answer] == sorted((found.score for found in answer), reverse=True)
    for found in answer:
        x1, y1, x2, y2 = found.box
        assert 0 <= x1 < x2 <= 50 and 0 <= y1 < y2 <= 70
        assert 0 <= found.score <= 1 and found.mask.shape == (70, 50)


@pytest.mark.parametrize("shape", [(1, 1), (2000, 3), (1, 4000), (5, 8)])
def test_tiny_and_thin_images_are_no_trouble(expert, shape):
    [[found]] = expert.detect([np.full((*shape, 3), 90, np.uint8)], [["dog"]])
    for detection in found:
        x1, y1, x2, y2 = detection.box
        assert 0 <= x1 < x2 <= shape[1] and 0 <= y1 < y2 <= shape[0]


def test_any_number_and_kind_of_phrases(expert):
    image = _picture(40, 50)
    assert expert.ground(image, [Request("describe it", [])]) == [[]]
    many = [f"thing number {k}" for k in range(40)]
    odd = ["", " . ", "ein Hündchen 🐕 и кот", "red " * 300]
    [found] = expert.detect([image], [many + odd])
    assert len(found) == 44


def test_bfloat16_finds_boxes_too(options):
    [[found]] = _expert(options, dtype="bfloat16").detect([_picture(60, 90)], [["dog"]])
    assert found and all(0 <= detection.score <= 1 for detection in found)


def test_wrong_checkpoints_are_input_errors(options, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        _expert(options, checkpoint=str(tmp_path / "nowhere.pth"))
    with pytest.raises(ValidationError, match=r"local \.pth"):
        _expert(options, checkpoint="IDEA-Research/grounding-dino-tiny")
    saved = torch.load(options["checkpoint"], weights_only=True)["model"]
    saved.pop("module.feat_map.weight")
    for name, content in {"no_model": saved, "lacks_one": {"model": saved}}.items():
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(InputError, match=name):
            _expert(options, checkpoint=str(tmp_path / f"{name}.pth"))


def test_config_is_read_and_never_executed(options, tmp_path):
    trace = tmp_path / "trace"
    for code in (f"open({str(trace)!r}, 'w')", f"x = open({str(trace)!r}, 'w')", "import os", "a, b = 1, 2", "x = ("):
        config = tmp_path / "hostile.py"
        config.write_text(code)
        with pytest.raises(InputError, match="hostile"):
            _expert(options, config=str(config))
    assert not trace.exists()
    (tmp_path / "short.py").write_text("modelname = 'groundingdino'\nhidden_dim = 256\n")
    with pytest.raises(InputError, match=r"short\.py"):
        _expert(options, config=str(tmp_path / "short.py"))
    with pytest.raises(InputError, match="swin_x"):
        _expert(options, config="swin_x")


def test_configs_of_both_published_models_are_known():
    for name, backbone in (("swin_t", "swin_T_224_1k"), ("swin_b", "swin_B_384_22k")):
        known = GroundingDinoPy.Options(checkpoint="x.pth", config=name, segmenter=SEGMENTER)
        settings = read_config(known.config_file)
        assert settings["backbone"] == backbone and settings["return_interm_indices"] == [1, 2, 3]


def test_version_tells_weights_config_and_text_encoder_apart(options, tmp_path):
    def version(**changes):
        return GroundingDinoPy.version(GroundingDinoPy.Options(**options | {"segmenter": segmenter} | changes))

    segmenter = SEGMENTER | {"checkpoint": options["config"]}
    other = tmp_path / "other.py"
    other.write_text(Path(options["config"]).read_text() + "nheads = 8\n")
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text("{}")
    assert len({version(), version(config=str(other)), version(text_encoder={"checkpoint": str(bert)})}) == 3


def test_checks_before_a_run_name_what_is_missing(options, tmp_path):
    segmenter = SEGMENTER | {"checkpoint": options["checkpoint"]}
    parsed = GroundingDinoPy.Options(**options | {"segmenter": segmenter})
    assert parsed.pinned() == parsed
    for changes in ({"config": "gone.py"}, {"text_encoder": {"checkpoint": str(tmp_path / "gone.py")}}):
        with pytest.raises(InputError, match=r"gone\.py"):
            GroundingDinoPy.Options(**options | {"segmenter": segmenter} | changes).pinned()


def test_resolution_too_small_for_the_queries_is_an_input_error(options):
    with pytest.raises(InputError, match="short_side 32"):
        _expert(options, short_side=32)
