"""The training loop: one for all tasks, one process or several.

Nothing random is kept from step to step: pictures, damage and noise are functions of (seed, step,
process), so that on a CPU a resumed run gives the same bits as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Op4ksrError, OptionError, OutputError
from .config import TrainConfig
from .data.batches import Batches
from .data.latent_cache import EncodedBatch
from .data.loader import load_batches
from .data.sources import ShardSource, Source, open_source
from .engine import Accelerated, Engine, OneProcess
from .needs import check_needs
from .optimization import Ema, adamw, rate_at
from .run_folder import RunFolder
from .run_log import CsvLog
from .run_state import (
    Facts,
    check_judge,
    check_moments,
    check_parameters,
    load_state,
    pack_optimizer,
    save_state,
    unpack_optimizer,
)
from .samples import open_samples, show_samples
from .stopping import Stopped, deferred_signals
from .tasks.choose import make_task
from .tasks.objectives import PatchDiscriminator, fool, judge_loss
from .tasks.one_step import OneStepTask

#: (steps done, of how many, one line for people).
OnStep = Callable[[int, int, str], None]

#: The adversarial judge's learning rate, as a share of the model's.
JUDGE_RATE = 0.5


class Trainer:
    """One run of a config. Making it reads models and pictures, and with ``resume`` the state; ``run`` trains.

    text: the config as it is copied into the run's folder. on_step: called at every report, in the first process only.
    Raises what models, sources and the folder raise, and OptionError where the state is another run's.
    """

    def __init__(self, config: TrainConfig, text: str, resume: bool = False, on_step: OnStep | None = None) -> None:
        check_needs(config)
        self.config, self.on_step = config, on_step
        train = config.train
        if train.threads:
            torch.set_num_threads(train.threads)
        self.engine: Engine = Accelerated(train.device) if train.accelerate else OneProcess(train.device)
        self.folder = RunFolder(config.run)
        resuming = self.folder.begin(text, resume) if self.main else resume and self.folder.state.exists()
        self.engine.wait()
        self.task = make_task(config).to(self.engine.device)
        self.source = self._open_source()
        self.parameters = self.task.trained()
        self.optimizer = adamw(self.parameters.values(), train)
        self.ema = Ema(self.parameters, train.ema)
        self.judge, self.judge_optimizer = self._make_judge()
        self.step, self.seconds = 0, 0.0
        logged = self._load() if resuming else None
        self.net = self.engine.prepare(self.task)
        self.samples = open_samples(config.output) if self.main else []
        self.log = CsvLog(self.folder.log, self.columns(), self.step, logged) if self.main else None
        self.board = self._open_board()

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files and reports."""
        return self.engine.rank == 0

    def columns(self) -> list[str]:
        """Of the log."""
        terms = self.task.term_names()
        shown = ["sample_psnr", "sample_periodicity"]
        return ["step", "seconds", "pictures_per_second", "rate", "loss", *terms, *shown]

    # --- setting up ---

    def _open_source(self) -> Source:
        share = (self.engine.rank, self.engine.world)
        if not self.main:
            self.engine.wait()  # the first process makes the pictures
        source = open_source(self.config.data, self.config.seed, self.config.cache_folder, self._making, share)
        if self.main:
            self.engine.wait()
        return source

    def _making(self, done: int, total: int) -> None:
        self._report_line(0, f"making pictures: {done} of {total}")

    def _make_judge(self) -> tuple[nn.Module | None, torch.optim.Optimizer | None]:
        if not self.config.loss.adversarial:
            return None, None
        torch.manual_seed(self.config.seed)
        judge = PatchDiscriminator().to(self.engine.device)
        return judge, torch.optim.AdamW(judge.parameters(), self.config.train.rate * JUDGE_RATE, betas=(0.5, 0.99))

    def _open_board(self) -> Any:
        if not (self.config.output.tensorboard and self.main):
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise OptionError("output.tensorboard: needs tensorboard: pip install tensorboard") from error
        return SummaryWriter(str(self.folder.path / "tensorboard"))

    # --- the run ---

    def run(self) -> Path:
        """Train to the end and return the file of the last weights.

        On Ctrl-C or SIGTERM the step is finished and the state saved, then ``Stopped`` is raised (``stopping``). Raises
        Op4ksrError for a loss that is not finite and for a process that was killed, OutputError where the folder cannot
        be written to.
        """
        config, train = self.config, self.config.train
        self.task.prepare(self.source)
        self._encode_once()
        if self.step == 0:
            self._sample_and_log({})
        batches = self._batches(range(self.step * train.accumulate, train.steps * train.accumulate))
        began, pictures = time.monotonic(), 0
        sums: dict[str, list[float]] = {}
        with deferred_signals() as asked_to_stop:
            while self.step < train.steps:
                if self.task.before(self.step):
                    self.ema.restart()
                    self.optimizer.state.clear()
                terms, count = self._one_step(batches)
                pictures += count
                self.step += 1
                for name, value in terms.items():
                    sums.setdefault(name, []).append(value)
                last = self.step == train.steps
                if self.step % config.output.log_every == 0 or last:
                    self.seconds += time.monotonic() - began
                    self._report(sums, pictures, time.monotonic() - began)
                    began, pictures, sums = time.monotonic(), 0, {}
                if self.step % config.output.save_every == 0 or last:
                    self._save()
                if number := asked_to_stop():
                    self._save()
                    raise Stopped(number)
        if self.board:
            self.board.close()
        return self._finished()

    def _finished(self) -> Path:
        """Save the last weights with the task's finishing touch. The state keeps what was trained, to resume from."""
        with self.ema.applied():
            self.task.finish()
            return self._save_weights()

    def _encode_once(self) -> None:
        """Make what is missing of the cache, if the config wants one."""
        if not isinstance(self.task, OneStepTask) or self.task.cache is None:
            return
        cache, device = self.task.cache, self.engine.device
        for file in cache.missing():
            loader = self._batches(file, fresh=True)  # a new one for each: shards skip to where it starts
            batches: list[EncodedBatch] = []
            for k in file:
                high, low = next(loader)
                batches.append(self.task.encoded(high.to(device), low.to(device)))
                self._report_line(0, f"encoding batches: {k + 1} of {cache.batches}")
            cache.write(file.start, batches)

    def _batches(self, order: Sequence[int], fresh: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        workers = self.config.data.workers
        if isinstance(self.source, ShardSource):
            workers = min(1, workers)
        batches = Batches(self.config, self.source, self.engine.rank, self.task.pairs, fresh)
        return load_batches(batches, order, workers, pinned=self.engine.device.type == "cuda")

    def _one_step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[dict[str, float], int]:
        """Forward and backward over ``accumulate`` batches, and one step; (terms, pictures seen)."""
        train = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.step, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        pictures = 0
        for micro in range(train.accumulate):
            high, low = (t.to(self.engine.device, non_blocking=True) for t in next(batches))
            pictures += len(high) * self.engine.world
            index = self.step * train.accumulate + micro
            seed = (self.config.seed, index, self.engine.rank)
            apart = self.engine.apart(self.net) if micro + 1 < train.accumulate else contextlib.nullcontext()
            with apart:
                judged = self.net(high, low, self.step, seed)
                terms = dict(judged.terms)
                if self.judge is not None and judged.output is not None and judged.target is not None:
                    terms |= self._judged(judged.output, judged.target)
                loss = torch.stack(list(terms.values())).sum()
                self.engine.backward(loss / train.accumulate)
            for name, term in {**terms, "loss": loss}.items():
                totals[name] = totals.get(name, torch.zeros((), device=loss.device)) + term.detach() / train.accumulate
                del term
            del judged, terms, loss  # pictures that the next batch would find in its way
        nn.utils.clip_grad_norm_(self.parameters.values(), train.clip)
        self.optimizer.step()
        self.ema.update()
        return self._numbers(totals), pictures

    def _numbers(self, totals: dict[str, Tensor]) -> dict[str, float]:
        values = {name: float(value) for name, value in totals.items()}
        if not math.isfinite(values["loss"]):
            raise self._not_finite("loss is")
        return values

    def _not_finite(self, what: str) -> Op4ksrError:
        return Op4ksrError(
            f"step {self.step}: the {what} not finite; lower train.rate, or set train.precision to fp32, "
            "and resume with --resume"
        )

    def _judged(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The adversarial term; the judge takes its own step here."""
        loss, train = self.config.loss, self.config.train
        assert self.judge is not None and self.judge_optimizer is not None
        if self.step < loss.adversarial_from * train.steps:
            return {}
        self.judge_optimizer.zero_grad(set_to_none=True)
        judge_loss(self.judge, output, target).backward()
        self.judge_optimizer.step()
        self.judge.requires_grad_(False)
        term = loss.adversarial * fool(self.judge, output)
        self.judge.requires_grad_(True)
        return {"adversarial": term}

    # --- what people see ---

    def _report(self, sums: dict[str, list[float]], pictures: int, seconds: float) -> None:
        done = len(sums["loss"])
        speed = pictures / max(seconds, 1e-9)
        row: dict[str, Any] = {"pictures_per_second": speed, "rate": rate_at(self.step - 1, self.config)}
        row |= {name: sum(values) / len(values) for name, values in sums.items()}
        left = seconds / done * (self.config.train.steps - self.step)
        self._report_line(self.step, f"loss {row['loss']:.4f}, {speed:.1f} pictures/s, {left / 60:.0f} min left")
        every = self.config.output.sample_every
        if every and (self.step % every == 0 or self.step == self.config.train.steps):
            self._sample_and_log(row)
        else:
            self._write(row)

    def _sample_and_log(self, row: dict[str, Any]) -> None:
        if self.samples:
            with self.ema.applied():
                row |= show_samples(self.task, self.samples, self.folder.samples, self.step)
        self._write(row)

    def _write(self, row: dict[str, Any]) -> None:
        if self.log is None:
            return
        self.log.write({"step": self.step, "seconds": self.seconds, **row})
        if self.board:
            try:
                for name, value in row.items():
                    self.board.add_scalar(name, value, self.step)
            except OSError as error:
                raise OutputError(
                    f"{self.folder.path}: TensorBoard's file cannot be written ({error}); free space on the disk"
                ) from error

    def _report_line(self, done: int, line: str) -> None:
        if self.on_step and self.main:
            self.on_step(done, self.config.train.steps, line)

    # --- saving and resuming ---

    def _save(self) -> None:
        """Weights (the running mean's), then the state to resume from."""
        if not self.main:
            return
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.parameters.values()):
            raise self._not_finite("weights are")
        with self.ema.applied():
            self._save_weights()
        tensors = {f"model.{name}": p for name, p in self.parameters.items()}
        tensors |= {f"ema.{name}": t for name, t in self.ema.mean.items()}
        tensors |= pack_optimizer(self.optimizer, "optimizer")
        if self.judge is not None and self.judge_optimizer is not None:
            tensors |= {f"judge.{name}": t for name, t in self.judge.state_dict().items()}
            tensors |= pack_optimizer(self.judge_optimizer, "judge_optimizer")
        logged = self.log.count if self.log else 0
        facts = Facts(self.step, self.seconds, self.ema.steps, self.config.kind, self.config.seed, logged)
        save_state(self.folder.state, tensors, facts)
        for name in (self.task.name, *self.task.also):
            self.folder.prune(name, self.config.output.keep)

    def _save_weights(self) -> Path:
        """What the model holds now, as a user loads it; its file."""
        path = self.folder.weights(self.task.name, self.step)
        if self.main:
            self.task.save(path, self.line())
        return path

    def line(self) -> str:
        """One line for the file's metadata: data, steps, losses, seed."""
        config = self.config
        losses = ", ".join(f"{name} {getattr(config.loss, name):g}" for name in self.task.loss_names())
        if config.loss.projected:
            losses += f" ({config.loss.projected:g} of them back-projected)"
        start = f" from {Path(config.model.start).name}" if config.model.start else ""
        return (
            f"{config.kind}{start}, {config.data.source} pictures, {self.step} steps of "
            f"{config.train.batch * config.train.accumulate * self.engine.world}, losses {losses}, seed {config.seed}"
        )

    def _load(self) -> int | None:
        """Take the state from its file; the number of the log's rows, where it says so."""
        path = self.folder.state
        tensors, facts = load_state(path)
        if (facts.kind, facts.seed) != (self.config.kind, self.config.seed):
            raise OptionError(
                f"{self.folder.path}: its run has kind {facts.kind} and seed {facts.seed}; "
                "the config has others: name another run folder"
            )
        check_parameters(path, tensors, dict(self.parameters))
        check_moments(path, tensors, "optimizer", list(self.parameters.values()))
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"model.{name}"])
                self.ema.mean[name].copy_(tensors[f"ema.{name}"])
        unpack_optimizer(self.optimizer, tensors, "optimizer")
        judge = {name.removeprefix("judge."): t for name, t in tensors.items() if name.startswith("judge.")}
        if judge and self.judge is not None and self.judge_optimizer is not None:  # else it begins here
            check_judge(path, tensors, self.judge.state_dict())
            check_moments(path, tensors, "judge_optimizer", list(self.judge.parameters()))
            self.judge.load_state_dict(judge)
            unpack_optimizer(self.judge_optimizer, tensors, "judge_optimizer")
        self.step, self.ema.steps, self.seconds = facts.step, facts.ema_steps, facts.seconds
        return facts.rows
