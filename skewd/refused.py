"""A command that cannot be carried out, whichever module finds that out."""


class RefusedError(Exception):
    """The message says why and what to do; ``code`` is the command's exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
