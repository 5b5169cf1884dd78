"""What SemanticModel does around a decoder: losses, windows, scales, flips, sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zoo.errors import ZooError
from zoo.models.backbone import Backbone
from zoo.models.layers import BatchNormPooled, resize
from zoo.models.semantic import SemanticModel, scaled, short_side, window_starts
from zoo.ops import strips
from zoo.structures import VOID, Batch, Semantic

CLASSES = 3


class Pixels(nn.Module):
    """A backbone whose only feature is the image."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x]


class Toy(SemanticModel):
    """Classes from a pixel and its left neighbours: `reach` decides how many, none makes it pointwise."""

    def __init__(self, reach: int = 0, heads: int = 0, classes: int = CLASSES, **options: object) -> None:
        backbone = Backbone("pixels", Pixels(), [3], [1], mean=[0.5] * 3, std=[0.25] * 3, config={})
        super().__init__(classes, backbone, **options)
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(3 * torch.randn(classes, 3, 1, reach + 1, generator=generator))
        self.heads = nn.ParameterList(torch.randn(CLASSES, 3, 1, 1, generator=generator) for _ in range(heads))
        self.reach = reach

    def decode(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        return F.conv2d(F.pad(features[-1], (self.reach, 0, 0, 0)), self.weight)

    def auxiliary(self, features: list[Tensor]) -> list[tuple[float, Tensor]]:
        return [(0.25, F.conv2d(features[-1], head)) for head in self.heads]


def images(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(4))


def labelled(count: int = 2, height: int = 8, width: int = 9) -> Batch:
    labels = torch.randint(0, CLASSES, (count, height, width), generator=torch.Generator().manual_seed(5))
    return Batch.of(images(count, height, width), [Semantic(row.to(torch.uint8)) for row in labels])


def test_loss_is_the_mean_over_valid_pixels_plus_weighted_heads() -> None:
    model, batch = Toy(heads=2), labelled()
    batch.targets[0].labels[:3] = VOID
    terms = model.loss(batch)
    truth = torch.stack([target.labels for target in batch.targets]).long()
    x = (batch.images - 0.5) / 0.25
    expected = [F.cross_entropy(F.conv2d(x, w), truth, ignore_index=VOID) for w in (model.weight, *model.heads)]
    assert list(terms) == ["cross_entropy", "auxiliary"]
    torch.testing.assert_close(terms["cross_entropy"], expected[0])
    torch.testing.assert_close(terms["auxiliary"], 0.25 * (expected[1] + expected[2]))


def test_loss_needs_truth_of_the_images_size() -> None:
    batch = labelled()
    batch.targets[1] = None
    with pytest.raises(ZooError, match="image 1 has no truth"):
        Toy().loss(batch)
    batch.targets[1] = Semantic(torch.zeros(8, 8, dtype=torch.uint8))
    with pytest.raises(ZooError, match=r"image 1 is \(8, 9\).*truth \(8, 8\)"):
        Toy().loss(batch)


@pytest.mark.filterwarnings("ignore")
def test_a_parameter_nothing_uses_does_not_stop_distributed_training(tmp_path: Path) -> None:
    """DDP raises in the second step where the first left a parameter out of its graph."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        model = Toy(heads=1)
        model.forward = model.loss
        parallel = nn.parallel.DistributedDataParallel(model)
        for _ in range(3):
            sum(parallel(labelled()).values()).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert model.weight.grad.any()
    idle = model.backbone.model.idle.grad
    assert idle is None or not idle.any()


def test_pixels_do_not_see_their_windows_flips_or_neighbours() -> None:
    batch = Batch.of(images(2, 40, 50))
    expected = [p.labels for p in Toy().predict(batch)]
    for options in ({"window": 16}, {"window": (16, 30), "overlap": 0.0}, {"flip": True}, {"window": 16, "flip": True}):
        predictions = Toy(**options).predict(batch)
        assert all(torch.equal(p.labels, e) for p, e in zip(predictions, expected, strict=True)), options


def test_windows_average_probabilities() -> None:
    model = Toy(reach=3, window=(8, 6), overlap=0.5)
    x = images(1, 8, 9)
    probabilities = torch.zeros(CLASSES, 8, 9)
    count = torch.zeros(9)
    for left in (0, 3):  # windows of 6 in 9 columns, half of each shared
        view = (x[..., left : left + 6] - 0.5) / 0.25
        probabilities[..., left : left + 6] += model.decode([view], (8, 6)).softmax(1)[0]
        count[left : left + 6] += 1
    expected = (probabilities / count).argmax(0)
    labels = model.predict(Batch.of(x))[0].labels
    assert torch.equal(labels.long(), expected)
    assert not torch.equal(labels, Toy(reach=3).predict(Batch.of(x))[0].labels)


def test_flip_and_scales_average_probabilities() -> None:
    model = Toy(reach=3, flip=True, scales=(1.0, 0.5))
    x = images(1, 12, 20)
    normalized = (x - 0.5) / 0.25
    half = F.interpolate(normalized, size=(6, 10), mode="bilinear", antialias=True)
    mean = torch.zeros(1, CLASSES, 12, 20)
    for view in (normalized, half):
        straight = model.decode([view], view.shape[-2:]).softmax(1)
        mirrored = model.decode([view.flip(-1)], view.shape[-2:]).softmax(1).flip(-1)
        for scores in (straight, mirrored):
            mean += F.interpolate(scores, size=(12, 20), mode="bilinear") / 4
    assert torch.equal(model.predict(Batch.of(x))[0].labels.long(), mean[0].argmax(0))


class Coarse(Toy):
    """Logits at a quarter of the size, or at all of it, and of a type of one's choice."""

    def __init__(self, full: bool = False, dtype: torch.dtype = torch.float32, **options: object) -> None:
        super().__init__(reach=3, **options)
        self.full, self.dtype = full, dtype

    def decode(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        x = features[-1] if self.full else F.avg_pool2d(features[-1], 4, ceil_mode=True)
        return super().decode([x], size).to(self.dtype)


def plain_prediction(model: SemanticModel, batch: Batch) -> list[Tensor]:
    """What `predict` means, said with whole tensors: all classes, all windows, all views at full size."""

    def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
        return resize(x.float(), size, model.align_corners)

    results = []
    for image, (height, width), original in zip(batch.images, batch.sizes, batch.original_sizes, strict=True):
        x = 4 * image[None, :, :height, :width] - 2
        if model.test_size:
            x = F.interpolate(x, size=short_side((height, width), model.test_size), mode="bilinear", antialias=True)
        size = tuple(x.shape[-2:])
        views = [(s, m) for s in model.scales for m in ((False, True) if model.flip else (False,))]
        total = torch.zeros(1, len(model.classes), *size)
        for scale, mirrored in views:
            view = x if scale == 1 else F.interpolate(x, size=scaled(size, scale), mode="bilinear", antialias=True)
            view = view.flip(-1) if mirrored else view
            full = tuple(view.shape[-2:])
            window = model.window or full
            tops, lefts = (window_starts(a, b, model.overlap) for a, b in zip(full, window, strict=True))
            scores, count = torch.zeros(1, len(model.classes), *full), torch.zeros(full)
            for top in tops:
                for left in lefts:
                    rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
                    part = view[..., rows, columns]
                    logits = resized(model.decode([part], part.shape[-2:]), part.shape[-2:])
                    single = len(views) == len(tops) == len(lefts) == 1
                    scores[..., rows, columns] += logits if single else logits.softmax(1)
                    count[rows, columns] += 1
            scores = scores / count
            total += resized(scores.flip(-1) if mirrored else scores, size)
        results.append(resized(total / len(views), original).argmax(1)[0])
    return results


@pytest.mark.parametrize("decoder", [{}, {"full": True}, {"dtype": torch.bfloat16}, {"dtype": torch.float16}])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"test_size": 31},
        {"test_size": 90, "align_corners": True},
        {"window": 20},
        {"window": (25, 1000), "overlap": 0.0},
        {"window": (1000, 24), "overlap": 0.7, "test_size": 60},
        {"flip": True, "window": 23, "align_corners": True},
        {"flip": True, "scales": (0.5, 1.0, 1.7)},
        {"flip": True, "scales": (0.3, 1.3), "window": (28, 36), "test_size": 45},
    ],
)
def test_strips_predict_what_whole_tensors_do(
    options: dict[str, Any], decoder: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch.of([images(1, 51, 67)[0], images(1, 40, 30)[0], images(2, 51, 67)[1]])
    batch.original_sizes = [(51, 67), (90, 160), (30, 41)]
    model = Coarse(classes=7, **options, **decoder)
    expected = plain_prediction(model, batch)
    for rows in (3, 64):
        monkeypatch.setattr(strips, "_SCORES", {"cpu": 1})
        monkeypatch.setattr(strips, "_ROWS", rows)
        for prediction, labels in zip(model.predict(batch), expected, strict=True):
            assert torch.equal(prediction.labels.long(), labels), rows


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation gave."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"test_size": 150},
        {"window": 40},
        {"window": 40, "test_size": 150},
        {"flip": True, "scales": (0.5, 1.0)},
        {"flip": True, "window": 40},
    ],
)
def test_all_classes_are_never_at_full_size(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is as large as a quarter of (K, H, W): not the image, the strips, the rows that windows touch."""
    monkeypatch.setattr(strips, "_SCORES", {"cpu": 1})
    model, batch = Coarse(classes=40, overlap=0.0, **options), Batch.of(images(1, 256, 200))
    with Largest() as largest:
        model.predict(batch)
    assert 3 * 256 * 200 <= largest.elements < 40 * 256 * 200 / 4


def test_test_size_is_what_the_network_sees() -> None:
    seen = []

    class Watched(Toy):
        def decode(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
            seen.append(tuple(features[-1].shape[-2:]))
            return super().decode(features, size)

    model = Watched(test_size=24)
    model.predict(Batch.of(images(1, 12, 20)))  # the first time, a corner is looked at too: see fold.py
    seen.clear()
    prediction = model.predict(Batch.of(images(1, 12, 20)))[0]
    assert seen == [(24, 40)]
    assert prediction.size == (12, 20)


def test_images_of_one_size_share_a_forward_pass() -> None:
    seen = []

    class Watched(Toy):
        def decode(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
            seen.append(tuple(features[-1].shape))
            return super().decode(features, size)

    parts = [images(1, 8, 9)[0], images(1, 6, 6)[0], images(1, 8, 9)[0]]
    model = Watched()
    model.predict(Batch.of(parts[:1]))  # the first time, a corner is looked at too: see fold.py
    seen.clear()
    predictions = model.predict(Batch.of(parts))
    assert sorted(seen) == [(1, 3, 6, 6), (2, 3, 8, 9)]
    assert [p.size for p in predictions] == [(8, 9), (6, 6), (8, 9)]


def test_predict_restores_every_modules_mode() -> None:
    model = Toy().train()
    model.backbone.eval()
    model.predict(Batch.of(images(1, 8, 9)))
    assert model.training
    assert not model.backbone.training


@pytest.mark.parametrize(
    ("length", "window", "overlap", "expected"),
    [
        (10, 12, 0.5, [0]),
        (12, 12, 0.5, [0]),
        (13, 12, 0.5, [0, 1]),
        (10, 4, 0.5, [0, 2, 4, 6]),
        (11, 4, 0.5, [0, 2, 4, 6, 7]),
        (8, 4, 0.0, [0, 4]),
        (769, 512, 1 / 3, [0, 257]),
    ],
)
def test_window_starts(length: int, window: int, overlap: float, expected: list[int]) -> None:
    assert window_starts(length, window, overlap) == expected


def test_sizes() -> None:
    assert short_side((480, 640), 520) == (520, 693)
    assert short_side((500, 375), 520) == (693, 520)
    assert scaled((33, 97), 0.5) == (16, 48)
    assert scaled((1, 1), 0.1) == (1, 1)


def test_pooled_norm_is_batch_norm_but_for_a_single_value() -> None:
    pooled, plain = BatchNormPooled(4).train(), nn.BatchNorm2d(4).train()
    x = torch.randn(3, 4, 1, 1)
    assert torch.equal(pooled(x), plain(x))
    assert torch.equal(pooled.running_var, plain.running_var)
    before = pooled.running_mean.clone()
    one = pooled(x[:1])
    assert torch.equal(pooled.running_mean, before)
    assert torch.equal(one, pooled.eval()(x[:1]))


@pytest.mark.parametrize("window", [0, -5, [512], [512, 0], (1, 2, 3), "512", 12.5])
def test_a_window_that_is_none_is_said(window: Any) -> None:
    with pytest.raises(ZooError, match=r"^window=.*: give the side of a window or its \[height, width\], in pixels"):
        Toy(window=window)


def test_scales_that_are_none_are_said() -> None:
    with pytest.raises(ZooError, match=r"^scales=1.5: give one or more positive factors"):
        Toy(scales=1.5)
