"""Our models beside the ones a user would pick, on the same weights: time and memory of predicting and of training.

    python benchmarks/models.py --threads 2              # everything, 10 minutes on two quiet cores
    python benchmarks/models.py --only unet pspnet --turns 9
    python benchmarks/models.py --device cuda            # bf16, channels_last, without and with compile

torchvision, segmentation-models-pytorch and transformers build a network, `zoo.load` takes its weights. Then, as a user
writes it, from uint8 images to the end, and a step of training:

    benchmarks/labellers.py   networks that label pixels, at 512x512, to labels
    benchmarks/detectors.py   those that find objects, at 800x800, to boxes and RLEs
    benchmarks/queries.py     those that answer with queries, at 800x800, to the panoptic map; their criterion alone

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

Models with queries, further: deformable attention as sums of whole cells (zoo/ops/deformable.py), six times as fast as
samples of planes; who attends where from pixels that are resized once; masks of the last layer alone; a map of segments
made of the kept queries, some at a time; a Swin's attention in one kernel. What is left is products of matrices: the
backbone's, the encoder's perceptrons and the 3x3 convolution at a quarter of the size. The criterion matches all layers
at the same points with one wait, makes the masks of pairs alone and reads the truth of all layers together.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectors
import labellers
import queries
import segmentation_models_pytorch as smp
import torch
import torchvision
import transformers
from measuring import convolutions, gpu_memory, medians, multiply_adds, predictor, stepper, use_processor_time
from peak import ENVIRONMENT, RESET, resident, restart
from torch import Tensor, nn

from zoo.state import compile_parts

SLOWEST, MOST_MEMORY = 1.05, 1.01
KINDS = (labellers, detectors, queries)


def kind_of(name: str) -> Any:
    """The module that knows the pair of this name."""
    return next(kind for kind in KINDS if name in kind.PEERS)


def side_of(name: str, who: str, state: dict[str, Tensor], size: int, device: str = "cpu") -> Any:
    """One contender with these weights, "ours" or "theirs"."""
    kind = kind_of(name)
    if who == "ours":
        return kind.ours(name, state, size, device)
    model: nn.Module = kind.network(name, size)
    model.load_state_dict(state)
    return kind.theirs(name, model.eval(), device)


@torch.no_grad()
def look(model: nn.Module, case: Any, kind: Any) -> None:
    """One image through our network."""
    kind.look(model.eval(), case)


# ---- memory, each contender in a process of its own


def measure_memory(name: str, who: str, file: str, size: int, batch: int) -> None:
    """In the child: print the peaks of predicting and of training in MiB, over what the imports took."""
    # What the first use of either library imports and keeps is code, not the model's: let it come before.
    kind = kind_of(name)
    first = kind.first(name)
    small = kind.network(first, 64)
    for who_first in ("ours", "theirs"):
        for make in (predictor, stepper):
            make(side_of(first, who_first, small.state_dict(), 64), kind.case_of(first, 2, 64, "cpu"))()
    del small
    before = restart()
    side = side_of(name, who, torch.load(file, weights_only=True), size)
    for images, make in ((1, predictor), (batch, stepper)):
        run = make(side, kind.case_of(name, images, size, "cpu"))
        restart()
        run()
        run()
        print(resident("VmHWM") - before)


def memory(name: str, who: str, file: Path, size: int, options: argparse.Namespace) -> tuple[float, float]:
    """Peaks of predicting and training in MiB, nan where there is no /proc."""
    if not RESET.exists():
        return float("nan"), float("nan")
    flags = ["--threads", str(options.threads), "--size", str(size), "--batch", str(batch_of(name, options))]
    command = [sys.executable, __file__, "--memory", name, who, str(file), *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=ENVIRONMENT)
    predicting, training = (float(line) for line in done.stdout.split()[-2:])
    return predicting, training


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
    kind, size, batch = kind_of(name), side_length(name, options), batch_of(name, options)
    state = kind.weights_of(name, size)
    theirs, ours = (side_of(name, who, state, size) for who in ("theirs", "ours"))
    ours.model.eval()
    one, several = kind.case_of(name, 1, size, "cpu"), kind.case_of(name, batch, size, "cpu")
    difference = kind.same(theirs, ours, one)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pt"
        torch.save(state, file)
        peaks = {who: memory(name, who, file, size, options) for who in ("ours", "theirs")}
    looking = lambda: look(ours.model, one, kind)  # noqa: E731
    macs, alone = multiply_adds(ours.model, looking), convolutions(ours.model, looking)
    times = medians(predictor(ours, one), predictor(theirs, one), options.turns, options.seconds)
    note = f"{macs:.1f} G; convs {alone:.0f} ms; {2000 * macs / times[0]:.0f} GFLOP/s; {difference}"
    yield Row(f"{name}: predict", *times, peaks["ours"][0], peaks["theirs"][0], note)
    if options.predict_only:
        return
    times = medians(stepper(ours, several), stepper(theirs, several), options.turns, options.seconds)
    yield Row(f"{name}: train", *times, peaks["ours"][1], peaks["theirs"][1], f"batch {batch}")


def on_gpu(name: str, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of one pair in bf16 and channels_last, then compiled."""
    torch.backends.cudnn.benchmark = True
    kind, size = kind_of(name), side_length(name, options)
    state = kind.weights_of(name, size)
    theirs, ours = (side_of(name, who, state, size, "cuda") for who in ("theirs", "ours"))
    ours.model.eval()
    difference = kind.same(theirs, ours, kind.case_of(name, 1, size, "cuda"))
    for side in (theirs, ours):
        side.model.to(memory_format=torch.channels_last)
    one, several = (kind.case_of(name, count, size, "cuda") for count in (1, batch_of(name, options)))
    for compiled in (False, True) if kind.COMPILES else (False,):
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


def criterion_row(device: str, options: argparse.Namespace) -> Row:
    """That of the models with queries, alone."""
    times = medians(*queries.criteria(device), options.turns, options.seconds)
    nothing = float("nan")
    return Row("transformers mask2former: criterion", *times, nothing, nothing, "10 layers, batch 2, with gradients")


def side_length(name: str, options: argparse.Namespace) -> int:
    """Of the images of this pair."""
    return options.size or kind_of(name).SIDE


def batch_of(name: str, options: argparse.Namespace) -> int:
    """Images of a training step of this pair."""
    return options.batch or kind_of(name).BATCH


def main() -> int:
    """Print the table; 1 if a promise is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, help="side of the images: 512, where objects are found 800")
    parser.add_argument("--batch", type=int, help="images of a training step: 2, with queries 1")
    parser.add_argument("--turns", type=int, default=9, help="at most, of each contender")
    parser.add_argument("--seconds", type=float, default=12, help="of turns for one row, beyond the first three")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--predict-only", action="store_true")
    parser.add_argument("--processor-time", action="store_true", help="not the wall's: where others use the machine")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    use_processor_time(options.processor_time)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.memory:
        measure_memory(*options.memory, options.size, options.batch)
        return 0
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, smp {smp.__version__}"
    versions += f", transformers {transformers.__version__}"
    machine = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    sides = options.size or "512 and 800"
    print(f"{versions}, images of {sides} pixels, {options.threads} threads, {machine}\n")
    print("| what | ratio | ours ms | theirs ms | ours MiB | theirs MiB | multiply-adds |")
    print("|---|--:|--:|--:|--:|--:|---|")
    missed = False
    chosen = lambda name: any(part.lower() in name.lower() for part in options.only)  # noqa: E731
    names = [name for kind in KINDS for name in kind.PEERS if chosen(name)]
    for name in names:
        for row in (on_cpu if options.device == "cpu" else on_gpu)(name, options):
            print(row, flush=True)
            missed |= bool(row.missed)
    if chosen("transformers mask2former criterion") and not options.predict_only:
        row = criterion_row(options.device, options)
        print(row, flush=True)
        missed |= bool(row.missed)
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
