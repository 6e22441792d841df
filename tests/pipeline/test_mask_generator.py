import numpy as np
import torch

from pipeline.mask_generator import SIDE, Pairs, Scenes, fit, mean_iou


def _halves(count: int, seed: int) -> tuple[Scenes, Pairs]:
    """Noisy grey images of which the left or the right half is asked for."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(90, 160, (90, 120, 3), dtype=np.uint8) for _ in range(count)]
    places = [k % 2 for k in range(count)]
    masks = [np.repeat(np.arange(120)[None] // 60 == place, 90, axis=0) for place in places]
    return Scenes.of(images), Pairs.of(list(range(count)), [f"the {('left', 'right')[k]} half" for k in places], masks)


def test_it_learns_what_words_ask_for_and_answers_on_unseen_images() -> None:
    scenes, pairs = _halves(16, 0)
    net = fit(scenes, pairs, torch.ones(16), steps=150, seed=0)
    assert mean_iou(net, *_halves(6, 1)) > 0.7
    assert net(scenes, pairs).shape == (16, SIDE * SIDE)


def test_what_has_a_small_weight_teaches_little() -> None:
    scenes, pairs = _halves(16, 0)
    wrong = Pairs(pairs.scene, pairs.words, pairs.colours, 1 - pairs.masks)
    both = Pairs(*(torch.cat(parts) for parts in zip(vars(pairs).values(), vars(wrong).values(), strict=True)))
    for right, expected in ((1.0, True), (0.02, False)):
        weights = torch.cat([torch.full((16,), right), torch.full((16,), 1.02 - right)])
        assert (mean_iou(fit(scenes, both, weights, steps=150, seed=0), *_halves(6, 1)) > 0.5) == expected


def test_the_same_seed_gives_the_same_generator() -> None:
    scenes, pairs = _halves(8, 0)
    first, again, other = (fit(scenes, pairs, torch.ones(8), steps=5, seed=seed)(scenes, pairs) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
