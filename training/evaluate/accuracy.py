"""Accuracy, F1 and confusion matrix of predicted classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ClassScores:
    """Predicted classes compared with the true ones.

    Attributes:
        confusion: [C, C], number of examples, with a row per true class and a column per predicted class.
        names: class names.
    """

    confusion: NDArray[np.int64]
    names: Sequence[str]

    @classmethod
    def of(cls, true: Sequence[int], predicted: Sequence[int], names: Sequence[str]) -> "ClassScores":
        """Count pairs of true and predicted classes."""
        count = len(names)
        cells = np.bincount(np.asarray(true) * count + np.asarray(predicted), minlength=count * count)
        return cls(cells.reshape(count, count), names)

    @property
    def accuracy(self) -> float:
        """Fraction of examples whose predicted class is correct."""
        return float(np.trace(self.confusion) / max(1, self.confusion.sum()))

    @property
    def majority(self) -> float:
        """The accuracy of always predicting the most frequent true class."""
        return float(self.confusion.sum(1).max() / max(1, self.confusion.sum()))

    def per_class(self) -> list[dict[str, Any]]:
        """Return each class's name, number of examples, precision, recall and F1. A ratio with denominator 0 is 0."""
        right = np.diag(self.confusion).astype(float)
        true, predicted = self.confusion.sum(1), self.confusion.sum(0)
        rows = []
        for number, name in enumerate(self.names):
            precision = right[number] / predicted[number] if predicted[number] else 0.0
            recall = right[number] / true[number] if true[number] else 0.0
            both = precision + recall
            rows.append(
                {
                    "name": name,
                    "examples": int(true[number]),
                    "precision": float(precision),
                    "recall": float(recall),
                    "f1": float(2 * precision * recall / both) if both else 0.0,
                }
            )
        return rows

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that have examples or were predicted."""
        occurring = (self.confusion.sum(0) + self.confusion.sum(1)) > 0
        scores = [row["f1"] for row, counted in zip(self.per_class(), occurring, strict=True) if counted]
        return float(np.mean(scores)) if scores else 0.0
