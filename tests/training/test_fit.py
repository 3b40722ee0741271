"""The training loop does what it says, and says what it cannot do."""

import random

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from attn_course.training import History, fit, seed_everything
from attn_course.training.fit import move

matplotlib.use("agg")


def line_data(n=24):
    x = torch.linspace(-1, 1, n).unsqueeze(-1)
    return x, 3 * x - 1


def small_model():
    seed_everything(7)
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))


class Scale(nn.Module):
    """One parameter: the gradient and each step can be worked out by hand."""

    def __init__(self, start=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(start))

    def forward(self, x, shift=0.0):
        return self.scale * x + shift


def test_learns_a_line():
    x, y = line_data()
    model = nn.Linear(1, 1)
    history = fit(model, [(x, y)], nn.functional.mse_loss, lr=0.1, epochs=300)
    assert model.weight.item() == pytest.approx(3, abs=1e-3)
    assert model.bias.item() == pytest.approx(-1, abs=1e-3)
    assert len(history.train_loss) == 300 and not model.training
    assert history.train_loss[0] > 1 > 1e-5 > history.train_loss[-1]
    assert history.val == [] and history.best_epoch is None and history.seconds > 0


def test_two_runs_are_identical_and_another_seed_differs():
    x, y = line_data()

    def run(seed):
        model = small_model()
        loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True)
        torch.rand(random.randrange(1, 9))  # the state before the run must not matter
        return fit(model, loader, nn.functional.mse_loss, epochs=3, seed=seed), model

    (first, model_1), (again, model_2), (other, _) = run(0), run(0), run(1)
    assert first == again
    assert first != other
    pairs = zip(model_1.parameters(), model_2.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_seed_none_leaves_the_random_numbers_alone():
    model = nn.Linear(1, 1)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fit(model, [line_data()], nn.functional.mse_loss, epochs=1, seed=None)
    assert torch.equal(torch.rand(2), expected)


def test_seed_everything_covers_python_numpy_and_torch():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_everything(5)
    first = draw()
    seed_everything(5)
    assert draw() == first
    seed_everything(6)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "0"])
def test_seed_everything_refuses(seed):
    with pytest.raises(ValueError, match="seed must be an integer"):
        seed_everything(seed)


def test_the_loss_of_an_epoch_is_the_mean_over_its_batches():
    batches = [
        (torch.tensor([1.0]), torch.tensor([0.0])),
        (torch.tensor([3.0]), torch.tensor([0.0])),
    ]
    frozen = torch.optim.SGD((model := Scale()).parameters(), lr=0.0)
    history = fit(model, batches, nn.functional.mse_loss, optimizer=frozen, epochs=2)
    assert history.train_loss == [5.0, 5.0]  # (1 + 9) / 2


@pytest.mark.parametrize(
    "inputs",
    [
        torch.tensor([1.0]),
        (torch.tensor([1.0]), torch.tensor([0.0])),
        [torch.tensor([1.0]), torch.tensor([0.0])],
        {"shift": torch.tensor([0.0]), "x": torch.tensor([1.0])},
    ],
    ids=["tensor", "tuple", "list", "dict"],
)
def test_inputs_reach_the_model(inputs):
    model = Scale(2.0)
    history = fit(model, [(inputs, torch.tensor([0.0]))], nn.functional.mse_loss, epochs=1)
    assert history.train_loss == [4.0]


def test_gradients_are_clipped_together():
    x, y = torch.tensor([1.0]), torch.tensor([-99.0])  # loss (s + 99)^2, gradient 200 at s = 1

    def step(clip_norm):
        model = Scale()
        sgd = torch.optim.SGD(model.parameters(), lr=1.0)
        fit(model, [(x, y)], nn.functional.mse_loss, optimizer=sgd, epochs=1, clip_norm=clip_norm)
        return 1 - model.scale.item()

    assert step(None) == pytest.approx(200)
    assert step(0.5) == pytest.approx(0.5, rel=1e-4)
    assert step(1000.0) == pytest.approx(200)


def test_gradients_do_not_pile_up_over_batches():
    model = Scale(0.0)
    batches = [(torch.tensor([1.0]), torch.tensor([1.0]))] * 2
    sgd = torch.optim.SGD(model.parameters(), lr=0.25)
    fit(model, batches, nn.functional.mse_loss, optimizer=sgd, epochs=1)
    assert model.scale.item() == pytest.approx(0.75)  # 0 -> 0.5 -> 0.75


def scripted(values, seen):
    """A validation that gives the values in turn and notes the model's parameter."""

    def validate(model):
        assert not model.training and not torch.is_grad_enabled()
        seen.append(model.scale.item())
        return values[len(seen) - 1]

    return validate


def test_early_stop_puts_the_best_parameters_back():
    model, seen = Scale(), []
    validate = scripted([5.0, 3.0, 4.0, torch.tensor(3.0), 9.0], seen)
    batch = (torch.tensor([1.0]), torch.tensor([9.0]))
    history = fit(
        model, [batch], nn.functional.mse_loss, lr=0.1, epochs=9, validate=validate, patience=3
    )
    assert history.val == [5.0, 3.0, 4.0, 3.0, 9.0]  # an equal value is no improvement
    assert history.best_epoch == 2
    assert model.scale.item() == seen[1] != seen[-1]
    assert repr(history).startswith("stopped after 5 of 9 epochs, last mean loss ")
    assert not model.training


def test_best_parameters_come_back_without_an_early_stop():
    model, seen = Scale(), []
    validate = scripted([1.0, 2.0, 2.0], seen)
    batch = (torch.tensor([1.0]), torch.tensor([9.0]))
    fit(model, [batch], nn.functional.mse_loss, lr=0.1, epochs=3, validate=validate, patience=9)
    assert model.scale.item() == seen[0]


def test_without_patience_the_last_parameters_stay():
    model, seen = Scale(), []
    validate = scripted([1.0, 2.0, 3.0], seen)
    batch = (torch.tensor([1.0]), torch.tensor([9.0]))
    history = fit(model, [batch], nn.functional.mse_loss, lr=0.1, epochs=3, validate=validate)
    assert history.best_epoch == 1 and model.scale.item() == seen[2]


def test_training_is_in_training_mode_in_every_epoch():
    modes = []

    class Spy(Scale):
        def forward(self, x):
            modes.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    batch = (torch.tensor([1.0]), torch.tensor([0.0]))
    fit(Spy(), [batch], nn.functional.mse_loss, epochs=2, validate=lambda model: 0.0)
    assert modes == [(True, True)] * 2


def test_a_loss_that_is_not_finite_is_named_with_its_epoch():
    model = Scale(1.0)
    sgd = torch.optim.SGD(model.parameters(), lr=1e30)
    batch = (torch.tensor([1.0]), torch.tensor([0.0]))
    with pytest.raises(FloatingPointError, match=r"the loss became inf in epoch 2\."):
        fit(model, [batch], nn.functional.mse_loss, optimizer=sgd, epochs=5)


def test_a_gradient_that_is_not_finite_is_named_before_it_spoils_the_model():
    model = Scale(0.0)
    batch = (torch.tensor([1.0]), torch.tensor([0.0]))
    with pytest.raises(FloatingPointError, match=r"gradient's length became inf in epoch 1\."):
        fit(model, [batch], lambda output, target: output.sqrt().sum(), epochs=1)
    assert model.scale.item() == 0.0


def test_a_validation_value_that_is_not_finite_is_named():
    with pytest.raises(FloatingPointError, match=r"validation value became nan in epoch 1\."):
        fit(
            nn.Linear(1, 1),
            [line_data()],
            nn.functional.mse_loss,
            epochs=1,
            validate=lambda model: float("nan"),
        )


def mse_per_point(output, target):
    return (output - target) ** 2


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"epochs": 0}, ValueError, "epochs must be an integer of at least 1, got 0"),
        ({"epochs": 1.5}, ValueError, "epochs must be an integer"),
        ({"patience": 0, "validate": lambda model: 0.0}, ValueError, "patience must be"),
        ({"patience": 2}, ValueError, "give validate as well"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm must be positive"),
        ({"lr": -1.0}, ValueError, "lr must be positive"),
        ({"batches": []}, ValueError, "nothing to train on in epoch 1"),
        ({"batches": iter([line_data()])}, TypeError, "only once"),
        ({"batches": [torch.ones(2, 1)]}, TypeError, r"\(inputs, target\) pairs, got a Tensor"),
        ({"batches": [(*line_data(), 1)]}, TypeError, "got a tuple of 3"),
        ({"loss_fn": mse_per_point}, ValueError, r"single number, .* shape \[24, 1\]"),
        ({"model": nn.Tanh()}, ValueError, "no parameters to train"),
    ],
)
def test_refuses(change, error, message):
    arguments = {
        "model": nn.Linear(1, 1),
        "batches": [line_data()],
        "loss_fn": nn.functional.mse_loss,
        "epochs": 1,
    }
    with pytest.raises(error, match=message):
        fit(**(arguments | change))


def test_refuses_a_rate_beside_an_optimizer():
    model = nn.Linear(1, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="not both"):
        fit(model, [line_data()], nn.functional.mse_loss, optimizer=sgd, lr=0.1, epochs=1)


def test_move_reaches_every_tensor():
    moved = move([{"a": (torch.ones(1), "text")}, torch.ones(2)], "meta")
    assert moved[0]["a"][0].device.type == moved[1].device.type == "meta"
    assert moved[0]["a"][1] == "text"
    assert isinstance(moved, list) and isinstance(moved[0]["a"], tuple)


@pytest.mark.gpu
def test_trains_on_another_device():
    model = nn.Linear(1, 1)
    fit(model, [line_data()], nn.functional.mse_loss, lr=0.1, epochs=300, device="cuda")
    assert model.weight.device.type == "cuda"
    assert model.weight.item() == pytest.approx(3, abs=1e-3)


def test_history_in_words():
    assert repr(History([1 / 3], planned_epochs=1)) == "1 epoch, mean loss 0.3333"
    text = "4 epochs, last mean loss 1.235e-05, best epoch 3"
    assert repr(History([1, 1, 1, 1.23456e-5], [1, 1, 0, 1], 3, 4)) == text
    assert History([1.0], seconds=1.0) == History([1.0], seconds=2.0)


def test_history_is_drawn_against_epochs_from_one():
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots()
    History([3.0, 2.0], [4.0, 5.0], 1, 2).plot(ax)
    train, val = ax.get_lines()
    assert list(train.get_xdata()) == [1, 2] and list(train.get_ydata()) == [3.0, 2.0]
    assert list(val.get_ydata()) == [4.0, 5.0]
    assert ax.get_xlabel() == "epoch" and ax.get_legend() is not None
    plt.close(fig)
