"""Errors that a user can cause, each told in one sentence.

Everything that a user may get wrong raises a :class:`MantaError`; commands print its message and
exit with its status, the gateway turns it into an OpenAI error body. Anything else is a bug and keeps
its traceback.
"""

from __future__ import annotations


class MantaError(Exception):
    """What was wrong, where, and what to do about it, in one sentence."""

    exit_status: int = 1


class UsageError(MantaError):
    """A command or a configuration that cannot be understood."""

    exit_status = 2


class NotFoundError(MantaError):
    """Something named by the user does not exist."""


class AccessError(MantaError):
    """Credentials that the other side does not accept."""


class UnavailableError(MantaError):
    """A part (cluster, storage, registry) that does not answer."""


class RefusedError(MantaError):
    """A gate said no: a failed suite, a failed comparison, a plan that cannot be scheduled."""


class UnreadableError(RefusedError):
    """A record that is damaged, or that a newer release wrote."""
