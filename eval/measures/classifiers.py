"""Simple classifiers that ask what a representation holds: ridge, softmax regression, neighbours.

Alain & Bengio, "Understanding intermediate layers using linear classifier probes", 2016. All of it
runs on the CPU; large products are taken in parts, so that memory stays bounded.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pqvae.data.batches import BatchOrder
from pqvae.data.sample import Split

STRENGTHS = tuple(10 ** (power / 2) for power in range(-12, 5))  # 1e-6 ... 100, of the ridge
ROWS = 4096  # images whose features are in float64 at once
CELLS = 1 << 24  # distances in memory at once
# Squared distances are told apart down to this share of a mean squared norm: equal features then
# are equally near, however a matrix product rounds, and the order of the images decides.
RESOLUTION = 1e-5

BATCH_SIZE, MOMENTUM = 256, 0.9  # of the softmax regression ...
MAX_STEPS, JUDGED_EVERY, PATIENCE = 4000, 50, 5  # ... which stops when val was not better so often


@dataclass(frozen=True, slots=True)
class Labelled:
    """Images of one split, in one representation."""

    features: Tensor  # (n, D)
    labels: Tensor  # int64 (n,)


Parts = Mapping[Split, Labelled]  # train, val and test


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of the labels that are predicted, in percent."""
    return 100 * (predicted == labels).double().mean().item()


class Ridge:
    """Linear regression on one-hot classes with a squared penalty, in closed form.

        min_W  |Y - 1 b^T - X W|^2 / n + s v |W|^2        v: mean variance of the features

    The intercept b is not penalized. The strength s is relative to v, so that the scale of the
    features does not matter. One eigendecomposition of their covariance answers for all strengths.
    """

    def __init__(self, train: Labelled, classes: int) -> None:
        n, D = train.features.shape
        total = torch.zeros(D, dtype=torch.float64)
        counts = torch.bincount(train.labels, minlength=classes).double()
        gram, cross = total.new_zeros(D, D), total.new_zeros(D, classes)
        for rows in _slices(n, ROWS):
            features = train.features[rows].double()
            total += features.sum(0)
            gram.addmm_(features.T, features)
            cross += features.T @ F.one_hot(train.labels[rows], classes).double()
        self.mean, self.shares = total / n, counts / n
        covariance = gram.div_(n).addr_(self.mean, self.mean, alpha=-1)
        variances, self.axes = torch.linalg.eigh(covariance)
        self.variances = variances.clamp_min_(0)
        self.unit = self.variances.mean().item() or 1.0
        self.along = self.axes.T @ (cross / n - torch.outer(self.mean, self.shares))

    def weights(self, strength: float) -> Tensor:
        """W at a strength, float64 (D, classes)."""
        shrunk = self.along / (self.variances + strength * self.unit).unsqueeze(1)
        return self.axes @ shrunk

    def predict(self, features: Tensor, strength: float) -> Tensor:
        """The class of each row of features (n, D): int64 (n,)."""
        weights = self.weights(strength)
        bias = self.shares - self.mean @ weights
        parts = features.split(ROWS)
        return torch.cat([torch.addmm(bias, part.double(), weights).argmax(1) for part in parts])

    def best_strength(self, val: Labelled) -> float:
        """The strength with the highest accuracy on held-out images; of equals, the largest."""
        scores = [(accuracy(self.predict(val.features, s), val.labels), s) for s in STRENGTHS]
        return max(scores)[1]

    def principal(self, features: Tensor, count: int) -> Tensor:
        """The leading principal components of the train features, of features (n, D)."""
        axes = self.axes[:, -count:].flip(1).float()
        return features @ axes - self.mean.float() @ axes


def softmax_regression(
    parts: Parts, sizes: Sequence[int], classes: int, seed: int
) -> tuple[float, int]:
    """Linear softmax regression on the one-hot codes of a prefix.

    A one-hot code has a place for each entry of its codebook, so that its product with the weights
    is one of their rows. Gradient descent with momentum moves the rows of rare codes little, which
    are mostly noise; Adam moves all alike, and was up to 9 points lower on val. The weights are
    those of the step with the least cross-entropy on val, of every 50th.

    Args:
        parts: Codes int64 (n, k), and classes; val chooses the step, and test is reported.
        sizes: Entries of the codebook at each of the k positions.
        classes: Number of classes.
        seed: Of the order of the batches.

    Returns:
        Accuracy on test in percent, and the number of steps behind it.
    """
    train, val, test = (parts[split] for split in ("train", "val", "test"))
    model = OneHotLinear(sizes, classes)
    # The curvature is (k + 1) / 2 at most: with this momentum, rates below 7.6 / (k + 1) converge.
    rate = 4 / (len(sizes) + 1)
    optimizer = torch.optim.SGD(model.parameters(), rate, MOMENTUM)
    order = BatchOrder(len(train.labels), BATCH_SIZE, seed)
    least, best_step, found = math.inf, 0, 0.0
    for step in range(1, MAX_STEPS + 1):
        batch = order(step - 1)
        loss = F.cross_entropy(model(train.features[batch]), train.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % JUDGED_EVERY:
            continue
        with torch.no_grad():
            held_out = F.cross_entropy(model(val.features), val.labels).item()
            if held_out < least:
                least, best_step = held_out, step
                found = accuracy(model(test.features).argmax(1), test.labels)
        if step - best_step >= PATIENCE * JUDGED_EVERY:
            break
    return found, best_step


class OneHotLinear(nn.Module):
    """Codes (B, k) -> logits (B, classes): a row of weights for each code, and a bias, summed."""

    offsets: Tensor  # int64 (k,): where each codebook's rows begin

    def __init__(self, sizes: Sequence[int], classes: int) -> None:
        super().__init__()
        self.register_buffer("offsets", torch.tensor([0, *sizes[:-1]]).cumsum(0))
        self.rows = nn.EmbeddingBag(sum(sizes), classes, mode="sum")
        self.bias = nn.Parameter(torch.zeros(classes))
        nn.init.zeros_(self.rows.weight)

    def forward(self, codes: Tensor) -> Tensor:
        return self.rows(codes + self.offsets) + self.bias


class SquaredDistances:
    """Squared Euclidean distances to the rows of a database (n, D), as whole numbers."""

    def __init__(self, database: Tensor) -> None:
        self.database = database
        self.squares = torch.cat([part.square().sum(1) for part in database.split(ROWS)])
        self.step = RESOLUTION * self.squares.mean().item() or 1.0

    def __call__(self, queries: Tensor) -> Tensor:
        """Distances of queries (B, D), in units of ``step``: int64 (B, n)."""
        distances = torch.addmm(self.squares, queries, self.database.T, alpha=-2)
        distances += queries.square().sum(1, keepdim=True)
        return distances.div_(self.step).round_().clamp_min_(0).long()


def closest(distances: Tensor, count: int, own: slice | None = None) -> Tensor:
    """The columns of the smallest numbers of each row, in rising order.

    Args:
        distances: int64 (B, n), 0 or above. Of equal ones, that of the lower column is smaller.
        count: How many.
        own: The columns of the rows themselves, which are left out; None to leave out none.

    Returns:
        int64 (B, count).
    """
    B, n = distances.shape
    keys = distances * n + torch.arange(n)
    if own is not None:
        keys[torch.arange(B), torch.arange(own.start, own.stop)] = torch.iinfo(torch.int64).max
    return keys.topk(count, largest=False).indices


def query_slices(queries: int, database: int) -> list[slice]:
    """Slices of queries whose distances to the whole database fit into ``CELLS``."""
    return _slices(queries, max(1, CELLS // database))


def nearest(queries: Tensor, database: Tensor, count: int, *, leave_out: bool = False) -> Tensor:
    """Euclidean neighbours.

    Args:
        queries: float (Q, D).
        database: float (n, D).
        count: How many neighbours.
        leave_out: The queries are the database, and none is a neighbour of itself.

    Returns:
        Rows of the database, nearest first, int64 (Q, count); equally near ones in their order.
    """
    distances = SquaredDistances(database)
    return torch.cat(
        [
            closest(distances(queries[rows]), count, rows if leave_out else None)
            for rows in query_slices(len(queries), len(database))
        ]
    )


def nearest_codes(
    queries: Tensor,
    database: Tensor,
    lengths: Sequence[int],
    count: int,
    *,
    leave_out: bool = False,
) -> Tensor:
    """Neighbours by Hamming distance of prefixes, all lengths in one pass.

    Args:
        queries: Codes int64 (Q, N).
        database: Codes int64 (n, N).
        lengths: Of the prefixes, ascending, at most N.
        count: How many neighbours.
        leave_out: As in ``nearest``.

    Returns:
        Rows of the database, int64 (lengths, Q, count), as ``nearest`` orders them.
    """
    columns, parts = database.T.int().contiguous(), []
    for rows in query_slices(len(queries), len(database)):
        codes = queries[rows].int()
        distances = torch.zeros(len(codes), len(database), dtype=torch.int16)
        found = []
        for position in range(lengths[-1]):
            distances += codes[:, position, None] != columns[position]
            if position + 1 in lengths:
                found.append(closest(distances.long(), count, rows if leave_out else None))
        parts.append(torch.stack(found))
    return torch.cat(parts, dim=1)


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


def _slices(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
