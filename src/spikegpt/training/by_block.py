"""From a continuous model to an event-driven one part by part, so that memory is that of one block.

Each block becomes event-driven on its own: it reads what the event-driven blocks before it give and is drawn to what the
original's block gives, so that it also mends what they lost; at last the head learns the original's predictions. What
enters a part is kept on disk for a fixed set of batches. The reconstruction of one block after the other is that of
post-training quantisation (BRECQ, arXiv 2102.05426).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import WEIGHTS, has_weights, write_description, write_tensors
from ..config import TrainConfig
from ..convert.stored import read_safetensors, write_safetensors
from ..errors import UsageError
from ..files import locked, read_json, remove_directory, write_atomically, write_json
from ..model.meter import SpikeMeter
from ..model.neurons import adapt
from .by_block_job import WORK, Job, is_begun, leave_unbegun, open_job
from .interrupt import Stop
from .lock import LOCK, in_use, refuse_existing
from .loss import distillation, loss_fn, mismatch
from .optim import lr_at, make_optimizer
from .parts import embed, event_neurons, make_part, neurons_by_matrix, part_names, prefix_of, weights_of
from .progress import Display
from .residuals import Residuals, write_residuals
from .thresholds import calibrate

PathLike = str | os.PathLike[str]

REPORT = "blocks.json"
"""In the run's directory: what each part lost."""
TOKENS = 2**18
"""Tokens whose residuals are kept."""


def spikify_by_block(
    source: PathLike,
    out: PathLike,
    *,
    data: Sequence[PathLike],
    activity: float = 0.15,
    valid: Sequence[PathLike] = (),
    event: dict[str, Any] | None = None,
    config: TrainConfig | None = None,
    tokens: int = TOKENS,
    resume: bool = False,
    cache: PathLike | None = None,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Make the continuous model `source` event-driven part by part, into the directory `out`; the report of what was lost.

    Args:
        source: directory of a model with spikes="none", or a file that `convert` reads.
        activity: fraction of the weights to be read per token, in (0, 1].
        event: fields of EventConfig that are not to be the defaults.
        config: the training of each part: `steps` of it, `distill` the weight of the original's predictions in the head's
            loss. Context, batch size, learning rate and precision as in any training.
        tokens: of the text, whose residuals are kept on disk: 2 C bytes each, at most four times at once.
        resume: resume in `out`, at the part that was not finished; everything else must be given again.
        data, valid: files, folders and globs; without `valid` the report is on a hundredth of the data. cache: where
            tokenised text is kept; None: `~/.cache/spikegpt`.
        device: None: a GPU if there is one.
    Returns:
        parts: one row each with part, weights, activity, `loss_alone` (the part reads what the original's reads) and
        `loss` (it reads what the event-driven ones before it give): for blocks the squared distance from the original's
        residual in variances of it, for the head the divergence from its predictions in nats; activity, bits_per_byte and
        original_bits_per_byte on held-out windows, each from an empty state; out, interrupted.
    Raises:
        UsageError: `source` is not continuous, `out` is taken, or there is too little text. UserError: another run is
        writing to `out`, or its files are damaged.
    """
    out = Path(out)
    if not resume:
        refuse_existing(out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / LOCK, in_use(out)):
        if resume and has_weights(out):
            return read_json(out / REPORT)
        if resume and not is_begun(out):
            leave_unbegun(out)
            raise UsageError(f"{out} has nothing to resume; start without --resume")
        if not resume and is_begun(out):
            raise UsageError(f"{out} already holds parts of a model; resume with --resume, or choose another directory")
        try:
            job = open_job(
                Path(source), out, data, valid, activity, event or {}, config or default_config(), tokens, cache, device,
                progress,
            )  # fmt: skip
        except BaseException:
            leave_unbegun(out)
            raise
        return _run(job, progress)


def default_config() -> TrainConfig:
    """How a part is trained unless it is said otherwise."""
    return TrainConfig(steps=200, lr=4e-3, warmup=20, batch_size=8, distill=0.9, log_every=50)


def _run(job: Job, progress: bool) -> dict[str, Any]:
    """Train the parts that are not finished, and put the model together."""
    names = part_names(job.student)
    first = sum(job.done(index) for index in range(len(names)))
    display = Display(len(names) * job.config.steps, first * job.config.steps, visible=progress)
    with Stop() as stop, display:
        if not job.path("original", 0).exists():
            every = range(job.batches + job.held_out)
            write_residuals(
                job.path("original", 0), (embed(job.original, job.stored, job.ids(each)[0]) for each in every)
            )
        for index in range(first, len(names)):
            row = _finish_part(job, index, names[index], stop, display)
            if row is None:
                display.say(f"stopped in {names[index]}; resume with the same command and --resume")
                return {"out": str(job.out), "interrupted": True, "parts": _rows(job, index)}
            display.say(summary(row))
    return _assemble(job, len(names))


def _finish_part(job: Job, index: int, name: str, stop: Stop, display: Display) -> dict[str, Any] | None:
    """Train a part, measure it, and keep it with what the next part reads; None: interrupted."""
    began = time.monotonic()
    original = make_part(job.original, name, job.stored).to(job.device).eval()
    student = make_part(job.student, name, job.stored).to(job.device)
    theirs, ours = job.residuals("original", index), job.residuals("student", index)
    if not _train(job, index, name, student, original, ours, theirs, stop, display):
        return None
    student.eval()
    figures = _measure(job, name, student, original, ours, theirs)
    row = {"part": name, "weights": weights_of(job.student, name), **figures}
    with torch.no_grad(), job.autocast():
        every = range(job.batches + job.held_out)
        if name != "head":
            for who, part, source in (("original", original, theirs), ("student", student, ours)):
                write_residuals(job.path(who, index + 1), (part(source[each].to(job.device)) for each in every))
    prefix = prefix_of(name)
    write_tensors(job.part(index), {prefix + inside: tensor for inside, tensor in student.state_dict().items()})
    write_json(job.part(index).with_suffix(".json"), {**row, "seconds": round(time.monotonic() - began, 1)})
    for who in ("original", "student"):
        job.path(who, index).unlink(missing_ok=True)
    return row


def _train(
    job: Job, index: int, name: str, student: nn.Module, original: nn.Module, ours: Residuals, theirs: Residuals,
    stop: Stop, display: Display,
) -> bool:  # fmt: skip
    """Draw `student` to `original`; False: asked to stop."""
    config = job.config
    order = torch.Generator().manual_seed(config.seed + index)

    def next_input() -> tuple[Tensor, Tensor]:
        batch = int(torch.randint(job.batches, (), generator=order))
        return ours[batch].to(job.device), theirs[batch].to(job.device)

    with job.autocast():
        calibrate(student, original, neurons_by_matrix(job.student, name, student), next_input)
    neurons = [*event_neurons(student).values()]
    optimizer = make_optimizer(student, config)
    steps: list[int] = []
    for step in range(config.steps):
        if not steps:
            steps = torch.randperm(job.batches, generator=order).tolist()
        batch = steps.pop()
        for neuron in neurons:
            neuron.set_progress(step / config.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, config)
        with job.autocast():
            loss = _loss(job, name, student(ours[batch].to(job.device)), original, theirs[batch], batch)
        loss.backward()
        if config.clip:
            nn.utils.clip_grad_norm_(student.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        adapt(neurons)
        done = index * config.steps + step + 1
        display.advance(done)
        if (step + 1) % config.log_every == 0:
            display.report(done, {"loss": loss.item()})
        if stop.requested:
            return False
    return True


def _loss(job: Job, name: str, ours: Tensor, original: nn.Module, read: Tensor, batch: int) -> Tensor:
    """What a part minimises: the distance from the original's residual, or from its predictions and the text."""
    with torch.no_grad():
        theirs = original(read.to(job.device))
    if name != "head":
        return mismatch([ours], [theirs])
    text = loss_fn(ours, job.ids(batch)[1].to(job.device), job.config.logit_penalty)
    return job.config.distill * distillation(ours, theirs) + (1 - job.config.distill) * text


@torch.no_grad()
def _measure(
    job: Job, name: str, student: nn.Module, original: nn.Module, ours: Residuals, theirs: Residuals
) -> dict[str, float]:
    """What a part loses on held-out text, in float32 (see `spikify_by_block`), and the fraction of its weights it reads."""
    compare = distillation if name == "head" else lambda mine, target: mismatch([mine], [target])
    sums: dict[str, Tensor] = {}

    def add(figure: str, value: Tensor) -> None:
        sums[figure] = sums.get(figure, torch.zeros(())) + value.cpu() / job.held_out

    meter = SpikeMeter(student)
    for batch in range(job.batches, job.batches + job.held_out):
        read = theirs[batch].to(job.device)
        target = original(read)
        with meter:
            mine = student(ours[batch].to(job.device))
        add("loss", compare(mine, target))
        add("loss_alone", compare(student(read), target))
        if name == "head":
            following = job.ids(batch)[1].to(job.device)
            add("nats", loss_fn(mine, following, 0.0))
            add("original_nats", loss_fn(target, following, 0.0))
    return {"activity": meter.activity, **{figure: float(total) for figure, total in sums.items()}}


def _rows(job: Job, parts: int) -> list[dict[str, Any]]:
    return [read_json(job.part(index).with_suffix(".json")) for index in range(parts)]


def _assemble(job: Job, parts: int) -> dict[str, Any]:
    """Put the finished parts and what stays as it was into a model directory; the report, which is kept beside it."""
    rows = _rows(job, parts)
    stored = dict(job.stored)
    for index in range(parts):
        stored |= read_safetensors(job.part(index))
    valid = job.corpus.valid
    assert valid is not None
    per_byte = valid.n_tokens / valid.n_bytes / math.log(2)
    weights = sum(row["weights"] for row in rows)
    report = {
        "parts": rows,
        "activity": sum(row["activity"] * row["weights"] for row in rows) / weights,
        "bits_per_byte": rows[-1]["nats"] * per_byte,
        "original_bits_per_byte": rows[-1]["original_nats"] * per_byte,
        "out": str(job.out),
        "interrupted": False,
    }
    write_json(job.out / REPORT, report)
    write_description(job.out, job.student, job.tokenizer)
    write_atomically(job.out / WEIGHTS, lambda path: write_safetensors(path, stored))
    remove_directory(job.out / WORK)
    return report


def summary(row: dict[str, Any]) -> str:
    """One line about a finished part."""
    unit = "nats from the original's predictions" if row["part"] == "head" else "of the original's variance lost"
    loss, alone = (f"{row[key]:.4f}" for key in ("loss", "loss_alone"))
    return f"{row['part']}: {loss} {unit} ({alone} by itself), {row['activity']:.1%} of its weights read"
