"""Evaluation on its own: what it writes, what it leaves alone, how classes are matched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import Tiny, cpu, scenes, small_fcn

from zoo.engine import evaluate
from zoo.errors import ZooError
from zoo.evaluation import renaming
from zoo.metrics import create_metric
from zoo.report import result
from zoo.state import Progress, freeze_norms
from zoo.structures import VOID, Batch, Class, Instances, Panoptic, Semantic, as_classes

ROOT = Path(__file__).parents[1]


def test_evaluation_writes_a_result_of_its_own(tmp_path: Path) -> None:
    val = scenes("val", 3)
    scores = evaluate(Tiny(val.classes), val, fabric=cpu(), out=tmp_path, batch_size=2)
    facts = result.read(tmp_path)
    assert facts["status"] == "ok"
    assert facts["metrics"] == pytest.approx(scores, nan_ok=True, abs=0)
    assert (tmp_path / "statistics.npz").exists()


def test_facts_of_the_caller_are_kept(tmp_path: Path) -> None:
    result.start(tmp_path, overrides=["model=tiny"], dataset={"name": "my scenes"})
    val = scenes("val", 1)
    evaluate(Tiny(val.classes), val, fabric=cpu(), out=tmp_path)
    facts = result.read(tmp_path)
    assert facts["overrides"] == ["model=tiny"]
    assert facts["dataset"]["images"] == 1


def test_evaluation_equals_a_plain_loop_for_any_batch_size() -> None:
    val = scenes("val", 5)
    model = small_fcn()
    metric = create_metric("semantic", val.classes)
    model.eval()
    for i in range(len(val)):
        metric.update(model.predict(Batch.collate([val[i]])), [val[i].target], [i])
    for batch_size in (1, 2):
        assert evaluate(model, val, fabric=cpu(), batch_size=batch_size) == pytest.approx(
            metric.compute(), nan_ok=True, abs=0
        )


def test_evaluation_leaves_modes_and_random_numbers_alone() -> None:
    model = small_fcn().train()
    freeze_norms(model, "backbone")
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    evaluate(model, scenes("val", 2), fabric=cpu())
    assert torch.equal(torch.rand(4), expected)
    assert [module.training for module in model.modules()] == modes


def test_classes_are_matched_by_name() -> None:
    val = scenes("val", 2)
    table = list(reversed(val.classes))
    own = (Class("unicorn", (1, 2, 3)), *table)
    model, plain = Tiny(own), Tiny(val.classes)
    with torch.no_grad():  # the same predictions under other numbers; unicorns are never predicted
        plain.head.weight.copy_(model.head.weight[1:].flip(0))
        plain.head.bias.copy_(model.head.bias[1:].flip(0))
        model.head.bias[0] = -1e9
    assert evaluate(model, val, fabric=cpu()) == pytest.approx(evaluate(plain, val, fabric=cpu()), nan_ok=True, abs=0)
    with pytest.raises(ZooError, match=r"no class in common: class_0, .* against "):
        evaluate(Tiny(as_classes(3)), val, fabric=cpu())
    with pytest.raises(ZooError, match="other classes than the dataset"):
        evaluate(plain, val, fabric=cpu(), metric=create_metric("semantic", 3))


def test_renaming_each_structure() -> None:
    rename = renaming(as_classes(["a", "b", "c"]), as_classes(["c", "a"]))
    labels = rename(Semantic(torch.tensor([[0, 1, 2, VOID]], dtype=torch.uint8))).labels
    assert labels.tolist() == [[1, VOID, 0, VOID]]
    assert labels.dtype == torch.uint8
    boxes = torch.tensor([[0.0, 0, 1, 1], [1, 1, 2, 2], [2, 2, 3, 3]])
    instances = rename(
        Instances(
            None,
            torch.tensor([2, 1, 0]),
            torch.tensor([0.9, 0.8, 0.7]),
            torch.zeros(3, dtype=torch.bool),
            boxes,
            size=(4, 4),
        )
    )
    assert instances.labels.tolist() == [0, 1]
    assert instances.boxes.tolist() == boxes[[0, 2]].tolist()
    panoptic = rename(
        Panoptic(
            torch.tensor([[0, 1, 2, 3]], dtype=torch.int32),
            torch.tensor([VOID, 1, 2, 0]),
            torch.ones(4),
            torch.zeros(4, dtype=torch.bool),
        )
    )
    assert panoptic.ids.tolist() == [[0, 0, 1, 2]]
    assert panoptic.labels.tolist() == [VOID, 0, 1]
    same_classes = as_classes(["a"])
    prediction = Semantic(torch.zeros(1, 1, dtype=torch.uint8))
    assert renaming(same_classes, same_classes)(prediction) is prediction


def test_progress_counts_misses_and_nan_is_worst() -> None:
    progress = Progress(step=1)
    assert progress.judge(float("nan"))
    assert progress.judge(0.0)
    assert not progress.judge(0.0)
    assert not progress.judge(float("nan"))
    assert progress.misses == 2
