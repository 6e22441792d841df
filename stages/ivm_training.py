"""Training of the discriminator `ivm`: what is encoded once, the steps, and states from which an end is made good."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from experts.checkpoints import UNREADABLE
from pipeline.errors import InputError
from pipeline.masks import decode_rle
from stages.ivm_config import IvmConfig
from stages.ivm_encoders import Encoders, Tokens
from stages.ivm_model import IvmNet, metadata, read_metadata
from stages.objectives import MACHINE_SIDE, graded_risk, nnpu_risk, pn_risk, side_weights

_DECAY, _WARM_UP, _CLIP = 0.05, 0.05, 1.0
_GOOD = 0.75
"""True IoU from which an expert's mask counts as good: the strict threshold of COCO's metrics (arXiv 1405.0312)."""


@dataclass(frozen=True, eq=False)
class IvmExample:
    """One mask held against one instruction of its image.

    `mask`: an RLE cell, or bool (height, width). `side`: of d, see `stages.objectives`. `iou`: its true IoU with the
    human mask of this instruction, in [0, 1].
    """

    image: str
    instruction: str
    mask: np.ndarray | Mapping[str, Any]
    side: int
    iou: float

    def decoded(self) -> np.ndarray:
        """The mask, bool (height, width)."""
        return self.mask if isinstance(self.mask, np.ndarray) else decode_rle(self.mask)


class Bank:
    """Examples with what the frozen encoders make of their images and instructions, each encoded once.

    Image embeddings lie in files of a folder and not in memory: one of SAM's is 4 MiB in float32. Conditions are kept
    in memory; where LoRA changes them, only what comes before the language model is kept, in a file too.
    """

    def __init__(
        self, encoders: Encoders, examples: Sequence[IvmExample], pixels: Callable[[str], np.ndarray], folder: Path
    ) -> None:
        """Encodes all.

        Args:
            encoders: on whose device batches are made.
            examples: the examples.
            pixels: an image's name to uint8 RGB (height, width, 3); called once per image.
            folder: for files as long as the bank is in use.
        """
        self.encoders, self.examples = encoders, examples
        self.side = torch.tensor([example.side for example in examples])
        self.iou = torch.tensor([example.iou for example in examples], dtype=torch.float32)
        images = list(dict.fromkeys(example.image for example in examples))
        self._image_of = {image: k for k, image in enumerate(images)}
        texts: dict[str, dict[str, None]] = {image: {} for image in images}
        for example in examples:
            texts[example.image][example.instruction] = None
        self._conditions: dict[tuple[str, str], Tokens] = {}
        self._embeddings = self._looks = torch.empty(0)
        dtype = getattr(torch, encoders.config.precision)
        for start in range(0, len(images), encoders.config.encode_batch):
            names = images[start : start + encoders.config.encode_batch]
            seen = encoders.see([pixels(name) for name in names])
            if not start:
                first = seen[0].embedding.to(dtype), seen[0].look
                self._embeddings = _in_file(folder / "embeddings", len(images), first[0])
                if encoders.condition.trained:
                    self._looks = _in_file(folder / "looks", len(images), first[1])
            for k, (name, one) in enumerate(zip(names, seen, strict=True), start):
                self._embeddings[k] = one.embedding
                if encoders.condition.trained:
                    self._looks[k] = one.look
                else:
                    self._read(name, list(texts[name]), one.look)

    @torch.no_grad()
    def _read(self, image: str, texts: list[str], look: Tensor) -> None:
        for text, tokens in zip(texts, self.encoders.read([look] * len(texts), texts), strict=True):
            self._conditions[image, text] = tuple(part.cpu() for part in tokens)

    def logits(self, net: IvmNet, rows: Tensor) -> Tensor:
        """`net`'s logits, float32 (n, 2), of the examples with the numbers `rows`, int64 (n,)."""
        chosen = [self.examples[row] for row in rows.tolist()]
        images = [self._image_of[example.image] for example in chosen]
        if self.encoders.condition.trained:
            looks = list(self._looks[images].to(self.encoders.device))
            conditions = self.encoders.read(looks, [example.instruction for example in chosen])
        else:
            conditions = [self._conditions[example.image, example.instruction] for example in chosen]
        embeddings = self._embeddings[images].to(self.encoders.device)
        return net.judge(embeddings, conditions, [example.decoded() for example in chosen])

    @torch.no_grad()
    def predict(self, net: IvmNet, rows: np.ndarray) -> np.ndarray:
        """d and quality in [0, 1], float32 (n, 2), of the examples `rows`, int64 (n,)."""
        net.eval()
        batches = torch.from_numpy(rows).split(self.encoders.config.batch)
        parts = [self.logits(net, batch).sigmoid().cpu() for batch in batches]
        return torch.cat(parts).numpy()


def _in_file(file: Path, count: int, like: Tensor) -> Tensor:
    """`count` tensors like this one, in a file."""
    size = count * like.numel()
    return torch.from_file(str(file), shared=True, size=size, dtype=like.dtype).view(count, *like.shape)


@dataclass(frozen=True)
class Progress:
    """Where the states of an unfinished training lie: `<stem>-0` and `<stem>-1`, written in turn.

    Each is a .safetensors file of weights and a .pt file of the rest: a kill between the two leaves the other state.
    `made_from` tells states of this training from those of another. `saved` is called with each file.
    """

    stem: Path
    made_from: str
    saved: Callable[[Path], None] = lambda path: None

    def _files(self, slot: int) -> tuple[Path, Path]:
        return tuple(self.stem.with_name(f"{self.stem.name}-{slot}{end}") for end in (".safetensors", ".pt"))  # type: ignore[return-value]

    def write(self, net: IvmNet, state: dict[str, Any]) -> None:
        """Writes a state, which has a `step`, over the older of the two."""
        weights, rest = self._files(state["step"] // net.config.save_every % 2)
        drafts = [file.with_suffix(f"{file.suffix}.tmp") for file in (weights, rest)]
        save_file(net.weights(), drafts[0], metadata(net.config, self.made_from, step=state["step"]))
        torch.save(state | {"made_from": self.made_from}, drafts[1])
        for draft, file in zip(drafts, (weights, rest), strict=True):
            draft.replace(file)
            self.saved(file)

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Weights and state of the latest step whose two files are whole and of this training."""
        whole = [found for slot in (0, 1) if (found := self._read(slot))]
        return max(whole, key=lambda found: found[1]["step"], default=None)

    def _read(self, slot: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        weights, rest = self._files(slot)
        try:
            told, state = read_metadata(weights), torch.load(rest, weights_only=True)
            same = told["made_from"] == state["made_from"] == self.made_from and told["step"] == state["step"]
            return (load_file(weights), state) if same else None
        except (InputError, *UNREADABLE):
            return None

    def remove(self) -> None:
        """Deletes both states."""
        for slot in (0, 1):
            for file in self._files(slot):
                file.unlink(missing_ok=True)


def fit(bank: Bank, rows: np.ndarray, seed: int, progress: Progress | None = None) -> IvmNet:
    """A net trained on the examples `rows`, in evaluation mode; the same for the same input on the same machine.

    AdamW with warm-up and a cosine decay to 0; mixed precision as the encoders' config says. Human and machine sides
    must both be among the rows. Quality is learned by cross entropy with the true IoU.

    Args:
        bank: the examples and the encoders.
        rows: int64 (n,), numbers of the examples to train on.
        seed: of the initial weights, the order and the dropout.
        progress: where the state is saved every `save_every` steps; if one lies there, training goes on from it and
            ends with the weights that it would have had without the interruption.
    """
    config, device = bank.encoders.config, bank.encoders.device
    each = -(-len(rows) // config.batch)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        bank.encoders.reset()
        trainer = _Trainer(bank, torch.from_numpy(rows), config)
        found = progress.read() if progress else None
        if found:
            trainer.restore(*found)
        while trainer.step < each * config.epochs:
            if trainer.step % each == 0:
                trainer.order = torch.randperm(len(rows))
            trainer.take_step(each)
            if progress and trainer.step % config.save_every == 0 and trainer.step < each * config.epochs:
                progress.write(trainer.net, trainer.state())
    return trainer.net.eval()


class _Trainer:
    """The net in training and all that decides its next step."""

    def __init__(self, bank: Bank, rows: Tensor, config: IvmConfig) -> None:
        self.bank, self.rows, self.config = bank, rows, config
        self.net = IvmNet(bank.encoders).train()
        self.weights = side_weights(bank.side[rows])
        machine = bank.side[rows] == MACHINE_SIDE
        good = float((bank.iou[rows][machine] >= _GOOD).float().mean().clamp(0.01, 0.99))
        self.prior = good if config.prior is None else config.prior
        self.optimizer = torch.optim.AdamW(self.net.trained().values(), config.learning_rate, weight_decay=_DECAY)
        self.scaler = torch.amp.GradScaler(bank.encoders.device.type, enabled=config.precision == "float16")
        self.step, self.order = 0, torch.empty(0, dtype=torch.int64)

    def take_step(self, each: int) -> None:
        """One step of `each` in an epoch."""
        self._set_rate(self.step / (each * self.config.epochs))
        start = self.step % each * self.config.batch
        self.optimizer.zero_grad()
        self.scaler.scale(self._loss(self.order[start : start + self.config.batch])).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.net.trained().values(), _CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1

    def _set_rate(self, done: float) -> None:
        rate = self.config.learning_rate * min(1.0, done / _WARM_UP + 0.01) * (1 + math.cos(math.pi * done)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _loss(self, batch: Tensor) -> Tensor:
        rows, device = self.rows[batch], self.bank.encoders.device
        logits = self.bank.logits(self.net, rows)
        d = logits[:, 0], self.bank.side[rows].to(device), self.weights[batch].to(device)
        iou = self.bank.iou[rows].to(device)
        if self.config.objective == "graded":
            risk = graded_risk(*d, iou)
        else:
            risk = pn_risk(*d) if self.config.objective == "pn" else nnpu_risk(*d, self.prior)
        return risk + F.binary_cross_entropy_with_logits(logits[:, 1], iou)

    def state(self) -> dict[str, Any]:
        cuda = self.bank.encoders.device.type == "cuda"
        return {
            "step": self.step,
            "order": self.order,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.bank.encoders.device) if cuda else None,
        }

    def restore(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.net.set_weights(weights)
        self.step, self.order = state["step"], state["order"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.bank.encoders.device)
