"""Either discriminator, the small one or `ivm`: its config in a profile, its training, what scores with it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import BeforeValidator, SerializeAsAny

from stages.base import Config
from stages.discriminator import Discriminator, DiscriminatorConfig, Scored, side_of, train
from stages.examples import Example, absences
from stages.ivm_config import IvmConfig


def _by_model(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kinds: dict[Any, type[Config]] = {"small": DiscriminatorConfig, "ivm": IvmConfig}
    model = value.get("model", "small")
    if not isinstance(model, str) or model not in kinds:
        raise ValueError(f"model '{model}': give small or ivm")
    return kinds[model].model_validate(value)


AnyDiscriminatorConfig = Annotated[SerializeAsAny[DiscriminatorConfig | IvmConfig], BeforeValidator(_by_model)]
"""Field type for the config of whichever discriminator the profile names."""


class Scorer(Protocol):
    """What Score and Label ask, whichever model it is; see `stages.discriminator.Discriminator.score`."""

    id: str

    def score(
        self,
        image: str,
        pixels: np.ndarray,
        asked: Sequence[tuple[str, np.ndarray]],
        rivals: Sequence[np.ndarray] = (),
    ) -> list[Scored]: ...


def load_discriminator(folder: Path, device: str) -> Scorer:
    """The discriminator, of whichever model, that was trained into this folder; `device` is where ivm runs.

    Raises:
        InputError: as `stages.ivm_discriminator.IvmDiscriminator.load`.
    """
    if _is_small(folder):
        return Discriminator.load(folder)
    from stages.ivm_discriminator import IvmDiscriminator

    return IvmDiscriminator.load(folder, device)


def check_discriminator(folder: Path) -> str:
    """The id of the discriminator in this folder; ivm's encoders are looked for and not loaded.

    Raises:
        InputError: ivm's weights cannot be read, or a checkpoint is missing or not the one that it was trained on.
    """
    if _is_small(folder):
        return Discriminator.load(folder).id
    from stages.ivm_discriminator import check_ivm

    return check_ivm(folder)


def _is_small(folder: Path) -> bool:
    return json.loads((folder / "config.json").read_bytes())["model"] == "small"


def train_any(
    found: Sequence[Example],
    pixels: Callable[[str], np.ndarray],
    config: DiscriminatorConfig | IvmConfig,
    folder: Path,
    finished: Callable[[Path], None] = lambda path: None,
) -> dict[str, Any] | None:
    """As `stages.discriminator.train`, for either model.

    Args:
        found: examples of `stages.examples.examples`; instructions of absent targets are added here.
        pixels: an image's name to uint8 RGB (height, width, 3), which ivm needs.
        config: how.
        folder: where to.
        finished: called with each file worth keeping should the rest not come about.

    Raises:
        InputError: as `stages.ivm_discriminator.train_ivm`.
    """
    if isinstance(config, DiscriminatorConfig):
        return train(found, config, folder, finished)
    from stages.calibration import metrics
    from stages.ivm_discriminator import train_ivm
    from stages.ivm_training import IvmExample

    found = [*found, *absences(found, config.folds, config.seed)]
    pairs = [IvmExample(one.image, one.instruction, one.cell, side_of(one), one.iou) for one in found]
    scores = train_ivm(pairs, pixels, config, folder, finished)
    if scores is None:
        return None
    figures = metrics(found, scores, config.folds)
    (folder / "metrics.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return figures
