"""What experts that run a PyTorch model share: their options, the device, batches that fit, and loading."""

import gc
import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import torch
from transformers.utils import logging

from experts.base import Candidate, DeviceLost, Expert, ExpertOptions, OutOfMemory, Placement, Request, Scene
from experts.checkpoints import UNREADABLE, check_files, commit_of, local_path, weights_id
from pipeline.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


class CheckpointOptions(ExpertOptions):
    """Options of whatever is read from a checkpoint: a local path or a hub id, `owner/name`, of which `revision` is
    the branch, tag or commit."""

    whereabouts: ClassVar[frozenset[str]] = frozenset({"checkpoint", "revision"})

    checkpoint: str
    revision: str = "main"

    def pinned(self) -> Self:
        """Checks local files; makes a hub revision the commit that it is now."""
        path = local_path(self.checkpoint)
        if path is None:
            pinned = self.model_copy(update={"revision": commit_of(self.checkpoint, self.revision)})
            return super(CheckpointOptions, pinned).pinned()
        check_files(path)
        return super().pinned()


class ModelOptions(CheckpointOptions):
    """Options of whatever has weights. `dtype` is that of weights and activations."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


def weights_ids(options: ExpertOptions) -> str:
    """The weights that these options and those nested in them name."""
    models = (part for part in options.parts() if isinstance(part, CheckpointOptions))
    return " + ".join(weights_id(part.checkpoint, part.revision) for part in models)


def pick_device(device: str) -> torch.device:
    """The torch device of a placement's `device`; auto is a GPU where this process is given one, else the CPU.

    Raises:
        InputError: the device is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = "cuda" if there["cuda"] else "cpu"
    if not there[device]:
        raise InputError(f"device {device}: this worker has none; give its pool `gpus`, or say device: auto")
    return torch.device(device)


class MicroBatches:
    """Runs a model over items in batches of at most `size`, halved for good whenever memory runs out."""

    def __init__(self, size: int) -> None:
        self.size = size

    def map(self, forward: Callable[[list[Item]], Sequence[Result]], items: Sequence[Item]) -> list[Result]:
        """`forward` of every batch, which gives one result per item, joined in order.

        Raises:
            OutOfMemory: a batch of one does not fit.
        """
        results: list[Result] = []
        while len(results) < len(items):
            batch = list(items[len(results) : len(results) + self.size])
            try:
                answers = forward(batch)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
            else:
                if len(answers) != len(batch):
                    raise ValueError(f"the model answered {len(answers)} of {len(batch)} items")
                results.extend(answers)
                continue
            # Only here, after the handler, has the failed pass's traceback let go of its tensors.
            free_memory()
            if len(batch) == 1:
                raise OutOfMemory("one item alone does not fit into the device's memory")
            self.size = len(batch) // 2
        return results


def free_memory() -> None:
    """Gives cached blocks of the GPU back, so that other workers on it can have them."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


_CUDA_ERROR_MEMORY_ALLOCATION = 2


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, torch.AcceleratorError)
        and getattr(error, "error_code", None) == _CUDA_ERROR_MEMORY_ALLOCATION
    )


@contextmanager
def device_errors(device: torch.device) -> Iterator[None]:
    """Tells a device that ran out of memory, or is lost to this process, from an error of the model."""
    try:
        yield
    except RuntimeError as error:
        if _is_out_of_memory(error):
            raise OutOfMemory(str(error).splitlines()[0]) from error
        if isinstance(error, torch.AcceleratorError) or _is_lost(device):
            raise DeviceLost(str(error).splitlines()[0]) from error
        raise


def _is_lost(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


class TorchExpert(Expert):
    """An expert with a PyTorch model: a subclass loads it in `__init__` and says in `find` how it is run."""

    device = "cpu or gpu"
    code_version: ClassVar[int] = 1
    """Raised when the code gives other candidates for the same weights."""

    def __init__(self, options: ExpertOptions, placement: Placement | None = None) -> None:
        super().__init__(options, placement)
        self.torch_device = pick_device(self.placement.device)
        self.batches = MicroBatches(self.placement.batch)

    @classmethod
    def version(cls, options: ExpertOptions) -> str:
        return f"{cls.__module__.rpartition('.')[2]}-{cls.code_version} {weights_ids(options)}"

    @abstractmethod
    def find(self, scenes: Sequence[Scene]) -> list[list[list[Candidate]]]:
        """Candidates of each scene's requests; runs without gradients. Each image is encoded once."""

    @property
    def images_at_once(self) -> int:
        return self.batches.size

    def ground(self, image: np.ndarray, requests: Sequence[Request]) -> list[list[Candidate]]:
        return self.ground_batch([Scene(image, requests)])[0]

    def ground_batch(self, scenes: Sequence[Scene]) -> list[list[list[Candidate]]]:
        with device_errors(self.torch_device), torch.inference_mode():
            return self.find(scenes)


def load_pretrained(model_class: Any, options: ModelOptions, device: torch.device, **arguments: Any) -> Any:
    """A transformers model in evaluation mode on its device, from a local folder or the hub's cache.

    Args:
        model_class: has `from_pretrained`.
        arguments: of `from_pretrained`, besides those that the options say.

    Raises:
        InputError: the weights are missing, corrupt, or of another model; naming the checkpoint.
    """
    path = local_path(options.checkpoint)
    # What it would report about the weights is looked at here.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        model, info = model_class.from_pretrained(
            path or options.checkpoint,
            revision=options.revision,
            dtype=options.torch_dtype,
            output_loading_info=True,
            # Else transformers may ask at the terminal whether to run the code that a config.json names.
            trust_remote_code=False,
            **arguments,
        )
    except UNREADABLE as error:
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise InputError(f"checkpoint {options.checkpoint} cannot be loaded: {first[0]}") from error
    # transformers fills what a checkpoint lacks with random numbers and only warns.
    if absent := sorted(info["missing_keys"]):
        raise InputError(
            f"checkpoint {options.checkpoint} is not of {model_class.__name__}: it lacks {len(absent)} weights, "
            f"as {absent[0]}"
        )
    return model.to(device).eval().requires_grad_(False)


def check_model_type(options: CheckpointOptions, found: str | None, known: Collection[str]) -> None:
    """Holds the `model_type` of a checkpoint's config.json against those that an expert can run.

    Raises:
        InputError: it is none of them; names them.
    """
    if found not in known:
        raise InputError(f"checkpoint {options.checkpoint} is of a {found} model; give one of {', '.join(known)}")


def load_processor(processor_class: Any, options: CheckpointOptions, **arguments: Any) -> Any:
    """The processor, tokenizer or image processor that lies with a checkpoint.

    Raises:
        InputError: it is missing or corrupt.
    """
    path = local_path(options.checkpoint)
    try:
        loaded = processor_class.from_pretrained(
            path or options.checkpoint, revision=options.revision, trust_remote_code=False, **arguments
        )
    except (*UNREADABLE, re.error) as error:
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise InputError(
            f"checkpoint {options.checkpoint}: its {processor_class.__name__} cannot be loaded: {first[0]}"
        ) from error
    tokenizer = getattr(loaded, "tokenizer", loaded)
    # Where its files are missing, transformers makes an empty tokenizer that takes every word for unknown.
    if hasattr(tokenizer, "get_vocab") and len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
        raise InputError(f"checkpoint {options.checkpoint}: its tokenizer's vocabulary is missing (tokenizer.json)")
    return loaded
