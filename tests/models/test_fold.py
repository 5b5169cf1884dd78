"""Prediction without batch norms and in channels_last: the same logits, and nothing of the model is touched."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from peers import assert_equal, randomized
from timm.models import FeatureHooks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from zoo.errors import ZooError
from zoo.models import create_model, fold
from zoo.models.backbone import create_backbone
from zoo.models.fold import _SEEN, _applies, folded, folding
from zoo.models.semantic import SemanticModel
from zoo.structures import Batch


class Counting(TorchFunctionMode):
    """How many batch norms are computed, and in what memory format convolutions are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = self.planar = 0
        self.filters: list[int] = []  # of each convolution

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.norms += func is F.batch_norm
        result = func(*args, **(kwargs or {}))
        if func is torch.conv2d:
            self.planar += not result.is_contiguous(memory_format=torch.channels_last)
            self.filters.append(result.shape[1])
        return result


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def net(*layers: nn.Module) -> nn.Sequential:
    return randomized(nn.Sequential(*layers))  # type: ignore[return-value]


def computed(model: nn.Module, images: Tensor) -> tuple[Tensor, Counting]:
    """The output with folding; the counting mode lies under it, and sees what is left to compute."""
    with Counting() as count, folding(model, model, images):
        count.norms = count.planar = 0  # finding the pairs is over
        count.filters.clear()
        output = model(images)
    return output, count


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_algebra_is_torchs(bias: bool, affine: bool) -> None:
    conv, norm = nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8, affine=affine)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    if affine:
        norm.weight.normal_()
        norm.bias.normal_()
    expected = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    for ours, theirs in zip(folded(conv.weight, conv.bias, norm), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["unet", "deeplabv3"])
@pytest.mark.parametrize("backbone", ["test_resnet", "mobilenetv3_small_050"])
def test_predicts_the_same_without_norms(name: str, backbone: str) -> None:
    model = randomized(create_model(name, 5, backbone))
    images = torch.rand(2, 3, 65, 83)
    normalized = model.backbone.normalize(images)
    expected = model.segment(normalized)
    with Counting() as count, folding(model, model.segment, normalized):
        count.norms = count.planar = 0
        output = model.segment(normalized)
    assert_equal(output, expected)
    _, pairs = _SEEN[model]
    assert pairs is not None
    assert count.planar == 0
    assert count.norms <= sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) - 10
    labels = [prediction.labels for prediction in model.predict(Batch.of(images))]
    assert (torch.stack(labels) == expected.argmax(1)).float().mean() > 0.999


def test_convolutions_run_in_channels_last_and_norms_are_gone() -> None:
    model = net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    images = torch.randn(1, 3, 20, 20)
    output, count = computed(model, images)
    assert_equal(output, model(images))
    assert (count.norms, count.planar) == (0, 0)


@pytest.mark.parametrize("bias", [False, True])
def test_filters_of_a_large_weight_take_turns(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of a small weight, nor of groups; and so many at a time that the convolution is fast."""
    monkeypatch.setattr(fold, "MANY_WEIGHTS", 250)
    monkeypatch.setattr(fold, "FILTERS", 4)
    model = net(
        nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU(inplace=True),  # 216 values
        nn.Conv2d(8, 10, 3, bias=bias), nn.BatchNorm2d(10), nn.ReLU(),  # 720: 72 a filter, four at a time all the same
        nn.Conv2d(10, 50, 3, groups=10, bias=bias), nn.BatchNorm2d(50),  # 450
        nn.Conv2d(50, 13, 1, bias=bias),  # 650: 50 a filter, four at a time, one at the end
    )  # fmt: skip
    images = torch.randn(1, 3, 20, 20)
    output, count = computed(model, images)
    assert_equal(output, model(images))
    assert count.filters == [8, 4, 4, 2, 50, 4, 4, 4, 1]
    assert (count.norms, count.planar) == (0, 0)


def test_a_norm_stays_where_its_filters_are_more_than_its_values() -> None:
    model = net(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
    small, large = torch.randn(1, 3, 5, 5), torch.randn(1, 3, 6, 6)  # 27 values of each filter, 25 and 36 pixels
    for images, norms in ((large, 0), (small, 1)):
        output, count = computed(model, images)
        assert_equal(output, model(images))
        assert count.norms == norms


def test_nothing_of_the_model_changes_and_nothing_goes_stale() -> None:
    model = randomized(create_model("unet", 3, "resnet10t"))
    batch = Batch.of(torch.rand(1, 3, 64, 64))
    before = copy.deepcopy(model.state_dict())
    keys = {name: set(vars(module)) for name, module in model.named_modules()}
    model.predict(batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == keys
    for change in (
        lambda: model.backbone.model.layer1[0].conv1.weight.mul_(-1),
        lambda: model.backbone.model.layer1[0].bn1.running_mean.add_(1),
        lambda: setattr(model.backbone.model.layer1[0], "bn1", nn.BatchNorm2d(64).eval()),
        lambda: model.load_state_dict(before),
        lambda: model.double().float(),  # other buffers
    ):
        change()
        expected = model(batch.images).argmax(1)
        assert (model.predict(batch)[0].labels == expected[0]).float().mean() > 0.999
    copied = copy.deepcopy(model)
    copied.backbone.model.layer1[0].conv1.weight.mul_(-1)
    expected = copied(batch.images).argmax(1)
    assert (copied.predict(batch)[0].labels == expected[0]).float().mean() > 0.999


class Branching(nn.Module):
    """A convolution whose output is read by its batch norm and by something else, and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = torch.cat([self.norms[0](x), x])
        y = self.norms[1](self.twice(y))
        return self.norms[2](self.twice(y))


def test_outputs_that_others_read_are_not_folded() -> None:
    model = randomized(Branching())
    images = torch.randn(1, 3, 16, 16)
    output, count = computed(model, images)
    assert_equal(output, model(images))
    assert _SEEN[model][1] == []
    assert count.norms == 3


class BatchStatistics(nn.BatchNorm2d):
    """Uses the batch's statistics in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, 0.0, self.eps)


class OtherEps(nn.BatchNorm2d):
    """Does not use its own epsilon."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=0.1)


@pytest.mark.parametrize("norm", [BatchStatistics, OtherEps])
def test_norms_that_do_something_else_are_not_folded(norm: type[nn.BatchNorm2d]) -> None:
    # On the corner that is looked at there are 64 pixels, on the image more than the 144 values of each filter.
    model = net(nn.Conv2d(3, 16, 1, stride=8), nn.Conv2d(16, 8, 3, padding=1), norm(8))
    images = torch.randn(1, 3, 256, 256)
    output, count = computed(model, images)
    assert_equal(output, model(images))
    assert _SEEN[model][1] == []
    assert count.norms == 1


class Between(nn.Module):
    """Changes what the convolution gives before the norm reads it."""

    def __init__(self, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.first, self.conv, self.norm = (
            nn.Conv2d(3, 16, 1, stride=8),
            nn.Conv2d(16, 8, 3, padding=1),
            nn.BatchNorm2d(8),
        )
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.first(x))
        assert x.ndim == len(x.shape) == x.dim()  # questions are no changes
        self.change(x)
        return self.norm(x)


@pytest.mark.parametrize(
    ("change", "pairs"),
    [
        (lambda x: x[..., :4].zero_(), 0),
        (Tensor.neg_, 0),
        (lambda x: x.__setitem__((..., slice(4)), 0), 0),
        (lambda x: np.negative(x.numpy(), out=x.numpy()), 0),
        (lambda x: None, 1),
    ],
)
def test_outputs_that_are_changed_are_not_folded(change: Callable[[Tensor], object], pairs: int) -> None:
    model = randomized(Between(change))
    images = torch.randn(1, 3, 256, 256)
    output, count = computed(model, images)
    assert_equal(output, model(images))
    found = _SEEN[model][1]
    assert found is not None
    assert (len(found), count.norms) == (pairs, 1 - pairs)


def test_an_output_that_is_changed_later_is_said() -> None:
    model = randomized(Between(lambda x: None))
    images = torch.randn(1, 3, 256, 256)
    computed(model, images)
    model.change = Tensor.neg_
    with pytest.raises(ZooError, match="between a convolution and its batch norm"):
        computed(model, images)


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_weights_that_are_made_in_the_forward_are_left_alone() -> None:
    model = net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    images = torch.randn(1, 3, 20, 20)
    with torch.enable_grad():
        parametrize.register_parametrization(model[0], "weight", Doubling())
        parametrize.register_parametrization(model[3], "bias", Doubling())
    for _ in range(3):
        with parametrize.cached():  # the same tensor for as long as this lasts
            output, count = computed(model, images)
            assert_equal(output, model(images))
        assert count.norms == 2
    assert _SEEN[model][1] == []


def test_pruned_layers_are_left_alone_until_it_is_permanent() -> None:
    model = net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    images = torch.randn(1, 3, 20, 20)
    computed(model, images)
    prune.random_unstructured(model[0], "weight", 0.3)
    for norms in (1, 1, 0):
        if norms == 0:
            prune.remove(model[0], "weight")
        output, count = computed(model, images)
        assert_equal(output, model(images))
        assert count.norms == norms


def test_a_model_that_needs_more_pixels_predicts() -> None:
    model = net(nn.Conv2d(3, 8, 3, stride=16), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 5))  # 64 pixels become 4
    images = torch.randn(1, 3, 160, 160)
    assert_equal(computed(model, images)[0], model(images))


def test_one_small_image_and_one_that_overflows_say_nothing_of_the_next() -> None:
    model = net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    images = torch.randn(1, 3, 20, 20)
    with pytest.raises(RuntimeError):
        computed(model, images[..., :2])
    assert computed(model, images * float("inf"))[1].norms == 1
    assert computed(model, images)[1].norms == 0


def test_models_are_not_kept_alive() -> None:
    model = net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model[0].__dict__["whole"] = model  # a child that knows its parent
    computed(model, torch.randn(1, 3, 20, 20))
    assert _SEEN[model][1]
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_off_under_autocast() -> None:
    model = net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    images = torch.randn(1, 3, 20, 20)
    for known in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            assert computed(model, images)[1].norms == 1
        assert (model in _SEEN) == known
        assert computed(model, images)[1].norms == 0


def test_hooks_see_the_images_that_are_predicted_and_no_others() -> None:
    model = net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    images = torch.randn(1, 3, 80, 80)
    seen: list[tuple[int, ...]] = []
    for register in (
        model[1].register_forward_hook,
        model[1].register_forward_pre_hook,
        nn.modules.module.register_module_forward_pre_hook,
    ):
        with register(lambda module, inputs, *_: seen.append(inputs[0].shape)), folding(model, model, images):
            model(images)
    assert set(seen) == {(1, 8, 78, 78), (1, 3, 80, 80)}
    assert computed(model, images)[1].norms == 0


def test_timms_hooks_are_no_obstacle() -> None:
    model = net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    FeatureHooks(["1"], model.named_modules())  # as in xception65
    assert computed(model, torch.randn(1, 3, 20, 20))[1].norms == 0


def test_a_norm_without_bias_is_folded() -> None:
    model = net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model[1].bias = None
    images = torch.randn(1, 3, 20, 20)
    output, count = computed(model, images)
    assert_equal(output, model(images))
    assert count.norms == 0


def test_norms_without_statistics_are_left_out() -> None:
    model = net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    images = torch.randn(1, 3, 20, 20)
    assert computed(model, images)[1].norms == 0
    statistics = model[1].running_mean, model[1].running_var
    model[1].running_mean = model[1].running_var = None
    output, count = computed(model, images)
    assert_equal(output, model(images))
    assert count.norms == 1
    model[1].running_mean, model[1].running_var = statistics
    assert computed(model, images)[1].norms == 0


class Viewing(nn.Module):
    """Needs planes, as some backbones do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x.view(len(x), -1)


def test_a_model_that_cannot_is_left_alone() -> None:
    model = randomized(Viewing())
    images = torch.randn(1, 3, 16, 16)
    output, _ = computed(model, images)
    assert _SEEN[model][1] is None
    assert_equal(output, model(images))


def test_layers_may_change_and_a_forward_that_changes_is_said() -> None:
    model = net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    images = torch.randn(1, 3, 16, 16)
    computed(model, images)
    model.insert(1, nn.ReLU())
    assert_equal(computed(model, images)[0], model(images))
    del model[1]
    computed(model, images)
    plain = model[0].forward
    model[0].forward = lambda x: plain(x) + 1
    with pytest.raises(ZooError, match=r"between a convolution and its batch norm.*deepcopy"):
        computed(model, images)


def test_off_where_gradients_are_recorded_in_half_precision_and_compiled() -> None:
    model = net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    images = torch.randn(1, 3, 16, 16)
    with torch.enable_grad():
        assert computed(model, images)[1].norms == 1
    assert computed(copy.deepcopy(model).bfloat16(), images.bfloat16())[1].norms == 1
    assert _applies(model)
    compiled = copy.deepcopy(model)
    compiled[0].compile(backend="eager")
    assert not _applies(compiled)
    backbone = create_backbone("test_resnet").eval()
    assert _applies(backbone)
    backbone.compile(backend="eager")
    assert not _applies(backbone)


def test_the_mode_ends_with_an_error() -> None:
    model = net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    images = torch.randn(1, 3, 16, 16)
    with pytest.raises(RuntimeError, match="stop"), folding(model, model, images):
        raise RuntimeError("stop")
    with Counting() as count:
        model(images)
    assert count.norms == 1


def test_forward_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    model: SemanticModel = randomized(create_model("unet", 3, "resnet10t"))  # type: ignore[assignment]
    monkeypatch.setattr("zoo.models.semantic.folding", lambda *_: pytest.fail("forward folds"))
    model(torch.rand(1, 3, 64, 64))
