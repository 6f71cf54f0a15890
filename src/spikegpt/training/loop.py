"""Training: `fit` runs a model over batches until it is done, stopped or diverges, and can always be resumed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from .. import ops
from ..checkpoint import checkpoint_path, latest_checkpoint, publish, remove_leftovers, save_checkpoint, write_json
from ..config import TrainConfig
from ..data.batches import Streams, Windows
from ..data.token_file import TokenFile
from ..errors import UsageError, UserError
from ..evaluation import Evaluation, bits_on_tokens
from ..model.meter import SpikeMeter
from ..model.spikegpt import SpikeGPT
from ..tokenizer import Tokenizer
from .allocator import keep_freed_memory
from .interrupt import Stop
from .memory import advise, is_out_of_memory
from .objective import Objective
from .optim import lr_at, make_optimizer
from .processes import gathering, make_accelerator, share_events
from .progress import Display, Metrics, MetricsLog, metrics_log, summary, summary_writer_class
from .resume import load_optimizer, load_random, load_run, optimizer_tensors, random_tensors, refuse_existing
from .sharding import collect_shares, full, shard, whole_model, write_share
from .speed import Stopwatch, matrix_speed


def fit(
    model: SpikeGPT, tokenizer: Tokenizer, train: TokenFile, valid: TokenFile | None, config: TrainConfig, out: Path, *,
    resume: bool = False, progress: bool = True, tensorboard: bool = False, device: str | None = None,
    teacher: SpikeGPT | None = None,
) -> Metrics:  # fmt: skip
    """Train `model` in place on `train`; checkpoints, metrics and at the end the model itself go into `out`.

    The device (None: a GPU if there is one, else the CPU; "cpu": the CPU), the precision and the processes are
    accelerate's business: the same call runs under `accelerate launch`. `resume` goes on from the run's latest
    checkpoint to the very same weights as a run that was never interrupted. Ctrl-C finishes the step and saves.

    Returns the last figures: step, tokens, loss, bits_per_byte and spike_rate (on held-out text), interrupted, ...
    Raises UsageError where the settings cannot work, UserError where the loss diverges or the disk is full.
    """
    out = Path(out)
    accelerator = make_accelerator(config, device)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    context = config.context or model.config.context
    if not resume:
        refuse_existing(out)
    if tensorboard:
        summary_writer_class()
    torch.manual_seed(config.seed + accelerator.process_index)
    model.to(accelerator.device).train()
    if (teacher is None) != (config.distill == config.match == 0):
        raise UsageError("a teacher and a distill or match weight above 0 go together; give both or neither")
    if teacher is not None:
        if config.match and _residuals(teacher) != _residuals(model):
            raise UsageError(
                f"match compares the residuals of {_residuals(model)} with the teacher's, which are {_residuals(teacher)}; "
                "take a teacher of the same shape, or match 0"
            )
        teacher.to(accelerator.device).eval()
    run = Run(accelerator, model, tokenizer, train, valid, config, out, context, teacher, resume)
    if valid is not None and valid.n_tokens < 2:
        raise UsageError(f"the held-out text has {valid.n_tokens} tokens and needs 2; hold out more, or nothing at all")
    try:
        with Stop() as stop, run.telling(progress, tensorboard):
            run.until_done(stop)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(advise(model.config, config, accelerator.device, accelerator.num_processes)) from None
    model.eval()
    return run.result(stop.requested)


@dataclass
class Run:
    """One training run: everything that changes from step to step, and the verbs that change it."""

    accelerator: Accelerator
    model: SpikeGPT
    tokenizer: Tokenizer
    train: TokenFile
    valid: TokenFile | None
    config: TrainConfig
    out: Path
    context: int
    teacher: SpikeGPT | None = None
    """Whose predictions are learnt beside the text."""
    resume: bool = False
    """Whether to go on from the run's latest checkpoint."""
    step: int = 0
    last: Metrics = field(default_factory=dict)
    """The newest figures, for the result."""
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last report."""

    def __post_init__(self) -> None:
        config, world, rank = self.config, self.accelerator.num_processes, self.accelerator.process_index
        before = load_run(self.out, self.model, self.described()) if self.resume else None
        reader = Streams if config.carry_state else Windows
        self.windows = reader(self.train, config.batch_size, self.context, config.seed, rank=rank, world=world)
        self.windows.step = config.skip
        self.objective = Objective(self.model, config, self.teacher)
        self.model.gradient_checkpointing = config.recompute
        if config.shard:
            shard(self.model)
            self.wrapped = self.objective
        else:
            self.wrapped = self.accelerator.prepare_model(self.objective)
        self.optimizer = make_optimizer(self.model, config)
        self.stepper = self.accelerator.prepare_optimizer(self.optimizer)
        self.step_tokens = config.batch_size * self.context * config.accumulate * world
        self.unread: list[Tensor] = []
        self.log: MetricsLog | None = None
        self.display = Display(0, 0, visible=False)
        if before is not None:
            self.restore(*before)

    def described(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed."""
        files = {"train": self.train, "valid": self.valid}
        return {
            "train": self.config.to_dict(),
            "data": {name: _identity(file) for name, file in files.items() if file is not None},
            "processes": self.accelerator.num_processes,
        }

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on with what a checkpoint has beside the weights."""
        load_optimizer(self.model, self.optimizer, tensors)
        self.windows.load_state_dict(values["windows"])
        if self.accelerator.scaler is not None and values["scaler"]:
            self.accelerator.scaler.load_state_dict(values["scaler"])
        load_random(self.accelerator, tensors, self.config.seed + values["step"])
        rows = slice(self.windows.rank * self.windows.batch_size, (self.windows.rank + 1) * self.windows.batch_size)
        carried = {name: tensor[rows] for name, tensor in tensors.items() if name.startswith("carried.")}
        self.objective.load_carried({name: tensor.to(self.accelerator.device) for name, tensor in carried.items()})
        self.step, self.last, self.losses = values["step"], values["last"], values["losses"]

    @contextlib.contextmanager
    def telling(self, progress: bool, tensorboard: bool) -> Iterator[None]:
        """Open the run's directory, its log and the progress bar."""
        main = self.accelerator.is_main_process
        if main:
            self._begin_directory()
        self.display = Display(self.config.steps, self.step, visible=progress and main)
        with metrics_log(self.out, self.step, tensorboard=tensorboard, main=main) as self.log, self.display:
            self.display.say(self.facts())
            yield

    def _begin_directory(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(self.out / "train.json", {**self.described(), "model": self.model.config.to_dict()})
        except OSError as error:
            raise UserError(f"cannot write to {self.out}: {error.strerror}; choose another directory") from None
        remove_leftovers(self.out)
        remove_leftovers(self.out / "checkpoints")

    def facts(self) -> str:
        """One line about the size of what begins."""
        total = self.step_tokens * self.config.steps
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        precision = {"no": "float32"}.get(self.config.precision, self.config.precision)
        operators = "native" if self.accelerator.device.type == "cpu" else "triton"
        operators = operators if ops.available()[operators] is True else "reference"
        processes = self.accelerator.num_processes
        return (
            f"{parameters / 1e6:.2f}M parameters, {self.step_tokens:,} tokens a step, {total:,} in all = "
            f"{total / self.train.n_tokens:.2f} epochs; {precision}, {operators} operators, "
            f"{processes} process{'es' if processes > 1 else ''} on {self.accelerator.device.type}"
        )

    def until_done(self, stop: Stop) -> None:
        """Step until the last step, or until asked to stop; saved either way."""
        config = self.config
        speed = matrix_speed(self.accelerator)
        watch = Stopwatch(self.step)
        stopping = False
        if self.step == config.steps and (model := self.whole()) is not None:
            publish(self.out, model, self.tokenizer)  # a run that was killed between its last two writes
        while self.step < config.steps and not stopping:
            logging = (self.step + 1) % config.log_every == 0
            saving = _due(self.step + 1, config.save_every, config.steps)
            evaluating = _due(self.step + 1, config.eval_every, config.steps)
            norm, rate = self.one_step(measure=logging)
            # Reading the loss waits for a GPU, so it is done only when the figures are needed.
            if self.accelerator.device.type == "cpu" or logging or saving or evaluating or self._alone(stop):
                stopping = self.read_losses(norm, stop)
            self.display.advance(self.step)
            if logging:
                self.report_step(norm, rate, watch.lap(self.step), speed)
            if evaluating or saving or stopping:
                with watch.paused():
                    if evaluating:
                        self.report_evaluation()
                    if saving or stopping:
                        self.save()
        if stopping and self.step < config.steps:
            self.display.say(f"stopped after step {self.step}; {self.how_to_resume()}")

    def one_step(self, *, measure: bool) -> tuple[Tensor, float | None]:
        """One optimiser step: norm of the gradient before clipping, and the spike rate if measured."""
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(self.step, config)
        self.model.set_progress(self.step / config.steps)
        losses = []
        # Hooks do not run inside a compiled model.
        meter = SpikeMeter(self.model) if measure and not config.compile else None
        for part in range(config.accumulate):
            begins = not isinstance(self.windows, Streams) or self.windows.begins
            inputs, targets = (ids.to(accelerator.device, non_blocking=True) for ids in self.windows.next_batch())
            last = part == config.accumulate - 1
            with gathering(accelerator, self.wrapped, self.model, sharded=config.shard, last=last):
                with meter if meter is not None and part == 0 else contextlib.nullcontext(), accelerator.autocast():
                    objective, loss = self.wrapped(inputs, targets, begins)
                accelerator.backward(objective / config.accumulate)
            losses.append(loss)
        norm: Any = accelerator.clip_grad_norm_(self.model.parameters(), config.clip or math.inf)
        self.stepper.step()
        self.stepper.zero_grad()
        share_events(accelerator, self.model)
        self.model.after_step()
        self.step += 1
        self.unread.append(torch.stack(losses).mean())
        return full(norm), meter.rate if meter is not None else None  # pyright: ignore[reportReturnType]

    def read_losses(self, norm: Tensor, stop: Stop) -> bool:
        """Bring the losses to the CPU, the same in every process. Whether one of them was asked to stop.

        UserError: training has diverged.
        """
        asked = torch.tensor(float(stop.requested), device=self.accelerator.device)
        shared = self.accelerator.reduce(torch.stack([asked, *self.unread]), "mean")
        anyone, *losses = shared.tolist()  # pyright: ignore[reportAttributeAccessIssue]
        self.unread.clear()
        if not all(map(math.isfinite, losses)):
            raise UserError(self._diverged("loss"))
        # The scaler of fp16 skips steps with an infinite gradient by itself.
        if self.accelerator.scaler is None and not math.isfinite(float(norm)):
            raise UserError(self._diverged("gradient"))
        self.losses += losses
        return anyone > 0

    def _diverged(self, what: str) -> str:
        path = latest_checkpoint(self.out)
        return (
            f"the {what} became infinite or NaN by step {self.step}; "
            f"{f'the last good checkpoint is {path}' if path else 'there is no checkpoint yet'}; "
            f"try a lower lr than {self.config.lr:g}, a longer warmup, a smaller clip or precision no"
        )

    def report_step(self, norm: Tensor, rate: float | None, steps_per_second: float, speed: float) -> None:
        """A line of training figures."""
        loss = float(np.mean(self.losses))
        self.losses.clear()
        per_second = steps_per_second * self.step_tokens
        operations = 6 * self.model.matrix_parameters() * per_second / self.accelerator.num_processes
        self.tell({
            "step": self.step,
            "tokens": self.step * self.step_tokens,
            "loss": loss,
            "bits_per_byte": loss / math.log(2) * self.train.n_tokens / self.train.n_bytes,
            "spike_rate": rate,
            "lr": lr_at(self.step - 1, self.config),
            "grad_norm": float(norm),
            "tokens_per_second": per_second,
            "matrix_share": operations / speed,
        })  # fmt: skip

    def report_evaluation(self) -> None:
        """A line of figures on held-out text, measured by the main process in float32, as `eval` does."""
        model = self.whole() if self.valid is not None else None
        if self.valid is not None and model is not None:
            measured = self.evaluate(model, self.valid)
            self.tell({
                "step": self.step,
                "tokens": self.step * self.step_tokens,
                "valid_bits_per_byte": measured.bits_per_byte,
                "valid_bits_per_token": measured.bits_per_token,
                "valid_spike_rate": measured.spike_rate,
            })  # fmt: skip
        self.accelerator.wait_for_everyone()

    def whole(self) -> SpikeGPT | None:
        """The model with all its weights, in the main process; all processes must ask."""
        main = self.accelerator.is_main_process
        return whole_model(self.model, keep=main) if self.config.shard else self.model if main else None

    def evaluate(self, model: SpikeGPT, valid: TokenFile) -> Evaluation:
        """Bits per byte of the first `eval_tokens` held-out tokens, the state carried through them."""
        count = min(self.config.eval_tokens or valid.n_tokens, valid.n_tokens)
        ids = np.asarray(valid.ids[:count])
        n_bytes = valid.n_bytes if count == valid.n_tokens else _bytes_of(ids, self.tokenizer)
        return bits_on_tokens(model, ids, n_bytes)

    def tell(self, metrics: Metrics) -> None:
        """To the log, the bar and the result."""
        self.last.update(metrics)
        if self.log is not None:
            self.log.write(metrics)
        if "valid_bits_per_byte" in metrics:
            self.display.say(f"step {self.step}: {summary(metrics)}")
        else:
            self.display.report(self.step, metrics)

    def save(self) -> None:
        """A checkpoint, written by the main process; after the last step the finished model too.

        A model that is split leaves the optimiser's shares as they are, written by each process.
        """
        tensors, model, also = random_tensors(self.accelerator), self.whole(), None
        for name, tensor in self.objective.named_carried().items():
            tensors[name] = self.accelerator.gather(tensor).cpu()  # pyright: ignore[reportAttributeAccessIssue]
        if self.config.shard:
            shares, accelerator = self.out / "checkpoints", self.accelerator
            write_share(
                shares,
                accelerator.process_index,
                accelerator.num_processes,
                optimizer_tensors(self.model, self.optimizer),
            )
            accelerator.wait_for_everyone()
            also = partial(collect_shares, shares)
        elif model is not None:
            tensors |= optimizer_tensors(model, self.optimizer)
        if model is not None:
            scaler = self.accelerator.scaler
            values = {
                "run": self.described(),
                "windows": self.windows.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "last": self.last,
                "losses": self.losses,
            }
            save_checkpoint(
                self.out,
                self.step,
                model,
                self.tokenizer,
                tensors=tensors,
                values=values,
                keep=self.config.keep,
                also=also,
            )
            if self.step == self.config.steps:
                publish(self.out, model, self.tokenizer)
        self.accelerator.wait_for_everyone()

    def how_to_resume(self) -> str:
        """What a person types to go on."""
        return f"go on with the same command and --resume (it saved {checkpoint_path(self.out, self.step)})"

    def result(self, interrupted: bool) -> Metrics:
        """The last figures of the run."""
        unfinished = interrupted and self.step < self.config.steps
        return {
            "step": self.step,
            "tokens": self.step * self.step_tokens,
            "loss": self.last.get("loss"),
            "bits_per_byte": self.last.get("valid_bits_per_byte"),
            "spike_rate": self.last.get("valid_spike_rate", self.last.get("spike_rate")),
            "tokens_per_second": self.last.get("tokens_per_second"),
            "out": str(self.out),
            "checkpoint": str(checkpoint_path(self.out, self.step)),
            "interrupted": unfinished,
        }

    def _alone(self, stop: Stop) -> bool:
        return stop.requested and self.accelerator.num_processes == 1


def _residuals(model: SpikeGPT) -> str:
    return f"{model.config.n_layer} blocks x {model.config.n_embd} channels"


def _due(step: int, every: int, steps: int) -> bool:
    return step == steps or (every > 0 and step % every == 0)


def _identity(file: TokenFile) -> dict[str, Any]:
    return {"tokens": file.n_tokens, "bytes": file.n_bytes, "hash": file.hash}


def _bytes_of(ids: np.ndarray, tokenizer: Tokenizer) -> int:
    counts = np.bincount(ids)
    if tokenizer.eos_id is not None:
        counts[tokenizer.eos_id : tokenizer.eos_id + 1] = 0  # it ends a document and is no part of its text
    return sum(int(counts[i]) * len(tokenizer.token_bytes(int(i))) for i in np.flatnonzero(counts))
