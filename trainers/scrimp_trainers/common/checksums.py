"""A checksum inside every JSON record, so that a bit flipped on a disk is noticed and never read as a score."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

from scrimp_trainers.common.errors import DamagedRecord

KEY = "crc32"


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its checksum as the last entry."""
    return {**record, KEY: _checksum(record)}


def unseal(text: bytes) -> dict[str, Any]:
    """Return the record that a JSON text holds, without its checksum.

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
    """Return the checksum of a text."""
    return f"{zlib.crc32(text.encode() if isinstance(text, str) else text):08x}"


def _checksum(record: Mapping[str, Any]) -> str:
    # Over the values and not the bytes: how a record is laid out does not matter. JSON gives floats back exactly.
    return text_checksum(json.dumps(record))
