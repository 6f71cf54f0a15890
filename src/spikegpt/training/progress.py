"""What a training run reports: the bar on the console, `metrics.jsonl`, TensorBoard, its result."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor

from .. import ops
from ..checkpoint import checkpoint_path
from ..errors import UserError
from ..files import parse_object, write_atomically
from .optim import lr_at
from .run import Metrics, Run
from .speed import Stopwatch, matrix_speed

_LONGEST_LINE = 1 << 16  # bytes of a line of metrics


class Reporter:
    """Everything that `run` reports: a line of figures every few steps, and the result at the end."""

    def __init__(self, run: Run, *, visible: bool) -> None:
        self._run = run
        self._visible = visible and run.accelerator.is_main_process
        self._display = Display(0, 0, visible=False)
        self._log: MetricsLog | None = None

    @contextmanager
    def open(self, tensorboard: bool) -> Iterator[None]:
        """Open the log and the progress bar of the run, whose directory is there."""
        run = self._run
        self._display = Display(run.config.steps, run.step, visible=self._visible)
        main = run.accelerator.is_main_process
        with metrics_log(run.out, run.step, tensorboard=tensorboard, main=main) as self._log, self._display:
            self._display.say(_facts(run))
            self._speed = matrix_speed(run.accelerator)
            self._watch = Stopwatch(run.step)
            yield

    def paused(self) -> AbstractContextManager[None]:
        """Time spent inside is left out of tokens per second."""
        return self._watch.paused()

    def advance(self) -> None:
        """A step is done."""
        self._display.advance(self._run.step)

    def step(self, norm: Tensor, spike_rate: float | None) -> None:
        """A line of training figures, over the steps since the last one; `norm` is the gradient's before clipping."""
        run = self._run
        loss = float(np.mean(run.losses))
        run.losses.clear()
        per_second = self._watch.lap(run.step) * run.step_tokens
        operations = 6 * run.model.matrix_parameters() * per_second / run.accelerator.num_processes
        per_byte = run.batches.bytes_per_token
        metrics = {
            "step": run.step,
            "tokens": run.tokens,
            "loss": loss,
            "bits_per_byte": None if per_byte is None else loss / math.log(2) / per_byte,
            "spike_rate": spike_rate,
            "lr": lr_at(run.step - 1, run.config),
            "grad_norm": float(norm),
            "tokens_per_second": per_second,
            "matrix_share": operations / self._speed,
        }
        self._keep(metrics)
        self._display.report(run.step, metrics)

    def evaluation(self, figures: Metrics) -> None:
        """A line of figures on held-out data."""
        metrics = {"step": self._run.step, "tokens": self._run.tokens, **figures}
        self._keep(metrics)
        self._display.say(f"step {self._run.step}: {summary(metrics)}")

    def stopped(self) -> None:
        """How to resume, once the run has stopped and saved."""
        path = checkpoint_path(self._run.out, self._run.step)
        self._display.say(
            f"stopped after step {self._run.step}; resume with the same command and --resume (it saved {path})"
        )

    def result(self, *, interrupted: bool) -> Metrics:
        """The last figures of the run."""
        run = self._run
        held_out = {name: value for name, value in run.last.items() if name.startswith("valid_")}
        trained = {name: run.last.get(name) for name in ("loss", "spike_rate", "tokens_per_second")}
        return {
            "step": run.step,
            "tokens": run.tokens,
            **trained,
            **held_out,
            "out": str(run.out),
            "checkpoint": str(checkpoint_path(run.out, run.step)),
            "interrupted": interrupted and not run.done,
        }

    def _keep(self, metrics: Metrics) -> None:
        self._run.last.update(metrics)
        if self._log is not None:
            self._log.write(metrics)


def _facts(run: Run) -> str:
    """One line about the size of the run."""
    total = run.step_tokens * run.config.steps
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    precision = {"no": "float32"}.get(run.config.precision, run.config.precision)
    operators = ops.resolve(run.model.backend, run.accelerator.device)
    processes = run.accelerator.num_processes
    return (
        f"{parameters / 1e6:.2f}M parameters, {run.step_tokens:,.0f} tokens a step, {total:,.0f} in all = "
        f"{total / run.batches.epoch_tokens:.2f} epochs; {precision}, {operators} operators, "
        f"{processes} process{'es' if processes > 1 else ''} on {run.accelerator.device.type}"
    )


class Display:
    """The progress bar of a run of `total` steps that begins at `start`; silent unless `visible`.

    Where the output is no terminal (a log file), a line per report takes the place of the bar.
    """

    def __init__(self, total: int, start: int, *, visible: bool) -> None:
        self._console = Console(stderr=True, quiet=not visible)
        self._total, self._start, self._begun = total, start, time.monotonic()
        self._bar = Progress(
            BarColumn(16),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            transient=True,
            disable=not (visible and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", total=total, completed=start)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """One line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        self._bar.update(self._task, completed=step)

    def report(self, step: int, metrics: Metrics) -> None:
        """New figures beside the bar."""
        text = f"{summary(metrics)} · {self._time_left(step)} left"
        if self._bar.disable:
            self.say(f"{step}/{self._total} {text}")
        else:
            self._bar.update(self._task, completed=step, description=text)

    def _time_left(self, step: int) -> timedelta:
        each = (time.monotonic() - self._begun) / max(step - self._start, 1)
        return timedelta(seconds=round(each * (self._total - step)))


def summary(metrics: Metrics) -> str:
    """The figures of a line of metrics that a person watches."""
    shown = {
        "loss": "loss {:.3f}",
        "bits_per_byte": "{:.3f} bits/byte",
        "valid_bits_per_byte": "{:.4f} bits/byte held out",
        "spike_rate": "{:.1%} spikes",
        "valid_spike_rate": "{:.1%} spikes",
        "valid_score": "{:.1%} right held out",
        "valid_activity": "{:.1%} of the weights read",
        "tokens_per_second": "{:,.0f} tokens/s",
        "matrix_share": "{:.0%} of matrix speed",
    }
    return " · ".join(form.format(metrics[name]) for name, form in shown.items() if metrics.get(name) is not None)


class MetricsLog:
    """Appends lines to `metrics.jsonl` and, if asked, to TensorBoard; lines after `step` are forgotten first."""

    def __init__(self, out: Path, step: int, *, tensorboard: bool) -> None:
        path = out / "metrics.jsonl"
        self._board = None
        if tensorboard:
            self._board = summary_writer_class()(str(out / "tensorboard"), purge_step=step + 1)
        _truncate(path, step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, metrics: Metrics) -> None:
        """One line; the values may be None where nothing was measured."""
        try:
            self._file.write(json.dumps({k: v for k, v in metrics.items() if v is not None}) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self._file.name}: {error.strerror}; free some space, then resume") from None
        if self._board is not None:
            for name, value in metrics.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(name, value, metrics["step"])

    def close(self) -> None:
        """Flush everything."""
        self._file.close()
        if self._board is not None:
            self._board.close()


@contextmanager
def metrics_log(out: Path, step: int, *, tensorboard: bool, main: bool) -> Iterator[MetricsLog | None]:
    """The log of a run, or None in a process that writes nothing."""
    if not main:
        yield None
        return
    try:
        log = MetricsLog(out, step, tensorboard=tensorboard)
    except OSError as error:
        raise UserError(f"cannot write {out / 'metrics.jsonl'}: {error.strerror}") from None
    try:
        yield log
    finally:
        log.close()


def _truncate(path: Path, step: int) -> None:
    """Keep whole lines up to `step`: a resumed run writes the later ones again, a killed one may have cut its last."""
    if not path.exists():
        return

    def copy(staged: Path) -> None:
        with path.open("rb") as lines, staged.open("wb") as kept:
            while line := lines.readline(_LONGEST_LINE):
                if line.endswith(b"\n") and _step_of(line) <= step:
                    kept.write(line)

    write_atomically(path, copy)


def _step_of(line: bytes) -> float:
    """The step that a line of metrics is of; infinite where it is no such line."""
    try:
        step = parse_object(line, finite=False)["step"]
    except (ValueError, KeyError):
        return math.inf
    return step if isinstance(step, int) else math.inf


def summary_writer_class() -> Any:
    """TensorBoard's `SummaryWriter`; a UserError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("TensorBoard is not installed: pip install 'spikegpt[tensorboard]'") from None
    return SummaryWriter
