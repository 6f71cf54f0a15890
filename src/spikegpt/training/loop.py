"""Training: `fit` runs a model over batches until it is done, stopped or diverges, and can always be resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..config import TrainConfig
from ..data.batches import Batches
from ..errors import UserError
from ..model.spikegpt import SpikeGPT
from .allocator import keep_freed_memory
from .interrupt import Stop
from .lock import alone
from .memory import advise, is_out_of_memory
from .objective import Objective
from .progress import Reporter, summary_writer_class
from .resume import begin_directory, finish, keep_best, load_run, restore, save
from .run import Metrics, Run

Evaluate = Callable[[SpikeGPT], Metrics]
"""Figures of a model on held-out data, under names that begin with `valid_`; called in the main process alone."""


def fit(
    model: SpikeGPT,
    batches: Batches,
    objective: Objective,
    evaluate: Evaluate | None,
    config: TrainConfig,
    out: Path,
    *,
    accelerator: Accelerator,
    identity: dict[str, Any],
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
) -> Metrics:
    """Train `model` in place on `batches`; checkpoints, metrics and at the end the model itself go into `out`.

    Precision and processes are the accelerator's business (`processes.make_accelerator`): the same call runs under
    `accelerate launch`. A resumed run reaches the very same weights as one that was never interrupted. Ctrl-C finishes
    the step and saves.

    Args:
        model: with its tokenizer, which is written beside its weights.
        batches: this process's part of them.
        objective: what to minimise, over `model` and a batch.
        evaluate: figures on held-out data, `valid_loss` among them; None: there is none.
        identity: what the data is, in JSON values; a run is resumed only with the same.
        resume: continue from the run's latest checkpoint.
    Returns:
        The last figures: step, tokens, loss, spike_rate, those of `evaluate`, out, checkpoint, interrupted, ...
    Raises:
        UsageError: the settings cannot work, or there is nothing to resume.
        UserError: the loss diverges, the disk is full, or another run is writing to `out`.
    """
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if tensorboard:
        summary_writer_class()
    torch.manual_seed(config.seed + accelerator.process_index)
    model.to(accelerator.device).train()
    try:
        with alone(out, accelerator, resume=resume):
            before = load_run(out, model, config, identity, accelerator.num_processes) if resume else None
            run = Run(accelerator, model, batches, objective, config, out, identity)
            if before is not None:
                restore(run, *before)
            if accelerator.is_main_process:
                begin_directory(run)
            reporter = Reporter(run, visible=progress)
            with Stop() as stop, reporter.open(tensorboard):
                _until_done(run, evaluate, stop, reporter)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(advise(model.config, config, accelerator.device, accelerator.num_processes)) from None
    model.eval()
    return reporter.result(interrupted=stop.requested)


def _until_done(run: Run, evaluate: Evaluate | None, stop: Stop, reporter: Reporter) -> None:
    """Step until the last step, or until asked to stop; saved either way."""
    config, stopping = run.config, False
    if run.done and (model := run.whole()) is not None:
        finish(run, model)  # a run that was killed between its last two writes
    while not run.done and not stopping:
        logging = (run.step + 1) % config.log_every == 0
        saving = _due(run.step + 1, config.save_every, config.steps)
        evaluating = _due(run.step + 1, config.eval_every, config.steps)
        norm, rate = run.one_step(measure=logging)
        alone = stop.requested and run.accelerator.num_processes == 1
        # Reading the loss waits for a GPU, so it is done only when the figures are needed.
        if run.accelerator.device.type == "cpu" or logging or saving or evaluating or alone:
            stopping = run.read_losses(norm, stop.requested)
        reporter.advance()
        if logging:
            reporter.step(norm, rate)
        if evaluating or saving or stopping:
            with reporter.paused():
                if evaluating:
                    _evaluate(run, evaluate, reporter)
                if saving or stopping or run.done:
                    save(run)
    if not run.done:
        reporter.stopped()


def _evaluate(run: Run, evaluate: Evaluate | None, reporter: Reporter) -> None:
    model = run.whole() if evaluate is not None else None
    if evaluate is not None and model is not None:
        figures = evaluate(model)
        reporter.evaluation(figures)
        if run.config.keep_best:
            keep_best(run, model, figures["valid_loss"])
    if run.config.patience:
        worse = torch.tensor(run.worse if model is not None else 0, device=run.accelerator.device)
        run.worse = int(run.accelerator.reduce(worse, "sum"))  # pyright: ignore[reportArgumentType]
    run.accelerator.wait_for_everyone()


def _due(step: int, every: int, steps: int) -> bool:
    return step == steps or (every > 0 and step % every == 0)
