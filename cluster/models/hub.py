"""Models of the Hugging Face hub, or of this machine's cache of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import AccessError, NotFoundError, UnavailableError, UsageError
from cluster.models.files import require, taken


@dataclass(frozen=True)
class HubModel:
    """One commit of one repository."""

    repository: str
    commit: str
    licence: str | None
    #: Files to take; None if the hub is away, and the cache holds what it holds.
    paths: tuple[str, ...] | None

    def fetch(self) -> Path:
        """Download into the hub's own cache (``HF_HOME``) and return the snapshot's directory."""
        from huggingface_hub import snapshot_download

        with _told(self.repository):
            return Path(
                snapshot_download(
                    self.repository,
                    revision=self.commit,
                    allow_patterns=list(self.paths) if self.paths is not None else None,
                    local_files_only=self.paths is None,
                )
            )


def find(repository: str, revision: str | None) -> HubModel:
    """Ask the hub (with HF_TOKEN), or with HF_HUB_OFFLINE, or when it is away, the cache.

    Raises NotFoundError if there is no such model, AccessError if it needs a token, UnavailableError if the
    hub is away and the cache does not have it.
    """
    from huggingface_hub import HfApi

    try:
        with _told(repository):
            info = HfApi().model_info(repository, revision=revision)
    except UnavailableError as away:
        return _cached(repository, revision, away)
    paths = taken(file.rfilename for file in info.siblings or [])
    require(paths, repository)
    licence = getattr(info.card_data, "license", None)
    return HubModel(repository, str(info.sha), str(licence) if licence else None, tuple(paths))


def _cached(repository: str, revision: str | None, away: UnavailableError) -> HubModel:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        directory = snapshot_download(repository, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        raise away from None
    return HubModel(repository, Path(directory).name, None, None)


@contextmanager
def _told(repository: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError:
        raise UsageError(f"{repository!r} is no Hugging Face id: write it as organisation/name.") from None
    except errors.GatedRepoError:
        raise AccessError(
            f"Model {repository!r} is gated: accept its terms on the hub, and set HF_TOKEN"
            " to a token that may read it."
        ) from None
    except errors.RevisionNotFoundError:
        raise NotFoundError(f"Model {repository!r} has no such revision on the Hugging Face hub.") from None
    except errors.RepositoryNotFoundError:
        raise NotFoundError(
            f"There is no model {repository!r} on the Hugging Face hub, or HF_TOKEN may not see it:"
            " check the name, or give a directory or an s3:// address."
        ) from None
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise AccessError(f"The Hugging Face hub refuses HF_TOKEN for {repository!r}.") from None
        if status == 404:
            raise NotFoundError(f"There is no model {repository!r} on the Hugging Face hub.") from None
        if not _is_away(error):
            raise
        raise UnavailableError(
            f"Model {repository!r}: the Hugging Face hub cannot be reached ({_first_line(error)}), and this"
            " machine's cache does not have it: connect, or give a directory or an s3:// address."
        ) from None


def _is_away(error: Exception) -> bool:
    """Whether the hub did not answer: HTTP 5xx, offline mode, or a transport error of its client."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"HfHubHTTPError", "LocalEntryNotFoundError", "TransportError", "ConnectionError"})


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
