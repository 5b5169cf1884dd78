"""The training loop: read `Run.train` from top to bottom, then what it calls. Nothing here knows a task."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor

from zoo import checkpoint
from zoo.data import Dataset
from zoo.data.loader import train_loader
from zoo.devices import Fabric, Stop, gather, share_buffers
from zoo.errors import ZooError
from zoo.evaluation import Stopped, measure, peak_memory_mb, reset_peak_memory
from zoo.metrics import create_metric
from zoo.optim import create_optimizer, create_schedule
from zoo.recipe import Recipe
from zoo.runlog import RunLog
from zoo.state import (
    Average,
    Progress,
    compile_parts,
    freeze_norms,
    is_finite,
    random_state,
    set_deterministic,
    set_random_state,
    set_statistics,
)
from zoo.structures import Batch


class Run:
    """A training run: the objects that change, and the loop that changes them."""

    def __init__(
        self,
        fabric: Fabric,
        model: Any,
        train: Dataset,
        val: Dataset | None,
        out: Path,
        optimizer: dict[str, Any],
        seed: int,
        recipe: Recipe,
    ) -> None:
        self.fabric, self.train_set, self.val, self.out = fabric, train, val, out
        self.seed, self.recipe = seed, recipe
        self.progress = Progress()
        reset_peak_memory(fabric.device)
        if recipe.deterministic:
            set_deterministic()
        torch.manual_seed(seed + fabric.global_rank)
        if recipe.sync_batchnorm and fabric.world_size > 1:
            model = convert_sync_batchnorm(model)
        if recipe.channels_last:
            model = model.to(memory_format=torch.channels_last)
        freeze_norms(model, recipe.freeze_norm)
        self.model = fabric.to_device(model)
        self.bare_optimizer = create_optimizer(model, **optimizer)
        self.average = None if recipe.ema is None else Average(model, recipe.ema)
        if recipe.compile:
            compile_parts(model)
        self.module, self.optimizer = fabric.setup(model, self.bare_optimizer)
        # Without it `loss` would go around DDP, whose hooks sit in `forward`.
        self.module.mark_forward_method("loss")
        self.schedule = create_schedule(recipe.schedule, recipe.steps, recipe.warmup, recipe.power)

    def train(self, stop: Stop) -> None:
        """Steps, evaluations and saves until the last step or until patience is over.

        Raises:
            Stopped: `stop` was requested; the state is saved.
        """
        recipe, progress = self.recipe, self.progress
        batches = self._batches()
        self._training_mode()
        with RunLog(self.fabric, self.out, recipe.steps, progress.step, progress.evaluated) as log:
            while True:
                if progress.step > progress.evaluated and self._due(recipe.evaluate_every):
                    self._select(log, stop)
                if progress.step >= recipe.steps or self._impatient():
                    return
                stopping = self._step(batches, stop)
                log.advance(progress.step)
                if self._due(recipe.log_every):
                    self._log(log)
                if stopping:
                    self.save()
                    raise Stopped
                if self._due(recipe.save_every) or self._due(recipe.evaluate_every):
                    self.save()

    def _step(self, batches: Iterator[Batch], stop: Stop) -> bool:
        """One step of the optimizer; whether any process was asked to stop."""
        start = time.perf_counter()
        factor = self.schedule(self.progress.step)
        for group in self.bare_optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        try:
            sums, ids = self._accumulate(batches)
            if self.recipe.clip is not None:
                self.fabric.clip_gradients(
                    self.module, self.optimizer, max_norm=self.recipe.clip, error_if_nonfinite=False
                )
            self.optimizer.step()
            self.optimizer.zero_grad()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
                raise self._out_of_memory() from error
            raise
        self.progress.step += 1
        if self.average is not None:
            self.average.update(self.progress.step)
        stopping = self._take_in(sums, ids, stop)
        self.progress.seconds += time.perf_counter() - start
        return stopping

    def _accumulate(self, batches: Iterator[Batch]) -> tuple[dict[str, Tensor], list[int]]:
        """Gradients of the mean loss over the parts of a step; that loss by terms, and the images' ids."""
        parts = self.recipe.accumulate
        sums: dict[str, Tensor] = {}
        ids: list[int] = []
        for part in range(parts):
            batch = next(batches).to(self.fabric.device)
            ids += batch.ids
            with self.fabric.no_backward_sync(self.module, enabled=part < parts - 1):
                with self.fabric.autocast():
                    losses = self.module.loss(batch)
                self.fabric.backward(torch.stack([*losses.values()]).sum() / parts)
            for name, value in losses.items():
                term = value.detach().float() / parts
                sums[name] = sums[name] + term if name in sums else term
        return sums, ids

    def _take_in(self, sums: dict[str, Tensor], ids: list[int], stop: Stop) -> bool:
        """Note the losses of a step, averaged over processes; whether any process was asked to stop."""
        asked = torch.tensor(float(stop.requested), device=self.fabric.device)
        # One small transfer a step: losses and requests together.
        values = torch.stack([*sums.values(), asked])
        self.fabric.all_reduce(values, reduce_op="sum")  # in place
        *losses, requests = values.tolist()
        named = {name: value / self.fabric.world_size for name, value in zip(sums, losses, strict=True)}
        total = sum(named.values())
        if total - total != 0:  # nan or infinite
            raise self._not_finite(named, ids)
        self.progress.add({"train/loss": total, **{f"train/{name}": value for name, value in named.items()}})
        return requests > 0

    def _select(self, log: RunLog, stop: Stop) -> None:
        """Evaluate on the validation set, keep the weights if they are the best so far, and save."""
        progress, recipe = self.progress, self.recipe
        model: Any = self.model if self.average is None else self.average.model
        share_buffers(self.fabric, model)
        self._check_weights("best.ckpt")
        score = float("nan")
        if self.val is not None:
            metric = create_metric(model.task, self.val.classes, **self.val.metric)
            scores = measure(self.fabric, model, self.val, metric, recipe.eval_batch_size, recipe.eval_workers, stop)
            score = scores[metric.main]
            shown = {f"val/{metric.main}": score}
            log.row(progress.step, {f"val/{name}": value for name, value in scores.items()}, shown)
        best = progress.judge(score)
        if self.fabric.is_global_zero and (best or self.val is None):
            checkpoint.save_model(self.out / "best.ckpt", model)
        self.save()

    def save(self) -> None:
        """Write last.ckpt; collective, rank 0 writes. ZooError if the weights are not finite."""
        self._check_weights("last.ckpt")
        random = gather(self.fabric, random_state(self.fabric.device))
        if self.fabric.is_global_zero:
            training = {
                "progress": asdict(self.progress),
                "optimizer": self.bare_optimizer.state_dict(),
                "average": None if self.average is None else self.average.model.state_dict(),
                "scaler": self.fabric.strategy.precision.state_dict(),
                "random": random,
            }
            checkpoint.save(self.out / "last.ckpt", checkpoint.model_file(self.model, training=training))

    def restore(self) -> None:
        """Take up the state in last.ckpt; without that file the run starts at its beginning.

        On another number of processes random numbers (dropout) start anew; data and learning rate go on. The rates
        and the weight decay are this run's own, whatever they were before.
        """
        path = self.out / "last.ckpt"
        if not path.exists():
            return
        file = checkpoint.read(path, mmap=False)
        training = file.get("training")
        if not training:
            raise ZooError(f"{path} is a model file without training state: start from it with weights=")
        try:
            self.model.load_state_dict(file["state"])
            self._restore_optimizer(training["optimizer"])
            if self.average is not None:  # one that is new to the run starts from its weights
                self.average.model.load_state_dict(training["average"] or file["state"])
        except (RuntimeError, ValueError) as error:
            raise ZooError(
                f"{path} is of another model or optimizer ({str(error).splitlines()[0]}): resume with the settings "
                f"that the run was started with"
            ) from error
        for model in self._models():
            set_statistics(model, file["header"])
        self.fabric.strategy.precision.load_state_dict(training["scaler"])
        self.progress = Progress(**training["progress"])
        if len(training["random"]) == self.fabric.world_size:
            set_random_state(training["random"][self.fabric.global_rank], self.fabric.device)

    def _restore_optimizer(self, state: dict[str, Any]) -> None:
        own = [
            {name: group[name] for name in ("initial_lr", "weight_decay")} for group in self.bare_optimizer.param_groups
        ]
        self.bare_optimizer.load_state_dict(state)
        for group, settings in zip(self.bare_optimizer.param_groups, own, strict=True):
            group.update(settings)

    def cost(self) -> dict[str, Any]:
        """What training took."""
        memory = peak_memory_mb(self.fabric.device)
        return {
            "train_seconds": self.progress.seconds,
            "steps": self.progress.step,
            "peak_memory_mb": max(gather(self.fabric, memory)),
        }

    def _batches(self) -> Iterator[Batch]:
        """This process's parts of the steps that are left."""
        recipe, parts = self.recipe, self.recipe.accumulate
        loader = train_loader(
            self.train_set,
            recipe.batch_size // parts,
            seed=self.seed,
            start_step=self.progress.step * parts,
            steps=recipe.steps * parts,
            workers=recipe.workers,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
        )
        return iter(loader)

    def _models(self) -> list[Any]:
        return [self.model] if self.average is None else [self.model, self.average.model]

    def _training_mode(self) -> None:
        self.model.train()
        freeze_norms(self.model, self.recipe.freeze_norm)

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.recipe.steps

    def _impatient(self) -> bool:
        return (
            self.recipe.patience is not None and self.val is not None and self.progress.misses >= self.recipe.patience
        )

    def _log(self, log: RunLog) -> None:
        means = self.progress.take_means()
        rate = max(group["lr"] for group in self.bare_optimizer.param_groups)
        values = {**means, "train/lr": rate, "train/seconds": self.progress.seconds}
        log.row(self.progress.step, values, {"loss": means["train/loss"], "lr": rate})

    def _check_weights(self, name: str) -> None:
        """Refuse to save weights that are not finite: a gradient can be so where the loss is not; collective."""
        finite = all(is_finite(model) for model in self._models())
        if not all(gather(self.fabric, finite)):
            raise ZooError(
                f"the weights are not finite after step {self.progress.step}; {name} was not overwritten: lower "
                f"optimizer.lr, or set trainer.clip"
            )

    def _not_finite(self, losses: dict[str, float], ids: list[int]) -> ZooError:
        images = [i for part in gather(self.fabric, ids) for i in part]
        names = ", ".join(f"{i} ({self.train_set.name(i)})" for i in images)
        terms = ", ".join(f"{name} {value}" for name, value in losses.items())
        return ZooError(
            f"the loss is not finite at step {self.progress.step}: {terms}; images {names}; no checkpoint was "
            f"overwritten: lower optimizer.lr, set trainer.clip or trainer.warmup, or look at these images"
        )

    def _out_of_memory(self) -> ZooError:
        recipe = self.recipe
        part = recipe.batch_size // (recipe.accumulate * self.fabric.world_size)
        return ZooError(
            f"out of memory on {self.fabric.device} at step {self.progress.step} with {part} image(s) at a time: raise "
            f"trainer.accumulate (now {recipe.accumulate}), or lower trainer.batch_size (now {recipe.batch_size}) or "
            f"the crop"
        )
