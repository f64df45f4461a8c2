"""Keys by which equal rows are found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

#: Bytes of a key.
KEY_SIZE = 16


def exact_key(content: str | Sequence[Mapping[str, str]]) -> bytes:
    """16 bytes that are equal if, and only if, the texts (or the lists of messages) are.

    A BLAKE2b digest: with 2^32 rows the chance of any false match is 2^-65, even if the texts are chosen to
    collide. A text and a list of messages are never equal.
    """
    if isinstance(content, str):
        canonical = content
    else:
        pairs = [[message["role"], message["content"]] for message in content]
        canonical = "\0" + json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(errors="surrogatepass"), digest_size=KEY_SIZE).digest()
