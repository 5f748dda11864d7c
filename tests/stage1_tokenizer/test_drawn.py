"""The drawing decoder: a picture of the codes and of noise, for every prefix and for none."""

import copy
import math

import pytest
import torch
from torch import Tensor

from stage1_tokenizer.config import ArchitectureConfig
from stage1_tokenizer.decoder_config import DirectConfig, DrawnConfig
from stage1_tokenizer.decoders.direct import DirectDecoder
from stage1_tokenizer.decoders.drawn import DrawnDecoder, length_waves
from stage1_tokenizer.tokenizer import DRAWN, FAITHFUL, Tokenizer

SHAPE = (4, 4, 4)
N = 6


def direct_and_drawn(downsamplings: int) -> tuple[DirectDecoder, DrawnDecoder, Tensor]:
    """A faithful decoder, one that draws and starts from it, and latents that it has measured."""
    torch.manual_seed(0)
    architecture = ArchitectureConfig(
        widths=(16, 32, 48)[:downsamplings],
        encoder_blocks=(1,) * downsamplings,
        decoder_blocks=(1,) * downsamplings,
        latent_channels=4,
    )
    direct = DirectDecoder(DirectConfig(), architecture, SHAPE, N)
    torch.nn.init.normal_(direct.network[-1].weight, std=0.1)  # type: ignore[bad-argument-type]
    config = DrawnConfig(width=32, depth=1, full_width=16, class_names=("a", "b"))
    drawn = DrawnDecoder(config, architecture, SHAPE, N)
    latents = 3 + torch.randn(500, math.prod(SHAPE)) @ torch.randn(64, 64)
    drawn.init_from_faithful(direct)
    drawn.init_from_latents(latents, {k: 1 / (k + 1) for k in range(1, N + 1)})
    return direct, drawn, latents


def let_it_draw(decoder: torch.nn.Module) -> None:
    """Give the layers that start at zero some weight, as training does."""
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.3)


@pytest.mark.parametrize("downsamplings", [1, 2, 3])
def test_it_starts_as_the_faithful_one_and_every_layer_learns_but_the_faithful_ones(
    downsamplings: int,
) -> None:
    direct, drawn, _ = direct_and_drawn(downsamplings)
    latents, lengths = torch.randn(3, 64), torch.tensor([1, 2, N])
    noise, labels = torch.randn(3, drawn.noise_size), torch.tensor([0, 1, 2])
    expected = direct(latents, lengths)
    assert expected.shape[-1] == 4 * 2**downsamplings
    found = drawn(latents, lengths, noise, labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(drawn.features(latents, lengths), direct.features(latents, lengths))
    optimizer = torch.optim.SGD(drawn.parameters(), lr=0.1)
    for _ in range(3):  # what starts at zero holds back the gradient of what lies before it
        optimizer.zero_grad()
        (drawn(latents, lengths, noise, labels) - 1).square().mean().backward()
        optimizer.step()
    still = [
        name
        for name, parameter in drawn.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert still == [name for name in still if name.startswith("direct.")]
    assert any(still)


def test_a_picture_depends_on_codes_noise_and_class_and_on_its_row_alone() -> None:
    _, drawn, _ = direct_and_drawn(2)
    let_it_draw(drawn)
    latents, noise = torch.randn(1, 64), torch.randn(2, drawn.noise_size)
    two, class_a = torch.tensor([2]), torch.tensor([0])

    def draw(latents: Tensor, lengths: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        with torch.no_grad():
            return drawn(latents, lengths, noise, labels)

    first = draw(latents, two, noise[:1], class_a)
    assert torch.equal(first, draw(latents, two, noise[:1], class_a))
    for other in (
        draw(latents + 1, two, noise[:1], class_a),
        draw(latents, torch.tensor([3]), noise[:1], class_a),
        draw(latents, two, noise[1:], class_a),
        draw(latents, two, noise[:1], class_a + 1),
        draw(latents, two, noise[:1], None),
    ):
        assert (first - other).abs().mean() > 1e-3
    no_class = draw(latents, two, noise[:1], torch.tensor([2]))
    assert torch.equal(no_class, draw(latents, two, noise[:1], None))
    both = draw(latents.expand(2, -1), two.expand(2), noise, class_a.expand(2))
    torch.testing.assert_close(both[:1], first, rtol=0, atol=1e-5)
    # Each piece of the noise counts.
    sizes = [math.prod(shape) for shape in drawn.noise_shapes]
    assert sum(sizes) == drawn.noise_size
    for place, piece in enumerate(noise[:1].split(sizes, dim=1)):
        changed = noise[:1].clone()
        start = sum(sizes[:place])
        changed[:, start : start + sizes[place]] = piece + 1
        same = place == 1  # of the latent, which is drawn only where no code says what it is
        assert torch.equal(first, draw(latents, two, changed, class_a)) == same
        none = draw(latents, two * 0, changed, class_a)
        assert not torch.equal(none, draw(latents, two * 0, noise[:1], class_a))


def test_the_more_the_codes_say_the_less_the_noise_does() -> None:
    _, drawn, _ = direct_and_drawn(2)
    let_it_draw(drawn)
    latents, noise = torch.randn(1, 64).expand(8, -1), torch.randn(8, drawn.noise_size)
    spread = []
    for k in (1, 3, N):
        with torch.no_grad():
            pictures = drawn(latents, torch.full((8,), k), noise)
        spread.append(float(pictures.std(0).mean()))
    assert spread[0] > spread[1] > spread[2]


def test_without_codes_a_latent_of_the_measured_mean_and_covariance_is_decoded() -> None:
    direct, drawn, latents = direct_and_drawn(1)
    noise = torch.randn(4000, drawn.noise_size, generator=torch.Generator().manual_seed(1))
    zeros = torch.zeros(4000, 64)
    with torch.no_grad():
        found = drawn(zeros, torch.zeros(4000, dtype=torch.int64), noise)
        expected = direct(latents, torch.ones(500, dtype=torch.int64))
    # What is linear in the latent shows it: the faithful decoder's shortcut, the mean picture.
    torch.testing.assert_close(found.mean(0), expected.mean(0), rtol=0.2, atol=0.3)
    drawn_latents = drawn.mean + noise[:, 64 : 64 + 64] @ drawn.axes
    torch.testing.assert_close(drawn_latents.mean(0), latents.mean(0), rtol=0, atol=1.0)
    wanted = torch.cov(latents.T)
    error = (torch.cov(drawn_latents.T) - wanted).norm() / wanted.norm()
    assert error < 0.1


def test_near_lengths_look_alike_and_all_differ() -> None:
    waves = length_waves(torch.arange(0, 300))
    distances = torch.cdist(waves, waves)
    assert (distances + torch.eye(300) * 9).min() > 1e-3
    assert distances[4, 5] < distances[4, 6] < distances[4, 9]
    assert distances[100, 101] < distances[4, 5]


def test_a_tokenizer_draws_by_seed_and_number_whatever_is_beside(tiny_tokenizer: Tokenizer) -> None:
    config = DrawnConfig(width=16, depth=1, full_width=16, class_names=("a", "b"))
    tokenizer = copy.deepcopy(tiny_tokenizer)
    let_it_draw(tokenizer.add_decoder(DRAWN, config))
    codes = torch.zeros(7, 2, dtype=torch.int64)
    numbers, labels = torch.arange(7), torch.arange(7) % 2
    pictures = tokenizer.decode(codes, DRAWN, seed=3, indices=numbers, labels=labels)
    assert torch.equal(pictures, tokenizer.decode(codes, DRAWN, seed=3, labels=labels))
    assert len({picture.numpy().tobytes() for picture in pictures}) == 7
    chosen = torch.tensor([5, 2])
    some = tokenizer.decode(codes[:2], DRAWN, seed=3, indices=chosen, labels=labels[chosen])
    assert torch.equal(some, pictures[chosen])
    assert not torch.equal(pictures, tokenizer.decode(codes, DRAWN, seed=4, labels=labels))
    faithful = tokenizer.decode(codes, FAITHFUL, seed=3)
    assert torch.equal(faithful, tokenizer.decode(codes, FAITHFUL, seed=4))


def test_no_codes_are_for_decoders_that_draw(tiny_tokenizer: Tokenizer) -> None:
    none = torch.zeros(3, 0, dtype=torch.int64)
    with pytest.raises(ValueError, match="a prefix has 1 to 6 codes, but got 0"):
        tiny_tokenizer.decode(none)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    let_it_draw(tokenizer.add_decoder(DRAWN, DrawnConfig(width=16, depth=1, full_width=16)))
    pictures = tokenizer.decode(none, DRAWN)
    assert pictures.shape == (3, 3, 16, 16)
    assert not torch.equal(pictures[0], pictures[1])
