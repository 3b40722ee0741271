"""Fashion-MNIST: found in each layout, unpacked, checked, and as long as it should be."""

import gzip
import hashlib
import os
import struct
from pathlib import Path

import pytest
import torch

from attn_course.data import FASHION_CLASSES, fashion, fashion_mnist

SHARED = Path(os.environ.get("ATTN_COURSE_DATA") or Path(__file__).parents[3] / "shared" / "data")


def idx(array):
    """The bytes of an IDX file."""
    return struct.pack(f">{1 + array.ndim}i", 2048 + array.ndim, *array.shape) + bytes(
        array.flatten().tolist()
    )


@pytest.fixture
def arrays(monkeypatch, tmp_path):
    """Four small arrays in place of the real ones, and no other folder to look in."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.delenv("ATTN_COURSE_DATA", raising=False)
    torch.manual_seed(0)
    shapes = (5, 28, 28), (5,), (3, 28, 28), (3,)
    arrays = [torch.randint(0, 256 if len(s) > 1 else 10, s) for s in shapes]
    parts = [
        part._replace(unpacked=hashlib.sha256(idx(array)).hexdigest(), shape=tuple(array.shape))
        for part, array in zip(fashion.PARTS, arrays, strict=True)
    ]
    monkeypatch.setattr(fashion, "PARTS", tuple(parts))
    return arrays


def put(folder, arrays, packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for part, array in zip(fashion.PARTS, arrays, strict=True):
        data = idx(array)
        (folder / (part.name + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_reads_each_layout(place, packed, arrays, tmp_path):
    put(tmp_path / place, arrays, packed)
    data = fashion_mnist(folder=tmp_path, download=False)
    for found, array in zip(data[::2], arrays[::2], strict=True):
        assert found.dtype == torch.float32 and found.shape == (len(array), 1, 28, 28)
        torch.testing.assert_close(found[:, 0] * 255, array.float())
        assert 0 <= found.min() and found.max() <= 1
    assert torch.equal(data.train_labels, arrays[1]) and torch.equal(data.test_labels, arrays[3])
    assert data.test_labels.dtype == torch.int64


def test_the_environment_names_a_folder(arrays, monkeypatch, tmp_path):
    put(tmp_path / "data" / "fashion-mnist", arrays)
    monkeypatch.setenv("ATTN_COURSE_DATA", str(tmp_path / "data"))
    assert len(fashion_mnist(download=False).train_labels) == 5


def test_a_missing_file_is_named(arrays, tmp_path):
    put(tmp_path, arrays)
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-images.*https://raw\.github.*zalando"):
        fashion_mnist(folder=tmp_path, download=False)


def test_damaged_and_other_files_are_refused(arrays, tmp_path):
    put(tmp_path, arrays)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    good = path.read_bytes()
    for bad in (good[:-20], b"no gzip at all"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is damaged"):
            fashion_mnist(folder=tmp_path, download=False)
    other = arrays[0].clone()
    other[4, 27, 27] ^= 1
    path.write_bytes(gzip.compress(idx(other)))
    with pytest.raises(ValueError, match="something else than expected: unpacked, its sha256"):
        fashion_mnist(folder=tmp_path, download=False)


def test_what_is_downloaded_is_put_where_it_is_found(arrays, monkeypatch, tmp_path):
    asked = []

    def fetch(address, path, digest):
        asked.append((address.rsplit("/", 1)[1], digest))
        put(path.parent, arrays)

    monkeypatch.setattr("attn_course.data.download.fetch", fetch)
    fashion_mnist(folder=tmp_path)
    assert asked == [
        ("train-images-idx3-ubyte.gz", "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d")
    ]  # the others are there by then
    fashion_mnist(folder=tmp_path, download=False)


@pytest.mark.skipif(
    not (SHARED / "fashion-mnist").exists(), reason=f"no pictures of clothes in {SHARED}"
)
def test_the_real_files():
    data = fashion_mnist(folder=SHARED, download=False)
    assert data.train_images.shape == (60_000, 1, 28, 28)
    assert data.test_images.shape == (10_000, 1, 28, 28)
    assert (data.train_labels.bincount() == 6_000).all()
    assert (data.test_labels.bincount() == 1_000).all()
    std, mean = torch.std_mean(data.train_images)
    assert abs(mean - 0.2860) < 1e-4 and abs(std - 0.3530) < 1e-4
    assert [FASHION_CLASSES[label] for label in data.test_labels[:3]] == [
        "ankle boot", "pullover", "trouser"
    ]  # fmt: skip
