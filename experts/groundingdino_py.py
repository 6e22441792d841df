"""Expert `groundingdino_py`: Grounding DINO by its authors' package, from their config and .pth files."""

import ast
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from pydantic import Field, field_validator
from torchvision.transforms import functional as transforms
from transformers import AutoTokenizer, BertConfig, BertModel

from experts.base import ExpertOptions, Placement
from experts.boxes import THINNEST, BoxModelOptions, best_boxes, thick_enough, to_xyxy_px
from experts.checkpoints import UNREADABLE, expanded, load_pth, load_weights, local_path, weights_id
from experts.detector import Detection, DetectorExpert
from experts.model import CheckpointOptions, load_processor
from pipeline.errors import InputError

_SHIPPED = {"swin_t": "GroundingDINO_SwinT_OGC.py", "swin_b": "GroundingDINO_SwinB_cfg.py"}
_LEFT_OVER = ("label_enc.weight", "bert.embeddings.position_ids")
"""What the published checkpoints hold and the model has no use for: a layer for training, and a buffer that older
transformers saved (IDEA-Research/GroundingDINO issue 271)."""
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_LONGEST = 1333 / 800
"""Most that the long side is resized to, as a multiple of `short_side` (groundingdino/util/inference.py)."""


class TextEncoder(CheckpointOptions):
    """The BERT that a checkpoint was trained with. Its config and tokenizer are read; its weights are in the .pth."""

    checkpoint: str = "google-bert/bert-base-uncased"

    def pinned(self) -> Self:
        path = local_path(self.checkpoint)
        if path is None:
            return super().pinned()
        if not (path / "config.json").exists():
            raise InputError(f"text_encoder {path} has no config.json; give a folder with BERT's config and tokenizer")
        return self


class GroundingDinoPyOptions(BoxModelOptions):
    """`checkpoint` is a local .pth as the authors publish them, and `config` what goes with it: swin_t, swin_b, or the
    path of a config file in the authors' form. Images are resized to `short_side` pixels, 800 as in training; less is
    faster, down to some 610, where the published models' 900 queries still find places. `dtype` is the activations'."""

    whereabouts: ClassVar[frozenset[str]] = BoxModelOptions.whereabouts | {"config"}

    config: str = "swin_t"
    text_encoder: TextEncoder = TextEncoder()
    short_side: int = Field(800, ge=32, le=1600)

    @field_validator("checkpoint")
    @classmethod
    def _is_pth(cls, checkpoint: str) -> str:
        if Path(checkpoint).suffix not in (".pth", ".pt"):
            raise ValueError("groundingdino_py takes a local .pth file; for a hub id use grounding_dino")
        return checkpoint

    @property
    def config_file(self) -> Path:
        """Of the model, one of the package's own or the user's."""
        if self.config in _SHIPPED:
            return Path(str(resources.files("groundingdino") / "config" / _SHIPPED[self.config]))
        return expanded(self.config)

    def pinned(self) -> Self:
        read_config(self.config_file)
        return super().pinned()


@dataclass(frozen=True, eq=False)
class _Encoded:
    """Images as the backbone left them, in the place of the model's NestedTensor: `features` one NestedTensor a level,
    `positions` their position embeddings, `mask` bool (images, height, width), all False as nothing is padded."""

    features: list[Any]
    positions: list[torch.Tensor]
    mask: torch.Tensor

    @property
    def device(self) -> torch.device:
        return self.mask.device


class GroundingDinoPy(DetectorExpert):
    """Liu et al., "Grounding DINO", ECCV 2024, with the package `groundingdino-py`.

    A caption is one phrase in lower case with a dot at its end. A box's score is the sigmoid of its best token's logit
    (groundingdino/util/inference.py), so it is comparable across phrases and images.
    """

    summary = "boxes for phrases, then masks: Grounding DINO by its authors' package, from .pth"
    limits = "the best word counts: of 'the cup left of the plate' it may find every cup, and the plate"
    needs = ("torch", "torchvision", "transformers", "timm", "groundingdino")
    Options = GroundingDinoPyOptions
    options: GroundingDinoPyOptions

    def __init__(self, options: GroundingDinoPyOptions, placement: Placement | None = None) -> None:
        super().__init__(options, placement)
        self.model = _load(options).to(self.torch_device)
        self.longest = int(options.short_side * _LONGEST)
        thin = math.ceil(self.longest * THINNEST)
        positions = min(_positions(options.short_side, options.short_side), _positions(thin, self.longest))
        if positions < self.model.num_queries:
            raise InputError(
                f"short_side {options.short_side} is too small for the model's {self.model.num_queries} queries"
            )

    @classmethod
    def version(cls, options: ExpertOptions) -> str:
        assert isinstance(options, GroundingDinoPyOptions)
        return f"{super().version(options)} {weights_id(str(options.config_file), '')}"

    def detect(self, images: Sequence[np.ndarray], texts: Sequence[Sequence[str]]) -> list[list[list[Detection]]]:
        # Swin's windows see what an image is padded with, so that padded to a common size it would have other boxes
        # than alone: only images of one size share a batch.
        padded = [thick_enough(image) for image in images]
        same_size = defaultdict(list)
        for k, image in enumerate(padded):
            same_size[self._resized(*image.shape[:2])].append(k)
        found: list[list[list[Detection]]] = [[] for _ in images]
        for members in same_size.values():
            encoded = self.batches.map(self._encode, [padded[k] for k in members])
            pairs = [(k, image, text) for k, image in zip(members, encoded, strict=True) for text in texts[k]]
            answers = self.batches.map(self._decode, [(image, text) for _, image, text in pairs])
            for (k, _, _), (boxes, scores) in zip(pairs, answers, strict=True):
                corners = to_xyxy_px(boxes, *padded[k].shape[:2])
                height, width = images[k].shape[:2]
                found[k].append(best_boxes(corners, scores, height, width, self.options))
        return found

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width as upstream resizes to (groundingdino/datasets/transforms.py)."""
        short, long = sorted((height, width))
        side = self.options.short_side
        if long / short * side > self.longest:
            side = round(self.longest * short / long)
        other = int(side * long / short)
        return (other, side) if width < height else (side, other)

    def _pixels(self, image: np.ndarray) -> torch.Tensor:
        resized = transforms.resize(Image.fromarray(image), list(self._resized(*image.shape[:2])))
        return transforms.normalize(transforms.to_tensor(resized), _MEAN, _STD)

    def _encode(self, images: list[np.ndarray]) -> list[_Encoded]:
        from groundingdino.util.misc import NestedTensor

        pixels = torch.stack([self._pixels(image) for image in images]).to(self.torch_device)
        mask = torch.zeros_like(pixels[:, 0], dtype=torch.bool)
        with self._precision():
            features, positions = self.model.backbone(NestedTensor(pixels, mask))
        return [
            _Encoded(
                [NestedTensor(level.tensors[k, None], level.mask[k, None]) for level in features],
                [level[k, None] for level in positions],
                mask[k, None],
            )
            for k in range(len(images))
        ]

    def _decode(self, pairs: list[tuple[_Encoded, str]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each pair's boxes (queries, 4), centre and size as shares of the image, and scores (queries,)."""
        encoded = _joined([image for image, _ in pairs])
        with self._precision(), _quiet():
            outputs = self.model(encoded, captions=[_caption(text) for _, text in pairs])
        scores = outputs["pred_logits"].float().sigmoid().amax(dim=-1)
        return list(zip(outputs["pred_boxes"].float(), scores, strict=True))

    def _precision(self) -> torch.autocast:
        """Weights stay float32 and activations are cast, which is how the model was trained: parts of it make float32
        tensors whatever its weights are."""
        dtype = self.options.torch_dtype
        return torch.autocast(self.torch_device.type, dtype, enabled=dtype != torch.float32)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of what the package's code will have to change for newer timm and PyTorch."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Importing from timm\.models\.layers", FutureWarning)
        warnings.filterwarnings("ignore", r"torch\.meshgrid", UserWarning)
        warnings.filterwarnings("ignore", r".*torch\.cuda\.amp\.autocast", FutureWarning)
        yield


def _caption(text: str) -> str:
    caption = text.lower().strip()
    return caption if caption.endswith(".") else caption + "."


def _positions(height: int, width: int) -> int:
    """Of the feature maps of an image, whose strides are 8 to 64."""
    return sum(math.ceil(height / stride) * math.ceil(width / stride) for stride in (8, 16, 32, 64))


def _joined(images: Sequence[_Encoded]) -> _Encoded:
    from groundingdino.util.misc import NestedTensor

    levels = zip(*(image.features for image in images), strict=True)
    return _Encoded(
        [NestedTensor(torch.cat([one.tensors for one in of]), torch.cat([one.mask for one in of])) for of in levels],
        [torch.cat(of) for of in zip(*(image.positions for image in images), strict=True)],
        torch.cat([image.mask for image in images]),
    )


def read_config(path: Path) -> dict[str, Any]:
    """The settings of a model in a config file of the authors' form: Python, of which only assignments of literals to
    names are understood, and nothing is executed.

    Raises:
        InputError: the file is missing or holds anything else.
    """
    settings = {}
    try:
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    settings[name] = ast.literal_eval(value)
                case _:
                    raise ValueError(f"line {statement.lineno} does not assign a literal to a name")
    except (OSError, SyntaxError, ValueError) as error:
        known = ", ".join(_SHIPPED)
        raise InputError(f"config {path}: {error}; give {known} or a config file of groundingdino") from error
    return settings


def _load(options: GroundingDinoPyOptions) -> Any:
    """The model with its weights, in evaluation mode on the CPU."""
    path = expanded(options.checkpoint)
    weights = load_pth(path).get("model")
    if not isinstance(weights, dict):
        raise InputError(f"checkpoint {path} is not of Grounding DINO: it has no 'model'")
    weights = {str(name).removeprefix("module."): tensor for name, tensor in weights.items()}
    model = build_model(options)
    load_weights(model, {name: weights[name] for name in weights if name not in _LEFT_OVER}, path)
    return model.eval().requires_grad_(False)


def build_model(options: GroundingDinoPyOptions) -> Any:
    """The package's model with random weights, made to run with today's transformers and on batches of pairs.

    Raises:
        InputError: the config or the text encoder is missing, or not as the package needs it.
    """
    with _quiet():
        from groundingdino.models import build_model as build
        from groundingdino.models.GroundingDINO import groundingdino as package

    tokenizer = load_processor(AutoTokenizer, options.text_encoder)
    bert = _Bert(load_processor(BertConfig, options.text_encoder))
    # Recomputing activations to save memory is for training.
    settings = read_config(options.config_file) | {"use_checkpoint": False, "use_transformer_ckpt": False}
    # The package would load BERT's weights, to be replaced by those of the checkpoint, and of the hub's default branch.
    loaders = package.get_tokenlizer
    package.get_tokenlizer = SimpleNamespace(
        get_tokenlizer=lambda _: tokenizer, get_pretrained_language_model=lambda _: bert
    )
    try:
        with _quiet():
            model = build(SimpleNamespace(**settings))
    except (*UNREADABLE, AssertionError) as error:
        raise InputError(f"config {options.config_file} does not make a model: {error!r}") from error
    finally:
        package.get_tokenlizer = loaders
    # Asked for by name, as the default's name is deprecated.
    model.bert.register_forward_pre_hook(
        lambda _, inputs, names: (inputs, names | {"return_dict": True}), with_kwargs=True
    )
    _take_encoded(model.backbone)
    for layer in model.transformer.encoder.text_layers:
        layer.self_attn.register_forward_pre_hook(_by_item, with_kwargs=True)
    return model


class _Bert(BertModel):
    """BERT with the methods that the package's wrapper takes from it and transformers 5 no longer has."""

    def get_extended_attention_mask(self, mask: torch.Tensor, shape: Any, device: Any) -> torch.Tensor:
        """What is added to attention scores, (batch, 1, 1 or tokens, tokens): 0 where `mask`, (batch, tokens) or
        (batch, tokens, tokens), is set, else the least number."""
        broadcast = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
        return (1 - broadcast.to(self.dtype)) * torch.finfo(self.dtype).min

    def invert_attention_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """The same for cross-attention, which an encoder has none of."""
        return self.get_extended_attention_mask(mask, None, None)

    def get_head_mask(self, mask: None, layers: int) -> list[None]:
        """No layer has attention heads switched off."""
        return [None] * layers


def _take_encoded(backbone: Any) -> None:
    """Has the backbone, which the model calls with every batch of captions, hand on what it has made of the images."""
    encode = backbone.forward

    def forward(images: Any) -> Any:
        return (images.features, images.positions) if isinstance(images, _Encoded) else encode(images)

    backbone.forward = forward


def _by_item(attention: Any, inputs: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Puts the text layers' masks, (batch times heads, tokens, tokens), in the order that PyTorch's attention wants:
    the package repeats them head by head, so that in a batch a caption would get another one's mask."""
    mask = arguments["attn_mask"]
    by_head = mask.unflatten(0, (attention.num_heads, -1))
    return inputs, arguments | {"attn_mask": by_head.transpose(0, 1).flatten(0, 1)}
