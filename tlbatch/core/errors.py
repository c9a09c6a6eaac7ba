"""Exceptions for errors that a user can fix."""


class UserError(Exception):
    """An error that the user can fix; its text is one line: where, what is wrong, and the way out.

    The outermost ``main`` prints it without a traceback and exits with code 2.
    """


class StoppedError(UserError):
    """A signal ended the work, which has been saved; often another rank's error is the cause.

    Parameters
    ----------
    again
        Whether to requeue the job: when its time ran out, but not when somebody cancelled it.
    """

    def __init__(self, what: str, *, again: bool = False) -> None:
        super().__init__(f"{what}; progress was saved, resume with python -m tlbatch.submit RUN")
        self.what, self.again = what, again
