"""From a labelled file to a classifier: what `spikegpt finetune` does, as one call."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import hub
from ..checkpoint import latest_checkpoint, write_model
from ..config import EMPHASIS, PRESETS, EventConfig, ModelConfig, Spikes, TrainConfig, preset
from ..data.label_batches import LabelBatches
from ..data.labelled import Rows, detect_task, folds_of, label_counts, read_rows, shared, split, targets_of
from ..errors import UsageError, UserError
from ..files import read_json, write_json
from ..label_eval import SETTINGS, measure
from ..label_report import fit_temperature, fit_thresholds, loss_of, report_on
from ..loading import load
from ..model.classifier import Classifier, encode_texts, probabilities
from ..model.spikegpt import SpikeGPT
from ..task import FinetuneConfig, Kind, TaskConfig
from ..tokenizer import CharTokenizer, Tokenizer, train_bpe
from .label_objective import LabelLoss
from .loop import fit
from .processes import make_accelerator
from .progress import Metrics
from .recipe import make_tokenizer

PathLike = str | os.PathLike[str]

HEAD_EMPHASIS = 30.0
"""Emphasis on a classifier's head: its K rows are so few weights that its neurons may all fire."""
REPORT = "report.json"
_SHAPE = re.compile(r"(\d+)x(\d+)")


class Data(NamedTuple):
    """The rows of one classifier."""

    train: Rows
    valid: Rows | None
    test: Rows | None


def finetune(
    data: PathLike, out: PathLike, *,
    model: str | None = None, valid: PathLike | None = None, test: PathLike | None = None, folds: int = 0,
    text: Sequence[str] = (), label: str | None = None, kind: Kind | None = None, spikes: Spikes = "before",
    tokenizer: str | None = None, teacher: PathLike | None = None, config: FinetuneConfig | None = None,
    resume: bool = False, progress: bool = True, device: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train a classifier on a labelled file (`data.labelled.read_rows`), into the directory `out`; its report.

    Args:
        model: what to start from: a directory, None for the shipped model, or scratch:PRESET or scratch:LAYERSxCHANNELS
            with `spikes` and `tokenizer` (bytes, chars, bpe:SIZE or a file; None: the shipped model's).
        valid: rows that choose the best epoch and the temperature; None: a tenth of `data`, held out by the seed.
        test: rows that are only reported on.
        folds: cross-validation: that many classifiers, each tested on its part of `data`; mean and deviation reported.
        text, label: columns (two texts for pairs); kind: single, multi or regression. Found from the file otherwise.
        teacher: a classifier's directory, or a .npy of probabilities [rows of `data`, K].
        resume: continue the run in `out`, everything else given again.
    Returns:
        `best` (figures on the held-out rows), `test`, `out`, `interrupted`; with `folds`, `accuracy` and `deviation`.
    Raises:
        UsageError: columns, labels or settings that cannot work. UserError: a file that cannot be read.
    """
    config, out = config or FinetuneConfig(), Path(out)
    tell = _teller(progress)
    rows = read_rows(Path(data), text=text, label=label)
    _tell_notes(rows, tell)
    if folds and (valid or test):
        raise UsageError("--folds makes its own validation and test rows; leave --valid and --test out")
    given = {
        "data": str(data), "valid": valid and str(valid), "test": test and str(test), "text": list(text), "label": label,
        "folds": folds, "model": model, "spikes": spikes, "tokenizer": tokenizer, **dataclasses.asdict(config),
    }  # fmt: skip
    task = detect_task(rows, kind)
    tell(_described(rows, task))
    start = _Start(model, spikes, tokenizer, config, rows)
    if folds:
        return _cross_validate(rows, task, folds, start, config, out, given, teacher, resume, progress, device, tell)
    others = {
        name: None if path is None else read_rows(Path(path), text=text, label=label)
        for name, path in (("valid", valid), ("test", test))
    }
    return _finetune_one(
        Data(rows, others["valid"], others["test"]), task, start, config, out, given, _taught(teacher, rows, task), resume,
        progress, device, tell,
    )  # fmt: skip


def finetune_rows(
    rows: Rows, out: Path, *, model: str | None, spikes: Spikes, tokenizer: str | None, config: FinetuneConfig,
    progress: bool, kind: Kind | None = None, device: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """As `finetune`, of rows in memory, without a test."""
    tell, task = _teller(progress), detect_task(rows, kind)
    start = _Start(model, spikes, tokenizer, config, rows)
    given = {"data": None, "text": [], "label": None, "model": model, **dataclasses.asdict(config)}
    return _finetune_one(Data(rows, None, None), task, start, config, out, given, None, False, progress, device, tell)


def _cross_validate(
    rows: Rows, task: TaskConfig, count: int, start: _Start, config: FinetuneConfig, out: Path, given: dict[str, Any],
    teacher: PathLike | None, resume: bool, progress: bool, device: str | None, tell: Any,
) -> dict[str, Any]:  # fmt: skip
    fold, taught = folds_of(rows, count, config.seed), _taught(teacher, rows, task)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "folds.json", {"seed": config.seed, "fold": fold.tolist()})
    results: list[dict[str, Any]] = []
    for index in range(count):
        where = out / f"fold-{index:02d}"
        kept = np.flatnonzero(fold != index)
        data = Data(rows.take(kept), None, rows.take(np.flatnonzero(fold == index)))
        tell(f"fold {index + 1} of {count}")
        result = _finetune_one(
            data, task, start, config, where, given, None if taught is None else taught[kept],
            resume and latest_checkpoint(where) is not None, progress, device, tell,
        )  # fmt: skip
        if result["interrupted"]:
            return result
        results.append(result)
    name = "accuracy" if task.kind == "single" else "score"
    scores = [result["test"][name] for result in results]
    report = {
        name: float(np.mean(scores)), "deviation": float(np.std(scores, ddof=1)), "folds": scores,
        "activity": float(np.mean([result["test"]["activity"] for result in results])), "out": str(out),
        "interrupted": False,
    }  # fmt: skip
    write_json(out / REPORT, report)
    tell(f"{count} folds: {name} {100 * report[name]:.1f}, deviation {100 * report['deviation']:.1f}")
    return report


def _finetune_one(
    data: Data, task: TaskConfig, start: _Start, config: FinetuneConfig, out: Path, given: dict[str, Any],
    taught: np.ndarray | None, resume: bool, progress: bool, device: str | None, tell: Any,
) -> dict[str, Any]:  # fmt: skip
    if resume and (out / REPORT).is_file():
        return read_json(out / REPORT)
    targets = targets_of(data.train, task)
    train, valid = data.train, data.valid
    if valid is None and config.hold_out:
        kept, held = split(train, config.hold_out, config.seed)
        valid, train, targets = train.take(held), train.take(kept), targets[kept]
        taught = None if taught is None else taught[kept]
    for name, other in (("validation", data.valid), ("test", data.test)):
        if other is not None:
            targets_of(other, task)  # a label that training never saw is told before training
            if count := shared(other, data.train):
                tell(f"careful: {count:,} of {len(other.texts):,} {name} texts are among the training texts too")
    model = start.build(task)
    assert model.tokenizer is not None
    ids = encode_texts(model.tokenizer, train.texts)
    if long := sum(len(row) > config.max_tokens for row in ids):
        tell(f"{long:,} texts are longer than {config.max_tokens} tokens; training reads their beginning")
    accelerator = make_accelerator(TrainConfig(precision=config.precision), device)
    batches = LabelBatches(
        [row[: config.max_tokens] for row in ids],
        [targets] if taught is None else [targets, taught.astype(np.float32)],
        config.batch_size, config.seed, rank=accelerator.process_index, world=accelerator.num_processes,
    )  # fmt: skip
    weights = _class_weights(train, task) if config.class_weights else None
    language = start.language_model()
    if language is not None:
        language.to(accelerator.device).requires_grad_(False)
    objective = LabelLoss(model, task, config, weights=weights, language_model=language).to(accelerator.device)
    result = fit(
        model, batches, objective, None if valid is None else lambda whole: _held_out(whole, valid),
        _schedule(config, batches.per_epoch, valid is not None), out, accelerator=accelerator,
        identity={"rows": len(train.texts), "labels": list(task.labels), "finetune": dataclasses.asdict(config)},
        resume=resume, progress=progress,
    )  # fmt: skip
    if result["interrupted"]:
        return result
    if accelerator.is_main_process:
        return _finish(model, data, valid, out, given, result, tell)
    return result


def _finish(
    model: SpikeGPT, data: Data, valid: Rows | None, out: Path, given: dict[str, Any], result: Metrics, tell: Any
) -> dict[str, Any]:
    """Fit temperature and thresholds, write the directory that transformers reads too, and report."""
    model.cpu()
    report: dict[str, Any] = {"out": str(out), "interrupted": False, "step": result["step"], "tokens": result["tokens"]}
    if valid is not None:
        calibrate(model, valid)
    write_model(out, model)
    hub.add_files(out)
    write_json(out / SETTINGS, given)
    for name, rows in (("best", valid), ("test", data.test)):
        if rows is not None:
            measured = measure(model, rows)
            report[name] = measured.to_dict()
            tell(f"{'held-out' if name == 'best' else name} rows: {measured.summary()}")
    write_json(out / REPORT, report)
    return report


def calibrate(model: SpikeGPT, rows: Rows) -> None:
    """Fit the temperature, and a threshold for each label of a multi task, on held-out rows; into `model.config.task`."""
    task = Classifier(model).task
    if task.kind == "regression":
        return
    classifier = Classifier(model)
    logits, targets = classifier.logits(classifier.encode(rows.texts)), targets_of(rows, task)
    task = dataclasses.replace(task, temperature=fit_temperature(logits, targets, task))
    if task.kind == "multi":
        task = dataclasses.replace(task, thresholds=fit_thresholds(probabilities(logits, task), targets))
    model.config = dataclasses.replace(model.config, task=task)


def _held_out(model: SpikeGPT, rows: Rows) -> Metrics:
    """Figures after an epoch; the loss is that at the best temperature, so that over-confidence alone does not count."""
    classifier = Classifier(model)
    task, targets = classifier.task, targets_of(rows, classifier.task)
    with model.meter() as meter:
        logits = classifier.logits(classifier.encode(rows.texts))
    heated = dataclasses.replace(task, temperature=fit_temperature(logits, targets, task))
    measured = report_on(logits, targets, heated, tokens=1, activity=meter.activity)
    return {
        "valid_loss": loss_of(logits, targets, heated),
        "valid_score": measured.score,
        "valid_activity": meter.activity,
    }


def _schedule(config: FinetuneConfig, per_epoch: int, held_out: bool) -> TrainConfig:
    steps = max(1, round(config.epochs * per_epoch))
    return TrainConfig(
        steps=steps, batch_size=config.batch_size, lr=config.lr, lr_min=0.0, warmup=max(1, round(0.1 * steps)),
        schedule="wsd", decay=0.9 if steps > 1 else 1.0, beta2=0.98, eps=1e-8, weight_decay=config.weight_decay,
        precision=config.precision, seed=config.seed, log_every=max(1, min(50, steps // 10)), eval_every=per_epoch,
        save_every=per_epoch, keep=1, keep_best=held_out, patience=config.patience if held_out else 0,
    )  # fmt: skip


class _Start:
    """The model that a classifier starts from."""

    def __init__(
        self, name: str | None, spikes: Spikes, tokenizer: str | None, config: FinetuneConfig, rows: Rows
    ) -> None:
        self._config, self._source = config, None
        scratch = name is not None and name.startswith("scratch:")
        if tokenizer is not None and not scratch:
            raise UsageError("--tokenizer goes with --model scratch:SHAPE; a trained model keeps its own")
        if scratch:
            assert name is not None
            self._shape = _scratch(name.removeprefix("scratch:"), spikes, config.activity)
            self._tokenizer = _tokenizer(tokenizer, rows)
        else:
            self._source = load(name, engine="float")
            if self._source.tokenizer is None:
                raise UsageError(f"{name} has no tokenizer; convert it again with --tokenizer")
            self._tokenizer: Tokenizer = self._source.tokenizer
        if config.lm and (self._source is None or self._source.config.task is not None):
            raise UsageError("lm needs a language model to start from, whose head predicts the next token")

    def build(self, task: TaskConfig) -> SpikeGPT:
        """A new classifier with the start's weights."""
        torch.manual_seed(self._config.seed)
        if self._source is None:
            model = SpikeGPT(dataclasses.replace(self._shape, vocab_size=self._tokenizer.vocab_size, task=task))
        else:
            before = self._source.config
            event = before.event and _events(before.event, self._config.activity)
            model = SpikeGPT(dataclasses.replace(before, task=task, event=event))
            kept = {name: tensor for name, tensor in self._source.state_dict().items() if name != "head.weight"}
            model.load_state_dict(kept, strict=False)
        model.tokenizer = self._tokenizer
        return model

    def language_model(self) -> SpikeGPT | None:
        """The language model itself, where its loss has a weight."""
        return self._source if self._config.lm else None


def _events(event: EventConfig, activity: float | None) -> EventConfig:
    emphasis = {**(EMPHASIS if event.emphasis is None else event.emphasis), "head": HEAD_EMPHASIS}
    activity = activity or event.activity
    start = max(activity, event.activity)
    return dataclasses.replace(event, activity=activity, start_activity=start, emphasis=emphasis)


def _scratch(shape: str, spikes: Spikes, activity: float | None) -> ModelConfig:
    """`shape` is a preset's name, or LAYERSxCHANNELS."""
    activity = activity or 0.1
    event = None
    if spikes == "before":
        event = EventConfig(
            activity=activity, start_activity=max(0.3, activity), emphasis=EMPHASIS | {"head": HEAD_EMPHASIS}
        )
    if match := _SHAPE.fullmatch(shape):
        return ModelConfig(n_layer=int(match[1]), n_embd=int(match[2]), spikes=spikes, event=event)
    if shape not in PRESETS:
        raise UsageError(f"scratch:{shape} is neither LAYERSxCHANNELS (scratch:2x256) nor one of {', '.join(PRESETS)}")
    return (
        preset(shape, spikes=spikes)
        if event is None
        else dataclasses.replace(preset(shape, spikes=spikes), event=event)
    )


def _tokenizer(name: str | None, rows: Rows) -> Tokenizer:
    if name is None:
        shipped = load(engine="float").tokenizer
        assert shipped is not None
        return shipped
    texts = [part for text in rows.texts for part in ((text,) if isinstance(text, str) else text)]
    if name == "chars":
        return CharTokenizer.from_texts(texts)
    if name.startswith("bpe:") and name[4:].isdecimal():
        return train_bpe(texts, int(name[4:]))
    return make_tokenizer(name, [])


def _taught(teacher: PathLike | None, rows: Rows, task: TaskConfig) -> np.ndarray | None:
    """A teacher's probabilities [N, K] for the training rows (of a regression, standardised answers)."""
    if teacher is None:
        return None
    path, wanted = Path(teacher), (len(rows.texts), len(task.labels))
    if path.is_dir():
        other = Classifier(load(path, engine="float"))
        if other.task.kind != task.kind or (task.kind != "regression" and other.task.labels != task.labels):
            raise UsageError(f"the teacher {path} has other labels than {rows.source}")
        found = other.probabilities(rows.texts)
        return (found - task.offset) / task.scale if task.kind == "regression" else found
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"the teacher {path} is neither a classifier's directory nor a .npy of numbers: {error}"
        ) from None
    if found.shape != wanted:
        raise UsageError(
            f"the teacher {path} is {list(found.shape)}; {rows.source} needs {list(wanted)}: a row each, K labels"
        )
    if not np.isfinite(found).all():
        raise UsageError(f"the teacher {path} has NaN or infinite numbers")
    if task.kind == "single" and (found.min() < 0 or abs(found.sum(1) - 1).max() > 1e-3):
        raise UsageError(f"the teacher {path} has rows that are no probabilities: they must sum to 1")
    return (found - task.offset) / task.scale if task.kind == "regression" else found


def _class_weights(rows: Rows, task: TaskConfig) -> torch.Tensor:
    """[K] inverse frequencies, 1 on average over the rows."""
    if task.kind == "regression":
        raise UsageError("class weights are for labels, not for a regression")
    counts = label_counts(rows)
    frequency = torch.tensor([max(counts[name], 1) for name in task.labels], dtype=torch.float32)
    return len(rows.texts) / (len(task.labels) * frequency)


def _described(rows: Rows, task: TaskConfig) -> str:
    """One line of what was found in the file."""
    what = "pairs" if task.pairs else "texts"
    if task.kind == "regression":
        return f"{len(rows.texts):,} {what} with numbers of mean {task.offset:.3g} and deviation {task.scale:.3g}: a regression"
    counts = label_counts(rows)
    shown = ", ".join(f"{name} {counts[name]:,}" for name in task.labels[:6]) + (
        ", ..." if len(task.labels) > 6 else ""
    )
    kind = "several labels each" if task.kind == "multi" else "one label each"
    uneven = max(counts.values()) > 5 * min(counts[name] for name in task.labels)
    return f"{len(rows.texts):,} {what}, {kind}: {shown}{'; uneven, see --class-weights' if uneven else ''}"


def _tell_notes(rows: Rows, tell: Any) -> None:
    for note in rows.notes:
        tell(note)


def _teller(progress: bool) -> Any:
    if not progress or os.environ.get("RANK", "0") != "0":
        return lambda _text: None
    return lambda text: print(text, file=sys.stderr)
