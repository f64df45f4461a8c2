"""Length of texts in a model's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.errors import NotFoundError, UsageError

FILE = "tokenizer.json"


class TokenCounter:
    """Counts tokens as a Hugging Face tokenizer makes them, without the special ones that it would add."""

    def __init__(self, path: str | Path) -> None:
        """Read ``path``: a ``tokenizer.json``, or the folder of a model or tokenizer that holds one.

        Raises NotFoundError when there is none, UsageError when it is not a tokenizer's.
        """
        from tokenizers import Tokenizer

        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise NotFoundError(f"tokenizer {path}: there is no {FILE}; save the tokenizer in its fast form.")
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # The library raises nothing narrower.
            raise UsageError(f"tokenizer {file} cannot be read: {error}.") from None
        # A file may ask for cutting and padding, which would hide a text's length.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return list(map(len, encoded))
