"""Ctrl-C while a program still imports: one line and exit code 130. To be imported first."""

import signal
import sys
from types import FrameType


def _stop(number: int, frame: FrameType | None) -> None:
    print("\nstopped", file=sys.stderr)
    raise SystemExit(130)


def imported() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt, as usual."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


signal.signal(signal.SIGINT, _stop)
