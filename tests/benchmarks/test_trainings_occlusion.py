"""Chapter 7's test of heatmaps, tested: maps that are right and wrong by construction."""

from __future__ import annotations

import pytest
import torch

from attn_course.benchmarks.trainings import RUNS, classifiers, occlusion
from attn_course.benchmarks.trainings.occlusion import (
    MOST,
    exchanged,
    influence,
    painted_over,
    patch_maps,
    run_occluded,
)
from attn_course.vision import ViT, patchify

SMALL = classifiers.SIZES | {"embed_dim": 8, "num_heads": 2, "hidden_dim": 8}


@pytest.fixture
def model() -> ViT:
    torch.manual_seed(0)
    return ViT(**SMALL).eval()


def test_each_map_has_a_number_for_each_patch(model: ViT) -> None:
    images = torch.rand(3, 1, 8, 8)
    maps = patch_maps(model, images)
    assert all(values.shape == (3, 16) and not values.requires_grad for values in maps.values())
    assert torch.equal(maps["ink"], patchify(images, 2).sum(-1))
    weights = model(images, need_weights=True)[1]
    torch.testing.assert_close(maps["weights, last layer"], weights[:, 1, :, 0, 1:].mean(1))
    torch.testing.assert_close(maps["weights, first layer"], weights[:, 0, :, 0, 1:].mean(1))
    again = patch_maps(model, images)
    assert all(torch.equal(values, again[name]) for name, values in maps.items())


def test_influence_is_the_gradient_of_the_answer_alone(model: ViT) -> None:
    model = model.double()
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    said = model(images).argmax(1)
    for image, label, found in zip(images, said, influence(model, images), strict=True):
        slopes = torch.autograd.functional.jacobian(
            lambda x, label=label: model(x[None])[0, label], image
        )
        torch.testing.assert_close(found, patchify(slopes[None], 2)[0].norm(dim=-1))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_painting_over_the_one_patch_that_counts(model: ViT) -> None:
    """A model that says whether patch 5 has ink loses only if patch 5 is painted over."""

    class Reader(torch.nn.Module):
        embed = model.embed

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            ink = patchify(images, 2).sum(-1)[:, 5]
            return torch.stack([0.1 - ink, ink], 1)

    images, labels = torch.ones(4, 1, 8, 8), torch.ones(4, dtype=torch.int64)
    reader: ViT = Reader()  # type: ignore[assignment]
    five, six = torch.full((4, 1), 5), torch.full((4, 1), 6)
    assert painted_over(reader, images, labels, six) == 1.0
    assert painted_over(reader, images, labels, five) == 0.0
    assert painted_over(reader, images, labels, five[:, :0]) == 1.0


def test_an_exchange_shows_an_empty_place_that_counts(model: ViT) -> None:
    """A model that wants patch 5 empty: paper there tells nothing, ink does."""

    class Reader(torch.nn.Module):
        embed = model.embed

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            ink = patchify(images, 2).sum(-1)[:, 5]
            return torch.stack([ink, 0.1 - ink], 1)

    images = torch.zeros(400, 1, 8, 8)
    images[200:, :, 2:4, 2:4] = 1  # patch 5 of half of them
    labels = (torch.arange(400) < 200).long()
    reader: ViT = Reader()  # type: ignore[assignment]
    five, six = torch.full((400, 1), 5), torch.full((400, 1), 6)
    before = images.clone()
    assert painted_over(reader, images[:200], labels[:200], five[:200]) == 1.0
    assert exchanged(reader, images, labels, five) == pytest.approx(0.5, abs=0.05)
    assert exchanged(reader, images, labels, six) == 1.0
    assert exchanged(reader, images, labels, five[:, :0]) == 1.0
    assert torch.equal(images, before)


def test_a_record_begins_untouched_and_goes_from_both_ends(
    model: ViT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        occlusion, "trained", lambda name, parts, seed, **_: (model, {"seed": seed})
    )
    record = run_occluded(0)
    assert record["seed"] == 0
    curves = [
        (kind, side, name, curve)
        for kind in ("paper", "exchanged")
        for side in ("most", "least")
        for name, curve in record[kind][side].items()
    ]
    assert len(curves) == 2 * 2 * 6 and len({curve[0] for *_, curve in curves}) == 1
    assert all(len(curve) == MOST + 1 for *_, curve in curves)
    parts = occlusion.digit_images(0)
    darkest = patchify(parts[2], 2).sum(-1).argmax(1, keepdim=True)
    for kind, change in (("paper", painted_over), ("exchanged", exchanged)):
        expected = change(model, parts[2], parts[3], darkest)
        assert record[kind]["most"]["ink"][1] == pytest.approx(expected, abs=1e-4)
    assert "digits_occluded" in RUNS
