"""Checksums inside JSON records, so that a bit flipped on disk is detected and never read as a score."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

from scrimp_trainers.common.errors import DamagedRecord

KEY = "crc32"


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a record with its checksum as the last entry."""
    return {**record, KEY: _checksum(record)}


def unseal(text: bytes) -> dict[str, Any]:
    """Parse a JSON record, check its checksum and return the record without it.

    Raises
    ------
    DamagedRecord
        If the text is not JSON, or its checksum is missing or wrong.
    """
    try:
        record = json.loads(text.decode())
    except (ValueError, RecursionError):
        raise DamagedRecord("damaged: not JSON") from None
    if not isinstance(record, dict) or KEY not in record:
        raise DamagedRecord("damaged: no checksum")
    if record.pop(KEY) != _checksum(record):
        raise DamagedRecord("damaged: wrong checksum")
    return record


def text_checksum(text: str | bytes) -> str:
    """Return the CRC-32 of a text, as eight hexadecimal digits."""
    data = text.encode() if isinstance(text, str) else text
    return f"{zlib.crc32(data):08x}"


def _checksum(record: Mapping[str, Any]) -> str:
    # Of the values, not of the file's bytes, so the layout does not matter. JSON preserves floats exactly.
    return text_checksum(json.dumps(record))
