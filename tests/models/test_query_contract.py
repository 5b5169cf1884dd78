"""What every model that answers with queries owes, in each of its tasks, on a tiny backbone and with few queries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graph import in_graph
from torch import Tensor, nn

from zoo.data import create_dataset
from zoo.devices import create_fabric
from zoo.errors import ZooError
from zoo.evaluation import cost
from zoo.models import MODELS, create_model, list_models
from zoo.models.queries import points
from zoo.models.queries.criterion import Truth
from zoo.models.queries.model import QueryModel
from zoo.structures import TASKS, VOID, Batch, Class, Instances, Panoptic, Semantic
from zoo.weights import build as rebuild
from zoo.weights import load_weights

TINY = "test_resnet"
SIZE = 64
TABLE = [Class("ground", (0, 0, 0)), Class("square", (255, 0, 0), True), Class("disc", (0, 255, 0), True)]
SMALL: dict[str, dict[str, Any]] = {
    "maskformer": {"queries": 8, "channels": 32, "heads": 4, "layers": 2, "width": 64, "dropout": 0.0},
    "mask2former": {
        "queries": 8,
        "channels": 32,
        "heads": 4,
        "layers": 3,
        "width": 64,
        "encoder_layers": 1,
        "encoder_width": 64,
        "points": 256,
    },
}
every_model = pytest.mark.parametrize("name", sorted(SMALL))
every_task = pytest.mark.parametrize("task", TASKS)


def test_every_query_model_is_tested_here() -> None:
    assert {name for name, model in MODELS.items() if issubclass(model, QueryModel)} == set(SMALL)
    assert all(name in list_models(task) for name in SMALL for task in TASKS)


def build(name: str, task: str = "panoptic", in_channels: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    classes = TABLE[1:] if task == "instance" else TABLE
    return create_model(name, classes, TINY, in_channels=in_channels, task=task, **{**SMALL[name], **options})


def scenes(task: str = "panoptic", count: int = 2, channels: int = 3, size: int = SIZE) -> Batch:
    """Images with a bright square and a dark disc on the ground; a strip at the top is void."""
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    images, targets = 0.5 + 0.05 * torch.randn(count, channels, size, size, generator=generator), []
    for number, image in enumerate(images):
        left = 6 + 9 * number
        square = (x >= left) & (x < left + 22) & (y >= 6) & (y < 28)
        disc = (x - 42) ** 2 + (y - 44) ** 2 < 14**2
        image[:, square], image[:, disc] = 0.95, 0.05
        ids = torch.ones(size, size, dtype=torch.int32)
        ids[square], ids[disc], ids[:3] = 2, 3, 0
        targets.append(convert(Panoptic(ids, [VOID, 0, 1, 2]), task))
    return Batch.of(images.clamp(0, 1), targets)


def convert(truth: Panoptic, task: str) -> Any:
    return {"panoptic": truth, "semantic": truth.semantic(), "instance": truth.instances(TABLE)}[task]


def nothing(task: str, size: int = SIZE) -> Any:
    """Truth without a segment."""
    void = Panoptic(torch.zeros(size, size), [VOID])
    return convert(void, task)


def evenly(shape: tuple[int, int], device: torch.device) -> Tensor:
    """Points in place of drawn ones."""
    return torch.linspace(0, 1, 2 * shape[0] * shape[1]).view(*shape, 2)


def same(a: Any, b: Any) -> bool:
    """Whether predictions agree but for a few pixels of rounding."""
    if isinstance(a, Instances):
        close = torch.allclose(a.scores, b.scores, atol=1e-3)
        return close and bool((a.masks.dense() != b.masks.dense()).float().mean() < 0.01)
    if isinstance(a, Panoptic):
        return torch.equal(a.labels, b.labels) and bool((a.ids != b.ids).float().mean() < 0.01)
    return bool((a.labels != b.labels).float().mean() < 0.01)


@every_model
def test_forward_is_the_same_in_both_modes_and_takes_any_size_and_channels(name: str) -> None:
    for channels, size in ((1, (70, 101)), (5, (33, 40))):
        model = build(name, in_channels=channels)
        pixels = torch.randint(0, 256, (2, channels, *size), dtype=torch.uint8)
        with torch.no_grad():
            a, b = model.train()(pixels), model.eval()(pixels / 255)
        for outputs in (a, b):
            height, width = (-(-side // 32) * 8 for side in size)
            assert outputs.logits.shape == (2, 8, 4)
            assert outputs.masks.shape == (2, 8, height, width)
            assert all(x.isfinite().all() for x in outputs)
        for task in TASKS:
            model.task = task
            (first, _) = model.predict(Batch.of(pixels))
            assert first.size == size


@every_model
@every_task
def test_a_batch_of_one_trains_and_reaches_every_parameter(name: str, task: str) -> None:
    model = build(name, task).train()
    terms = model.loss(scenes(task, 1))
    assert 3 < len(terms) <= 6
    total = sum(terms.values())
    total.backward()
    assert torch.isfinite(total)
    assert {id(p) for p in model.parameters() if p.requires_grad} <= in_graph(total)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert sum(bool(gradient.any()) for gradient in gradients) > 0.7 * len(list(model.parameters()))


@every_model
@every_task
def test_images_without_a_segment_train(name: str, task: str) -> None:
    """They teach that there is nothing: no mask has anything to say, and every parameter is reached."""
    model = build(name, task).train()
    batch = scenes(task)
    batch.targets = [nothing(task), nothing(task)]
    terms = model.loss(batch)
    total = sum(terms.values())
    total.backward()
    assert terms["classification"] > 0
    assert terms["mask"] == terms["dice"] == 0
    assert {id(p) for p in model.parameters()} <= in_graph(total)
    batch.targets = [nothing(task), scenes(task).targets[1]]
    mixed = model.loss(batch)
    assert torch.isfinite(sum(mixed.values()))
    assert mixed["mask"] > 0
    assert {id(p) for p in model.parameters()} <= in_graph(sum(mixed.values()))


@every_model
def test_more_segments_than_queries_are_said_once(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = build(name, queries=2).train()
    batch = scenes()
    batch.ids = [7, 8]
    assert torch.isfinite(sum(model.loss(batch).values()))
    said = capsys.readouterr().err
    assert "image 7 has 3 segments and the model 2 queries: the other 1 cannot be learned; model.queries=3" in said
    sum(model.loss(batch).values()).backward()
    assert capsys.readouterr().err == ""


@every_model
def test_padding_is_zero_whatever_it_holds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        points, "draw", lambda shape, device: torch.linspace(0, 1, shape[0] * shape[1] * 2).view(*shape, 2)
    )
    model = build(name).eval()
    batch = scenes(count=1)
    noisy = torch.full((1, 3, 96, 80), 0.7)
    noisy[..., :SIZE, :SIZE] = batch.images
    zeroed = model.backbone.mean.expand_as(noisy).clone()
    zeroed[..., :SIZE, :SIZE] = batch.images
    size = [(SIZE, SIZE)]
    with torch.no_grad():
        terms, expected = (model.loss(Batch(x, batch.targets, size, size, [0])) for x in (noisy, zeroed))
    assert terms == expected
    (alone,), (padded,) = model.predict(batch), model.predict(Batch(noisy, batch.targets, size, size, [0]))
    assert same(alone, padded)


@every_model
@every_task
def test_two_images_are_learned_and_a_batch_predicts_what_its_images_do(name: str, task: str) -> None:
    model = build(name, task).train()
    batch = scenes(task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(80):
        total = sum(model.loss(batch).values())
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    predictions = model.predict(batch)
    assert all(module.training for module in model.modules())
    for prediction, truth in zip(predictions, batch.targets, strict=True):
        if task == "instance":
            labels = prediction.labels.tolist()
            best = prediction[[labels.index(0), labels.index(1)]]  # the first of each class: nothing else is as sure
            assert best.scores.min() > 0.5
            mine, true = best.masks.dense(), truth.masks.dense()[truth.labels.argsort()]
            assert ((mine & true).sum((1, 2)) / (mine | true).sum((1, 2))).min() > 0.7
            continue
        if task == "panoptic":
            assert sorted(prediction.labels.tolist()) == [0, 1, 2, VOID]
        labels, wanted = prediction.semantic().labels, truth.semantic().labels
        assert (labels == wanted)[wanted != VOID].float().mean() > 0.9
    other = Batch.of([batch.images[0], torch.rand(3, 48, 90), batch.images[1]])
    other.original_sizes = [(SIZE, SIZE), (96, 180), (40, 40)]
    together = model.predict(other)
    assert [p.size for p in together] == other.original_sizes
    assert same(together[0], predictions[0])
    for number, image in enumerate([batch.images[0], other.images[1, :, :48, :90], batch.images[1]]):
        alone = Batch.of([image])
        alone.original_sizes = [other.original_sizes[number]]
        assert same(model.predict(alone)[0], together[number])


@every_model
def test_its_cost_is_counted(name: str) -> None:
    """Learned queries are views of parameters, at which torch's counter stopped."""
    model = build(name, "panoptic")
    facts = cost(create_fabric(device="cpu"), model, create_dataset("scenes", task="panoptic", length=1, size=48))
    assert facts["flops"] > 1e6
    assert all(parameter.requires_grad for parameter in model.parameters())


@every_model
def test_header_rebuilds_the_model(name: str) -> None:
    model = build(name, "instance", test_size=48, detections=5).eval()
    again = rebuild({"format": "zoo", "header": model.header, "state": model.state_dict()})
    assert (again.task, again.classes) == ("instance", model.classes)
    batch = scenes("instance", 1)
    mine, other = model.predict(batch)[0], again.predict(batch)[0]
    assert len(mine) == 5
    assert torch.equal(mine.scores, other.scores)
    assert torch.equal(mine.masks.dense(), other.masks.dense())
    fresh = build(name, "panoptic")
    load_weights(fresh, {"format": "zoo", "header": model.header, "state": model.state_dict()}, skip_head=True)
    heads = {key for key, value in fresh.state_dict().items() if value.shape != model.state_dict()[key].shape}
    assert len(heads) == 2
    assert all(
        torch.equal(value, model.state_dict()[key]) for key, value in fresh.state_dict().items() if key not in heads
    )


@every_model
def test_half_precision_trains_and_predicts(name: str) -> None:
    model = build(name).train()
    batch = scenes()
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(batch)
        assert all(term.dtype == torch.float32 for term in terms.values())
        sum(terms.values()).backward()
        model.predict(batch)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        outputs = model.to(torch.bfloat16).eval()(batch.images)
        assert all(x.isfinite().all() and x.dtype == torch.bfloat16 for x in outputs)
        assert model.predict(batch)[0].size == (SIZE, SIZE)


@every_model
def test_a_diverged_training_does_not_crash_the_matching(name: str) -> None:
    model = build(name).train()
    first = next(p for key, p in model.named_parameters() if not key.startswith("backbone"))
    nn.init.constant_(first, float("nan"))
    assert not torch.isfinite(sum(model.loss(scenes()).values()))


@every_model
def test_truth_of_another_kind_is_refused(name: str) -> None:
    batch = scenes("semantic", 1)
    for task in ("panoptic", "instance"):
        with pytest.raises(ZooError, match=f"image 0 has Semantic for its truth: task={task} needs "):
            build(name, task).loss(batch)
    batch.targets = None
    with pytest.raises(ZooError, match="image 0 has no truth: task=panoptic needs Panoptic"):
        build(name).loss(batch)
    batch.targets = [Semantic(torch.zeros(3, 3))]
    with pytest.raises(ZooError, match=r"image 0 is \(64, 64\) \(height, width\) but its truth \(3, 3\)"):
        build(name, "semantic").loss(batch)


@every_model
def test_finer_truth_serves_the_semantic_task(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "draw", lambda shape, device: torch.full((*shape, 2), 0.4))
    model = build(name, "semantic").eval()
    coarse, fine = model.read_truth(scenes("semantic", 1)), model.read_truth(scenes("panoptic", 1))
    assert isinstance(coarse[0], Truth)
    assert all(torch.equal(a, b) for a, b in zip(coarse[0], fine[0], strict=True))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"task": "panoptics"}, "unknown task 'panoptics': did you mean panoptic"),
        ({"classes": 3}, "classes=3 does not say which classes are things"),
        ({"channels": 30}, "channels=30 must be a multiple of heads=4 and of 4"),
        ({"task": "semantic", "classes": 256}, "a semantic model has 1 to 255 classes, not 256"),
    ],
)
def test_mistakes_get_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ZooError, match=sentence):
        create_model("mask2former", backbone=TINY, **{"classes": TABLE, **SMALL["mask2former"], **options})


def test_a_swin_is_built_as_the_authors_have_it() -> None:
    """By name it comes with norms after its stages and pads before it shifts; other networks are as they are."""
    options = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 2], "window_size": 4}
    model = create_model(
        "mask2former",
        3,
        "swin_tiny_patch4_window7_224",
        backbone_options=options,
        task="semantic",
        **SMALL["mask2former"],
    )
    assert model.backbone.config["dense"]
    assert len(model.backbone.model.stage_norms) == 4
    model.train()
    total = sum(model.loss(Batch.of(torch.rand(1, 3, 40, 72), [Semantic(torch.zeros(40, 72))])).values())
    total.backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ZooError, match="backbone resnet18 has no dense=True"):
        create_model("mask2former", 3, "resnet18", backbone_options={"dense": True}, task="semantic")
