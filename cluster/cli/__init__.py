"""The ``manta`` command: a frame that loads a command only when it is used.

Commands of other rooms come through the entry point group ``manta.commands``: the name is the command's, the
value the module and its click command. Help is read from the command's docstring without importing it, so
``manta --help`` costs neither Ray nor boto3.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import click

from cluster.errors import MantaError, UnavailableError, UsageError
from cluster.installed import missing_platform

_OWN = {
    "up": "cluster.cli.local:up",
    "down": "cluster.cli.local:down",
    "status": "cluster.cli.local:status",
    "env": "cluster.cli.local:env",
    "submit": "cluster.cli.jobs:submit",
    "logs": "cluster.cli.jobs:logs",
    "runs": "cluster.cli.runs:runs",
    "gc": "cluster.cli.runs:gc",
    "schedule": "cluster.cli.schedule:schedule",
    "key": "cluster.cli.keys:key",
    "usage": "cluster.cli.records:usage",
    "erase": "cluster.cli.records:erase",
    "prompt": "cluster.cli.prompts:prompt",
}
#: What works with the extra `client` alone.
_CLIENT = frozenset({"submit", "logs", "status"})


class LazyGroup(click.Group):
    """A group whose commands are named as ``module:attribute`` and imported when they are called."""

    def __init__(self, targets: Mapping[str, str], **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._targets = dict(targets)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of a cluster's life."""
        return list(self._targets)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        target = self._targets.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command), f"{target} is no click command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the first sentence of each one's docstring."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(target)) for name, target in self._targets.items()])


class _Manta(LazyGroup):
    """The whole command, which knows what a client's environment cannot do."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; UnavailableError if the packages that it stands on are not installed."""
        if cmd_name in self._targets and cmd_name not in _CLIENT and (missing := missing_platform()):
            raise UnavailableError(
                f"`manta {cmd_name}` needs the whole platform, which is not installed here (there is no "
                f"{missing[0]}): run `make setup` in the checkout."
            )
        return super().get_command(ctx, cmd_name)


def _summary(target: str) -> str:
    """First line of a function's docstring, read from its source."""
    module, _, attribute = target.partition(":")
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        return ""
    if spec is None or spec.origin is None:
        return ""
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == attribute:
            return (ast.get_docstring(node) or "").partition("\n")[0].rstrip(".")
    return ""


def cli() -> click.Group:
    """The whole command, with what other rooms have registered."""
    others = {point.name: point.value for point in sorted(entry_points(group="manta.commands"))}
    return _Manta(
        {**_OWN, **others},
        name="manta",
        help="LLM operations on your own Ray cluster.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
        callback=_enter,
    )


def _enter() -> None:
    """Before any command: let it reach the cluster that `manta up` started."""
    from cluster.local.environment import export_environment

    export_environment()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status: 0 only for success, 2 for wrong usage.

    A user's mistake is one sentence on standard error; with ``--json`` also ``{"error": ...}`` on standard
    output.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = cli().main(words, prog_name="manta", standalone_mode=False)
    except MantaError as error:
        _tell(error, words)
        sys.exit(error.exit_status)
    except click.ClickException as error:
        hint = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "manta"
        sentence = f"{error.format_message().rstrip('.')}: see `{hint} --help`."
        _tell(UsageError(sentence), words)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _tell(error: MantaError, words: Sequence[str]) -> None:
    own = words[: words.index("--")] if "--" in words else words
    if "--json" in own:
        print(json.dumps({"error": {"type": type(error).__name__, "message": str(error)}}))
    print(f"error: {error}", file=sys.stderr)
