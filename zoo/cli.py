"""The command lines. Hydra composes a config, every job runs in a process of its own, the table comes last.

    train, evaluate, predict     entry points: `python train.py ...` and, installed, `zoo-train ...`
    job                          what Hydra calls for each config; the work itself is in `zoo.jobs`

Only this file and `zoo.overrides` know Hydra. Jobs get plain dicts, in a spawned process: what one leaves behind
(memory, flags, threads) or dies of does not reach the next. Under torchrun or SLURM the processes are there already,
and the job runs in them.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo.errors import ZooError
from zoo.overrides import CONF, check, explain, quote_paths, saved_run
from zoo.report import result

_sweep: list[tuple[Path, float]] = []  # of a multirun its folder and the most megabytes of its page
_finished: list[tuple[Path, int]] = []  # run folders and exit codes of the jobs that this process started
_total = 1  # how many jobs there will be


def train() -> None:
    """Train models and compare them.

    python train.py model=unet dataset=camvid
    python train.py -m model=unet,deeplabv3,fcn dataset=camvid     one run each, then the table
    python train.py model=fcn dataset=voc backbone=resnet18        any timm backbone
    python train.py -m model=unet dataset=camvid seed=0,1,2        one row: mean and standard deviation
    python train.py -m model=unet,deeplabv3,mask_rcnn,mask2former experiment=demo
    python train.py resume=runs/2026-11-20_10-00-00_unet_camvid    go on where it stopped
    python train.py ... weights=best.ckpt skip_head=true           start from weights, with other classes
    python train.py ... weights=fcn-resnet50-coco-torchvision skip_head=true     public ones: python -m zoo.weights

    key=value changes a key of the config, `--cfg job` shows it:
      dataset.root=/data/camvid  backbone.pretrained=false  trainer.steps=2000  trainer.device=cpu
    A new key needs a plus, such as another term of the loss: +model.loss.dice=1.0
    --config-dir DIR adds your own cards, laid out as in conf/.
    """
    _command("train")


def evaluate() -> None:
    """Evaluate checkpoints and compare them.

    python evaluate.py checkpoint=runs/.../best.ckpt               on the dataset it was trained on
    python evaluate.py checkpoint=runs/.../best.ckpt dataset=voc split=val
    python evaluate.py checkpoint=fcn-resnet50-coco-torchvision dataset=voc      public weights: python -m zoo.weights
    python evaluate.py -m checkpoint=a.ckpt,b.ckpt                 one table
    python evaluate.py checkpoint=a.ckpt +options.flip=true        with another option of the model
    python evaluate.py model=combined semantic=a.ckpt instance=b.ckpt dataset=scenes        panoptic from two models

    key=value changes a key of the config, `--cfg job` shows it; a new key needs a plus.
    """
    _command("evaluate")


def predict() -> None:
    """Predict pictures: writes overlays and label images.

    python predict.py checkpoint=runs/.../best.ckpt input=holiday.jpg
    python predict.py checkpoint=runs/.../best.ckpt input=folder/of/pictures
    python predict.py checkpoint=runs/.../best.ckpt input=holiday.mp4

    key=value changes a key of the config, `--cfg job` shows it; a new key needs a plus.
    """
    _command("predict")


def _command(name: str) -> None:
    """Run a command line; exit codes: 0, 1 a run failed, 2 a mistake in the input, 130 interrupted."""
    global _total
    arguments = quote_paths(sys.argv[1:])
    if {"-h", "--help"} & set(arguments):
        print(_help(name))
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its exceptions on instead of printing them
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options = get_args_parser().parse_args(arguments)
        if name == "train" and any(text.startswith("resume=") for text in arguments):
            out, config, overrides = saved_run(options)
            if options.cfg:
                print(OmegaConf.to_yaml(OmegaConf.create(config)), end="")
                return
            _run("resume", out, config, overrides)
        else:
            if not (options.hydra_help or options.info or options.shell_completion):
                _total = check(name, options)
            sys.argv[1:] = arguments + _quietly(options)
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)()
    except (ZooError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        _finish(name)
        if _finished and (_finished[-1][0] / "last.ckpt").is_file():
            print(f"interrupted; resume={os.path.relpath(_finished[-1][0])} goes on")
        sys.exit(130)
    sys.exit(_finish(name))


def _quietly(options: Namespace) -> list[str]:
    """Arguments for Hydra besides the user's: --cfg shows values, and only rank 0 leaves folders."""
    if _rank():
        folder = tempfile.gettempdir()
        return [f"hydra.run.dir='{folder}'", f"hydra.sweep.dir='{folder}'"]
    return ["--resolve"] if options.cfg == "job" and not options.resolve else []


def _rank() -> int:
    """Which of the processes this is that torchrun or SLURM started."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


def _help(name: str) -> str:
    """The docstring of the command and the names it knows."""
    text = (globals()[name].__doc__ or "").replace("\n    ", "\n").rstrip()
    groups = {"train": sorted(folder.name for folder in CONF.iterdir() if folder.is_dir()), "evaluate": ["dataset"]}
    lines = [""]
    for group in groups.get(name, []):
        cards = sorted(card.stem for card in (CONF / group).glob("*.yaml"))
        lines.append(f"{group + ':':<12}{', '.join(cards)}{' and every timm model' if group == 'backbone' else ''}")
    return text + "\n".join(["", *lines] if groups.get(name) else [])


def _finish(name: str) -> int:
    """Print the table of the runs and return the exit code of the command."""
    from zoo.report.table import print_table

    runs = [out for out, _ in _finished]
    codes = [code for _, code in _finished]
    if name == "predict":
        return max(codes, default=0)
    if _sweep and not runs:  # a launcher that runs its jobs elsewhere
        runs = sorted((file.parent for file in _sweep[0][0].glob(f"*/{result.FILE}")), key=_number)
        codes = [0 if result.read(out)["status"] == "ok" else 1 for out in runs]
    if (_sweep or 0 in codes) and _rank() == 0:
        runs = [out for out in runs if (out / result.FILE).is_file()]
        print_table(runs)
        if _sweep and runs:
            _page(runs, *_sweep[0])
        print(f"pictures, checkpoints and numbers are in {os.path.relpath(_sweep[0][0] if _sweep else runs[0])}")
    return (1 if any(codes) else 0) if _sweep else max(codes, default=0)


def _page(runs: list[Path], folder: Path, max_mb: float) -> None:
    """Write the page of a multirun. The runs stand whatever becomes of it."""
    from zoo.report.page import write_page

    file = folder / "report.html"
    try:
        write_page(runs, file, max_mb)
    except Exception as error:
        print(f"{os.path.relpath(file)} could not be made ({error}): python -m zoo.report --html does it anew")
    else:
        print(f"to look at: {os.path.relpath(file)}")


def _number(out: Path) -> tuple[int, str]:
    """Sorts the folders of a multirun by the number of their job."""
    number = re.match(r"\d+", out.name)
    return int(number[0]) if number else 0, out.name


class SweepFolder(Callback):
    """Remembers of a multirun what its end needs: with a launcher that runs jobs elsewhere nothing else tells."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _sweep.append((Path(config.hydra.sweep.dir), OmegaConf.select(config, "report.max_mb", default=20)))


def job(cfg: DictConfig) -> int:
    """Run one composed job and return its exit code; it does not raise, or Hydra would end the multirun there."""
    settings = HydraConfig.get()
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    for part, key in ((config.get("dataset"), "root"), (config.get("backbone"), "pretrained"), (config, "weights")):
        if part and isinstance(part.get(key), str) and not (key == "weights" and _is_name(part[key])):
            # The run may be taken up again from another folder.
            part[key] = os.path.abspath(Path(part[key]).expanduser())
    plain = {str(key): value for key, value in config.items()}
    out = Path(settings.runtime.output_dir)
    if _rank() == 0:
        out = _claim(out)
        OmegaConf.save(OmegaConf.create(config), out / "config.yaml")
    return _run(str(settings.job.config_name), out, plain, list(settings.overrides.task))


def _is_name(weights: str) -> bool:
    """Whether `weights` is to be fetched, rather than a file or folder."""
    from zoo.weights.download import is_path  # takes seconds, and only such a run needs it

    return not is_path(weights)


def _claim(out: Path) -> Path:
    """A run folder nobody else has: two commands may have started within the same second."""
    for number in range(1, 1000):
        folder = out if number == 1 else out.with_name(f"{out.name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (folder / "config.yaml").touch(exist_ok=False)
        except FileExistsError:
            continue
        return folder
    raise ZooError(f"{out} and a thousand like it are taken")


def _run(kind: str, out: Path, config: dict[str, Any], overrides: list[str]) -> int:
    """Run a job in a process of its own, or in this one where a launcher has started all processes already."""
    what = " on ".join(config[part]["name"] for part in ("model", "dataset") if config.get(part))
    if _rank() == 0:
        parts = ("semantic", "instance") if config.get("combined") else ("checkpoint",)
        what = what or " + ".join(str(config[part]) for part in parts)
        print(f"[{len(_finished) + 1}/{_total}] {what} -> {os.path.relpath(out)}", flush=True)
    code = 130
    try:
        if "RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1:
            from zoo import jobs

            code = jobs.run(kind, config, out, overrides)
        else:
            code = _spawn(kind, config, out, overrides)
    finally:
        _finished.append((out, code))
    return code


def _spawn(*task: Any) -> int:
    """Run `jobs.run(*task)` in a spawned process and return its exit code; Ctrl-C asks it to end, twice kills it."""
    process = multiprocessing.get_context("spawn").Process(target=_child, args=task)
    process.start()
    try:
        process.join()
    except KeyboardInterrupt:
        process.terminate()
        process.join()
        raise
    finally:
        process.kill()
        process.join()
    code = process.exitcode or 0
    if code < 0:
        reason = f"the process was ended by {signal.Signals(-code).name} (was there enough memory?)"
        print(f"error: {reason}", file=sys.stderr)
        out = task[2]
        if (out / result.FILE).is_file() and result.read(out)["status"] != "ok":
            result.finish(out, "killed", reason)
        return 1
    return code


def _child(*task: Any) -> None:
    from zoo import jobs

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the parent decides and asks to end
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(jobs.run(*task))
