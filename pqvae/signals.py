"""SIGTERM and Ctrl-C: a training run finishes its step and saves; anything else ends at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal has asked to end; the message says what is kept."""

    def __init__(self, signum: int, message: str = "stopped") -> None:
        super().__init__(message)
        self.signum = signum


class StopRequest:
    """Holds signals back inside of its block: they set ``signum``, and the work goes on.

    In a part ``with request.at_once():`` they raise Stopped instead: for long work of which nothing
    is lost but time.
    """

    def __init__(self, *, hold_back: bool = True) -> None:
        self.signum = 0  # 0: nothing has asked
        self._hold_back = hold_back

    def __enter__(self) -> Self:
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside of this block a signal raises Stopped, also one that came before."""
        self._hold_back = False
        try:
            if self.signum:
                raise Stopped(self.signum)
            yield
        finally:
            self._hold_back = True

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        again, self.signum = bool(self.signum), signum
        # torchrun passes on a Ctrl-C that this process has got itself: once is enough.
        if not self._hold_back and not again:
            raise Stopped(signum)
