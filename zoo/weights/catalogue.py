"""Public checkpoints by name: where they are, whose they are, what they should score.

`PUBLISHERS` says what holds for all files of a project, `CATALOGUE` has a row for each. A name is
model-backbone-data-publisher, with the names of `zoo.MODELS` and of timm, and -edition where a project has several.
docs/weights.md is made from this file:

    python -m zoo.weights --markdown > docs/weights.md

Addresses, scores and licences were read where `Publisher.page` says; no score was measured again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from zoo.errors import unknown

# What was learned, how many classes, and the terms of the images (not those of the weights).
DATA = {
    "ade20k": (150, "ADE20K: images for non-commercial research and education"),
    "cityscapes": (19, "Cityscapes: non-commercial use, no redistribution"),
    "coco": (21, "COCO with VOC's labels: annotations CC BY 4.0, images under Flickr's terms"),
    "coco_instances": (80, "COCO's objects: annotations CC BY 4.0, images under Flickr's terms"),
    "coco_keypoints": (1, "COCO's persons with keypoints: annotations CC BY 4.0, images under Flickr's terms"),
    "voc": (21, "Pascal VOC 2012, with SBD's labels where a project says so: images under Flickr's terms"),
}


@dataclass(frozen=True)
class Publisher:
    """What holds for all files of a project.

    Attributes:
        page: where it lists them.
        licence: of the weights as the project states it.
        commercial: False where that licence excludes commercial use.
        measured: on which images the score was measured, and whose number it is.
        note: what a user should know before the download.
    """

    page: str
    licence: str
    commercial: bool
    measured: str
    note: str = ""


_METRICS = {"coco_instances": "mask AP", "coco_keypoints": "keypoint AP"}

PUBLISHERS = {
    "torchvision": Publisher(
        page="https://docs.pytorch.org/vision/stable/models.html#semantic-segmentation",
        licence="BSD-3-Clause (the package; its pages state none for the weights)",
        commercial=True,
        measured="COCO val2017 with VOC's labels, images resized to 520; the metadata of torchvision's package",
        note="The names of the files end in the first 8 digits of their SHA-256.",
    ),
    "torchvision_detection": Publisher(
        page="https://docs.pytorch.org/vision/stable/models.html#object-detection-instance-segmentation-and-person-"
        "keypoint-detection",
        licence="BSD-3-Clause (the package; its pages state none for the weights)",
        commercial=True,
        measured="COCO val2017, images resized to 800; the metadata of torchvision's package",
        note="The Mask R-CNNs have 90 classes, ten of which name nothing. The names of the files end in the first 8 "
        "digits of their SHA-256.",
    ),
    "detectron2": Publisher(
        page="https://github.com/facebookresearch/detectron2/blob/main/MODEL_ZOO.md",
        licence="CC BY-SA 3.0",
        commercial=True,
        measured="COCO val2017, images resized to 800; the project's MODEL_ZOO.md",
        note="The names of the files end in the first 6 digits of their MD5. They are pickles, of which the zoo reads "
        "arrays alone.",
    ),
    "mmseg": Publisher(
        page="https://github.com/open-mmlab/mmsegmentation/tree/main/configs",
        licence="Apache-2.0",
        commercial=True,
        measured="the validation images, one scale, no flip; the project's metafiles",
        note="The digits in the names of the files are not relied on as checksums: the project's own downloader "
        "stopped checking them.",
    ),
    "semseg": Publisher(
        page="https://drive.google.com/open?id=15wx9vOM0euyizq-M1uINgN0_wjVRf9J3",
        licence="MIT (the repository; none is stated for the weights)",
        commercial=True,
        measured="the validation images, one scale, sliding window of the training's crop; the project's README",
        note="A folder to download from by hand; the paths in it are those of the project's configuration files.",
    ),
    "vainf": Publisher(
        page="https://github.com/VainF/DeepLabV3Plus-Pytorch",
        licence="MIT (the repository; none is stated for the weights)",
        commercial=True,
        measured="VOC 2012 val, the middle 513x513 of each image; the project's README",
    ),
    "wkentaro": Publisher(
        page="https://github.com/wkentaro/pytorch-fcn",
        licence="unrestricted use (weights of fcn.berkeleyvision.org, converted; the code that converts them is MIT)",
        commercial=True,
        measured="VOC 2011's seg11valid; the project's README",
        note="Google shows a page before files of this size: download by hand. MD5 from the project's code.",
    ),
    "drsleep": Publisher(
        page="https://github.com/DrSleep/refinenet-pytorch",
        licence="academic use (BSD-2-Clause); for commercial use ask the authors",
        commercial=False,
        measured="VOC 2012 val, one scale; the project's README",
        note="The host that the project names has been shut down: this row is for those who have the file.",
    ),
}


@dataclass(frozen=True)
class Weights:
    """A public checkpoint.

    Attributes:
        model, backbone: names of `zoo.MODELS` and of timm.
        data: a key of `DATA`.
        publisher: a key of `PUBLISHERS`, which is also the source in `zoo.weights.SOURCES` that reads the file.
        value: the published score in percent, measured as `PUBLISHERS[publisher].measured` says.
        address: of the file; of the page that leads to it where `manual`.
        file: its name, with the publisher's folders where names repeat.
        checksum: "sha256:" or "md5:" and the published digits (the first ones may do), or None.
        manual: whether it can only be downloaded by hand.
        metric: which score `value` is.
        edition: tells files of one project apart that have all of the above in common.
    """

    model: str
    backbone: str
    data: str
    publisher: str
    value: float
    address: str
    file: str
    checksum: str | None = None
    manual: bool = False
    metric: str = "mIoU"
    edition: str = ""

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.model, self.backbone, self.data, self.publisher, self.edition)))

    @property
    def classes(self) -> int:
        """How many, background included where it is one of them (semantic segmentation)."""
        return DATA[self.data][0]

    @property
    def licence(self) -> str:
        return PUBLISHERS[self.publisher].licence

    @property
    def commercial(self) -> bool:
        """Whether the weights' licence leaves room for commercial use; the terms of the images are another matter."""
        return PUBLISHERS[self.publisher].commercial

    @property
    def score(self) -> str:
        """The published score, where it was measured, and whose number it is."""
        return f"{self.metric} {self.value} on {PUBLISHERS[self.publisher].measured}"

    def __str__(self) -> str:
        return self.name


def _torchvision() -> Iterator[Weights]:
    for model, backbone, miou, file in (
        ("fcn", "resnet50", 60.5, "fcn_resnet50_coco-1167a1af.pth"),
        ("fcn", "resnet101", 63.7, "fcn_resnet101_coco-7ecb50ca.pth"),
        ("deeplabv3", "resnet50", 66.4, "deeplabv3_resnet50_coco-cd0a2569.pth"),
        ("deeplabv3", "resnet101", 67.4, "deeplabv3_resnet101_coco-586e9e4e.pth"),
        ("deeplabv3", "mobilenetv3_large_100", 60.3, "deeplabv3_mobilenet_v3_large-fc3c493d.pth"),
        ("lraspp", "mobilenetv3_large_100", 57.9, "lraspp_mobilenet_v3_large-d234d4ea.pth"),
    ):
        checksum = "sha256:" + file.removesuffix(".pth").rpartition("-")[2]
        address = f"https://download.pytorch.org/models/{file}"
        yield Weights(model, backbone, "coco", "torchvision", miou, address, file, checksum)


def _torchvision_detection() -> Iterator[Weights]:
    for model, data, value, file, edition in (
        ("mask_rcnn", "coco_instances", 34.6, "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", "v1"),
        ("mask_rcnn", "coco_instances", 41.8, "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth", "v2"),
        ("keypoint_rcnn", "coco_keypoints", 65.0, "keypointrcnn_resnet50_fpn_coco-fc266e95.pth", ""),
    ):
        checksum = "sha256:" + file.removesuffix(".pth").rpartition("-")[2]
        address, metric = f"https://download.pytorch.org/models/{file}", _METRICS[data]
        publisher = "torchvision_detection"
        yield Weights(model, "resnet50", data, publisher, value, address, file, checksum, False, metric, edition)


def _detectron2() -> Iterator[Weights]:
    """Not here: what has deformable convolutions or a RegNet, and what was trained on other data than COCO."""
    instances, keypoints = "coco_instances", "coco_keypoints"
    for model, backbone, data, value, run, file, edition in (
        ("mask_rcnn", "resnet50", instances, 32.2, "mask_rcnn_R_50_C4_1x/137259246", "9243eb", "c4_1x"),
        ("mask_rcnn", "resnet50", instances, 34.2, "mask_rcnn_R_50_DC5_1x/137260150", "4f86c3", "dc5_1x"),
        ("mask_rcnn", "resnet50", instances, 35.2, "mask_rcnn_R_50_FPN_1x/137260431", "a54504", "fpn_1x"),
        ("mask_rcnn", "resnet50", instances, 34.4, "mask_rcnn_R_50_C4_3x/137849525", "4ce675", "c4_3x"),
        ("mask_rcnn", "resnet50", instances, 35.9, "mask_rcnn_R_50_DC5_3x/137849551", "84107b", "dc5_3x"),
        ("mask_rcnn", "resnet50", instances, 37.2, "mask_rcnn_R_50_FPN_3x/137849600", "f10217", "fpn_3x"),
        ("mask_rcnn", "resnet101", instances, 36.7, "mask_rcnn_R_101_C4_3x/138363239", "a2914c", "c4_3x"),
        ("mask_rcnn", "resnet101", instances, 37.3, "mask_rcnn_R_101_DC5_3x/138363294", "0464b7", "dc5_3x"),
        ("mask_rcnn", "resnet101", instances, 38.6, "mask_rcnn_R_101_FPN_3x/138205316", "a3ec72", "fpn_3x"),
        (
            "mask_rcnn",
            "resnext101_32x8d",
            instances,
            39.5,
            "mask_rcnn_X_101_32x8d_FPN_3x/139653917",
            "2d9806",
            "fpn_3x",
        ),
        ("mask_rcnn", "resnet50", instances, 40.3, "mask_rcnn_R_50_FPN_100ep_LSJ/42047764", "bb69de", "lsj_100"),
        ("mask_rcnn", "resnet50", instances, 41.7, "mask_rcnn_R_50_FPN_200ep_LSJ/42047638", "89a8d3", "lsj_200"),
        ("mask_rcnn", "resnet50", instances, 42.5, "mask_rcnn_R_50_FPN_400ep_LSJ/42019571", "14d201", "lsj_400"),
        ("mask_rcnn", "resnet101", instances, 41.6, "mask_rcnn_R_101_FPN_100ep_LSJ/42025812", "4f7b58", "lsj_100"),
        ("mask_rcnn", "resnet101", instances, 43.1, "mask_rcnn_R_101_FPN_200ep_LSJ/42131867", "0bb7ae", "lsj_200"),
        ("mask_rcnn", "resnet101", instances, 43.7, "mask_rcnn_R_101_FPN_400ep_LSJ/42073830", "f96b26", "lsj_400"),
        ("mask_rcnn", "resnet50_gn", instances, 38.6, "mask_rcnn_R_50_FPN_3x_gn/138602888", "dc5d9e", "fpn_3x"),
        ("mask_rcnn", "resnet50", instances, 37.8, "mask_rcnn_R_50_FPN_3x_syncbn/169527823", "3b3c51", "syncbn_3x"),
        ("cascade_mask_rcnn", "resnet50", instances, 36.4, "cascade_mask_rcnn_R_50_FPN_1x/138602847", "e9d89b", "1x"),
        ("cascade_mask_rcnn", "resnet50", instances, 38.5, "cascade_mask_rcnn_R_50_FPN_3x/144998488", "480dd8", "3x"),
        ("keypoint_rcnn", "resnet50", keypoints, 64.0, "keypoint_rcnn_R_50_FPN_1x/137261548", "04e291", "1x"),
        ("keypoint_rcnn", "resnet50", keypoints, 65.5, "keypoint_rcnn_R_50_FPN_3x/137849621", "a6e10b", "3x"),
        ("keypoint_rcnn", "resnet101", keypoints, 66.1, "keypoint_rcnn_R_101_FPN_3x/138363331", "997cc7", "3x"),
        (
            "keypoint_rcnn",
            "resnext101_32x8d",
            keypoints,
            66.0,
            "keypoint_rcnn_X_101_32x8d_FPN_3x/139686956",
            "5ad38f",
            "3x",
        ),
    ):
        folder = "COCO-Keypoints" if data == keypoints else "COCO-InstanceSegmentation"
        if "LSJ" in run:
            folder = "new_baselines"
        elif model.startswith("cascade") or run.split("/")[0].endswith(("gn", "syncbn")):
            folder = "Misc"
        path, md5 = f"{run}/model_final_{file}.pkl", f"md5:{file}"
        address = f"https://dl.fbaipublicfiles.com/detectron2/{folder}/{path}"
        yield Weights(model, backbone, data, "detectron2", value, address, path, md5, False, _METRICS[data], edition)


def _mmseg() -> Iterator[Weights]:
    """Stride 8, crops of 512x1024 (Cityscapes) and 512x512; the stem of its ResNets is that of timm's resnet50c."""
    for model, depth, data, miou, schedule, stamp in (
        ("fcn", 50, "cityscapes", 73.61, "512x1024_80k_cityscapes", "20200606_113019-03aa804d"),
        ("fcn", 101, "cityscapes", 75.13, "512x1024_80k_cityscapes", "20200606_113038-3fb937eb"),
        ("pspnet", 50, "cityscapes", 78.55, "512x1024_80k_cityscapes", "20200606_112131-2376f12b"),
        ("pspnet", 101, "cityscapes", 79.76, "512x1024_80k_cityscapes", "20200606_112211-e1e1100f"),
        ("pspnet", 50, "ade20k", 42.48, "512x512_160k_ade20k", "20200615_184358-1890b0bd"),
        ("pspnet", 101, "ade20k", 44.39, "512x512_160k_ade20k", "20200615_100650-967c316f"),
        ("pspnet", 50, "voc", 77.29, "512x512_40k_voc12aug", "20200613_161222-ae9c1b8c"),
        ("pspnet", 101, "voc", 78.52, "512x512_40k_voc12aug", "20200613_161222-bc933b18"),
        ("deeplabv3", 50, "cityscapes", 79.32, "512x1024_80k_cityscapes", "20200606_113404-b92cfdd4"),
        ("deeplabv3", 101, "cityscapes", 80.2, "512x1024_80k_cityscapes", "20200606_113503-9e428899"),
        ("deeplabv3plus", 50, "cityscapes", 80.09, "512x1024_80k_cityscapes", "20200606_114049-f9fb496d"),
        ("deeplabv3plus", 101, "cityscapes", 80.97, "512x1024_80k_cityscapes", "20200606_114143-068fcfe9"),
        ("deeplabv3plus", 50, "ade20k", 43.95, "512x512_160k_ade20k", "20200615_124504-6135c7e0"),
        ("deeplabv3plus", 101, "ade20k", 45.47, "512x512_160k_ade20k", "20200615_123232-38ed86bb"),
        ("deeplabv3plus", 50, "voc", 76.81, "512x512_40k_voc12aug", "20200613_161759-e1b43aa9"),
        ("deeplabv3plus", 101, "voc", 78.62, "512x512_40k_voc12aug", "20200613_205333-faf03387"),
    ):
        run = f"{model}_r{depth}-d8_{schedule}"
        file = f"{run}_{stamp}.pth"
        address = f"https://download.openmmlab.com/mmsegmentation/v0.5/{model}/{run}/{file}"
        yield Weights(model, f"resnet{depth}c", data, "mmseg", miou, address, file)


def _semseg() -> Iterator[Weights]:
    for depth, data, miou, run, epochs in (
        (50, "ade20k", 41.89, "ade20k", 100),
        (101, "ade20k", 43.1, "ade20k", 100),
        (50, "voc", 77.05, "voc2012", 50),
        (101, "voc", 79.07, "voc2012", 50),
        (50, "cityscapes", 77.3, "cityscapes", 200),
        (101, "cityscapes", 78.63, "cityscapes", 200),
    ):
        file = f"exp/{run}/pspnet{depth}/model/train_epoch_{epochs}.pth"
        page = PUBLISHERS["semseg"].page
        yield Weights("pspnet", f"resnet{depth}s", data, "semseg", miou, page, file, manual=True)


def _vainf() -> Iterator[Weights]:
    for model, backbone, miou, folder, file in (
        ("deeplabv3", "mobilenetv2_100", 70.1, "uhksxwfcim3nkpo", "best_deeplabv3_mobilenet_voc_os16.pth"),
        ("deeplabv3", "resnet50", 76.9, "3eag5ojccwiexkq", "best_deeplabv3_resnet50_voc_os16.pth"),
        ("deeplabv3", "resnet101", 77.3, "vtenndnsrnh4068", "best_deeplabv3_resnet101_voc_os16.pth"),
        ("deeplabv3plus", "mobilenetv2_100", 71.1, "0idrhwz6opaj7q4", "best_deeplabv3plus_mobilenet_voc_os16.pth"),
        ("deeplabv3plus", "resnet50", 77.2, "dgxyd3jkyz24voa", "best_deeplabv3plus_resnet50_voc_os16.pth"),
        ("deeplabv3plus", "resnet101", 78.3, "bm3hxe7wmakaqc5", "best_deeplabv3plus_resnet101_voc_os16.pth"),
    ):
        # The project's links end in dl=0, which is a page; dl=1 is the file.
        yield Weights(model, backbone, "voc", "vainf", miou, f"https://www.dropbox.com/s/{folder}/{file}?dl=1", file)


def _wkentaro() -> Iterator[Weights]:
    for model, miou, key, md5 in (
        ("fcn32s", 63.63, "11k2Q0bvRQgQbT6-jYWeh6nmAsWlSCY3f", "d3eb467a80e7da0468a20dfcbc13e6c8"),
        ("fcn16s", 65.01, "1bctu58B6YH9bu6lBBSBB2rUeGlGhYLoP", "a2d4035f669f09483b39c9a14a0d6670"),
        ("fcn8s", 65.51, "1ieXWyoG68xqoHJPWdyrDyaIaaWlfmUxI", "de93e540ec79512f8770033849c8ae89"),
    ):
        page = f"https://drive.google.com/uc?id={key}"
        yield Weights(
            model, "vgg16", "voc", "wkentaro", miou, page, f"{model}_from_caffe.pth", f"md5:{md5}", manual=True
        )


def _drsleep() -> Iterator[Weights]:
    page = PUBLISHERS["drsleep"].page
    yield Weights("refinenet", "resnet101", "voc", "drsleep", 80.5, page, "rf101_voc.pth.tar", manual=True)


_PARTS = (_torchvision, _torchvision_detection, _detectron2, _mmseg, _semseg, _vainf, _wkentaro, _drsleep)
CATALOGUE: dict[str, Weights] = {row.name: row for part in _PARTS for row in part()}


def list_weights(
    pattern: str = "*", *, model: str | None = None, data: str | None = None, publisher: str | None = None
) -> list[Weights]:
    """Public checkpoints that `zoo.load` and `zoo.load_weights` take by name, as rows of a table.

    Args:
        pattern: of names, as in a shell: "deeplabv3*", "*cityscapes*".
        model: one of `zoo.list_models()`.
        data: what they were trained on: "ade20k", "cityscapes", "coco", "coco_instances", "coco_keypoints", "voc".
        publisher: "torchvision", "torchvision_detection", "detectron2", "mmseg", "semseg", "vainf", "wkentaro",
            "drsleep".

    Returns the rows in the order of the table: `row.name`, `row.licence`, `row.commercial`, `row.score`, ...
    """
    for kind, value, known in (("data", data, DATA), ("publisher", publisher, PUBLISHERS)):
        if value is not None and value not in known:
            raise unknown(f"{kind} of public weights", value, known)
    return [
        row
        for name, row in CATALOGUE.items()
        if fnmatchcase(name, pattern) and model in (None, row.model) and data in (None, row.data)
        if publisher in (None, row.publisher)
    ]


def to_markdown() -> str:
    """The table as a page, docs/weights.md."""
    parts = [_HEAD]
    for key, publisher in PUBLISHERS.items():
        rows = list_weights(publisher=key)
        flag = "" if publisher.commercial else " **Not for commercial use.**"
        note = f" {publisher.note}" if publisher.note else ""
        metrics = dict.fromkeys(row.metric for row in rows)
        parts.append(
            f"\n## {key}\n\n<{publisher.page}>. Licence: {publisher.licence}.{flag} "
            f"{' and '.join(metrics)} on {publisher.measured}.{note}\n\n"
            f"| name | classes | {' or '.join(metrics)} % | file | checksum |\n|---|---|---|---|---|\n"
        )
        for row in rows:
            file = f"`{row.file}`, by hand" if row.manual else f"[{row.file}]({row.address})"
            parts.append(
                f"| `{row.name}` | {row.classes} | {row.value} | {file} | {row.checksum or 'none published'} |\n"
            )
    parts.append(_TERMS)
    parts += [f"- {terms}\n" for _, terms in DATA.values()]
    return "".join(parts)


_HEAD = """<!-- Made by `python -m zoo.weights --markdown`; a test compares the two. -->
# Public weights

```python
zoo.list_weights("deeplabv3*")  # rows: name, licence, score, ...
model = zoo.load("deeplabv3-resnet50-coco-torchvision")  # fetched once, then from the cache
model = zoo.load("hf://owner/name")  # config.json and model.safetensors of a Hub repository
model = zoo.load("hf://owner/name@revision/file.safetensors")
model = zoo.load("https://example.org/weights.pth")
zoo.load_weights(model, "fcn-resnet50-coco-torchvision", skip_head=True)
```

`train.py weights=NAME`, `evaluate.py checkpoint=NAME` and `predict.py checkpoint=NAME` take the same names.

Files go to `$ZOO_CACHE`, else `$XDG_CACHE_HOME/segmentation-zoo`, else `~/.cache/segmentation-zoo`; those of the Hub to
its own cache (`HF_HOME`), and what is there is used without asking for news. A file is complete when it has its name,
and is compared with its published checksum each time it is loaded. Without a network the error says which file to put
where: one placed there by hand is used like a downloaded one. Whatever a file holds, loading it runs no code from it.

Scores are quoted from the place that each section names, not measured again. The addresses are the projects' own; they
were not tried when this page was made.
"""

_TERMS = """
## Terms of the images

Whoever trains accepts the terms of the images, which are not the licence of the weights:

"""
