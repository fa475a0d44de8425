"""How long an answer will be, as far as the answers before it tell."""

from collections import OrderedDict

UNKNOWN_TOKENS = 256
"""What is reckoned with while nothing is known of a model."""
_MODELS = 4096
_ENOUGH = 20
# Of the past: after so many answers more it counts for a third.
_MEMORY = 500.0


class OutputMeans:
    """Mean output tokens of each model's requests, of the last 4096 models that answered."""

    def __init__(self) -> None:
        # model -> [tokens, requests that ended], both fading.
        self._sums: OrderedDict[str, list[float]] = OrderedDict()

    def told(self, model: str, output_tokens: int, ended: int) -> None:
        """What a worker of ``model`` made since it was heard last, and how many requests ended there."""
        if not output_tokens and not ended:
            return
        sums = self._sums.get(model)
        if sums is None:
            sums = self._sums[model] = [0.0, 0.0]
            if len(self._sums) > _MODELS:
                self._sums.popitem(last=False)
        self._sums.move_to_end(model)
        fade = max(0.0, 1.0 - ended / _MEMORY)
        sums[0] = sums[0] * fade + output_tokens
        sums[1] = sums[1] * fade + ended

    def expected(self, model: str, at_most: int | None) -> int:
        """Output tokens of one more request, which asks for no more than ``at_most`` (None: any number)."""
        sums = self._sums.get(model)
        mean = round(sums[0] / sums[1]) if sums is not None and sums[1] >= _ENOUGH else UNKNOWN_TOKENS
        return max(1, mean if at_most is None else min(mean, at_most))
