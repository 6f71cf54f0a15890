"""Classical text classifiers beside which ours are set: counts of words, no order, no spikes. Needs scikit-learn."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from .data.labelled import Rows
from .errors import UserError

Name = Literal["nb", "tfidf"]


def accuracy(name: Name, train: Rows, test: Rows) -> float:
    """Fraction of the test rows whose label is predicted by a model learnt from the training rows; single labels only.

    nb: multinomial Naive Bayes over the words and pairs of words that a text has. tfidf: logistic regression over the
    TF-IDF weights of words, pairs of words and 2 to 5 characters inside a word. Words are what stands between spaces.
    """
    made = make(name)
    made.fit(_joined(train), np.array(train.labels))
    return float((made.predict(_joined(test)) == np.array(test.labels)).mean())


def make(name: Name) -> Any:
    """The untrained model: a scikit-learn pipeline from texts to labels. UserError where scikit-learn is missing."""
    try:
        from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier
        from sklearn.naive_bayes import MultinomialNB
        from sklearn.pipeline import make_pipeline, make_union
    except ImportError:
        raise UserError("scikit-learn is not installed: pip install 'spikegpt[report]'") from None
    words: dict[str, Any] = {"token_pattern": r"[^\s]+", "ngram_range": (1, 2)}
    if name == "nb":
        return make_pipeline(CountVectorizer(binary=True, **words), MultinomialNB())
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    regression = OneVsRestClassifier(LogisticRegression(C=10, max_iter=2000, solver="liblinear"))
    return make_pipeline(make_union(TfidfVectorizer(sublinear_tf=True, **words), characters), regression)


def _joined(rows: Rows) -> list[str]:
    return [text if isinstance(text, str) else " ".join(text) for text in rows.texts]
