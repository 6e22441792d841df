"""The small discriminator: tells human masks from experts' and predicts a mask's IoU, in a minute or two on a CPU."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from stages.base import Config
from stages.examples import HUMAN, OWN, Example, absences, fold_of

if TYPE_CHECKING:
    from stages.discriminator_model import Net, Rows

_WRONG, _SAME = 0.5, 0.9
"""True IoU under which another instruction's human mask, and a corrupted one, are known to be wrong."""


class DiscriminatorConfig(Config):
    """How the discriminator is trained. Its scores are out-of-fold, so `folds` models are trained.

    `objective`: of d, see `stages.objectives`; `prior`: for nnpu, the share of experts' masks that are as good as
    human ones; by default it is told from the labelled pairs' true IoU.
    """

    model: Literal["small"] = "small"
    objective: Literal["pn", "nnpu"] = "pn"
    prior: float | None = Field(None, gt=0, lt=1)
    folds: int = Field(5, ge=2, le=20)
    epochs: int = Field(15, ge=1)
    max_pairs: int = Field(3000, ge=1)
    """Most labelled pairs to train on, a random choice that stays the same from run to run."""
    seed: int = 0


@dataclass(frozen=True)
class Scored:
    """d = P(human quality) and predicted IoU with a human mask, both in [0, 1], by the model of this fold."""

    d: float
    quality: float
    fold: int


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
        paths = [weights_file(folder, fold) for fold in range(config.folds)]
        nets = [net for path in paths if (net := Net.load(path))]
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
        from stages.discriminator_model import Rows
        from stages.measures import View
        from stages.wording import read_instruction

        if not masks:
            return []
        fold, view, read = fold_of(image, len(self.nets)), View(pixels), read_instruction(instruction)
        scores = self.nets[fold].predict(Rows.of([(view.measure(mask), read) for mask in masks]))
        return [Scored(d, quality, fold) for d, quality in scores.tolist()]


def weights_file(folder: Path, fold: int) -> Path:
    """Where the model of a fold lies in a discriminator's folder."""
    return folder / f"fold-{fold}.safetensors"


def train(
    found: Sequence[Example],
    config: DiscriminatorConfig,
    folder: Path,
    finished: Callable[[Path], None] = lambda path: None,
) -> dict[str, Any] | None:
    """Trains one model per fold on the other folds' images and writes weights, config.json and metrics.json.

    Quality learns the true IoU of every example. d is 1 for human masks with their own instruction; experts' masks are
    the other side, and so are masks known to be wrong. The same examples, config and machine give the same weights: a
    fold whose weights lie in the folder already, made from the same examples and config, is not trained again.

    Args:
        found: examples of `stages.examples.examples`; instructions of absent targets are added here.
        config: how.
        folder: where to.
        finished: called with the file of each newly trained fold, to keep it should the rest not come about.

    Returns:
        `stages.calibration.metrics`; or None, and nothing is written, where the labelled images are so few that a fold
        would be left without human or machine masks to train on.
    """
    if not enough(found, config.folds):
        return None
    from stages.calibration import metrics
    from stages.discriminator_model import Net

    found = [*found, *absences(found, config.folds, config.seed)]
    folds = np.array([fold_of(example.image, config.folds) for example in found])
    made_from, scores = _digest(found, config), np.zeros((len(found), 2), dtype=np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    for fold in range(config.folds):
        path = weights_file(folder, fold)
        net = Net.load(path, made_from) if path.exists() else None
        if net is None:
            net = fit_fold(found, config, fold)
            net.save(path, made_from)
            finished(path)
        if (held := folds == fold).any():
            scores[held] = predict(net, [found[k] for k in np.flatnonzero(held)])
    figures = metrics(found, scores, config.folds)
    (folder / "config.json").write_text(config.model_dump_json(indent=1), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return figures


def enough(found: Sequence[Example], folds: int) -> bool:
    """Whether without any one fold there are still human and experts' masks to train on."""
    fold = np.array([fold_of(example.image, folds) for example in found])
    sides = np.array([_side(example) for example in found])
    return all(np.isin((1, 0), sides[fold != held]).all() for held in range(folds))


def fit_fold(found: Sequence[Example], config: DiscriminatorConfig, fold: int) -> "Net":
    """The model of a fold, trained on just these examples, those of the fold's own images left out."""
    import torch

    from stages.discriminator_model import Targets, fit

    learn = [example for example in found if fold_of(example.image, config.folds) != fold]
    targets = Targets(
        torch.tensor([_side(example) for example in learn]), torch.tensor([example.iou for example in learn])
    )
    return fit(_rows(learn), targets, config.objective, config.prior, config.epochs, config.seed + fold)


def predict(net: "Net", found: Sequence[Example]) -> np.ndarray:
    """d and quality in [0, 1], float32 (n, 2), of n examples, at least one, by one model."""
    return net.predict(_rows(found))


def _rows(found: Sequence[Example]) -> "Rows":
    from stages.discriminator_model import Rows
    from stages.wording import read_instruction

    return Rows.of([(example.figures, read_instruction(example.instruction)) for example in found])


def _side(example: Example) -> int:
    """Side of d, see `stages.objectives`. Experts' masks against other instructions teach quality alone."""
    if example.machine:
        return 0 if example.kind == OWN else -2
    if example.maker == HUMAN:
        return 1 if example.kind == OWN else -1 if example.iou < _WRONG else -2
    return -1 if example.kind == OWN and example.iou < _SAME else -2


def _digest(found: Sequence[Example], config: DiscriminatorConfig) -> str:
    """SHA-256 of all that decides the weights, the code aside."""
    digest = hashlib.sha256(config.model_dump_json().encode())
    for example in found:
        digest.update(repr((example.image, example.instruction, example.maker, example.kind, example.iou)).encode())
        digest.update(example.figures.tobytes())
    return digest.hexdigest()
