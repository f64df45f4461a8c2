"""A job's configuration: pydantic, from a YAML file and the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from cluster.contracts.base import Slug
from cluster.errors import UsageError
from cluster.nearest import meant
from cluster.settings import describe_validation_error, models_in


class JobConfig(BaseModel):
    """What every verb's configuration has in common. Frozen, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Fields that change how a job runs but not what it makes (worker counts, timeouts): not hashed.
    runtime_fields: ClassVar[frozenset[str]] = frozenset()

    name: Slug = Field(description="Name of the artifact that the job makes.")

    def meaning(self) -> dict[str, Any]:
        """The part of the configuration that decides what is made, as JSON values."""
        return self.model_dump(mode="json", exclude=set(self.runtime_fields))


C = TypeVar("C", bound=JobConfig)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises UsageError when it is missing, unreadable, not YAML or something else than a mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; --config takes the path of a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a {type(content).__name__}; a configuration is a mapping of fields.")
    return content


def _underscored(word: str) -> str:
    """``--max-cost 3`` is as good as ``--max_cost 3``."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def parse_config(config_type: type[C], argv: Sequence[str], values: Mapping[str, Any], prog: str) -> C:
    """Build a configuration from file values, overridden by ``--field value`` and ``--part.field value``.

    Raises UsageError with one sentence that names every wrong field. ``-h`` prints help and exits.
    """

    class CommandLine(BaseSettings, config_type):  # type: ignore[misc, valid-type]
        model_config = SettingsConfigDict(
            extra="forbid",
            cli_parse_args=[_underscored(word) for word in argv],
            cli_prog_name=prog,
            cli_exit_on_error=False,
            cli_implicit_flags=True,
            cli_hide_none_type=True,
            nested_model_default_partial_update=True,
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            *_: PydanticBaseSettingsSource,
            **__: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (init_settings,)  # The command line comes on top; the environment has no say.

    CommandLine.__doc__ = config_type.__doc__
    try:
        # Twice, so that the result is the verb's own type and not this function's.
        return config_type.model_validate(CommandLine(**values).model_dump(exclude_unset=True))
    except ValidationError as error:
        raise UsageError(describe_validation_error(error, f"{prog} configuration", config_type)) from None
    except SettingsError as error:
        said = str(error).removeprefix("error parsing CLI: ")
        unknown = re.search(r"unrecognized arguments: (--[^\s=]+)", said)
        hint = meant(unknown[1], _options(config_type)) if unknown else ""
        raise UsageError(f"{prog}: {said}{hint}.") from None


def _options(model: type[BaseModel], prefix: str = "--") -> Iterator[str]:
    """The options of all fields, and of the fields of parts."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for part in models_in(field.annotation):
            yield from _options(part, f"{prefix}{name}.")
