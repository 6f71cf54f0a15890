"""What a training run tells: the bar on the console, `metrics.jsonl`, TensorBoard."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ..errors import UserError

Metrics = dict[str, Any]


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
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue
    staged = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    staged.write_text("".join(kept), encoding="utf-8")
    os.replace(staged, path)


def summary_writer_class() -> Any:
    """TensorBoard's `SummaryWriter`; a UserError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("TensorBoard is not installed: pip install 'spikegpt[tensorboard]'") from None
    return SummaryWriter
