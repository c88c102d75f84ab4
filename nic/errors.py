"""What can go wrong, and the exit code the command line gives for it.

Every error that a user can cause or meet is a :class:`NicError` whose text is one line: what is wrong
and what to do about it. Anything else that escapes is a bug in nic.
"""

__all__ = [
    "BadFile",
    "BadInput",
    "Concealed",
    "NicError",
    "BadOutput",
    "UnknownModel",
    "UnsupportedFile",
    "UsageError",
]


class NicError(Exception):
    """Base class; ``exit_code`` is what ``nic`` exits with."""

    exit_code = 1


class UsageError(NicError):
    """Options that contradict each other or lie outside their range."""

    exit_code = 2


class BadInput(NicError):
    """An input picture that cannot be read, or that no .nic file can hold."""

    exit_code = 3


class BadFile(NicError):
    """A .nic file that is damaged, truncated, or not a .nic file at all."""

    exit_code = 4


class UnsupportedFile(NicError):
    """An intact .nic file that needs a newer nic."""

    exit_code = 5


class UnknownModel(UnsupportedFile):
    """An intact .nic file whose model is not installed."""


class BadOutput(NicError):
    """The output exists (use --force), or cannot be written."""

    exit_code = 6


class Concealed(NicError):
    """A damaged .nic file was decoded, but parts of the picture are only filled in."""

    exit_code = 7
