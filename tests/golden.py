"""References that no registry offers: the names and shapes of their weights, and what the model makes of such weights.

`golden/NAME.txt` lists a reference's state dict, a line "key dim,dim,..." each ("-" for a scalar). `fill` gives every
key numbers that depend on its name alone, so that the reference, run elsewhere, and `zoo.load`, run here, hold the
same weights. `golden/NAME.json` keeps what our model puts out on `picture`, written by `record` once the two had been
compared; `check` compares it again ever after.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "golden"
PROBES = 24


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a reference's state dict, in its order."""
    rows = (line.split() for line in (FOLDER / f"{name}.txt").read_text().splitlines())
    return {key: () if dims == "-" else tuple(map(int, dims.split(","))) for key, dims in rows}


def list_shapes(name: str, state: Mapping[str, Tensor]) -> None:
    """Write `golden/NAME.txt` from a reference's state dict."""
    lines = [f"{key} {','.join(map(str, value.shape)) or '-'}" for key, value in state.items()]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.txt").write_text("\n".join(lines) + "\n")


def fill(wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A state dict of these shapes: He-normal convolutions, norms whose statistics and weights are not the identity."""
    state: dict[str, Tensor] = {}
    for key, shape in wanted.items():
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(0)
            continue
        if len(shape) > 1:
            values = rng.standard_normal(shape, np.float32) * np.float32((2 / max(1, prod(shape[1:]))) ** 0.5)
        elif key.endswith(("running_var", "weight")):
            values = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            values = np.float32(0.2) * rng.standard_normal(shape, np.float32)
        state[key] = torch.from_numpy(np.asarray(values, np.float32))
    return state


def picture(height: int = 97, width: int = 113, channels: int = 3) -> Tensor:
    """A smooth image with edges, uint8 (1, C, H, W), the same everywhere."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    checks = (x // 16 + y // 16) % 2
    planes = [np.sin(x / (7 + 3 * c)) + np.cos(y / (5 + 2 * c)) + (checks + c) % 2 for c in range(channels)]
    stack = np.stack([(plane - plane.min()) / np.ptp(plane) for plane in planes])
    return torch.from_numpy((255 * stack).round().astype(np.uint8))[None]


def _probes(model: nn.Module, image: Tensor) -> dict[str, list[float]]:
    with torch.no_grad():
        logits = model(image).double().flatten()
    places = torch.linspace(0, logits.numel() - 1, PROBES).long()
    return {
        "summary": [logits.mean().item(), logits.std().item(), logits.min().item(), logits.max().item()],
        "probes": logits[places].tolist(),
    }


def record(name: str, model: nn.Module, image: Tensor | None = None) -> None:
    """Write `golden/NAME.json`; only after the model has been compared with the reference itself."""
    found = _probes(model, picture() if image is None else image)
    rounded = {key: [float(f"{value:.8g}") for value in values] for key, values in found.items()}
    (FOLDER / f"{name}.json").write_text(json.dumps(rounded) + "\n")


def check(name: str, model: nn.Module, image: Tensor | None = None) -> None:
    """The model still puts out what was recorded, to 1e-5 of the output's spread."""
    kept = json.loads((FOLDER / f"{name}.json").read_text())
    found = _probes(model, picture() if image is None else image)
    spread = kept["summary"][3] - kept["summary"][2]
    assert spread > 1e-3
    for key, values in kept.items():
        np.testing.assert_allclose(found[key], values, rtol=0, atol=1e-5 * spread, err_msg=key)
