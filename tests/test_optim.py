"""Parameter groups and schedules against hand-computed cases and torch's own schedulers."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
from torch import nn

from zoo.errors import ZooError
from zoo.optim import create_optimizer, create_schedule


class Model(nn.Module):
    """A timm trunk as backbone and a convolution with bias as head."""

    def __init__(self, backbone: str = "test_resnet") -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.model = timm.create_model(backbone, features_only=True, feature_cls="getter")
        self.head = nn.Conv2d(8, 3, 1)


def by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {name: groups[id(p)] for name, p in model.named_parameters() if id(p) in groups}


def test_norms_and_biases_are_not_decayed() -> None:
    model = Model()
    groups = by_name(model, create_optimizer(model, lr=0.1, weight_decay=0.05))
    modules = dict(model.named_modules())
    assert len(groups) == len(list(model.parameters()))
    for name, group in groups.items():
        owner, _, leaf = name.rpartition(".")
        plain = leaf == "bias" or isinstance(modules[owner], nn.BatchNorm2d)
        assert group["weight_decay"] == (0.0 if plain else 0.05), name


def test_backbone_has_its_own_rate() -> None:
    model = Model()
    groups = by_name(model, create_optimizer(model, "sgd", lr=0.1, backbone_lr_factor=0.1))
    for name, group in groups.items():
        assert group["lr"] == group["initial_lr"] == pytest.approx(0.01 if name.startswith("backbone") else 0.1)


def test_copies_of_a_part_of_the_backbone_have_its_rate() -> None:
    model = Model()
    model.copy = copy.deepcopy(model.backbone)
    model.backbone_copies = ("copy.",)
    groups = by_name(model, create_optimizer(model, "sgd", lr=0.1, backbone_lr_factor=0.1))
    rates = {name.split(".")[0]: group["lr"] for name, group in groups.items()}
    assert rates == pytest.approx({"backbone": 0.01, "copy": 0.01, "head": 0.1})


@pytest.mark.parametrize(("name", "options"), [("adamw", {}), ("adam", {}), ("sgd", {"nesterov": True})])
def test_one_pass_over_the_weights_steps_as_many_do(name: str, options: dict) -> None:
    torch.manual_seed(0)
    ours = Model().double()
    theirs = copy.deepcopy(ours)
    fused, plain = (
        create_optimizer(m, name, lr=0.1, **options, **e) for m, e in ((ours, {}), (theirs, {"fused": False}))
    )
    assert fused.defaults["fused"]
    assert not plain.defaults["fused"]
    for _ in range(3):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        fused.step()
        plain.step()
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12, msg=key)


def test_all_is_decayed_on_wish_but_what_a_module_excludes() -> None:
    model = Model()
    optimizer = create_optimizer(model, weight_decay=0.05, decay_vectors=True)
    assert {group["weight_decay"] for group in by_name(model, optimizer).values()} == {0.05}
    vit = Model("test_vit")
    groups = by_name(vit, create_optimizer(vit, weight_decay=0.05, decay_vectors=True))
    spared = {name for name, group in groups.items() if group["weight_decay"] == 0}
    assert spared
    assert all("pos_embed" in name or "token" in name for name in spared)


def test_biases_of_convolutions_have_their_own_rate_and_those_of_norms_do_not() -> None:
    model = Model()
    model.lonely = nn.Parameter(torch.zeros(3))
    groups = by_name(model, create_optimizer(model, "sgd", lr=0.1, backbone_lr_factor=0.5, bias_lr_factor=2.0))
    expected = {"head.bias": 0.2, "head.weight": 0.1, "lonely": 0.1}
    assert {name: groups[name]["lr"] for name in expected} == pytest.approx(expected)
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert {groups[f"{name}.bias"]["lr"] for name in norms} == {0.05}


def test_layer_decay_follows_depth_and_excludes_position_embeddings() -> None:
    model = Model("test_vit")
    groups = by_name(model, create_optimizer(model, lr=1.0, weight_decay=0.05, layer_decay=0.5))
    depth = len(model.backbone.model.model.blocks)
    trunk = "backbone.model.model"
    rates = [groups[f"{trunk}.blocks.{i}.attn.qkv.weight"]["lr"] for i in range(depth)]
    assert rates == [rates[-1] * 0.5 ** (depth - 1 - i) for i in range(depth)]
    assert groups[f"{trunk}.patch_embed.proj.weight"]["lr"] == rates[0] / 2
    assert groups["head.weight"]["lr"] == 1.0
    assert max(rates) <= 1.0
    assert groups[f"{trunk}.pos_embed"]["weight_decay"] == 0.0


def test_frozen_parameters_are_left_out() -> None:
    model = Model()
    model.backbone.requires_grad_(False)
    assert set(by_name(model, create_optimizer(model))) == {"head.weight", "head.bias"}
    model.requires_grad_(False)
    with pytest.raises(ZooError, match="no trainable parameter"):
        create_optimizer(model)


def test_sgd_is_classical_and_options_reach_the_optimizer() -> None:
    assert not create_optimizer(Model(), "sgd").defaults["nesterov"]
    assert create_optimizer(Model(), "sgd", nesterov=True).defaults["nesterov"]
    assert create_optimizer(Model(), "adamw", betas=[0.9, 0.95]).defaults["betas"] == (0.9, 0.95)
    assert (
        create_optimizer(Model(), "adamw", eps=None).defaults["eps"]
        == torch.optim.AdamW(Model().parameters()).defaults["eps"]
    )


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ZooError, match="did you mean adamw"):
        create_optimizer(Model(), "adamww")
    with pytest.raises(ZooError, match=r"optimizer adamw: .*nesterof"):
        create_optimizer(Model(), "adamw", nesterof=True)
    with pytest.raises(ZooError, match="did you mean poly"):
        create_schedule("polly", 10)
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    with pytest.raises(ZooError, match="layer_decay needs"):
        create_optimizer(model, layer_decay=0.5)


def rates(scheduler_class: type, steps: int, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = scheduler_class(optimizer, **options)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_curves_are_those_of_torch() -> None:
    steps = 17
    poly = create_schedule("poly", steps, power=0.9)
    cosine = create_schedule("cosine", steps)
    expected = rates(torch.optim.lr_scheduler.PolynomialLR, steps, total_iters=steps, power=0.9)
    assert [poly(i) for i in range(steps)] == pytest.approx(expected, rel=1e-12)
    expected = rates(torch.optim.lr_scheduler.CosineAnnealingLR, steps, T_max=steps)
    assert [cosine(i) for i in range(steps)] == pytest.approx(expected, rel=1e-12)
    assert poly(steps) == 0.0
    assert create_schedule("constant", steps)(5) == 1.0


def test_warm_up_rises_to_one_and_hands_over() -> None:
    schedule = create_schedule("cosine", 14, warmup=4)
    assert [schedule(i) for i in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert schedule(9) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)
    short = create_schedule("poly", 2, warmup=100)
    assert [short(0), short(1)] == [0.01, 0.02]
