"""The exception for what a user can mend."""


class UserError(Exception):
    """A user's error: its text is one line that says what, where, and the way out.

    The outermost ``main`` prints it without a traceback and exits with code 2.
    """


class StoppedError(UserError):
    """A signal ended the work, and what was done is kept; often another rank's error is the cause.

    Parameters
    ----------
    again
        Whether the job is to start again: at the end of its time, not where somebody cancelled it.
    """

    def __init__(self, what: str, *, again: bool = False) -> None:
        super().__init__(f"{what}; what was done is kept, go on from there with python -m tlbatch.submit RUN")
        self.what, self.again = what, again
