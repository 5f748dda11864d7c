"""Command: what is lost at k = 1, 2, 4 ... N codes: PSNR, SSIM, perceptual distance and rFID.

rFID is the Frechet distance of the reconstructions from the very images that they are of, so a
perfect tokenizer has 0 whatever their number. KID, which supposes independent sets, is not taken:
of such pairs it is too low.
"""

import argparse
import sys
from collections.abc import Sequence

from eval.report.options import (
    add_beam,
    add_data,
    add_extractor,
    add_report,
    add_split,
    add_tokenizer,
    request,
)
from pqvae.cli import Parser, command, positive_int, positive_ints
from pqvae.errors import UserError

EXAMPLES = """\
  python -m eval.reconstruction
  python -m eval.reconstruction --extractor inception
  python -m eval.reconstruction --extractor inception --decoder vivid --prefixes 8,32
  python -m eval.reconstruction --tokenizer runs/photos --split val --n 500 --refine 8"""


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    default = args.tokenizer / "reconstruction.json"
    asked = request("eval.reconstruction", arguments, args.json, default)
    if args.extractor == "none" and args.weights:
        raise UserError("--weights is the file of an extractor, but --extractor is none")

    from eval.report.reconstruction import report_reconstruction

    report_reconstruction(args, asked)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "eval.reconstruction",
        "Measure what prefixes of codes keep of the images, with a plot and a picture.",
        EXAMPLES,
    )
    add = parser.add_argument
    add_tokenizer(parser)
    add_data(parser)
    add_split(parser, "of the data", "test")
    add("--n", type=positive_int, metavar="N", help="a fixed random subset of N images")
    about = (
        "network of rFID: inception, several times slower, or lite0, whose column is rfd_lite0, no "
        "FID (default: lite0, if it is installed)"
    )
    add_extractor(parser, None, about, "none")
    add_beam(parser)
    add(
        "--refine",
        type=positive_int,
        default=0,
        metavar="R",
        help="times to correct the codes by what they decode to (default: none)",
    )
    add(
        "--prefixes",
        type=positive_ints,
        metavar="LIST",
        help="numbers of codes (default: 1, 2, 4 ... and all)",
    )
    add(
        "--decoder",
        default="faithful",
        metavar="NAME",
        help="whose pictures are measured: faithful, vivid or drawn (default: %(default)s)",
    )
    add_report(parser, "DIR/reconstruction.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
