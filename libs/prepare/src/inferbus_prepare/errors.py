"""What can go wrong with a preparation."""


class PrepareError(Exception):
    """It cannot go on; the message is for people, and names the file or figure."""


class DamagedError(PrepareError):
    """A file is not what a GGUF file is: cut off, a wrong header, weights that are no numbers."""


class EngineError(PrepareError):
    """The engine refused the file, died of it, or did not answer in time. Holds its last words."""
