from hypothesis import given
from hypothesis import strategies as st
from inferbus_contracts.ids import parse_uuid, uuid7, uuid_text
from inferbus_contracts.subjects import name_of_token, subject_token, token_subject


@given(st.text(min_size=1))
def test_a_name_comes_back_from_its_token_whatever_it_holds(name: str) -> None:
    name = name.encode(errors="replace").decode()
    token = subject_token(name)
    assert name_of_token(token) == name
    assert not set(token) & set(".*> \t\r\n")


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_two_pairs_of_names_never_share_a_subject(a: str, b: str, c: str, d: str) -> None:
    a, b, c, d = (name.encode(errors="replace").decode() for name in (a, b, c, d))
    assert (token_subject(a, b) == token_subject(c, d)) == ((a, b) == (c, d))


@given(st.integers(0, (1 << 48) - 1), st.binary(min_size=10, max_size=16))
def test_a_request_id_is_a_version_7_uuid_in_order_of_time(unix_ms: int, entropy: bytes) -> None:
    request_id = uuid7(unix_ms, entropy)
    text = uuid_text(request_id)
    assert parse_uuid(text) == request_id == parse_uuid(request_id.hex())
    assert text[14] == "7"
    assert text[19] in "89ab"
    if unix_ms:
        assert uuid7(unix_ms - 1, entropy) < request_id
