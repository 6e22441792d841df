import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import sklearn.datasets
import torch
from safetensors.torch import save_file
from segment_anything.utils.transforms import ResizeLongestSide
from transformers import BertConfig, BertModel, CLIPImageProcessor, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from experts.base import Placement, Request, Scene
from experts.lisa import Lisa
from pipeline.errors import InputError
from tests.helpers.same_masks import assert_same_mask
from tests.tiny import sam as tiny_sam
from tests.tiny.lisa import save

INSTRUCTIONS = ("find the flower", "a tall roof ünï", "what is the tallest thing here?", "pick it up", "漢字")
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
QUESTION = "Which parts of this image does one have to look at to do the following? {} Please output segmentation mask."


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def expert(options):
    return _expert(options)


@pytest.fixture
def copy(options, tmp_path):
    """Options of a copy of the checkpoint that a test may spoil."""
    shutil.copytree(options["checkpoint"], tmp_path / "lisa")
    return options | {"checkpoint": str(tmp_path / "lisa")}


@pytest.fixture(scope="module")
def scenes():
    flower, china = (sklearn.datasets.load_sample_image(f"{name}.jpg") for name in ("flower", "china"))
    requests = [Request(instruction, []) for instruction in INSTRUCTIONS]
    return [Scene(image.copy(), requests) for image in (flower[::3, ::3], china[::4, ::5], china[:90, 100:300])]


def _expert(options, batch=4):
    return Lisa(Lisa.Options(**options), Placement(device="cpu", batch=batch))


def _weights(folder):
    shards = sorted(Path(folder).glob("pytorch_model-*.bin"))
    return {name: tensor for shard in shards for name, tensor in torch.load(shard, weights_only=True).items()}


class StraightLine:
    """LISA's computation, one image and one instruction at a time, on the published weights: Llama, CLIP and SAM by
    their libraries' own classes, what is between them by plain tensor operations."""

    def __init__(self, options):
        folder = Path(options["checkpoint"])
        self.weights = _weights(folder)
        config = json.loads((folder / "config.json").read_text())
        self.llama = LlamaForCausalLM(LlamaConfig.from_dict(config | {"model_type": "llama"})).eval()
        of_llama = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")
        self.llama.load_state_dict(
            {k: v for k, v in self.weights.items() if k.startswith(of_llama) and "inv_freq" not in k}
        )
        self.sam = tiny_sam.build()
        self.sam.load_state_dict(
            {k.split("visual_model.")[1]: v for k, v in self.weights.items() if "visual_model" in k}
        )
        self.clip = CLIPVisionModel.from_pretrained(options["vision_tower"]["checkpoint"])
        self.processor = CLIPImageProcessor.from_pretrained(options["vision_tower"]["checkpoint"])
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self.added = json.loads((folder / "added_tokens.json").read_text())
        self.steps = options["max_new_tokens"]

    @torch.inference_mode()
    def masks(self, image, instruction):
        """Logits of each [SEG] at the image's size and the token's probability."""
        prompts, probabilities = self._answer(self._prompt(image, instruction))
        resize = ResizeLongestSide(self.sam.image_encoder.img_size)
        resized = torch.from_numpy(resize.apply_image(image)).permute(2, 0, 1)
        features = self.sam.image_encoder(self.sam.preprocess(resized)[None])
        logits = []
        for prompt in prompts:
            sparse, dense = self.sam.prompt_encoder(points=None, boxes=None, masks=None)
            small, _ = self.sam.mask_decoder(
                features,
                self.sam.prompt_encoder.get_dense_pe(),
                torch.cat([sparse, prompt[None, None]], 1),
                dense,
                False,
            )
            logits.append(self.sam.postprocess_masks(small, resized.shape[1:], image.shape[:2])[0, 0].numpy())
        return logits, probabilities

    def _prompt(self, image, instruction):
        states = self.clip.pre_layrnorm(self.clip.embeddings(self.processor(image, return_tensors="pt").pixel_values))
        for layer in self.clip.encoder.layers[:-1]:
            states = layer(states, attention_mask=None)
        weight, bias = (self.weights[f"model.mm_projector.{name}"] for name in ("weight", "bias"))
        before = [1, *self.pieces.encode(f"{SYSTEM} USER:"), self.added["<im_start>"]]
        after = [self.added["<im_end>"], *self.pieces.encode(f"{QUESTION.format(instruction)} ASSISTANT:")]
        table = self.weights["model.embed_tokens.weight"]
        return torch.cat([table[before], states[0, 1:] @ weight.T + bias, table[after]])

    def _answer(self, embedded):
        prompts, probabilities = [], []
        for _ in range(self.steps):
            state = self.llama.model(inputs_embeds=embedded[None]).last_hidden_state[0, -1]
            chances = (state @ self.weights["lm_head.weight"].T).softmax(0)
            token = int(chances.argmax())
            if token == self.added["[SEG]"]:
                first, second = ((f"{k}.weight", f"{k}.bias") for k in (0, 2))
                fcs = {name: self.weights[f"model.text_hidden_fcs.0.{name}"] for name in (*first, *second)}
                inner = (fcs[first[0]] @ state + fcs[first[1]]).clamp(min=0)
                prompts.append(fcs[second[0]] @ inner + fcs[second[1]])
                probabilities.append(float(chances[token]))
            if token == 2:
                break
            embedded = torch.cat([embedded, self.weights["model.embed_tokens.weight"][token][None]])
        return prompts, probabilities


def test_masks_and_scores_are_those_of_a_straight_line_computation(options, expert, scenes):
    straight = StraightLine(options)
    found = expert.ground_batch(scenes)
    counts, areas = set(), []
    for scene, answers in zip(scenes, found, strict=True):
        for instruction, candidates in zip(INSTRUCTIONS, answers, strict=True):
            logits, probabilities = straight.masks(scene.image, instruction)
            sure = [p / (1 + np.exp(-x)) for p, x in zip(probabilities, logits, strict=True)]
            expected = [(x > 0, p) for x, p in zip(logits, sure, strict=True)]
            if len(expected) > 1:
                expected.append((np.any([mask for mask, _ in expected], axis=0), np.max(sure, axis=0)))
            expected = [(mask, p[mask].mean() if mask.any() else 0) for mask, p in expected]
            expected.sort(key=lambda pair: -pair[1])
            assert [c.score for c in candidates] == pytest.approx([score for _, score in expected], abs=1e-3)
            assert [c.score for c in candidates] == sorted((c.score for c in candidates), reverse=True)
            for candidate, (mask, _) in zip(candidates, expected, strict=True):
                assert candidate.mask.dtype == bool and candidate.mask.shape == scene.image.shape[:2]
                assert candidate.phrase == instruction
                assert_same_mask(candidate.mask, mask)
                areas.append(mask.mean())
            counts.add(len(logits))
    # The comparison is of something: answers with none, one and several [SEG], masks neither empty nor full.
    assert counts >= {0, 1, 2}
    assert sum(0.05 < area < 0.8 for area in areas) > 10


def test_batched_equals_one_at_a_time(options, expert, scenes):
    together = expert.ground_batch(scenes)
    alone = _expert(options, batch=1)
    for scene, answers in zip(scenes, together, strict=True):
        for request, candidates in zip(scene.requests, answers, strict=True):
            [one] = alone.ground(scene.image, [request])
            assert [c.score for c in candidates] == pytest.approx([c.score for c in one], abs=1e-3)
            assert all(np.mean(c.mask ^ o.mask) < 1e-3 for c, o in zip(candidates, one, strict=True))


def _count(module, calls):
    return module.register_forward_hook(lambda _, inputs, output: calls.append(len(inputs[0] if inputs else output[0])))


def test_each_image_is_encoded_once_and_each_instruction_asked_once(expert, scenes):
    seen, drawn, asked = [], [], []
    scenes = [Scene(scene.image, [*scene.requests, *scene.requests]) for scene in scenes]
    hooks = [
        _count(expert.model.llava.model.vision_tower, seen),
        _count(expert.model.sam.image_encoder, drawn),
        expert.model.projection.register_forward_hook(lambda *_: asked.append(1)),
    ]
    answers = expert.ground_batch(scenes)
    for hook in hooks:
        hook.remove()
    assert sum(seen) == len(scenes) and sum(drawn) == len(scenes)
    assert len(asked) == len(scenes) * len(INSTRUCTIONS)
    assert all(of[k] == of[k + len(INSTRUCTIONS)] for of in answers for k in range(len(INSTRUCTIONS)))


def test_answer_without_seg_gives_nothing_and_the_image_is_not_encoded_for_masks(options, scenes):
    expert = _expert(options)
    expert.model.llava.lm_head.weight[expert.seg] = 0
    drawn = []
    _count(expert.model.sam.image_encoder, drawn)
    assert expert.ground_batch(scenes) == [[[] for _ in INSTRUCTIONS] for _ in scenes]
    assert drawn == []


def test_weights_in_one_safetensors_file_give_the_same(copy, expert, scenes):
    weights = _weights(copy["checkpoint"])
    for shard in Path(copy["checkpoint"]).glob("pytorch_model*"):
        shard.unlink()
    save_file(weights, Path(copy["checkpoint"]) / "model.safetensors")
    first, second = (e.ground(scenes[0].image, scenes[0].requests)[0] for e in (expert, _expert(copy)))
    assert [c.score for c in first] == [c.score for c in second]


@pytest.mark.parametrize("size", [(1, 1), (2000, 3), (3, 2000), (7, 3000)])
def test_slender_and_tiny_images(expert, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image.setflags(write=False)
    [candidates] = expert.ground(image, [Request(INSTRUCTIONS[0], [])])
    assert candidates and all(c.mask.shape == size for c in candidates)


def test_no_requests_many_requests_and_long_or_strange_ones(expert, scenes):
    image = scenes[0].image
    assert expert.ground(image, []) == []
    assert expert.ground_batch([]) == []
    texts = [
        "",
        "why? " * 2000,
        "[SEG] </s> <im_start> <unk> {}",
        "\n\n",
        "🦊" * 300,
        *(f"thing {k}" for k in range(40)),
    ]
    answers = expert.ground(image, [Request(text, []) for text in texts])
    assert len(answers) == len(texts)
    assert all(0 <= c.score <= 1 for candidates in answers for c in candidates)


def test_long_instruction_is_cut_to_what_the_model_takes(expert):
    positions = expert.model.llava.config.text_config.max_position_embeddings
    ids = expert._question("why? " * 2000)
    assert len(expert.opening) + 16 + len(ids) + expert.options.max_new_tokens <= positions < 2000
    assert ids[-3:] == expert._question("x")[-3:]


def test_bfloat16_gives_masks_at_the_images_size(options, scenes):
    expert = _expert(options | {"dtype": "bfloat16"})
    assert {layer.weight.dtype for layer in (expert.model.llava.lm_head, expert.model.projection[0])} == {
        torch.bfloat16
    }
    answers = expert.ground(scenes[0].image, scenes[0].requests)
    assert any(c.mask.any() for candidates in answers for c in candidates)


def test_missing_checkpoints_are_named(options, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        _expert(options | {"checkpoint": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match="no-tower"):
        _expert(options | {"vision_tower": {"checkpoint": str(tmp_path / "no-tower")}})


def test_checkpoint_of_another_model_is_named(options, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=30, **sizes)).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="bert"):
        _expert(options | {"checkpoint": str(tmp_path / "bert")})


def _edit(folder, change):
    for shard in Path(folder).glob("pytorch_model-*.bin"):
        weights = torch.load(shard, weights_only=True)
        change(weights)
        torch.save(weights, shard)


@pytest.mark.parametrize(
    "key",
    [
        "model.layers.1.mlp.up_proj.weight",
        "model.mm_projector.bias",
        "model.text_hidden_fcs.0.2.weight",
        "model.visual_model.mask_decoder.iou_token.weight",
        "model.visual_model.image_encoder.pos_embed",
    ],
)
def test_a_missing_weight_and_one_of_another_size_are_named(copy, key):
    _edit(copy["checkpoint"], lambda weights: weights.update({key: weights[key][..., :3]} if key in weights else {}))
    with pytest.raises(InputError, match="lisa"):
        _expert(copy)
    _edit(copy["checkpoint"], lambda weights: weights.pop(key, None))
    with pytest.raises(InputError, match=key.split(".")[-2]):
        _expert(copy)


@pytest.mark.parametrize("key", ["model.layers.2.norm.weight", "model.visual_model.head.bias", "discriminator.weight"])
def test_a_weight_too_many_is_named(copy, key):
    _edit(copy["checkpoint"], lambda weights: weights.update({key: torch.ones(2)}))
    with pytest.raises(InputError, match=key.split(".")[-2]):
        _expert(copy)


def test_truncated_and_absent_shards_are_named(copy):
    shards = sorted(Path(copy["checkpoint"]).glob("pytorch_model-*.bin"))
    shards[1].write_bytes(shards[1].read_bytes()[:1000])
    with pytest.raises(InputError, match="00002-of-00002"):
        _expert(copy)
    for shard in shards:
        shard.unlink()
    with pytest.raises(InputError, match="no weights"):
        _expert(copy)


def test_tokenizer_of_another_model_is_an_input_error(copy):
    folder = Path(copy["checkpoint"])
    added = json.loads((folder / "added_tokens.json").read_text())
    renamed = {name.replace("SEG", "DET"): token for name, token in added.items()}
    (folder / "added_tokens.json").write_text(json.dumps(renamed))
    with pytest.raises(InputError, match=r"\[SEG\]"):
        _expert(copy)
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "tokenizer.model").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.model"):
        _expert(copy)


def test_answers_longer_than_the_model_are_refused(options):
    with pytest.raises(InputError, match=r"max_new_tokens 1000 .* give \d+ or fewer"):
        _expert(options | {"max_new_tokens": 1000})


def test_version_tells_both_models_weights(options, copy):
    told = Lisa.version(Lisa.Options(**options))
    assert told.startswith("lisa-1 lisa@sha256:") and " + clip@sha256:" in told
    _edit(copy["checkpoint"], lambda weights: weights.update({"model.norm.weight": torch.zeros(32)}))
    assert Lisa.version(Lisa.Options(**copy)) != told
