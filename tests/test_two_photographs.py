"""Two photographs of COCO through the whole path: read, trained on, evaluated, predicted, written and read back.

The recipe is `coco_sample_cpu`, small here and for two steps: what comes out is no good, but it is whole. The same
command without these overrides learns both by heart.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import hydra
import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from zoo import jobs
from zoo.data import create_dataset
from zoo.data.coco_panoptic import CLASSES
from zoo.metrics import PanopticMetric
from zoo.overrides import CONF, check, quote_paths
from zoo.report import result

SMALL = [
    *("backbone=test_resnet.r160_in1k", "backbone.pretrained=false", "model.channels=32", "model.points=64"),
    *("model.object_threshold=0", "model.overlap_threshold=0.1", "debug=fast", "trainer.steps=2"),
    *("dataset.transform.scale=[0.25,0.25]", "model.test_size=96", "trainer.device=cpu"),
]
OPTIONS = {"annotations": "panoptic_examples.json", "images": "input_images"}


@pytest.fixture(autouse=True)
def fresh_hydra() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()


def run(command: str, out: Path, *words: str) -> dict[str, Any]:
    """What the command does, in this process; what it says of itself afterwards."""
    out.mkdir()
    arguments = quote_paths(words)
    check(command, get_args_parser().parse_args(arguments))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose(command, arguments), resolve=True)
    GlobalHydra.instance().clear()
    assert isinstance(config, dict)
    OmegaConf.save(OmegaConf.create(config), out / "config.yaml")
    assert jobs.run(command, {str(key): value for key, value in config.items()}, out, list(words)) == 0
    return result.read(out) if (out / result.FILE).is_file() else {}


def test_two_photographs_from_png_to_png(data_root: Path, tmp_path: Path) -> None:
    root = data_root / "coco_sample"
    if not root.is_dir():
        pytest.skip(f"the real datasets have no {root.name} at {root} (set ZOO_TEST_DATA)")
    trained = run("train", tmp_path / "run", "experiment=coco_sample_cpu", f"dataset.root={root}", *SMALL)
    assert trained["dataset"]["images"] == 2
    assert trained["classes"] == [c.name for c in CLASSES]
    assert trained["metrics"].keys() >= {"PQ", "PQ_th", "PQ_st", "PQ/horse", "mIoU", "AP"}  # of the same predictions
    assert len(list((tmp_path / "run" / "pictures").glob("*.png"))) == 2

    checkpoint = f"checkpoint={tmp_path / 'run' / 'best.ckpt'}"
    again = run("evaluate", tmp_path / "again", checkpoint, "device=cpu", "workers=0")
    assert again["metrics"] == pytest.approx(trained["metrics"], nan_ok=True)

    out = tmp_path / "predicted"
    run("predict", out, checkpoint, f"input={root / 'input_images'}", "device=cpu")
    assert sorted(path.stem for path in (out / "panoptic").iterdir()) == ["000000142238", "000000439180"]
    metric = PanopticMetric(CLASSES)
    written = create_dataset(
        "coco_panoptic",
        out,
        "val",
        "panoptic",
        **OPTIONS | {"annotations": "panoptic.json", "images": str(root / "input_images")},
    )
    true = create_dataset("coco_panoptic", root, "val", "panoptic", **OPTIONS)
    assert written.classes == true.classes == CLASSES
    against_truth = PanopticMetric(CLASSES)
    for i in range(2):
        prediction, truth = written[i], true[i]
        assert written.name(i) == true.name(i)
        assert len(prediction.target.labels) > 1
        metric.update([prediction.target], [prediction.target], [i])
        against_truth.update([prediction.target], [truth.target], [i])
        overlay = cv2.imread(str(out / f"{true.name(i)}_overlay.png"))
        assert overlay.shape == truth.image.shape
    assert metric.compute()["PQ"] == 1.0
    assert against_truth.compute()["PQ"] == pytest.approx(trained["metrics"]["PQ"], abs=1e-9)
