"""Fashion-MNIST: 70,000 pictures of clothes, downloaded or read from a folder."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from attn_course.data.download import Remote, locate

#: What each label stands for.
FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

_ADDRESS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/"
    "b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/"
)


class Part(NamedTuple):
    """One of the four files.

    Attributes:
        name: Of the file, without ``.gz``.
        digest: Of the ``.gz`` to download.
        unpacked: The sha256 of what is in it.
        shape: Of the array that it holds.
    """

    name: str
    digest: str
    unpacked: str
    shape: tuple[int, ...]


#: The files, in the order of ``FashionMNIST``.
PARTS = (
    Part(
        "train-images-idx3-ubyte",
        "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        (60_000, 28, 28),
    ),
    Part(
        "train-labels-idx1-ubyte",
        "md5:25c81989df183df01b3e8a0aad5dffbe",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        (60_000,),
    ),
    Part(
        "t10k-images-idx3-ubyte",
        "md5:bef4ecab320f06d8554ea6380940ec79",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        (10_000, 28, 28),
    ),
    Part(
        "t10k-labels-idx1-ubyte",
        "md5:bb300cfdad3c16e7a12a480ee83cd310",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        (10_000,),
    ),
)


class FashionMNIST(NamedTuple):
    """Clothes: 28 x 28 pixels, 0 for the background and 1 for the brightest.

    Attributes:
        train_images: ``[60000, 1, 28, 28]``.
        train_labels: Which of ``FASHION_CLASSES`` each shows, int64, ``[60000]``.
        test_images: ``[10000, 1, 28, 28]``.
        test_labels: int64, ``[10000]``.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def fashion_mnist(*, folder: Path | str | None = None, download: bool = True) -> FashionMNIST:
    """The 70,000 pictures of Fashion-MNIST, in their original order and parts.

    Args:
        folder: Where the four files are, plain or as ``.gz``, themselves or in a folder
            ``fashion-mnist`` or ``FashionMNIST/raw``, as torchvision has it; ``None`` for the
            folder that the environment variable ``ATTN_COURSE_DATA`` names, then
            ``~/.cache/attn_course``.
        download: Get files (31 MB) that are not there.

    Returns:
        The two parts, float32 pixels. They take 220 MB.

    Raises:
        FileNotFoundError: A file is not there, and may not or cannot be downloaded.
        ValueError: A file is damaged, or another one than expected.

    Reference:
        Xiao, Rasul and Vollgraf (2017), Fashion-MNIST: a novel image dataset for
        benchmarking machine learning algorithms. Licence MIT.

    Example:
        >>> data = fashion_mnist()  # doctest: +SKIP
        >>> data.train_images.shape, FASHION_CLASSES[data.train_labels[0]]  # doctest: +SKIP
        (torch.Size([60000, 1, 28, 28]), 'ankle boot')
    """
    arrays = [_read(part, folder, download) for part in PARTS]
    train_images, test_images = (a.unsqueeze(1).float().div_(255) for a in arrays[::2])
    train_labels, test_labels = (a.long() for a in arrays[1::2])
    return FashionMNIST(train_images, train_labels, test_images, test_labels)


def _read(part: Part, folder: Path | str | None, download: bool) -> Tensor:
    """The bytes of a file as an array."""
    remote = Remote(f"{_ADDRESS}{part.name}.gz", f"fashion-mnist/{part.name}.gz", part.digest)
    candidates = [
        f"{place}{part.name}{packed}"
        for place in ("fashion-mnist/", "FashionMNIST/raw/", "")
        for packed in (".gz", "")
    ]
    path = locate(candidates, remote, folder, download)
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged: {error}. Delete it, and get it again or call again."
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != part.unpacked:
        raise ValueError(
            f"{path} holds something else than expected: unpacked, its sha256 is {found}, not "
            f"{part.unpacked}. Delete it, and get it again or call again."
        )
    header = len(data) - math.prod(part.shape)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header).view(part.shape)
