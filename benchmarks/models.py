"""Our models beside the ones a user would pick, on the same weights: time and memory of predicting and of training.

    python benchmarks/models.py --threads 2              # everything, 10 minutes on two quiet cores
    python benchmarks/models.py --only unet pspnet --turns 9
    python benchmarks/models.py --device cuda            # bf16, channels_last, without and with compile

torchvision and segmentation-models-pytorch build a network, `zoo.load` takes its weights. Then, as a user writes it:

Those that find objects (benchmarks/detectors.py says how) go through to boxes and RLEs, at 800x800. The others:

    predict   uint8 image -> labels. Theirs: (x / 255 - mean) / std, forward, argmax(1), in inference_mode. Ours:
              `model.predict(batch)`
    train     theirs: the same normalisation, forward, F.cross_entropy at full size (+ 0.5 auxiliary), backward, SGD.
              Ours: `model.loss(batch)`, backward, the same SGD

Logits and losses are compared before anything is timed. Contenders take turns in one process; times are medians. Peak
memory is what a process of its own needs beyond its imports: weights and everything else, from /proc (Linux), with an
allocator told to give back what is freed. The exit code is 1 where ours takes more than 1.05 times as long, or more
memory (1 % is the measurement's own spread).

What was done for prediction (zoo/models/fold.py, zoo/ops/): convolutions in channels_last; batch norms inside the
convolutions before them; no auxiliary head; the filters of a large weight in turns, which oneDNN copies twice; labels
strip by strip from the small logits, so that scores of all classes are never held at full size unless the decoder gives
them so; an argmax over planes. What is left is the convolutions: "convs" is the time of the model's convolutions alone,
one after another in channels_last, measured in the same run, and GFLOP/s is twice the multiply-adds over our whole
time. Nothing short of fewer operations or a narrower number format goes below that.

What was done for training: the loss strip by strip from the small logits, with its gradient, in a third of the time and
without a map of all classes; on the CPU ASPP's dilated branches in channels_last, where oneDNN leaves out the products
with padding (a quarter of ASPP's time). Else a step is convolutions, three times the multiply-adds of prediction, by
the same oneDNN or cuDNN calls on both sides: channels_last throughout was measured and is slower for ResNets and U-Net,
whose weight gradients take up to three times as long in it.

Detectors, further: RoIAlign as sums of whole rows of a channels_last map (zoo/models/two_stage/roi.py), five times as
fast as torchvision's kernel for planes on one thread, which has only one; the mask head's deconvolution as a product of
matrices, and after it the predicted class alone; boxes decoded and scored for the pairs above the threshold alone; RLEs
from the RoI grids, where theirs draws a map of the whole image for each detection. In training frozen norms are a
product and a sum, which remember nothing. The limit is again the convolutions, and the box head's first layer.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torchvision
from detectors import FIRST_VERSIONS, DetectionCase, OurDetector, TheirDetector, calibrate, detector
from detectors import compare as compare_detections
from peak import ENVIRONMENT, RESET, resident, restart
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import segmentation

import zoo
from zoo.state import compile_parts
from zoo.structures import VOID, Batch, Semantic

CLASSES = 21
SLOWEST, MOST_MEMORY = 1.05, 1.01
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Contender = Callable[[], object]


def from_torchvision(name: str, **options: Any) -> nn.Module:
    """torchvision's network without weights."""
    return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=CLASSES, **options)


def from_smp(name: str, encoder: str) -> nn.Module:
    """smp's network without weights."""
    return getattr(smp, name)(encoder, encoder_weights=None, classes=CLASSES)


PEERS: dict[str, Callable[[], nn.Module]] = {
    "torchvision fcn_resnet50": lambda: from_torchvision("fcn_resnet50", aux_loss=True),
    "torchvision deeplabv3_resnet50": lambda: from_torchvision("deeplabv3_resnet50", aux_loss=True),
    "torchvision deeplabv3_mobilenet_v3_large": lambda: from_torchvision("deeplabv3_mobilenet_v3_large", aux_loss=True),
    "torchvision lraspp_mobilenet_v3_large": lambda: from_torchvision("lraspp_mobilenet_v3_large"),
    "smp Unet resnet34": lambda: from_smp("Unet", "resnet34"),
    "smp DeepLabV3 resnet34": lambda: from_smp("DeepLabV3", "resnet34"),
    "smp DeepLabV3Plus resnet34": lambda: from_smp("DeepLabV3Plus", "resnet34"),
    "smp PSPNet resnet34": lambda: from_smp("PSPNet", "resnet34"),
}


# Compared and run otherwise, see benchmarks/detectors.py.
DETECTORS = {
    f"torchvision {name}": name
    for name in ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn")
}
SIDE, DETECTORS_SIDE = 512, 800  # of images, in pixels


@dataclass
class Case:
    """Images and labels, and how to compute with them."""

    images: Tensor  # (B, 3, S, S) uint8
    labels: Tensor  # (B, S, S) uint8 with void
    half: bool  # bf16 and channels_last

    @classmethod
    def of(cls, batch: int, size: int, device: str) -> Case:
        """Noise, and labels in blocks with 5 % void."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
        blocks = torch.randint(0, CLASSES, (batch, 1, size // 16, size // 16), generator=generator)
        labels = F.interpolate(blocks.float(), (size, size))[:, 0].to(torch.uint8)
        labels[torch.rand(labels.shape, generator=generator) < 0.05] = VOID
        return cls(images.to(device), labels.to(device), device != "cpu")

    def batch(self) -> Batch:
        """As our models take it."""
        return Batch.of(self.images, [Semantic(labels) for labels in self.labels])

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """bf16 on a GPU."""
        return torch.autocast(self.images.device.type, torch.bfloat16) if self.half else contextlib.nullcontext()


class Theirs:
    """A peer as its users run it."""

    def __init__(self, model: nn.Module, device: str) -> None:
        self.model = model.to(device)
        self.mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(STD, device=device).view(1, 3, 1, 1)

    def outputs(self, case: Case) -> dict[str, Tensor]:
        """Logits at full size."""
        images = (case.images / 255 - self.mean) / self.std
        if case.half:
            images = images.contiguous(memory_format=torch.channels_last)
        with case.precision():
            output = self.model(images)
        return {"out": output} if isinstance(output, Tensor) else output

    def predict(self, case: Case) -> Tensor:
        """Labels (B, S, S)."""
        with torch.inference_mode():
            return self.outputs(case)["out"].argmax(1)

    def loss(self, case: Case) -> Tensor:
        """Cross-entropy, the auxiliary head's at half weight."""
        outputs = self.outputs(case)
        losses = {k: F.cross_entropy(v.float(), case.labels.long(), ignore_index=VOID) for k, v in outputs.items()}
        return losses["out"] + 0.5 * losses["aux"] if "aux" in losses else losses["out"]


class Ours:
    """Our model as its users run it."""

    def __init__(self, model: Any, device: str) -> None:
        self.model = model.to(device)

    def predict(self, case: Case) -> Tensor:
        """Labels (B, S, S)."""
        with torch.inference_mode(), case.precision():
            return torch.stack([prediction.labels for prediction in self.model.predict(case.batch())])

    def loss(self, case: Case) -> Tensor:
        """The sum of the model's terms."""
        with case.precision():
            return torch.stack([*self.model.loss(case.batch()).values()]).sum()


Side = Theirs | Ours | TheirDetector | OurDetector


def stepper(side: Any, case: Any) -> Contender:
    """One training step a call."""
    optimizer = torch.optim.SGD(side.model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        side.model.train()
        side.loss(case).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def predictor(side: Any, case: Any) -> Contender:
    """One prediction a call."""

    def predict() -> None:
        side.model.eval()
        side.predict(case)

    return predict


def randomized(model: nn.Module) -> nn.Module:
    """Batch statistics that are not the identity."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def peer(name: str, size: int) -> nn.Module:
    """The network of the other side, without weights."""
    return detector(DETECTORS[name], size) if name in DETECTORS else PEERS[name]()


def case_of(name: str, batch: int, size: int, device: str) -> Case | DetectionCase:
    """Images and truth for the pair of this name."""
    if name not in DETECTORS:
        return Case.of(batch, size, device)
    return DetectionCase.of(batch, size, device, classes=1 if "keypoint" in name else 90)


def side_of(name: str, who: str, state: dict[str, Tensor], size: int, device: str = "cpu") -> Side:
    """One contender with these weights, "ours" or "theirs"."""
    if who == "ours":
        if name in DETECTORS:
            learned = {} if DETECTORS[name] in FIRST_VERSIONS else {"frozen_stages": 0}
            return OurDetector(zoo.load(state, test_size=size, test_limit=2 * size, **learned), device)
        return Ours(zoo.load(state), device)
    model = peer(name, size)
    model.load_state_dict(state)
    model.eval()
    return TheirDetector(model, device) if name in DETECTORS else Theirs(model, device)


def weights_of(name: str, size: int) -> dict[str, Tensor]:
    """Random weights with which the network computes what it would."""
    return calibrate(DETECTORS[name], size) if name in DETECTORS else randomized(PEERS[name]()).state_dict()


def same(theirs: Any, ours: Any, case: Any) -> str:
    """How far the two sides are from each other; ValueError where it is too far."""
    if isinstance(case, DetectionCase):
        return f"boxes differ {compare_detections(theirs, ours, replace(case, half=False)):.0e} px"
    return f"logits differ {compare(theirs, ours, case):.0e}"


def compare(theirs: Theirs, ours: Ours, case: Case) -> float:
    """The largest difference of logits, in shares of their spread; ValueError where it, labels or losses differ.

    In float32 and in evaluation mode, whatever is timed.
    """
    case = replace(case, half=False)
    with torch.no_grad():
        expected, found = theirs.outputs(case)["out"].float(), ours.model(case.images).float()
        difference = float((found - expected).abs().max() / (expected.max() - expected.min()))
        gap = abs(float(ours.loss(case)) / float(theirs.loss(case)) - 1)
        agreement = float((ours.predict(case) == theirs.predict(case)).float().mean())
    if difference > 1e-4 or gap > 1e-4 or agreement < 0.999:
        raise ValueError(f"not the same model: logits {difference:.1e}, loss {gap:.1e}, labels {agreement:.2%} equal")
    return difference


CLOCKS: dict[bool, Callable[[], float]] = {False: time.perf_counter, True: time.process_time}
clock = CLOCKS[False]


def milliseconds(run: Contender) -> float:
    """Of one call, to its end also on a GPU."""
    start = clock()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (clock() - start)


def medians(ours: Contender, theirs: Contender, turns: int, seconds: float) -> tuple[float, float]:
    """Milliseconds of each, taking turns after a first one; at least three turns, then until `seconds` are over."""
    times: list[tuple[float, float]] = []
    milliseconds(ours)
    milliseconds(theirs)
    start = time.perf_counter()
    while len(times) < 3 or (len(times) < turns and time.perf_counter() - start < seconds):
        pair = [milliseconds(run) for run in ((ours, theirs) if len(times) % 2 else (theirs, ours))]
        times.append((pair[0], pair[1]) if len(times) % 2 else (pair[1], pair[0]))
    return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)


def look(model: Any, case: Case | DetectionCase) -> None:
    """One image through our network, with the heads of those that find objects."""
    model.eval()
    with torch.no_grad():
        if isinstance(case, DetectionCase):
            model.predict(Batch.of(case.images[:1]))
        else:
            model(case.images[:1])


def multiply_adds(model: Any, case: Case | DetectionCase) -> float:
    """Of one forward pass of ours, in 1e9 (convolutions and matrix products)."""
    with FlopCounterMode(display=False) as counter:
        look(model, case)
    return counter.get_total_flops() / 2e9


def convolutions(model: Any, case: Case | DetectionCase) -> float:
    """Milliseconds of the forward pass's convolutions alone, each the fastest of three, in channels_last."""
    calls: list[tuple[nn.Conv2d, torch.Size]] = []
    handles = [
        layer.register_forward_hook(lambda layer, inputs, _: calls.append((layer, inputs[0].shape)))
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    look(model, case)
    with torch.inference_mode():
        for handle in handles:
            handle.remove()
        total = 0.0
        for layer, shape in calls:
            weight = layer.weight.contiguous(memory_format=torch.channels_last)
            x = torch.randn(shape, device=weight.device).contiguous(memory_format=torch.channels_last)
            padding = layer.padding if not isinstance(layer.padding, str) else 0
            geometry = (layer.stride, padding, layer.dilation, layer.groups)
            run = lambda x=x, w=weight, g=geometry: torch.conv2d(x, w, None, *g)  # noqa: E731
            total += min(milliseconds(run) for _ in range(3))
    return total


# ---- memory, each contender in a process of its own


def measure_memory(name: str, who: str, file: str, size: int, batch: int) -> None:
    """In the child: print the peaks of predicting and of training in MiB, over what the imports took."""
    # What the first use of either library imports and keeps is code, not the model's: let it come before.
    first = name if name in DETECTORS else "torchvision deeplabv3_mobilenet_v3_large"
    small = peer(first, 64)
    for who_first in ("ours", "theirs"):
        for make in (predictor, stepper):
            make(side_of(first, who_first, small.state_dict(), 64), case_of(first, 2, 64, "cpu"))()
    del small
    before = restart()
    side = side_of(name, who, torch.load(file, weights_only=True), size)
    for images, make in ((1, predictor), (batch, stepper)):
        run = make(side, case_of(name, images, size, "cpu"))
        restart()
        run()
        run()
        print(resident("VmHWM") - before)


def memory(name: str, who: str, file: Path, size: int, options: argparse.Namespace) -> tuple[float, float]:
    """Peaks of predicting and training in MiB, nan where there is no /proc."""
    if not RESET.exists():
        return float("nan"), float("nan")
    flags = ["--threads", str(options.threads), "--size", str(size), "--batch", str(options.batch)]
    command = [sys.executable, __file__, "--memory", name, who, str(file), *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=ENVIRONMENT)
    predicting, training = (float(line) for line in done.stdout.split()[-2:])
    return predicting, training


def gpu_memory(run: Contender, model: nn.Module) -> float:
    """MiB of the model and the peak of a call beyond what was there."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return (torch.cuda.max_memory_allocated() - before + weights) / 2**20


# ---- the table


@dataclass
class Row:
    """One line of the table."""

    name: str
    ours: float
    theirs: float
    memory_ours: float
    memory_theirs: float
    note: str

    @property
    def missed(self) -> str:
        """Which promises were not kept."""
        slow = self.ours > SLOWEST * self.theirs
        large = self.memory_ours > MOST_MEMORY * self.memory_theirs
        return " MISSED:" + " time" * slow + " memory" * large if slow or large else ""

    def __str__(self) -> str:
        times = f"{self.ours / self.theirs:.2f} | {self.ours:.0f} | {self.theirs:.0f}"
        return (
            f"| {self.name} | {times} | {self.memory_ours:.0f} | {self.memory_theirs:.0f} | {self.note}{self.missed} |"
        )


def on_cpu(name: str, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of one pair."""
    size = side_length(name, options)
    state = weights_of(name, size)
    theirs, ours = (side_of(name, who, state, size) for who in ("theirs", "ours"))
    ours.model.eval()
    one, several = case_of(name, 1, size, "cpu"), case_of(name, options.batch, size, "cpu")
    difference = same(theirs, ours, one)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pt"
        torch.save(state, file)
        peaks = {who: memory(name, who, file, size, options) for who in ("ours", "theirs")}
    macs, alone = multiply_adds(ours.model, one), convolutions(ours.model, one)
    times = medians(predictor(ours, one), predictor(theirs, one), options.turns, options.seconds)
    note = f"{macs:.1f} G; convs {alone:.0f} ms; {2000 * macs / times[0]:.0f} GFLOP/s; {difference}"
    yield Row(f"{name}: predict", *times, peaks["ours"][0], peaks["theirs"][0], note)
    if not options.predict_only:
        times = medians(stepper(ours, several), stepper(theirs, several), options.turns, options.seconds)
        yield Row(f"{name}: train", *times, peaks["ours"][1], peaks["theirs"][1], f"batch {options.batch}")


def on_gpu(name: str, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of one pair in bf16 and channels_last, then compiled."""
    torch.backends.cudnn.benchmark = True
    size = side_length(name, options)
    state = weights_of(name, size)
    theirs, ours = (side_of(name, who, state, size, "cuda") for who in ("theirs", "ours"))
    ours.model.eval()
    difference = same(theirs, ours, case_of(name, 1, size, "cuda"))
    for side in (theirs, ours):
        side.model.to(memory_format=torch.channels_last)
    one, several = case_of(name, 1, size, "cuda"), case_of(name, options.batch, size, "cuda")
    for compiled in (False,) if name in DETECTORS else (False, True):  # theirs does not compile
        if compiled:
            theirs.model.compile()
            compile_parts(ours.model)
        for what, make, case in (("predict", predictor, one), ("train", stepper, several)):
            runs = make(ours, case), make(theirs, case)
            for run in runs * 3:  # compiling, and cuDNN's choice of kernels
                run()
            times = medians(*runs, 5 * options.turns, options.seconds)
            peaks = gpu_memory(runs[0], ours.model), gpu_memory(runs[1], theirs.model)
            label = f"{name}: {what}{' compiled' * compiled}"
            yield Row(label, *times, *peaks, f"batch {len(case.images)}; {difference}")


def side_length(name: str, options: argparse.Namespace) -> int:
    """Of the images of this pair."""
    return options.size or (DETECTORS_SIDE if name in DETECTORS else SIDE)


def main() -> int:
    """Print the table; 1 if a promise is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, help=f"side of the images: {SIDE}, of detectors {DETECTORS_SIDE}")
    parser.add_argument("--batch", type=int, default=2, help="images of a training step")
    parser.add_argument("--turns", type=int, default=9, help="at most, of each contender")
    parser.add_argument("--seconds", type=float, default=12, help="of turns for one row, beyond the first three")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--predict-only", action="store_true")
    parser.add_argument("--processor-time", action="store_true", help="not the wall's: where others use the machine")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    global clock
    clock = CLOCKS[options.processor_time]
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.memory:
        measure_memory(*options.memory, options.size, options.batch)
        return 0
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, smp {smp.__version__}"
    machine = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    sides = options.size or f"{SIDE} and {DETECTORS_SIDE}"
    print(f"{versions}, images of {sides} pixels, {options.threads} threads, {machine}\n")
    print("| what | ratio | ours ms | theirs ms | ours MiB | theirs MiB | multiply-adds |")
    print("|---|--:|--:|--:|--:|--:|---|")
    missed = False
    for name in (*PEERS, *DETECTORS):
        if not any(part.lower() in name.lower() for part in options.only):
            continue
        for row in (on_cpu if options.device == "cpu" else on_gpu)(name, options):
            print(row, flush=True)
            missed |= bool(row.missed)
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
