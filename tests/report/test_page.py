"""The page as a file: whole, closed to the network and to hostile names, within its size, honest about its tables."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished import IMAGES, crashed, finished, samples

from zoo.errors import ZooError
from zoo.report import charts, details, result
from zoo.report.__main__ import main
from zoo.report.markup import Html, data_block, tag
from zoo.report.page import write_page

EMPTY = {"br", "hr", "img", "input", "link", "meta"}
EVIL = """</script><script>alert(1)</script><img src=x onerror="alert(1)">'&"""


class Page(HTMLParser):
    """The elements of a page, each (name, attributes, text right inside it); it must be well formed."""

    def __init__(self, file: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self._open, [self.elements[i][0] for i in self._open]

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes), []))
        if name not in EMPTY:
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, name: str) -> None:
        assert self.elements[self._open.pop()][0] == name

    def handle_data(self, text: str) -> None:
        if self._open:
            for i in self._open:
                self.elements[i][2].append(text)

    def all(self, name: str, **wanted: str) -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of the elements with a name (and class, id, ...)."""
        found = [(a, "".join(text)) for n, a, text in self.elements if n == name]
        return [
            (a, text) for a, text in found if all(v in (a.get(k.rstrip("_")) or "").split() for k, v in wanted.items())
        ]

    def data(self, identifier: str) -> Any:
        ((_, text),) = self.all("script", id=identifier)
        return json.loads(text)


def made(runs: Path, **options: Any) -> Page:
    write_page([runs], runs / "report.html", **options)
    return Page(runs / "report.html")


@pytest.fixture(scope="module")
def three_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the three tasks on the same images, and one that crashed."""
    runs = tmp_path_factory.mktemp("three")
    finished(runs / "0", "unet", share=0.1)
    finished(runs / "1", "fcn", share=0.5, cost={"parameters": 9_000_000, "latency_ms": 5.0})
    finished(runs / "2", "mask_rcnn", "instance")
    finished(runs / "3", "mask2former", "panoptic")
    crashed(runs / "4", "pspnet", dataset=result.read(runs / "0")["dataset"])
    return runs


def test_nothing_comes_from_elsewhere_and_no_script_but_its_own_runs(three_tasks: Path) -> None:
    page = made(three_tasks)
    ((policy, _),) = [(a, t) for a, t in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy["content"]).split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "unsafe" not in str(policy["content"])
    scripts = [text for a, text in page.all("script") if a.get("type") != "application/json"]
    for kind, texts in (("script-src", scripts), ("style-src", [text for _, text in page.all("style")])):
        (text,) = texts
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[kind] == f"'sha256-{digest}'"
    for name, attributes, _ in page.elements:
        assert name not in ("link", "iframe", "object", "embed", "base", "form")
        assert "style" not in attributes  # the policy would not let it work
        assert not [key for key in attributes if key.startswith("on")]
        for key in ("src", "href", "action", "data", "srcset"):
            assert str(attributes.get(key) or "#").startswith("#"), (name, attributes)
    assert not re.search(r"https?://", page.source.replace("http-equiv", ""))


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = finished(tmp_path / "0", EVIL, backbone=EVIL, overrides=[f"x={EVIL}"])
    classes = [EVIL, *result.read(run)["classes"][1:]]
    metrics = {name.replace("/sky", f"/{EVIL}"): value for name, value in result.read(run)["metrics"].items()}
    content = json.loads((run / "result.json").read_text())
    content["metrics"] = metrics
    (run / "result.json").write_text(json.dumps(content))
    result.update(run, classes=classes, versions={EVIL: EVIL})
    index = run / "pictures" / "maps" / "index.json"
    maps = json.loads(index.read_text())
    maps["classes"][0][0] = maps["images"][0]["name"] = EVIL
    index.write_text(json.dumps(maps))
    crashed(tmp_path / "1", EVIL, EVIL, task=EVIL)
    crashed(tmp_path / "2", "b", EVIL, dataset={"name": EVIL, "split": EVIL})
    (run / "config.yaml").write_text(json.dumps({EVIL: EVIL}))
    page = made(tmp_path)
    assert not page.all("img")
    assert len([a for a, _ in page.all("script") if a.get("type") != "application/json"]) == 1
    assert "<script>alert" not in page.source
    assert "onerror=\"alert" not in page.source  # fmt: skip
    texts = [text for _, text in page.all("td") + page.all("th") + page.all("h2") + page.all("pre")]
    assert any(EVIL in text for text in texts)
    masks = page.data("c1-maps")
    assert masks["classes"][0][0] == EVIL
    assert EVIL in [image["name"] for image in masks["images"]]


def test_runs_that_may_not_be_compared_have_sections_of_their_own(tmp_path: Path) -> None:
    finished(tmp_path / "0", "unet")
    other = {"name": "elsewhere", "split": "val", "fingerprint": "f", "origin": "o", "images": 3}
    finished(tmp_path / "1", "fcn", dataset=other)
    page = made(tmp_path)
    assert [text for _, text in page.all("h2")] == ["scenes test, semantic", "elsewhere val, semantic"]
    for key, model in (("c1", "unet"), ("c2", "fcn")):
        assert page.data(f"{key}-data")["names"] == [model]
        ((_, table),) = page.all("table", id=f"{key}-board")
        assert model in table
    assert "2 comparisons" in page.source


def test_three_tasks_on_the_same_images_stand_together(three_tasks: Path) -> None:
    page = made(three_tasks)
    assert len(page.all("h2")) == 1
    ((_, joined),) = page.all("table", id="c1-board")
    assert all(text in joined for text in ("mIoU", "AP", "PQ", "unet", "mask_rcnn", "mask2former", "pspnet", "failed"))
    for task, score in (("semantic", "Dice"), ("instance", "AP50"), ("panoptic", "RQ")):
        ((_, own),) = page.all("table", id=f"c1-{task}-board")
        assert score in own
    masks = page.data("c1-maps")
    assert [row["task"] for row in masks["rows"]] == ["semantic", "semantic", "instance", "panoptic"]
    assert masks["finest"] == "panoptic"
    assert set(masks["images"][0]["truths"]) == {"semantic", "instance", "panoptic"}
    headings = [text for _, text in page.all("h3")]
    assert {"Masks side by side", "Score against cost", "Classes", "Confusion", "AP by size", "Training"} <= {*headings}


def test_maps_in_the_page_are_those_of_the_run(three_tasks: Path) -> None:
    masks = made(three_tasks).data("c1-maps")
    places = {row["name"]: place for place, row in enumerate(masks["rows"])}
    names = [name for name, _, _ in masks["classes"]]
    for image in masks["images"]:
        truth, h_w = image["truths"]["semantic"], image["size"]
        ids = np.frombuffer(zlib.decompress(base64.b64decode(truth["ids"])), np.uint8).reshape(h_w)
        labels = np.array(truth["labels"])[ids]
        assert np.array_equal(labels, samples("semantic")[image["index"]].target.labels.numpy())
        things = image["maps"][places["mask_rcnn"]]
        assert {names[label] for label in things["labels"][1:]} <= {"tree", "house", "ball", "tent", "rock", "balloon"}
        assert things["labels"][0] == -1
    shares = [image["disagreement"] for image in masks["images"]]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == IMAGES


def test_bold_only_where_the_interval_says_so(tmp_path: Path) -> None:
    finished(tmp_path / "0", "good", share=0.0)
    finished(tmp_path / "1", "bad", share=0.6)
    assert "100.00" in [text for _, text in made(tmp_path).all("b")]
    finished(tmp_path / "2", "equal", share=0.0)
    page = made(tmp_path)
    ((_, table),) = page.all("table", id="c1-board")
    assert table.count("100.00") >= 2
    assert not page.all("b")
    differences = page.data("c1-data")["differences"]["mIoU"]
    names = page.data("c1-data")["names"]
    delta, low, high, p = differences[names.index("bad")][names.index("good")]
    assert low <= delta <= high < 0
    assert p < 0.01
    assert differences[0][0] is None


def test_too_large_a_page_leaves_out_masks_and_says_so(three_tasks: Path) -> None:
    whole = made(three_tasks)
    limit = len(whole.source.encode()) / 1e6 - 0.02
    page = made(three_tasks, max_mb=limit)
    assert (three_tasks / "report.html").stat().st_size <= limit * 1e6
    kept = page.data("c1-maps")["images"]
    assert 0 < len(kept) < IMAGES
    ((_, said),) = page.all("p", class_="left-out")
    assert f"the masks of {IMAGES - len(kept)} images" in said
    assert kept == whole.data("c1-maps")["images"][: len(kept)]  # those most disagreed upon
    page = made(three_tasks, max_mb=0.001)  # nothing is left to leave out
    assert not page.all("script", id="c1-maps")
    assert "larger than the page may be" in page.source
    assert page.all("table", id="c1-board")
    with pytest.raises(ZooError, match=r"report\.max_mb=-1"):
        write_page([three_tasks], three_tasks / "report.html", -1)


def test_configs_show_what_differs_alone(three_tasks: Path) -> None:
    ((_, table),) = made(three_tasks).all("table", class_="config")
    assert "optimizer.lr" in table
    assert "optimizer.name" not in table
    assert "seed" not in table


def test_curves_over_steps_and_minutes(three_tasks: Path) -> None:
    page = made(three_tasks)
    names = [a.get("aria-label") for a, _ in page.all("svg", role="img")]
    assert {"training loss, log over step", "training loss, log over minutes of training"} <= {*names}
    assert "mIoU on validation over minutes of training" in names
    found = details.history({"folder": three_tasks / "0"})
    assert details._timed([(10, 0.5), (15, 0.7)], found["train/seconds"]) == [(0.5, 0.5), (0.75, 0.7)]


def test_a_crashed_run_says_its_last_words(three_tasks: Path) -> None:
    page = made(three_tasks)
    ((_, log),) = page.all("pre")
    assert log.startswith("error.log:")
    assert log.endswith("RuntimeError: CUDA out of memory")
    ((_, item),) = page.all("ul", class_="failures")
    assert "pspnet: failed. CUDA out of memory" in item


@pytest.mark.parametrize("lost", ["statistics.npz", "metrics.csv", "config.yaml", "pictures/maps/index.json"])
@pytest.mark.parametrize("damaged", [False, True])
def test_what_a_run_has_lost_costs_its_section_alone(tmp_path: Path, lost: str, damaged: bool) -> None:
    for i, model in enumerate(("unet", "fcn")):
        finished(tmp_path / str(i), model, share=0.2 * i)
        if damaged:
            (tmp_path / str(i) / lost).write_bytes(b"\x00\xff{ nonsense\n,,")
        else:
            (tmp_path / str(i) / lost).unlink()
    page = made(tmp_path)
    ((_, table),) = page.all("table", id="c1-board")
    assert "unet" in table
    assert bool(page.all("script", id="c1-maps")) == (lost != "pictures/maps/index.json")
    assert ("Training" in [text for _, text in page.all("h3")]) == (lost != "metrics.csv")


def test_only_failures_make_a_page_too(tmp_path: Path) -> None:
    crashed(tmp_path / "0", "unet")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "result.json").write_text("no json")
    page = made(tmp_path)
    assert "CUDA out of memory" in page.source
    assert "cannot be read as a result" in page.source


def test_the_command_writes_the_page(three_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new folder" / "report.html"
    assert main([str(three_tasks), "--html", str(file), "--max-mb", "3"]) == 0
    assert str(file) in capsys.readouterr().out
    assert Page(file).all("h1")
    assert main([str(three_tasks), "--html", str(file), "--max-mb", "0"]) == 2
    assert "report.max_mb=0" in capsys.readouterr().err


def test_markup_escapes_whatever_is_not_markup() -> None:
    assert tag("p", "<b>", Html("<i>"), None, ["&", 1]) == "<p>&lt;b&gt;<i>&amp;1</p>"
    assert tag("td", class_="a", data_row=0, title='"', hidden=True, open=False, id=None) == (
        '<td class="a" data-row="0" title="&quot;" hidden></td>'
    )
    assert tag("input", type="text") == '<input type="text">'
    block = data_block("x", {"a": "</script><!--&"})
    assert "</script><" not in block
    assert json.loads(block.removeprefix('<script type="application/json" id="x">').removesuffix("</script>")) == {
        "a": "</script><!--&"
    }


def test_the_front_is_what_none_is_cheaper_and_better_than() -> None:
    points = [(1.0, 10.0), (2.0, 9.0), (3.0, 30.0), (3.0, 20.0), (4.0, 30.0), (5.0, 31.0)]
    assert charts._front(points) == [(1.0, 10.0), (3.0, 30.0), (5.0, 31.0)]


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [3e-7, 4e-7], [1.0, 1e9], [-5.0, 5.0]])
def test_scales_have_ticks_inside_and_keep_order(values: list[float]) -> None:
    scale, ticks = charts._linear_scale(values, 0, 100)
    assert len(ticks) >= 2
    assert all(-1 <= scale(tick) <= 101 for tick, _ in ticks)
    assert [scale(v) for v in sorted(values)] == sorted(scale(v) for v in values)
    if min(values) > 0:
        scale, ticks = charts._log_scale(min(values) / 1.2, max(values) * 1.2)
        assert len(ticks) >= 2
        assert all(charts.LEFT - 1 <= scale(tick) <= charts.WIDTH for tick, _ in ticks)
