"""Command: rate against distortion at every prefix, and what each stretch of codes gains.

Rates are the fixed length, sum of log2 K_i, and the prior's cross-entropy on held-out images, which
an arithmetic coder comes within two bits of. Both stages must not have seen the images: on those of
the training, a prior can cost as little as it remembers.

With a Gaussian of variance MSE_k around the image decoded from k codes, the codes k + 1 ... k' are
worth (D / 2) log2(MSE_k / MSE_k') bits about its D values. Far fewer than they cost: starved codes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.report.options import add_beam, add_data, add_report, request
from pqvae.cli import Parser, command, positive_int
from pqvae.errors import UserError

EXAMPLES = """\
  python -m eval.rate_distortion
  python -m eval.rate_distortion --prior runs/photos-prior --n 1000 --beam 8
  python -m eval.rate_distortion --prior none --tokenizer runs/tokenizer"""

NO_PRIOR = Path("none")
TOKENIZER = Path("runs/tokenizer")  # where there is no prior that names its own


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    if args.prior == NO_PRIOR:
        args.prior, args.tokenizer = None, args.tokenizer or TOKENIZER
    default = (args.prior or args.tokenizer) / "rate_distortion.json"
    asked = request("eval.rate_distortion", arguments, args.json, default)
    if args.prior and not args.prior.is_dir():
        raise UserError(
            f"{args.prior}: no prior here; run python -m stage2_prior.train, or give --prior DIR, "
            "or --prior none"
        )

    from eval.report.rate_distortion import report_rate_distortion

    report_rate_distortion(args, asked)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "eval.rate_distortion",
        "Measure bits against distortion on the test split, at every prefix length.",
        EXAMPLES,
    )
    add = parser.add_argument
    add(
        "--prior",
        type=Path,
        default=Path("runs/prior"),
        metavar="DIR",
        help="run folder of stage 2, or none for fixed-length bits only (default: %(default)s)",
    )
    add(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help=f"run folder of stage 1 (default: the prior's own; without a prior {TOKENIZER})",
    )
    add_data(parser)
    add("--n", type=positive_int, metavar="N", help="a fixed random subset of N test images")
    add_beam(parser)
    add_report(parser, "DIR/rate_distortion.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
