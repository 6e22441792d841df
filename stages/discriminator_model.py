"""The small discriminator's network: figures of a mask and its instruction in, logits of d and quality out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.feature_extraction.text import HashingVectorizer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

_TEXT = HashingVectorizer(n_features=512, token_pattern=r"(?u)\w+", dtype=np.float32)
"""Hashed bag of words: stateless, and the same in every process and on every machine."""
_WORDS, _HIDDEN = 64, 256
_BATCH, _RATE, _DECAY = 64, 3e-3, 0.1


class Net(nn.Module):
    """Two logits, d and quality. One hidden layer, much dropout: labelled pairs are few."""

    mean: Tensor
    spread: Tensor

    def __init__(self, figures: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(figures))
        self.register_buffer("spread", torch.ones(figures))
        self.words = nn.Sequential(nn.Dropout(0.5), nn.Linear(_TEXT.n_features, _WORDS, bias=False))
        self.match = nn.Linear(figures, _WORDS)
        self.head = nn.Sequential(
            nn.Dropout(0.1),
            nn.Linear(figures + 2 * _WORDS, _HIDDEN),
            nn.GELU(),
            nn.Dropout(0.5),
            nn.Linear(_HIDDEN, 2),
        )

    def forward(self, figures: Tensor, text: Tensor) -> Tensor:
        """Logits (n, 2) of figures (n, f) and encoded texts (n, 512), all float32."""
        # Clamped: a figure far outside the training range must not decide alone.
        scaled = ((figures - self.mean) / self.spread).clamp(-4, 4)
        words = self.words(text)
        # The product lets "red" ask for the figures of colour, "leftmost" for those of place.
        return self.head(torch.cat([scaled, words, words * self.match(scaled)], dim=1))

    @torch.no_grad()
    def predict(self, figures: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        """d and quality in [0, 1], float32 (n, 2), of figures float32 (n, f) and n instructions."""
        return self(torch.from_numpy(figures), _encode(instructions)).sigmoid().numpy()

    def save(self, path: Path) -> None:
        """Writes the weights as safetensors."""
        save_file(self.state_dict(), path)

    @classmethod
    def load(cls, path: Path) -> "Net":
        """What `save` wrote."""
        state = load_file(path)
        net = cls(len(state["mean"]))
        net.load_state_dict(state)
        return net.eval()


def _encode(instructions: Sequence[str]) -> Tensor:
    return torch.from_numpy(_TEXT.transform(instructions).toarray())


def fit(
    figures: np.ndarray, instructions: Sequence[str], targets: np.ndarray, counts: np.ndarray, epochs: int, seed: int
) -> Net:
    """A trained network, the same for the same input on the same machine.

    Args:
        figures: float32 (n, f).
        instructions: n of them.
        targets: float32 (n, 2), d and quality; d is 1 or 0, both present, each with half the weight in the loss.
        counts: float32 (n,), weight of each mask in the loss of quality.
        epochs: passes over the masks.
        seed: of the initial weights, the order and the dropout.
    """
    seen, text, wanted = torch.from_numpy(figures), _encode(instructions), torch.from_numpy(targets)
    positive = wanted[:, 0] == 1
    balance = torch.where(positive, 0.5 / positive.sum(), 0.5 / (~positive).sum()) * len(positive)
    weights = torch.stack([balance, torch.from_numpy(counts)], dim=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net(figures.shape[1])
        net.mean, net.spread = seen.mean(dim=0), seen.std(dim=0) + 1e-3
        optimizer = torch.optim.AdamW(net.parameters(), _RATE, weight_decay=_DECAY)
        steps = epochs * -(-len(figures) // _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
        for _ in range(epochs):
            for batch in torch.randperm(len(figures)).split(_BATCH):
                logits = net(seen[batch], text[batch])
                loss = F.binary_cross_entropy_with_logits(logits, wanted[batch], weights[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return net.eval()
