"""No URL of a tenant leads into the operator's networks."""

import socket

import pytest
from inferbus_webhooks.addresses import is_public, may_be_public, public_socket


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1", "2001::1",
    ],
)  # fmt: skip
def test_what_is_not_the_publics(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_what_is(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "１２７.0.0.1", "①②⑦.⓪.⓪.①", "127。0。0。1", "x@10.0.0.1", "[::1", ""]
)
def test_a_url_that_says_so_itself_is_known_before_it_is_tried(host: str) -> None:
    assert not may_be_public(f"http://{host}:80/hook")


def test_a_name_may_be_anything() -> None:
    assert may_be_public("https://example.com/hook")
    assert may_be_public("https://localhost/hook"), "that it is none the socket finds out"


@pytest.mark.parametrize("address", ["127.0.0.1", "2130706433", "127.1", "0177.0.0.1", "0", "localhost"])
def test_no_socket_for_what_is_not_the_publics(address: str) -> None:
    with pytest.raises(OSError, match="public"):
        public_socket((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, 80)))


def test_a_socket_for_what_is() -> None:
    public_socket((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("8.8.8.8", 80))).close()
