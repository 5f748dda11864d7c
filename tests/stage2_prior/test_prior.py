"""The prior: causal, equal with and without its cache, and honest about bits."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pqvae.config import config_to_dict
from pqvae.errors import UserError
from pqvae.pretrained import save_model
from pqvae.randomness import generator_for
from stage1_tokenizer.config import ResidualConfig
from stage1_tokenizer.quantizers.residual import ResidualQuantizer
from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior.books import Codebooks
from stage2_prior.config import PriorConfig
from stage2_prior.prior import Prior

SIZES = (7, 4, 16, 2, 9)
# The last three positions share a codebook of 16 entries of 3 numbers.
CODEBOOKS = Codebooks(SIZES, (0, 1, 2, 2, 2), (None, None, 3))
N, CLASSES, BATCH = len(SIZES), 3, 6
# Logits are of order 1; float32 products of other shapes are summed in another order.
TOLERANCE = 1e-4

TINY = PriorConfig(width=64, depth=2, heads=2, code_features=8)


def make_prior(
    config: PriorConfig = TINY, classes: int = CLASSES, codebooks: Codebooks = CODEBOOKS
) -> Prior:
    """A prior in which every weight counts: training would move those that start at zero, too."""
    torch.manual_seed(0)
    names, counts = tuple(f"class {i}" for i in range(classes)), (5,) * classes
    prior = Prior(config, codebooks, names, counts)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.1)
    for book in prior.books:
        placements = None if book.placements is None else torch.randn(book.placements.shape)
        book.set_meaning(torch.randn(book.meaning.shape), placements)
    return prior.eval()


@pytest.fixture(scope="module")
def prior() -> Prior:
    return make_prior()


def random_codes(seed: int = 0) -> Tensor:
    columns = [
        torch.randint(size, (BATCH,), generator=generator_for(seed, i))
        for i, size in enumerate(SIZES)
    ]
    return torch.stack(columns, dim=1)


LABELS = torch.arange(BATCH) % CLASSES


@torch.inference_mode()
def test_a_code_changes_the_logits_after_it_and_no_others(prior: Prior) -> None:
    codes = random_codes()
    before = prior(codes, LABELS)
    for position, size in enumerate(SIZES):
        changed = codes.clone()
        changed[:, position] = (changed[:, position] + 1) % size
        difference = (prior(changed, LABELS) - before).nan_to_num(0)  # inf - inf where illegal
        per_position = difference.abs().amax((0, 2))
        assert per_position[: position + 1].max() == 0
        if position + 1 < N:
            assert per_position[position + 1 :].min() > 100 * TOLERANCE


@torch.inference_mode()
def test_a_prefix_has_the_logits_of_the_whole(prior: Prior) -> None:
    codes = random_codes()
    whole = prior(codes, LABELS)
    for length in range(N + 1):
        logits = prior(codes[:, :length], LABELS)
        assert logits.shape == (BATCH, min(length + 1, N), max(SIZES))
        torch.testing.assert_close(logits, whole[:, : length + 1], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_only_the_codes_of_a_position_are_possible(prior: Prior) -> None:
    codes = random_codes()
    logits, bits = prior(codes, LABELS), prior.bits(codes, LABELS)
    assert bits.shape == (BATCH, N)
    for position, size in enumerate(SIZES):
        assert (logits[:, position, size:] == -torch.inf).all()
        legal = logits[:, position, :size].double()
        assert legal.isfinite().all()
        probabilities = legal.exp() / legal.exp().sum(1, keepdim=True)
        chosen = probabilities[torch.arange(BATCH), codes[:, position]]
        expected = -chosen.log2().float()
        torch.testing.assert_close(bits[:, position], expected, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_a_uniform_prior_costs_log2_of_the_codebook_size() -> None:
    prior = make_prior()
    prior.head_projection.weight.zero_()
    for book in prior.books:
        book.head.zero_()
        book.bias.zero_()
    expected = torch.tensor([math.log2(size) for size in SIZES]).expand(BATCH, N)
    torch.testing.assert_close(prior.bits(random_codes(), LABELS), expected, atol=1e-6, rtol=0)


@torch.inference_mode()
def test_the_class_matters_and_its_last_row_is_no_class(prior: Prior) -> None:
    codes = random_codes()
    of_class = [prior.bits(codes, torch.full((BATCH,), label)) for label in range(CLASSES + 1)]
    for label in range(CLASSES):
        assert (of_class[label] - of_class[CLASSES]).abs().min() > 0
    assert torch.equal(prior.bits(codes), of_class[CLASSES])
    assert torch.equal(prior.bits(codes, LABELS)[1], of_class[LABELS[1]][1])
    unconditional = make_prior(classes=0)
    assert torch.equal(unconditional(codes, torch.zeros(BATCH).long()), unconditional(codes))


@torch.inference_mode()
def test_an_image_costs_the_same_whatever_stands_beside_it(prior: Prior) -> None:
    codes = random_codes()
    bits = prior.bits(codes, LABELS)
    order = torch.randperm(BATCH, generator=generator_for(0))
    shuffled = prior.bits(codes[order], LABELS[order])
    torch.testing.assert_close(shuffled, bits[order], atol=TOLERANCE, rtol=0)
    alone = prior.bits(codes[2:3], LABELS[2:3])
    torch.testing.assert_close(alone, bits[2:3], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("dim", "rank"), [(40, 8), (5, 5)], ids=["low rank", "small"])
@pytest.mark.parametrize("learned", [N, 2], ids=["all learned", "three share"])
def test_entries_mean_to_the_prior_what_they_are_to_the_quantizer(
    dim: int, rank: int, learned: int
) -> None:
    config = ResidualConfig(
        num_codes=N, codebook_sizes=SIZES, learned_codes=learned, rank=rank, subspace=3
    )
    quantizer = ResidualQuantizer(config, (dim, 1, 1))
    generator = generator_for(0)
    basis = torch.linalg.qr(torch.randn(dim, rank, generator=generator)).Q
    quantizer.start(torch.randn(500, rank, generator=generator) @ basis.T, generator)
    prior = make_prior(codebooks=Codebooks.of(quantizer))
    state = torch.get_rng_state()
    prior.set_code_features(quantizer)
    assert torch.equal(torch.get_rng_state(), state)  # it draws no number of the training's

    entries = torch.cat([quantizer.entries(position) for position in range(N)]).double()
    features = torch.cat([features_of(prior, position) for position in range(N)]).double()
    expected, found = entries @ entries.T, features @ features.T
    scale = expected.norm() / found.norm()
    # 1e-4: a randomized decomposition in float32 finds so few directions to about 1e-6.
    torch.testing.assert_close(found * scale, expected, atol=1e-4 * float(expected.max()), rtol=0)
    # The longest entry has unit size, so that no code drowns the free embeddings.
    assert float(features.norm(dim=1).max()) == pytest.approx(1, abs=1e-5)


def features_of(prior: Prior, position: int) -> Tensor:
    """What each entry of a position adds to the latent that the prior sees: (K_i, F)."""
    codes = torch.zeros(SIZES[position], position + 1, dtype=torch.int64)
    codes[:, position] = torch.arange(SIZES[position])
    described = prior.books.read(codes, 0)[1]
    return described[:, position]


@torch.inference_mode()
def test_positions_share_a_codebook_as_if_each_had_a_copy_of_it(prior: Prior) -> None:
    copied = make_prior(codebooks=Codebooks.separate(SIZES))
    tensors = {k: v for k, v in prior.state_dict().items() if not k.startswith("books.")}
    copied.load_state_dict(tensors, strict=False)
    for position, (size, number) in enumerate(zip(SIZES, CODEBOOKS.books, strict=True)):
        book, own = list(prior.books)[number], list(copied.books)[position]
        member = position - CODEBOOKS.books.index(number)
        own.embedding.weight.copy_(book.embedding.weight[:size])
        own.head.copy_(book.head[:size])
        own.gain.copy_(book.gain[member : member + 1])
        own.bias.copy_(book.bias[member : member + 1, :size])
        own.set_meaning(features_of(prior, position), None)
    codes = random_codes()
    torch.testing.assert_close(copied(codes, LABELS), prior(codes, LABELS), atol=1e-4, rtol=0)


def test_another_position_in_a_shared_codebook_costs_a_row_of_each_kind() -> None:
    def count(late: int) -> int:
        # As configs/cifar10.yaml has it: 2 codes of 256, the late ones of 1024 in 16 numbers.
        books = Codebooks((256,) * 2 + (1024,) * late, (0, 1, *(2,) * late), (None, None, 16))
        prior = Prior(PriorConfig(), books, (), ())
        numbers = sum(tensor.numel() for tensor in prior.state_dict().values())
        assert max(tensor.numel() for tensor in prior.state_dict().values()) <= 1024 * 192
        return numbers

    # Its position and gain; its bias and the size of each entry; how it places them.
    assert count(57) - count(56) == 2 * 192 + 2 * 1024 + 16 * 128


@torch.inference_mode()
def test_saved_and_loaded_it_is_the_same(prior: Prior, tmp_path: Path) -> None:
    content_hash = prior.save_pretrained(tmp_path / "model", {"codes_hash": "of a tokenizer"})
    for folder in (tmp_path, tmp_path / "model"):  # a run folder or the model in it
        loaded = Prior.from_pretrained(folder)
        assert not loaded.training
        assert loaded.config == prior.config
        assert loaded.codebooks == CODEBOOKS
        assert loaded.sizes == SIZES
        assert loaded.sequence == prior.sequence
        assert loaded.class_names == prior.class_names
        assert loaded.class_counts == prior.class_counts
        assert loaded.provenance == {"codes_hash": "of a tokenizer", "home": os.getcwd()}
        assert loaded.content_hash == content_hash
        codes = random_codes()
        assert torch.equal(loaded(codes, LABELS), prior(codes, LABELS))


@torch.inference_mode()
def test_a_folder_of_the_first_version_is_the_same_prior(prior: Prior, tmp_path: Path) -> None:
    """That version had tables by position: the reference is its formula, on the same layers."""
    K, width, features = max(SIZES), TINY.width, TINY.code_features
    generator = generator_for(0)

    def random(*shape: int) -> Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    tables = {
        "code_embedding.weight": random(N * K, width),
        "head": random(N, K, width),
        "head_bias": random(N, K),
        "head_projection.weight": random(width, features),
        "code_features": 10 * random(N, K, features),
    }
    shared = ("layers.", "class_embedding.", "position_embedding", "feature_projection.")
    kept = {k: v for k, v in prior.state_dict().items() if k.startswith(shared)}
    config = {
        "prior": config_to_dict(TINY),
        "codebook_sizes": list(SIZES),
        "class_names": list(prior.class_names),
        "class_counts": list(prior.class_counts),
        "tokenizer_hash": "hash of a tokenizer",
    }
    content_hash = save_version_1(tmp_path, config, {**kept, **tables})

    codes, places = random_codes(), torch.arange(N - 1)
    meaning = tables["code_features"][places, codes[:, :-1]].cumsum(dim=1)
    embedded = tables["code_embedding.weight"][codes[:, :-1] + places * K]
    embedded = embedded + meaning @ kept["feature_projection.weight"].T
    embedded = embedded + kept["position_embedding"][:-1]
    start = kept["class_embedding.weight"][LABELS].unsqueeze(1)
    hidden = prior.layers(torch.cat([start, embedded], dim=1))
    said = nn.functional.normalize(tables["code_features"], dim=2)
    head = tables["head"] + said @ tables["head_projection.weight"].T
    expected = torch.einsum("bnd,nkd->bnk", hidden, head) + tables["head_bias"]
    expected[:, torch.arange(K) >= torch.tensor(SIZES).unsqueeze(1)] = -torch.inf

    loaded = Prior.from_pretrained(tmp_path)
    assert loaded.content_hash == content_hash
    assert loaded.provenance["tokenizer_hash"] == "hash of a tokenizer"
    assert loaded.sizes == SIZES
    torch.testing.assert_close(loaded(codes, LABELS), expected, atol=1e-5, rtol=0)
    # Saved anew, it is a prior of today.
    loaded.save_pretrained(tmp_path)
    again = Prior.from_pretrained(tmp_path)
    assert again.provenance["tokenizer_hash"] == "hash of a tokenizer"
    assert torch.equal(again(codes, LABELS), loaded(codes, LABELS))


def save_version_1(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Write a model folder as version 1 did: without version and provenance."""
    content_hash = save_model(folder, "prior", config, tensors, {})
    path = folder / "config.json"
    values = json.loads(path.read_text())
    kept = {key: values[key] for key in ("kind", "content_hash", "config")}
    path.write_text(json.dumps(kept))
    return content_hash


def test_a_foreign_or_damaged_folder_is_refused(
    prior: Prior, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            Prior.from_pretrained(tmp_path)

    refused(r"no prior here \(config.json is missing\)")
    config = tmp_path / "config.json"
    config.write_text("[]")
    refused(r"config.json: not the config of a model")
    Tokenizer(tiny_tokenizer.config).save_pretrained(tmp_path)
    refused("holds a tokenizer, but a prior is needed")
    prior.save_pretrained(tmp_path)
    config.write_text(config.read_text().replace("class 1", "class 9"))
    refused("do not belong together, or are damaged")
    prior.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refused("do not belong together, or are damaged")
    weights.write_bytes(data[: len(data) // 2])
    refused("model.safetensors: damaged")
    weights.unlink()
    refused("model.safetensors: no such file")


@pytest.mark.parametrize("settings", [(65, 2), (32, 2), (66, 4)])
def test_a_width_that_does_not_fit_the_heads_is_refused(settings: tuple[int, int]) -> None:
    width, heads = settings
    with pytest.raises(ValueError, match=f"width {width} must be an even multiple of heads"):
        PriorConfig(width=width, heads=heads)


def test_it_learns_what_depends_on_the_class_and_on_earlier_codes() -> None:
    # c_2 = f(c_1, class) and the rest is constant: log2 7 bits at the first position, 0 elsewhere.
    torch.manual_seed(0)
    config = PriorConfig(width=64, depth=2, heads=2, code_features=8, dropout=0.0)
    prior = Prior(config, CODEBOOKS, ("a", "b"), (1, 1))
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-3)
    for step in range(150):
        codes, labels = law(64, step)
        loss = prior.bits(codes, labels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        bits = prior.eval().bits(*law(512, 999)).mean(0)
        wrong = prior.bits(law(512, 999)[0], 1 - law(512, 999)[1]).mean(0)
    # Not below the entropy (up to the draw), and near it; the wrong class is costly.
    assert float(bits[0]) == pytest.approx(math.log2(7), abs=0.1)
    assert float(bits[1:].max()) < 0.2
    assert float(wrong[1]) > 1


def law(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = generator_for(seed)
    labels = torch.randint(2, (n,), generator=generator)
    codes = torch.zeros(n, N, dtype=torch.int64)
    codes[:, 0] = torch.randint(7, (n,), generator=generator)
    codes[:, 1] = (codes[:, 0] + 2 * labels) % 4
    return codes, labels
