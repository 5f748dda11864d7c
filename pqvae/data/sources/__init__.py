"""Where images may come from: what a user gives, and what lists it, in the order of trying."""

from pqvae.data.sample import Source
from pqvae.data.sources import cifar10, emoji, folder, shards

SOURCES: dict[str, Source] = {
    "emoji": emoji.list_samples,
    "cifar10": cifar10.list_samples,
    "a folder of images or of .tar shards": folder.list_samples,
    "a glob or range of shards": shards.list_samples,
}
