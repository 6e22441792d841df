"""The small discriminator's network: a mask's figures and an instruction's words in, logits of d and quality out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from stages.measures import centre_of, colours_of
from stages.objectives import MACHINE_SIDE, Objective, nnpu_risk, pn_risk, side_weights
from stages.wording import FITS, WORDS, Wording

_MATCH, _SEEN, _HIDDEN = 64, 48, 192
_BATCH, _RATE, _DECAY = 128, 2e-3, 0.1


@dataclass(frozen=True, eq=False)
class Rows:
    """Masks held against instructions, each mask and each instruction stored once.

    `figures`: float32 (masks, f). `words`: float32 (instructions, WORDS). `mask` and `text`: int64 (n,), which of them
    a row is of. `fits`: float32 (n, FITS), by `Wording.fit`.
    """

    figures: Tensor
    words: Tensor
    mask: Tensor
    text: Tensor
    fits: Tensor

    @classmethod
    def of(cls, pairs: list[tuple[np.ndarray, Wording]]) -> Self:
        """Rows of masks' figures with readings; what is the same object is stored once."""
        figures = {id(seen): seen for seen, _ in pairs}
        readings = {id(read): read for _, read in pairs}
        masks, texts = ({key: n for n, key in enumerate(of)} for of in (figures, readings))
        fits = [read.fit(colours_of(seen), centre_of(seen)) for seen, read in pairs]
        return cls(
            torch.from_numpy(np.stack(list(figures.values()))),
            torch.from_numpy(np.stack([read.words for read in readings.values()])),
            torch.tensor([masks[id(seen)] for seen, _ in pairs]),
            torch.tensor([texts[id(read)] for _, read in pairs]),
            torch.from_numpy(np.stack(fits)),
        )

    def take(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Figures (k, f), words (k, WORDS) and fits (k, FITS) of the rows `index`, int64 (k,)."""
        return self.figures[self.mask[index]], self.words[self.text[index]], self.fits[index]


class Net(nn.Module):
    """Two logits, d and quality. One hidden layer, much dropout: labelled pairs are few."""

    mean: Tensor
    spread: Tensor

    def __init__(self, figures: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(figures + FITS))
        self.register_buffer("spread", torch.ones(figures + FITS))
        self.words = nn.Sequential(nn.Dropout(0.3), nn.Linear(WORDS, _MATCH, bias=False))
        self.match = nn.Sequential(nn.Dropout(0.3), nn.Linear(figures, _MATCH))
        self.seen = nn.Sequential(nn.Dropout(0.2), nn.Linear(figures, _SEEN), nn.GELU())
        self.head = nn.Sequential(
            nn.Linear(_SEEN + FITS + 2 * _MATCH + 1, _HIDDEN), nn.GELU(), nn.Dropout(0.5), nn.Linear(_HIDDEN, 2)
        )

    def forward(self, figures: Tensor, words: Tensor, fits: Tensor) -> Tensor:
        """Logits (n, 2) of figures (n, f), words (n, WORDS) and fits (n, FITS), all float32."""
        # Clamped: a figure far outside the training range must not decide alone.
        scaled = ((torch.cat([figures, fits], dim=1) - self.mean) / self.spread).clamp(-4, 4)
        figures, fits = scaled[:, : figures.shape[1]], scaled[:, figures.shape[1] :]
        text = self.words(words)
        # The product lets "teapot" ask for the figures of a teapot's shape.
        product = text * self.match(figures)
        return self.head(torch.cat([self.seen(figures), fits, text, product, product.sum(1, keepdim=True)], dim=1))

    @torch.no_grad()
    def predict(self, rows: Rows) -> np.ndarray:
        """d and quality in [0, 1], float32 (n, 2), of n rows."""
        parts = [self(*rows.take(index)) for index in torch.arange(len(rows.mask)).split(4096)]
        return torch.cat(parts).sigmoid().numpy()

    def save(self, path: Path, made_from: str) -> None:
        """Writes the weights as safetensors, with the digest of what they were made from."""
        save_file(self.state_dict(), path, {"made_from": made_from})

    @classmethod
    def load(cls, path: Path, made_from: str | None = None) -> "Net | None":
        """What `save` wrote; None if the file says that it was made from something else than `made_from`."""
        with safe_open(path, framework="pt") as file:
            if made_from not in (None, (file.metadata() or {}).get("made_from")):
                return None
        state = load_file(path)
        net = cls(len(state["mean"]) - FITS)
        net.load_state_dict(state)
        return net.eval()


@dataclass(frozen=True, eq=False)
class Targets:
    """What each row should come to: `side` int64 (n,) of `stages.objectives` for d; `iou` float32 (n,) for quality."""

    side: Tensor
    iou: Tensor


def good_share(targets: Targets, good: float = 0.75) -> float:
    """Share of the experts' own masks with a true IoU of `good` or more: the prior of `nnpu_risk`, within 0.01 to 0.99.

    Labelled pairs tell it outright. Estimators from d alone, such as Elkan and Noto's (KDD 2008), assume that good
    machine masks look just like human ones. 0.75 is the strict threshold of COCO's metrics (arXiv 1405.0312).
    """
    machine = targets.side == MACHINE_SIDE
    return float((targets.iou[machine] >= good).float().mean().clamp(0.01, 0.99))


def fit(rows: Rows, targets: Targets, objective: Objective, prior: float | None, epochs: int, seed: int) -> Net:
    """A trained network, the same for the same input on the same machine.

    Args:
        rows: the examples.
        targets: of each of them; human and machine sides both present.
        objective: of d. Quality is always learned by cross entropy with the true IoU.
        prior: of `nnpu_risk`; None takes `good_share`.
        epochs: passes over the rows.
        seed: of the initial weights, the order and the dropout.
    """
    weights = side_weights(targets.side)
    prior = good_share(targets) if prior is None else prior
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net(rows.figures.shape[1])
        _standardise(net, rows)
        optimizer = torch.optim.AdamW(net.parameters(), _RATE, weight_decay=_DECAY)
        steps = epochs * -(-len(rows.mask) // _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
        for _ in range(epochs):
            for batch in torch.randperm(len(rows.mask)).split(_BATCH):
                logits = net(*rows.take(batch))
                d = logits[:, 0], targets.side[batch], weights[batch]
                risk = pn_risk(*d) if objective == "pn" else nnpu_risk(*d, prior)
                loss = risk + F.binary_cross_entropy_with_logits(logits[:, 1], targets.iou[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return net.eval()


def _standardise(net: Net, rows: Rows) -> None:
    seen = rows.figures[rows.mask.unique()]
    for part, values in ((slice(None, seen.shape[1]), seen), (slice(seen.shape[1], None), rows.fits)):
        net.mean[part], net.spread[part] = values.mean(dim=0), values.std(dim=0) + 1e-3
