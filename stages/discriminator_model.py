"""The small discriminator's network: a mask's figures, an instruction's words and their fit in, d and quality out."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from stages.naming import Namer
from stages.objectives import MACHINE_SIDE, Objective, graded_risk, nnpu_risk, pn_risk, side_weights
from stages.rivals import RIVALS
from stages.rows import Rows
from stages.wording import FITS, WORDS

_SEEN, _TEXT, _HIDDEN = 32, 16, 64
_BATCH, _RATE, _DECAY = 512, 6e-3, 0.1
_ALIKE = 8
"""Rows of a batch in which the same features are dropped."""
_ROOT = 3
"""Quality is learned as this root of the true IoU and given as its power: a plain mean is ruled by the few good masks,
and says little of whether a poor one is half right or not at all."""
_NAMER = ("mean", "spread", "weights", "bias")


class _Dropout(nn.Module):
    """Drops the same features in a few rows at a time: random numbers take longer than all the rest of a step."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return features
        count, width = features.shape
        keep = (torch.rand(-(-count // _ALIKE), width) > self.share).float() / (1 - self.share)
        return features * keep.repeat_interleave(_ALIKE, dim=0)[:count]


class Net(nn.Module):
    """Two logits, d and quality. One hidden layer, much dropout: labelled pairs are few. `namer` names its masks."""

    mean: Tensor
    spread: Tensor
    namer: Namer

    def __init__(self, figures: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(figures + FITS + RIVALS))
        self.register_buffer("spread", torch.ones(figures + FITS + RIVALS))
        self.words = nn.Sequential(_Dropout(0.3), nn.Linear(WORDS, _TEXT, bias=False))
        self.seen = nn.Sequential(_Dropout(0.2), nn.Linear(figures, _SEEN), nn.GELU())
        self.head = nn.Sequential(
            nn.Linear(_SEEN + _TEXT + FITS + RIVALS, _HIDDEN), nn.GELU(), _Dropout(0.3), nn.Linear(_HIDDEN, 2)
        )

    def forward(self, figures: Tensor, words: Tensor, fits: Tensor) -> Tensor:
        """Logits (n, 2) of figures (n, f), words (n, WORDS) and fits (n, FITS + RIVALS), as `inputs` gives them."""
        return self.head(torch.cat([self.seen(figures), self.words(words), fits], dim=1))

    def inputs(self, rows: Rows, compared: np.ndarray) -> "_Inputs":
        """Standardised; clamped, as a figure far outside the training range must not decide alone."""
        parts, start = [], 0
        for values in (rows.figures, np.hstack([rows.fits, compared])):
            part = slice(start, start + values.shape[1])
            parts.append(((torch.from_numpy(values) - self.mean[part]) / self.spread[part]).clamp(-4, 4))
            start = part.stop
        mask, text = torch.from_numpy(rows.mask), torch.from_numpy(rows.text)
        return _Inputs(parts[0], torch.from_numpy(rows.words), parts[1], mask, text)

    @torch.no_grad()
    def predict(self, rows: Rows, chosen: np.ndarray) -> np.ndarray:
        """d and quality in [0, 1], float32 (k, 2), of the k rows that are chosen, bool (n,)."""
        inputs = self.inputs(rows, rows.compared(self.namer, chosen))
        parts = torch.from_numpy(np.flatnonzero(chosen)).split(4096)
        scores = torch.cat([self(*inputs.take(part)) for part in parts]).sigmoid()
        scores[:, 1] **= _ROOT
        return scores.numpy()

    def save(self, path: Path, made_from: str) -> None:
        """Writes the weights as safetensors, with the digest of what they were made from."""
        named = {f"namer.{name}": torch.from_numpy(getattr(self.namer, name)) for name in _NAMER}
        # Under one key: the order of several differs from file to file.
        about = json.dumps({"made_from": made_from, "nouns": self.namer.nouns})
        save_file(self.state_dict() | named, path, {"about": about})

    @classmethod
    def load(cls, path: Path, made_from: str | None = None) -> "Net | None":
        """What `save` wrote; None if the file says that it was made from something else than `made_from`."""
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
        if made_from not in (None, about.get("made_from")):
            return None
        state = load_file(path)
        arrays = {name: state.pop(f"namer.{name}").numpy() for name in _NAMER}
        net = cls(len(state["mean"]) - FITS - RIVALS)
        net.load_state_dict(state)
        net.namer = Namer(tuple(about["nouns"]), **arrays)
        return net.eval()


@dataclass(frozen=True, eq=False)
class _Inputs:
    figures: Tensor
    words: Tensor
    fits: Tensor
    mask: Tensor
    text: Tensor

    def take(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Figures, words and fits of the rows `index`, int64 (k,)."""
        return self.figures[self.mask[index]], self.words[self.text[index]], self.fits[index]


@dataclass(frozen=True, eq=False)
class Targets:
    """What each row should come to, and how much it counts for quality.

    `side` int64 (n,) of `stages.objectives`, for d; `iou` and `weight` float32 (n,), for quality.
    """

    side: Tensor
    iou: Tensor
    weight: Tensor

    def take(self, index: Tensor) -> Self:
        """Those of the rows `index`, int64 (k,)."""
        return type(self)(self.side[index], self.iou[index], self.weight[index])


def good_share(targets: Targets, good: float = 0.75) -> float:
    """Share of the experts' own masks with a true IoU of `good` or more: the prior of `nnpu_risk`, within 0.01 to 0.99.

    Labelled pairs tell it outright. Estimators from d alone, such as Elkan and Noto's (KDD 2008), assume that good
    machine masks look just like human ones. 0.75 is the strict threshold of COCO's metrics (arXiv 1405.0312).
    """
    machine = targets.side == MACHINE_SIDE
    return float((targets.iou[machine] >= good).float().mean().clamp(0.01, 0.99))


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, so that the same examples give the same weights wherever they are trained; and matrices this
    small gain nothing from more threads, which on a busy machine wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def fit(
    rows: Rows,
    parts: np.ndarray,
    targets: Targets,
    objective: Objective,
    prior: float | None,
    epochs: int,
    seed: int,
) -> Net:
    """A trained network, the same for the same input on the same machine.

    Args:
        rows: the examples.
        parts: int (n,): rows of images that are not to be trained on have -1, the others the number of one of several
            parts by image. Nouns in a part are told by a namer that learned from the others, so that the network
            does not take them for surer than they are on new images.
        targets: of each row; among those trained on are both human and machine sides.
        objective: of d. Quality is always learned by cross entropy with the true IoU's root.
        prior: of `nnpu_risk`; None takes `good_share`.
        epochs: passes over the rows.
        seed: of the initial weights, the order and the dropout.
    """
    learn, iou = np.flatnonzero(parts >= 0), targets.iou.numpy()
    compared = np.zeros((len(parts), RIVALS), dtype=np.float32)
    for part in np.unique(parts[learn]):
        others = learn[parts[learn] != part]
        # Where there is one part only, there are no others to learn from.
        compared += rows.compared(rows.learn_nouns(others if len(others) else learn, iou), parts == part)
    prior = good_share(targets.take(torch.from_numpy(learn))) if prior is None else prior
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net(rows.figures.shape[1])
        net.namer = rows.learn_nouns(learn, iou)
        seen = np.hstack([rows.figures[rows.mask], rows.fits, compared])[learn]
        net.mean[:], net.spread[:] = torch.from_numpy(seen.mean(axis=0)), torch.from_numpy(seen.std(axis=0) + 1e-3)
        _descend(net, net.inputs(rows, compared), torch.from_numpy(learn), targets, objective, prior, epochs)
    return net.eval()


def _descend(
    net: Net, inputs: _Inputs, learn: Tensor, targets: Targets, objective: Objective, prior: float, epochs: int
) -> None:
    weights = torch.zeros(len(targets.side))
    weights[learn] = side_weights(targets.side[learn])
    counts = targets.weight / targets.weight[learn].mean()
    optimizer = torch.optim.AdamW(net.parameters(), _RATE, weight_decay=_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=epochs * -(-len(learn) // _BATCH))
    for _ in range(epochs):
        for batch in learn[torch.randperm(len(learn))].split(_BATCH):
            logits, iou = net(*inputs.take(batch)), targets.iou[batch]
            d = logits[:, 0], targets.side[batch], weights[batch]
            if objective == "graded":
                risk = graded_risk(*d, iou)
            else:
                risk = pn_risk(*d) if objective == "pn" else nnpu_risk(*d, prior)
            loss = risk + F.binary_cross_entropy_with_logits(logits[:, 1], iou ** (1 / _ROOT), counts[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
