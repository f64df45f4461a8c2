"""Settings of the platform: a profile file, overridden by the environment.

Secrets never stand in a profile: they come from the environment, or from files of mode 600 under
:attr:`Settings.home`. Where the field has a variable already (``AWS_*``, ``MLFLOW_TRACKING_URI``,
``RAY_*``, ``OPENAI_*``) that one is read and no other invented; ours begin with ``MANTA_`` and nest by
``__`` (``MANTA_STORAGE__BUCKET``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from cluster.contracts import Principal
from cluster.contracts.base import Slug
from cluster.errors import UsageError
from cluster.nearest import meant

PROFILES = Path(__file__).parent / "profiles"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ports(_Part):
    """Ports of the local cluster; all of them listen on loopback."""

    gcs: int = Field(6379, description="Ray's GCS; RAY_ADDRESS points here.")
    dashboard: int = Field(8265, description="Ray's dashboard and job server (RAY_API_SERVER_ADDRESS).")
    dashboard_agent: int = Field(
        52365, description="Ray's dashboard agent: job submission fails if another has it."
    )
    dashboard_grpc: int = Field(52366, description="Ray's dashboard agent, gRPC.")
    client: int = Field(10001, description="Ray client server.")
    ray_internal: int = Field(19990, description="First of six ports that Ray uses inside.")
    worker_min: int = Field(20002, description="First port of Ray's workers.")
    worker_max: int = Field(20999, description="Last port of Ray's workers.")
    serve_http: int = Field(8000, description="The gateway: OPENAI_BASE_URL points here.")
    s3: int = Field(8333, description="The S3 server; AWS_ENDPOINT_URL points here.")
    s3_internal: int = Field(18333, description="First of ten ports that the S3 server uses inside.")


class StorageSettings(_Part):
    """Object storage; endpoint and keys come from AWS_ENDPOINT_URL and the other AWS variables."""

    bucket: str = Field("manta", description="The bucket that holds every artifact.")
    connect_timeout_s: float = Field(5.0, gt=0, description="Seconds to wait for a connection.")
    read_timeout_s: float = Field(60.0, gt=0, description="Seconds to wait for the next bytes of an answer.")
    max_attempts: int = Field(
        16, ge=1, description="Tries a request when the server is away or busy: 16 last for about a minute."
    )


class DatabaseSettings(_Part):
    """SQL behind run records and the alias history."""

    url: str | None = Field(
        None, description="SQLAlchemy URL; if absent, a SQLite file under home with profile local."
    )


class RaySettings(_Part):
    """The local Ray head; a real cluster has its own definition."""

    num_cpus: int | None = Field(
        None, ge=1, description="Logical CPUs of the local head; at least 4 if absent."
    )
    object_store_gib: float = Field(1.0, gt=0, description="Memory of the object store in GiB.")
    start_timeout_s: float = Field(120.0, gt=0, description="Seconds until a part must be healthy.")


class ScheduleSettings(_Part):
    """The process that holds the schedules."""

    lease_s: float = Field(
        15.0,
        gt=0,
        description="Seconds after which another takes over from one that died; more than clocks differ.",
    )
    retry_s: float = Field(5.0, gt=0, description="Seconds until a tick that waits is looked at again.")


class Settings(BaseSettings):
    """Everything that differs between a laptop and a cluster."""

    model_config = SettingsConfigDict(
        env_prefix="MANTA_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    profile: str = Field("local", description="Name of a file in cluster/profiles, or the path of one.")
    home: Path = Field(Path("~/.manta"), description="Directory of all local state.")
    team: Slug = Field("default", description="Team that owns what jobs make.")
    user: str = Field("local", description="Key id recorded as the submitter of jobs.")
    ports: Ports = Field(default_factory=Ports, description="Ports of the local cluster.")
    storage: StorageSettings = Field(default_factory=StorageSettings, description="Object storage.")
    database: DatabaseSettings = Field(default_factory=DatabaseSettings, description="SQL database.")
    ray: RaySettings = Field(default_factory=RaySettings, description="The local Ray head.")
    currency: str = Field(
        "USD",
        pattern=r"^[A-Z]{3}$",
        description="Of all prices and budgets, by ISO 4217; to change it is to change them.",
    )
    schedule: ScheduleSettings = Field(
        default_factory=ScheduleSettings, description="The process that holds the schedules."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the profile file, the profile over the defaults."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, profile_path())

    @property
    def principal(self) -> Principal:
        """Who jobs run as."""
        return Principal(key_id=self.user, team=self.team)

    @property
    def state_dir(self) -> Path:
        """:attr:`home`, absolute."""
        return self.home.expanduser().absolute()

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of run records and alias history.

        Raises UsageError if a cluster's is not named.
        """
        return self.database.url or self._own_file("manta.db", "MANTA_DATABASE__URL")

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking URI: MLFLOW_TRACKING_URI, else a SQLite file under :attr:`home`.

        Raises UsageError if a cluster's is not named.
        """
        return os.environ.get("MLFLOW_TRACKING_URI") or self._own_file("mlflow.db", "MLFLOW_TRACKING_URI")

    def _own_file(self, name: str, variable: str) -> str:
        """SQLite on this machine's disk; on a cluster each node would silently have records of its own."""
        if self.profile != "local":
            raise UsageError(
                f"{variable} is not set, and with MANTA_PROFILE={self.profile} no machine keeps records of "
                "its own: set it here, and on every node before Ray starts."
            )
        return f"sqlite:///{self.state_dir / 'registry' / name}"


def profile_path() -> Path:
    """The profile file that MANTA_PROFILE names.

    Raises UsageError if there is none.
    """
    name = os.environ.get("MANTA_PROFILE", "local")
    path = Path(name) if name.endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise UsageError(f"MANTA_PROFILE={name}: no such profile; name a YAML file or one of {known}.")
    return path


@cache
def load_settings() -> Settings:
    """Read the settings once per process.

    Raises UsageError with one sentence per wrong field.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise UsageError(describe_validation_error(error, "settings", Settings)) from None
    except yaml.YAMLError as error:
        raise UsageError(f"{profile_path()} is no YAML: {' '.join(str(error).split())}") from None


def describe_validation_error(error: ValidationError, what: str, model: type[BaseModel] | None = None) -> str:
    """One sentence that names every wrong field of ``what`` and how it is wrong.

    With the ``model`` that refused it, it names a key that was probably meant, and says what is missing.
    """
    parts = []
    for item in error.errors():
        field, said = ".".join(str(part) for part in item["loc"]), item["msg"]
        if item["type"] == "extra_forbidden":
            *place, key = item["loc"]
            parts.append(f"{field} is no known key{meant(str(key), _fields_at(model, place))}")
            continue
        if item["type"] == "value_error":
            said = str(item["ctx"]["error"])  # Without pydantic's "Value error, " in front.
        elif item["type"] in ("missing", "too_short"):
            *place, key = item["loc"]
            known = _fields_at(model, place).get(str(key))
            if known and known.description:
                said += f" ({' '.join(known.description.split()).partition('. ')[0].rstrip('.')})"
        parts.append(f"{field}: {said[:1].lower()}{said[1:]}" if field else said)
    return f"{what}: " + "; ".join(parts) + "."


def _fields_at(model: type[BaseModel] | None, place: Sequence[str | int]) -> dict[str, FieldInfo]:
    """The fields that a value at this place in the model may have, by name."""
    models = [model] if model else []
    for key in place:
        if isinstance(key, str):  # A place in a list has what the list has.
            found = [one.model_fields[key].annotation for one in models if key in one.model_fields]
            models = [part for annotation in found for part in models_in(annotation)]
    return {name: field for one in models for name, field in one.model_fields.items()}


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation names, be it one of several types or of a list's items."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in models_in(part)]
