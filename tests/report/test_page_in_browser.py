"""The page in a real Chromium, used as a person would: no complaint in the console, and it does what it offers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find
from finished import IMAGES, crashed, finished, samples, spoiled

from zoo.report import result
from zoo.report.page import write_page

MODELS = (
    "[...document.querySelectorAll('#c1-board tbody tr')].filter(r => !r.hidden)"
    ".map(r => r.querySelector('.label').textContent.trim())"
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two semantic models, an instance and a panoptic one on the same images, and one that crashed."""
    runs = tmp_path_factory.mktemp("runs")
    finished(runs / "0", "unet", share=0.1)
    finished(runs / "1", "fcn", share=0.5, cost={"parameters": 9_000_000})
    finished(runs / "2", "mask_rcnn", "instance", cost={"parameters": 5_000_000})
    finished(runs / "3", "mask2former", "panoptic", share=0.2)
    crashed(runs / "4", "pspnet", dataset=result.read(runs / "0")["dataset"])
    write_page([runs], runs / "report.html")
    return runs / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = find()
    if path is None:
        pytest.skip("no Chromium on the PATH (apt-get install chromium, or set ZOO_CHROMIUM)")
    with Browser(path, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Browser]:
    """The page freshly opened; afterwards nothing may have been complained about or asked for."""
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(file)
    shown(browser)
    yield browser
    assert browser.complaints == []
    assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data", "blob"}
    assert [url for url in browser.requests if url.startswith("file")] == [file.resolve().as_uri()]


def shown(page: Browser, view: str = "") -> str:
    """What the viewer says it shows, once it does."""
    page.wait(f"(document.querySelector('.viewer').dataset.shown || '').includes('{view}')")
    return str(page.run("document.querySelector('.viewer').dataset.shown"))


def pixels(page: Browser, tile: int) -> list[list[int]]:
    """The painted pixels of a tile of the stage that are not transparent, (x, y, r, g, b)."""
    found: Any = page.run(
        f"""(() => {{ const c = document.querySelectorAll('.stage canvas')[{tile}], found = [];
        const own = new OffscreenCanvas(c.width, c.height).getContext('2d', {{willReadFrequently: true}});
        own.drawImage(c, 0, 0);
        const d = own.getImageData(0, 0, c.width, c.height).data;
        for (let i = 0; i < d.length; i += 4)
          if (d[i + 3]) found.push([i / 4 % c.width, Math.floor(i / 4 / c.width), d[i], d[i + 1], d[i + 2]]);
        return found; }})()"""
    )
    return found


def current(page: Browser) -> int:
    """The index in the data set of the image on the stage."""
    return int(page.run("document.querySelector('.steps h4').textContent.match(/test-(\\d+)/)[1]"))


def test_sorting_by_a_column_and_back(page: Browser) -> None:
    assert page.run(MODELS) == ["unet", "fcn", "pspnet", "mask_rcnn", "mask2former"]
    head = "[...document.querySelectorAll('#c1-board th[data-kind]')].find(h => h.textContent.startsWith('params'))"
    page.run(f"{head}.id = 'params'")
    page.click("#params button")
    assert page.run(MODELS)[0] == "fcn"
    assert page.run(MODELS)[-1] == "pspnet"  # what is not known comes last
    assert page.run("document.getElementById('params').getAttribute('aria-sort')") == "descending"
    page.click("#params button")
    assert page.run(MODELS)[-2:] == ["fcn", "pspnet"]
    assert page.run("document.getElementById('params').getAttribute('aria-sort')") == "ascending"


def test_filtering_rows(page: Browser) -> None:
    page.type("[data-board='c1'] .filter", "mask resnet")
    assert page.run(MODELS) == ["mask_rcnn", "mask2former"]


def test_the_difference_follows_the_reference(page: Browser) -> None:
    cells = "[...document.querySelectorAll('#c1-board td.difference')].map(c => c.textContent)"
    assert page.run(cells)[0] == "reference"
    page.choose("[data-board='c1'] .reference", "1")
    after = page.run(cells)
    assert after[1] == "reference"
    assert after[0].startswith("+")
    assert page.run("document.querySelector('#c1-board td.difference').classList.contains('better')")
    page.choose("[data-board='c1'] .score", "PQ")
    assert page.run(cells) == ["–", "reference", "–", "–", "–"]


def test_truth_is_painted_in_the_colours_of_its_classes(page: Browser) -> None:
    page.choose(".viewer .sorting", "order")
    page.wait("document.querySelector('.steps h4').textContent.startsWith('test-00000')")
    shown(page, "test-00000")
    target = samples("panoptic")[0].target
    classes = page.run("JSON.parse(document.getElementById('c1-maps').textContent).classes")
    labels = target.semantic().labels.numpy()
    stuff = [x for x in pixels(page, 0) if not classes[labels[x[1], x[0]]][2] and x[2:] != [255, 255, 255]]
    assert len(stuff) > 500
    assert all([red, green, blue] == classes[labels[y, x]][1] for x, y, red, green, blue in stuff)


def test_errors_are_where_prediction_and_truth_differ(page: Browser) -> None:
    """The page's own error map of U-Net, the second tile, against labels compared here."""
    page.click("input[value='errors']")
    shown(page, "errors")
    data = page.run("JSON.parse(document.getElementById('c1-maps').textContent).rows.map(r => r.name)")
    assert data[0] == "unet"
    index = current(page)
    truth = samples("semantic")[index].target
    made = spoiled(truth, 0.1, index)
    wrong = {(int(x), int(y)) for y, x in (truth.labels != made.labels).nonzero().tolist()}
    assert {(x, y) for x, y, *_ in pixels(page, 1)} == wrong
    assert "wrong class" in page.run("document.querySelector('.chips').textContent")


def test_keys_step_toggle_zoom_and_fade(page: Browser) -> None:
    first = shown(page)
    page.click(".stage .frame")
    page.press("ArrowRight")
    page.wait(f"document.querySelector('.viewer').dataset.shown !== {first!r}")
    page.press("ArrowLeft")
    page.wait(f"document.querySelector('.viewer').dataset.shown === {first!r}")
    for key, view in (("2", "errors"), ("3", "disagreement"), ("4", "image"), ("1", "prediction")):
        page.press(key)
        shown(page, view)
    page.press("+")
    assert float(page.run("document.querySelector('.stage').dataset.scale")) == 1.5
    transforms = "[...new Set([...document.querySelectorAll('.stage .layers')].map(l => l.style.transform))]"
    (same,) = page.run(transforms)  # all tiles in step
    assert "scale(1.5)" in same
    page.press("0")
    assert float(page.run("document.querySelector('.stage').dataset.scale")) == 1
    before = float(page.run("document.querySelectorAll('.stage canvas')[1].style.opacity"))
    page.press("]")
    assert float(page.run("document.querySelectorAll('.stage canvas')[1].style.opacity")) == pytest.approx(before + 0.1)


def test_the_wheel_zooms_with_ctrl_and_scrolls_without(page: Browser) -> None:
    page.wheel(".stage .frame", -300, ctrl=True)
    page.wait("Number(document.querySelector('.stage').dataset.scale) > 2")
    scale, top = page.run("document.querySelector('.stage').dataset.scale"), page.run("window.scrollY")
    page.wheel(".stage .frame", 300)
    page.wait(f"window.scrollY !== {top}")
    assert page.run("document.querySelector('.stage').dataset.scale") == scale


def test_the_full_screen_holds_all_tiles(page: Browser) -> None:
    page.click(".viewer .whole")
    page.wait("document.fullscreenElement !== null")
    page.wait("[...document.querySelectorAll('.tile')].every(t => t.getBoundingClientRect().bottom <= innerHeight)")
    wide = page.run("document.querySelector('.frame').clientWidth")
    assert wide > 250
    page.wheel(".stage .frame", -300)  # without Ctrl: there is nothing to scroll
    page.wait("Number(document.querySelector('.stage').dataset.scale) > 2")
    page.click(".viewer .whole")
    page.wait("document.fullscreenElement === null")


def test_one_class_alone(page: Browser) -> None:
    classes = page.run("JSON.parse(document.getElementById('c1-maps').textContent).classes")
    sky = [name for name, _, _ in classes].index("sky")
    everything = len(pixels(page, 1))
    page.choose(".viewer .only", str(sky))
    page.wait("document.querySelector('.chips [aria-pressed=true]') !== null")
    left = pixels(page, 1)
    assert 0 < len(left) < everything
    assert {tuple(x[2:]) for x in left} == {tuple(classes[sky][1])}


def test_the_score_slider_leaves_out_the_unsure(page: Browser) -> None:
    """Of Mask R-CNN, the fourth tile, everything is less sure than 1."""
    assert pixels(page, 3)
    page.run(
        "(() => { const s = document.querySelector('.viewer input.score'); s.value = 1;"
        "s.dispatchEvent(new Event('input')); })()"
    )
    page.wait("document.querySelector('.toolbar output').textContent === '1.00'")
    page.run("new Promise(done => setTimeout(done, 300))")
    assert pixels(page, 3) == []


def test_sorting_images_by_who_beats_whom(page: Browser) -> None:
    images = page.run("JSON.parse(document.getElementById('c1-maps').textContent).images")
    page.choose(".viewer .sorting", "beats")
    order = page.run("[...document.querySelectorAll('.images .row')].map(r => Number(r.dataset.image))")
    gains = [images[i]["scores"][0] - images[i]["scores"][1] for i in order]
    assert len(gains) == IMAGES
    shown(page, images[order[0]]["name"])
    assert gains == sorted(gains, reverse=True)
    page.choose(".viewer .sorting", "worst")
    order = page.run("[...document.querySelectorAll('.images .row')].map(r => Number(r.dataset.image))")
    scores = [images[i]["scores"][0] for i in order]
    assert scores == sorted(scores)
    shown(page, images[order[0]]["name"])


def test_a_click_in_the_list_shows_that_image(page: Browser) -> None:
    page.click(".images .row:nth-child(3)")
    name = page.run("document.querySelector('.images .row:nth-child(3) b').textContent")
    page.wait(f"document.querySelector('.viewer').dataset.shown.startsWith({name!r})")
    page.wait("document.querySelector('.images .row:nth-child(3) canvas').width > 1")


def test_light_dark_and_back(page: Browser, file: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.run(paper)
    page.resize(1400, 900, "dark")
    dark = page.run(paper)
    assert dark != light
    for name, color in (("light", light), ("dark", dark)):
        page.click("#theme")
        assert page.run("document.documentElement.dataset.theme") == name
        assert page.run(paper) == color
    page.click("#theme")
    assert page.run("document.documentElement.dataset.theme") == "auto"


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_nothing_sticks_out_at_any_width(page: Browser, width: int) -> None:
    page.resize(width, 900)
    assert page.run("document.documentElement.scrollWidth") <= width


def test_everything_can_be_reached_and_is_named(page: Browser) -> None:
    """What assistive technology is told: every control and picture has a name, tables have heads."""
    nameless = page.run(
        """[...document.querySelectorAll('button, input, select, svg[role=img], nav, [role=group]')].filter(e =>
        !(e.textContent.trim() || e.getAttribute('aria-label') || e.title || e.closest('label')?.textContent.trim()))
        .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
    assert page.run("[...document.querySelectorAll('table')].every(t => t.tHead && t.querySelector('th[scope=row]'))")
    assert page.run("document.documentElement.lang") == "en"
    ids = page.run("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_it_prints(page: Browser, tmp_path: Path) -> None:
    page.print(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    page.resize(800, 1000, media="print")
    assert page.run("getComputedStyle(document.querySelector('.toolbar')).display") == "none"
    assert page.run("getComputedStyle(document.querySelector('#c1-board')).display") == "table"
    page.resize(800, 1000)
