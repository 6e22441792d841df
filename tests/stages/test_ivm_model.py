import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_masks import draw
from safetensors.torch import save_file
from transformers import LlavaForConditionalGeneration, LlavaProcessor, SamModel, SamProcessor

from pipeline.errors import InputError
from stages.ivm_config import Checkpoint, IvmConfig
from stages.ivm_encoders import ClipCondition, Encoders, LlavaCondition
from stages.ivm_model import IvmNet, mask_plane, two_way
from tests.tiny import ivm, llava, region_clip

torch.set_num_threads(1)

EXAMPLES, PIXELS = draw(4)
KINDS = ["clip", "llava"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        "sam": ivm.save_sam(tmp_path_factory.mktemp("sam")),
        "clip": region_clip.save(tmp_path_factory.mktemp("clip"))["checkpoint"],
        "llava": llava.save(tmp_path_factory.mktemp("llava")),
    }


@pytest.fixture(scope="module")
def configure(checkpoints: dict[str, str]) -> Callable[..., IvmConfig]:
    def build(condition: str = "clip", **fields: Any) -> IvmConfig:
        folders = {"sam": {"checkpoint": checkpoints["sam"]}, "condition": {"checkpoint": checkpoints[condition]}}
        return IvmConfig.model_validate(folders | {"device": "cpu"} | fields)

    return build


@pytest.fixture(scope="module")
def encoders(configure: Callable[..., IvmConfig]) -> dict[str, Encoders]:
    return {kind: Encoders(configure(kind)) for kind in KINDS}


def _net(encoders: Encoders) -> IvmNet:
    torch.manual_seed(1)
    return IvmNet(encoders).eval()


def _rows(count: int = 16) -> tuple[list[np.ndarray], list[str], list[np.ndarray]]:
    chosen = EXAMPLES[:count]
    return [PIXELS[one.image] for one in chosen], [one.instruction for one in chosen], [one.decoded() for one in chosen]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changed", ["image", "text", "mask"])
def test_before_any_training_each_input_alone_changes_d(encoders: dict[str, Encoders], kind: str, changed: str) -> None:
    net, (image, text, mask) = _net(encoders[kind]), (part[0] for part in _rows())
    other = {"image": image[::-1, ::-1].copy(), "text": "the blue square", "mask": np.roll(mask, 30, axis=1)}
    given = {"image": image, "text": text, "mask": mask}
    first, second = (
        net.predict([one["image"]], [one["text"]], [one["mask"]])[0, 0]
        for one in (given, given | {changed: other[changed]})
    )
    assert abs(first - second) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_each_row_alone_gives(encoders: dict[str, Encoders], kind: str) -> None:
    net, (images, _, masks) = _net(encoders[kind]), _rows(4)
    # Of different lengths, so that all but one are padded.
    texts = ["a", "the red square on the left", "it", "where is the thing that is blue, and not red?"]
    together = net.predict(images, texts, masks)
    alone = [net.predict([image], [text], [mask])[0] for image, text, mask in zip(images, texts, masks, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.shape == (4, 2) and together.dtype == np.float32
    assert np.ptp(together[:, 0]) > 1e-3


def test_images_are_encoded_once_however_many_masks_and_texts_they_have(encoders: dict[str, Encoders]) -> None:
    seen: list[int] = []
    vision = encoders["clip"].sam.model.vision_encoder
    hook = vision.register_forward_hook(lambda module, inputs, output: seen.append(len(output[0])))
    _net(encoders["clip"]).predict(*_rows(16))
    hook.remove()
    assert sum(seen) == len(PIXELS)


def test_image_embedding_is_the_librarys(encoders: dict[str, Encoders], checkpoints: dict[str, str]) -> None:
    model, processor = (cls.from_pretrained(checkpoints["sam"]) for cls in (SamModel, SamProcessor))
    images = list(PIXELS.values())
    for image, seen in zip(images, encoders["clip"].see(images), strict=True):
        expected = model.eval().get_image_embeddings(
            processor(images=image, return_tensors="pt")["pixel_values"].float()
        )
        torch.testing.assert_close(seen.embedding, expected[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_llava_states_are_the_librarys_after_the_image(
    encoders: dict[str, Encoders], checkpoints: dict[str, str]
) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(checkpoints["llava"]).eval()
    processor = LlavaProcessor.from_pretrained(checkpoints["llava"])
    image, text = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8), "the red square"
    inputs = processor(images=image, text=f"USER: <image>\n{text} ASSISTANT:", return_tensors="pt")
    last = model(**inputs, output_hidden_states=True).hidden_states[-1][0]
    after = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[-1]) + 1
    condition = encoders["llava"].condition
    [(states,)] = condition.read(condition.look([image]), [text])
    torch.testing.assert_close(states, last[after:], atol=1e-4, rtol=1e-4)


def test_an_instruction_that_names_the_image_token_is_one(encoders: dict[str, Encoders]) -> None:
    images, _, masks = _rows(1)
    assert np.isfinite(_net(encoders["llava"]).predict(images, ["look at <image> </s>"], masks)).all()


@pytest.mark.parametrize("text", ["", "?", "ä ö 中", "word " * 500])
def test_any_instruction_is_read(encoders: dict[str, Encoders], text: str) -> None:
    images, _, masks = _rows(1)
    for kind in KINDS:
        assert np.isfinite(_net(encoders[kind]).predict(images, [text], masks)).all()


@torch.no_grad()
def test_two_way_is_the_librarys_where_nothing_is_padded(encoders: dict[str, Encoders]) -> None:
    net = _net(encoders["clip"])
    tokens, image = torch.randn(3, 5, 32), torch.randn(3, 32, net.grid, net.grid)
    expected, _ = net.transformer(
        point_embeddings=tokens[:, None],
        image_embeddings=image,
        image_positional_embeddings=net.position,
        attention_similarity=None,
    )
    found = two_way(net.transformer, tokens, image, net.position, torch.ones(3, 5, dtype=torch.bool))
    torch.testing.assert_close(found, expected[:, 0], atol=1e-5, rtol=1e-5)


def test_mask_lies_where_sam_puts_its_image() -> None:
    mask = np.zeros((50, 100), dtype=bool)
    mask[25:, 50:] = True
    plane = mask_plane(mask, 64)
    expected = np.zeros((64, 64), dtype=np.float32)
    expected[16:32, 32:] = 1
    np.testing.assert_allclose(plane, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2000), (2000, 3)])
def test_mask_of_one_pixel_shows_in_an_image_of_any_shape(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, dtype=bool)
    mask[-1, -1] = True
    assert mask_plane(mask, 64).max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_saved_learns_and_the_encoders_stay_bit_equal(encoders: dict[str, Encoders], kind: str) -> None:
    net, models = _net(encoders[kind]), (encoders[kind].sam.model, encoders[kind].condition.model)  # type: ignore[attr-defined]
    before = copy.deepcopy([model.state_dict() for model in models])
    weights, optimizer = net.weights(), torch.optim.SGD(net.trained().values(), 0.1)
    net(*_rows(4)).square().sum().backward()
    optimizer.step()
    for model, state in zip(models, before, strict=True):
        assert all(value.grad is None for value in model.parameters())
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    # A bias of keys changes no softmax, so it has a gradient of nothing but rounding.
    learning = {name: value for name, value in net.trained().items() if "k_proj.bias" not in name}
    assert [name for name, value in learning.items() if value.grad is None or not value.grad.any()] == []
    assert not torch.equal(net.weights()["cls"], weights["cls"])


def test_saved_weights_give_the_same_and_hold_nothing_frozen(encoders: dict[str, Encoders], tmp_path: Path) -> None:
    net, rows = _net(encoders["clip"]), _rows(4)
    expected = net.predict(*rows)
    net.save(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(IvmNet.load(tmp_path / "net.safetensors", encoders["clip"]).predict(*rows), expected)
    np.testing.assert_array_equal(IvmNet.load(tmp_path / "net.safetensors").predict(*rows), expected)
    size = sum(value.numel() for value in net.parameters())
    assert (tmp_path / "net.safetensors").stat().st_size < 4 * size + 20_000


def test_weights_are_not_taken_for_those_of_other_checkpoints(encoders: dict[str, Encoders], tmp_path: Path) -> None:
    _net(encoders["clip"]).save(tmp_path / "net.safetensors")
    with pytest.raises(InputError, match=r"net\.safetensors was trained on other checkpoints"):
        IvmNet.load(tmp_path / "net.safetensors", encoders["llava"])


def test_foreign_and_corrupt_weights_are_named(encoders: dict[str, Encoders], tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    file.write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"net\.safetensors cannot be read"):
        IvmNet.load(file, encoders["clip"])
    save_file({"cls": torch.zeros(1)}, file)
    with pytest.raises(InputError, match=r"net\.safetensors is not of a discriminator of model ivm"):
        IvmNet.load(file, encoders["clip"])
    net = _net(encoders["clip"])
    with pytest.raises(InputError, match=r"as cls; train it anew"):
        net.set_weights({name: value for name, value in net.weights().items() if name != "cls"})


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_runs_and_stays_close(
    configure: Callable[..., IvmConfig], encoders: dict[str, Encoders], kind: str, precision: str
) -> None:
    half, full = _net(Encoders(configure(kind, precision=precision))), _net(encoders[kind])
    expected, found = full.predict(*_rows(4)), half.predict(*_rows(4))
    assert next(half.encoders.sam.model.vision_encoder.parameters()).dtype == getattr(torch, precision)
    assert all(value.dtype == torch.float32 for value in half.trained().values())
    assert np.abs(found - expected).max() < 0.1


@pytest.mark.parametrize("field", ["sam", "condition"])
def test_missing_and_foreign_checkpoints_are_named_with_their_field(
    configure: Callable[..., IvmConfig], checkpoints: dict[str, str], tmp_path: Path, field: str
) -> None:
    gone = {field: Checkpoint(checkpoint=str(tmp_path / "gone"))}
    with pytest.raises(InputError, match=rf"discriminator\.{field}: .*gone"):
        configure().model_copy(update=gone).pinned()
    with pytest.raises(InputError, match=rf"discriminator\.{field}: .*gone"):
        Encoders(configure().model_copy(update=gone))
    foreign = {"sam": "clip", "condition": "sam"}[field]
    with pytest.raises(InputError, match=rf"discriminator\.{field}: .*is of a {foreign} model; give one of"):
        Encoders(configure().model_copy(update={field: Checkpoint(checkpoint=checkpoints[foreign])}))


def test_pinning_notes_what_the_weights_are_and_where_they_lie_decides_nothing(
    configure: Callable[..., IvmConfig], checkpoints: dict[str, str]
) -> None:
    pinned = configure().pinned()
    assert (pinned.pinned_field, configure().pinned_field) == ("sam", "")
    assert "@sha256:" in pinned.sam.version
    elsewhere = pinned.sam.model_copy(update={"checkpoint": f"{checkpoints['sam']}/."})
    assert pinned.model_copy(update={"sam": elsewhere, "device": "auto"}).identity() == pinned.identity()
    assert configure(learning_rate=1e-5).pinned().identity() != pinned.identity()
    assert configure("llava").pinned().identity() != pinned.identity()


def test_the_config_json_tells_which_condition_it_is(encoders: dict[str, Encoders]) -> None:
    assert isinstance(encoders["clip"].condition, ClipCondition)
    assert isinstance(encoders["llava"].condition, LlavaCondition)


def test_lora_without_peft_or_without_llava_is_refused(
    configure: Callable[..., IvmConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"^discriminator\.lora_rank needs the package peft: install the extra 'lora'"):
        Encoders(configure("llava", lora_rank=2))
    with pytest.raises(InputError, match=r"^discriminator\.lora_rank is for a LLaVA condition"):
        Encoders(configure("clip", lora_rank=2))


def test_lora_adapters_and_nothing_else_of_llava_learn(configure: Callable[..., IvmConfig], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    net = _net(Encoders(configure("llava", lora_rank=2, precision="bfloat16")))
    adapters = net.encoders.condition.trained
    # Two matrices for each of two projections in each of two layers.
    assert len(adapters) == 8
    assert all("lora" in name and value.dtype == torch.float32 for name, value in adapters.items())
    before = copy.deepcopy(net.encoders.condition.model.state_dict())  # type: ignore[attr-defined]
    untrained, optimizer = net.predict(*_rows(4)), torch.optim.AdamW(net.trained().values(), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        net(*_rows(4)).square().sum().backward()
        optimizer.step()
    after = net.encoders.condition.model.state_dict()  # type: ignore[attr-defined]
    assert {name for name in after if not torch.equal(after[name], before[name])} == {
        name for name in after if "lora" in name
    }
    expected = net.predict(*_rows(4))
    net.save(tmp_path / "net.safetensors")
    net.encoders.reset()
    assert not any(value.any() for name, value in adapters.items() if "lora_B" in name)
    np.testing.assert_array_equal(IvmNet.load(tmp_path / "net.safetensors").predict(*_rows(4)), expected)
    assert np.abs(untrained - expected).max() > 0
