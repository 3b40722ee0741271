"""Chapter 7's trainings: what is learned from, what the rivals may see, and how they are judged."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from attn_course.benchmarks.trainings import RUNS, classifiers, find_training, vision
from attn_course.benchmarks.trainings.classifiers import (
    FASHION,
    LECTURE,
    PACE,
    SIZES,
    accuracy,
    build,
    learn,
    share,
    shuffle_patches,
)
from attn_course.benchmarks.trainings.vision import (
    COUNTS,
    PRETRAINED,
    by_kernel,
    by_neighbours,
    digit_images,
    paced,
    run_counts,
    run_digits,
    run_look_up,
    run_shuffled,
    trained,
    vote,
)
from attn_course.data import FashionMNIST, checkpoints, digits, pretrained
from attn_course.vision import ViT, load_vit, patchify

MODELS = ("vit", "vit_unplaced", "vit_stem", "cnn")


def test_more_digits_hold_the_fewer_and_none_of_the_test() -> None:
    data = digits(seed=1)
    whole = digit_images(1)
    assert [tuple(part.shape) for part in whole] == [
        (1347, 1, 8, 8),
        (1347,),
        (450, 1, 8, 8),
        (450,),
    ]
    assert torch.equal(whole[2].flatten(1), data.test_images)
    assert torch.equal(whole[3], data.test_labels)
    label = dict(
        zip(map(tuple, data.train_images.tolist()), data.train_labels.tolist(), strict=True)
    )
    rows = [tuple(image.flatten().tolist()) for image in whole[0]]
    assert [label[row] for row in rows] == whole[1].tolist() and len(set(rows)) == 1347
    few = digit_images(1, 60)
    assert torch.equal(few[0], whole[0][:60]) and torch.equal(few[1], whole[1][:60])
    assert len(few[1].unique()) == 10 and torch.equal(few[2], whole[2])
    assert COUNTS[-1] == len(rows)


@pytest.mark.parametrize("sizes", [SIZES, FASHION])
@pytest.mark.parametrize("name", MODELS)
def test_each_answers(name: str, sizes: dict[str, Any]) -> None:
    side = sizes["image_size"]
    assert build(name, sizes)(torch.rand(3, 1, side, side)).shape == (3, 10)


@pytest.mark.parametrize("name", ["resnet", ""])
def test_others_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name must be one of 'vit', "):
        build(name)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_who_knows_where_a_patch_is(name: str) -> None:
    torch.manual_seed(0)
    model, images, order = build(name).eval(), torch.rand(4, 1, 8, 8), torch.randperm(16)
    same = torch.allclose(model(images), model(shuffle_patches(images, order)), atol=1e-5)
    assert same == (name == "vit_unplaced")


def test_places_are_not_learned_on_the_sly() -> None:
    model = build("vit_unplaced")
    learn(model, torch.rand(8, 1, 8, 8), torch.arange(8), steps=10, batch_size=4, progress=False)
    assert isinstance(model, ViT) and not model.position.any()
    placed = build("vit")
    assert isinstance(placed, ViT)
    before = placed.position.detach().clone()
    learn(placed, torch.rand(8, 1, 8, 8), torch.arange(8), steps=10, batch_size=4, progress=False)
    assert not torch.equal(before, placed.position)


def test_shuffled_patches_are_the_same_patches() -> None:
    images, order = torch.rand(2, 3, 8, 8), torch.randperm(16)
    cut_up = shuffle_patches(images, order)
    assert torch.equal(patchify(cut_up, 2), patchify(images, 2)[:, order])
    assert torch.equal(shuffle_patches(cut_up, order.argsort()), images)
    one = shuffle_patches(images, torch.tensor([5, *range(1, 5), 0, *range(6, 16)]))
    assert torch.equal(one[:, :, :2, :2], images[:, :, 2:4, 2:4])


class Line(nn.Module):
    """Counts its batches; a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.seen = nn.Linear(64, 10), []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen.append(images.clone())
        return self.out(images.flatten(1))


def test_steps_batches_and_rate() -> None:
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    model, images = Line(), torch.rand(7, 1, 8, 8)
    learn(
        model,
        images,
        torch.arange(7),
        steps=100,
        batch_size=3,
        augment=lambda x: x + 5,
        progress=False,
    )
    hook.remove()
    assert len(model.seen) == len(rates) == 100
    seen = torch.cat(model.seen)
    assert seen.shape == (300, 1, 8, 8) and seen.min() >= 5
    counts = [(seen - 5).isclose(image, atol=1e-5).all((1, 2, 3)).sum().item() for image in images]
    assert max(counts) - min(counts) <= 1
    assert max(rates) == pytest.approx(3e-3, rel=1e-3) and rates.index(max(rates)) in range(2, 7)
    assert rates[-1] < 1e-5 and rates[50] == pytest.approx(1.7e-3, rel=0.2)  # a cosine


@pytest.mark.parametrize("name", MODELS)
def test_learning_teaches(name: str) -> None:
    """Three kinds of stripes."""
    images = torch.zeros(3, 1, 8, 8)
    images[0, :, ::2], images[1, :, :, ::2], images[2, :, 2:6, 2:6] = 1, 1, 1
    torch.manual_seed(0)
    model, labels = build(name), torch.tensor([3, 0, 7])
    learn(model, images, labels, steps=60, batch_size=6, augment=None, progress=False)
    assert accuracy(model, images, labels) == 1.0


def test_accuracy_counts_all() -> None:
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.one_hot(images[:, 0, 0, 0].long(), 10) * self.weight

    labels = torch.arange(1203) % 10
    images = labels.float().view(-1, 1, 1, 1)
    assert accuracy(Told(), images, labels) == 1.0
    images[-3:] = 9 - images[-3:]
    assert accuracy(Told(), images, labels) == round(1200 / 1203, 4)
    assert share(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4])) == 0.6667


def test_equal_time() -> None:
    assert paced("vit", 500) == 500 and set(PACE) == set(MODELS)
    for name in MODELS:
        assert paced(name, 1500) % 10 == 0
        assert paced(name, 1500) == pytest.approx(1500 * PACE[name], abs=5)


def test_a_record_says_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "STEPS", 20)
    monkeypatch.setattr(vision, "SHORT_STEPS", 10)
    monkeypatch.setattr(vision, "COUNTS", (30, 60))
    record = run_digits("cnn", 3)
    assert record["seed"] == 3 and record["steps"] == paced("cnn", vision.STEPS)
    assert 0 <= record["accuracy"] <= 1 and record["seconds"] > 0
    assert run_digits("cnn", 3)["accuracy"] == record["accuracy"]  # the seed decides
    asked: list[tuple[Any, ...]] = []
    find = vision.digit_images
    monkeypatch.setattr(vision, "digit_images", lambda *given: asked.append(given) or find(*given))
    record = run_counts("vit", 6, augment=None)
    assert asked == [(6, 30), (6, 60)]
    assert record["steps"] == 10 and record["counts"] == (30, 60) and len(record["accuracy"]) == 2
    assert record["parameters"] == sum(p.numel() for p in build("vit").parameters())
    position = build("vit").position
    assert isinstance(position, Tensor)
    unplaced = run_shuffled("vit_unplaced", 0)
    assert unplaced["parameters"] == record["parameters"] - position.numel()
    assert unplaced["accuracy"]["whole"] == unplaced["accuracy"]["whole, then shuffled"]


def test_shuffling_comes_after_moving(monkeypatch: pytest.MonkeyPatch) -> None:
    """A digit is moved as a whole; then its patches are cut out, in the order of the test."""
    asked: list[dict[str, Any]] = []
    judged: list[Tensor] = []

    def note(name: str, parts: Any, seed: int, **training: Any) -> Any:
        asked.append(training)
        return nn.Identity(), {"seconds": 1.0, "core_seconds": 0.5}

    monkeypatch.setattr(vision, "trained", note)
    monkeypatch.setattr(vision, "random_affine", lambda images: images.roll(1, -1))
    monkeypatch.setattr(vision, "accuracy", lambda model, images, labels: judged.append(images))
    record = run_shuffled("vit", 2)
    assert record["seconds"] == 2.0 and record["core_seconds"] == 1.0
    test = digit_images(2)[2]
    plain, cut_up = asked
    assert "augment" not in plain
    assert torch.equal(judged[0], test) and torch.equal(judged[1], judged[2])
    assert not torch.equal(judged[1], test)
    order = [
        next(i for i in range(16) if torch.equal(patchify(test, 2)[:, i], found))
        for found in patchify(judged[1], 2).unbind(1)
    ]
    expected = shuffle_patches(test.roll(1, -1), torch.tensor(order))
    assert torch.equal(cut_up["augment"](test), expected)


def test_votes() -> None:
    distance = torch.tensor([[0.1, 0.3, 0.2, 0.9], [0.9, 0.1, 0.8, 0.7]])
    labels = torch.tensor([4, 7, 7, 4])
    assert vote(distance, labels, 1).tolist() == [4, 7]
    assert vote(distance, labels, 3).tolist() == [7, 7]


def test_neighbours_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The k is the best of leave-one-out, counted one by one."""
    parts = digit_images(0, 120)
    images, labels, test, truth = (part.flatten(1) if part.ndim > 1 else part for part in parts)
    k, right = by_neighbours(parts, copies=0)

    def left_out(k: int) -> int:
        hits = 0
        for row in range(len(images)):
            others = torch.arange(len(images)) != row
            rival = KNeighborsClassifier(k).fit(images[others], labels[others])
            hits += int(rival.predict(images[row : row + 1])[0] == labels[row])
        return hits

    candidates = (1, 5, 25)
    monkeypatch.setattr(vision, "NEIGHBOURS", candidates)
    k, right = by_neighbours(parts, copies=0)
    assert left_out(int(k)) == max(map(left_out, candidates))
    theirs = KNeighborsClassifier(int(k)).fit(images, labels).score(test, truth)
    assert right == pytest.approx(theirs, abs=0.01)  # equal distances may be told otherwise


def test_own_copies_are_no_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies that are not moved at all: k would look perfect if one's own were counted."""
    monkeypatch.setattr(vision, "random_affine", lambda images: images)
    monkeypatch.setattr(vision, "NEIGHBOURS", (1, 3))
    told: list[Tensor] = []
    count = vision.share

    def note(found: Tensor, labels: Tensor) -> float:
        told.append(found)
        return count(found, labels)

    monkeypatch.setattr(vision, "share", note)
    parts = digit_images(0, 100)
    by_neighbours(parts, copies=2)
    distance = torch.cdist(parts[0].flatten(1), parts[0].flatten(1)).fill_diagonal_(torch.inf)
    nearest = parts[1][distance.argmin(1)]
    assert torch.equal(told[0], nearest) and torch.equal(told[1], nearest)  # itself three times


def test_few_digits_have_few_neighbours() -> None:
    k, right = by_neighbours(digit_images(0, 10), copies=0)
    assert k < 10 and right > 0.1


def test_the_kernel_is_that_of_chapter_1() -> None:
    parts = digit_images(0, 200)
    images, labels, test, truth = (part.flatten(1) if part.ndim > 1 else part for part in parts)

    def scores(query: Tensor, width: float, own: bool) -> Tensor:
        logits = -(torch.cdist(query, images) ** 2) / (2 * width**2)
        if own:
            logits.fill_diagonal_(-torch.inf)
        return logits.softmax(1) @ nn.functional.one_hot(labels, 10).float()

    rated = {w: share(scores(images, w, True).argmax(1), labels) for w in vision.WIDTHS}
    width, right = by_kernel(parts)
    assert rated[width] == max(rated.values()) > rated[0.2]  # 0.2 would find every digit itself
    assert right == pytest.approx(share(scores(test, width, False).argmax(1), truth), abs=0.003)


def test_a_look_up_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "COUNTS", (20, 40))
    record = run_look_up(lambda parts: (parts[1].sum().item(), 0.5), 4)
    assert record["chosen"] == [digit_images(4, n)[1].sum().item() for n in (20, 40)]
    assert record["accuracy"] == [0.5, 0.5]
    assert record["seed"] == 4 and record["counts"] == (20, 40)


@pytest.fixture
def clothes(monkeypatch: pytest.MonkeyPatch) -> FashionMNIST:
    data = FashionMNIST(
        torch.rand(160, 1, 28, 28), torch.arange(160) % 10,
        torch.rand(30, 1, 28, 28), torch.arange(30) % 10,
    )  # fmt: skip
    monkeypatch.setattr(vision, "fashion_mnist", lambda: data)
    return data


@pytest.mark.parametrize("name", ["fashion_vit", "fashion_cnn"])
def test_clothes(name: str, clothes: FashionMNIST, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "FASHION_STEPS", 10)
    monkeypatch.setattr(vision, "FASHION", FASHION | {"embed_dim": 8, "num_layers": 1})
    record = vision.RUNS[name](0)
    assert record["steps"] == 10 and len(record["loss"]) == 10
    assert record["settings"]["patch_size"] == 4 and record["settings"]["batch_size"] == 128


def test_the_lecture(clothes: FashionMNIST, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (LECTURE["embed_dim"], LECTURE["hidden_dim"], LECTURE["num_heads"]) == (512, 2048, 8)
    assert (LECTURE["image_size"], LECTURE["patch_size"], LECTURE["num_layers"]) == (96, 16, 2)
    assert LECTURE["dropout"] == LECTURE["embedding_dropout"] == 0.1
    small = LECTURE | {"embed_dim": 8, "hidden_dim": 8}
    monkeypatch.setattr(vision, "LECTURE", small)
    record = vision.RUNS["fashion_lecture"](0)
    assert record["steps"] == 20 and len(record["loss"]) == 10  # two batches of 128, ten times
    assert record["settings"] == small | {
        "batch_size": 128, "lr": 0.1, "optimizer": "SGD", "epochs": 10
    }  # fmt: skip


def test_enlarged_images_look_the_same() -> None:
    model = classifiers.Enlarged(nn.Identity(), 12)
    flat = torch.full((2, 1, 4, 4), 0.3)
    torch.testing.assert_close(model(flat), torch.full((2, 1, 12, 12), 0.3))
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    found = model(ramp)[0, 0, 5]
    torch.testing.assert_close(found[1:-1], torch.linspace(0, 3, 10))


def test_what_is_kept_is_judged_as_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The options that it is made with today are the ones that it was stored with."""
    made: list[nn.Module] = []

    def untrained(
        name: str, parts: Any, seed: int, *, steps: int
    ) -> tuple[nn.Module, dict[str, Any]]:
        assert torch.equal(parts[0], digit_images(0)[0]) and (seed, steps) == (0, vision.STEPS)
        made.append(build(name).eval())
        return made[0], {}

    stored, state = pretrained("digits_vit")
    monkeypatch.setattr(vision, "trained", untrained)
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    path = PRETRAINED["digits_vit"]()
    assert path == tmp_path / "digits_vit.safetensors" and path.stat().st_size < 300_000
    assert list(PRETRAINED) == ["digits_vit"]
    config, kept = pretrained("digits_vit")
    assert {**config, "accuracy": 0} == {**stored, "accuracy": 0}
    assert all(torch.equal(kept[key], value) for key, value in made[0].state_dict().items())
    assert {k: v.shape for k, v in kept.items()} == {k: v.shape for k, v in state.items()}
    *_, test, truth = digit_images(0)
    assert config["accuracy"] == accuracy(load_vit(), test, truth)


def test_the_model_that_comes_with_the_course_is_as_good_as_it_says() -> None:
    *_, test, truth = digit_images(0)
    said = pretrained("digits_vit")[0]["accuracy"]
    assert accuracy(load_vit(), test, truth) == pytest.approx(said, abs=0.003)
    assert said >= 0.97


def test_stored_trainings_are_these() -> None:
    """At least 97 % of the digits, in the median of three seeds."""
    runs = find_training("digits_vit")["runs"]
    assert len(runs) >= 3 and sorted(run["accuracy"] for run in runs)[len(runs) // 2] >= 0.97
    assert {run["parameters"] for run in runs} == {
        sum(p.numel() for p in build("vit").parameters())
    }
    assert {run["steps"] for run in runs} == {vision.STEPS}
    for name in vision.RUNS:
        assert name in RUNS
        if "_counts_" in name:
            for run in find_training(name)["runs"]:
                assert tuple(run["counts"]) == COUNTS
                assert run.get("steps") in (None, *(paced(m, vision.SHORT_STEPS) for m in MODELS))


def test_training_is_given_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def note(model: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> Any:
        asked.update(options, images=len(images))
        return SimpleNamespace(seconds=1.25)

    monkeypatch.setattr(vision, "learn", note)
    _, record = trained("cnn", digit_images(0, 70), 5, steps=40, augment=None)
    assert asked == {"steps": paced("cnn", 40), "seed": 5, "augment": None, "images": 70}
    assert record["seconds"] == pytest.approx(1.2, abs=0.06) and record["steps"] == asked["steps"]
