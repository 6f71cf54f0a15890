"""`TextClassifier`: a classifier with scikit-learn's interface, without importing it."""

from __future__ import annotations

import dataclasses
import inspect
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .data.labelled import Rows
from .errors import UsageError
from .loading import load
from .model.classifier import Classifier, LabelStream
from .task import FinetuneConfig, Text
from .training.classify import finetune_rows


class TextClassifier:
    """Texts to labels: `fit`, `predict`, `predict_proba`, `score`, as in scikit-learn (`cross_val_score`, `GridSearchCV`).

    `model` is what training starts from, as in `spikegpt finetune --model` (None: the shipped model); the others are fields
    of `task.FinetuneConfig` (None: its default) or arguments of `training.classify.finetune`. `out` keeps the directory of
    the classifier; without it, it is in memory only.
    """

    def __init__(
        self, model: str | None = None, *, epochs: float | None = None, lr: float | None = None,
        batch_size: int | None = None, dropout: float | None = None, activity: float | None = None,
        hold_out: float | None = None, lookup: int | None = None, precision: str | None = None, seed: int = 0,
        spikes: str = "before", tokenizer: str | None = None, out: str | None = None, progress: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.epochs, self.lr, self.batch_size, self.dropout = model, epochs, lr, batch_size, dropout
        self.activity, self.hold_out, self.lookup = activity, hold_out, lookup
        self.precision, self.seed = precision, seed
        self.spikes, self.tokenizer, self.out, self.progress = spikes, tokenizer, out, progress

    @staticmethod
    def load(directory: str | os.PathLike[str], *, engine: str = "auto") -> TextClassifier:
        """The classifier in a directory that `finetune` wrote, float or packed."""
        made = TextClassifier()
        made._adopt(Classifier(load(directory, engine=engine)))
        return made

    def fit(self, texts: Any, labels: Sequence[Any] | None = None) -> TextClassifier:
        """Train on texts (or pairs) and their labels, or on a `datasets.Dataset` with columns `text` and `label`."""
        if labels is None:
            texts, given = texts["text"], list(texts["label"])
        else:
            given = list(labels)
        if len(texts) != len(given):
            raise UsageError(f"{len(texts)} texts have {len(given)} labels")
        self._kinds = {str(label): label for label in given}
        rows = Rows("the texts", [_text(each) for each in texts], [str(label) for label in given])
        names = {field.name for field in dataclasses.fields(FinetuneConfig)}
        settings = {name: value for name, value in self.get_params().items() if name in names and value is not None}
        folder = tempfile.mkdtemp() if self.out is None else self.out
        try:
            finetune_rows(
                rows, Path(folder) / "run" if self.out is None else Path(folder), model=self.model,
                spikes=self.spikes,  # pyright: ignore[reportArgumentType]
                tokenizer=self.tokenizer, config=FinetuneConfig(**settings), progress=self.progress, kind="single",
            )  # fmt: skip
            self._adopt(Classifier(_in_memory(Path(folder) / "run" if self.out is None else Path(folder))))
        finally:
            if self.out is None:
                shutil.rmtree(folder, ignore_errors=True)
        return self

    def predict_proba(self, texts: Iterable[Text]) -> np.ndarray:
        """Probabilities float64 [N, K] in the order of `classes_`."""
        return self._trained().probabilities([_text(text) for text in texts])

    def predict(self, texts: Iterable[Text]) -> np.ndarray:
        """Labels [N], of the type that `fit` was given."""
        chances = self.predict_proba(texts)
        return self.classes_[chances.argmax(1)]

    def score(self, texts: Iterable[Text], labels: Iterable[Any]) -> float:
        """Accuracy in [0, 1]."""
        return float((self.predict(texts) == np.asarray(list(labels))).mean())

    def stream(self, saved: str | os.PathLike[str] | None = None) -> LabelStream:
        """A text that is read as it comes: `push(text)` gives the probabilities after all of it; `saved` one goes on."""
        return self._trained().stream(saved)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings by name."""
        names = inspect.signature(type(self).__init__).parameters
        return {name: getattr(self, name) for name in names if name != "self"}

    def set_params(self, **settings: Any) -> TextClassifier:
        """Change settings."""
        for name, value in settings.items():
            if name not in self.get_params():
                raise UsageError(f"TextClassifier has no setting {name!r}; it has {', '.join(self.get_params())}")
            setattr(self, name, value)
        return self

    def _adopt(self, classifier: Classifier) -> None:
        self.classifier_ = classifier
        kinds = getattr(self, "_kinds", {})
        self.classes_ = np.array([kinds.get(label, label) for label in classifier.task.labels])

    def _trained(self) -> Classifier:
        if not hasattr(self, "classifier_"):
            raise UsageError("this TextClassifier is not trained yet; call fit first")
        return self.classifier_

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks of an estimator: it is a classifier of texts."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier", target_tags=TargetTags(required=True), classifier_tags=ClassifierTags(),
            input_tags=InputTags(two_d_array=False, string=True),
        )  # fmt: skip


def _text(text: Any) -> Text:
    if isinstance(text, tuple | list) and len(text) == 2:
        return str(text[0]), str(text[1])
    return str(text)


def _in_memory(directory: Path) -> Any:
    """The model of a directory that may be deleted afterwards: weights are copied from the mapped file."""
    model = load(directory, engine="float")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model
