"""The exception for what a user can mend."""


class UserError(Exception):
    """A user's error: its text is one line that says what, where, and the way out.

    The outermost ``main`` prints it without a traceback and exits with code 2.
    """


class StoppedError(UserError):
    """A signal ended the work; often another rank's error is the cause."""
