"""Exit codes, and messages of one line."""

import sys

OK, FAILED, BAD_INPUT, WORSE, INTERRUPTED = 0, 1, 2, 3, 130

MISTAKES = (ValueError, ImportError, OSError)
"""What commands turn into a line and an exit code; anything else is a fault of ours."""


def bad(message: object) -> int:
    """Say what is wrong with the input; its exit code."""
    say(message)
    return BAD_INPUT


def failed(message: object) -> int:
    """Say what went wrong; its exit code."""
    say(message)
    return FAILED


def refused(error: Exception) -> int:
    """Say what is wrong: 1 if a result could not be written, 2 if the input is wrong.

    Commands that write nothing take an `OSError` for bad input.
    """
    return failed(error) if isinstance(error, OSError) else bad(error)


def say(message: object) -> None:
    """Print a line to the stream of errors."""
    if isinstance(message, OSError) and message.filename and message.strerror:
        # Without the number that the system gives an error.
        message = f"{message.filename}: {message.strerror}"
    line = " ".join(str(message).split())
    print(f"jcompress: {line}", file=sys.stderr)
