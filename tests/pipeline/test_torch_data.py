import io
import multiprocessing
import pickle
import textwrap
import warnings
from collections import Counter

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from manifests.manifest import load_manifest
from pipeline import torch_data
from pipeline.errors import BadImage, InputError
from pipeline.masks import encode_heatmap, encode_rle
from pipeline.schemas import LABELS, SAMPLES, to_table
from pipeline.store import Marker, RunStore, marker_file, table_file
from pipeline.torch_data import MaskDataset, MaskStream
from tests.conftest import Dataset, make_drawn

SHARDS = (9, 14, 1, 11)
"""Pairs per shard. Every fifth pair has no mask, every second of the others a human one."""
PAIRS = sum(SHARDS)


def kind_of(number):
    return "human" if number % 2 else "machine"


def mask_of(number):
    mask = np.zeros((90, 120), dtype=bool)
    mask[number : number + 20, 10:50] = True
    return mask


def heatmap_of(number):
    return encode_heatmap(np.linspace(0, 1, 90 * 120).reshape(90, 120) * (number + 1) / PAIRS)


def sample_row(number):
    image, wordings = f"{number % 12:02d}.png", [f"wording {k} of {number}" for k in range(6)]
    return dict.fromkeys(SAMPLES.names) | {"uuid": f"u{number:02d}", "image": image, "instructions": wordings}


def label_row(number, weight=True):
    row = dict.fromkeys(LABELS.names) | {"uuid": f"u{number:02d}", "kind": kind_of(number), "weight": 0.0}
    if number % 5:
        row |= {"mask": encode_rle(mask_of(number)), "area": 0.1, "weight": number / PAIRS if weight else None}
        if row["kind"] == "machine":
            row["heatmap"] = heatmap_of(number)
    return row


def commit(store, shard, samples, labels):
    """Both tables of a shard; the samples lie in another order than the labels."""
    files = {}
    for unit, rows, schema in (("samples", samples[::-1], SAMPLES), ("labels", labels, LABELS)):
        name = table_file(unit, shard)
        files[unit] = Marker(
            unit=unit, shard=shard, fingerprint="f", sha256={name: store.write_table(name, to_table(rows, schema))}
        )
    files["labels"].read = {"samples": files["samples"].checksum}
    for unit, marker in files.items():
        store.write(marker_file(unit, shard), marker.model_dump_json().encode())


def make_run(folder, dataset, weight=True):
    store = RunStore(str(folder))
    store.write_json("run.json", {"manifest": load_manifest(dataset.manifest).model_dump(mode="json")})
    numbers = iter(range(PAIRS))
    for shard, pairs in enumerate(SHARDS):
        part = [next(numbers) for _ in range(pairs)]
        commit(store, shard, [sample_row(k) for k in part], [label_row(k, weight) for k in part])
    return store.output


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_drawn(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def run(shared, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run", shared)


MASKED = [f"u{k:02d}" for k in range(PAIRS) if k % 5]


def uuids(items):
    return [item["uuid"] for item in items]


def take_uuids(item):
    return item["uuid"]


def test_an_item_has_the_pairs_image_mask_wording_and_weight(run, shared):
    items = {item["uuid"]: item for item in map(MaskDataset(run).__getitem__, range(len(MASKED)))}
    assert sorted(items) == MASKED
    for number in (1, 2):
        item = items[f"u{number:02d}"]
        pixels = np.asarray(Image.open(shared.folder / "images" / f"{number:02d}.png"))
        assert (item["image"].numpy() == pixels.transpose(2, 0, 1)).all() and item["image"].dtype == torch.uint8
        assert item["instruction"] in sample_row(number)["instructions"]
        assert item["weight"] == np.float32(number / PAIRS) and item["weight"].dtype == torch.float32
        assert item["mask"].dtype == torch.float32
    assert (items["u01"]["mask"].numpy() == mask_of(1)).all()
    grey = np.asarray(Image.open(io.BytesIO(heatmap_of(2))))
    assert (items["u02"]["mask"].numpy() == grey.astype(np.float32) / 255).all()


@pytest.mark.parametrize("dataset", [MaskDataset, MaskStream])
@pytest.mark.parametrize("kind", ["human", "machine", "all"])
def test_pairs_of_the_kind_without_a_mask_are_left_out_and_counted(run, dataset, kind):
    pairs = dataset(run, kind)
    of_kind = [k for k in range(PAIRS) if kind in (kind_of(k), "all")]
    assert sorted(uuids(pairs)) == [f"u{k:02d}" for k in of_kind if k % 5]
    assert (len(pairs), pairs.left_out) == (sum(k % 5 > 0 for k in of_kind), sum(k % 5 == 0 for k in of_kind))


def test_a_local_uri_and_a_pickled_copy_give_the_same_items(run):
    stream = MaskStream(f"file://{run}")
    assert uuids(pickle.loads(pickle.dumps(stream))) == uuids(stream) == uuids(MaskStream(run))


def test_parts_that_are_not_committed_or_of_other_samples_are_not_read(shared, tmp_path):
    store = RunStore(make_run(tmp_path / "run", shared))
    store.delete([marker_file("labels", 0)])
    commit(store, 1, [sample_row(9)], [label_row(9)])
    stale = store.read_json(marker_file("labels", 3)) | {"read": {"samples": "of before"}}
    store.write_json(marker_file("labels", 3), stale)
    assert uuids(MaskStream(store.output, buffer=0)) == ["u09", "u23"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_and_workers_share_an_epoch_equally_without_loss_or_double(run, ranks, workers):
    seen, counts, batches = [], set(), set()
    for rank in range(ranks):
        stream = MaskStream(run, transform=take_uuids, num_replicas=ranks, rank=rank)
        got = list(DataLoader(stream, batch_size=4, num_workers=workers))
        seen += [uuid for batch in got for uuid in batch]
        counts.add(sum(map(len, got)))
        batches.add(len(got))
        assert sum(map(len, got)) == len(stream)
    assert max(Counter(seen).values()) == 1
    assert len(seen) == len(MASKED) - len(MASKED) % ranks and set(seen) <= set(MASKED)
    assert len(counts) == len(batches) == 1


def test_what_does_not_divide_by_the_ranks_comes_in_other_epochs(run):
    assert len(MASKED) % 3
    streams = [MaskStream(run, transform=take_uuids, num_replicas=3, rank=rank) for rank in range(3)]
    missed = []
    for epoch in range(6):
        for stream in streams:
            stream.set_epoch(epoch)
        missed.append(frozenset(MASKED) - {uuid for stream in streams for uuid in stream})
    assert {len(one) for one in missed} == {len(MASKED) % 3}
    assert not frozenset.intersection(*missed)


def of_rank(run, meeting, rank):
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    return uuids(MaskStream(run))


def test_ranks_are_those_of_torch_distributed(run, tmp_path):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.starmap(of_rank, [(run, tmp_path / "meeting", rank) for rank in range(2)], chunksize=1)
    assert sorted(first + second) == MASKED and len(first) == len(second)


def test_every_epoch_has_its_own_order_and_the_same_seed_the_same(run):
    def order(seed, epoch):
        stream = MaskStream(run, seed=seed, transform=take_uuids, buffer=8)
        stream.set_epoch(epoch)
        return tuple(stream)

    assert order(0, 0) == order(0, 0)
    assert len({order(0, 0), order(0, 1), order(1, 0), tuple(MASKED)}) == 4


def test_without_a_buffer_the_stream_keeps_the_runs_order(run):
    assert uuids(MaskStream(run, buffer=0)) == uuids(MaskDataset(run)) == MASKED


def test_a_pairs_wording_changes_with_the_epoch_and_not_with_who_reads_it(run):
    def wordings(pairs, epoch):
        pairs.set_epoch(epoch)
        return {item["uuid"]: item["instruction"] for item in pairs}

    first, second = (wordings(MaskDataset(run), epoch) for epoch in (0, 1))
    assert first == wordings(MaskStream(run), 0) != wordings(MaskStream(run, seed=1), 0)
    # One of six: a sixth of the pairs keeps its wording.
    assert 0.6 < np.mean([first[uuid] != second[uuid] for uuid in MASKED]) < 1
    assert len({text.split()[1] for text in first.values()}) == 6


def test_workers_that_live_on_see_the_next_epoch(run):
    stream = MaskStream(run, transform=take_uuids)
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True)
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        orders.append(list(loader))
    assert orders[0] == orders[2] != orders[1]


def test_items_of_one_size_make_batches(run):
    batch = next(iter(DataLoader(MaskDataset(run), batch_size=5, shuffle=True)))
    assert batch["image"].shape == (5, 3, 90, 120) and batch["image"].dtype == torch.uint8
    assert batch["mask"].shape == (5, 90, 120) and batch["mask"].dtype == torch.float32
    assert batch["weight"].shape == (5,) and batch["weight"].dtype == torch.float32


def test_without_a_discriminator_labels_weigh_1_and_a_warning_says_so(shared, tmp_path):
    output = make_run(tmp_path / "run", shared, weight=False)
    with pytest.warns(UserWarning, match=f"{len(MASKED)} labels have no weight"):
        pairs = MaskDataset(output)
    assert {float(item["weight"]) for item in pairs} == {1.0}


def test_a_run_with_weights_gives_no_warning(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        list(MaskStream(run))


def test_an_image_that_is_gone_or_of_another_size_is_named_with_its_pair(drawn, tmp_path):
    output = make_run(tmp_path / "run", drawn)
    (drawn.folder / "images" / "01.png").unlink()
    Image.new("RGB", (10, 10)).save(drawn.folder / "images" / "02.png")
    with pytest.raises(BadImage, match=r"pair u01, image 01\.png"):
        MaskDataset(output)[0]
    with pytest.raises(BadImage, match=r"pair u02, image 02\.png: .* size"):
        MaskDataset(output)[1]


def test_what_is_not_there_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="no run here"):
        MaskDataset(str(tmp_path))
    with pytest.raises(InputError, match="kind 'humans' is none of human, machine, all"):
        MaskStream(run, kind="humans")
    with pytest.raises(InputError, match="rank 2 of 2"):
        MaskStream(run, num_replicas=2, rank=2)
    for index in (-1, len(MASKED)):
        with pytest.raises(IndexError):
            MaskDataset(run)[index]


def test_the_stream_holds_a_small_part_of_the_labels_in_memory(shared, tmp_path):
    noise = np.random.default_rng(0).random((90, 120))
    store = RunStore(make_run(tmp_path / "run", shared))
    # A megabyte behind each PNG's end, which no decoder reads: 200 MB of labels that Parquet cannot make smaller.
    for shard in range(len(SHARDS), len(SHARDS) + 25):
        rng = np.random.default_rng(shard)
        row = label_row(2) | {"heatmap": encode_heatmap(noise) + rng.bytes(1_000_000)}
        commit(store, shard, [sample_row(2)], [row] * 8)
    stream = MaskStream(store.output, transform=take_uuids, buffer=8)
    process, peak = psutil.Process(), 0
    before = process.memory_info().rss
    for _ in stream:
        peak = max(peak, process.memory_info().rss - before)
    assert len(stream) == len(MASKED) + 200
    assert peak < 100e6


def test_the_example_in_the_module_runs(run, monkeypatch):
    code = textwrap.dedent(torch_data.__doc__.partition("Example::")[2])
    assert '"runs/demo"' in code
    scope = {}
    exec(code.replace("runs/demo", run), scope)
    assert scope["model"].weight.grad.abs().sum() > 0
