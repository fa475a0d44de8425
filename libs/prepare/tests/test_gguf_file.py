"""Damaged files are found before an engine loads them. Small files, made here."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inferbus_prepare.errors import DamagedError, PrepareError
from inferbus_prepare.gguf_file import fault_of, kinds_of
from inferbus_prepare.header import read_header
from inferbus_prepare.quantize import PRECISIONS, is_already, quantize

Damage = Callable[[bytearray], None]
WIDE = {"token_embd.weight": (64, 64), "blk.0.attn_q.weight": (64, 64), "blk.0.ffn_up.weight": (96, 64)}


def write_model(path: Path, tied: bool = True) -> Path:
    """A file of a few small tensors, in F32."""
    random = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "llama")
    for name, number in (("block_count", 1), ("embedding_length", 64), ("attention.head_count", 4)):
        writer.add_uint32(f"llama.{name}", number)
    writer.add_uint32("llama.attention.head_count_kv", 2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ü"])
    writer.add_chat_template("{{ messages }}")
    for name, shape in WIDE.items():
        writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32))
    if not tied:
        writer.add_tensor("output.weight", random.standard_normal((64, 64), dtype=np.float32))
    writer.add_tensor("blk.0.odd.weight", random.standard_normal((4, 40), dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.fixture
def damaged(model: Path, tmp_path: Path) -> Callable[[Damage], Path]:
    def make(damage: Damage) -> Path:
        content = bytearray(model.read_bytes())
        damage(content)
        path = tmp_path / "damaged.gguf"
        path.write_bytes(content)
        return path

    return make


def test_a_whole_file_has_no_fault(model: Path) -> None:
    assert fault_of(model) is None
    header = read_header(model)
    assert header.architecture == "llama"
    assert header.size_bytes <= model.stat().st_size
    assert header.kv_bytes_per_token() == 1 * 2 * (16 + 16) * 4


def test_a_file_that_is_cut_off_says_how_much_is_missing(damaged: Callable[[Damage], Path]) -> None:
    def cut(content: bytearray) -> None:
        del content[-5000:]

    assert "5,000 bytes are missing" in (fault_of(damaged(cut)) or "")


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, b"GGML", "no GGUF"),
        (4, b"\x09\0\0\0", "version 9"),
        (8, b"\xff" * 8, "tensors"),
        (16, b"\xff" * 8, "fields"),
    ],
)
def test_a_wrong_header_is_named(damaged: Callable[[Damage], Path], at: int, value: bytes, said: str) -> None:
    def overwrite(content: bytearray) -> None:
        content[at : at + len(value)] = value

    assert said in (fault_of(damaged(overwrite)) or "")


def test_an_unknown_type_and_a_tensor_outside_are_named(damaged: Callable[[Damage], Path]) -> None:
    name = b"blk.0.attn_q.weight"

    def unknown(content: bytearray) -> None:
        at = content.index(name) + len(name) + 4 + 2 * 8
        content[at : at + 4] = (77).to_bytes(4, "little")

    def outside(content: bytearray) -> None:
        at = content.index(name) + len(name) + 4 + 2 * 8 + 4
        content[at : at + 8] = (1 << 40).to_bytes(8, "little")

    assert "unknown type 77" in (fault_of(damaged(unknown)) or "")
    assert "cut off" in (fault_of(damaged(outside)) or "")


@pytest.mark.parametrize("precision", ["f32", "f16", "bf16", "q8_0", "q4_1"])
def test_weights_that_are_no_numbers_are_found(model: Path, tmp_path: Path, precision: str) -> None:
    path = tmp_path / "quantized.gguf"
    quantize(model, path, precision)
    assert fault_of(path) is None
    tensor = next(one for one in read_header(path).tensors if one.name == "blk.0.ffn_up.weight")
    content = bytearray(path.read_bytes())
    # All ones are a NaN in each of these types, and in a block's scale.
    content[tensor.offset : tensor.offset + 4] = b"\xff" * 4
    path.write_bytes(content)
    assert "blk.0.ffn_up.weight" in (fault_of(path) or "")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_written_over_a_header_ends_in_an_answer(model: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(model.read_bytes())
    header = content.index(b"output_norm.weight") + 60
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header))] = data.draw(st.integers(0, 255))
    path = tmp_path / "fuzzed.gguf"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    assert fault_of(path) is None or isinstance(fault_of(path), str)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_quantized_file_is_near_the_original(model: Path, tmp_path: Path, precision: str) -> None:
    path = tmp_path / f"{precision}.gguf"
    parts: list[float] = []
    quantize(model, path, precision, parts.append)
    assert parts[-1] == 1.0
    assert parts == sorted(parts)
    assert is_already(read_header(path), precision)
    before, after = gguf.GGUFReader(model), gguf.GGUFReader(path)
    for one, other in zip(before.tensors, after.tensors, strict=True):
        values = gguf.dequantize(other.data, other.tensor_type)
        error = np.abs(values - one.data).max() / np.abs(one.data).max()
        assert error < {"q5_1": 0.04, "q5_0": 0.07, "q4_1": 0.08, "q4_0": 0.13}.get(precision, 0.01), one.name
    assert after.fields["tokenizer.ggml.tokens"].contents() == ["a", "b", "ü"]
    assert after.fields["tokenizer.chat_template"].contents() == "{{ messages }}"


def test_what_llama_cpp_keeps_wide_stays_wide(tmp_path: Path) -> None:
    kinds = {}
    for tied in (True, False):
        path = tmp_path / f"{tied}.gguf"
        quantize(write_model(tmp_path / f"wide-{tied}.gguf", tied), path, "q4_0")
        kinds[tied] = {one.name: one.kind.name for one in read_header(path).tensors}
    assert kinds[True]["output_norm.weight"] == "F32"
    assert kinds[True]["blk.0.odd.weight"] == "F16", "its rows are no whole blocks"
    assert kinds[True]["blk.0.ffn_up.weight"] == "Q4_0"
    assert kinds[True]["token_embd.weight"] == "Q8_0", "it is the output matrix, too"
    assert (kinds[False]["token_embd.weight"], kinds[False]["output.weight"]) == ("Q4_0", "Q8_0")


def test_a_failed_write_leaves_nothing(model: Path, tmp_path: Path) -> None:
    def full(part: float) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        quantize(model, tmp_path / "out.gguf", "q8_0", full)
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_tensor_that_stays_as_it_is_is_copied(model: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.gguf", tmp_path / "twice.gguf"
    quantize(model, once, "q4_1")
    quantize(once, twice, "q4_1")
    assert once.read_bytes() == twice.read_bytes()
    assert kinds_of(read_header(once)).keys() == {"q4_1", "q8_0", "f16", "f32"}


def test_a_damaged_source_is_not_quantized(damaged: Callable[[Damage], Path], tmp_path: Path) -> None:
    def cut(content: bytearray) -> None:
        del content[40:]

    with pytest.raises(DamagedError):
        quantize(damaged(cut), tmp_path / "out.gguf", "q8_0")
    assert issubclass(DamagedError, PrepareError)
