"""Batches of images: each image as often as the others. Moved images: how far, and whither."""

import pytest
import torch

from attn_course.data import image_batches, random_affine
from attn_course.training import fit

HEIGHT, WIDTH = 24, 40


def blobs(count, right, down):
    """A soft dot so many pixels from the centre of a rectangular image, float64."""
    y = torch.arange(HEIGHT, dtype=torch.float64) - (HEIGHT - 1) / 2
    x = torch.arange(WIDTH, dtype=torch.float64) - (WIDTH - 1) / 2
    image = torch.exp(-((x - right) ** 2 + (y[:, None] - down) ** 2) / 6)
    return image.expand(count, 2, HEIGHT, WIDTH)


def centres(images):
    """Where the dot is, in pixels from the centre: right and down, ``[batch]`` each."""
    y = torch.arange(HEIGHT, dtype=torch.float64) - (HEIGHT - 1) / 2
    x = torch.arange(WIDTH, dtype=torch.float64) - (WIDTH - 1) / 2
    mass = images[:, 1]
    total = mass.sum((1, 2))
    return (mass.sum(1) * x).sum(1) / total, (mass.sum(2) * y).sum(1) / total


def seeded():
    return torch.Generator().manual_seed(0)


def test_a_shift_moves_as_far_as_it_says():
    moved = random_affine(blobs(400, 3, -2), rotation=0, shift=2, scale=0, generator=seeded())
    right, down = centres(moved)
    for offset in (right - 3, down + 2):
        assert 1.9 < offset.max() < 2.01 and -2.01 < offset.min() < -1.9
        assert abs(offset.mean()) < 0.2
    assert abs(torch.corrcoef(torch.stack([right, down]))[0, 1]) < 0.15


def test_a_rotation_keeps_the_distance_on_a_rectangle():
    moved = random_affine(blobs(400, 6, 0), rotation=60, shift=0, scale=0, generator=seeded())
    right, down = centres(moved)
    torch.testing.assert_close(
        torch.hypot(right, down), torch.full_like(right, 6), rtol=0.01, atol=0
    )
    angle = torch.rad2deg(torch.atan2(down, right))
    assert 57 < angle.max() < 60.5 and -60.5 < angle.min() < -57


def test_a_scale_stretches_from_the_centre():
    images = blobs(400, 5, -4)
    moved = random_affine(images, rotation=0, shift=0, scale=0.25, generator=seeded())
    right, down = centres(moved)
    size = right / 5
    torch.testing.assert_close(down / -4, size, rtol=0.01, atol=0)
    assert 1.23 < size.max() < 1.26 and 0.74 < size.min() < 0.77
    mass = moved[:, 1].sum((1, 2)) / images[:, 1].sum((1, 2))  # the dot grows with the picture
    torch.testing.assert_close(mass, size**2, rtol=0.03, atol=0)


def test_each_image_is_moved_differently_and_its_channels_alike():
    images = torch.rand(1, 3, 8, 8).expand(4, 3, 8, 8)
    before = images.clone()
    moved = random_affine(images)
    assert torch.equal(images, before)
    assert moved.shape == images.shape
    assert len({tuple(m.flatten().tolist()) for m in moved}) == 4
    one = torch.rand(5, 1, 8, 8)
    moved = random_affine(one.expand(5, 2, 8, 8))
    assert torch.equal(moved[:, 0], moved[:, 1])


def test_outside_is_paper():
    white = torch.ones(1, 1, 6, 6)
    moved = random_affine(white, rotation=0, shift=40, scale=0, generator=seeded())
    assert moved.abs().max() == 0


def test_the_generator_decides():
    images = torch.rand(6, 1, 8, 8)
    one, two = (random_affine(images, generator=seeded()) for _ in range(2))
    assert torch.equal(one, two)
    torch.manual_seed(3)
    one = random_affine(images)
    torch.manual_seed(3)
    assert torch.equal(one, random_affine(images))
    assert not torch.equal(one, random_affine(images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_stays_and_gradients_pass(dtype):
    images = torch.rand(2, 1, 6, 8, dtype=dtype, requires_grad=True)
    moved = random_affine(images)
    assert moved.dtype == dtype
    moved.sum().backward()
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": -1}, r"rotation must lie in \[0, inf\), got -1"),
        ({"shift": float("nan")}, r"shift must lie in \[0, inf\), got nan"),
        ({"scale": 1.0}, r"scale must lie in \[0, 1\), got 1.0"),
    ],
)
def test_random_affine_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        random_affine(torch.rand(1, 1, 4, 4), **options)


def test_random_affine_refuses_other_shapes_and_types():
    with pytest.raises(ValueError, match=r"\[batch, channels, height, width\], got \[8, 64\]"):
        random_affine(torch.rand(8, 64))
    with pytest.raises(TypeError, match="images must hold floating-point numbers"):
        random_affine(torch.ones(1, 1, 4, 4, dtype=torch.uint8))


def test_passes_follow_each_other_without_a_gap():
    images, labels = torch.arange(10.0).unsqueeze(1), torch.arange(10)
    batches = image_batches(images, labels, batch_size=4, count=5, seed=1)
    assert len(batches) == 5
    seen = []
    for inputs, target in batches:
        assert torch.equal(inputs[:, 0].long(), target) and len(target) == 4
        seen += target.tolist()
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:] and seen[:10] != list(range(10))
    later = [row for _, target in batches for row in target.tolist()]
    assert later != seen and sorted(later) == sorted(seen)


def test_few_images_fill_large_batches():
    (batch,) = image_batches(torch.rand(3, 2), torch.arange(3), batch_size=8, count=1)
    assert batch[1].bincount().tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_one_pass_by_default():
    assert len(image_batches(torch.rand(9, 2), torch.arange(9), batch_size=4)) == 3
    assert len(image_batches(torch.rand(8, 2), torch.arange(8), batch_size=4)) == 2


def test_the_seed_decides_the_order():
    def order(seed):
        return [t.tolist() for _, t in image_batches(torch.rand(30, 1), torch.arange(30),
                                                     batch_size=6, seed=seed)]  # fmt: skip

    torch.manual_seed(0)
    first = order(0)
    torch.manual_seed(1)
    assert order(0) == first != order(1)


def test_what_is_changed_is_the_batch_alone():
    images = torch.ones(6, 1, 4, 4)
    batches = image_batches(images, torch.arange(6), batch_size=3, augment=lambda x: x.mul_(2))
    assert all((inputs == 2).all() for inputs, _ in batches)
    assert (images == 1).all()


def test_fit_takes_them():
    model = torch.nn.Linear(2, 2)
    batches = image_batches(torch.rand(7, 2), torch.tensor([0, 1, 0, 1, 0, 1, 0]), batch_size=4)
    loss = torch.nn.functional.cross_entropy
    assert len(fit(model, batches, loss, epochs=3, progress=False).train_loss) == 3


@pytest.mark.parametrize(
    ("count", "labels", "options", "message"),
    [
        (0, 0, {}, "at least one image"),
        (3, 2, {}, "labels must have one for each of 3 images, got"),
        (3, 3, {"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        (3, 3, {"count": 0}, "count must be an integer of at least 1, got 0"),
    ],
)
def test_image_batches_refuses(count, labels, options, message):
    with pytest.raises(ValueError, match=message):
        image_batches(torch.rand(count, 2), torch.arange(labels), **options)


def test_image_batches_refuses_lists():
    with pytest.raises(TypeError, match=r"labels must be a torch\.Tensor, got list"):
        image_batches(torch.rand(2, 2), [0, 1])
