import pytest
import torch
from torch import nn

from attn_course.kernel_regression import KernelClassifier, KernelRegression, kernel_regression


def test_the_layer_is_the_operation() -> None:
    query, key, value = torch.randn(5, 2), torch.randn(7, 2), torch.randn(7, 3)
    layer = KernelRegression(width=[0.5, 2.0], kernel="triangular")
    output, weights = layer(query, key, value, need_weights=True)
    expected = kernel_regression(
        query, key, value, width=torch.tensor([0.5, 2.0]), kernel="triangular"
    )
    torch.testing.assert_close(output, expected)
    assert weights.shape == (5, 7)
    assert "triangular" in repr(layer)


def test_the_width_is_learned() -> None:
    torch.manual_seed(0)
    key = torch.rand(60, 1) * 5
    value = torch.sin(3 * key)
    layer = KernelRegression(width=1.0)
    others = ~torch.eye(60, dtype=torch.bool)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(layer(key, key, value, mask=others), value)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5
    assert 0 < layer.width.item() < 0.5


def test_a_fixed_width_stays() -> None:
    layer = KernelRegression(width=2.0, learn_width=False)
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert layer.width.item() == pytest.approx(2.0)


def test_the_classifier_averages_labels() -> None:
    key, labels = torch.tensor([[0.0], [0.4], [5.0]]), torch.tensor([1, 0, 2])
    classify = KernelClassifier(3, width=1.0, kernel="boxcar")
    probabilities = classify(torch.tensor([[0.2], [5.5], [99.0]]), key, labels)
    assert probabilities.tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KernelRegression(width=-1.0), "width must be positive"),
        (lambda: KernelRegression(width=torch.ones(2, 2)), r"shape \[dim\]"),
        (lambda: KernelRegression(kernel="x"), "kernel must be one of"),
        (lambda: KernelRegression(impl="x"), "impl must be one of"),
        (lambda: KernelClassifier(0), "num_classes must be at least 1"),
    ],
)
def test_constructors_refuse(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_labels_are_checked() -> None:
    classify, x = KernelClassifier(2), torch.zeros(3, 1)
    with pytest.raises(TypeError, match="integer labels"):
        classify(x, x, torch.zeros(3))
    with pytest.raises(ValueError, match=r"\[0, 2\), got 0 to 2"):
        classify(x, x, torch.tensor([0, 1, 2]))
