"""Secrets are made once and stay with their owner."""

import stat
from pathlib import Path

import pytest
from inferbus_contracts.keys import is_key
from inferbus_stack.home import StackError
from inferbus_stack.secrets import SecretFolder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def everything(folder: SecretFolder) -> tuple[str, ...]:
    return (
        folder.password("clickhouse-admin"),
        folder.api_key("api-key"),
        folder.cipher_key("jetstream"),
        folder.nkey("edge-0").seed,
        folder.nkey("edge-0").public,
    )


def test_a_second_start_reads_what_the_first_has_made(tmp_path: Path) -> None:
    assert everything(SecretFolder(tmp_path / "s")) == everything(SecretFolder(tmp_path / "s"))


def test_no_two_are_alike(tmp_path: Path) -> None:
    one, other = everything(SecretFolder(tmp_path / "1")), everything(SecretFolder(tmp_path / "2"))
    assert len({*one, *other}) == len(one) + len(other)


def test_only_the_owner_can_read_them_even_if_someone_opened_them(tmp_path: Path) -> None:
    everything(SecretFolder(tmp_path / "s"))
    (tmp_path / "s").chmod(0o755)
    (tmp_path / "s" / "api-key").chmod(0o644)
    everything(SecretFolder(tmp_path / "s"))
    assert mode(tmp_path / "s") == 0o700
    assert {mode(path) for path in (tmp_path / "s").iterdir()} == {0o600}


def test_they_have_the_forms_that_their_readers_expect(tmp_path: Path) -> None:
    folder = SecretFolder(tmp_path / "s")
    assert is_key(folder.api_key("api-key"))
    assert folder.cipher_key("jetstream")[0].isalpha()
    assert folder.nkey("edge-0").seed.startswith("SU")
    assert folder.nkey("edge-0").public.startswith("U")
    assert folder.nkey("edge-0").seed not in repr(folder.nkey("edge-0"))


def test_an_emptied_file_is_a_clear_error_and_not_a_new_secret(tmp_path: Path) -> None:
    SecretFolder(tmp_path / "s").password("rpc-token")
    (tmp_path / "s" / "rpc-token").write_text("")
    with pytest.raises(StackError, match="rpc-token is empty"):
        SecretFolder(tmp_path / "s").password("rpc-token")
