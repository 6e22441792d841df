"""The ablation's mask generator: words and an image's superpixels in, a mask out; small enough to be trained often."""

from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
import torch
from skimage.segmentation import slic
from torch import Tensor, nn

from experts.lexicon import colour_shares, to_lab
from pipeline.torch_data import dwsl_loss
from stages.appearance import COLOURS
from stages.wording import WORDS, read_instruction

SIDE = 64
"""Side in pixels of the square at which masks are learned and compared."""
_WORK_SIDE = 192
_SUPERPIXELS = 160
"""Most superpixels of an image; rows of its features beyond those it has are 0."""
_BLURS = (6.0, 24.0)
_COLOURS = slice(6, 6 + len(COLOURS))
"""Features that say how much of a superpixel is of each colour."""
_TEXT, _HIDDEN = 48, 64
_RATE, _DECAY, _BATCH = 5e-3, 0.05, 32


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images as superpixels (SLIC, Achanta et al., TPAMI 2012), so that training costs no convolution.

    `features`: float32 (images, superpixels, f): colour, texture, place and surroundings of each. `labels`: int64
    (images, SIDE · SIDE): the superpixel of each pixel.
    """

    features: Tensor
    labels: Tensor

    @classmethod
    def of(cls, images: list[np.ndarray]) -> Self:
        """Of uint8 RGB images (height, width, 3) of any sizes."""
        features, labels = zip(*map(_superpixels, images), strict=True)
        return cls(torch.from_numpy(np.stack(features)), torch.from_numpy(np.stack(labels)))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs to learn from or to answer: `scene` int64 (n,) numbers the image in `Scenes`, `words` float32 (n, WORDS),
    `colours` float32 (n, colours), 1 where a phrase names it, `masks` float32 (n, SIDE · SIDE) in [0, 1], soft for
    learning, exact for judging."""

    scene: Tensor
    words: Tensor
    colours: Tensor
    masks: Tensor

    @classmethod
    def of(cls, scenes: list[int], instructions: list[str], masks: list[np.ndarray]) -> Self:
        """Of image numbers, instructions and masks or heatmaps (height, width) in [0, 1] at the images' sizes."""
        read = [read_instruction(text) for text in instructions]
        named = [[any(name in phrase.colours for phrase in one.phrases) for name in COLOURS] for one in read]
        small = [
            cv2.resize(mask.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel() for mask in masks
        ]
        return cls(
            torch.tensor(scenes),
            torch.from_numpy(np.stack([one.words for one in read])),
            torch.tensor(named, dtype=torch.float32),
            torch.from_numpy(np.stack(small)),
        )

    def take(self, rows: Tensor) -> "Pairs":
        """Those rows, int64 (k,)."""
        return Pairs(self.scene[rows], self.words[rows], self.colours[rows], self.masks[rows])


class MaskGenerator(nn.Module):
    """Says of every superpixel how likely it is part of what the words ask for."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.words = nn.Sequential(nn.Dropout(0.3), nn.Linear(WORDS, _TEXT), nn.GELU())
        self.look = nn.Sequential(nn.Linear(features + 1, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, _HIDDEN))
        self.steer = nn.Linear(_TEXT, 2 * _HIDDEN)
        self.decide = nn.Sequential(
            nn.GELU(), nn.Dropout(0.2), nn.Linear(_HIDDEN, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, 1)
        )

    def forward(self, scenes: Scenes, pairs: Pairs) -> Tensor:
        """Logits float32 (n, SIDE · SIDE) of n pairs."""
        features = scenes.features[pairs.scene]
        named = (features[..., _COLOURS] * pairs.colours[:, None]).sum(2, keepdim=True)
        scale, shift = self.steer(self.words(pairs.words))[:, None].chunk(2, dim=2)
        logits = self.decide(self.look(torch.cat([features, named], dim=2)) * (1 + scale) + shift).squeeze(2)
        return logits.gather(1, scenes.labels[pairs.scene])


def fit(scenes: Scenes, pairs: Pairs, weights: Tensor, steps: int, seed: int) -> MaskGenerator:
    """Trains on `dwsl_loss` with these weights, float32 (n,), for so many batches; the same seed gives the same."""
    torch.manual_seed(seed)
    net = MaskGenerator(scenes.features.shape[2]).train()
    optimizer = torch.optim.AdamW(net.parameters(), _RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(weights), (_BATCH,))
        batch = pairs.take(rows)
        optimizer.zero_grad()
        dwsl_loss(net(scenes, batch), batch.masks, weights[rows]).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def mean_iou(net: MaskGenerator, scenes: Scenes, pairs: Pairs) -> float:
    """Mean over pairs of the IoU of the generated mask, logits over 0, with the exact one, at SIDE by SIDE pixels."""
    ious = []
    for rows in torch.arange(len(pairs.scene)).split(256):
        part = pairs.take(rows)
        found = net(scenes, part) > 0
        exact = part.masks > 0.5
        ious.append((found & exact).sum(1) / (found | exact).sum(1).clamp(min=1))
    return float(torch.cat(ious).mean())


def _superpixels(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = _WORK_SIDE / max(image.shape[:2])
    size = (max(8, round(image.shape[1] * scale)), max(8, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    lab = to_lab(small)
    # Fewer are asked for, since SLIC may give some more than that.
    labels = slic(lab, n_segments=int(0.8 * _SUPERPIXELS), compactness=10, start_label=0, convert2lab=False)
    labels = np.minimum(labels, _SUPERPIXELS - 1)
    shares = colour_shares(small)
    rows, columns = np.indices(labels.shape) / np.array(labels.shape)[:, None, None]
    around = [cv2.GaussianBlur(lab, (0, 0), blur) / 50 for blur in _BLURS]
    edges = np.abs(cv2.Laplacian(lab[..., 0].astype(np.float32), cv2.CV_32F)) / 20
    planes = np.dstack([lab / 50, (lab / 50) ** 2, shares, rows, columns, *around, edges, np.ones(labels.shape)])
    flat = planes.reshape(-1, planes.shape[2])
    sums = np.stack([np.bincount(labels.ravel(), plane, _SUPERPIXELS) for plane in flat.T], axis=1)
    counts = sums[:, -1:]
    means = sums / np.maximum(counts, 1)
    # The mean square becomes the spread, the count the area.
    means[:, 3:6] = np.sqrt(np.maximum(means[:, 3:6] - means[:, :3] ** 2, 0))
    means[:, -1] = counts[:, 0] * _SUPERPIXELS / labels.size
    at_side = cv2.resize(labels.astype(np.int32), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    return means.astype(np.float32), at_side.astype(np.int64).ravel()
