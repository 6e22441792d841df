"""Evaluation: how good every expert, the fused masks and what scores the masks are, on pairs with a human mask."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd
from pycocotools import mask as coco
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from pipeline.masks import decode_rle, mask_box
from stages.base import Row, group_by
from stages.fuse import FusionConfig, Rule, fuse

FUSED, BEST = "fused", "best"
RULES: tuple[str, ...] = tuple(name for part in get_args(Rule) for name in get_args(part))
SCORERS = ("d", "quality", "score", "agreement", "softmin")
"""What `judge_masks` tells of a mask; a table of masks may have columns of more."""
EVERY = "all"
"""`expert` of the rows that are about all experts' masks together."""
BINS = 10
"""Bins of d in `quantity_over_d`, of equal width in [0, 1]."""

_THRESHOLDS, _TOP = (0.5, 0.7, 0.9), (1, 5, 10)
_HIT = 0.5
_GOOD = 0.75
_MISS = np.inf
_SOFTNESS = 0.1
"""Temperature of softmin; the authors' default."""


def judge_answers(
    sample: Row, candidates: Sequence[Row], scores: Mapping[str, Row], experts: Iterable[str], fusion: FusionConfig
) -> list[Row]:
    """What each expert alone, all fused, and the best possible choice answer to one labelled pair; for `answer_table`.

    An expert's answer is its own candidates fused by the same rule; `best` is the candidate of highest IoU, chosen with
    the human mask at hand.

    Args:
        sample: a row of the table samples with a human mask.
        candidates: the pair's rows of the table candidates, with the further key `expert`.
        scores: rows of the table scores by `candidate_id`.
        experts: all experts of the run, those that found nothing here included.
        fusion: the rule.
    """
    human = decode_rle(sample["human_mask"])
    ious = _iou_with(candidates, sample["human_mask"])
    groups = group_by(candidates, "expert")
    answers = []
    for label, rows in [*((name, groups.get(name, [])) for name in experts), (FUSED, candidates)]:
        mask = fuse(sample["instruction"], rows, scores, fusion).mask if rows else np.zeros_like(human)
        boxes = _tight_box(mask) if label == FUSED else _boxes_by_score(rows)
        reached = max((ious[row["candidate_id"]] for row in rows), default=0.0)
        answers.append({"label": label, **_overlap(mask, human), "rank": _first_hit(boxes, human), "reached": reached})
    best = max(candidates, key=lambda row: ious[row["candidate_id"]], default=None)
    mask = np.zeros_like(human) if best is None else decode_rle(best["mask"])
    # Its boxes have no order, so no rank.
    answers.append({"label": BEST, **_overlap(mask, human), "rank": None, "reached": max(ious.values(), default=0.0)})
    return answers


def judge_rules(sample: Row, candidates: Sequence[Row], scores: Mapping[str, Row]) -> list[Row]:
    """All candidates of one labelled pair fused by every rule; arguments as of `judge_answers`, for `answer_table`."""
    human = decode_rle(sample["human_mask"])
    ious = _iou_with(candidates, sample["human_mask"])
    answers = []
    for rule in RULES:
        config = FusionConfig.model_validate({"rule": rule})
        mask = fuse(sample["instruction"], candidates, scores, config).mask if candidates else np.zeros_like(human)
        rank, reached = _first_hit(_tight_box(mask), human), max(ious.values(), default=0.0)
        answers.append({"label": rule, **_overlap(mask, human), "rank": rank, "reached": reached})
    return answers


def judge_masks(sample: Row, candidates: Sequence[Row], scores: Mapping[str, Row]) -> list[Row]:
    """Each candidate of one labelled pair with its true IoU and what says how good it is; for `scorer_table`.

    `score` is the expert's own; `agreement` the mean over the other experts of the best IoU with a mask of theirs,
    `softmin` is `label_quality` by the other experts' vote; both are None where no other expert answered. Arguments as
    of `judge_answers`.
    """
    ious = _iou_with(candidates, sample["human_mask"])
    cells = [row["mask"] for row in candidates]
    overlap = _ious(cells, cells)
    experts = np.array([row["expert"] for row in candidates], dtype=object)
    # One vote per expert, however many masks it has.
    votes = {
        name: np.mean([decode_rle(row["mask"]) for row in rows], axis=0, dtype=np.float32)
        for name, rows in group_by(candidates, "expert").items()
    }
    judged = []
    for k, row in enumerate(candidates):
        others = [name for name in votes if name != row["expert"]]
        agreed = [overlap[k, experts == name].max() for name in others]
        score = scores.get(row["candidate_id"], {})
        judged.append(
            {
                "candidate_id": row["candidate_id"],
                "expert": row["expert"],
                "iou": ious[row["candidate_id"]],
                "d": score.get("d"),
                "quality": score.get("quality"),
                "score": row["score"],
                "agreement": float(np.mean(agreed)) if others else None,
                "softmin": label_quality(decode_rle(row["mask"]), np.mean([votes[name] for name in others], axis=0))
                if others
                else None,
            }
        )
    return judged


def label_quality(mask: np.ndarray, foreground: np.ndarray) -> float:
    """How far a mask agrees with a model's pixel probabilities, in [0, 1]; the least agreeing pixels decide.

    Softmin over pixels of P(the label given), with temperature 0.1: the label quality score for semantic segmentation
    of Lad and Mueller (arXiv 2307.05080).

    Args:
        mask: bool (height, width), the label.
        foreground: float (height, width), P(foreground) in [0, 1].
    """
    given = np.where(mask, foreground, 1 - foreground)
    return float(np.average(given, weights=np.exp(-given / _SOFTNESS)))


def answer_table(answers: pd.DataFrame) -> pd.DataFrame:
    """One row per `label` over pairs, from `judge_answers` or `judge_rules`; a pair without an answer counts as 0.

    `answered`: share of pairs with a mask. `mean IoU`: over pairs with something to be found. `gIoU`: mean over all
    pairs, where nothing found and nothing to be found is 1; `cIoU`: summed intersections by summed unions, so large
    objects count more (both LISA, arXiv 2308.00692, section 4.1). `P@t`: share of pairs with IoU ≥ t. `box P@k`: share
    of pairs where one of the k boxes of highest expert score has IoU ≥ 0.5 with the human mask's box, as in phrase
    grounding (MDETR, arXiv 2104.12763, section 4); a fused mask has one box. `recall`: share of pairs where any
    candidate mask has IoU ≥ 0.5.
    """
    rows = []
    for label, found in answers.groupby("label", sort=False):
        ranked = found["rank"].dropna()
        rows.append(
            {
                "label": label,
                "answered": found["answered"].mean(),
                "mean IoU": found.loc[found["target"], "iou"].mean(),
                "gIoU": found["iou"].mean(),
                "cIoU": found["intersection"].sum() / max(found["union"].sum(), 1),
                **{f"P@{threshold}": (found["iou"] >= threshold).mean() for threshold in _THRESHOLDS},
                **{f"box P@{k}": (ranked <= k).mean() for k in _TOP},
                "recall": (found["reached"] >= _HIT).mean(),
            }
        )
    return pd.DataFrame(rows)


def scorer_table(masks: pd.DataFrame) -> pd.DataFrame:
    """How well each scorer ranks machine masks, over all experts' and within each; NaN where it cannot be told.

    `masks`: how many the scorer has a value for; `good`: share of them with true IoU ≥ 0.75; `spearman`: rank
    correlation of the value with the true IoU; `auc`: of the value for telling the good ones. `std`: standard deviation
    of the true IoU, without which there is nothing to rank.

    Args:
        masks: rows of `judge_masks`, with a column more for each further scorer.
    """
    rows = []
    scorers = [name for name in masks.columns if name not in ("candidate_id", "expert", "iou")]
    for expert, found in [(EVERY, masks), *masks.groupby("expert", sort=False)]:
        for scorer in scorers:
            known = found[[scorer, "iou"]].dropna().astype(float)
            value, iou = known[scorer].to_numpy(), known["iou"].to_numpy()
            good = iou >= _GOOD
            varied = len(iou) > 1 and np.ptp(value) > 0 and np.ptp(iou) > 0
            rows.append(
                {
                    "expert": expert,
                    "scorer": scorer,
                    "masks": len(iou),
                    "good": good.mean() if len(iou) else np.nan,
                    "std": iou.std() if len(iou) else np.nan,
                    "spearman": spearmanr(value, iou).statistic if varied else np.nan,
                    "auc": roc_auc_score(good, value) if 0 < good.sum() < len(good) else np.nan,
                }
            )
    return pd.DataFrame(rows)


def quantity_over_d(samples: Sequence[Row], scores: Sequence[Row]) -> pd.Series:
    """Number of scored masks by (`source`, `expert`, `bin`) where there are any, `expert` being `human` for human masks
    and bin k holding d in [k, k + 1) / `BINS`: the data of figure 10b of IVM (arXiv 2405.19783).

    Args:
        samples: rows of the table samples, of either branch.
        scores: rows of the table scores of these samples; those without d are left out.
    """
    source = {row["uuid"]: row["source"] for row in samples}
    keys = [
        (source[row["uuid"]], row["candidate_id"].split("/")[1], min(int(row["d"] * BINS), BINS - 1))
        for row in scores
        if row["d"] is not None
    ]
    return pd.DataFrame(keys, columns=["source", "expert", "bin"]).value_counts(sort=False)


def _overlap(mask: np.ndarray, human: np.ndarray) -> dict[str, Any]:
    intersection, union = int((mask & human).sum()), int((mask | human).sum())
    return {
        "answered": bool(mask.any()),
        "target": bool(human.any()),
        "intersection": intersection,
        "union": union,
        "iou": intersection / union if union else 1.0,
    }


def _iou_with(candidates: Sequence[Row], human: Mapping[str, Any]) -> dict[str, float]:
    overlap = _ious([row["mask"] for row in candidates], [human])
    return {row["candidate_id"]: float(overlap[k, 0]) for k, row in enumerate(candidates)}


def _ious(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> np.ndarray:
    if not first or not second:
        return np.zeros((len(first), len(second)))
    return np.asarray(coco.iou(list(first), list(second), [0] * len(second)))


def _tight_box(mask: np.ndarray) -> list[list[float]]:
    return [mask_box(mask)] if mask.any() else []


def _boxes_by_score(rows: Sequence[Row]) -> list[list[float]]:
    return [row["box"] for row in sorted(rows, key=lambda row: -row["score"])]


def _first_hit(boxes: Sequence[Sequence[float]], human: np.ndarray) -> float:
    """Rank from 1 of the first box x1, y1, x2, y2 with IoU ≥ 0.5 with the human mask's, infinite where none has."""
    if not boxes or not human.any():
        return _MISS
    found, true = np.array(boxes, dtype=np.float64), np.array([mask_box(human)])
    for corners in (found, true):
        corners[:, 2:] -= corners[:, :2]
    hits = np.flatnonzero(np.asarray(coco.iou(found, true, [0]))[:, 0] >= _HIT)
    return float(hits[0] + 1) if hits.size else _MISS
