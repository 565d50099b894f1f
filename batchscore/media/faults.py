"""What is wrong with a medium, as a fault with one of these codes.

not-media        no reference to a medium at all
media-missing    nothing is there
media-refused    the policy forbids it
media-too-large  it has more pixels or bytes than are read
media-damaged    no decoder here reads it
media-changed    it is not what it was when its header was read
media-fetch      the server did not give it
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from batchscore.errors import InputError
from batchscore.types import Fault

_LONGEST = 120  # characters of a reference in a message


class MediaError(Exception):
    """A medium that cannot be used; `fault` says why. Whoever knows the column adds it."""

    def __init__(self, code: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.fault = Fault(code, message, hint)


def shown(reference: str) -> str:
    """A path or URL as messages quote it, on one line and not too long."""
    text = repr(reference)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...'"


@contextmanager
def as_input_error() -> Iterator[None]:
    """Around what reads pixels: by then there is no row at hand, and the message names the medium."""
    try:
        yield
    except MediaError as error:
        raise InputError(error.fault.message, hint=error.fault.hint) from error
