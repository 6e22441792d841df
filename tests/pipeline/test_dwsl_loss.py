import numpy as np
import pytest
import torch

from pipeline.torch_data import dwsl_loss


def straight(logits, mask, weight):
    """The loss and its gradient by the logits, in float64 numpy, a sample at a time."""
    loss, gradient = 0.0, np.zeros_like(logits)
    for k, (x, m, w) in enumerate(zip(logits, mask, weight, strict=True)):
        p = 1 / (1 + np.exp(-x))
        entropy = -(m * np.log(p) + (1 - m) * np.log(1 - p)).mean()
        above, below = 2 * (p * m).sum() + 1e-3, p.sum() + m.sum() + 1e-3
        loss += w * (entropy + 1 - above / below) / len(logits)
        by_dice = -(2 * m * below - above) / below**2 * p * (1 - p)
        gradient[k] = w * ((p - m) / x.size + by_dice) / len(logits)
    return loss, gradient


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    mask = rng.random((4, 6, 5))
    mask[1], mask[2] = mask[1] > 0.5, 0
    return rng.normal(0, 3, (4, 6, 5)), mask, np.array([0.9, 0.1, 1.0, 9.0])


def test_value_and_gradient_are_those_of_the_formula(batch):
    logits, mask, weight = map(torch.from_numpy, batch)
    logits.requires_grad_()
    loss = dwsl_loss(logits, mask, weight)
    loss.backward()
    value, gradient = straight(*batch)
    assert loss.item() == pytest.approx(value, rel=1e-9)
    np.testing.assert_allclose(logits.grad, gradient, rtol=1e-7, atol=1e-12)


def test_the_gradient_agrees_with_finite_differences(batch):
    logits, mask, weight = map(torch.from_numpy, batch)
    assert torch.autograd.gradcheck(lambda x: dwsl_loss(x, mask, weight), logits.requires_grad_())


def test_weight_0_gives_no_gradient_and_twice_the_weight_twice_the_gradient(batch):
    logits, mask, _ = map(torch.from_numpy, batch)
    logits.requires_grad_()
    by_weight = [
        torch.autograd.grad(dwsl_loss(logits, mask, torch.tensor(weight)), logits)[0]
        for weight in ([0.0, 1.0, 2.0, 1.0], [0.0, 2.0, 2.0, 1.0])
    ]
    assert not by_weight[0][0].any() and by_weight[0][1:].flatten(1).any(dim=1).all()
    torch.testing.assert_close(by_weight[1][1], 2 * by_weight[0][1])
    torch.testing.assert_close(by_weight[1][2:], by_weight[0][2:])


def test_the_weight_itself_gets_no_gradient(batch):
    logits, mask, weight = map(torch.from_numpy, batch)
    weight.requires_grad_()
    assert not dwsl_loss(logits, mask, weight).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("level", [-100.0, 100.0])
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_logits_of_100_give_finite_values_and_gradients(dtype, level, target):
    # As large as the authors' masks: sums over it overflow half precision.
    logits = torch.full((1, 1024, 1024), level, dtype=dtype, requires_grad=True)
    loss = dwsl_loss(logits, torch.full((1, 1024, 1024), target, dtype=dtype), torch.ones(1))
    loss.backward()
    p = float(level > 0)
    dice = 1 - (2 * p * target * 2**20 + 1e-3) / ((p + target) * 2**20 + 1e-3)
    assert loss.item() == pytest.approx(abs(p - target) * 100 + dice, rel=1e-4, abs=1e-4)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("empty", [torch.zeros(2, 8, 8), torch.ones(2, 8, 8)])
def test_a_perfect_answer_costs_nothing_also_where_nothing_is_to_be_found(empty):
    assert dwsl_loss(200 * empty - 100, empty, torch.ones(2)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("mask", "weight"),
    [((2, 4, 4), (2, 1)), ((2, 1, 4, 4), (2,)), ((2, 4, 4), (1,)), ((2, 4, 4), ()), ((2, 1, 4), (2,))],
)
def test_shapes_that_would_be_broadcast_are_refused(mask, weight):
    with pytest.raises(ValueError, match="shapes"):
        dwsl_loss(torch.zeros(2, 4, 4), torch.zeros(mask), torch.zeros(weight))
