"""Errors meant for people: one line that says what happened and what to do, shown without a traceback."""


class UserError(Exception):
    """Something went wrong that the user can mend (a file, a disk, a diverged run)."""

    exit_code = 1


class UsageError(UserError, ValueError):
    """What was asked for cannot be done as asked (an unknown preset, a setting out of range)."""

    exit_code = 2
