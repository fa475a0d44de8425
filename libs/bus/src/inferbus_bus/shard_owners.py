"""Who is to schedule which shard: every scheduler comes to the same answer by itself."""

import hashlib
from collections.abc import Iterable


def owner_of(shard: int, members: Iterable[str]) -> str:
    """By rendezvous hashing: when a member comes or goes, only shards of its own change hands. Empty: no members."""
    return max(members, key=lambda member: (_weight(shard, member), member), default="")


def _weight(shard: int, member: str) -> bytes:
    return hashlib.blake2b(f"{shard}/{member}".encode(), digest_size=8).digest()
