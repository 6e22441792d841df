"""For trainers: a run's labels as torch datasets, and the DWSL loss.

Example::

    import torch
    from torchvision.transforms.v2.functional import resize
    from pipeline.torch_data import MaskStream, dwsl_loss

    def fit(item):
        return item | {"image": resize(item["image"], [64, 64]), "mask": resize(item["mask"][None], [64, 64])[0]}

    stream, model = MaskStream("runs/demo", transform=fit), torch.nn.Conv2d(3, 1, 9, padding=4)
    optimizer = torch.optim.AdamW(model.parameters())
    for epoch in range(2):
        stream.set_epoch(epoch)
        for batch in torch.utils.data.DataLoader(stream, batch_size=16, num_workers=2):
            optimizer.zero_grad()
            dwsl_loss(model(batch["image"] / 255)[:, 0], batch["mask"], batch["weight"]).backward()
            optimizer.step()
"""

import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from manifests.manifest import Manifest, open_reader
from pipeline.errors import BadImage, InputError
from pipeline.images import decode_image
from pipeline.masks import decode_heatmap, decode_rle
from pipeline.store import RUN_FILE, RunStore, table_file
from pipeline.units import LABELS, SAMPLES
from stages.base import Row

Kind = Literal["human", "machine", "all"]
"""Whose masks: people's, fused experts', or both."""


class Item(TypedDict):
    """One pair. The images of a run differ in size."""

    image: Tensor
    """uint8 (3, height, width), RGB."""
    mask: Tensor
    """float32 (height, width) in [0, 1]: the human mask, 0 or 1, or the fused heatmap."""
    instruction: str
    """One of the pair's wordings, chosen anew every epoch."""
    weight: Tensor
    """float32 (), the DWSL weight; 1 where the run has no discriminator."""
    uuid: str


_DICE_SMOOTHING = 1e-3
_READ_THREADS = 16


class _Pairs:
    """The pairs of a run that have a label mask: where each lies is in memory, the rows are read when asked for.

    Attributes:
        left_out: pairs of this kind without a label mask.
    """

    def __init__(self, run: str, kind: Kind, seed: int, transform: Callable[[Item], Any] | None) -> None:
        if kind not in get_args(Kind):
            raise InputError(f"kind '{kind}' is none of {', '.join(get_args(Kind))}")
        self._store = RunStore(run)
        description = self._store.read_json(RUN_FILE)
        if description is None:
            raise InputError(f"{run}: no run here ({RUN_FILE} is missing); give the OUTPUT of a run")
        self._reader = open_reader(Manifest.model_validate(description["manifest"]))
        self._kind, self._seed, self._transform = kind, seed, transform
        # Shared memory, for a worker process that lives for many epochs must see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        shards = self._committed()
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            found = dict(zip(shards, pool.map(self._find, shards), strict=True))
        self._places = {shard: places for shard, (places, _, _) in found.items() if len(places)}
        self.left_out = sum(left_out for _, left_out, _ in found.values())
        self._pairs = sum(map(len, self._places.values()))
        if unweighted := sum(unweighted for _, _, unweighted in found.values()):
            warnings.warn(f"{run}: {unweighted} labels have no weight (no discriminator); 1 is taken", stacklevel=3)

    def set_epoch(self, epoch: int) -> None:
        """Call before each epoch, as with torch's DistributedSampler: it decides the wordings and the order."""
        self._epoch.fill_(epoch)

    def _committed(self) -> list[int]:
        """Shards whose labels are committed, and were made of the samples that stand beside them."""
        samples = self._store.markers(SAMPLES)
        return [
            shard
            for shard, marker in sorted(self._store.markers(LABELS).items())
            if shard in samples and marker.read.get(SAMPLES) == samples[shard].checksum
        ]

    def _find(self, shard: int) -> tuple[np.ndarray, int, int]:
        """Row numbers, int32, of a shard's labels of this kind with a mask; how many have none, or no weight."""
        table = self._store.read_table(table_file(LABELS, shard), ["kind", "weight", "area"])
        wanted = (table["kind"].to_numpy() == self._kind) | (self._kind == "all")
        masked = wanted & table["area"].is_valid().to_numpy()
        unweighted = masked & table["weight"].is_null().to_numpy()
        return np.flatnonzero(masked).astype(np.int32), int((wanted & ~masked).sum()), int(unweighted.sum())

    def _rows(self, shard: int, places: np.ndarray) -> list[Row]:
        """Those rows of a shard's labels, each with its sample's image and wordings."""
        labels = self._store.read_table(table_file(LABELS, shard), ["uuid", "mask", "heatmap", "weight"])
        samples = self._store.read_table(table_file(SAMPLES, shard), ["uuid", "image", "instructions"])
        of_uuid = {row["uuid"]: row for row in samples.to_pylist()}
        return [row | of_uuid[row["uuid"]] for row in labels.take(places).to_pylist()]

    def _item(self, row: Row) -> Any:
        try:
            pixels = decode_image(self._reader.read(row["image"]))
        except BadImage as error:
            raise BadImage(f"pair {row['uuid']}, image {row['image']}: {error}") from error
        soft = row["heatmap"] is not None
        mask = decode_heatmap(row["heatmap"]) if soft else decode_rle(row["mask"]).astype(np.float32)
        if mask.shape != pixels.shape[:2]:
            raise BadImage(f"pair {row['uuid']}, image {row['image']}: it is not of its mask's size any more")
        choice = random.Random(f"{self._seed} {int(self._epoch)} {row['uuid']}")
        item: Item = {
            "image": torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
            "mask": torch.from_numpy(mask),
            "instruction": choice.choice(row["instructions"]),
            "weight": torch.tensor(1.0 if row["weight"] is None else row["weight"], dtype=torch.float32),
            "uuid": row["uuid"],
        }
        return item if self._transform is None else self._transform(item)


class MaskDataset(_Pairs, Dataset[Any]):
    """The labelled pairs of a run by number, in the run's order, for any torch sampler.

    An item reads its shard's file anew, so random access to a run on object storage is slow: there, take `MaskStream`.
    Its shuffling and its share for each rank are the sampler's, for example torch's DistributedSampler.

    Attributes:
        left_out: pairs of this kind without a label mask.
    """

    def __init__(
        self, run: str, kind: Kind = "all", seed: int = 0, transform: Callable[[Item], Any] | None = None
    ) -> None:
        """
        Args:
            run: the OUTPUT of a run, a local path or a URI. Its committed parts are read, those of now.
            kind: human masks, machine masks, or all.
            seed: of the choice of wordings, not negative.
            transform: what an item becomes; images differ in size, so to make batches something must resize them.

        Raises:
            InputError: there is no run, or no such kind.
        """
        super().__init__(run, kind, seed, transform)
        self._ends = np.cumsum([len(places) for places in self._places.values()])
        self._shards = list(self._places)

    def __len__(self) -> int:
        return self._pairs

    def __getitem__(self, index: int) -> Any:
        """An `Item`, or what `transform` makes of it.

        Raises:
            IndexError: there is no such pair.
            BadImage: the pair's image can no longer be read, or is of another size.
        """
        if not 0 <= index < self._pairs:
            raise IndexError(f"pair {index} of {self._pairs}")
        k = int(np.searchsorted(self._ends, index, side="right"))
        places = self._places[self._shards[k]]
        [row] = self._rows(self._shards[k], places[[index - self._ends[k]]])
        return self._item(row)


class MaskStream(_Pairs, IterableDataset[Any]):
    """The labelled pairs of a run once per epoch, shuffled, each for one rank and one DataLoader worker.

    Shards are taken in a random order, and the pairs in that order cut in equal shares for the ranks, and each share
    among the rank's workers, so that nearly every file is read by one process. What does not divide by the ranks, at
    most ranks - 1 pairs and others every epoch, is left out of the epoch: a rank with one batch more would wait for the
    others for ever. With more workers than one, each ends with a batch of its own that may be smaller.

    On object storage give the DataLoader `multiprocessing_context="spawn"`: open connections do not survive a fork.

    Attributes:
        left_out: pairs of this kind without a label mask.
    """

    def __init__(
        self,
        run: str,
        kind: Kind = "all",
        seed: int = 0,
        transform: Callable[[Item], Any] | None = None,
        buffer: int = 256,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        """
        Args:
            run: the OUTPUT of a run, a local path or a URI. Its committed parts are read, those of now: all ranks must
                see the same, so let the run end first.
            kind: human masks, machine masks, or all.
            seed: of the order and of the choice of wordings, not negative; the same for all ranks.
            transform: what an item becomes; images differ in size, so to make batches something must resize them.
            buffer: rows, without their images, among which the next one is drawn; 0 keeps the run's order.
            num_replicas: how many ranks there are; by default as torch.distributed says now, else 1.
            rank: this process's, from 0; by default as torch.distributed says now, else 0.

        Raises:
            InputError: there is no run or kind, or `rank` is not below `num_replicas`.
        """
        super().__init__(run, kind, seed, transform)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if num_replicas is None:
            num_replicas = torch.distributed.get_world_size() if distributed else 1
        if rank is None:
            rank = torch.distributed.get_rank() if distributed else 0
        if not 0 <= rank < num_replicas:
            raise InputError(f"rank {rank} of {num_replicas} ranks: ranks are numbered from 0")
        self._buffer, self._ranks, self._rank = buffer, num_replicas, rank

    def __len__(self) -> int:
        """Pairs of this rank in an epoch, the same for every rank."""
        return self._pairs // self._ranks

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        first, share = self._rank * len(self), len(self)
        low, high = (first + share * k // workers for k in (number, number + 1))
        mixing = np.random.default_rng([self._seed, int(self._epoch), low])
        yield from map(self._item, _mixed(self._between(low, high), self._buffer, mixing))

    def _between(self, low: int, high: int) -> Iterator[Row]:
        """Rows low to high of the epoch, in the order of it that all ranks agree on."""
        order = np.random.default_rng([self._seed, int(self._epoch)])
        shards = list(self._places)
        start = 0
        for shard in order.permutation(shards).tolist() if self._buffer else shards:
            places = self._places[shard]
            if self._buffer:
                places = order.permutation(places)
            part = places[max(low - start, 0) : max(high - start, 0)]
            start += len(places)
            if len(part):
                yield from self._rows(shard, part)


def _mixed(rows: Iterable[Row], size: int, order: np.random.Generator) -> Iterator[Row]:
    """Rows in a random order, as far as holding back `size` of them makes it one."""
    held: list[Row] = []
    for row in rows:
        held.append(row)
        if len(held) > size:
            k = int(order.integers(len(held)))
            held[k], held[-1] = held[-1], held[k]
            yield held.pop()
    yield from (held[k] for k in order.permutation(len(held)))


def dwsl_loss(logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Discriminator Weighted Supervised Learning's loss: weight · (BCE + dice) per sample, the mean over the batch.

    As in the authors' code (arXiv 2405.19783, section 4; github.com/2toinf/IVM, model/LISA.py and model/IVM.py): the
    binary cross-entropy is the mean over a sample's pixels; dice is 1 - (2 Σ p·m + s) / (Σ p + Σ m + s) of the
    probabilities p and the soft mask m, with s = 0.001 (there 1e-6, on sums divided by 1000); the mean is over the
    number of samples, not over the sum of weights, so a batch of bad masks moves the model less. Computed in float32
    at least.

    Args:
        logits: float tensor (n, height, width), or of any further shape (n, …), of the predicted mask.
        mask: float tensor of the same shape in [0, 1].
        weight: float tensor (n,), not negative; it gets no gradient.

    Returns:
        A tensor (). Samples of weight 0 have no gradient.

    Raises:
        ValueError: the shapes do not fit: nothing is broadcast silently.
    """
    if mask.shape != logits.shape or weight.shape != logits.shape[:1]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (logits, mask, weight))
        raise ValueError(f"logits, mask and weight have shapes {shapes}, not (n, …), (n, …) and (n,)")
    # Half precision cannot hold the sums over a large mask.
    precision = torch.promote_types(logits.dtype, torch.float32)
    logits, mask = (tensor.to(precision).flatten(1) for tensor in (logits, mask))
    entropy = F.binary_cross_entropy_with_logits(logits, mask, reduction="none").mean(dim=1)
    found = logits.sigmoid()
    overlap, total = (found * mask).sum(dim=1), found.sum(dim=1) + mask.sum(dim=1)
    dice = 1 - (2 * overlap + _DICE_SMOOTHING) / (total + _DICE_SMOOTHING)
    return (weight.detach().to(precision) * (entropy + dice)).mean()
