"""The local authority: what it makes, what it keeps, and what it makes anew."""

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from inferbus_runtime import tls
from inferbus_stack.certificates import Authority, Wanted
from inferbus_stack.home import Home, StackError
from inferbus_stack.services import StackOptions, certificates

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
EDGE = Wanted("edge-0", ("localhost", "127.0.0.1"))


def made(folder: Path, now: datetime = NOW, wanted: Wanted = EDGE) -> x509.Certificate:
    files = Authority(folder, now).certificates([wanted])[wanted.name]
    tls.read(files)  # OpenSSL takes the pair and the authority
    return x509.load_pem_x509_certificate(files.cert.read_bytes())


def test_a_certificate_says_which_process_it_is_and_where_it_is_reached(tmp_path: Path) -> None:
    certificate = made(tmp_path / "tls")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "edge-0"
    assert names.get_values_for_type(x509.DNSName) == ["edge-0", "localhost"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


def test_a_stack_has_one_for_each_process_and_strangers_see_none_that_may_call(tmp_path: Path) -> None:
    options = StackOptions(
        Home(tmp_path), "synthetic", host="10.1.2.3", workers=2, edges=2, meters=2, tls=True,
        tls_names=("api.example.com",),
    )  # fmt: skip
    by_name = {one.name: one for one in certificates(options)}
    services = ("edge-0", "edge-1", "batch", "scheduler", "worker-0", "worker-1", "meter", "meter-1")
    assert set(by_name) == {*services, "edge-0-http", "edge-1-http", "nats", "admin"}
    assert by_name["edge-1-http"].hosts == ("localhost", "127.0.0.1", "10.1.2.3", "api.example.com")
    assert not by_name["edge-0-http"].client
    assert not by_name["admin"].server
    assert all(by_name[name].client and by_name[name].server for name in services)


def test_only_the_owner_may_read_them(tmp_path: Path) -> None:
    made(tmp_path / "tls")
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "tls").iterdir()}
    assert modes == dict.fromkeys(("ca.pem", "ca.key", "edge-0.pem", "edge-0.key"), 0o600)


@given(days=st.floats(min_value=0, max_value=800))
def test_it_is_kept_until_less_than_thirty_days_are_left(tmp_path_factory: pytest.TempPathFactory, days: float) -> None:
    folder = tmp_path_factory.mktemp("tls")
    first, later = made(folder), NOW + timedelta(days=days)
    authority = (folder / "ca.pem").read_bytes()
    second = made(folder, later)
    kept = first.not_valid_after_utc - later > timedelta(days=30)
    assert (second == first) == kept
    assert second.not_valid_before_utc < later < second.not_valid_after_utc - timedelta(days=30)
    assert (folder / "ca.pem").read_bytes() == authority


@pytest.mark.parametrize(
    "wanted", [Wanted("edge-0", (*EDGE.hosts, "api.example.com")), Wanted("edge-0", EDGE.hosts, client=False)]
)
def test_another_name_or_use_makes_it_anew(tmp_path: Path, wanted: Wanted) -> None:
    first = made(tmp_path)
    assert made(tmp_path, wanted=wanted) != first
    assert made(tmp_path, wanted=wanted) == made(tmp_path, wanted=wanted)


@pytest.mark.parametrize("damage", ["edge-0.key", "edge-0.pem"])
@pytest.mark.parametrize("how", ["lost", "emptied", "another's"])
def test_what_does_not_fit_together_is_made_anew(tmp_path: Path, damage: str, how: str) -> None:
    first = made(tmp_path)
    made(tmp_path, wanted=Wanted("other"))
    path = tmp_path / damage
    if how == "lost":
        path.unlink()
    else:
        path.write_bytes(b"" if how == "emptied" else (tmp_path / f"other{path.suffix}").read_bytes())
    assert made(tmp_path) != first


def test_a_certificate_of_another_authority_is_made_anew(tmp_path: Path) -> None:
    made(tmp_path / "one")
    foreign = made(tmp_path / "other")
    for name in ("edge-0.pem", "edge-0.key"):
        (tmp_path / "one" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert made(tmp_path / "one") != foreign


def test_the_authority_ends_with_a_word_and_no_certificate_outlives_it(tmp_path: Path) -> None:
    made(tmp_path)
    end = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes()).not_valid_after_utc
    assert made(tmp_path, end - timedelta(days=31)).not_valid_after_utc == end
    with pytest.raises(StackError, match=r"authority ends on 2036-.*delete the folder"):
        made(tmp_path, end - timedelta(days=29))


@pytest.mark.parametrize("damage", ["ca.pem", "ca.key"])
def test_half_an_authority_is_an_error_and_not_a_new_one(tmp_path: Path, damage: str) -> None:
    made(tmp_path)
    (tmp_path / damage).unlink()
    with pytest.raises(StackError, match=r"cannot be read.*delete the folder"):
        made(tmp_path)


def test_a_name_that_no_certificate_can_hold_is_said(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="münchen is not a host name"):
        made(tmp_path, wanted=Wanted("edge-0", ("münchen",)))


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path, NOW)
    one, other = authority.certificates([EDGE, Wanted("other")]).values()
    with pytest.raises(tls.TlsError, match=r"other.key are not a certificate and its key: key values mismatch"):
        tls.server_context(tls.TlsFiles(one.cert, other.key))
    with pytest.raises(tls.TlsError, match="no such file"):
        tls.read(tls.TlsFiles(one.cert, tmp_path / "none.key", one.ca))
    with pytest.raises(tls.TlsError, match=r"edge-0.key is not the certificate of an authority"):
        tls.trusting(one.key)
    with pytest.raises(tls.TlsError, match=r"needs the certificate of the authority"):
        tls.read(tls.TlsFiles(one.cert, one.key))
    assert tls.server_context(tls.TlsFiles(one.cert, one.key)).verify_mode is ssl.CERT_NONE
    assert tls.server_context(one).verify_mode is ssl.CERT_REQUIRED
