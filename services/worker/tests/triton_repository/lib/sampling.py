"""TensorRT-LLM's sampling parameters as llama.cpp's. What is not said has TensorRT-LLM's defaults, which are greedy."""

import json
from typing import Any

from serving import Inputs

# (llama.cpp's name, how the tensors end)
_PENALTIES = (
    ("repeat_penalty", "repetition_penalty"),
    ("presence_penalty", "presence_penalty"),
    ("frequency_penalty", "frequency_penalty"),
)
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def body_of(inputs: Inputs, prompt: Any, count: int, prefix: str = "", runtime: str = "") -> dict[str, Any]:
    """The body of a completion. ``prefix``: of all parameters; ``runtime``: of top_k and top_p, too."""
    top_k, top_p = inputs.value(f"{prefix}{runtime}top_k", 0), inputs.value(f"{prefix}{runtime}top_p", 0.0)
    greedy = top_k == 1 or (top_k == 0 and top_p <= 0)
    body: dict[str, Any] = {
        "prompt": prompt,
        "n_predict": count,
        "temperature": 0.0 if greedy else inputs.value(f"{prefix}temperature", 1.0),
        "top_k": top_k,
        "top_p": top_p if top_p > 0 else 1.0,
        "min_p": 0.0,
        "repeat_last_n": 1 << 20,
        "samplers": ["penalties", "temperature"] if greedy else ["penalties", "temperature", "top_k", "top_p"],
        "response_fields": ["stop", "stop_type", "tokens_predicted"],
    }
    if (seed := inputs.value(f"{prefix}seed")) is not None:
        # A prompt from the cache gives the last bits of the logits differently, which a draw may notice.
        body |= {"seed": seed % 0xFFFFFFFF, "cache_prompt": greedy}
    for name, tensor in _PENALTIES:
        if (value := inputs.value(f"{prefix}{tensor}")) is not None:
            body[name] = value
    if bias := inputs.values("embedding_bias"):
        body["logit_bias"] = [[token, value] for token, value in enumerate(bias) if value]
    return body | guide_of(inputs)


def guide_of(inputs: Inputs) -> dict[str, Any]:
    """A type that is not known is ignored without a word, as the C++ backend does it."""
    guide = inputs.value("guided_decoding_guide", "")
    match inputs.value("guided_decoding_guide_type", ""):
        case "json":
            return {"grammar": "%llguidance {}\nstart: %json {}\n"}
        case "json_schema":
            # A hot model could otherwise spend its tokens on blanks.
            schema = json.dumps(json.loads(guide) | {"x-guidance": _SPACING})
            return {"grammar": f"%llguidance {{}}\nstart: %json {schema}\n"}
        case "regex":
            return {"grammar": "%llguidance {}\nstart: /" + guide.replace("/", "\\/") + "/\n"}
    return {}
