"""Ray's REST interface, for what its own clients cannot say without joining the cluster.

Light: it needs neither Ray nor a connection to it, so a command that finds nothing there says so at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from cluster.errors import AccessError, UnavailableError
from cluster.installed import missing_platform

#: Where Ray's own clients read the address of the API server, in their order.
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_DASHBOARD_ADDRESS")


class RayApi:
    """The API server of one cluster.

    :param address: its URL.
    :param token: the cluster's token; none is sent if absent.
    """

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    @classmethod
    def from_environment(cls, default_port: int) -> RayApi:
        """The cluster that RAY_API_SERVER_ADDRESS names, else the local one.

        Raises AccessError when the token's file cannot be read.
        """
        return cls(named_address() or f"http://127.0.0.1:{default_port}", read_token())

    def get(self, path: str, timeout_s: float = 10.0) -> Any:
        """The JSON answer to a GET.

        Raises UnavailableError when nothing answers, AccessError for a wrong token.
        """
        try:
            answer = httpx.get(
                f"{self.address}{path}", headers=self._headers, timeout=timeout_s, trust_env=not self._local
            )
            answer.raise_for_status()
            return answer.json()
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise self.access_error(sent=bool(self._headers)) from None
            raise UnavailableError(
                f"The cluster at {self.address} answers {path} with status {status}."
            ) from None
        except (httpx.HTTPError, ValueError):
            raise self.unavailable() from None

    @property
    def _local(self) -> bool:
        """No proxy stands before loopback."""
        return self.address.startswith(("http://127.", "http://localhost"))

    def unavailable(self) -> UnavailableError:
        """The error for a cluster that does not answer."""
        ours = self._local and not missing_platform()
        remedy = "start it with `manta up`" if ours else "set RAY_API_SERVER_ADDRESS to where it is"
        return UnavailableError(f"The cluster at {self.address} does not answer: {remedy}.")

    def access_error(self, *, sent: bool = True) -> AccessError:
        """The error for a token that the cluster does not accept."""
        what = "does not accept the token" if sent else "wants a token and none was sent"
        return AccessError(
            f"The cluster at {self.address} {what}: "
            "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH "
            '(on its own machine `eval "$(manta env)"` does).'
        )

    def version(self, timeout_s: float = 5.0) -> str:
        """Ray's version; also the check that the cluster answers and accepts the token."""
        return str(self.get("/api/version", timeout_s)["ray_version"])

    def nodes(self) -> list[dict[str, float]]:
        """The logical resources of each node that is alive, e.g. ``[{"CPU": 4.0}]``."""
        data = self.get("/nodes?view=summary")["data"]
        return [
            dict(node["raylet"].get("resourcesTotal", {}))
            for node in data["summary"]
            if node.get("raylet", {}).get("state") == "ALIVE"
        ]

    def jobs(self) -> list[dict[str, Any]]:
        """All submitted jobs of the cluster's life, as Ray's REST interface describes them."""
        return [job for job in self.get("/api/jobs/") if job.get("type") == "SUBMISSION"]

    def applications(self) -> dict[str, Mapping[str, Any]]:
        """Serve's applications by name, as Serve's REST interface describes them."""
        return dict(self.get("/api/serve/applications/").get("applications", {}))


def named_address() -> str | None:
    """The API server that the environment names by its URL; None if it names none."""
    named = (os.environ.get(name, "") for name in _ADDRESSES)
    return next((url.rstrip("/") for url in named if url.startswith(("http://", "https://"))), None)


def read_token() -> str | None:
    """The token from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, as Ray reads it.

    Raises AccessError when the file cannot be read.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not path:
        return None
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise AccessError(f"RAY_AUTH_TOKEN_PATH={path} cannot be read: {error.strerror}.") from None
