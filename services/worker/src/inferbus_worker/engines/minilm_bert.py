"""The forward pass of BERT as a sentence encoder, in numpy: layers, mean over the tokens, length 1."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Rows of the widest layer for which GELU is computed at once, so that its eight passes find them in the core's cache.
_GELU_ROWS = 32


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """``weight`` is [in, out]."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    scale: Floats
    shift: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """``attend``: query, key and value side by side; the query is already divided by the root of the head's size."""

    attend: Dense
    attended: Dense
    attended_norm: Norm
    widen: Dense
    narrow: Dense
    narrow_norm: Norm


@dataclass(frozen=True, slots=True, eq=False)
class Bert:
    """The weights. ``words`` is [vocabulary, hidden], ``positions`` [places, hidden] (with the token type's vector)."""

    words: Floats
    positions: Floats
    norm: Norm
    layers: tuple[Layer, ...]
    heads: int
    epsilon: float


def sentence_vectors(bert: Bert, inputs: Sequence[Sequence[int]]) -> Floats:
    """One vector of length 1 for each input, [inputs, hidden]; shorter inputs are padded to the longest.

    An input's vector depends on its neighbours by rounding only (1e-6). Every input has at least one id.
    """
    length = max(len(ids) for ids in inputs)
    ids = np.zeros((len(inputs), length), np.intp)
    mask = np.zeros((len(inputs), length), np.float32)
    for row, one in enumerate(inputs):
        ids[row, : len(one)] = one
        mask[row, : len(one)] = 1.0
    tokens = _forward(bert, ids, mask)
    mean: Floats = np.einsum("nlh,nl->nh", tokens, mask) / mask.sum(axis=1, keepdims=True)
    mean /= np.sqrt(np.einsum("nh,nh->n", mean, mean))[:, None]
    return mean


def _forward(bert: Bert, ids: NDArray[np.intp], mask: Floats) -> Floats:
    """The last layer's output: [inputs, length, hidden]."""
    count, length = ids.shape
    x: Floats = (bert.words[ids] + bert.positions[:length]).reshape(count * length, -1)
    _normalize(x, bert.norm, bert.epsilon)
    # Padded places are out of reach of every softmax; without padding there is nothing to add.
    barrier = None if mask.all() else ((mask - 1.0) * np.float32(1e9))[:, None, None, :]
    for layer in bert.layers:
        joined = _dense(x, layer.attend).reshape(count, length, 3, bert.heads, -1)
        x += _dense(_attend(joined, barrier), layer.attended)
        _normalize(x, layer.attended_norm, bert.epsilon)
        wide = _dense(x, layer.widen)
        gelu(wide)
        x += _dense(wide, layer.narrow)
        _normalize(x, layer.narrow_norm, bert.epsilon)
    return x.reshape(count, length, -1)


def _attend(joined: Floats, barrier: Floats | None) -> Floats:
    """[inputs, length, 3, heads, size] to [inputs * length, heads * size]."""
    count, length, _, heads, size = joined.shape
    query, key, value = joined.transpose(2, 0, 3, 1, 4)
    scores: Floats = query @ key.swapaxes(-1, -2)
    if barrier is not None:
        scores += barrier
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed: Floats = scores @ value
    return mixed.swapaxes(1, 2).reshape(count * length, heads * size)


def _dense(x: Floats, layer: Dense) -> Floats:
    y: Floats = x @ layer.weight
    y += layer.bias
    return y


def _normalize(x: Floats, norm: Norm, epsilon: float) -> None:
    """Layer normalisation of each row, in place."""
    x -= x.mean(axis=1, keepdims=True)
    variance = np.einsum("th,th->t", x, x) / np.float32(x.shape[1])
    x /= np.sqrt(variance + np.float32(epsilon))[:, None]
    x *= norm.scale
    x += norm.shift


# erf(x) = x P(x²) / Q(x²) on [-4, 4]; beyond, it is 1 to 32 bits. Highest power first. The coefficients are those of
# Eigen and XLA. numpy has no erf, and the tanh that is often put in its place is off by 5e-4.
_ERF_P = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05, -7.34990630326855e-04,
    -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_Q = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02,
)  # fmt: skip


def gelu(x: Floats) -> None:
    """x (1 + erf(x / √2)) / 2, in place; ``x`` is [rows, columns]."""
    for start in range(0, len(x), _GELU_ROWS):
        rows = x[start : start + _GELU_ROWS]
        z = rows * np.float32(0.5**0.5)
        np.clip(z, -4.0, 4.0, out=z)
        square = z * z
        z *= _polynomial(square, _ERF_P)
        z /= _polynomial(square, _ERF_Q)
        z += np.float32(1.0)
        z *= np.float32(0.5)
        rows *= z


def _polynomial(x: Floats, coefficients: Sequence[float]) -> Floats:
    result = x * np.float32(coefficients[0])
    for coefficient in coefficients[1:-1]:
        result += np.float32(coefficient)
        result *= x
    result += np.float32(coefficients[-1])
    return result
