"""From a labelled file to a classifier: what `spikegpt finetune` does, as one call."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import hub
from ..checkpoint import latest_checkpoint, write_model
from ..config import Spikes, TrainConfig
from ..data.label_batches import LabelBatches
from ..data.labelled import Rows, detect_task, folds_of, label_counts, read_rows, shared, split, targets_of
from ..engine.integers import IntegerModel
from ..errors import UsageError
from ..files import read_json, write_json
from ..label_eval import measure
from ..label_report import fit_temperature, loss_of, report_on
from ..model.classifier import Classifier, encode_texts
from ..model.spikegpt import SpikeGPT
from ..task import SETTINGS, FinetuneConfig, Kind, TaskConfig
from .label_calibration import calibrate
from .label_objective import LabelLoss
from .label_start import Start, class_weights, taught_by
from .lookup import add_lookup, soft_targets, with_lookup
from .loop import fit
from .processes import make_accelerator
from .progress import Metrics

PathLike = str | os.PathLike[str]

REPORT = "report.json"


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
    start = Start(model, spikes, tokenizer, config, rows)
    if folds:
        return _cross_validate(rows, task, folds, start, config, out, given, teacher, resume, progress, device, tell)
    others = {
        name: None if path is None else read_rows(Path(path), text=text, label=label)
        for name, path in (("valid", valid), ("test", test))
    }
    return _finetune_one(
        Data(rows, others["valid"], others["test"]), task, start, config, out, given, taught_by(teacher, rows, task), resume,
        progress, device, tell,
    )  # fmt: skip


def finetune_rows(
    rows: Rows, out: Path, *, model: str | None, spikes: Spikes, tokenizer: str | None, config: FinetuneConfig,
    progress: bool, kind: Kind | None = None, device: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """As `finetune`, of rows in memory, without a test."""
    tell, task = _teller(progress), detect_task(rows, kind)
    start = Start(model, spikes, tokenizer, config, rows)
    given = {"data": None, "text": [], "label": None, "model": model, **dataclasses.asdict(config)}
    return _finetune_one(Data(rows, None, None), task, start, config, out, given, None, False, progress, device, tell)


def _cross_validate(
    rows: Rows, task: TaskConfig, count: int, start: Start, config: FinetuneConfig, out: Path, given: dict[str, Any],
    teacher: PathLike | None, resume: bool, progress: bool, device: str | None, tell: Any,
) -> dict[str, Any]:  # fmt: skip
    fold, taught = folds_of(rows, count, config.seed), taught_by(teacher, rows, task)
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
    data: Data, task: TaskConfig, start: Start, config: FinetuneConfig, out: Path, given: dict[str, Any],
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
    ids = encode_texts(start.tokenizer, train.texts)
    if long := sum(len(row) > config.max_tokens for row in ids):
        tell(f"{long:,} texts are longer than {config.max_tokens} tokens; training reads their beginning")
    ids = [row[: config.max_tokens] for row in ids]
    model = start.build(with_lookup(task, ids, config.lookup))
    accelerator = make_accelerator(TrainConfig(precision=config.precision), device)
    batches = LabelBatches(
        ids, [targets] if taught is None else [targets, taught.astype(np.float32)],
        config.batch_size, config.seed, rank=accelerator.process_index, world=accelerator.num_processes,
    )  # fmt: skip
    weights = class_weights(train, task) if config.class_weights else None
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
        model.cpu()
        if config.integers and model.config.event is not None:
            model.load_state_dict(IntegerModel.of(model).dequantise().state_dict())
        if model.lookup is not None:
            wanted = soft_targets(targets, taught, task, config.distill)
            share = add_lookup(model, ids, wanted, valid, weights)
            tell(f"the look-up lane has {share:.0%} of the say")
        return _finish(model, data, valid, out, given, result, tell)
    return result


def _finish(
    model: SpikeGPT, data: Data, valid: Rows | None, out: Path, given: dict[str, Any], result: Metrics, tell: Any
) -> dict[str, Any]:
    """Fit temperature and thresholds, write the directory that transformers reads too, and report."""
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


def _held_out(model: SpikeGPT, rows: Rows) -> Metrics:
    """Figures after an epoch; the loss is that at the best temperature, so that over-confidence alone does not count."""
    classifier = Classifier(model)
    task, targets = classifier.task, targets_of(rows, classifier.task)
    with model.meter() as meter:
        encoded = classifier.encode(rows.texts)
        logits = classifier.logits(encoded)
    heated = dataclasses.replace(task, temperature=fit_temperature(logits, targets, task))
    measured = report_on(
        logits, targets, heated, tokens=np.array([len(row) for row in encoded]), activity=meter.activity
    )
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
