"""eval.fid beside plain torch-fidelity, on the same images and weights, in one run.

    python benchmarks/fid.py
    python benchmarks/fid.py --n 1000

Plain torch-fidelity computes FID and KID of N built-in emoji against N others, as it comes. Ours
does it twice: with an empty cache of features, and with the cache that the first left behind. The
scores must agree; the ratios are what counts, as seconds differ between machines.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch_fidelity
from torch import Tensor
from torch.utils.data import Dataset

from eval.measures.generation import compute
from eval.measures.statistics import Reference
from eval.networks.extractor import FeatureExtractor, load_network
from pqvae.cli import Parser, command, positive_int
from pqvae.data.config import DataConfig
from pqvae.data.dataset import ImageDataset, open_dataset
from pqvae.runtime import machine, select_device


class Some(Dataset):
    """Images of a data set, one by one, as torch-fidelity takes them."""

    def __init__(self, images: ImageDataset, indices: range) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        return self.images.images([self.indices[index]])[0]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Parser("benchmarks.fid", __doc__ or "", "  python benchmarks/fid.py --n 1000")
    parser.add_argument("--n", type=positive_int, default=500, help="(default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps or auto")
    args = parser.parse_args(argv)
    device = select_device(args.device)
    train = open_dataset(DataConfig(), "train")
    sides = range(args.n), range(args.n, 2 * args.n)
    network = load_network("inception")
    subset_size = min(1000, args.n)

    def plain(weights: Path) -> tuple[float, float]:
        found = torch_fidelity.calculate_metrics(
            input1=Some(train, sides[0]),
            input2=Some(train, sides[1]),
            fid=True,
            kid=True,
            kid_subset_size=subset_size,
            feature_extractor_weights_path=str(weights),
            cuda=device.type == "cuda",
            cache=False,
            verbose=False,
        )
        return found["frechet_inception_distance"], found["kernel_inception_distance_mean"]

    def ours(cache: Path) -> tuple[float, float]:
        extract = FeatureExtractor(network, device, cache=cache)
        first, second = (extract(train, side) for side in sides)
        found = compute(["fid", "kid"], first, Reference(second))
        return found["fid"], found["kid"]

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.pth")
        torch.save(network.module.state_dict(), weights)
        runs = {
            "plain torch-fidelity": lambda: plain(weights),
            "ours, empty cache": lambda: ours(Path(folder, "cache")),
            "ours, warm cache": lambda: ours(Path(folder, "cache")),
        }
        first = None
        print(f"{args.n} images against {args.n}, {machine()}")
        for name, run in runs.items():
            started = time.perf_counter()
            fid, kid = run()
            seconds = time.perf_counter() - started
            first = first or seconds
            print(
                f"{name:<21} {seconds:7.1f} s  {first / seconds:5.1f}x   "
                f"FID {fid:.6f}  KID {kid:.7f}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
