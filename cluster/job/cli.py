"""Turn a verb into a command: ``python -m jobs.<verb> --config x.yaml --field value [--json]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import yaml

from cluster.errors import MantaError
from cluster.job.config import JobConfig, parse_config, read_yaml
from cluster.job.run import JobResult

C = TypeVar("C", bound=JobConfig)


def command(config_type: type[C], run: Callable[[C], JobResult], argv: Sequence[str] | None = None) -> int:
    """Read the configuration, run the verb, print the result as the last line; return the exit status.

    A user's mistake is one sentence on standard error; anything else keeps its traceback.
    """
    frame = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    frame.add_argument("--config", help="YAML file with the configuration's fields.")
    frame.add_argument("--json", action="store_true", help="Print the result as one line of JSON.")
    frame.add_argument("--dry-run", action="store_true", help="Print the whole configuration and stop.")
    options, rest = frame.parse_known_args(argv)
    prog = f"python -m {run.__module__ if run.__module__ != '__main__' else _main_module()}"
    try:
        values = read_yaml(options.config) if options.config else {}
        config = parse_config(config_type, rest, values, prog)
        if options.dry_run:
            print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).rstrip())
            return 0
        result = run(config)
    except MantaError as error:
        if options.json:
            print(json.dumps({"error": str(error)}))
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    print(result.model_dump_json() if options.json else _in_words(result), flush=True)
    return 0


def _main_module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else "job"


def _in_words(result: JobResult) -> str:
    figures = ", ".join(
        f"{key} {value}" for key, value in result.summary.items() if isinstance(value, (int, float))
    )
    return f"{result.artifact}{' (found)' if result.reused else ''}{': ' + figures if figures else ''}"
