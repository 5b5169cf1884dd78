"""What all metrics share: images counted once, states that merge in order, gathering over processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.metrics import InstanceMetric, PanopticMetric, SemanticMetric
from zoo.structures import VOID, Class, Instances, Masks, Panoptic, Semantic


def image(seed: int) -> Semantic:
    return Semantic(np.random.default_rng(seed).integers(0, 3, (6, 8), dtype=np.uint8))


def metric_of(*ids: int) -> SemanticMetric:
    metric = SemanticMetric(3)
    for i in ids:
        metric.update([image(i)], [image(i + 100)], [i])
    return metric


def instances_of(*ids: int) -> InstanceMetric:
    """Few scores, so that many tie and the order of images decides."""
    metric = InstanceMetric(3, boundary=0.02, objects=0.3, cityscapes=True)
    for i in ids:
        rng = np.random.default_rng(i)
        masks = rng.random((rng.integers(0, 7), 3, 12)) < 0.7
        found = Instances(Masks.from_dense(masks[:5]), rng.integers(0, 3, len(masks[:5])))
        found.scores = torch.from_numpy(rng.choice([0.2, 0.5], len(found))).float()
        metric.update([found], [Instances(Masks.from_dense(masks), [0, 1, 2, 0, 1, 2][: len(masks)])], [i])
    return metric


def panoptic_of(*ids: int) -> PanopticMetric:
    classes = [Class(str(k), (0, 0, 0), thing=k > 0) for k in range(3)]
    metric = PanopticMetric(classes, boundary=0.02, nuclei=True)
    for i in ids:
        rng = np.random.default_rng(i)
        truth = np.repeat(rng.integers(0, 5, (4, 6)), 4, 1)
        said = np.where(rng.random(truth.shape) < 0.8, truth, 2)
        labels = [VOID, 0, 1, 2, *rng.integers(0, 3, 1)]
        found = Panoptic(said, labels, rng.choice([0.2, 0.5], 5))
        metric.update([found], [Panoptic(truth, labels)], [i])
    return metric


def gather(metrics: list[Any]) -> None:
    """Make the first of several metrics see all, as a process group would: it needs tensors of one kind from each."""
    offered: list[list[Tensor]] = []
    for metric in metrics[1:]:
        tensors: list[Tensor] = []

        def record(tensor: Tensor, group: Any = None, tensors: list[Tensor] = tensors) -> list[Tensor]:
            tensors.append(tensor)
            return [tensor]

        metric.sync(record, distributed_available=lambda: True)
        metric.unsync()
        offered.append(tensors)
    turns = iter(zip(*offered, strict=True))

    def collect(tensor: Tensor, group: Any = None) -> list[Tensor]:
        others = next(turns)
        assert all(o.dtype == tensor.dtype and o.shape[1:] == tensor.shape[1:] for o in others)
        return [tensor, *others]

    metrics[0].dist_sync_fn = collect
    metrics[0].distributed_available_fn = lambda: True


@pytest.mark.parametrize("metric_of", [metric_of, instances_of, panoptic_of])
@pytest.mark.parametrize("split", [([0, 2, 4], [1, 3, 5]), ([5, 4], [3, 2, 1, 0]), ([], [0, 1, 2, 3, 4, 5])])
def test_processes_together_equal_one(
    split: tuple[list[int], list[int]], metric_of: Callable[..., SemanticMetric | InstanceMetric | PanopticMetric]
) -> None:
    whole = metric_of(0, 1, 2, 3, 4, 5)
    for mine, theirs in (split, split[::-1]):
        parts = [metric_of(*mine), metric_of(*theirs)]
        gather(parts)
        parts[0]._update_count = 1
        np.testing.assert_equal(parts[0].compute(), whole.compute())
        gather(parts)
        assert torch.equal(parts[0].rows()[1], whole.rows()[1])
        assert parts[0].table("ids").tolist() == mine  # own images alone remain
        gather(parts)
        drawn = parts[0].resampled(whole.main, 10, seed=0)
        np.testing.assert_array_equal(drawn, whole.resampled(whole.main, 10, seed=0))
        gather(parts)
        kept = parts[0].kept()
        assert all(torch.equal(rows, kept[name]) for name, rows in whole.kept().items())


def test_an_image_counts_once() -> None:
    with pytest.raises(ZooError, match="image 4 was evaluated twice"):
        metric_of(3, 4, 5, 4).compute()
    merged = metric_of(1, 2)
    merged.merge_state(metric_of(2, 3))
    with pytest.raises(ZooError, match="image 2 was evaluated twice"):
        merged.rows()


def test_images_without_ids_stay_in_order() -> None:
    metric = SemanticMetric(3)
    metric.update([image(0), image(1)], [image(0), image(1)])
    other = SemanticMetric(3)
    other.update([image(2)], [image(2)])
    metric.merge_state(other)
    ids, statistics = metric.rows()
    assert ids.tolist() == [-1, -1, -1]
    assert torch.equal(statistics[2], other.rows()[1][0])


def test_only_like_merges_with_like() -> None:
    with pytest.raises(ZooError, match="other classes or protocol"):
        SemanticMetric(3).merge_state(SemanticMetric(3, absent="zero"))
    with pytest.raises(ZooError, match="other classes or protocol"):
        SemanticMetric(3).merge_state(SemanticMetric(4))


def test_works_under_inference_mode_and_after() -> None:
    metric = SemanticMetric(3)
    with torch.inference_mode():
        metric.update([image(0)], [image(1)], [0])
    metric.update([image(2)], [image(3)], [1])
    assert len(metric.rows()[0]) == 2
