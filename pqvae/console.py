"""What a person reads while a command works: lines and bars on stderr."""

import codecs
import contextlib
import io
import sys
import time

from tqdm import tqdm

from pqvae import distributed

SECONDS_BETWEEN_LINES = 15
PLAIN = {"±": "+-"}  # how what our own texts hold is written where it cannot be


def accept_all_text() -> None:
    """Let stdout and stderr print any text: what their encoding lacks, in plain characters.

    So a table that took an hour is not lost to an ASCII terminal, nor to an odd name of a file.
    """
    codecs.register_error("plain", _in_plain_characters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where closed; a notebook has its own
            stream.reconfigure(errors="plain")


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    plain = (PLAIN.get(c, c.encode("ascii", "backslashreplace").decode()) for c in text)
    return "".join(plain), error.end


def format_seconds(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def say(text: str) -> None:
    """One line of progress, on stderr; of several processes, the first speaks.

    Where nobody reads it any more, or its file is full, the work goes on.
    """
    if distributed.is_rank_zero():
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


class Progress:
    """How far a long loop over images is: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, label: str, total: int) -> None:
        disable = None if distributed.is_rank_zero() else True
        self._bar = tqdm(total=total, desc=label, unit="img", disable=disable)
        self._label, self._total, self._done, self._worked = label, total, 0, 0
        self._start = self._last = time.monotonic()

    def skip(self, n: int) -> None:
        """Count images that needed no work: they say nothing of the speed."""
        self._done += n
        self._bar.update(n)

    def advance(self, n: int) -> None:
        """Count images that were worked on."""
        self.skip(n)
        self._worked += n
        now = time.monotonic()
        if self._bar.disable and now - self._last > SECONDS_BETWEEN_LINES:
            self._last = now
            rate = self._worked / (now - self._start)
            eta = format_seconds((self._total - self._done) / rate)
            say(f"{self._label}: {self._done:,} of {self._total:,} | {rate:.0f} img/s | eta {eta}")

    def close(self) -> None:
        self._bar.close()
