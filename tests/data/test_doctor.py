"""The doctor: silent on healthy data, and one made-up defect for every finding."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data.doctor import Finding, examine, main
from zoo.errors import ZooError

CLASSES = ["background", "road", "car"]


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 24, 3), np.uint8))


def mask(*values: int, size: tuple[int, int] = (16, 24)) -> Image.Image:
    return Image.fromarray(np.resize(np.array(values, np.uint8), size))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three healthy images in train and two in val."""
    for i, (split, name) in enumerate([("train", "a"), ("train", "b"), ("train", "c"), ("val", "d"), ("val", "e")]):
        for folder, image, suffix in (("images", picture(i), "jpg"), ("masks", mask(0, 1, 2, 255), "png")):
            (tmp_path / folder / split).mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / folder / split / f"{name}.{suffix}")
    return tmp_path


def findings(root: Path, **options: object) -> list[Finding]:
    return examine("folder", root, **{"classes": CLASSES} | options).findings  # type: ignore[arg-type]


def run(root: Path, *words: str) -> int:
    return main(["folder", f"root={root}", "classes=[background, road, car]", *words])


def test_healthy_data_has_no_findings(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert findings(root) == []
    assert run(root) == 0
    out = capsys.readouterr().out
    assert "train 3, val 2" in out
    assert "no problems found" in out


def test_histogram_counts_pixels_and_images(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask(0, 0, 0, 0, 1, 1, 1, 255).save(root / "masks/train/a.png")
    looks = examine("folder", root, classes=CLASSES).looks["train"]
    assert looks[0].pixels is not None
    assert (looks[0].pixels.tolist(), looks[0].void) == ([16 * 12, 16 * 9, 0], 16 * 3)
    run(root)
    rows = {line.split()[2]: line.split()[3:] for line in capsys.readouterr().out.splitlines() if "■" in line}
    assert rows["background"] == ["33.33", "100", "25.00", "100"]
    assert rows["car"] == ["16.67", "67", "25.00", "100"]


def no_mask(root: Path) -> None:
    (root / "masks/train/a.png").unlink()


def no_image(root: Path) -> None:
    (root / "images/train/b.jpg").unlink()


def truncated_image(root: Path) -> None:
    path = root / "images/train/b.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def truncated_mask(root: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 3, (16, 24), np.uint8))
    noise.save(root / "masks/train/b.png")
    path = root / "masks/train/b.png"
    path.write_bytes(path.read_bytes()[:90])


def garbage(root: Path) -> None:
    (root / "images/train/b.jpg").write_bytes(b"<html>404</html>")


def other_size(root: Path) -> None:
    mask(0, 1, 2, size=(24, 16)).save(root / "masks/train/b.png")


def outside(root: Path) -> None:
    mask(0, 1, 2, 7).save(root / "masks/train/b.png")


def all_void(root: Path) -> None:
    mask(255).save(root / "masks/train/c.png")


def all_void_everywhere(root: Path) -> None:
    for name in "abc":
        mask(255).save(root / f"masks/train/{name}.png")


def never(root: Path) -> None:
    for name in "abc":
        mask(0, 1).save(root / f"masks/train/{name}.png")


def never_in_val(root: Path) -> None:
    for name in "de":
        mask(0, 1).save(root / f"masks/val/{name}.png")


def zeros_and_255(root: Path) -> None:
    for name in "abc":
        mask(0, 255).save(root / f"masks/train/{name}.png")


def odd_array(root: Path) -> None:
    (root / "masks/train/b.png").unlink()
    header = b"{'descr': (((  "
    damaged = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    (root / "masks/train/b.npy").write_bytes(damaged)


def bomb(root: Path) -> None:
    """The header of a 60000 x 60000 PNG, which Pillow does not even open."""
    path = root / "images/train/b.png"
    (root / "images/train/b.jpg").unlink()
    picture(1).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)


def exif(root: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 3
    picture(1).save(root / "images/train/b.jpg", exif=turned)


def overlap(root: Path) -> None:
    shutil.copy(root / "images/train/b.jpg", root / "images/val/d.jpg")


def same_name(root: Path) -> None:
    for folder, suffix in (("images", "jpg"), ("masks", "png")):
        (root / folder / "val" / f"d.{suffix}").rename(root / folder / "val" / f"a.{suffix}")


def copies(root: Path) -> None:
    shutil.copy(root / "images/train/b.jpg", root / "images/train/c.jpg")


def same_name_below(root: Path) -> None:
    for folder, suffix in (("images", "jpg"), ("masks", "png")):
        (root / folder / "train" / "sub").mkdir()
        (root / folder / "train" / f"c.{suffix}").rename(root / folder / "train" / "sub" / f"a.{suffix}")


def many_sizes(root: Path) -> None:
    picture(9).resize((30, 20)).save(root / "images/train/b.jpg")
    mask(0, 1, 2, size=(20, 30)).save(root / "masks/train/b.png")


DEFECTS: list[tuple[Callable[[Path], None], str, str, str, int, str]] = [
    (no_mask, "error", "train", "images without labels", 1, "images/train/a.jpg"),
    (no_image, "error", "train", "label files without an image", 1, "masks/train/b.png"),
    (truncated_image, "error", "train", "cannot be read", 1, "images/train/b.jpg: truncated"),
    (truncated_mask, "error", "train", "cannot be read", 1, "masks/train/b.png: truncated"),
    (garbage, "error", "train", "cannot be read", 1, "images/train/b.jpg: not an image"),
    (odd_array, "error", "train", "cannot be read", 1, "masks/train/b.npy: not a plain NumPy array"),
    (bomb, "error", "train", "cannot be read", 1, "images/train/b.png: cannot be read (Image size"),
    (other_size, "error", "train", "image and mask differ in size", 1, "b.png: the labels are 16x24, the image 24x16"),
    (outside, "error", "train", "labels that are no class", 1, "masks/train/b.png: label 7 (96 pixels)"),
    (all_void, "warning", "train", "masks that are all void", 1, "images/train/c.jpg"),
    (all_void_everywhere, "error", "train", "masks that are all void", 3, "images/train/a.jpg"),
    (never, "warning", "train", "classes that never occur", 1, "car"),
    (never_in_val, "info", "val", "classes that never occur", 1, "car"),
    (zeros_and_255, "error", "train", "masks hold 0 and 255 only", 3, "images/train/a.jpg"),
    (exif, "warning", "train", "EXIF turns the picture", 1, "images/train/b.jpg"),
    (overlap, "error", "train, val", "same picture in both splits", 1, "images/train/b.jpg = "),
    (same_name, "warning", "train, val", "same file name in both splits", 1, "images/val/a.jpg"),
    (copies, "warning", "train", "same picture more than once", 1, "images/train/b.jpg = "),
    (same_name_below, "warning", "train", "same file name in several folders", 1, "images/train/sub/a.jpg"),
    (many_sizes, "info", "train", "sizes of images", 2, "24x16 to 30x20"),
]


@pytest.mark.parametrize(
    ("defect", "severity", "split", "problem", "count", "example"), DEFECTS, ids=[d[0].__name__ for d in DEFECTS]
)
def test_every_defect_is_found_and_nothing_else(
    root: Path,
    capsys: pytest.CaptureFixture[str],
    defect: Callable[[Path], None],
    severity: str,
    split: str,
    problem: str,
    count: int,
    example: str,
) -> None:
    defect(root)
    (found,) = findings(root)
    assert (found.severity, found.split, found.problem, found.count) == (severity, split, problem, count)
    assert example in found.example
    assert found.advice
    assert run(root) == (severity == "error")
    out = capsys.readouterr().out
    assert f"{split}: {problem} ({count})" in out
    assert found.advice in out
    assert f"{root}/" not in out  # paths are short: under the root that the first line names


def test_binary_masks_read_as_two_classes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (root / "masks").rglob("*.png"):
        mask(0, 255).save(path)
    found = findings(root, classes=["background", "cell"])
    assert [(f.severity, f.problem, f.count) for f in found] == [
        ("error", "labels that are no class", 3),
        ("error", "labels that are no class", 2),
    ]
    assert "set encoding=binary" in found[0].example
    assert main(["folder", "--root", str(root), "--encoding", "binary", "classes=[background, cell]"]) == 0


def test_the_rest_is_examined_where_partners_are_missing(root: Path) -> None:
    no_mask(root)
    outside(root)
    found = findings(root)
    assert {f.problem for f in found} == {"images without labels", "labels that are no class"}
    assert len(examine("folder", root, classes=CLASSES).looks["train"]) == 2


def test_masks_with_another_suffix_are_all_unpaired(root: Path) -> None:
    for path in (root / "masks/train").iterdir():
        path.rename(path.with_stem(f"{path.stem}_foo"))
    found = findings(root, mask_suffix="")
    assert [(f.problem, f.count) for f in found] == [("images without labels", 3), ("label files without an image", 3)]
    assert "mask_suffix=" in found[0].advice
    assert findings(root, splits=["train"], mask_suffix="_foo") == []


def test_a_turned_photograph_is_fine_when_turned_back(root: Path) -> None:
    exif(root)
    assert findings(root, exif="apply") == []


def test_splits_that_were_asked_for(root: Path) -> None:
    assert list(examine("folder", root, ["val"], classes=CLASSES).looks) == ["val"]
    with pytest.raises(ZooError, match="there is no split 'test'"):
        findings(root, splits=["test"])
    assert [f.problem for f in findings(root, splits=["train", "test"])] == ["cannot be opened"]
    assert run(root, "--split", "train,test") == 1


def test_an_empty_split(root: Path) -> None:
    for folder in ("images", "masks"):
        (root / folder / "test").mkdir()
    (found,) = findings(root)
    assert (found.severity, found.split) == ("error", "test")
    assert "no images in split 'test'" in found.example


def test_drawn_fractions_name_the_splits(root: Path) -> None:
    looks = examine("folder", root, classes=CLASSES, fractions={"train": 0.6, "test": 0.4}).looks
    assert {split: len(seen) for split, seen in looks.items()} == {"train": 3, "test": 2}


def test_a_split_that_contains_another_is_no_overlap(data_root: Path) -> None:
    assert examine("isbi2012", data_root / "isbi2012").findings == []
    found = examine("camvid", data_root / "camvid", ["val", "trainval"]).findings
    assert all("both splits" not in f.problem for f in found)


def test_scenes_need_no_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenes", "length=3", "size=64", "--split", "train", "--split", "val"]) in (0, 1)
    out = capsys.readouterr().out
    assert "scenes: train 3, val 3" in out
    assert "sky" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["camvit"], "unknown dataset 'camvit': did you mean camvid?"),
        (["length=3"], "name a dataset: "),
        (["scenes", "lenght=3"], "unknown option of dataset scenes 'lenght': did you mean length?"),
        (["scenes", "size=[3"], "size=[3: the value is not YAML"),
        (["scenes", "--split", "trian"], "unknown split of scenes 'trian': did you mean train?"),
        (["camvid", "voc", "--root", "x"], "root= is the folder of one dataset"),
        (["camvid", "--root", "nowhere"], "nowhere: there is no such folder. Expected\nCamVid/"),
        (["folder", "--encoding", "colour"], "unknown encoding 'colour': did you mean color"),
    ],
)
def test_mistakes_in_the_command(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert says in capsys.readouterr().err


def test_root_comes_from_the_environment(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "classes.txt").write_text("\n".join(CLASSES))
    monkeypatch.setenv("ZOO_DATA", str(root.parent))
    root.rename(root.parent / "folder")
    assert main(["folder"]) == 0
    assert "train 3, val 2" in capsys.readouterr().out


def test_a_dataset_that_is_missing_leaves_the_others_their_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    assert main(["scenes", "camvid", "--split", "val"]) == 2
    said = capsys.readouterr()
    assert "scenes: val 100" in said.out
    assert "camvid: there is no such folder" in said.err
