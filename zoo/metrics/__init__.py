"""Metrics by task: each equals the official evaluator, and its state merges exactly over batches and processes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from zoo.errors import unknown
from zoo.metrics.base import Metric
from zoo.metrics.instance import InstanceMetric
from zoo.metrics.panoptic import PanopticMetric
from zoo.metrics.semantic import SemanticMetric
from zoo.structures import Class

METRICS: dict[str, type[Metric]] = {
    "semantic": SemanticMetric,
    "instance": InstanceMetric,
    "panoptic": PanopticMetric,
}


def create_metric(task: str, classes: int | Sequence[str] | Sequence[Class], **options: Any) -> Metric:
    """The metric of a task ("semantic", "instance", "panoptic") over `classes`; `options` are those of its class."""
    if task not in METRICS:
        raise unknown("task with a metric", task, METRICS)
    known = list(inspect.signature(METRICS[task]).parameters)[1:]
    for option in options:
        if option not in known:
            raise unknown(f"option of the {task} metric", option, known)
    return METRICS[task](classes, **options)


__all__ = ["METRICS", "InstanceMetric", "Metric", "PanopticMetric", "SemanticMetric", "create_metric"]
