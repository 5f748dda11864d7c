"""The order of batches: every image once an epoch, whoever asks and for which step."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pqvae.data.batches import BatchOrder


@pytest.mark.parametrize(("length", "batch_size"), [(12, 4), (13, 4), (5, 13), (7, 7), (1, 3)])
def test_every_image_comes_once_an_epoch(length: int, batch_size: int) -> None:
    order = BatchOrder(length, batch_size, seed=3)
    epochs = 4
    steps = -(-length * epochs // batch_size)
    stream = torch.cat([order(step) for step in range(steps)])[: length * epochs]
    for epoch in stream.view(epochs, length):
        assert epoch.sort().values.tolist() == list(range(length))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    # 20! orders: two of these five are alike by accident with a chance below 1e-17.
    orders = [tuple(BatchOrder(20, 20, seed)(step).tolist()) for seed, step in
              [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]]  # fmt: skip
    assert len(set(orders)) == 5


def test_batch_order_may_be_asked_by_several_threads() -> None:
    # Each step ends an epoch and begins one: all of them draw permutations at once.
    steps = [step * 97 % 200 for step in range(200)]
    expected = [BatchOrder(5, 7, 3)(step) for step in steps]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for _ in range(3):
                found = list(pool.map(BatchOrder(5, 7, 3), steps))
                assert all(map(torch.equal, found, expected))
    finally:
        sys.setswitchinterval(interval)
