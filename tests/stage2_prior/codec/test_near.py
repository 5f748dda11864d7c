"""Pairs that are nearly the same, against all pairs computed one by one."""

import pytest
import torch

from stage2_prior.codec import near
from stage2_prior.codec.near import near_pairs


def test_all_pairs_within_reach_are_found_nearest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "ROWS", 7)  # several blocks
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(30, 12, generator=generator)
    latents[20] = latents[3]
    latents[21] = latents[4] + 0.1 * torch.randn(12, generator=generator)
    expected = {}
    for a in range(30):
        for b in range(a + 1, 30):
            gap = (latents[a] - latents[b]).square().sum()
            distance = gap / (latents[a].square().sum() + latents[b].square().sum())
            if distance <= 0.6:
                expected[a, b] = float(distance)
    found = near_pairs(latents, 0.6)
    assert {(a, b) for a, b, _ in found} == expected.keys()
    assert [(a, b) for a, b, _ in found[:2]] == [(3, 20), (4, 21)]
    for a, b, distance in found:
        assert abs(distance - expected[a, b]) < 1e-5
