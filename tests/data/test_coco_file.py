"""COCO's JSON: equal to pycocotools on real files, every spelling of a mask; what is wrong is said with file and id."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trees
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from zoo.data.annotations import COCO_NAMES, Keypoints
from zoo.data.coco_file import CocoFile
from zoo.errors import ZooError

SIZE = trees.SIZE
H, W = SIZE
IMAGE = {"id": 7, "file_name": "a.jpg", "height": H, "width": W}
SQUARE = [[2, 3, 10, 3, 10, 9, 2, 9]]


def document(*annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    kinds = [{"id": 3, "name": "cat"}, {"id": 50, "name": "dog"}]
    return {"images": [IMAGE], "annotations": list(annotations), "categories": kinds} | more


def square(**more: Any) -> dict[str, Any]:
    return trees.annotation(1, IMAGE, 3, SQUARE) | more


def written(tmp_path: Path, content: Any, **options: Any) -> Path:
    path = tmp_path / "some.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, **options), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "name", ["coco_tiny/instances_train.json", "coco_tiny/instances_val.json", "dsb2018/instances_val.json"]
)
def test_equal_to_pycocotools_on_real_files(data_root: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Masks bit for bit, boxes, areas, crowds, classes; images by id, annotations in the file's order."""
    ours, theirs = CocoFile(data_root / name), COCO(str(data_root / name))
    assert [c.name for c in ours.classes] == [c["name"] for c in theirs.loadCats(theirs.getCatIds())]
    images = theirs.loadImgs(sorted(theirs.getImgIds()))
    assert [ours.name(i) for i in range(len(ours))] == [image["file_name"] for image in images]
    label = {id: k for k, id in enumerate(theirs.getCatIds())}
    for i, image in enumerate(images[:12]):
        expected = theirs.loadAnns(theirs.getAnnIds(image["id"]))
        truth = ours.instances(i, (image["height"], image["width"]))
        assert truth.masks is not None
        assert truth.labels.tolist() == [label[a["category_id"]] for a in expected]
        assert truth.crowd.tolist() == [bool(a["iscrowd"]) for a in expected]
        assert truth.areas.tolist() == [a["area"] for a in expected]  # as the file says, to the last digit
        boxes = np.array([a["bbox"] for a in expected]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert np.array_equal(truth.boxes, boxes.astype(np.float32))
        dense = [theirs.annToMask(a) for a in expected]
        assert np.array_equal(truth.masks.dense(), np.array(dense).reshape(-1, *truth.size))
        assert truth.masks.rle() == [theirs.annToRLE(a) | {"counts": _bytes(theirs.annToRLE(a))} for a in expected]


def _bytes(rle: dict[str, Any]) -> bytes:
    return rle["counts"].encode() if isinstance(rle["counts"], str) else rle["counts"]


def test_every_spelling_of_a_mask_is_the_same_mask(tmp_path: Path) -> None:
    packed = mask_api.merge(mask_api.frPyObjects(SQUARE, H, W))
    dense = mask_api.decode(packed)
    flat = dense.T.reshape(-1)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], flat, [2]])))).tolist()
    runs = runs if flat[0] == 0 else [0, *runs]
    forms = [
        SQUARE,
        SQUARE[0],  # without the list around it
        {"size": [H, W], "counts": runs},
        {"size": [H, W], "counts": packed["counts"].decode()},
        [{"size": [H, W], "counts": packed["counts"].decode()}],
        [*SQUARE, []],
    ]
    some = [square(id=k, segmentation=form) for k, form in enumerate(forms)]
    for options in ({}, {"indent": 1}, {"separators": (",", ":")}):
        file = CocoFile(written(tmp_path, document(*some), **options))
        masks = file.instances(0, SIZE).masks
        assert (masks.dense().numpy() == dense).all(axis=(1, 2)).tolist() == [True] * len(forms)
        assert masks.run_lengths()[0].tolist() == runs * len(forms)  # kept from when they were checked
        assert masks.run_lengths()[1].tolist() == [len(runs)] * len(forms)


def test_fields_may_come_in_any_order_and_hold_anything_else(tmp_path: Path) -> None:
    """Keys sorted backwards, the segmentation last, names beyond ASCII, braces and quotes in other fields."""
    odd = {"attributes": {"segmentation": [[1, 2]], "note": 'a "segmentation": [ } ]'}, "tag": "segmentation", "id": 5}
    made = square(**odd)
    backwards = {key: made[key] for key in sorted(made, reverse=True)}
    last = {key: value for key, value in made.items() if key != "segmentation"} | {"segmentation": SQUARE, "id": 6}
    kinds = [{"id": 3, "name": "Katze äöü"}]
    image = IMAGE | {"file_name": "Bild ü\\1.jpg"}
    content = document(backwards, last, images=[image], categories=kinds, info={"segmentation": "x", "images": [1]})
    content = {key: content[key] for key in reversed(content)}
    for ascii_only in (True, False):
        file = CocoFile(written(tmp_path, content, ensure_ascii=ascii_only))
        assert file.classes[0].name == "Katze äöü"
        assert file.name(0) == "Bild ü/1.jpg"
        truth = file.instances(0, SIZE)
        assert truth.masks.area().tolist() == [48, 48]
        assert file.ids.tolist() == [5, 6]


def test_what_the_file_leaves_out_comes_from_the_mask(tmp_path: Path) -> None:
    bare = {key: value for key, value in square().items() if key not in ("bbox", "area", "iscrowd")}
    truth = CocoFile(written(tmp_path, document(bare))).instances(0, SIZE)
    assert truth.areas.tolist() == [48]
    assert truth.boxes.tolist() == [[2, 3, 10, 9]]
    assert truth.crowd.tolist() == [False]


def test_boxes_alone_have_no_masks(tmp_path: Path) -> None:
    plain = {key: value for key, value in square(bbox=[1, 2, 3.5, 4], area=None).items() if key != "segmentation"}
    file = CocoFile(written(tmp_path, document(plain, square(id=2, segmentation=[]))))
    truth = file.instances(0, SIZE)
    assert truth.masks is None
    assert truth.boxes.tolist() == [[1, 2, 4.5, 6], [2, 3, 10, 9]]
    assert truth.areas.tolist() == [14, 48]
    assert truth.size == SIZE
    mixed = CocoFile(written(tmp_path, document(plain, square(id=2))))
    assert [(note.count, "no mask" in note.problem) for note in mixed.notes] == [(1, True)]
    assert mixed.instances(0, SIZE).masks.boxes().tolist()[1] == [2, 3, 10, 9]
    assert mixed.instances(0, SIZE).masks.area()[0] > 0  # its box


def test_images_without_annotations_stay(tmp_path: Path) -> None:
    images = [IMAGE, IMAGE | {"id": 2, "file_name": "b.jpg"}]
    file = CocoFile(written(tmp_path, document(square(), images=images)))
    assert [file.name(i) for i in range(2)] == ["b.jpg", "a.jpg"]  # by id
    assert len(file.instances(0, SIZE)) == 0
    assert file.instances(0, SIZE).masks.dense().shape == (0, H, W)
    assert file.has_objects().tolist() == [False, True]


def test_all_crowds_are_noticed(tmp_path: Path) -> None:
    brush = [square(id=k, iscrowd=1) for k in range(1, 13)]
    path = written(tmp_path, document(*brush))
    file = CocoFile(path)
    assert [(note.count, note.example) for note in file.notes] == [(12, "annotation 1")]
    assert "crowd_as_object=true" in file.notes[0].advice
    assert file.instances(0, SIZE).crowd.all()
    taken = CocoFile(path, crowd_as_object=True)
    assert taken.notes == []
    assert not taken.instances(0, SIZE).crowd.any()
    assert taken.facts != file.facts
    few = CocoFile(written(tmp_path, document(*brush[:1], *(square(id=k) for k in range(20, 22)))))
    assert few.notes == []


def test_keypoints(tmp_path: Path) -> None:
    names = ["tip", "left_ear", "right_ear"]
    kinds = [{"id": 3, "name": "cat", "keypoints": names, "skeleton": [[1, 2], [1, 3]]}, {"id": 50, "name": "dog"}]
    some = [
        square(keypoints=[4, 5, 2, 0, 0, 0, 7.5, 8, 1]),
        square(id=2, category_id=50),
        square(id=3),
    ]
    file = CocoFile(written(tmp_path, document(*some, categories=kinds)), with_keypoints=True)
    assert [c.name for c in file.classes] == ["cat"]  # the class that has them
    assert file.keypoints == Keypoints(tuple(names), ((0, 1), (0, 2)), (0.05,) * 3, (0, 2, 1))
    truth = file.instances(0, SIZE)
    assert file.ids.tolist() == [1, 3]
    assert truth.keypoints.tolist() == [[[4, 5, 2], [0, 0, 0], [7.5, 8, 1]], [[0, 0, 0]] * 3]
    wrong = document(square(keypoints=[1, 2, 2]), categories=kinds)
    with pytest.raises(ZooError, match=r"some.json: annotation 1 has 3 numbers as keypoints, its category 9"):
        CocoFile(written(tmp_path, wrong), with_keypoints=True)


def test_cocos_keypoints_are_the_official_ones() -> None:
    official = Keypoints.of(COCO_NAMES)
    from pycocotools.cocoeval import Params

    assert np.allclose(official.sigmas, Params("keypoints").kpt_oks_sigmas, rtol=0, atol=1e-12)
    assert official.mirror == (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "category": (document(square(category_id=4)), "annotation 1 has category_id 4, which is not in the file .* 3, 50"),
    "image": (document(square(image_id=8)), r"annotation 1 has image_id 8, which is not in the file \(1 such"),
    "ids": (document(square(), square()), "two annotations have the id 1"),
    "images": (document(images=[IMAGE, IMAGE]), "two images have the id 7"),
    "file names": (document(images=[IMAGE, IMAGE | {"id": 8}]), "a.jpg is listed as two images"),
    "categories": (document(categories=[{"id": 1, "name": "a"}] * 2), "two categories have the id 1"),
    "names": (document(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), "repeated: a"),
    "no categories": (document(categories=[]), "no categories"),
    "neither": (document({"id": 9, "image_id": 7, "category_id": 3}), "annotation 9 has neither bbox nor segmentation"),
    "box": (document(square(bbox=[1, 2, 3])), r"annotation 1 is broken: its bbox is \[1, 2, 3\]"),
    "no category": (document({"id": 9, "image_id": 7}), "annotation 9 is broken: it has no 'category_id'"),
    "a list": (document([1]), "annotation number 1 is broken"),  # type: ignore[arg-type]
    "an area": (document(square(area="big")), "annotation 1 is broken"),
    "no name": (document(images=[{"id": 1}]), "image 1 of the file has no id or no file_name"),
    "id as text": (document(square(image_id="7")), r"annotation 1 has image_id '7', which is not in the file .* 7$"),
    "list as id": (document(square(id=[1])), r"annotation 1 of the file has \[1\] as id, not a number or a text"),
    "null as id": (document(square(category_id=None)), "annotation 1 of the file has None as category_id"),
    "list as id of an image": (document(images=[IMAGE | {"id": [7]}]), r"image 1 of the file has \[7\] as id"),
    "null as id of a category": (document(categories=[{"id": None, "name": "a"}]), "ids of categories .* not None"),
    "crowd as text": (document(square(iscrowd="0")), "annotation 1 is broken: its iscrowd is '0', not 0 or 1"),
    "crowd 2": (document(square(iscrowd=2)), "annotation 1 is broken: its iscrowd is 2, not 0 or 1"),
    "NaN in a box": (document(square(bbox=[1, 2, float("nan"), 3])), "annotation 1 has numbers in its bbox"),
    "infinite box": (document(square(bbox=[float("inf")] * 4)), "annotation 1 has numbers in its bbox"),
    "box of texts": (document(square(bbox=["1", "2", "3", "4"])), "annotation 1 is broken: must be real number"),
    "size of words": (document(images=[IMAGE | {"height": "tall"}]), r"image 7 has height and width \['tall', 40\]"),
    "size of a list": (document(images=[IMAGE | {"width": [4]}]), "image 7 has height and width .* numbers of pixels"),
    "name beyond Unicode": (document(images=[IMAGE | {"file_name": "\ud800.jpg"}]), "file name .* is no text"),
    "results": ([square()], "is a list .*of results"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_file_and_id(case: str, tmp_path: Path) -> None:
    content, says = BROKEN[case]
    with pytest.raises(ZooError, match=f"some.json: .*{says}"):
        CocoFile(written(tmp_path, content))


SHAPES: dict[str, tuple[Any, str]] = {
    "two points": ([[1, 2, 3, 4]], "3 or more finite"),
    "odd": ([[1, 2, 3, 4, 5, 6, 7]], "3 or more finite"),
    "not a number": ([[1, 2, 3, 4, 5, float("nan")]], "3 or more finite"),
    "far outside": ([[1, 2, 3e6, 4, 5, 6]], "far outside of the 32x40"),
    "RLE of another size": ({"size": [W, H], "counts": [W * H]}, r"size \[40, 32\] does not belong to a 32x40 image"),
    "runs too few": ({"size": [H, W], "counts": [5, 5]}, "cover 10 pixels"),
    "packed, cut short": ({"size": [H, W], "counts": "ABC"}, "cover .* pixels, not the 1280"),
    "packed, cut in a number": ({"size": [H, W], "counts": "ABo"}, "broken, or cut short"),
    "words": ([["a", "b", "c", "d", "e", "f"]], "neither polygons nor an RLE"),
    "no counts": ({"size": [H, W]}, "neither polygons nor an RLE"),
    "size of words": ({"size": "big", "counts": [1]}, "does not belong to"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_a_broken_mask_is_named_when_its_image_is_read(case: str, tmp_path: Path) -> None:
    segmentation, says = SHAPES[case]
    if isinstance(segmentation, dict):  # the same among others
        both = document(square(id=4), square(segmentation=segmentation), square(id=5))
        with pytest.raises(ZooError, match=f"some.json: annotation 1.*{says}"):
            CocoFile(written(tmp_path, both)).instances(0, SIZE)
    file = CocoFile(written(tmp_path, document(square(segmentation=segmentation))))
    with pytest.raises(ZooError, match=f"some.json: annotation 1.*{says}"):
        file.instances(0, SIZE)


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    text = json.dumps(document(*(square(id=k) for k in range(1, 4))))
    for length in range(0, len(text) - 1, 5):
        with pytest.raises(ZooError, match=r"some.json: (cut short|is no JSON|the file is empty)"):
            CocoFile(written(tmp_path, text[:length]))
    with pytest.raises(ZooError, match=r"cut short after 2 annotations \(the last has id 2\)"):
        CocoFile(written(tmp_path, text[: text.index('"id": 3')]))
    with pytest.raises(ZooError, match="is no JSON"):
        CocoFile(written(tmp_path, text.replace('"area"', "area")))


def test_odd_boxes_are_counted_and_stay(tmp_path: Path) -> None:
    content = document(square(bbox=[3, 3, 0, 5]), square(id=2, bbox=[2 * W, 3, 4, 4]), square(id=3))
    file = CocoFile(written(tmp_path, content))
    assert [(note.count, note.example) for note in file.notes] == [(1, "annotation 1"), (1, "annotation 2")]
    assert len(file.instances(0, SIZE)) == 3


def test_ids_may_be_texts_and_of_any_size(tmp_path: Path) -> None:
    """As long as they are the same on both sides; a number that is a float is that number."""
    image, kind = IMAGE | {"id": "a-1"}, [{"id": 10**15, "name": "Zellkern"}]
    some = [square(id=10**25, image_id="a-1", category_id=10**15), square(id="x", image_id="a-1", category_id=1e15)]
    file = CocoFile(written(tmp_path, document(*some, images=[image], categories=kind)))
    assert file.instances(0, SIZE).labels.tolist() == [0, 0]
    assert file.ids.tolist() == [10**25, "x"]
    with pytest.raises(ZooError, match=f"annotation {10**25}: "):
        CocoFile(
            written(tmp_path, document(some[0] | {"segmentation": [[1, 2, 3, 4]]}, images=[image], categories=kind))
        ).instances(0, SIZE)


def test_an_empty_list_is_no_outline(tmp_path: Path) -> None:
    """With a box the box is taken as the mask, which is said; without one it is an error."""
    file = CocoFile(written(tmp_path, document(square(segmentation=[]), square(id=2))))
    assert [(note.count, note.example) for note in file.notes] == [(1, "annotation 1")]
    assert file.instances(0, SIZE).masks.area().tolist() == [48, 48]
    for empty in ([], [[]], None):
        with pytest.raises(ZooError, match="annotation 1 has neither bbox nor segmentation"):
            CocoFile(written(tmp_path, document(square(segmentation=empty, bbox=None), square(id=2))))


def test_masks_outside_the_image_are_cut_and_stay(tmp_path: Path) -> None:
    partly, wholly = [[-4, -4, 4, -4, 4, 4, -4, 4]], [[W + 1, 2, W + 9, 2, W + 9, 9, W + 1, 9]]
    file = CocoFile(written(tmp_path, document(square(segmentation=partly), square(id=2, segmentation=wholly))))
    truth = file.instances(0, SIZE)
    assert truth.masks.area().tolist() == [16, 0]


def test_another_size_than_the_image_is_refused(tmp_path: Path) -> None:
    file = CocoFile(written(tmp_path, document(square())))
    with pytest.raises(ZooError, match=r"a.jpg is 40x32 there, the image 32x40 .*exif=apply"):
        file.instances(0, (W, H))


def test_a_file_that_changed_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, document(square()))
    file = CocoFile(path)
    path.write_text(json.dumps(document(square()), indent=3))
    with pytest.raises(ZooError, match="changed since it was opened"):
        file.instances(0, SIZE)


def test_workers_get_columns_not_outlines(tmp_path: Path) -> None:
    """What a spawned worker is sent does not grow with the outlines, and little with their number."""
    outline = [np.arange(400).tolist()]

    def sent(count: int) -> int:
        some = [square(id=k, segmentation=outline) for k in range(count)]
        return len(pickle.dumps(CocoFile(written(tmp_path, document(*some)))))

    assert (sent(2000) - sent(1000)) / 1000 < 100  # bytes an annotation; an outline has 1600


def test_the_document_is_not_changed_by_reading(tmp_path: Path) -> None:
    content = document(square())
    before = copy.deepcopy(content)
    file = CocoFile(written(tmp_path, content))
    first, second = file.instances(0, SIZE), file.instances(0, SIZE)
    first.boxes += 5
    first.areas += 5
    assert content == before
    assert second.boxes.tolist() == file.instances(0, SIZE).boxes.tolist()
    assert torch.equal(second.areas, file.instances(0, SIZE).areas)
