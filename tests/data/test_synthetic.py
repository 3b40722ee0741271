"""Points along a curve: the experiment's numbers, repeatable."""

import pytest
import torch

from attn_course.data import sine_function, sine_points


def test_shapes_and_ranges():
    x_train, y_train, x_val, y_val = sine_points(30)
    assert x_train.shape == y_train.shape == (30,)
    assert x_val.shape == y_val.shape == (50,)
    assert bool((x_train.diff() >= 0).all()), "x_train must ascend"
    assert 0 <= x_train.min() and x_train.max() < 5
    assert x_val[0] == 0 and x_val[-1].item() == pytest.approx(4.9)


def test_the_curve():
    x = torch.tensor([0.0, 1.0, 4.0])
    expected = [0.0, 2 * 0.8414710 + 1, 2 * -0.7568025 + 4]
    assert sine_function(x).tolist() == pytest.approx(expected, abs=1e-6)


def test_validation_is_the_curve_itself():
    points = sine_points(noise=2.0)
    assert torch.equal(points.y_val, sine_function(points.x_val))


def test_noise_has_the_asked_size_and_scales():
    points = sine_points(20_000, noise=0.5)
    residual = points.y_train - sine_function(points.x_train)
    assert residual.std().item() == pytest.approx(0.5, rel=0.03)
    assert residual.mean().item() == pytest.approx(0.0, abs=0.02)


def test_seed_decides_alone():
    torch.manual_seed(1)
    first = sine_points(seed=4)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, sine_points(seed=4), strict=True))
    assert not torch.equal(first.x_train, sine_points(seed=5).x_train)


@pytest.mark.parametrize("arguments", [{"n": 0}, {"noise": -1.0}, {"noise": float("nan")}])
def test_refuses(arguments):
    with pytest.raises(ValueError, match="must be"):
        sine_points(**arguments)
