"""What the engine made of a file: plain values, kept as JSON. Pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Distribution:
    """The next token's: the natural logarithms of its largest probabilities, by token id; the tail is what is left.

    ``target``: the token that the text goes on with.
    """

    target: int
    top: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Measured:
    """``text_ids``: the held-out text's tokens. ``greedy``: token ids by prompt. Rates: tokens/s of one request.

    ``rss_bytes``: the most that the engine's process had in memory, the file's mapped pages included. ``simulated``:
    its arithmetic was wider than it will be, so that rates and memory say nothing of it.
    """

    text_ids: tuple[int, ...]
    vocabulary: int
    greedy: tuple[tuple[int, ...], ...]
    distributions: tuple[Distribution, ...]
    reading_rate: float
    writing_rate: float
    rss_bytes: int
    simulated: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Measured":
        """Of :meth:`as_dict`, also after JSON has made texts of its keys. Raises KeyError, TypeError or ValueError."""
        return cls(
            text_ids=tuple(value["text_ids"]),
            vocabulary=int(value["vocabulary"]),
            greedy=tuple(tuple(ids) for ids in value["greedy"]),
            distributions=tuple(
                Distribution(int(one["target"]), {int(token): float(log) for token, log in one["top"].items()})
                for one in value["distributions"]
            ),
            reading_rate=float(value["reading_rate"]),
            writing_rate=float(value["writing_rate"]),
            rss_bytes=int(value["rss_bytes"]),
            simulated=bool(value.get("simulated", False)),
        )
