"""Records as JSON that tells whether it is as it was written.

The first key of a record is `checksum`: BLAKE2b, in 32 hexadecimal digits, of the rest of the
record as Python's `json` writes it without spaces, its keys in their order.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_BEGIN = b'{"checksum":"'
_DIGITS = 32


def sealed(record: Mapping[str, Any], indent: int | None = None) -> str:
    """Returns a record as JSON with its checksum.

    Args:
        record: Of what JSON knows.
        indent: For lines that people read.
    """
    checked = {"checksum": _checksum(_compact(record)), **record}
    return _compact(checked).decode() if indent is None else json.dumps(checked, indent=indent)


def checksum(record: Mapping[str, Any]) -> str:
    """Returns the checksum of a record that has its own place for it."""
    return _checksum(_compact(record))


def unsealed(content: bytes) -> tuple[bytes, bool]:
    """Returns the JSON of a record without its checksum, and whether there was one.

    Records that were written before there were checksums come back as they are.

    Raises:
        ValueError: That is no record, or not as it was written; the message says which.
    """
    if content.startswith(_BEGIN):  # As it is written; then nothing need be read to compare it.
        end = len(_BEGIN) + _DIGITS
        rest = b"{" + content[end + 1 :].removeprefix(b",")
        if content[len(_BEGIN) : end] == _checksum(rest).encode():
            return rest, True
    try:
        record = json.loads(content)
    except RecursionError as error:
        raise ValueError("it has too many levels in each other") from error
    if not isinstance(record, dict):
        raise ValueError("it has no keys and values")
    if "checksum" not in record:
        return content, False
    checksum = record.pop("checksum")
    rest = _compact(record)
    if checksum != _checksum(rest):
        raise ValueError("it was changed since it was written, since its checksum is another")
    return rest, True


def _compact(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()


def _checksum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_DIGITS // 2).hexdigest()
