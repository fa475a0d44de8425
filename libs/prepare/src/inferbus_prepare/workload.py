"""What a file is measured on. The prompts and the text were written for this, so no model was trained on them."""

from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived",
    "Question: What is the largest planet of the solar system?\nAnswer:",
    "Here is a list of five fruits:\n1.",
    "def fibonacci(n):\n",
    "Dear Sir or Madam,\n\nI am writing to",
    "The main difference between a plant and an animal is that",
    "To make a cup of tea, first",
    "Water freezes at 0 degrees Celsius and boils at",
    "SELECT name, age FROM people WHERE",
    "The three primary colours are red,",
    "In 1969, for the first time in history,",
    "Translate to French: Good morning, my friend.\nFrench:",
    "A good teacher is someone who",
    "import json\n\nwith open(",
    "The weather today is sunny, so we decided to",
)


@dataclass(frozen=True, slots=True)
class Workload:
    """``prompts``: how many, at most 16, each continued greedily by ``tokens``. ``positions``: of the held-out text at
    which the next token's distribution is taken, its ``top`` largest probabilities. ``threads``: 0 for all cores."""

    prompts: int = len(PROMPTS)
    tokens: int = 32
    positions: int = 256
    top: int = 1000
    threads: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def held_out_text() -> str:
    return files("inferbus_prepare").joinpath("held_out.txt").read_text("utf-8")
