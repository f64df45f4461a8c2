"""What a demo runs: the shipped one by default, another model or fewer rows by a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import UsageError
from cluster.job.config import read_yaml
from cluster.settings import describe_validation_error

VERBS = ("preprocess", "finetune", "evaluate", "promote", "batch_inference")


class DemoSettings(BaseModel):
    """Choices of a demo. Everything about a verb stands in that verb's own configuration file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    configs: dict[str, str] = Field(
        default_factory=dict, description="Configuration file of a verb; else jobs/configs/demo/<verb>.yaml."
    )
    overrides: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Fields of a verb's configuration, as on its command line."
    )
    serve: str = Field("deployments/configs/demo.yaml", description="Serve configuration to deploy.")
    base_model: str = Field("gemma-3-270m", description="Public name of the base model.")
    tuned_model: str = Field("prompt-shield", description="Public name of the tuned model.")
    chat_max_tokens: int = Field(48, ge=1, description="Most tokens of an answer in the chats.")

    def config(self, verb: str) -> str:
        """The configuration file of a verb."""
        return self.configs.get(verb, f"jobs/configs/demo/{verb}.yaml")

    def arguments(self, verb: str) -> list[str]:
        """A verb's overrides as ``--field value``; what is nested or a list is JSON."""
        import json

        words = []
        for field, value in self.overrides.get(verb, {}).items():
            words += [f"--{field}", value if isinstance(value, str) else json.dumps(value)]
        return words


def load_demo_settings(path: Path | None) -> DemoSettings:
    """The shipped demo, or the one in a YAML file. Raises UsageError."""
    if path is None:
        return DemoSettings()
    try:
        settings = DemoSettings.model_validate(read_yaml(path))
    except ValidationError as error:
        raise UsageError(describe_validation_error(error, str(path), DemoSettings)) from None
    for verb in [*settings.configs, *settings.overrides]:
        if verb not in VERBS:
            raise UsageError(f"{path}: the demo has no verb {verb!r}; it runs {', '.join(VERBS)}.")
    return settings
