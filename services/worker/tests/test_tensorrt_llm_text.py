"""Text out of token ids: with the real tokenizer of a model that is installed, and one of the other kind made here."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_worker.engine import EngineStatistics
from inferbus_worker.engines.tensorrt_llm_stats import Forgotten, Iteration, KvEvents, Removed, Stored
from inferbus_worker.engines.tensorrt_llm_text import (
    Detokenizer,
    Encoder,
    UnknownTokenizerError,
    Vocabulary,
    vocabulary_of,
)
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers


def beside(name: str) -> ModuleType:
    """A module of this folder."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sentence_piece() -> Tokenizer:
    """As Llama 2 and Mistral have it: spaces are a character, what is not in the vocabulary is bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    named = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=named, show_progress=False)
    tokenizer.train_from_iterator(["The sea is wide and deep. " * 3, "def read(text): return text"], trainer)
    # Training calls all of them special; in real files the bytes are plain tokens.
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 3]
    return Tokenizer.from_str(json.dumps(content))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = beside("smollm2_tokenizer").write(tmp_path_factory.mktemp("smollm2"))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def words(byte_level: Tokenizer) -> Vocabulary:
    return vocabulary_of(byte_level.to_str())


@pytest.fixture(scope="module")
def pieces() -> tuple[Tokenizer, Vocabulary]:
    tokenizer = sentence_piece()
    return tokenizer, vocabulary_of(tokenizer.to_str())


def grouped(ids: list[int], sizes: list[int]) -> list[list[int]]:
    groups, at = [], 0
    for size in sizes:
        groups.append(ids[at : at + size])
        at += size
    return [*groups, ids[at:]]


def streamed(words: Vocabulary, ids: list[int], sizes: list[int]) -> tuple[list[str], str]:
    detokenizer = Detokenizer(words)
    return [detokenizer.feed(group) for group in grouped(ids, sizes)], detokenizer.flush()


SIZES = st.lists(st.integers(0, 5), max_size=20)
ANY_IDS = st.lists(st.integers(0, 49_151), max_size=40)


@given(ids=ANY_IDS, sizes=SIZES)
def test_pieces_joined_are_the_whole(
    byte_level: Tokenizer, words: Vocabulary, ids: list[int], sizes: list[int]
) -> None:
    """Of any ids, also such as no text has: what comes is what the tokenizer itself makes of all of them."""
    parts, rest = streamed(words, ids, sizes)
    assert "".join(parts) + rest == byte_level.decode(ids, skip_special_tokens=True)
    assert words.text(ids).decode(errors="replace") == "".join(parts) + rest


@given(text=st.text(max_size=60), sizes=SIZES)
def test_a_text_comes_back_character_by_character(
    byte_level: Tokenizer, words: Vocabulary, text: str, sizes: list[int]
) -> None:
    ids = byte_level.encode(text).ids
    parts, rest = streamed(words, ids, sizes)
    for part in parts:
        part.encode()
    if byte_level.decode(ids) == text:  # a few characters are not in its vocabulary's bytes
        assert ("".join(parts), rest) == (text, "")
        so_far = ""
        for part in parts:
            so_far += part
            assert text.startswith(so_far)


@given(text=st.text(max_size=60), sizes=SIZES)
def test_so_does_one_of_sentence_pieces(pieces: tuple[Tokenizer, Vocabulary], text: str, sizes: list[int]) -> None:
    tokenizer, words = pieces
    ids = tokenizer.encode(text).ids
    parts, rest = streamed(words, ids, sizes)
    # Its decoder leaves out the space that its normalizer puts before the first word: in a stream, a prompt is before.
    assert ("".join(parts) + rest).removeprefix(" ") == tokenizer.decode(ids)


def test_special_tokens_are_named_in_prompts_and_nothing_in_outputs(byte_level: Tokenizer, words: Vocabulary) -> None:
    ids = byte_level.encode("a<|im_end|>b").ids
    assert b"".join(words.pieces[token] for token in ids) == b"a<|im_end|>b"
    assert words.text(ids) == b"ab"


def test_ids_that_only_the_model_has_are_empty(byte_level: Tokenizer) -> None:
    wider = vocabulary_of(byte_level.to_str(), 49_280)
    assert len(wider.texts) == len(wider.pieces) == 49_280
    assert wider.texts[49_279] == b""


def test_a_tokenizer_of_words_is_refused() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(UnknownTokenizerError, match="WordPiece"):
        vocabulary_of(tokenizer.to_str())
    with pytest.raises(UnknownTokenizerError, match="no decoder"):
        vocabulary_of(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str())


def test_added_tokens_are_taken_by_their_text() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "Ġ": 1}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_tokens(["<tool_call>", "ünïcode"])
    words = vocabulary_of(tokenizer.to_str())
    assert words.texts == [b"a", b" ", b"<tool_call>", "ünïcode".encode()]


def test_an_encoder_has_settings_of_its_own(byte_level: Tokenizer) -> None:
    byte_level.enable_truncation(2)
    try:
        encoder = Encoder(byte_level)
        assert len(encoder.encode("one two three four five")) == 5
        assert encoder.encode("<|im_end|>") == [2]
        assert 2 not in encoder.encode("<|im_end|>", parse_special=False)
    finally:
        byte_level.no_truncation()


# --- what the engine tells of itself ----------------------------------------------------------------------------------


def test_statistics_of_an_iteration() -> None:
    told = {
        "iter": 7, "iterLatencyMS": 12.5, "numActiveRequests": 3, "numQueuedRequests": 1,
        "kvCacheStats": {"usedNumBlocks": 5, "maxNumBlocks": 9, "reusedBlocks": 2, "missedBlocks": 4},
        "specDecodingStats": {"numDraftTokens": 6, "numAcceptedTokens": 4},
    }  # fmt: skip
    first = Iteration().next(told)
    assert first == Iteration(7, 0.0125, 3, 1, 5, 9, 2, 6, 4)
    assert first.next(told | {"iter": 8}) == Iteration(8, 0.0125, 3, 1, 5, 9, 2, 12, 8)
    assert first.statistics(4, 2, 32) == EngineStatistics(4, 2, 3, 1, 9, 5, 32, 2, 0.0125, 6, 4)


def test_an_idle_engine_holds_nothing_though_it_no_longer_says_so() -> None:
    told = {"numActiveRequests": 1, "numQueuedRequests": 0, "kvCacheStats": {"usedNumBlocks": 5, "maxNumBlocks": 9}}
    idle = Iteration().next(told).statistics(0, 0, 32)
    assert (idle.engine_running, idle.kv_blocks_used, idle.kv_blocks_total) == (0, 0, 9)


def test_what_an_iteration_does_not_say_is_not_known() -> None:
    iteration = Iteration().next({"iter": 1, "kvCacheStats": None})
    assert iteration == Iteration(1)
    assert iteration.statistics(0, 0, None) == EngineStatistics(0, 0)


def stored(number: int, hashes: list[int], tokens: int = 4, **more: object) -> dict[str, object]:
    blocks = [{"block_hash": one, "tokens": [{"token_id": one % 100}] * tokens} for one in hashes]
    return {"event_id": number, "data": {"type": "stored", "parent_hash": None, "blocks": blocks}} | more


def removed(number: int, *hashes: int) -> dict[str, object]:
    return {"event_id": number, "data": {"type": "removed", "block_hashes": list(hashes)}}


def test_events_are_of_whole_blocks() -> None:
    events = KvEvents(4)
    assert events.take(stored(0, [1, -2])) == [Stored(None, ((1, (1,) * 4), (2**64 - 2, (98,) * 4)))]
    assert events.take(stored(1, [5], tokens=3)) == []
    assert events.take(removed(2, 5)) == [], "nobody knew of it"
    assert events.take(removed(3, -2, 1)) == [Removed((2**64 - 2, 1))]
    assert events.take({"event_id": 4, "data": {"type": "updated", "block_hash": 1}}) == []


def test_a_gap_is_told() -> None:
    events = KvEvents(4)
    events.take(stored(0, [1]))
    assert events.take(stored(2, [3])) == [Forgotten(), Stored(None, ((3, (3,) * 4),))]


def test_only_the_longest_window_is_told() -> None:
    events = KvEvents(4)
    for number, window in enumerate((128, 4096)):
        data = {"type": "created", "num_blocks_per_cache_level": [9, 0]}
        assert events.take({"event_id": number, "window_size": window, "data": data}) == [Forgotten()]
    assert events.take(stored(2, [1], window_size=128)) == []
    assert events.take(stored(3, [1], window_size=4096)) == [Stored(None, ((1, (1,) * 4),))]
