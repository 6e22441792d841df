"""The small discriminator: tells human masks from experts' and predicts a mask's IoU, in seconds on a CPU."""

import hashlib
import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from pipeline.errors import BadImage
from pipeline.masks import decode_rle, mask_iou
from pipeline.schemas import LABELLED
from stages.base import Config, Row, decode_ahead, group_by
from stages.measures import measure

if TYPE_CHECKING:
    from stages.discriminator_model import Net

HUMAN = "human"
"""`expert` of a human mask's example, and `k` of its `candidate_id`, `<uuid>/human`."""
WRONG_TARGET = "wrong target"
"""`expert` of the human mask of another instruction on the same image."""
_DIFFERENT = 0.5
"""IoU under which two human masks are of different targets."""


class DiscriminatorConfig(Config):
    """How the discriminator is trained. Its scores are out-of-fold, so `folds` models are trained."""

    model: Literal["small"] = "small"
    folds: int = Field(3, ge=2, le=20)
    epochs: int = Field(20, ge=1)
    max_pairs: int = Field(3000, ge=1)
    """Most labelled pairs to train on, a random choice that stays the same from run to run."""
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Example:
    """One mask to train on: `figures` are `stages.measures.measure` of it, float32; the image has no further use.

    `expert` may also be `HUMAN` or `WRONG_TARGET`; `iou` is the mask's true IoU with the human mask of its pair.
    """

    image: str
    instruction: str
    expert: str
    figures: np.ndarray
    iou: float


@dataclass(frozen=True)
class Scored:
    """d = P(human quality) and predicted IoU with a human mask, both in [0, 1], by the model of this fold."""

    d: float
    quality: float
    fold: int


def fold_of(image: str, folds: int) -> int:
    """Fold of an image from the hash of its name: no mask is scored by a model that trained on its image."""
    return int.from_bytes(hashlib.blake2b(image.encode(), digest_size=8).digest(), "big") % folds


def training_pairs(uuids: Iterable[str], config: DiscriminatorConfig) -> set[str]:
    """The labelled pairs to train on. A uuid is a hash, so the smallest ones are a random and stable choice."""
    return set(heapq.nsmallest(config.max_pairs, uuids))


def examples(samples: Iterable[Row], candidates: Iterable[Row], encoded: Mapping[str, bytes]) -> list[Example]:
    """One example per human mask, per candidate and per wrong target of the labelled pairs that have candidates.

    Both halves are of the same pairs and pass the same codec, so that the discriminator learns mask quality and
    not which dataset a mask is from. A wrong target is the human mask of the image's next instruction: a perfect
    outline, and still not an answer. Pairs whose image cannot be decoded are left out.

    Args:
        samples: rows of the table samples.
        candidates: rows of the table candidates with the further key `expert`.
        encoded: image path to encoded bytes.
    """
    of_pair = group_by(candidates, "uuid")
    pairs = [row for row in samples if row["branch"] == LABELLED and row["uuid"] in of_pair]
    of_image = group_by(pairs, "image")
    found = []
    for image, pixels in decode_ahead(of_image, encoded):
        if isinstance(pixels, BadImage):
            continue
        pairs = of_image[image]
        humans = [decode_rle(pair["human_mask"]) for pair in pairs]
        figures = [measure(pixels, human) for human in humans]
        for k, (pair, human) in enumerate(zip(pairs, humans, strict=True)):
            found.append(Example(image, pair["instruction"], HUMAN, figures[k], 1.0))
            for row in of_pair[pair["uuid"]]:
                mask = decode_rle(row["mask"])
                iou = mask_iou(mask, human)
                found.append(Example(image, pair["instruction"], row["expert"], measure(pixels, mask), iou))
            other = (k + 1) % len(pairs)
            if (iou := mask_iou(humans[other], human)) < _DIFFERENT:
                found.append(Example(image, pair["instruction"], WRONG_TARGET, figures[other], iou))
    return found


class Discriminator:
    """The trained models, one per fold. `id` is the model's name and the hash of all its weights."""

    def __init__(self, id: str, nets: "list[Net]") -> None:
        self.id, self.nets = id, nets

    @classmethod
    def load(cls, folder: Path) -> "Discriminator":
        """What `train` wrote into this folder."""
        # Here and in `train`: importing torch takes seconds, which an expert's worker has no reason to wait.
        from stages.discriminator_model import Net

        config = DiscriminatorConfig.model_validate_json((folder / "config.json").read_bytes())
        paths = [_weights(folder, fold) for fold in range(config.folds)]
        nets = [Net.load(path) for path in paths]
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths))
        return cls(f"{config.model}@{digest.hexdigest()[:12]}", nets)

    def score(self, image: str, pixels: np.ndarray, instruction: str, masks: Sequence[np.ndarray]) -> list[Scored]:
        """d and quality of masks of one pair, by the model that did not train on this image.

        Args:
            image: name of the image as in the manifest; it says which fold's model scores.
            pixels: uint8 RGB (height, width, 3).
            instruction: the instruction as given.
            masks: bool (height, width), each with at least one pixel.
        """
        if not masks:
            return []
        fold = fold_of(image, len(self.nets))
        figures = np.stack([measure(pixels, mask) for mask in masks])
        scores = self.nets[fold].predict(figures, [instruction] * len(masks))
        return [Scored(d, quality, fold) for d, quality in scores.tolist()]


def train(found: Sequence[Example], config: DiscriminatorConfig, folder: Path) -> dict[str, Any] | None:
    """Trains one model per fold on the other folds' images and writes weights, config.json and metrics.json.

    d is 1 for human masks and 0 for experts' and for wrong targets, each side with half the weight in its loss.
    Quality is learned from experts' masks only: human ones, all of quality 1, would drown the differences among
    them. The same examples, config and machine give the same weights.

    Returns:
        The metrics, all out-of-fold, see `_metrics`; or None, and nothing is written, where the labelled images are
        so few that a fold would be left without human or machine masks to train on.
    """
    folds = np.array([fold_of(example.image, config.folds) for example in found])
    human, machine = _sides(found)
    if not all(human[folds != fold].any() and machine[folds != fold].any() for fold in range(config.folds)):
        return None
    from stages.discriminator_model import fit

    figures = np.stack([example.figures for example in found])
    text = np.array([example.instruction for example in found], dtype=object)
    iou = np.array([example.iou for example in found])
    targets, counts = np.stack([human, iou], axis=1).astype(np.float32), machine.astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    scores = np.zeros((len(found), 2), dtype=np.float32)
    for fold in range(config.folds):
        learn, held = folds != fold, folds == fold
        net = fit(figures[learn], text[learn], targets[learn], counts[learn], config.epochs, config.seed + fold)
        net.save(_weights(folder, fold))
        scores[held] = net.predict(figures[held], text[held])
    metrics = _metrics(found, scores)
    (folder / "config.json").write_text(config.model_dump_json(indent=1), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    return metrics


def _weights(folder: Path, fold: int) -> Path:
    return folder / f"fold-{fold}.safetensors"


def _sides(found: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Which examples are human masks, and which are experts'; wrong targets are neither. Bool (n,) each."""
    experts = np.array([example.expert for example in found])
    return experts == HUMAN, (experts != HUMAN) & (experts != WRONG_TARGET)


def _metrics(found: Sequence[Example], scores: np.ndarray) -> dict[str, Any]:
    """How well the discriminator does on images it has not trained on; null where it cannot be told.

    `auc`: human against machine masks by d, overall and by expert; `auc_wrong_target`: human masks against human
    masks of other instructions. `quality_spearman`, `d_spearman`: rank correlation with the true IoU among machine
    masks; `quality_mae`: mean absolute error of the predicted IoU among them.
    """
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    experts = np.array([example.expert for example in found], dtype=object)
    iou = np.array([example.iou for example in found])
    human, machine = _sides(found)

    def auc(against: np.ndarray) -> float | None:
        of = human | against
        return float(roc_auc_score(human[of], scores[of, 0])) if against.any() else None

    def spearman(column: int) -> float | None:
        if np.ptp(scores[machine, column]) == 0 or np.ptp(iou[machine]) == 0:
            return None
        return float(spearmanr(scores[machine, column], iou[machine]).statistic)

    return {
        "images": len({example.image for example in found}),
        "human_masks": int(human.sum()),
        "machine_masks": int(machine.sum()),
        "auc": auc(machine),
        "auc_wrong_target": auc(experts == WRONG_TARGET),
        "quality_spearman": spearman(1),
        "d_spearman": spearman(0),
        "quality_mae": float(np.abs(scores[machine, 1] - iou[machine]).mean()),
        "auc_by_expert": {name: auc(experts == name) for name in sorted(set(experts[machine]))},
    }
