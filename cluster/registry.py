"""The model registry: MLflow's registered models and aliases, with lineage and an append-only history.

Used by jobs and the command line only; nothing that serves asks it. MLflow is imported at first use
(seconds, and 165 MB).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError

from cluster.alias_history import AliasHistory, AliasMove, MoveState
from cluster.contracts import Manifest, ModelRef, Principal, adapter_id
from cluster.contracts.base import Contract, Slug
from cluster.database import Database
from cluster.errors import NotFoundError, RefusedError, UsageError
from cluster.mlflow_store import mlflow_client, pages, told
from cluster.settings import Settings
from cluster.storage.artifacts import artifact_inputs

#: Tags of a registered version that carry its lineage.
TAG_CHECKPOINT = "manta.checkpoint"
TAG_DIGEST = "manta.digest"
TAG_BASE = "manta.base"
TAG_ADAPTER = "manta.adapter"
TAG_DATASET = "manta.dataset"
TAG_EVALUATION = "manta.evaluation"
TAG_GIT_REVISION = "manta.git_revision"
TAG_OWNER = "manta.owner"
#: When, by whom and why it was retired; what has it is not resolved any more.
TAG_RETIRED = "manta.retired"

#: MLflow reserves the first two for itself; a bare number is a version.
_RESERVED_ALIAS = re.compile(r"latest|v?\d+")
_ADDRESS = re.compile(r"(?:models:/)?(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_OUTSIDE = "outside"


class RegisteredModel(Contract):
    """One registered version, and all that is needed to serve it."""

    ref: ModelRef = Field(description="name@version.")
    checkpoint: str = Field(description="Address of the checkpoint artifact.")
    digest: str = Field(description="Data digest of the checkpoint.")
    base: str = Field(description="Address of the base model's artifact.")
    adapter: str | None = Field(None, description="S3 key prefix that holds the adapter for serving.")
    tags: dict[str, str] = Field(default_factory=dict, description="All of MLflow's tags of the version.")


class Registry:
    """Registered models. Safe among processes: whatever changes a model holds that model's lock.

    Every method raises UnavailableError if MLflow or the database does not answer.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = Database(settings.database_url)

    def initialise(self) -> None:
        """Make the databases (4 to 9 s the first time) and repair what a crash left."""
        self.reconcile()

    def register(
        self,
        name: str,
        checkpoint: Manifest,
        *,
        base: str,
        served_adapter: str | None,
        tags: Mapping[str, str] | None = None,
    ) -> RegisteredModel:
        """Register a checkpoint as the next version; one that is registered already keeps its version.

        :param base: address of the base model's artifact.
        :param served_adapter: S3 key prefix under which the adapter is served; ``{adapter_id}`` in it stands
            for the version's immutable adapter name, which is known only once the version is.
        :param tags: more lineage, e.g. ``manta.evaluation``; given again, they overwrite.

        Raises UsageError for a name or tag that the registry cannot hold, RefusedError for a checkpoint whose
        version was retired.
        """
        _check_slug(name, "model name")
        lineage = _lineage(checkpoint, base, served_adapter) | dict(tags or {})
        with self._database.exclusive(f"model {name}"), told():
            version = self._find_checkpoint(name, str(checkpoint.ref))
            if version is None:
                self._create_model(name)
                version = self._client.create_model_version(
                    name, f"s3://{self._settings.storage.bucket}/{checkpoint.ref}", tags=lineage
                )
            else:
                _refuse_retired(_registered(version))
                for key, value in (tags or {}).items():
                    self._client.set_model_version_tag(name, version.version, key, value)
                version = self._client.get_model_version(name, version.version)
            return _registered(version)

    def set_alias(
        self, name: str, alias: str, version: int | None, *, by: Principal, why: str, evidence: str | None
    ) -> None:
        """Move an alias, or remove it (version None), and write the move into the history.

        The intent is written first, then MLflow's alias moves, then the move is confirmed; a crash between
        is repaired by the next move or by :meth:`reconcile`. An alias that stands there already is left.
        Raises NotFoundError for an unknown model or version, UsageError for an alias that cannot be.
        """
        _check_slug(alias, "alias")
        if _RESERVED_ALIAS.fullmatch(alias):
            raise UsageError(f"Alias {alias!r} is reserved: choose a word such as champion.")
        with self._database.exclusive(f"model {name}"), told():
            before = self._aliases(name)
            self._repair(name, before)
            if version is not None:
                _refuse_retired(_registered(self._version(name, version)))
            if before.get(alias) == version:
                return
            self._move(name, alias, (before.get(alias), version), by=by, why=why, evidence=evidence)

    def resolve(self, uri: str) -> RegisteredModel:
        """The version that ``models:/name@alias``, ``models:/name/3``, ``name@alias`` or ``name@3`` names.

        Raises UsageError for another form, NotFoundError (which names what exists) for an unknown one, and
        RefusedError for a retired one.
        """
        parts = _ADDRESS.fullmatch(uri.strip())
        if parts is None:
            raise UsageError(
                f"{uri!r} is no model version: write models:/<name>@<alias> or <name>@<version>."
            )
        name, alias = parts["name"], parts["alias"]
        with told():
            aliases = self._aliases(name)
            number = int(parts["version"]) if parts["version"] else aliases.get(alias)
            if number is None and alias.isdigit():
                number = int(alias)
            if number is None:
                known = ", ".join(sorted(aliases)) or "none"
                raise NotFoundError(f"Model {name!r} has no alias {alias!r} (it has: {known}).")
            return _refuse_retired(_registered(self._version(name, number)))

    def retire(self, ref: ModelRef, *, by: Principal, why: str) -> RegisteredModel:
        """Let nobody resolve a version any more; its lineage stays, and aliases that stand there go.

        One that is retired already is left as it is. Raises NotFoundError.
        """
        with self._database.exclusive(f"model {ref.name}"), told():
            version = self._version(ref.name, ref.version)
            if TAG_RETIRED not in version.tags:
                said = f"{datetime.now(UTC):%Y-%m-%d} by {by.team}/{by.key_id}: {why}"
                self._client.set_model_version_tag(ref.name, version.version, TAG_RETIRED, said)
                version = self._version(ref.name, ref.version)
            # From here on no alias can move there; one that moves away meanwhile is another version's.
            aliases = self._aliases(ref.name)
            self._repair(ref.name, aliases)
            for alias in sorted(alias for alias, at in aliases.items() if at == ref.version):
                self._move(ref.name, alias, (ref.version, None), by=by, why=why, evidence=None)
            return _registered(version)

    def names(self) -> list[str]:
        """All registered models, sorted."""
        with told():
            return sorted(model.name for model in self._models())

    def versions(self, name: str) -> list[RegisteredModel]:
        """All versions of a model that were registered here, oldest first. Raises NotFoundError."""
        with told():
            self._aliases(name)
            found = [version for version in self._versions(name) if TAG_CHECKPOINT in version.tags]
            return [_registered(version) for version in found]

    def aliases(self, name: str) -> dict[str, int]:
        """Where each alias of a model stands. Raises NotFoundError."""
        with told():
            return self._aliases(name)

    def history(self, name: str) -> list[AliasMove]:
        """Every move of the model's aliases, oldest first; empty for an unknown model."""
        return self._history.moves(name)

    def reconcile(self) -> int:
        """Settle moves that a crash left open, and write down moves made past the history; return how many.

        An open move is confirmed if MLflow's alias stands where it should, and abandoned if not: traffic does
        not move because of a command that its user saw fail.
        """
        repaired = 0
        with told():
            for name in sorted({model.name for model in self._models()} | self._open_names()):
                with self._database.exclusive(f"model {name}"):
                    repaired += self._repair(name, self._aliases(name, missing_ok=True))
        return repaired

    # Inside

    @cached_property
    def _history(self) -> AliasHistory:
        return AliasHistory(self._database)

    @cached_property
    def _client(self) -> Any:
        return mlflow_client(self._settings)

    def _move(
        self,
        name: str,
        alias: str,
        move: tuple[int | None, int | None],
        *,
        by: Principal,
        why: str,
        evidence: str | None,
    ) -> None:
        """Move an alias from one version to another. The caller holds the model's lock."""
        intent = self._history.intend(name, alias, move, by=by, why=why, evidence=evidence)
        if move[1] is None:
            self._client.delete_registered_model_alias(name, alias)
        else:
            self._client.set_registered_model_alias(name, alias, str(move[1]))
        self._history.settle(intent, MoveState.CONFIRMED)

    def _open_names(self) -> set[str]:
        return {move.model for move in self._history.open_moves()}

    def _repair(self, name: str, aliases: Mapping[str, int]) -> int:
        """Bring the history into line with MLflow's aliases. The caller holds the model's lock."""
        repaired = 0
        for move in self._history.open_moves(name):
            done = aliases.get(move.alias) == move.to_version
            self._history.settle(move.id, MoveState.CONFIRMED if done else MoveState.ABANDONED)
            repaired += 1
        recorded = self._history.current(name)
        for alias in sorted(set(recorded) | set(aliases)):
            before, now = recorded.get(alias), aliases.get(alias)
            if before != now:
                by = Principal(key_id=_OUTSIDE, team=self._settings.team)
                why = "Found moved in MLflow by something that keeps no history."
                move_id = self._history.intend(name, alias, (before, now), by=by, why=why, evidence=None)
                self._history.settle(move_id, MoveState.CONFIRMED)
                repaired += 1
        return repaired

    def _models(self) -> Iterator[Any]:
        yield from pages(self._client.search_registered_models)

    def _versions(self, name: str) -> list[Any]:
        found = pages(self._client.search_model_versions, filter_string=f"name='{name}'")
        return sorted(found, key=lambda version: int(version.version))

    def _find_checkpoint(self, name: str, address: str) -> Any:
        found = [v for v in self._versions(name) if v.tags.get(TAG_CHECKPOINT) == address]
        return found[0] if found else None

    def _create_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _aliases(self, name: str, missing_ok: bool = False) -> dict[str, int]:
        from mlflow.exceptions import MlflowException

        try:
            model = self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            if missing_ok:
                return {}
            known = ", ".join(self.names()) or "none yet"
            raise NotFoundError(f"There is no registered model {name!r} (there are: {known}).") from None
        return {alias: int(version) for alias, version in model.aliases.items()}

    def _version(self, name: str, number: int) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_model_version(name, str(number))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            known = ", ".join(str(version.version) for version in self._versions(name)) or "none"
            raise NotFoundError(f"Model {name!r} has no version {number} (it has: {known}).") from None


def _lineage(checkpoint: Manifest, base: str, served_adapter: str | None) -> dict[str, str]:
    tags = {
        TAG_CHECKPOINT: str(checkpoint.ref),
        TAG_DIGEST: checkpoint.data_digest,
        TAG_BASE: base,
        TAG_OWNER: f"{checkpoint.owner.team}/{checkpoint.owner.key_id}",
    }
    if served_adapter is not None:
        tags[TAG_ADAPTER] = served_adapter
    if checkpoint.code.git_revision:
        tags[TAG_GIT_REVISION] = checkpoint.code.git_revision
    for ref in artifact_inputs(checkpoint):
        if ref.kind == "dataset":
            tags[TAG_DATASET] = str(ref)
    return tags


def _registered(version: Any) -> RegisteredModel:
    """Raises NotFoundError for a version that something else registered, without lineage."""
    ref, tags = ModelRef(name=version.name, version=int(version.version)), dict(version.tags)
    missing = [tag for tag in (TAG_CHECKPOINT, TAG_DIGEST, TAG_BASE) if tag not in tags]
    if missing:
        raise NotFoundError(
            f"{ref} has no {', '.join(missing)} in MLflow: it was registered past Manta and cannot be used."
        )
    adapter = tags.get(TAG_ADAPTER)
    return RegisteredModel(
        ref=ref,
        checkpoint=tags[TAG_CHECKPOINT],
        digest=tags[TAG_DIGEST],
        base=tags[TAG_BASE],
        adapter=adapter.replace("{adapter_id}", adapter_id(ref)) if adapter else None,
        tags=tags,
    )


def _refuse_retired(model: RegisteredModel) -> RegisteredModel:
    if TAG_RETIRED in model.tags:
        raise RefusedError(f"{model.ref} was retired ({model.tags[TAG_RETIRED]}): name another version.")
    return model


def _check_slug(text: str, what: str) -> None:
    try:
        TypeAdapter(Slug).validate_python(text)
    except ValidationError:
        raise UsageError(
            f"{text!r} is no {what}: use lower-case letters, digits, '.', '_' and '-', at most 63."
        ) from None
