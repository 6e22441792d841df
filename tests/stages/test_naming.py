import numpy as np

from stages.naming import Namer


def _masks(per_noun: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Figures of three nouns, told apart by one of ten figures."""
    rng = np.random.default_rng(seed)
    nouns = ["cup", "fork", "plate"] * per_noun
    figures = rng.normal(size=(len(nouns), 10))
    figures[:, 1] += np.tile([-3.0, 0.0, 3.0], per_noun)
    return figures.astype(np.float32), nouns


def test_new_masks_are_named() -> None:
    namer = Namer.learn(*_masks(100, 0))
    figures, nouns = _masks(50, 1)
    named = [namer.nouns[k] for k in namer.names(figures).argmax(axis=1)]
    assert np.mean([a == b for a, b in zip(named, nouns, strict=True)]) > 0.8


def test_names_are_log_probabilities_of_the_nouns_learned() -> None:
    namer = Namer.learn(*_masks(20, 0))
    names = namer.names(_masks(5, 1)[0])
    assert namer.nouns == ("cup", "fork", "plate")
    assert np.allclose(np.exp(names).sum(axis=1), 1, atol=1e-5)
    assert names.dtype == np.float32


def test_rare_and_empty_nouns_are_not_learned() -> None:
    figures, nouns = _masks(20, 0)
    namer = Namer.learn(figures, ["spoon", *["" if noun == "plate" else noun for noun in nouns[1:]]])
    assert namer.nouns == ("cup", "fork")
    assert namer.of("spoon", namer.names(figures)) is None


def test_without_any_noun_nothing_is_named() -> None:
    figures, _ = _masks(2, 0)
    assert Namer.learn(figures, [""] * len(figures)).names(figures).shape == (6, 0)
