"""Who writes to a run's directory: one run at a time, and never over another's result."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..checkpoint import CHECKPOINTS, has_weights, latest_checkpoint
from ..errors import UsageError, UserError
from ..files import WriteError, is_locked, locked

LOCK = ".lock"
"""Held in a run's directory by the process that writes to it."""


def refuse_existing(out: Path) -> None:
    """UsageError where `out` has a run already: a new one never writes over it."""
    if latest_checkpoint(out) is not None or has_weights(out):
        raise UsageError(f"{out} already holds a training run; resume it, or choose another directory")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a directory; choose another place for the run")


def refuse_running(out: Path) -> None:
    """UserError where another run is writing to `out`, told before any text is read; `alone` makes sure of it."""
    if os.environ.get("RANK", "0") == "0" and is_locked(out / LOCK):
        raise UserError(in_use(out))


def checkpoint_of(out: Path) -> Path:
    """The checkpoint that the run in `out` resumes from."""
    path = latest_checkpoint(out)
    if path is None:
        raise UsageError(f"nothing to resume: {out / CHECKPOINTS} has no checkpoint; start without --resume")
    return path


@contextmanager
def alone(out: Path, accelerator: Accelerator, *, resume: bool) -> Iterator[None]:
    """Own the run's directory, which is made if need be.

    UserError, in every process: another run owns it. UsageError: there is nothing to resume, or a run not to be resumed.
    """
    check = checkpoint_of if resume else refuse_existing
    check(out)
    with ExitStack() as stack:
        refusal = None
        if accelerator.is_main_process:
            try:
                out.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(out / LOCK, in_use(out)))
            except OSError as error:
                refusal = WriteError(out, error)
            except UserError as error:
                refusal = error
        refused: Any = accelerator.reduce(torch.tensor(float(refusal is not None), device=accelerator.device), "sum")
        if refused > 0:
            raise refusal or UserError(in_use(out))
        try:
            check(out)  # once more: the run that had the lock until now may have changed it
            yield
        except BaseException:
            if accelerator.is_main_process:
                leave_empty(out)
            raise


def leave_empty(out: Path) -> None:
    """Take the run's directory away if nothing was begun in it: it holds the lock alone."""
    if os.listdir(out) == [LOCK]:
        (out / LOCK).unlink()
        out.rmdir()


def in_use(out: Path) -> str:
    """What somebody is told who wants the directory of a running run."""
    return f"another run is writing to {out}; wait for it to end, or choose another directory"
