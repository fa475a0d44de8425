"""The form of API keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_contracts.keys import ENTROPY_BYTES, is_key, mint, prefix_of


@given(st.binary(min_size=ENTROPY_BYTES, max_size=ENTROPY_BYTES))
def test_a_minted_key_has_the_form_and_shows_only_its_prefix(entropy: bytes) -> None:
    secret = mint(entropy)
    assert is_key(secret)
    assert len(secret) == 46
    assert secret.startswith(prefix_of(secret))
    assert len(prefix_of(secret)) == 9


@pytest.mark.parametrize("secret", ["", "ib-", "sk-" + "a" * 43, "ib-" + "a" * 42, "ib-" + "+" * 43, "ib-" + "a" * 44])
def test_other_texts_are_no_keys(secret: str) -> None:
    assert not is_key(secret)


def test_entropy_is_not_cut_short() -> None:
    with pytest.raises(ValueError, match="32"):
        mint(b"short")
