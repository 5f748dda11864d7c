"""Simple classifiers that ask what a representation holds: linear ones, and nearest neighbours.

Alain & Bengio, "Understanding intermediate layers using linear classifier probes", 2016. The linear
ones are scikit-learn's. All of it runs on the CPU.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import LinAlgWarning
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.preprocessing import OneHotEncoder
from torch import Tensor

from eval.measures.neighbours import Distances, Euclidean, Hamming, nearest
from pqvae.data.sample import Split

# Penalties, of which val chooses. Those of the ridge are shares of what the features vary over the
# train images in the mean of their dimensions: the scale of the features does not matter.
RIDGE_STRENGTHS = tuple(10 ** (power / 2) for power in range(-6, 5))  # 1e-3 ... 100
SOFTMAX_STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
MAX_ITERATIONS = 2000  # of the softmax regression, for which a few hundred are enough
NEIGHBOURS = 10  # that vote


@dataclass(frozen=True, slots=True)
class Labelled:
    """Images of one split, in one representation."""

    features: Tensor  # float32 (n, D), or codes int64 (n, k)
    labels: Tensor  # int64 (n,)


Parts = Mapping[Split, Labelled]  # train, val and test


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of the labels that are predicted, in percent."""
    return 100 * (predicted == labels).double().mean().item()


def score_features(parts: Parts) -> dict[str, Any]:
    """Test accuracies of ridge regression, and of neighbours by Euclidean distance, in percent."""
    train, test = parts["train"], parts["test"]
    varied = train.features.var(0, correction=0).sum().item() * len(train.labels)
    unit = varied / train.features.shape[1] or 1.0
    models = {s: RidgeClassifier(alpha=s * unit) for s in RIDGE_STRENGTHS}
    inputs = {split: part.features.numpy() for split, part in parts.items()}
    linear, strength = _linear(models, inputs, parts)
    return {
        "dimensions": train.features.shape[1],
        "linear": linear,
        "strength": strength,
        "knn": _neighbours(Euclidean(test.features, train.features), train, test),
    }


def score_codes(parts: Parts, sizes: Sequence[int]) -> dict[str, Any]:
    """The same of the codes of a prefix: softmax regression, and neighbours by Hamming distance.

    A one-hot code has a place for each entry of its codebook.

    Args:
        parts: Codes int64 (n, k), and classes.
        sizes: Entries of the codebook at each of the k positions.
    """
    train, test = parts["train"], parts["test"]
    encoder = OneHotEncoder(categories=[np.arange(size) for size in sizes], dtype=np.float32)
    inputs = {split: encoder.fit_transform(part.features.numpy()) for split, part in parts.items()}
    models = {s: LogisticRegression(C=1 / s, max_iter=MAX_ITERATIONS) for s in SOFTMAX_STRENGTHS}
    linear, strength = _linear(models, inputs, parts)
    return {
        "dimensions": sum(sizes),
        "linear": linear,
        "strength": strength,
        "knn": _neighbours(Hamming(test.features, train.features), train, test),
    }


def principal_components(train: Tensor, count: int) -> Callable[[Tensor], Tensor]:
    """Fit the leading principal components of features float32 (n, D), ``count`` at most.

    Returns:
        Brings features (m, D) to these components, the leading one first.
    """
    solver: Any = "covariance_eigh"  # exact; its stubs do not know it yet
    fitted = PCA(min(count, *train.shape), svd_solver=solver).fit(train.numpy())
    return lambda features: torch.from_numpy(fitted.transform(features.numpy()))


def vote(labels: Tensor, classes: int) -> Tensor:
    """The most frequent label of each row; of equally frequent ones, the one that comes first.

    Args:
        labels: Of neighbours, nearest first, int64 (Q, count).
        classes: Number of classes.

    Returns:
        int64 (Q,).
    """
    votes = torch.zeros(len(labels), classes, dtype=torch.int64)
    votes.scatter_add_(1, labels, torch.ones_like(labels))
    of_each = votes.gather(1, labels)
    winner = (of_each == of_each.amax(1, keepdim=True)).int().argmax(1, keepdim=True)
    return labels.gather(1, winner).squeeze(1)


def _linear(
    models: Mapping[float, RidgeClassifier | LogisticRegression],
    inputs: Mapping[Split, Any],
    parts: Parts,
) -> tuple[float, float]:
    """Test accuracy of the model that is best on val, and its strength: of equals the largest."""
    best = (-1.0, 0.0, 0.0)  # on val, strength, on test
    for strength, model in models.items():
        with warnings.catch_warnings():
            # The weakest penalties can be too weak for float32; val prefers others then.
            warnings.simplefilter("ignore", LinAlgWarning)
            model.fit(inputs["train"], parts["train"].labels.numpy())
        on_val, on_test = (
            accuracy(torch.from_numpy(model.predict(inputs[split])), parts[split].labels)
            for split in ("val", "test")
        )
        best = max(best, (on_val, strength, on_test))
    return best[2], best[1]


def _neighbours(distances: Distances, train: Labelled, test: Labelled) -> float:
    hits = nearest(distances, min(NEIGHBOURS, len(train.labels)))
    classes = int(train.labels.max()) + 1
    return accuracy(vote(train.labels[hits], classes), test.labels)
