"""Keys and tokens of the local cluster: made once, kept in files of mode 600."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import AccessError
from cluster.local.home import Home
from cluster.local.s3server import S3Credentials, write_private

#: Public id of the API key that `manta up` makes.
LOCAL_KEY_ID = "local"


@dataclass(frozen=True)
class Credentials:
    """Everything secret that `manta up` makes."""

    s3: S3Credentials
    ray_token: str = field(repr=False)
    openai_key: str = field(repr=False)

    @classmethod
    def load_or_create(cls, home: Home) -> Credentials:
        """Read the files below MANTA_HOME, and make those that are missing.

        Raises AccessError when others can read one or it is damaged.
        """
        return cls(
            s3=S3Credentials.load_or_create(home.credentials),
            ray_token=_secret(home.ray_token, ""),
            openai_key=_secret(home.openai_key, "sk-manta-"),
        )

    @classmethod
    def load(cls, home: Home) -> Credentials | None:
        """Read the files; None unless all of them exist. Raises AccessError as above."""
        files = (home.credentials, home.ray_token, home.openai_key)
        return cls.load_or_create(home) if all(file.exists() for file in files) else None


def _secret(path: Path, prefix: str) -> str:
    if not path.exists():
        write_private(path, prefix + secrets.token_hex(32))
    if path.stat().st_mode & 0o077:
        raise AccessError(f"{path} holds a secret and others can read it: run chmod 600 on it.")
    text = path.read_text().strip()
    if len(text) < 16:
        raise AccessError(f"{path} is damaged: remove it, then `manta down` and `manta up` make a new one.")
    return text
