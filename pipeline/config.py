"""The profile: which experts, stages and workers a run has. One YAML, validated before anything starts."""

from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from experts.base import Expert, ExpertOptions, Placement
from experts.registry import expert_class, missing
from pipeline.errors import InputError, validation_problem
from pipeline.yaml_files import read_yaml, replace_variables
from stages.base import Config
from stages.discriminator import DiscriminatorConfig
from stages.discriminators import AnyDiscriminatorConfig
from stages.fuse import FusionConfig
from stages.ground import Keep
from stages.instruct import InstructConfig
from stages.ivm_config import IvmConfig
from stages.weights import WeightConfig

RESERVED_NAMES = ("human", "fused", "best")
"""What tables and figures call human masks, fused labels and the best candidate; no expert can be named so."""


class Pool(Config):
    """Ray resources of one unit: `workers` processes, each reserving `cpus` and `gpus` (a share of one, or whole ones).

    Up to `max_workers` are started where the cluster has room for more, at once or as it grows.
    """

    workers: int = Field(1, ge=1)
    max_workers: int | None = Field(None, ge=1)
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("a worker has a share of one GPU, or whole ones: give at most 1, or a whole number")
        return gpus

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "Pool":
        if self.max_workers is not None and self.max_workers < self.workers:
            raise ValueError(f"max_workers {self.max_workers} is below workers {self.workers}; raise it or remove it")
        return self


class ExpertEntry(Config):
    """One expert of the mixture. `expert` is its module in `experts/`, by default of the entry's own name.
    `timeout_s`: seconds after which a call of the expert, which takes up to `placement.batch` images, counts as hung
    and its process is ended; null for never. `version` is not a user's to set: `pin_experts` notes there what the
    expert's weights are."""

    expert: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    keep: Keep = Keep()
    pool: Pool = Pool()
    placement: Placement = Placement()
    timeout_s: float | None = Field(1800, gt=0)
    version: str = ""


class Pools(Config):
    """Resources of the units that are not experts."""

    samples: Pool = Pool()
    discriminator: Pool = Pool()
    scores: Pool = Pool()
    labels: Pool = Pool()


class DiscriminatorFrom(Config):
    """Whose discriminator the run has instead of one of its own: the run at `run`, and the discriminator's `id`."""

    run: str
    id: str


class Profile(Config):
    """What `PROFILE=` names. `shard_pairs`: a shard closes at the first image that fills it. `max_reject_share`:
    share of pairs in [0, 1] that may be rejected before the run counts as failed (exit status 1).
    `discriminator_from` is not a user's to set: `annotate --discriminator` notes it there."""

    shard_pairs: int = Field(256, ge=1)
    max_reject_share: float = Field(0.05, ge=0, le=1)
    instruct: InstructConfig = InstructConfig()
    experts: dict[str, ExpertEntry] = Field(min_length=1)
    discriminator: AnyDiscriminatorConfig = DiscriminatorConfig()
    discriminator_from: DiscriminatorFrom | None = None
    weight: WeightConfig = WeightConfig()
    fusion: FusionConfig = FusionConfig()
    pools: Pools = Pools()

    @field_validator("experts")
    @classmethod
    def _name_experts(cls, experts: dict[str, ExpertEntry]) -> dict[str, ExpertEntry]:
        for name in experts:
            if name in RESERVED_NAMES:
                raise ValueError(f"'{name}' means something else in the tables; choose another name")
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"'{name}' becomes a folder name: use letters, digits, '-' and '_'")
        return {name: entry.model_copy(update={"expert": entry.expert or name}) for name, entry in experts.items()}

    def expert_options(self, name: str) -> ExpertOptions:
        """The validated options of one expert of this profile."""
        entry = self.experts[name]
        return expert_class(entry.expert).Options.model_validate(entry.options)


def load_profile(profile: str) -> Profile:
    """A profile by the name of a shipped one (`embedded`) or by the path of a YAML file.

    `${NAME}` is replaced by the environment variable.

    Raises:
        InputError: no such file, not YAML, an unknown key, an unset variable; an expert that is unknown, lacks a
            package or has bad options.
    """
    path, raw = read_yaml("profile", profile)
    try:
        loaded = Profile.model_validate(replace_variables(path, "", raw))
    except ValidationError as error:
        raise InputError(f"{path}: {validation_problem(error)}") from error
    if loaded.discriminator_from:
        raise InputError(f"{path}: unknown key 'discriminator_from'; remove it and say --discriminator RUN")
    if isinstance(loaded.discriminator, IvmConfig) and (pinned := loaded.discriminator.pinned_field):
        raise InputError(f"{path}: unknown key 'discriminator.{pinned}.version'; remove it, the run itself notes it")
    for name in loaded.experts:
        try:
            _check_expert(loaded, name)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return loaded


def pin_experts(profile: Profile) -> Profile:
    """The profile with every expert's weights looked up, checked, and named for good in its options and `version`.

    Done once, before a run: its workers and its later commands then mean the same weights.

    Raises:
        InputError: weights are missing, corrupt, or may not be downloaded; names the expert.
    """
    pinned = {}
    for name, entry in profile.experts.items():
        try:
            options = profile.expert_options(name).pinned()
            version = expert_class(entry.expert).version(options)
        except InputError as error:
            raise InputError(f"expert '{name}': {error}") from error
        pinned[name] = entry.model_copy(update={"options": options.model_dump(mode="json"), "version": version})
    discriminator = profile.discriminator
    if isinstance(discriminator, IvmConfig):
        discriminator = discriminator.pinned()
    return profile.model_copy(update={"experts": pinned, "discriminator": discriminator})


def load_expert(profile: Profile, name: str) -> Expert:
    """The expert of this name in a profile, its weights loaded.

    Raises:
        InputError: they cannot be.
    """
    entry, placement = profile.experts[name], profile.experts[name].placement
    if placement.device == "auto" and not entry.pool.gpus:
        # Ray leaves the GPUs in sight of workers that have reserved none.
        placement = placement.model_copy(update={"device": "cpu"})
    try:
        return expert_class(entry.expert)(profile.expert_options(name), placement)
    except InputError as error:
        raise InputError(f"expert '{name}': {error}") from error


def _check_expert(profile: Profile, name: str) -> None:
    if profile.experts[name].version:
        raise InputError(f"unknown key 'experts.{name}.version'; remove it, the run itself notes it")
    absent = missing(expert_class(profile.experts[name].expert))
    if absent:
        raise InputError(f"expert '{name}' needs {', '.join(absent)}; install it, or remove the expert")
    try:
        profile.expert_options(name)
    except ValidationError as error:
        raise InputError(validation_problem(error, f"experts.{name}.options")) from error
