"""What ends a run."""

from __future__ import annotations


class RunError(Exception):
    """A run that cannot go on. The text is one line for the user."""


class NotResumed(RunError):
    """A run that was to go on and did not come to it; what it had left is as it was."""


class RoleError(RunError):
    """A role raised an exception, or awaited what no node offers."""
