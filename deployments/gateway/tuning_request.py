"""What is asked of ``/v1/fine_tuning/jobs``: bodies and queries, typed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core.core_schema import ValidatorFunctionWrapHandler

from cluster.contracts.tuning import TuningHyperparameters, TuningMethod
from deployments.gateway.body import typed
from deployments.gateway.errors import ApiError, from_validation

_METADATA = re.compile(r"metadata\[(.+)\]")
#: Whether it is a whole number, and the most that it may be.
_NUMBERS = {
    "n_epochs": (True, 50),
    "batch_size": (True, 256),
    "learning_rate_multiplier": (False, 100),
    "beta": (False, 2),
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Hyperparameters(_Part):
    """How it learns."""

    n_epochs: Literal["auto"] | int = "auto"
    batch_size: Literal["auto"] | int = "auto"
    learning_rate_multiplier: Literal["auto"] | float = "auto"

    @field_validator("*", mode="wrap")
    @classmethod
    def _auto_or_a_number(
        cls, value: object, handler: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> Any:
        whole, most = _NUMBERS[info.field_name or ""]
        wanted = f"must be 'auto' or a {'whole number from 1' if whole else 'number over 0'} to {most}"
        try:
            number = handler(value)
        except ValidationError:
            raise ValueError(wanted) from None
        if number != "auto" and not (1 if whole else 1e-6) <= number <= most:
            raise ValueError(wanted)
        return number


class DpoHyperparameters(Hyperparameters):
    """How it learns by preferences."""

    beta: Literal["auto"] | float = "auto"


class SupervisedSettings(_Part):
    """Of method ``supervised``."""

    hyperparameters: Hyperparameters | None = None


class DpoSettings(_Part):
    """Of method ``dpo``."""

    hyperparameters: DpoHyperparameters | None = None


class Method(_Part):
    """How it is tuned."""

    type: TuningMethod
    supervised: SupervisedSettings | None = None
    dpo: DpoSettings | None = None

    @model_validator(mode="after")
    def _one(self) -> Method:
        other = "supervised" if self.type == "dpo" else "dpo"
        if getattr(self, other) is not None:
            raise ValueError(f"its type is '{self.type}': leave '{other}' out")
        return self


class TuningRequest(_Part):
    """Body of ``POST /v1/fine_tuning/jobs``."""

    model: str = Field(min_length=1, max_length=256)
    training_file: str = Field(max_length=64)
    validation_file: str | None = Field(None, max_length=64)
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    suffix: str | None = Field(None, min_length=1, max_length=64)
    seed: int | None = Field(None, ge=0, lt=2**31)
    metadata: dict[str, str] | None = Field(None, max_length=16)

    @field_validator("suffix")
    @classmethod
    def _fits_a_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9._-]+", value):
            raise ValueError("use letters, digits, '.', '_' and '-', for it becomes a part of a model's name")
        return value

    @field_validator("metadata")
    @classmethod
    def _short(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if any(len(name) > 64 or len(text) > 512 for name, text in (value or {}).items()):
            raise ValueError("names have up to 64 and values up to 512 characters")
        return value

    @property
    def tuned_by(self) -> TuningMethod:
        """The method's name."""
        return self.method.type if self.method else "supervised"

    @property
    def asked(self) -> TuningHyperparameters:
        """Hyperparameters, where the method's own go before the older ones."""
        settings = getattr(self.method, self.tuned_by, None)
        found = (settings and settings.hyperparameters) or self.hyperparameters or Hyperparameters()
        kind = DpoHyperparameters if self.tuned_by == "dpo" else Hyperparameters
        return TuningHyperparameters(**kind(**found.model_dump()).model_dump())


class ListQuery(BaseModel):
    """Query of a list."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(None, max_length=64)
    limit: int = Field(20, ge=1, le=100)


def parse_request(content: dict[str, Any]) -> TuningRequest:
    """The body. What of OpenAI's is not done here is refused by name. Raises ApiError 400."""
    said = dict(content)
    if said.pop("integrations", None):
        raise ApiError(
            400,
            "Integrations are not supported here: leave them out, and read the job's events instead.",
            param="integrations",
            code="unsupported_parameter",
        )
    method = said.get("method")
    kind = method.get("type") if isinstance(method, dict) else None
    if kind == "reinforcement":
        raise ApiError(
            400,
            f"Method '{kind}' is not supported here: models are tuned by 'supervised' or 'dpo'.",
            param="method.type",
            code="unsupported_value",
        )
    return typed(said, TuningRequest)


def parse_query(params: Mapping[str, str]) -> tuple[ListQuery, dict[str, str]]:
    """Paging, and the filter by metadata. Raises ApiError 400."""
    plain, metadata = dict[str, str](), dict[str, str]()
    for name, value in params.items():
        if found := _METADATA.fullmatch(name):
            metadata[found[1]] = value
        else:
            plain[name] = value
    try:
        return ListQuery.model_validate(plain), metadata
    except ValidationError as error:
        raise from_validation(error) from None
