"""Models that write no text, for the same repository: ``tabular``, ``shout`` and ``vision``, as their files say.

Variants, which cannot be served: ``many`` (decoupled), ``stateful`` (with sequences). ``queued``: shout that lets one
call wait.
"""

from services.worker.tests.triton_repository.tensors import tensors

_TABULAR = (("FLOWERS FP32 4",), ("SPECIES INT64 1", "PROBABILITIES FP32 3"))
_SHOUT = (("TEXTS STRING -1", "SUFFIX? STRING 1"), ("SHOUTED STRING -1",))
_VISION = (("IMAGE FP32 3,224,224",), ("SCORES FP32 1000", "LARGE FP32 3,448,448"))
_QUEUE = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }\n"
_SEQUENCES = "sequence_batching { max_sequence_idle_microseconds: 5000000 }\n"

CONFIGS = {
    "tabular": ("tabular", _TABULAR, 64, ""),
    "shout": ("shout", _SHOUT, 0, ""),
    "vision": ("vision", _VISION, 0, ""),
    "many": ("shout", _SHOUT, 0, "model_transaction_policy { decoupled: true }\n"),
    "stateful": ("shout", _SHOUT, 0, _SEQUENCES),
    "queued": ("shout", _SHOUT, 1, _QUEUE),
}
"""Name: (code, (inputs, outputs), max_batch_size, what else its config.pbtxt says)."""


def config(name: str) -> str:
    _, (inputs, outputs), batch, more = CONFIGS[name]
    return (
        f'backend: "python"\nmax_batch_size: {batch}\n{tensors("input", chr(10).join(inputs))}'
        f"{tensors('output', chr(10).join(outputs))}instance_group [ {{ count: 1 kind: KIND_CPU }} ]\n{more}"
    )
