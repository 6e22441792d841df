"""The discriminator `ivm`, trained and asked as the small one: one model per fold of images."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InputError
from pipeline.masks import encode_rle
from stages.discriminator import Scored, weights_file
from stages.examples import fold_of
from stages.ivm_config import IvmConfig
from stages.objectives import HUMAN_SIDE, MACHINE_SIDE

if TYPE_CHECKING:
    from torch import Tensor

    from stages.ivm_encoders import Seen
    from stages.ivm_model import IvmNet
    from stages.ivm_training import Bank, IvmExample, Progress


class IvmDiscriminator:
    """The trained models, one per fold, on encoders that they share. `id` is the model's name and the weights' hash."""

    def __init__(self, id: str, net: "IvmNet", weights: "list[dict[str, Tensor]]") -> None:
        self.id, self.net, self.weights = id, net, weights
        self._fold: int | None = None
        self._seen: tuple[np.ndarray, Seen] | None = None

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> "IvmDiscriminator":
        """What `train_ivm` wrote into this folder; `device` as in an expert's placement.

        Raises:
            InputError: a file or a checkpoint is missing or corrupt, or the device is not there.
        """
        from safetensors.torch import load_file

        from stages.ivm_encoders import Encoders
        from stages.ivm_model import IvmNet

        config, id = _read(folder)
        net = IvmNet(Encoders(config.model_copy(update={"device": device}))).eval()
        weights = [load_file(weights_file(folder, fold)) for fold in range(config.folds)]
        return cls(id, net, weights)

    def score(
        self,
        image: str,
        pixels: np.ndarray,
        asked: Sequence[tuple[str, np.ndarray]],
        rivals: Sequence[np.ndarray] = (),
    ) -> list[Scored]:
        """As `stages.discriminator.Discriminator.score`; `rivals` have no effect, for this model sees the image itself.

        The image is encoded once, by calls in a row with the same `pixels` object too, and each instruction once a
        call.

        Raises:
            OutOfMemory: one image or one batch of masks does not fit into the device's memory.
            DeviceLost: this process cannot go on.
        """
        from experts.model import device_errors

        if not asked:
            return []
        of_text: dict[str, list[int]] = {}
        for k, (text, _) in enumerate(asked):
            of_text.setdefault(text, []).append(k)
        scores = np.zeros((len(asked), 2), dtype=np.float32)
        fold = fold_of(image, len(self.weights))
        with device_errors(self.net.encoders.device):
            if self._fold != fold:
                self.net.set_weights(self.weights[fold])
                self._fold = fold
            if self._seen is None or self._seen[0] is not pixels:
                self._seen = pixels, self.net.encoders.see([pixels])[0]
            for text, rows in of_text.items():
                scores[rows] = self.net.score(self._seen[1], text, [asked[row][1] for row in rows])
        return [Scored(d, quality, fold) for d, quality in scores.tolist()]


def check_ivm(folder: Path) -> str:
    """The id of what `train_ivm` wrote into this folder, without loading an encoder.

    Raises:
        InputError: a file cannot be read, or a checkpoint is missing or not the one that it was trained on.
    """
    config, id = _read(folder)
    pinned = config.pinned()
    for name, was, now in (("sam", config.sam, pinned.sam), ("condition", config.condition, pinned.condition)):
        if was.version != now.version:
            raise InputError(
                f"discriminator.{name}: {was.checkpoint} is now {now.version}, and it was trained on {was.version}; "
                "restore that checkpoint"
            )
    return id


def _read(folder: Path) -> tuple[IvmConfig, str]:
    """The config and the id of the discriminator in this folder, its files of weights looked into."""
    from stages.ivm_model import read_metadata

    config = IvmConfig.model_validate_json((folder / "config.json").read_bytes())
    paths = [weights_file(folder, fold) for fold in range(config.folds)]
    for path in paths:
        read_metadata(path)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths))
    return config, f"{config.model}@{digest.hexdigest()[:12]}"


def train_ivm(
    pairs: "Sequence[IvmExample]",
    pixels: Callable[[str], np.ndarray],
    config: IvmConfig,
    folder: Path,
    saved: Callable[[Path], None] = lambda path: None,
) -> np.ndarray | None:
    """Trains one model per fold on the other folds' images and writes weights and config.json.

    A fold whose weights lie in the folder already, made from the same pairs and config, is not trained again; one
    whose training was interrupted goes on from its last saved state.

    Args:
        pairs: the examples, instructions of absent targets included.
        pixels: an image's name to uint8 RGB (height, width, 3); called once per image.
        config: how; its checkpoints pinned, so that the weights are named for good.
        folder: where to.
        saved: called with each file that is worth keeping should the rest not come about.

    Returns:
        d and quality in [0, 1], float32 (n, 2), of every pair by the model that did not train on its image; or None,
        and nothing is written, where a fold would be left without human or machine masks to train on.

    Raises:
        InputError: a checkpoint cannot be loaded, or not even one item fits into the device's memory.
    """
    folds = np.array([fold_of(pair.image, config.folds) for pair in pairs])
    sides = np.array([pair.side for pair in pairs])
    both = (HUMAN_SIDE, MACHINE_SIDE)
    if not all(np.isin(both, sides[folds != fold]).all() for fold in range(config.folds)):
        return None
    from experts.base import OutOfMemory
    from experts.model import device_errors
    from stages.ivm_encoders import Encoders
    from stages.ivm_training import Bank, Progress

    folder.mkdir(parents=True, exist_ok=True)
    scores = np.zeros((len(pairs), 2), dtype=np.float32)
    encoders, made_from = Encoders(config), _digest(pairs, config)
    try:
        with tempfile.TemporaryDirectory() as files, device_errors(encoders.device):
            bank = Bank(encoders, pairs, pixels, Path(files))
            for fold in range(config.folds):
                path, held = weights_file(folder, fold), folds == fold
                progress = Progress(path.with_suffix(".part"), made_from, saved)
                net = _trained(bank, np.flatnonzero(~held), config.seed + fold, path, progress)
                if held.any():
                    scores[held] = bank.predict(net, np.flatnonzero(held))
    except OutOfMemory as error:
        fix = "lower discriminator.batch and encode_batch, or precision"
        raise InputError(f"the discriminator does not fit into the device's memory; {fix} ({error})") from error
    (folder / "config.json").write_text(config.model_dump_json(indent=1), encoding="utf-8")
    return scores


def _trained(bank: "Bank", rows: np.ndarray, seed: int, path: Path, progress: "Progress") -> "IvmNet":
    """The net of the fold whose file this is: read from there if made from the same, else trained and written."""
    from stages.ivm_model import IvmNet, read_metadata
    from stages.ivm_training import fit

    try:
        made_from = read_metadata(path)["made_from"]
    except InputError:
        # Not there yet, or of the small discriminator that the run had before.
        made_from = ""
    if made_from == progress.made_from:
        progress.remove()
        return IvmNet.load(path, bank.encoders)
    net = fit(bank, rows, seed, progress)
    net.save(path, progress.made_from)
    progress.saved(path)
    progress.remove()
    return net


def _digest(pairs: "Sequence[IvmExample]", config: IvmConfig) -> str:
    """SHA-256 of all that decides the weights, the code and the images' content aside."""
    digest = hashlib.sha256(json.dumps(config.identity(), sort_keys=True).encode())
    for pair in pairs:
        cell = encode_rle(pair.mask) if isinstance(pair.mask, np.ndarray) else pair.mask
        digest.update(repr((pair.image, pair.instruction, pair.side, pair.iou, cell["counts"])).encode())
    return digest.hexdigest()
