"""How far d and quality can be trusted: ranking, calibration and a leak alarm, from scores of held-out images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.examples import ABSENT, HUMAN, OTHER, OWN, Example, fold_of
from stages.measures import STATISTICS

_BINS = 10
_DIFFERENT = 0.5
"""IoU under which the human mask of another instruction is of another target."""
_WIDE = 0.3
"""Standard deviation of the true IoU from which on an expert's masks are worth ranking."""


def metrics(found: Sequence[Example], scores: np.ndarray, folds: int) -> dict[str, Any]:
    """Figures on held-out images; null where they cannot be told.

    Human against experts' masks by d: `auc`, and with both sides at equal weight `average_precision`, `brier`, `ece`
    (expected calibration error, Guo et al. 2017, arXiv 1706.04599) and the `reliability` curve; `auc_wrong_target`:
    against human masks of other instructions; `auc_leak`: the same as `auc` by a classifier that sees area, roughness
    and solidity alone, which should be far below it. Among experts' masks: `d_spearman` and `quality_spearman`, rank
    correlations with the true IoU, and `quality_mae`. `quality_absent`: mean quality of masks held against something
    that is not in the image. All but these again in `by_expert` and `by_source`; `wide` says whether an expert's true
    IoU varies enough (standard deviation over 0.3) for its ranking to mean much.

    Args:
        found: examples.
        scores: float32 (n, 2), d and quality of each, by a model that did not train on its image.
        folds: number of folds, by image.
    """
    own = np.array([example.kind == OWN for example in found])
    absent = np.array([example.kind == ABSENT for example in found])
    makers = np.array([example.maker for example in found], dtype=object)
    machine = own & np.array([example.machine for example in found])
    human = own & (makers == HUMAN)
    iou = np.array([example.iou for example in found])
    sources = np.array([example.source for example in found], dtype=object)
    wrong = (makers == HUMAN) & np.array([example.kind == OTHER for example in found]) & (iou < _DIFFERENT)
    return {
        "images": len({example.image for example in found}),
        "examples": len(found),
        **_figures(human, machine, iou, scores),
        "auc_wrong_target": _auc(human, wrong, scores[:, 0]),
        "auc_leak": _auc(human, machine, _by_statistics(found, human, machine, folds)),
        "quality_absent": float(scores[absent, 1].mean()) if absent.any() else None,
        "reliability": _reliability(human, machine, scores[:, 0]),
        "by_expert": {
            name: _figures(human, machine & (makers == name), iou, scores) for name in sorted(set(makers[machine]))
        },
        "by_source": {
            name: _figures(human & (sources == name), machine & (sources == name), iou, scores)
            for name in sorted(set(sources[machine]))
        },
    }


def _figures(human: np.ndarray, machine: np.ndarray, iou: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    from sklearn.metrics import average_precision_score, brier_score_loss

    both = human | machine
    told = bool(human.any() and machine.any())
    d, truth, weight = scores[both, 0], human[both], _halves(human, machine)[both]
    bins = _reliability(human, machine, scores[:, 0])
    return {
        "human_masks": int(human.sum()),
        "machine_masks": int(machine.sum()),
        "auc": _auc(human, machine, scores[:, 0]),
        "average_precision": float(average_precision_score(truth, d, sample_weight=weight)) if told else None,
        "brier": float(brier_score_loss(truth, d, sample_weight=weight)) if told else None,
        "ece": sum(bin["share"] * abs(bin["d"] - bin["human"]) for bin in bins) if told else None,
        "d_spearman": _spearman(scores[machine, 0], iou[machine]),
        "quality_spearman": _spearman(scores[machine, 1], iou[machine]),
        "quality_mae": float(np.abs(scores[machine, 1] - iou[machine]).mean()) if machine.any() else None,
        "wide": bool(machine.any() and iou[machine].std() > _WIDE),
    }


def _auc(positive: np.ndarray, negative: np.ndarray, values: np.ndarray) -> float | None:
    from sklearn.metrics import roc_auc_score

    both = positive | negative
    return float(roc_auc_score(positive[both], values[both])) if positive.any() and negative.any() else None


def _spearman(values: np.ndarray, iou: np.ndarray) -> float | None:
    from scipy.stats import spearmanr

    varied = len(iou) > 1 and np.ptp(values) > 0 and np.ptp(iou) > 0
    return float(spearmanr(values, iou).statistic) if varied else None


def _halves(human: np.ndarray, machine: np.ndarray) -> np.ndarray:
    """Weights (n,) that give each side one half in sum."""
    return human * (0.5 / max(1, human.sum())) + machine * (0.5 / max(1, machine.sum()))


def _reliability(human: np.ndarray, machine: np.ndarray, d: np.ndarray) -> list[dict[str, float]]:
    """For each tenth of d that has masks: their weight, mean d, and the weight of human masks among them."""
    weights, curve = _halves(human, machine), []
    tenth = np.minimum((d * _BINS).astype(int), _BINS - 1)
    for k in range(_BINS):
        inside = weights * (tenth == k)
        if share := float(inside.sum()):
            curve.append({"share": share, "d": float(inside @ d) / share, "human": float(inside @ human) / share})
    return curve


def _by_statistics(found: Sequence[Example], human: np.ndarray, machine: np.ndarray, folds: int) -> np.ndarray:
    """P(human) of each example out of fold, by boosted trees that see the statistics of the mask alone."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    figures = np.stack([example.figures[list(STATISTICS)] for example in found])
    fold = np.array([fold_of(example.image, folds) for example in found])
    values = np.zeros(len(found))
    for held in range(folds):
        learn = (human | machine) & (fold != held)
        trees = HistGradientBoostingClassifier(max_iter=50, random_state=0).fit(figures[learn], human[learn])
        if (fold == held).any():
            values[fold == held] = trees.predict_proba(figures[fold == held])[:, 1]
    return values
