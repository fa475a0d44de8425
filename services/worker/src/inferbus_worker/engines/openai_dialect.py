"""What servers understand beyond OpenAI's API, and what they tell beyond it.

Sources: vLLM 0.32 and llama.cpp b11549 by what they answer; SGLang's and trtllm-serve's request models (the latter
refuses any field that it does not know). A managed API, or one that nobody here knows, is ``plain``: it is sent what
OpenAI documents and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Name = Literal["plain", "vllm", "sglang", "tensorrt_llm", "llama_cpp"]
Continuing = Literal["final_message", "prefill", "none"]
Regex = Literal["structured_outputs", "regex", "response_format", "none"]
Tokenizer = Literal["vllm", "llama_cpp", "none"]

_SEEDS = 2**63
"""OpenAI's seeds are signed 64-bit integers, and one below zero may mean "random"."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """``sampling``: our name of a parameter that OpenAI does not have, and its name there. ``always``: sent with each
    generation. ``stream_options``: sent with each stream. ``continuing``: how a chat's last message is gone on with.
    ``says_stop``: the end of an answer names the stop string that it met. ``salts``: it keeps cached prefixes of
    different salts apart; if it does not, ``uncached`` makes it look for none. ``seeds``: it takes seeds below this
    number. ``strict_tools``: arguments keep to their schema only if each tool says ``strict``. ``lark``: it may take
    grammars of LLGuidance, if it was built with that library.
    """

    name: Name
    sampling: Mapping[str, str] = field(default_factory=dict)
    always: Mapping[str, Any] = field(default_factory=dict)
    stream_options: Mapping[str, Any] = field(default_factory=dict)
    continuing: Continuing = "none"
    says_stop: bool = False
    salts: bool = False
    uncached: Mapping[str, Any] = field(default_factory=dict)
    regex: Regex = "none"
    tokenizer: Tokenizer = "none"
    seeds: int = _SEEDS
    strict_tools: bool = False
    lark: bool = False


_SAME = {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty"}
_RUNNING_USAGE = {"continuous_usage_stats": True}

DIALECTS: Mapping[str, Dialect] = {
    "plain": Dialect("plain"),
    "vllm": Dialect(
        "vllm",
        sampling=_SAME,
        always={"return_token_ids": True},
        stream_options=_RUNNING_USAGE,
        continuing="final_message",
        says_stop=True,
        salts=True,
        regex="structured_outputs",
        tokenizer="vllm",
        strict_tools=True,
    ),
    "sglang": Dialect(
        "sglang",
        sampling=_SAME,
        stream_options=_RUNNING_USAGE,
        continuing="final_message",
        says_stop=True,
        salts=True,
        regex="regex",
        strict_tools=True,
    ),
    "tensorrt_llm": Dialect(
        "tensorrt_llm",
        sampling=_SAME,
        stream_options=_RUNNING_USAGE,
        says_stop=True,
        salts=True,
        regex="response_format",
    ),
    "llama_cpp": Dialect(
        "llama_cpp",
        sampling={"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repeat_penalty"},
        # Its penalties see the last 64 tokens unless told; its timings count the tokens so far, in every event.
        always={"repeat_last_n": 1 << 20, "timings_per_token": True},
        continuing="prefill",
        # It says which stop string it met, but loses the text that it held for another when the limit is reached.
        uncached={"cache_prompt": False},
        tokenizer="llama_cpp",
        seeds=2**32 - 1,  # the largest one means "random"
        lark=True,
    ),
}

_OWNERS = {"vllm": "vllm", "sglang": "sglang", "tensorrt_llm": "tensorrt_llm", "llamacpp": "llama_cpp"}


def dialect_of(owner: str) -> Dialect:
    """By the ``owned_by`` of its models."""
    return DIALECTS[_OWNERS.get(owner, "plain")]
