"""The child process that measures a Hugging Face checkpoint, and one that NVIDIA Model Optimizer quantized.

Run by :mod:`.modelopt` only, in a Python that has torch, transformers and nvidia-modelopt, and nothing of InferBus:
what it needs to know comes as one JSON object in a file, what it finds goes out as :mod:`.measure` tells it. Without
an NVIDIA GPU it runs on the CPU, but for formats that the library itself has kernels for on GPUs only.

The quantized model is measured in simulation, as the library does it: weights and inputs are rounded to what the
format can say, the arithmetic stays wide. So its distributions are the format's; its speed and memory are none to tell.
"""

import argparse
import ctypes
import json
import os
import resource
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_CALIBRATION_SEED = 1234
_SAMPLES_AT_ONCE = 16
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
_GPU_ONLY = "NVFP4"  # its block scales are made by a CUDA kernel of the library's


def main() -> None:
    parser = argparse.ArgumentParser(description="measures one checkpoint, quantized if asked")
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != options.parent:  # it was gone before the call above
        sys.exit(1)
    for name in _OFFLINE:
        os.environ[name] = "1"  # noqa: TID251  (what the libraries read when they are imported)
    task = json.loads(options.task.read_text())
    try:
        _tell(_run(task))
    except Exception as error:  # whatever it was: its words are the answer, the trace is on standard error
        _tell({"error": f"{type(error).__name__}: {error}"})
        raise


def _run(task: dict[str, Any]) -> dict[str, Any]:
    torch, transformers = import_module("torch"), import_module("transformers")
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(task["checkpoint"])
    if task["config"].startswith(_GPU_ONLY) and not torch.cuda.is_available():
        raise RuntimeError(f"{task['config']} needs an NVIDIA GPU, and PyTorch sees none here")
    where = {"device_map": "auto"} if torch.cuda.is_available() else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(task["checkpoint"], dtype="auto", **where).eval()
    exported = None
    with torch.no_grad():
        if task["config"]:
            _quantize(model, tokenizer, task)
        measured = _measure(model, tokenizer, task)
        if task["config"]:
            exported = _export(model, Path(task["export"]))
    return {"measured": measured | {"simulated": bool(task["config"])}, "export_error": exported}


def _quantize(model: Any, tokenizer: Any, task: dict[str, Any]) -> None:
    """Calibrated on what is given, or on what the model itself writes, which needs no data from anywhere."""
    mtq = import_module("modelopt.torch.quantization")
    texts = task["calibration_texts"]
    if texts:
        samples = [tokenizer(text, return_tensors="pt")["input_ids"][:, : task["calibration_tokens"]] for text in texts]
    else:
        samples = _own_samples(model, tokenizer, task["calibration_samples"], task["calibration_tokens"])
    _tell({"part": 0.3})

    def read_all(calibrated: Any) -> None:
        for sample in samples:
            calibrated(sample.to(calibrated.device), use_cache=False)

    mtq.quantize(model, getattr(mtq, task["config"]), read_all)
    _tell({"part": 0.6})


def _own_samples(model: Any, tokenizer: Any, count: int, tokens: int) -> list[Any]:
    torch = import_module("torch")
    torch.manual_seed(_CALIBRATION_SEED)
    first = next(one for one in (tokenizer.bos_token_id, tokenizer.eos_token_id, 0) if one is not None)
    samples: list[Any] = []
    while len(samples) < count:
        begun = torch.full((min(_SAMPLES_AT_ONCE, count - len(samples)), 1), first, device=model.device)
        written = model.generate(
            begun, attention_mask=torch.ones_like(begun), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            min_new_tokens=tokens - 1, max_new_tokens=tokens - 1, pad_token_id=first,
        )  # fmt: skip
        samples += [one.unsqueeze(0) for one in written]
        _tell({"part": 0.3 * len(samples) / count})
    return samples


def _measure(model: Any, tokenizer: Any, task: dict[str, Any]) -> dict[str, Any]:
    torch = import_module("torch")

    def read(text: str) -> Any:
        return tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)

    done = 0.6 if task["config"] else 0.0
    text = read(task["text"])
    positions = min(task["positions"], text.shape[1] - 1)
    began = time.monotonic()
    logs = model(text[:, :positions], use_cache=False).logits[0].float().log_softmax(-1).cpu()
    reading = positions / (time.monotonic() - began)
    top = logs.topk(min(task["top"], logs.shape[1]), dim=-1)
    ids = text[0].tolist()
    distributions = [
        {"target": ids[at + 1], "top": dict(zip(top.indices[at].tolist(), top.values[at].tolist(), strict=True))}
        for at in range(positions)
    ]
    greedy, began = [], time.monotonic()
    for number, prompt in enumerate(task["prompts"], 1):
        asked = read(prompt)
        written = model.generate(
            asked, attention_mask=torch.ones_like(asked), do_sample=False, temperature=None, top_p=None, top_k=None,
            max_new_tokens=task["tokens"], pad_token_id=tokenizer.eos_token_id or 0,
        )  # fmt: skip
        greedy.append(written[0, asked.shape[1] :].tolist())
        _tell({"part": done + (1 - done) * number / len(task["prompts"])})
    count = sum(map(len, greedy))
    return {
        "text_ids": ids,
        "vocabulary": logs.shape[1],
        "greedy": greedy,
        "distributions": distributions,
        "reading_rate": reading,
        "writing_rate": count / max(time.monotonic() - began, 1e-3),
        "rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _export(model: Any, folder: Path) -> str:
    """Empty, or why there is no checkpoint of it: not every shape can be packed in every format."""
    try:
        import_module("modelopt.torch.export").export_hf_checkpoint(model, export_dir=folder)
    except (NotImplementedError, ValueError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _tell(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
