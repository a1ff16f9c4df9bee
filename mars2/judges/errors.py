"""The one public error of judges and metrics."""


class JudgeError(RuntimeError):
    """A judge, or another model that scores, cannot be loaded or used."""
