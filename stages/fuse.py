"""Fusion: the candidates of one pair, of several experts and for several phrases, to one soft heatmap."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np

from pipeline.masks import decode_heatmap, decode_rle
from stages.base import Config, Row, group_by
from stages.consensus import ConsensusRule, consensus

Rule = Literal["mean", "score", "d", "quality", "best"] | ConsensusRule

_LEAST_WEIGHT = 1e-6


class FusionConfig(Config):
    """How candidates become a label.

    `mean`: each candidate has one vote; `score`, `d`, `quality`: its vote counts as much as its expert's score, its d
    or its predicted IoU; `best`: the one of highest quality stands alone; `em`, `staple`: votes are binary, and who is
    reliable is estimated from how they agree, see `stages.consensus`. `make evaluate` compares them on labelled pairs;
    the default is the one that comes out best on the demo.
    """

    rule: Rule = "d"


@dataclass(frozen=True, eq=False)
class Fused:
    """A heatmap, float32 (height, width), with the weight behind it and the experts it is made of.

    `mask` is where the heatmap is at least one half: bool, empty where nothing was found.
    """

    heatmap: np.ndarray
    weight: float
    experts: frozenset[str]

    @property
    def mask(self) -> np.ndarray:
        return self.heatmap >= 0.5


def fuse(instruction: str, candidates: Sequence[Row], scores: Mapping[str, Row], config: FusionConfig) -> Fused:
    """The label of one pair.

    Candidates for one phrase are rivals and vote, soft experts with their heatmap; an expert that found nothing
    abstains. Phrases name several targets, so their results are united by the maximum; the union then stands, with
    the weight of its strongest phrase, beside the candidates that answer the instruction as a whole. As the
    authors' reader does (github.com/2toinf/IVM, IVM_1M_Mix/datareader.py), the heatmap is scaled to a maximum of 1:
    experts that disagree give a flatter heatmap, not an empty one.

    Args:
        instruction: the instruction as given.
        candidates: rows of the table candidates with the further key `expert`, at least one.
        scores: rows of the table scores by `candidate_id`; where d and quality are null, the expert's own score
            takes their place.
        config: the rule.
    """
    phrases = group_by(candidates, "phrase")
    whole = phrases.pop(instruction, [])
    parts = [_tally(_votes(rows, scores, config), config) for rows in phrases.values()]
    union = [_union(parts)] if parts else []
    fused = _tally(chain(_votes(whole, scores, config), union), config)
    peak = float(fused.heatmap.max())
    return Fused(fused.heatmap / peak, fused.weight, fused.experts) if peak > 0 else fused


def _votes(rows: Iterable[Row], scores: Mapping[str, Row], config: FusionConfig) -> Iterable[Fused]:
    # One at a time: a dozen heatmaps of a large photo would not fit in a worker's memory together.
    for row in rows:
        soft = row["heatmap"] is not None
        heatmap = decode_heatmap(row["heatmap"]) if soft else decode_rle(row["mask"]).astype(np.float32)
        yield Fused(heatmap, _weight(row, scores, config), frozenset([row["expert"]]))


def _weight(row: Row, scores: Mapping[str, Row], config: FusionConfig) -> float:
    if config.rule in ("mean", "em", "staple"):
        return 1.0
    known = {} if config.rule == "score" else scores.get(row["candidate_id"], {})
    score = known.get("d" if config.rule == "d" else "quality")
    return max(row["score"] if score is None else score, _LEAST_WEIGHT)


def _tally(votes: Iterable[Fused], config: FusionConfig) -> Fused:
    if config.rule == "best":
        return max(votes, key=lambda vote: vote.weight)
    if config.rule == "em" or config.rule == "staple":
        return _agree(list(votes), config.rule)
    total: np.ndarray = np.zeros((), dtype=np.float32)
    weight, experts = 0.0, frozenset[str]()
    for vote in votes:
        total = total + np.float32(vote.weight) * vote.heatmap
        weight += vote.weight
        experts |= vote.experts
    return Fused(total / np.float32(weight), weight, experts)


def _agree(votes: Sequence[Fused], rule: ConsensusRule) -> Fused:
    if len(votes) == 1:
        return votes[0]
    heatmap = consensus([vote.mask for vote in votes], rule)
    return Fused(heatmap, 1.0, frozenset().union(*(vote.experts for vote in votes)))


def _union(parts: Sequence[Fused]) -> Fused:
    return Fused(
        np.maximum.reduce([part.heatmap for part in parts]),
        max(part.weight for part in parts),
        frozenset().union(*(part.experts for part in parts)),
    )
