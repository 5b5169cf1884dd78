"""The table of public weights: what can be checked of it without a network."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torchvision.models import detection, segmentation
from torchvision.transforms import functional

import zoo
from zoo.checkpoint import read
from zoo.errors import ZooError
from zoo.weights.__main__ import main
from zoo.weights.catalogue import CATALOGUE, DATA, PUBLISHERS, Weights, list_weights, to_markdown

ROOT = Path(__file__).resolve().parents[2]
ROWS = list(CATALOGUE.values())


def rows(publisher: str) -> list[Weights]:
    return zoo.list_weights(publisher=publisher)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_row_is_whole(row: Weights) -> None:
    assert re.fullmatch(r"[a-z0-9_]+-[a-z0-9_]+-[a-z0-9_]+-[a-z0-9_]+(-[a-z0-9_]+)?", row.name)
    assert row.model in zoo.list_models()
    assert row.backbone in timm.list_models()
    assert callable(importlib.import_module(f"zoo.weights.{row.publisher}").recognizes)
    assert 20 < row.value < 90
    assert (row.metric == "mIoU") == (row.model in zoo.list_models("semantic"))
    assert urlsplit(row.address).scheme == "https"
    assert not Path(row.file).is_absolute()
    assert row.manual or urlsplit(row.address).path.endswith(f"/{row.file}")
    assert row.checksum is None or re.fullmatch(r"sha256:[0-9a-f]{8,64}|md5:[0-9a-f]{6,32}", row.checksum)
    assert row.licence
    assert f"{row.metric} {row.value} on" in row.score


def test_rows_are_distinct() -> None:
    assert len({(row.publisher, row.file) for row in ROWS}) == len(ROWS)
    assert {row.publisher for row in ROWS} == set(PUBLISHERS)
    assert {row.data for row in ROWS} == set(DATA)


def test_torchvision_as_its_metadata_says() -> None:
    found = {}
    for name in dir(segmentation):
        if name.endswith("_Weights"):
            for entry in getattr(segmentation, name):
                scores = entry.meta["_metrics"]["COCO-val2017-VOC-labels"]
                found[entry.url] = (scores["miou"], len(entry.meta["categories"]))
                assert entry.transforms().resize_size == [520]
                assert entry.transforms().interpolation is functional.InterpolationMode.BILINEAR
    assert {row.address: (row.value, row.classes) for row in rows("torchvision")} == found
    for row in rows("torchvision"):
        assert row.checksum == f"sha256:{Path(row.file).stem[-8:]}"
        depth = re.search(r"\d+", row.backbone)
        assert depth
        assert row.file.startswith(row.model)
        assert depth[0] in row.file or "mobilenet_v3_large" in row.file


def test_torchvision_s_detectors_as_its_metadata_says() -> None:
    found = {}
    for kind, score in (("MaskRCNN_ResNet50_FPN", "mask_map"), ("KeypointRCNN_ResNet50_FPN", "kp_map")):
        for name in (f"{kind}_Weights", f"{kind}_V2_Weights"):
            for entry in getattr(detection, name, ()):
                found[entry.url] = next(iter(entry.meta["_metrics"].values()))[score]
    legacy = "keypointrcnn_resnet50_fpn_coco-9f466800.pth"  # an earlier one, whose norms have another epsilon
    assert {row.address: row.value for row in rows("torchvision_detection")} == {
        address: value for address, value in found.items() if not address.endswith(legacy)
    }
    for row in rows("torchvision_detection"):
        assert row.checksum == f"sha256:{Path(row.file).stem[-8:]}"


def test_detectron2_s_runs_say_what_they_are() -> None:
    """The run names model, backbone, variant and schedule; the file ends in the first digits of its MD5."""
    depths = {"resnet50": "R_50", "resnet50_gn": "R_50", "resnet101": "R_101", "resnext101_32x8d": "X_101_32x8d"}
    for row in rows("detectron2"):
        run, number, file = row.file.split("/")
        begin = f"{row.model}_{depths[row.backbone]}_"
        assert run.startswith(begin)
        assert number.isdigit()
        assert row.checksum == f"md5:{file.removeprefix('model_final_').removesuffix('.pkl')}"
        words = run.removeprefix(begin).lower().removesuffix("_gn").split("_")
        kind, _, length = row.edition.rpartition("_")
        assert set(words) == {kind or "fpn", "fpn" if kind not in ("c4", "dc5") else kind} | (
            {length} if kind != "lsj" else {f"{length}ep"}
        )
        assert row.backbone.endswith("_gn") == run.endswith("_gn")
        assert ("Keypoints" in row.address) == (row.model == "keypoint_rcnn") == (row.metric == "keypoint AP")


def test_mmseg_addresses_are_those_of_its_runs() -> None:
    for row in rows("mmseg"):
        depth = re.search(r"\d+", row.backbone)
        assert depth
        run = f"{row.model}_r{depth[0]}-d8_"
        folders = urlsplit(row.address).path.split("/")
        assert folders[1:4] == ["mmsegmentation", "v0.5", row.model]
        assert row.file.startswith(f"{folders[4]}_20")
        assert folders[4].startswith(run)
        assert row.data in folders[4]


def test_only_what_says_so_is_for_non_commercial_use() -> None:
    assert [row.name for row in ROWS if not row.commercial] == ["refinenet-resnet101-voc-drsleep"]


def test_lists() -> None:
    assert list_weights() == ROWS
    assert [row.name for row in list_weights("deeplabv3-resnet*", publisher="torchvision")] == [
        "deeplabv3-resnet50-coco-torchvision",
        "deeplabv3-resnet101-coco-torchvision",
    ]
    assert {row.model for row in list_weights(model="fcn", data="coco")} == {"fcn"}
    assert list_weights("nothing*") == []
    with pytest.raises(ZooError, match="unknown data of public weights 'citiscapes': did you mean cityscapes"):
        list_weights(data="citiscapes")
    with pytest.raises(ZooError, match="unknown publisher"):
        list_weights(publisher="torch")


def test_the_page_is_the_table() -> None:
    """Made by `python -m zoo.weights --markdown > docs/weights.md`."""
    assert (ROOT / "docs" / "weights.md").read_text(encoding="utf-8") == to_markdown()


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deeplabv3-resnet50-coco*"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("deeplabv3-resnet50-coco-torchvision  21 classes, mIoU 66.4; BSD-3-Clause")
    assert main(["xyzzy"]) == 1
    assert main(["--markdown"]) == 0
    assert capsys.readouterr().out == to_markdown()


# ---- what such files hold beside their weights


def test_a_score_of_numpy_beside_the_weights(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    torch.save({"best_score": np.float64(0.7), "model_state": nn.Linear(2, 1).state_dict()}, tmp_path / "best.pth")
    assert read(tmp_path / "best.pth")["best_score"] == 0.7
    assert set(torch.serialization.get_safe_globals()) == before  # for that file alone


def test_an_object_of_numpy_is_still_refused(tmp_path: Path) -> None:
    torch.save({"state": np.array([os.system], dtype=object)}, tmp_path / "best.pth")
    with pytest.raises(ZooError, match="holds more than tensors"):
        read(tmp_path / "best.pth")
