"""`ivm-mix ablation`: does weighting pay? A small mask generator, trained on a demo run's labels by each weighting."""

import os
from dataclasses import dataclass
from functools import cache, partial
from typing import get_args

import numpy as np
import pandas as pd
import ray
import torch

from manifests.demo_scenes.instructions import write_instructions
from manifests.demo_scenes.layout import plan_scene
from manifests.demo_scenes.render import render
from manifests.manifest import open_reader
from manifests.readers.demo import Options
from pipeline.errors import InputError
from pipeline.frames import read
from pipeline.images import decode_image
from pipeline.mask_generator import Pairs, Scenes, fit, mean_iou
from pipeline.masks import decode_heatmap, decode_rle, mask_iou
from pipeline.parts import RunSpec
from pipeline.schemas import LABELLED
from pipeline.status import open_run
from pipeline.store import RunStore
from pipeline.train import gather
from pipeline.unit_workers import load_discriminator
from stages.base import Row, group_by
from stages.comparison import naive_d
from stages.discriminator import DiscriminatorConfig
from stages.examples import OWN, Example, training_pairs
from stages.measures import View
from stages.weights import Rule, WeightConfig

ABLATION = "ablation.json"
STEPS, SEEDS = 400, 5
UNSEEN = 80
"""Scenes of another seed on which the generators are compared."""


@dataclass(frozen=True, eq=False)
class _Learned:
    """One label: `mask` bool and `soft` float32 in [0, 1], (height, width); `iou` of the mask with the exact one."""

    image: str
    instruction: str
    human: bool
    mask: np.ndarray
    soft: np.ndarray
    iou: float


def ablation(run: str, steps: int = STEPS, seeds: int = SEEDS, unseen: int = UNSEEN) -> None:
    """Prints mean and spread of the IoU on unseen scenes by what the generator learned from, and writes it to the run.

    Every variant gets the same number of steps and the same seeds, whatever its labels.

    Args:
        run: a finished run of the demo, whose exact masks are known for unlabelled pairs too.
        steps: training steps of each generator.
        seeds: generators per variant, two or more.
        unseen: scenes to compare on.

    Raises:
        InputError: there is no run, it is not of the demo, or it has no discriminator or no labels of both kinds.
    """
    spec, store = open_run(run)
    if spec.manifest.reader != "demo":
        raise InputError(f"{run}: the ablation needs a run of the demo, whose exact masks are known for every pair")
    seed = Options.model_validate(spec.manifest.options).seed
    labels = _labels(store, seed)
    if {label.human for label in labels} != {True, False}:
        raise InputError(f"{run}: no labels of both kinds yet; let 'annotate' finish a run of the demo first")
    weights = _weights(spec, store, labels)
    scenes, pairs = _learned(spec, labels)
    test = _unseen(seed + 1, unseen)
    ious = _trained(scenes, pairs, weights, test, steps, seeds)
    rows = [
        {
            "learned from": name,
            "labels": int((weights[name] > 0).sum()),
            "mean IoU": float(np.mean(ious[name])),
            "std": float(np.std(ious[name], ddof=1)),
        }
        for name in weights
    ]
    true = float(np.mean([label.iou for label in labels if not label.human]))
    asked = len(test[1].scene)
    store.write_json(
        ABLATION,
        {
            "steps": steps,
            "unseen_pairs": asked,
            "machine_labels_true_iou": true,
            "variants": [row | {"ious": ious[str(row["learned from"])]} for row in rows],
        },
    )
    print(f"a mask generator on {asked} pairs of {unseen} unseen scenes, {seeds} seeds, {steps} steps each;")
    print(f"the machine labels' own true mean IoU is {true:.3f}:")
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    print(f"\n{store.output}/{ABLATION}")


def _labels(store: RunStore, seed: int) -> list[_Learned]:
    """The generated scenes' labels that have a mask, image by image."""
    samples: dict[str, Row] = {str(row["uuid"]): row for row in _rows(store, "samples")}
    found, exact = [], cache(partial(_exact_masks, seed))
    for row in _rows(store, "labels"):
        sample = samples[row["uuid"]]
        if row["mask"] is None or not sample["image"].startswith("scene-"):
            continue
        mask, human = decode_rle(row["mask"]), row["kind"] == "human"
        soft = mask.astype(np.float32) if row["heatmap"] is None else decode_heatmap(row["heatmap"])
        iou = 1.0 if human else mask_iou(mask, exact(sample["image"])[sample["instruction"]])
        found.append(_Learned(sample["image"], sample["instruction"], human, mask, soft, iou))
    return found


def _rows(store: RunStore, table: str) -> list[Row]:
    return [{str(name): value for name, value in row.items()} for row in read(store.output, table).to_dict("records")]


def _exact_masks(seed: int, image: str) -> dict[str, np.ndarray]:
    scene = plan_scene(seed, int(image.removeprefix("scene-").removesuffix(".png")))
    return {ask.text: scene.mask(ask.targets) for ask in write_instructions(scene)}


def _learned(spec: RunSpec, labels: list[_Learned]) -> tuple[Scenes, Pairs]:
    reader = open_reader(spec.manifest)
    images = {image: k for k, image in enumerate(dict.fromkeys(label.image for label in labels))}
    scenes = Scenes.of([decode_image(reader.read(image)) for image in images])
    places = [images[label.image] for label in labels]
    return scenes, Pairs.of(places, [label.instruction for label in labels], [label.soft for label in labels])


def _unseen(seed: int, scenes: int) -> tuple[Scenes, Pairs]:
    planned = [plan_scene(seed, index) for index in range(scenes)]
    asks = [(k, ask) for k, scene in enumerate(planned) for ask in write_instructions(scene)]
    masks = [planned[k].mask(ask.targets) for k, ask in asks]
    return (
        Scenes.of([render(scene) for scene in planned]),
        Pairs.of([k for k, _ in asks], [ask.text for _, ask in asks], masks),
    )


def _weights(spec: RunSpec, store: RunStore, labels: list[_Learned]) -> dict[str, np.ndarray]:
    """Weight of each label, float32 (n,), by variant."""
    discriminator = load_discriminator(store, spec.profile.pools.scores)
    if discriminator is None:
        raise InputError(f"{store.output}: no discriminator was trained, so there are no weights to compare")
    read_image = open_reader(spec.manifest).read
    of_uuid = group_by(_rows(store, "candidates"), "uuid")
    pairs = group_by(_rows(store, "samples"), "image")
    groups: dict[str, list[int]] = {}
    for k, label in enumerate(labels):
        groups.setdefault(label.image, []).append(k)
    scores, asked = np.zeros((len(labels), 2)), {}
    for image, members in groups.items():
        pixels = decode_image(read_image(image))
        rivals = [decode_rle(row["mask"]) for pair in pairs[image] for row in of_uuid.get(pair["uuid"], [])]
        texts = [(labels[k].instruction, labels[k].mask) for k in members]
        scores[members] = [(one.d, one.quality) for one in discriminator.score(image, pixels, texts, rivals)]
        view = View(pixels)
        for k, (text, mask) in zip(members, texts, strict=True):
            asked[k] = Example(image, "", text, "label", False, OWN, view.measure(mask), 0.0)
    human = np.array([label.human for label in labels])
    weights = {"human only": human, "machine only": ~human, "both, unweighted": np.ones(len(labels))}
    small = spec.profile.discriminator
    asked_all = [asked[k] for k in range(len(labels))]
    naive = naive_d(_examples(spec, store), asked_all, small) if isinstance(small, DiscriminatorConfig) else None
    if naive is not None:
        weights["both, naive discriminator, clip"] = np.array([WeightConfig().weight(d, 0.0) for d in naive.tolist()])
    for rule in get_args(Rule):
        config = WeightConfig.model_validate(spec.profile.weight.model_dump() | {"rule": rule})
        weights[f"both, ours, {rule}"] = np.array([config.weight(d, quality) for d, quality in scores.tolist()])
    weights["both, true IoU (ceiling)"] = np.array([label.iou for label in labels])
    return {name: values.astype(np.float32) for name, values in weights.items()}


def _examples(spec: RunSpec, store: RunStore) -> list[Example]:
    labelled = [row["uuid"] for row in _rows(store, "samples") if row["branch"] == LABELLED]
    pairs = training_pairs(labelled, spec.profile.discriminator.max_pairs)
    return gather(spec, pairs, range(len(spec.plan.shards)))


def _trained(
    scenes: Scenes, pairs: Pairs, weights: dict[str, np.ndarray], test: tuple[Scenes, Pairs], steps: int, seeds: int
) -> dict[str, list[float]]:
    """IoU on the unseen pairs by variant and seed."""
    ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
    try:
        task = ray.remote(num_cpus=1)(_train_one)
        learned, asked = ray.put((scenes, pairs)), ray.put(test)
        running = {
            name: [task.remote(learned, asked, values, steps, seed) for seed in range(seeds)]
            for name, values in weights.items()
        }
        return {name: ray.get(futures) for name, futures in running.items()}
    finally:
        ray.shutdown()


def _train_one(
    learned: tuple[Scenes, Pairs], test: tuple[Scenes, Pairs], weights: np.ndarray, steps: int, seed: int
) -> float:
    scenes, pairs = learned
    torch.set_num_threads(1)
    # Batches of labels that count for nothing would be steps that teach nothing.
    rows = torch.from_numpy(np.flatnonzero(weights > 0))
    net = fit(scenes, pairs.take(rows), torch.from_numpy(weights.copy())[rows], steps, seed)
    return mean_iou(net, *test)
