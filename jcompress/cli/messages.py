"""Exit codes, and messages of one line."""

import sys

OK, FAILED, BAD_INPUT, WORSE, INTERRUPTED = 0, 1, 2, 3, 130


def bad(message: object) -> int:
    """Say what is wrong with the input; its exit code."""
    say(message)
    return BAD_INPUT


def failed(message: object) -> int:
    """Say what went wrong; its exit code."""
    say(message)
    return FAILED


def say(message: object) -> None:
    """Print a line to the stream of errors."""
    line = " ".join(str(message).split())
    print(f"jcompress: {line}", file=sys.stderr)
