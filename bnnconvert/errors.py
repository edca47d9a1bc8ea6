"""The exception family: every failure that a user can meet is one of four kinds.

Each message says where, what, and what to do. Stages raise; only the command line prints.
"""


class BnnError(Exception):
    """Base of everything that bnnconvert raises on purpose."""

    exit_code = 1


class UsageError(BnnError):
    """The user asked for something that cannot be understood: a missing file, an unknown name, a bad option."""

    exit_code = 2


class RefusalError(BnnError):
    """A model, layer or data set that will not be processed; the message names it and the reason."""


class VerificationError(BnnError):
    """A promise of ours was broken: a rewrite, a fold or an artifact differs from its reference."""


class ArtifactError(BnnError):
    """A packed file is damaged, too new, or not a packed file at all."""


def first_line(error: BaseException) -> str:
    """What a foreign error says, short enough for a sentence: its first line, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def brief(error: BaseException) -> str:
    """An error's type and first line."""
    return f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
