"""Suites of expectations: files in Great Expectations' own serialised form, JSON or the same as YAML."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import NotFoundError, UsageError
from cluster.nearest import meant

SUITES = Path(__file__).parent / "suites"


@dataclass(frozen=True)
class Suite:
    """A suite file that was read but not yet built: reading needs no Great Expectations."""

    name: str
    #: The file's content: ``{name, expectations: [{type, kwargs, severity?, meta?}], meta?, ...}``.
    document: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical content, as 64 hex digits."""
        canonical = json.dumps(
            self.document,
            sort_keys=True,
            ensure_ascii=False,
            separators=(",", ":"),
            default=str,  # YAML has dates.
        )
        return hashlib.sha256(canonical.encode()).hexdigest()

    def build(self) -> list[Any]:
        """Great Expectations' own Expectation objects, in the file's order.

        Raises UsageError that names the expectation when Great Expectations does not accept it. They are
        built one by one because ``ExpectationSuite`` only logs a configuration that it cannot
        read and goes on without it: such a suite would pass for want of its expectations.
        """
        from great_expectations.exceptions import ExpectationNotFoundError
        from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
        from great_expectations.expectations.registry import list_registered_expectation_implementations

        built = []
        for number, entry in enumerate(self.document["expectations"], start=1):
            label = entry.get("type", "without a type") if isinstance(entry, dict) else "no mapping"
            try:
                built.append(ExpectationConfiguration(**entry).to_domain_obj())
            except Exception as error:
                why = _one_line(error)
                if isinstance(error, ExpectationNotFoundError):
                    why += meant(str(label), list_registered_expectation_implementations())
                raise UsageError(f"suite {self.name}: expectation {number} ({label}): {why}.") from None
        return built


def load_suite(name_or_path: str) -> Suite:
    """Read a suite by the name of a shipped one or by the path of a ``.json``/``.yaml`` file.

    Raises NotFoundError when there is none, UsageError when the file is no suite.
    """
    path = _find(name_or_path)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))  # YAML reads JSON too.
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"suite {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise UsageError(f"suite {path} is neither YAML nor JSON: {_one_line(error)}.") from None
    if not isinstance(document, dict) or not isinstance(document.get("expectations"), list):
        raise UsageError(f"suite {path}: expected a mapping with a name and a list of expectations.")
    if not document["expectations"]:
        raise UsageError(f"suite {path} has no expectation: it would pass whatever the data is.")
    if not isinstance(document.get("name"), str) or not document["name"]:
        raise UsageError(f"suite {path} has no name.")
    return Suite(name=document["name"], document=document)


def _find(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.suffix in {".json", ".yaml", ".yml"}:
        if path.is_file():
            return path
    else:
        for suffix in (".yaml", ".json"):
            shipped = SUITES / f"{name_or_path}{suffix}"
            if shipped.is_file():
                return shipped
    known = ", ".join(sorted(p.stem for p in SUITES.iterdir() if p.suffix in {".json", ".yaml"}))
    raise NotFoundError(f"suite {name_or_path}: no such file, and the shipped suites are {known}.")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rstrip(".")[:300]
