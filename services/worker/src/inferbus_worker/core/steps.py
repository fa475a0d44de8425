"""What is left of an engine's step without some of its generations."""

from collections.abc import Container

from inferbus_worker.engine import Step


def without(step: Step, keys: Container[bytes]) -> Step:
    """All of ``step`` but what is of ``keys``."""
    rest = Step(step.time_us)
    position = 0
    for number, (key, count, text) in enumerate(zip(step.keys, step.counts, step.texts, strict=True)):
        ids = step.token_ids[position : position + count]
        position += count
        if key in keys:
            continue
        if number in step.logprobs:
            rest.logprobs[len(rest.keys)] = step.logprobs[number]
        rest.keys.append(key)
        rest.counts.append(count)
        rest.token_ids += ids
        rest.texts.append(text)
    rest.finished = [one for one in step.finished if one.key not in keys]
    rest.embeddings = [one for one in step.embeddings if one.key not in keys]
    rest.outputs = [one for one in step.outputs if one.key not in keys]
    return rest
