"""The real data sets: whole, split without overlap, and without a network."""

import socket

import pytest
import torch

from attn_course.data import DIABETES_FEATURES, diabetes, digits


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a data set tried to use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def rows(tensor):
    return [tuple(row) for row in tensor.tolist()]


def test_digits_types_and_ranges():
    data = digits()
    assert data.train_images.shape[1] == data.test_images.shape[1] == 64
    assert len(data.train_images) == len(data.train_labels) == 1347
    assert len(data.test_images) == len(data.test_labels) == 450
    assert data.train_images.dtype == torch.float32
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert data.train_images.min() == 0 and data.train_images.max() == 1
    assert digits(dtype=torch.float64).test_images.dtype == torch.float64


def test_digits_split_is_disjoint_and_complete():
    from sklearn.datasets import load_digits

    data = digits()
    whole = rows(torch.from_numpy(load_digits().data / 16).float())
    assert len(set(whole)) == len(whole), "every image is unique, so sets can be compared"
    train, test = set(rows(data.train_images)), set(rows(data.test_images))
    assert not train & test
    assert train | test == set(whole)


def test_digits_keep_their_labels():
    from sklearn.datasets import load_digits

    source = load_digits()
    pixels = rows(torch.from_numpy(source.data / 16).float())
    label = dict(zip(pixels, source.target.tolist(), strict=True))
    data = digits(seed=3)
    for images, labels in (data[:2], data[2:]):
        assert [label[row] for row in rows(images)] == labels.tolist()


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_digits_split_is_stratified(fraction):
    data = digits(test_fraction=fraction)
    test = data.test_labels.bincount(minlength=10)
    total = test + data.train_labels.bincount(minlength=10)
    assert bool(((test - fraction * total).abs() <= 0.5).all())


@pytest.mark.parametrize("load", [digits, diabetes])
def test_seed_decides_alone(load):
    torch.manual_seed(1)
    first = load(seed=4)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, load(seed=4), strict=True))
    assert not torch.equal(first[2], load(seed=5)[2])


def test_diabetes_is_standardised_by_the_training_part_alone():
    data = diabetes()
    zeros, ones = torch.zeros(10), torch.ones(10)
    torch.testing.assert_close(data.train_features.mean(0), zeros, atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train_features.std(0), ones, atol=1e-5, rtol=0)
    assert data.test_features.mean(0).abs().max() > 1e-2, "the test part has its own mean"
    assert data.test_features.abs().max() < 10


def test_diabetes_is_whole_and_its_columns_are_named():
    from sklearn.datasets import load_diabetes

    source = load_diabetes(scaled=False)
    data = diabetes()
    assert tuple(source.feature_names) == DIABETES_FEATURES
    assert data.train_features.dtype == data.test_targets.dtype == torch.float32
    targets = torch.cat([data.train_targets, data.test_targets]).sort().values
    assert targets.tolist() == sorted(source.target.tolist())
    # A linear fit on matching rows explains about half of the variance; on rows that were
    # mixed up it would explain next to nothing.
    features = torch.cat([data.train_features, torch.ones(len(data.train_features), 1)], 1)
    weights = torch.linalg.lstsq(features, data.train_targets.unsqueeze(1)).solution
    residual = data.train_targets - (features @ weights)[:, 0]
    assert residual.var() < 0.6 * data.train_targets.var()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 1e-9, 1 - 1e-9, float("nan")])
@pytest.mark.parametrize("load", [digits, diabetes])
def test_refuses_an_empty_part(load, fraction):
    with pytest.raises(ValueError, match="test_fraction"):
        load(test_fraction=fraction)
