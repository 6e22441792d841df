"""Discriminators that the run did not use, trained on its examples to be compared with the one that it did."""

import dataclasses
from collections.abc import Sequence
from typing import get_args

import numpy as np

from stages.discriminator import DiscriminatorConfig, enough, fit_fold, predict
from stages.examples import HUMAN, OWN, Example, absences, fold_of
from stages.objectives import Objective

NAIVE = "d naive"


def trained_otherwise(found: Sequence[Example], config: DiscriminatorConfig) -> dict[str, dict[str, float]]:
    """d of each expert's mask by `candidate_id`, out of fold, from each discriminator that the run might have had.

    `d <objective>` is trained as the run's own, by an objective that it did not use. `NAIVE` tells `human_or_machine`.
    One that the examples are too few for is left out.

    Args:
        found: examples of `stages.examples.examples`.
        config: the run's.
    """
    learned = [*found, *absences(found, config.folds, config.seed)]
    others = [name for name in get_args(Objective) if name != config.objective]
    ways = {f"d {name}": (learned, config.model_copy(update={"objective": name})) for name in others}
    ways[NAIVE] = (human_or_machine(found, config.folds), config.model_copy(update={"objective": "pn"}))
    asked = [one for one in found if one.machine and one.kind == OWN]
    return {
        name: {one.candidate_id: float(d) for one, d in zip(asked, out_of_fold(learn, asked, way)[:, 0], strict=True)}
        for name, (learn, way) in ways.items()
        if enough(learn, way.folds)
    }


def human_or_machine(found: Sequence[Example], folds: int) -> list[Example]:
    """What a classifier of human against machine masks is commonly trained on: human masks of one half of the images,
    experts' masks of the other half, and nothing else.

    So is IVM's discriminator (arXiv 2405.19783, section 4) where the human and the machine data are of different
    images. No wrong masks of human style, no other instructions; and no true IoU, from which quality would teach the
    layers that it shares with d.
    """
    chosen = []
    for one in found:
        # Folds over twice as many: the lower ones and the upper ones are the same folds of `folds`, halved.
        human = fold_of(one.image, 2 * folds) < folds
        if one.kind == OWN and (one.maker == HUMAN if human else one.machine):
            chosen.append(dataclasses.replace(one, iou=float(human)))
    return chosen


def out_of_fold(learn: Sequence[Example], asked: Sequence[Example], config: DiscriminatorConfig) -> np.ndarray:
    """d and quality, float32 (n, 2), of the n examples `asked`, each by a model trained on `learn` less the examples
    of its fold of images."""
    scores = np.zeros((len(asked), 2), dtype=np.float32)
    folds = np.array([fold_of(one.image, config.folds) for one in asked])
    for fold in np.unique(folds):
        held = np.flatnonzero(folds == fold)
        scores[held] = predict(fit_fold(learn, config, int(fold)), [asked[k] for k in held.tolist()])
    return scores
