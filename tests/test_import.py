"""`import zoo` is cheap and quiet: no network, no device, nothing heavy until it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import zoo

HEAVY = ("torch", "timm", "albumentations", "hydra", "lightning", "lightning_fabric", "transformers",
         "segmentation_models_pytorch", "cv2", "torchvision")  # fmt: skip


def run(code: str) -> list[str]:
    """What `code` prints in a fresh interpreter without network."""
    guard = "import socket\ndef no(*a): raise OSError('network')\nsocket.socket.connect = no\n"
    done = subprocess.run([sys.executable, "-c", guard + code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_import_loads_nothing_heavy() -> None:
    assert run(f"import sys, zoo\nprint(*(m for m in {HEAVY} if m in sys.modules))") == []


def test_models_load_no_optional_package() -> None:
    """Models and weights come without the packages of data, command line, training loop and peers."""
    unwanted = tuple(m for m in HEAVY if m not in ("torch", "timm", "torchvision", "cv2"))
    code = (
        "import sys, torch, zoo\nzoo.create_model, zoo.load, zoo.list_models()\n"
        f"print(*(m for m in {unwanted} if m in sys.modules), torch.cuda.is_initialized())"
    )
    assert run(code) == ["False"]


@pytest.mark.parametrize("name", zoo.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(zoo, name) is not None
    assert name in dir(zoo)


def test_declared_names_are_those_listed() -> None:
    assert {*zoo._HOME, "__version__"} == set(zoo.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    assert not hasattr(zoo, "create_modle")
    with pytest.raises(ImportError):
        exec("from zoo import create_modle")
