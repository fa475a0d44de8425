"""What cannot be worked out, and why. ``param`` names what was asked for, as the caller named it."""


class SizingError(ValueError):
    """The question is at fault. ``param``: which part of it, as "gpu" or "config.hidden_size"."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class DoesNotFitError(SizingError):
    """No number of these GPUs that was tried holds it, or none meets the targets. The message says what would."""
