"""The nouns: forms of masks convert into each other, structures go downhill only, batches pad and move."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from torch import Tensor

from zoo.errors import ZooError
from zoo.structures import VOID, Batch, Class, Instances, Masks, Panoptic, Sample, Semantic, as_classes

TABLE = (
    Class("sky", (0, 0, 255)),
    Class("car", (255, 0, 0), thing=True),
    Class("road", (90, 90, 90)),
    Class("dog", (0, 255, 0), thing=True),
)
SIZE = (6, 8)


def dense_masks(count: int = 5, seed: int = 0) -> Tensor:
    return torch.rand(count, *SIZE, generator=torch.Generator().manual_seed(seed)) < 0.4


def panoptic() -> Panoptic:
    """Void; sky; two cars, the second a crowd; a dog without pixels; road; a dog."""
    ids = np.zeros(SIZE, np.int32)
    ids[:2] = 1
    ids[2:4, :3] = 2
    ids[2:4, 4:] = 3
    ids[4:] = 5
    ids[5, 2:5] = 6
    crowd = [False, False, False, True, False, False, False]
    scores = [0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    return Panoptic(ids, [VOID, 0, 1, 1, 3, 2, 3], scores, crowd, areas=[0, 16, 6.5, 8, 1, 13, 3.25])


class TestClasses:
    def test_from_a_number_names_and_a_table(self) -> None:
        assert [c.name for c in as_classes(3)] == ["class_0", "class_1", "class_2"]
        assert [c.name for c in as_classes(["a", "b"])] == ["a", "b"]
        assert as_classes(TABLE) == TABLE

    def test_the_palette_is_fixed_and_its_colours_differ(self) -> None:
        colors = [c.color for c in as_classes(200)]
        assert len(set(colors)) == 200
        assert colors[:50] == [c.color for c in as_classes(50)]

    @pytest.mark.parametrize(("classes", "sentence"), [(0, "at least one"), (["a", "b", "a"], "repeated: a")])
    def test_tables_that_make_no_sense(self, classes: object, sentence: str) -> None:
        with pytest.raises(ZooError, match=sentence):
            as_classes(classes)  # type: ignore[arg-type]

    def test_colours_from_plain_containers_are_tuples(self) -> None:
        assert Class("a", [1, 2, 3]) == Class("a", (1, 2, 3))  # type: ignore[arg-type]


class TestMasks:
    def test_dense_to_rle_and_back(self) -> None:
        dense = dense_masks()
        masks = Masks.from_dense(dense)
        rles = [coco.encode(np.asfortranarray(m.numpy().astype(np.uint8))) for m in dense]
        assert masks.rle() == rles
        assert torch.equal(Masks.from_rle(rles, SIZE).dense(), dense)
        assert masks.size == SIZE
        assert len(masks) == 5

    @pytest.mark.parametrize("form", ["dense", "rle", "polygons", "rois"])
    def test_every_form_measures_alike(self, form: str) -> None:
        masks = self.of_form(form)
        dense = masks.dense()
        assert dense.shape == (3, *SIZE)
        assert dense.dtype == torch.bool
        assert masks.area().dtype == torch.int64
        assert masks.area().tolist() == dense.flatten(1).sum(1).tolist()
        assert masks.boxes().dtype == torch.float32
        for mask, box in zip(dense, masks.boxes().tolist(), strict=True):
            y, x = mask.nonzero(as_tuple=True)
            empty = not len(x)
            assert box == [0, 0, 0, 0] if empty else [x.min(), y.min(), x.max() + 1, y.max() + 1]

    @pytest.mark.parametrize("form", ["dense", "rle", "polygons", "rois"])
    @pytest.mark.parametrize(
        "keep", [[2, 0], [True, False, True], slice(1, None), torch.tensor([1]), np.array([False] * 3), []]
    )
    def test_picking_filters_every_form(self, form: str, keep: object) -> None:
        masks = self.of_form(form)
        dense = masks.dense()  # RLEs are cached now and picked too
        rows = keep if isinstance(keep, slice) else torch.as_tensor(keep, dtype=None if len(keep) else torch.long)  # type: ignore[arg-type]
        picked = masks[keep]  # type: ignore[index]
        assert torch.equal(picked.dense(), dense[rows])
        assert len(picked) == len(dense[rows])
        assert torch.equal(self.of_form(form)[keep].dense(), dense[rows])  # type: ignore[index]

    def of_form(self, form: str) -> Masks:
        if form == "dense":
            return Masks.from_dense(dense_masks(3))
        if form == "rle":
            return Masks.from_rle(Masks.from_dense(dense_masks(3)).rle(), SIZE)
        if form == "polygons":
            triangle, square = [0.0, 0, 7, 1, 2, 5], [4.0, 2, 8, 2, 8, 6, 4, 6]
            return Masks.from_polygons([[triangle], [], [triangle, square]], SIZE)
        boxes = torch.tensor([[1.0, 1, 6, 5], [9, 9, 12, 12], [-2, 0, 4, 3.5]])
        return Masks.from_rois(torch.full((3, 4, 4), 0.9), boxes, SIZE)

    def test_joining_keeps_order_across_forms(self) -> None:
        parts = [self.of_form(form) for form in ("dense", "rois", "polygons")]
        joined = Masks.cat(parts)
        assert torch.equal(joined.dense(), torch.cat([part.dense() for part in parts]))
        assert torch.equal(Masks.cat(parts[:1] * 2).dense(), parts[0].dense().repeat(2, 1, 1))

    def test_joining_other_sizes_is_refused(self) -> None:
        with pytest.raises(ZooError, match="one size"):
            Masks.cat([Masks.from_rle([], (2, 3)), Masks.from_rle([], (3, 2))])

    @pytest.mark.parametrize("form", ["dense", "rle", "polygons", "rois"])
    def test_survives_a_worker_process(self, form: str) -> None:
        masks = self.of_form(form)
        assert torch.equal(pickle.loads(pickle.dumps(masks)).dense(), masks.dense())

    def test_no_masks(self) -> None:
        for masks in (Masks.from_rle([], SIZE), Masks.from_dense(torch.zeros(0, *SIZE)), Masks.from_polygons([], SIZE)):
            assert masks.dense().shape == (0, *SIZE)
            assert masks.boxes().shape == (0, 4)
            assert masks.area().shape == (0,)
            assert masks.rle() == []

    def test_shapes_that_are_none(self) -> None:
        with pytest.raises(ZooError, match=r"\(N,H,W\), not \(2, 3\)"):
            Masks.from_dense(torch.zeros(2, 3))
        with pytest.raises(ZooError, match=r"not \(2, 7, 7\) and \(3, 4\)"):
            Masks.from_rois(torch.zeros(2, 7, 7), torch.zeros(3, 4), SIZE)

    def test_device_is_where_results_go(self) -> None:
        masks = Masks.from_rle(Masks.from_dense(dense_masks()).rle(), SIZE).to("meta")
        assert masks.dense().device.type == masks.area().device.type == masks.boxes().device.type == "meta"


class TestSemantic:
    def test_segments_are_the_classes_that_occur(self) -> None:
        labels = torch.tensor([[0, 2, 2], [255, 2, 7]])
        masks, classes = Semantic(labels).segments()
        assert classes.tolist() == [0, 2, 7]
        assert torch.equal(masks, labels[None] == torch.tensor([0, 2, 7])[:, None, None])
        assert masks.dtype == torch.bool

    def test_all_void_has_no_segments(self) -> None:
        masks, classes = Semantic(np.full((3, 4), 255, np.uint8)).segments()
        assert masks.shape == (0, 3, 4)
        assert classes.shape == (0,)

    def test_arrays_with_negative_strides_and_read_only_memory(self) -> None:
        labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
        labels.flags.writeable = False
        assert torch.equal(Semantic(labels[:, ::-1]).labels, Semantic(labels).labels.flip(1))

    @pytest.mark.parametrize("bad", [-1, 256])
    def test_labels_that_do_not_fit_a_byte(self, bad: int) -> None:
        with pytest.raises(ZooError, match=r"0\.\.255"):
            Semantic(np.array([[0, bad]]))

    def test_shapes(self) -> None:
        with pytest.raises(ZooError, match=r"labels are \(H,W\)"):
            Semantic(torch.zeros(1, 2, 3, dtype=torch.uint8))
        with pytest.raises(ZooError, match="scores of shape"):
            Semantic(torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(3, 2))


class TestInstances:
    def instances(self) -> Instances:
        return Instances(
            Masks.from_dense(dense_masks(3)),
            [4, 700, 0],
            np.array([0.5, 0.25, 1.0]),
            [False, True, False],
            boxes=np.arange(12).reshape(3, 4),
            areas=[1023.9999999, 1024.0, 9216.0],
            keypoints=torch.arange(3 * 17 * 3).reshape(3, 17, 3),
        )

    def test_picking_filters_every_field(self) -> None:
        whole = self.instances()
        rows = [2, 0]
        picked = whole[whole.labels < 10][[1, 0]]
        for name in ("labels", "scores", "crowd", "boxes", "areas", "keypoints"):
            assert torch.equal(getattr(picked, name), getattr(whole, name)[rows]), name
        assert picked.masks is not None
        assert torch.equal(picked.masks.dense(), whole.masks.dense()[rows])
        assert len(picked) == 2
        assert picked.size == SIZE

    def test_truth_has_score_one_and_no_crowds_unless_told(self) -> None:
        truth = Instances(Masks.from_dense(dense_masks(2)), [1, 2])
        assert truth.scores.tolist() == [1, 1]
        assert truth.crowd.tolist() == [False, False]

    def test_areas_decide_size_classes_and_keep_their_precision(self) -> None:
        areas = self.instances().areas
        assert areas is not None
        assert areas.tolist() == [1023.9999999, 1024.0, 9216.0]
        moved = self.instances().to("meta")
        assert moved.labels.device.type == "meta"
        assert moved.areas.device.type == "cpu"

    def test_segments_leave_out_crowds_and_empty_masks(self) -> None:
        dense = dense_masks(4)
        dense[2] = False
        masks, labels = Instances(Masks.from_dense(dense), [5, 6, 7, 8], crowd=[True, False, False, False]).segments()
        assert labels.tolist() == [6, 8]
        assert torch.equal(masks, dense[[1, 3]])

    def test_none(self) -> None:
        empty = Instances.empty(SIZE)
        assert len(empty) == 0
        assert empty.size == SIZE
        assert empty.segments()[0].shape == (0, *SIZE)
        assert len(empty[[]]) == len(empty[torch.zeros(0, dtype=torch.bool)]) == 0

    def test_without_masks(self) -> None:
        boxes = Instances(None, [1], boxes=[[0.0, 0, 2, 2]], size=SIZE)
        assert boxes[[0]].size == SIZE
        with pytest.raises(ZooError, match="no segments"):
            boxes.segments()
        with pytest.raises(ZooError, match="need boxes and size"):
            Instances(None, [1])

    @pytest.mark.parametrize(
        ("fields", "sentence"),
        [
            ({"labels": [1, 2]}, "3 masks but 2 labels"),
            ({"labels": [1, 2, 3], "scores": [1.0]}, r"scores of shape \(1,\) should begin with \(3,\)"),
            ({"labels": [1, 2, 3], "boxes": torch.zeros(3, 5)}, r"boxes of shape \(3, 5\)"),
            ({"labels": [1, 2, 3], "areas": [1.0]}, "areas of shape"),
            ({"labels": torch.zeros(3, 1)}, r"labels are \(N,\)"),
        ],
    )
    def test_lengths_that_differ(self, fields: dict[str, object], sentence: str) -> None:
        with pytest.raises(ZooError, match=sentence):
            Instances(Masks.from_dense(dense_masks(3)), **fields)  # type: ignore[arg-type]


class TestPanoptic:
    def test_semantic_is_the_class_of_each_segment_crowds_included(self) -> None:
        truth = panoptic()
        labels = truth.semantic().labels
        for i, label in enumerate(truth.labels.tolist()):
            assert (labels[truth.ids == i] == label).all()
        assert labels.dtype == torch.uint8

    def test_instances_are_the_things_renumbered_in_table_order(self) -> None:
        truth = panoptic()
        things = truth.instances(TABLE)
        assert things.labels.tolist() == [0, 0, 1]  # car, car, dog; the dog without pixels is gone
        assert things.crowd.tolist() == [False, True, False]
        assert things.scores.tolist() == pytest.approx([0.8, 0.7, 0.4])
        assert things.areas is not None
        assert things.areas.tolist() == [6.5, 8, 3.25]
        assert things.masks is not None
        assert torch.equal(things.masks.dense(), truth.ids == torch.tensor([2, 3, 6])[:, None, None])

    def test_segments_leave_out_void_crowds_and_what_has_no_pixels(self) -> None:
        truth = panoptic()
        masks, labels = truth.segments()
        assert labels.tolist() == [0, 1, 2, 3]
        assert torch.equal(masks, truth.ids == torch.tensor([1, 2, 5, 6])[:, None, None])

    def test_all_void(self) -> None:
        void = Panoptic(np.zeros(SIZE), [VOID])
        assert (void.semantic().labels == VOID).all()
        assert len(void.instances(TABLE)) == 0
        assert void.segments()[0].shape == (0, *SIZE)

    def test_segment_zero_is_void(self) -> None:
        for labels in ([], [0, 1]):
            with pytest.raises(ZooError, match=r"labels\[0\] must be 255"):
                Panoptic(np.zeros(SIZE), labels)


def test_conversions_go_downhill_only() -> None:
    semantic, instances, whole = panoptic().semantic(), panoptic().instances(TABLE), panoptic()
    assert semantic.semantic() is semantic
    assert instances.instances(TABLE) is instances
    assert whole.panoptic() is whole
    for refused in (
        semantic.panoptic,
        instances.panoptic,
        instances.semantic,
        lambda: semantic.instances(TABLE),
    ):
        with pytest.raises(ZooError, match="downhill only"):
            refused()  # type: ignore[operator]


class TestSample:
    @pytest.mark.parametrize("image", [np.zeros((4, 5)), np.zeros((4, 5, 3)), np.zeros((4, 5, 3), np.uint16)])
    def test_images_that_are_none(self, image: np.ndarray) -> None:
        with pytest.raises(ZooError, match=r"\(H,W,C\) uint8 or float32"):
            Sample(image, None, 0, (4, 5))

    def test_an_image_of_another_size_than_its_truth(self) -> None:
        with pytest.raises(ZooError, match="image 7 is 4x5 but its truth is 6x8"):
            Sample(np.zeros((4, 5, 3), np.uint8), panoptic(), 7, (4, 5))


class TestBatch:
    def test_of_arrays_of_mixed_sizes_pads_right_and_below_with_zeros(self) -> None:
        rng = np.random.default_rng(0)
        small, wide = rng.integers(1, 255, (3, 4, 5), np.uint8), rng.integers(1, 255, (5, 2, 7), np.uint8)
        batch = Batch.of([small.transpose(1, 2, 0), torch.from_numpy(wide[:3])])
        assert batch.images.shape == (2, 3, 4, 7)
        assert batch.images.dtype == torch.uint8
        assert np.array_equal(batch.images[0, :, :, :5], small)
        assert np.array_equal(batch.images[1, :, :2], wide[:3])
        assert batch.images[0, :, :, 5:].sum() == batch.images[1, :, 2:].sum() == 0
        assert batch.sizes == batch.original_sizes == [(4, 5), (2, 7)]
        assert batch.targets is None
        assert batch.ids == [0, 1]
        assert len(batch) == 2

    def test_of_a_tensor_and_of_grey_arrays(self) -> None:
        images = torch.rand(2, 7, 4, 6)
        batch = Batch.of(images)
        assert torch.equal(batch.images, images)
        assert batch.sizes == [(4, 6)] * 2
        assert Batch.of([np.zeros((4, 6), np.float64)]).images.shape == (1, 1, 4, 6)
        assert Batch.of([np.zeros((4, 6), np.float64)]).images.dtype == torch.float32

    @pytest.mark.parametrize(
        ("images", "sentence"),
        [
            (torch.zeros(3, 4, 5), "a single image goes in a list"),
            ([np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5, 1), np.uint8)], "1 channels of uint8 and 3 channels"),
            ([np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5, 3), np.float32)], "of float32 and 3 channels of uint8"),
            ([np.zeros((4, 5, 3), np.uint16)], "not .* torch.uint16"),
            ([np.full((4, 5, 3), 200.0)], "reach 200: divide"),
            ([], "no image at all"),
        ],
    )
    def test_of_what_is_no_batch(self, images: object, sentence: str) -> None:
        with pytest.raises(ZooError, match=sentence):
            Batch.of(images)  # type: ignore[arg-type]

    def test_targets_are_one_per_image(self) -> None:
        with pytest.raises(ZooError, match="1 images but 2 targets"):
            Batch.of(torch.zeros(1, 3, *SIZE), [panoptic(), panoptic()])

    def test_collate(self) -> None:
        samples = [
            Sample(np.full((*SIZE, 1), 9, np.uint8), panoptic(), 4, SIZE),
            Sample(np.full((3, 9, 1), 7, np.uint8), None, 5, (30, 90)),
        ]
        batch = Batch.collate(samples)
        assert batch.images.shape == (2, 1, 6, 9)
        assert batch.sizes == [SIZE, (3, 9)]
        assert batch.original_sizes == [SIZE, (30, 90)]
        assert batch.ids == [4, 5]
        assert batch.targets is not None
        assert batch.targets[1] is None
        assert Batch.collate(samples[1:]).targets is None

    def test_everything_moves(self) -> None:
        targets = [panoptic(), panoptic().semantic(), panoptic().instances(TABLE)]
        batch = Batch.of(torch.zeros(3, 3, *SIZE), targets).to("meta")
        assert batch.targets is not None
        tensors = [batch.images, batch.targets[0].ids, batch.targets[1].labels, batch.targets[2].masks.dense()]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert targets[0].ids.device.type == "cpu"

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_pins_and_moves_to_cuda(self) -> None:
        dense = Instances(Masks.from_dense(dense_masks(2)), [0, 1])
        batch = Batch.of(torch.zeros(2, 3, *SIZE), [panoptic(), dense]).pin_memory()
        assert batch.images.is_pinned()
        assert batch.targets is not None
        assert batch.targets[0].ids.is_pinned()
        there = batch.to("cuda")
        assert there.targets is not None
        assert there.targets[1].masks.dense().is_cuda
        here, things = panoptic().instances(TABLE), there.targets[0].instances(TABLE)
        assert torch.equal(things.masks.dense().cpu(), here.masks.dense())  # type: ignore[union-attr]
        assert torch.equal(there.targets[0].semantic().labels.cpu(), panoptic().semantic().labels)


def test_a_batch_of_pillow_images_is_refused() -> None:
    with pytest.raises(ZooError, match=r"not a PIL\.Image\.Image: np\.asarray"):
        Batch.of([Image.new("RGB", (4, 3))])  # type: ignore[list-item]


@pytest.mark.parametrize(("low", "high"), [(-1, 0), (0, 2), (3, 7)])
def test_segments_have_a_row_in_the_tables(low: int, high: int) -> None:
    with pytest.raises(ZooError, match=rf"Panoptic: ids {low}\.\.{high} do not index 2 segments"):
        Panoptic(torch.tensor([[low, high]]), torch.tensor([VOID, 0]))
