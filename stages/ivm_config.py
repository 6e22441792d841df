"""How the discriminator `ivm` is made and trained. Importing this loads no model library."""

from typing import Any, Literal, Self

from pydantic import Field

from pipeline.errors import InputError
from stages.base import Config


class Checkpoint(Config):
    """A frozen model: a local folder or a hub id, `owner/name`, of which `revision` is the branch, tag or commit.

    `version` is not a user's to set: `pinned` notes there what the weights are.
    """

    checkpoint: str = Field(min_length=1)
    revision: str = "main"
    version: str = ""

    def pinned(self) -> Self:
        """Checks local files; makes a hub revision the commit that it is now; notes the weights' version.

        Raises:
            InputError: the checkpoint does not exist, is corrupt, or may not be downloaded.
        """
        from experts.checkpoints import weights_id
        from experts.model import CheckpointOptions

        revision = CheckpointOptions(checkpoint=self.checkpoint, revision=self.revision).pinned().revision
        return self.model_copy(update={"revision": revision, "version": weights_id(self.checkpoint, revision)})


class IvmConfig(Config):
    """The paper's discriminator (arXiv 2405.19783, section 4) on frozen encoders. Scores are out-of-fold.

    `sam`: a SAM checkpoint of transformers. `condition`: a CLIP or LLaVA checkpoint, told by its config.json.
    `lora_rank`: of LoRA on LLaVA's language model; 0 leaves it frozen and lets its states be computed once.
    `precision`: of the frozen encoders and of autocast; trained weights are float32. `batch`: masks per training step;
    `encode_batch`: images, or image-instruction pairs, that an encoder takes at once. `save_every`: steps between
    saved states. `objective` and `prior`: of d, see `stages.objectives`; `max_pairs`: most labelled pairs to train on.
    """

    model: Literal["ivm"] = "ivm"
    sam: Checkpoint
    condition: Checkpoint
    lora_rank: int = Field(0, ge=0, le=256)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = Field("auto", pattern="^(auto|cpu|cuda|mps)$")
    encode_batch: int = Field(4, ge=1)
    batch: int = Field(16, ge=1)
    epochs: int = Field(10, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    save_every: int = Field(500, ge=1)
    objective: Literal["graded", "pn", "nnpu"] = "graded"
    prior: float | None = Field(None, gt=0, lt=1)
    folds: int = Field(5, ge=2, le=20)
    max_pairs: int = Field(3000, ge=1)
    seed: int = 0

    @property
    def pinned_field(self) -> str:
        """The first checkpoint with a version, `sam` or `condition`; empty where none has one."""
        return next((name for name in ("sam", "condition") if getattr(self, name).version), "")

    def identity(self) -> dict[str, Any]:
        """What decides the weights, as JSON values; not where the checkpoints lie nor on what it runs."""
        chosen = self.model_dump(mode="json", exclude={"device", "encode_batch", "save_every", "sam", "condition"})
        return chosen | {"sam": self.sam.version, "condition": self.condition.version}

    def pinned(self) -> Self:
        """This with both checkpoints pinned.

        Raises:
            InputError: as `Checkpoint.pinned`, naming the field.
        """
        pinned = {}
        for name, checkpoint in (("sam", self.sam), ("condition", self.condition)):
            try:
                pinned[name] = checkpoint.pinned()
            except InputError as error:
                raise InputError(f"discriminator.{name}: {error}") from error
        return self.model_copy(update=pinned)
