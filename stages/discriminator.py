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
    from stages.discriminator_model import Net, Targets
    from stages.rows import Rows

_WRONG, _SAME = 0.5, 0.9
"""True IoU under which a mask for another instruction, and a corrupted one, are known to be wrong."""
_OWN_WEIGHT = 10.0
"""Weight in quality of experts' masks with their own instruction, which is what it is used on; 1 for all others."""
_INNER = 3
"""Parts of the training images, see `stages.discriminator_model.fit`."""


class DiscriminatorConfig(Config):
    """How the discriminator is trained. Its scores are out-of-fold, so `folds` models are trained.

    `objective`: of d, see `stages.objectives`; `prior`: for nnpu, the share of experts' masks that are as good as
    human ones; by default it is told from the labelled pairs' true IoU.
    """

    model: Literal["small"] = "small"
    objective: Literal["graded", "pn", "nnpu"] = "graded"
    prior: float | None = Field(None, gt=0, lt=1)
    folds: int = Field(5, ge=2, le=20)
    epochs: int = Field(10, ge=1)
    max_pairs: int = Field(3000, ge=1)
    """Most labelled pairs to train on, a random choice that stays the same from run to run."""
    seed: int = 0

    def identity(self) -> dict[str, Any]:
        """What decides the weights, as JSON values."""
        return self.model_dump()


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

    def score(
        self,
        image: str,
        pixels: np.ndarray,
        asked: Sequence[tuple[str, np.ndarray]],
        rivals: Sequence[np.ndarray] = (),
    ) -> list[Scored]:
        """d and quality of masks of one image, by the model that did not train on this image.

        Args:
            image: name of the image as in the manifest; it says which fold's model scores.
            pixels: uint8 RGB (height, width, 3).
            asked: instruction as given and mask, bool (height, width) with at least one pixel, of each.
            rivals: the experts' masks on this image, for whatever instruction: what else could be meant.
        """
        from stages.measures import View
        from stages.rows import Rows
        from stages.wording import read_instruction

        if not asked:
            return []
        view = View(pixels)
        # A mask may be asked for and a rival: measured once.
        figures = {
            id(mask): view.measure(mask) for mask in {id(m): m for m in [*rivals, *(m for _, m in asked)]}.values()
        }
        pairs = [(image, figures[id(mask)], read_instruction(text)) for text, mask in asked]
        fold, rows = fold_of(image, len(self.nets)), Rows.of(pairs, {image: [figures[id(mask)] for mask in rivals]})
        scores = self.nets[fold].predict(rows, np.ones(len(pairs), dtype=bool))
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
    lesson = prepare(found, config.folds)
    made_from, scores = _digest(found, config), np.zeros((len(found), 2), dtype=np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    for fold in range(config.folds):
        path, held = weights_file(folder, fold), lesson.folds == fold
        net = Net.load(path, made_from) if path.exists() else None
        if net is None:
            net = fit_fold(lesson, config, fold)
            net.save(path, made_from)
            finished(path)
        if held.any():
            scores[held] = net.predict(lesson.rows, held)
    figures = metrics(found, scores, config.folds)
    (folder / "config.json").write_text(config.model_dump_json(indent=1), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return figures


def enough(found: Sequence[Example], folds: int) -> bool:
    """Whether without any one fold there are still human and experts' masks to train on."""
    fold = np.array([fold_of(example.image, folds) for example in found])
    sides = np.array([side_of(example) for example in found])
    return all(np.isin((1, 0), sides[fold != held]).all() for held in range(folds))


@dataclass(frozen=True, eq=False)
class Lesson:
    """Examples as arrays: `learn` bool (n,), which may be trained on; `folds` int (n,) by image; `parts` int (n,), by
    image too, see `stages.discriminator_model.fit`."""

    rows: "Rows"
    targets: "Targets"
    learn: np.ndarray
    folds: np.ndarray
    parts: np.ndarray


def prepare(found: Sequence[Example], folds: int) -> Lesson:
    """Examples for `fit_fold`; experts' masks among them are the rivals of all masks on their image."""
    parts = np.array([fold_of(f"part of {example.image}", _INNER) for example in found])
    fold = np.array([fold_of(example.image, folds) for example in found])
    return Lesson(_rows(found), _targets(found), np.ones(len(found), dtype=bool), fold, parts)


def fit_fold(lesson: Lesson, config: DiscriminatorConfig, fold: int) -> "Net":
    """The model of a fold, trained without the fold's own images."""
    from stages.discriminator_model import fit

    parts = np.where(lesson.learn & (lesson.folds != fold), lesson.parts, -1)
    seed = config.seed + fold
    return fit(lesson.rows, parts, lesson.targets, config.objective, config.prior, config.epochs, seed)


def _rows(found: Sequence[Example]) -> "Rows":
    from stages.rows import Rows
    from stages.wording import read_instruction

    rivals: dict[str, dict[int, np.ndarray]] = {}
    for example in found:
        if example.machine:
            rivals.setdefault(example.image, {})[id(example.figures)] = example.figures
    pairs = [(example.image, example.figures, read_instruction(example.instruction)) for example in found]
    return Rows.of(pairs, {image: list(seen.values()) for image, seen in rivals.items()})


def _targets(found: Sequence[Example]) -> "Targets":
    import torch

    from stages.discriminator_model import Targets

    weight = [_OWN_WEIGHT if example.machine and example.kind == OWN else 1.0 for example in found]
    side = torch.tensor([side_of(example) for example in found])
    return Targets(side, torch.tensor([example.iou for example in found]), torch.tensor(weight))


def side_of(example: Example) -> int:
    """Side of d, see `stages.objectives`: masks for other instructions are wrong unless they overlap."""
    if example.kind == OWN and example.maker == HUMAN:
        return 1
    if example.kind == OWN and example.machine:
        return 0
    if example.kind == OWN:
        return -1 if example.iou < _SAME else -2
    return -1 if (example.machine or example.maker == HUMAN) and example.iou < _WRONG else -2


def _digest(found: Sequence[Example], config: DiscriminatorConfig) -> str:
    """SHA-256 of all that decides the weights, the code aside."""
    digest = hashlib.sha256(config.model_dump_json().encode())
    for example in found:
        digest.update(repr((example.image, example.instruction, example.maker, example.kind, example.iou)).encode())
        digest.update(example.figures.tobytes())
    return digest.hexdigest()
