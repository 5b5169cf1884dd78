"""Fetched files are whole, checked and fetched once; what cannot be fetched is one sentence that says what to do."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from serving import Server, send, serving
from torchvision.models import segmentation

import zoo
from zoo.checkpoint import save_model
from zoo.errors import ZooError
from zoo.weights import download
from zoo.weights.catalogue import CATALOGUE
from zoo.weights.download import fetch, is_path, locate

BODY = bytes(range(256)) * 5000
SHA = "sha256:" + hashlib.sha256(BODY).hexdigest()[:8]
fork = multiprocessing.get_context("fork")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    with serving() as running:
        running.routes["/file.pth"] = BODY
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "publisher" / "file.pth"


def files(folder: Path) -> set[str]:
    """Names of all files in `folder`, locks apart."""
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def refusal(address: str, target: Path, checksum: str | None = None) -> str:
    """The error of a download that must leave nothing."""
    with pytest.raises(ZooError) as error:
        fetch(address, target, checksum)
    assert not files(target.parent)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- one file


@pytest.mark.parametrize("checksum", [SHA, "md5:" + hashlib.md5(BODY).hexdigest(), None])
def test_fetched_once_and_whole(
    server: Server, target: Path, checksum: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        assert fetch(server.address("/file.pth"), target, checksum).read_bytes() == BODY
    assert server.requests == ["GET /file.pth"]
    assert files(target.parent) == {"file.pth"}
    assert capsys.readouterr().err == f"fetching {server.address('/file.pth')} (1.3 MB) -> {target}\n"


def test_another_file_is_not_kept(server: Server, target: Path) -> None:
    said = refusal(server.address("/file.pth"), target, "sha256:00000000")
    assert f"what came is another file: its sha256 is {SHA.removeprefix('sha256:')}, not 00000000" in said
    assert f"put it at {target}" in said


def test_a_connection_that_ends_early(server: Server, target: Path) -> None:
    server.routes["/cut.pth"] = lambda handler: send(handler, BODY[:1000], length=len(BODY))
    assert f"ended after 1000 of {len(BODY)} bytes" in refusal(server.address("/cut.pth"), target)


def test_answers_that_are_no_file(server: Server, target: Path) -> None:
    server.routes["/page.pth"] = lambda handler: send(handler, b"<html>log in</html>", Content_Type="text/html")
    assert "the server answered 404 Not Found" in refusal(server.address("/missing.pth"), target)
    assert "the server sent a page, not the file" in refusal(server.address("/page.pth"), target)


def test_no_server_is_one_line_at_once(target: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    with serving() as gone:
        address = gone.address("/file.pth")
    started = time.monotonic()
    said = refusal(address, target)
    assert time.monotonic() - started < 5
    assert said == f"{address} could not be fetched (Connection refused): download it elsewhere and put it at {target}"
    target.write_bytes(BODY)
    assert fetch(address, target, SHA) == target


def test_a_server_that_never_answers(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = Event()
    monkeypatch.setattr(download, "ANSWER", 0.2)
    server.routes["/silent.pth"] = lambda handler: release.wait(30) and None
    assert "no answer within" in refusal(server.address("/silent.pth"), target)
    release.set()


def test_a_connection_that_stalls(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = Event()
    monkeypatch.setattr(download, "STALL", 0.3)
    server.routes["/slow.pth"] = halting(release)
    assert "timed out" in refusal(server.address("/slow.pth"), target)
    release.set()


def test_a_damaged_file_in_the_cache_is_named(server: Server, target: Path) -> None:
    fetch(server.address("/file.pth"), target, SHA)
    target.write_bytes(BODY[:-1] + b"x")
    with pytest.raises(ZooError, match=rf"{target} is damaged or another file: .* delete it"):
        fetch(server.address("/file.pth"), target, SHA)
    assert len(server.requests) == 1


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "a file" / "cache"))
    with pytest.raises(ZooError, match=r"file\.pth could not be written \(Not a directory\): let ZOO_CACHE name"):
        locate(server.address("/file.pth"))
    assert server.requests == []


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_cache_is_read(server: Server, target: Path) -> None:
    fetch(server.address("/file.pth"), target, SHA)
    target.parent.chmod(0o500)
    try:
        assert fetch(server.address("/file.pth"), target, SHA) == target
        with pytest.raises(ZooError, match="could not be written"):
            fetch(server.address("/file.pth"), target.with_name("other.pth"))
    finally:
        target.parent.chmod(0o700)


def test_a_full_disk_is_one_sentence(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert refusal(server.address("/file.pth"), target) == f"the disk is full: {target} could not be written"


# ---- several processes


def halting(release: Event, seen: Event | None = None) -> Callable[[BaseHTTPRequestHandler], None]:
    """Sends half the file, then waits for `release`."""

    def route(handler: BaseHTTPRequestHandler) -> None:
        send(handler, BODY[: len(BODY) // 2], length=len(BODY))
        if seen:
            seen.set()
        release.wait(30)
        handler.wfile.write(BODY[len(BODY) // 2 :])

    return route


def test_two_processes_fetch_once(server: Server, target: Path) -> None:
    release, seen = Event(), Event()
    server.routes["/slow.pth"] = halting(release, seen)
    both = [fork.Process(target=fetch, args=(server.address("/slow.pth"), target, SHA)) for _ in range(2)]
    both[0].start()
    assert seen.wait(10)
    both[1].start()
    time.sleep(0.3)
    assert not target.exists()
    release.set()
    for process in both:
        process.join(20)
    assert [process.exitcode for process in both] == [0, 0]
    assert target.read_bytes() == BODY
    assert server.requests == ["GET /slow.pth"]


def test_a_killed_download_leaves_no_file_and_the_next_one_works(server: Server, target: Path) -> None:
    release, seen = Event(), Event()
    server.routes["/slow.pth"] = halting(release, seen)
    process = fork.Process(target=fetch, args=(server.address("/slow.pth"), target, SHA))
    process.start()
    assert seen.wait(10)
    deadline = time.monotonic() + 10
    while not files(target.parent) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert files(target.parent) == {".file.pth.part"}
    release.set()
    server.routes["/slow.pth"] = BODY
    assert fetch(server.address("/slow.pth"), target, SHA).read_bytes() == BODY
    assert files(target.parent) == {"file.pth"}


# ---- names


def test_what_a_string_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = next(iter(CATALOGUE))
    for path in ("best.ckpt", "runs/1/best.ckpt", "~/best.pth", "a/folder", "rf101_voc.pth.tar"):
        assert is_path(path)
    for other in (name, "hf://owner/name", "https://example.org/x.pth", "fcn-resnet50"):
        assert not is_path(other)
    assert locate("~/best.pth") == Path.home() / "best.pth"
    Path(name).touch()  # a file of that name comes first
    assert is_path(name)
    assert locate(name) == Path(name)


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(ZooError, match=r"neither a file nor .*: did you mean .*deeplabv3-resnet50-coco-torchvision"):
        zoo.load("deeplabv3-resnet50-coco")
    with pytest.raises(ZooError, match=r"neither a file nor .*: zoo\.list_weights\(\) has all names"):
        zoo.load("xyzzy")
    with pytest.raises(ZooError, match=r"checkpoint absent\.ckpt does not exist"):
        zoo.load("absent.ckpt")


def test_an_address_has_a_place_of_its_own(server: Server) -> None:
    server.routes["/other/file.pth"] = b"other"
    one, two = locate(server.address("/file.pth")), locate(server.address("/other/file.pth"))
    assert (one.name, one.read_bytes(), two.name, two.read_bytes()) == ("file.pth", BODY, "file.pth", b"other")
    assert locate(server.address("/file.pth")) == one
    assert len(server.requests) == 2


def test_by_hand(server: Server, tmp_path: Path) -> None:
    row = zoo.list_weights(publisher="semseg")[0]
    with pytest.raises(ZooError) as error:
        zoo.load(row.name)
    target = tmp_path / "cache" / "semseg" / row.file
    assert str(error.value) == (
        f"{row} can only be downloaded by hand: get train_epoch_100.pth from {row.address} and put it at {target}"
    )
    target.parent.mkdir(parents=True)
    save_model(target, zoo.create_model("fcn", 2, "test_resnet"))
    assert zoo.load(row).provenance["file"] == str(target)


def test_what_excludes_commercial_use_says_so(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZooError, match="by hand"):
        zoo.load("refinenet-resnet101-voc-drsleep")
    assert "academic use" in capsys.readouterr().err


def test_a_row_from_its_address_to_predictions(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of torchvision's layout, by name: the same model as from the file itself."""
    torch.manual_seed(0)
    theirs = segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    body = (tmp_path / "theirs.pth").read_bytes()
    name = "deeplabv3-mobilenetv3_large_100-coco-torchvision"
    row = replace(
        CATALOGUE[name],
        address=server.address("/models/theirs.pth"),
        checksum="sha256:" + hashlib.sha256(body).hexdigest()[:8],
    )
    monkeypatch.setitem(CATALOGUE, name, row)
    server.routes["/models/theirs.pth"] = body
    first, second = zoo.load(tmp_path / "theirs.pth"), zoo.load(name)
    images = torch.randint(0, 256, (1, 3, 40, 56), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(first(images), second(images))
        for value in first.parameters():
            value.zero_()
        zoo.load_weights(first, name)
        assert torch.equal(first(images), second(images))
    assert server.requests == ["GET /models/theirs.pth"]


# ---- the Hub


def move_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """What HF_ENDPOINT does when its library is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A Hub with one repository, owner/name, of a model as smp's `save_pretrained` writes it."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = smp.Unet("resnet18", encoder_weights=None, classes=3, decoder_channels=(16, 8, 8, 8, 8))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    body = (tmp_path / "model.safetensors").read_bytes()
    contents = {
        "config.json": (json.dumps({"_model_class": "Unet", "classes": 3}).encode(), "0" * 40),
        "model.safetensors": (body, hashlib.sha256(body).hexdigest()),
    }
    for file, (content, etag) in contents.items():
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": "1" * 40}
        for revision in ("main", "v1"):
            server.routes[f"/owner/name/resolve/{revision}/{file}"] = server.routes[
                f"/owner/name/resolve/{'1' * 40}/{file}"
            ] = lambda handler, content=content, headers=headers: send(handler, content, **headers)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    move_hub(monkeypatch, server.address(""))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return server


def test_a_repository_of_the_hub(hub: Server, tmp_path: Path) -> None:
    model = zoo.load("hf://owner/name")
    assert (model.header["name"], len(model.classes)) == ("unet", 3)
    assert sum(request.startswith("GET") and "safetensors" in request for request in hub.requests) == 1
    hub.requests.clear()
    zoo.load("hf://owner/name")
    assert hub.requests == []
    assert locate("hf://owner/name@v1/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_a_damaged_file_of_the_hub_is_named(hub: Server) -> None:
    file = locate("hf://owner/name/model.safetensors").resolve()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ZooError, match=f"{file.name} is damaged"):
        locate("hf://owner/name")


def test_what_the_hub_does_not_have(hub: Server) -> None:
    def no_repository(handler: BaseHTTPRequestHandler) -> None:
        send(handler, b"", status=401, X_Error_Code="RepoNotFound")

    def no_file(handler: BaseHTTPRequestHandler) -> None:
        send(handler, b"", status=404, X_Error_Code="EntryNotFound", X_Repo_Commit="2" * 40)

    hub.routes["/owner/private/resolve/main/config.json"] = no_repository
    hub.routes["/owner/empty/resolve/main/config.json"] = no_file
    with pytest.raises(ZooError, match=r"could not be fetched \(Repository Not Found.*\): download config\.json and"):
        locate("hf://owner/private")
    with pytest.raises(ZooError, match=r"could not be fetched \(Entry Not Found.*\): download config\.json and mo"):
        locate("hf://owner/empty")
    with pytest.raises(ZooError, match=r"could not be fetched \(.*404 Not Found.*\): download x\.safetensors from"):
        locate("hf://owner/other/x.safetensors")
    with pytest.raises(ZooError, match=r"cannot read 'hf://owner': write hf://owner/name"):
        locate("hf://owner")


def test_no_hub_is_one_line_at_once(hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as gone:
        move_hub(monkeypatch, gone.address(""))
    folder = tmp_path / "cache" / "hub" / "owner" / "name"
    started = time.monotonic()
    with pytest.raises(ZooError) as error:
        zoo.load("hf://owner/name")
    assert time.monotonic() - started < 5
    assert str(error.value) == (
        f"hf://owner/name could not be fetched (Connection refused): download config.json and model.safetensors "
        f"from {gone.address('')}/owner/name/tree/main elsewhere and put them into {folder}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ZooError, match=r"\(HF_HUB_OFFLINE is set\)"):
        zoo.load("hf://owner/name")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    assert zoo.load("hf://owner/name").provenance["file"] == str(folder)
    assert hub.requests == []
