"""Seeds for every purpose, made of one number."""

import hashlib


def seed_of(*parts: int | str) -> int:
    """Mix numbers and words into one seed of 63 bits, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1
