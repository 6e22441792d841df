"""Discriminators that the run did not use, trained on its examples to be compared with the one that it did."""

import dataclasses
from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch

from stages.discriminator import DiscriminatorConfig, Lesson, enough, fit_fold, prepare
from stages.examples import HUMAN, OWN, Example, absences, fold_of
from stages.objectives import Objective

NAIVE = "d naive"


def trained_otherwise(found: Sequence[Example], config: DiscriminatorConfig) -> dict[str, dict[str, float]]:
    """d of each expert's mask by `candidate_id`, out of fold, from each discriminator that the run might have had.

    `d <objective>` is trained as the run's own, by an objective that it did not use; `NAIVE` as `naive_d` says. Where
    the examples are too few, there is none.

    Args:
        found: examples of `stages.examples.examples`.
        config: the run's.
    """
    if not enough(found, config.folds):
        return {}
    every = [*found, *absences(found, config.folds, config.seed)]
    lesson = prepare(every, config.folds)
    asked = np.array([one.machine and one.kind == OWN for one in every])
    others = [name for name in get_args(Objective) if name != config.objective]
    ways = {
        f"d {name}": out_of_fold(lesson, asked, config.model_copy(update={"objective": name}))[:, 0] for name in others
    }
    masks = [one for one, wanted in zip(every, asked, strict=True) if wanted]
    naive = naive_d(found, masks, config)
    ways |= {} if naive is None else {NAIVE: naive}
    return {
        name: {one.candidate_id: float(value) for one, value in zip(masks, d, strict=True)} for name, d in ways.items()
    }


def naive_d(found: Sequence[Example], asked: Sequence[Example], config: DiscriminatorConfig) -> np.ndarray | None:
    """P(human) of the masks `asked`, float32 (n,), out of fold, by what a classifier of human against machine masks is
    commonly trained on: human masks of one half of the images, experts' masks of the other half, and nothing else.

    So is IVM's discriminator (arXiv 2405.19783, section 4) where the human and the machine data are of different
    images. No wrong masks of human style, no other instructions; and no true IoU, from which quality would teach the
    layers that it shares with d. None where the examples are too few.
    """
    # Folds over twice as many: the lower ones and the upper ones are the same folds, halved.
    half = np.array([fold_of(one.image, 2 * config.folds) < config.folds for one in found])
    human = np.array([one.maker == HUMAN for one in found])
    machine = np.array([one.machine for one in found])
    learn = np.array([one.kind == OWN for one in found]) & np.where(half, human, machine)
    if not enough([one for one, chosen in zip(found, learn, strict=True) if chosen], config.folds):
        return None
    none = np.zeros(len(asked), dtype=bool)
    lesson = prepare([*found, *asked], config.folds)
    iou = torch.from_numpy(np.concatenate([human, none]).astype(np.float32))
    targets = dataclasses.replace(lesson.targets, iou=iou)
    lesson = dataclasses.replace(lesson, targets=targets, learn=np.concatenate([learn, none]))
    wanted = np.concatenate([np.zeros(len(found), dtype=bool), ~none])
    return out_of_fold(lesson, wanted, config.model_copy(update={"objective": "pn"}))[:, 0]


def out_of_fold(lesson: Lesson, asked: np.ndarray, config: DiscriminatorConfig) -> np.ndarray:
    """d and quality, float32 (k, 2), of the k examples that are `asked`, bool (n,), each by a model that did not train
    on its image."""
    scores = np.zeros((len(asked), 2), dtype=np.float32)
    for fold in np.unique(lesson.folds[asked]):
        held = asked & (lesson.folds == fold)
        scores[held] = fit_fold(lesson, config, int(fold)).predict(lesson.rows, held)
    return scores[asked]
