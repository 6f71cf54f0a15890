"""Errors meant for people: one line that says what happened and what to do, shown without a traceback."""

_LONGEST = 1000  # characters of a message; what is quoted from a damaged file may have any number


class UserError(Exception):
    """Something went wrong that the user can mend (a file, a disk, a diverged run)."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        line = " ".join(message.splitlines())
        half = _LONGEST // 2
        super().__init__(line if len(line) <= _LONGEST else f"{line[:half]} ... {line[-half:]}")


class UsageError(UserError, ValueError):
    """What was asked for cannot be done as asked (an unknown preset, a setting out of range)."""

    exit_code = 2
