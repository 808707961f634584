"""Seeds for different purposes, all derived from one number."""

import hashlib


def seed_of(*parts: int | str) -> int:
    """Hash numbers and words to one seed of 63 bits, the same in every process and on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
