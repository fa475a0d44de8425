"""Where a URL that a tenant chose may lead: to the public's addresses, and not into the operator's networks."""

import errno
import socket
from ipaddress import IPv4Address, IPv6Network, ip_address

from aiohttp import AddrInfoType
from yarl import URL

_UNICAST = IPv6Network("2000::/3")
# Addresses of IPv4 in other clothes.
_6TO4 = IPv6Network("2002::/16")


def is_public(address: str) -> bool:
    """Of an IP address; a name is none: ValueError."""
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv4Address):
        return found.is_global and not found.is_multicast
    if found.ipv4_mapped is not None:
        return is_public(str(found.ipv4_mapped))
    return found.is_global and found in _UNICAST and found not in _6TO4


def may_be_public(url: str) -> bool:
    """Whether it is worth a try: what a name means is not asked here. That nothing else is connected to is
    :func:`public_socket`'s."""
    try:
        # As the client reads it: ``http://１２７.0.0.1`` is 127.0.0.1.
        host = URL(url).raw_host or ""
    except ValueError:
        return False
    try:
        return is_public(host)
    except ValueError:
        return bool(host)


def public_socket(found: AddrInfoType) -> socket.socket:
    """A socket for this address, and no other will be connected to: whatever a URL was read as, and whatever its name
    means a moment later. Raises OSError if it is not the public's."""
    family, kind, protocol, _, address = found
    try:
        public = is_public(str(address[0]))
    except ValueError:
        public = False  # a number that the system would make an address of
    if not public:
        raise OSError(errno.EACCES, "not a public address")
    return socket.socket(family, kind, protocol)
