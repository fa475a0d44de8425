"""What ``synthetic`` reads and writes: a word is a token, and its own words go round in a circle."""

from inferbus_contracts.prefixes import CHUNK_BYTES
from inferbus_runtime.errors import invalid

from inferbus_worker.engine import Chat, Embed, Infer, Prompt, Source

_SENTENCE = (
    "this is synthetic text: no model made it, a timer of the load test did, one word each step, so that the platform "
    "can be measured without a GPU."
)
_WORDS = tuple(_SENTENCE.split())
TEXTS = tuple(f"{word} ".encode() for word in _WORDS)
CYCLE = len(_WORDS)
_WORD_IDS = {word: number for number, word in enumerate(_WORDS)}
# It reads every word, and writes only its own: any other has this id.
_UNKNOWN = CYCLE
_UNKNOWN_TEXT = b"? "
_ID_BYTES = 4


def texts_of(source: Prompt | Chat) -> list[str]:
    """What it reads of them."""
    if isinstance(source, Chat):
        return [message.content for message in source.messages]
    return [source.content] if isinstance(source.content, str) else []


def count_of(source: Source) -> int:
    """Input tokens: words, or the ids given."""
    if isinstance(source, Embed | Infer):
        return 0  # refused by its capabilities
    if isinstance(source, Prompt) and not isinstance(source.content, str):
        return len(source.content)
    return sum(len(text.split()) for text in texts_of(source))


def tokens_in(source: Source, input_tokens: int, found: int, chunks: int) -> int:
    """How many of ``input_tokens`` the first ``found`` of its ``chunks`` hold, as far as the size of words is even; the
    last token is always read anew."""
    if not found or isinstance(source, Embed | Infer):
        return 0
    ids = isinstance(source, Prompt) and not isinstance(source.content, str)
    size = _ID_BYTES * input_tokens if ids else sum(len(text) for text in texts_of(source))
    return min(input_tokens - 1, input_tokens * found * CHUNK_BYTES // max(size, chunks * CHUNK_BYTES))


def id_of(word: str) -> int:
    return _WORD_IDS.get(word, _UNKNOWN)


def piece_of(token: int) -> bytes:
    """Raises InferBusError for a token that does not exist."""
    if not 0 <= token <= _UNKNOWN:
        raise invalid(f"The model has no token {token}.", param="tokens")
    return _UNKNOWN_TEXT if token == _UNKNOWN else TEXTS[token]
