"""Real data that comes with scikit-learn, so that no network is needed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor

#: The columns of ``diabetes``: s1 to s6 are blood serum measurements.
DIABETES_FEATURES = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")


class Digits(NamedTuple):
    """Handwritten digits: 8 x 8 pixels, row by row, 0 for paper and 1 for ink.

    Attributes:
        train_images: ``[n, 64]``.
        train_labels: The digit that each shows, int64, ``[n]``.
        test_images: ``[m, 64]``.
        test_labels: int64, ``[m]``.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class Diabetes(NamedTuple):
    """Ten measurements of each patient, and how the disease progressed in a year.

    Attributes:
        train_features: ``[n, 10]``, each column with mean 0 and standard deviation 1.
        train_targets: In the study's own units, 25 to 346, ``[n]``.
        test_features: ``[m, 10]``, shifted and scaled as the training part was.
        test_targets: ``[m]``.
    """

    train_features: Tensor
    train_targets: Tensor
    test_features: Tensor
    test_targets: Tensor


def digits(
    *, seed: int = 0, test_fraction: float = 0.25, dtype: torch.dtype = torch.float32
) -> Digits:
    """The 1,797 handwritten digits of scikit-learn, split into two parts.

    Each digit is divided in the same proportion, and within a part the images keep the
    order of the data set. They were written by 13 people, and each may appear in both
    parts: the score on the test part says nothing about an unknown writer.

    Args:
        seed: Chooses the split.
        test_fraction: The part of each digit's images that goes into the test part.
        dtype: The type of the pixels, which run from 0 to 1.

    Returns:
        The two parts.

    Raises:
        ValueError: ``test_fraction`` leaves a digit without an image in a part.

    Reference:
        Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine
        Learning Repository, licence CC BY 4.0; the test part of it.

    Example:
        >>> data = digits()
        >>> data.train_images.shape, data.test_images.shape
        (torch.Size([1347, 64]), torch.Size([450, 64]))
    """
    source = load_digits()
    images = torch.from_numpy(source.data).to(dtype) / 16
    labels = torch.from_numpy(source.target).to(torch.int64)
    train, test = _split(
        [(labels == digit).nonzero()[:, 0] for digit in range(10)], test_fraction, seed
    )
    return Digits(images[train], labels[train], images[test], labels[test])


def diabetes(*, seed: int = 0, test_fraction: float = 0.25) -> Diabetes:
    """442 patients: predict a disease's progression from ten measurements.

    The features are shifted and scaled by the mean and standard deviation of the
    training part, so that nothing about the test part leaks into training. The targets
    stay as they are.

    Args:
        seed: Chooses the split.
        test_fraction: The part of the patients that goes into the test part.

    Returns:
        The two parts, float32. ``DIABETES_FEATURES`` names the columns.

    Raises:
        ValueError: ``test_fraction`` leaves a part empty.

    Reference:
        Efron, Hastie, Johnstone and Tibshirani (2004), Least Angle Regression. The
        authors published the data without stating a licence; scikit-learn redistributes it.

    Example:
        >>> data = diabetes()
        >>> data.train_features.shape, data.test_features.shape
        (torch.Size([332, 10]), torch.Size([110, 10]))
    """
    source = load_diabetes(scaled=False)
    features, targets = torch.from_numpy(source.data), torch.from_numpy(source.target)
    train, test = _split([torch.arange(len(targets))], test_fraction, seed)
    std, mean = torch.std_mean(features[train], dim=0)
    features = (features - mean) / std
    return Diabetes(
        features[train].float(),
        targets[train].float(),
        features[test].float(),
        targets[test].float(),
    )


def _split(groups: list[Tensor], test_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide each group of row numbers at random; return both parts in ascending order."""
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must lie between 0 and 1, got {test_fraction}.")
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for rows in groups:
        size = round(test_fraction * len(rows))
        if size in (0, len(rows)):
            raise ValueError(
                f"test_fraction={test_fraction} leaves a part without any of {len(rows)} rows."
            )
        shuffled = rows[torch.randperm(len(rows), generator=generator)]
        test.append(shuffled[:size])
        train.append(shuffled[size:])
    return torch.cat(train).sort().values, torch.cat(test).sort().values
