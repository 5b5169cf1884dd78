"""Shared fixtures: where the small real datasets are, one thread, no network."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

DATA = Path(os.environ.get("ZOO_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of small real datasets; tests that want it skip, saying so, where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no real datasets at {DATA} (set ZOO_TEST_DATA)")
    return DATA


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run offline: a connection to anything but this machine fails at once."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        local = not isinstance(address, tuple) or str(address[0]) in {"127.0.0.1", "::1", "localhost"}
        if not local:
            raise OSError(f"tests may not reach {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)
