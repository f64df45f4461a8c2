"""``manta key``: who may use the gateway, for what and how much."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.duration import Duration
from cluster.cli.values import NONE, Amount, OrNone

if TYPE_CHECKING:
    from cluster.budgets import BudgetUse
    from cluster.contracts import KeyRecord, KeyTerms
    from cluster.keys import KeyRepository, NewSecret

_json = click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")
_MANY = click.IntRange(min=1)


@click.group(no_args_is_help=False)  # A missing command is one sentence, too.
def key() -> None:
    """Make, list and end API keys.

    They stand in the SQL database, and gateways learn of a change within seconds. Every command also
    publishes what one before it could not.
    """


@key.command()
@click.argument("key_id", metavar="ID")
@click.option("--owner", help="Who answers for it; MANTA_USER if absent.")
@click.option("--team", help="The team that it belongs to; MANTA_TEAM if absent.")
@click.option("--tenant", default="default", show_default=True, help="The tenant that it belongs to.")
@click.option("--model", "models", multiple=True, help="A model that it may use, again and again; else all.")
@click.option("--policy", help="Guard policy that overrides the models' own.")
@click.option("--requests-per-minute", type=_MANY, help="Most requests a minute.")
@click.option("--tokens-per-minute", type=_MANY, help="Most tokens of prompts and answers a minute.")
@click.option("--concurrent-requests", type=_MANY, help="Most requests at work at once.")
@click.option("--max-output-tokens", type=_MANY, help="Most tokens of one answer.")
@click.option("--budget-day", type=Amount(), help="Most money a day in UTC, in MANTA_CURRENCY.")
@click.option("--budget-month", type=Amount(), help="Most money a calendar month in UTC.")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(["admin"]), help="Admin API of the gateway."
)
@click.option("--expires", type=Duration(zero=False), help="Good for so long: 30d, 12h. For ever if absent.")
@_json
def create(
    key_id: str,
    owner: str | None,
    team: str | None,
    tenant: str,
    models: tuple[str, ...],
    policy: str | None,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    concurrent_requests: int | None,
    max_output_tokens: int | None,
    budget_day: Decimal | None,
    budget_month: Decimal | None,
    scopes: tuple[str, ...],
    expires: timedelta | None,
    as_json: bool,
) -> int:
    """Make a key and print its secret.

    ID is a name for it, safe to log. The secret is on standard output, this once: it is kept nowhere.
    """
    from cluster.settings import load_settings

    settings = load_settings()
    terms = _terms(
        id=key_id,
        owner=owner or settings.user,
        team=team or settings.team,
        tenant=tenant,
        models=list(models) or None,
        policy=policy,
        limits={
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "concurrent_requests": concurrent_requests,
            "max_output_tokens": max_output_tokens,
            "budget_day": budget_day,
            "budget_month": budget_month,
        },
        scopes=list(scopes),
        expires_at=None if expires is None else datetime.now(UTC) + expires,
    )
    repository = _repository()
    _check_published(terms)
    return _hand_over(repository, repository.create(terms), as_json)


@key.command()
@click.argument("key_id", metavar="ID")
@click.option("--owner", help="Who answers for it.")
@click.option("--model", "models", multiple=True, help="A model that it may use, again and again; or none.")
@click.option("--policy", help="Guard policy that overrides the models' own; or none.")
@click.option("--requests-per-minute", type=OrNone(_MANY), help="Most requests a minute; or none.")
@click.option("--tokens-per-minute", type=OrNone(_MANY), help="Most tokens a minute; or none.")
@click.option("--concurrent-requests", type=OrNone(_MANY), help="Most requests at work at once; or none.")
@click.option("--max-output-tokens", type=OrNone(_MANY), help="Most tokens of one answer; or none.")
@click.option("--budget-day", type=OrNone(Amount()), help="Most money a day in UTC; or none.")
@click.option("--budget-month", type=OrNone(Amount()), help="Most money a calendar month in UTC; or none.")
@click.option("--expires", type=OrNone(Duration(zero=False)), help="Good for so long from now; or none.")
@_json
def update(
    key_id: str, owner: str | None, models: tuple[str, ...], policy: str | None, as_json: bool, **more: Any
) -> int:
    """Change what a key may use.

    What is not named stays; the word none takes a restriction away. Its secret stays good.
    """
    changes: dict[str, Any] = {} if owner is None else {"owner": owner}
    if models:
        changes["models"] = None if models == (NONE,) else list(models)
    if policy is not None:
        changes["policy"] = None if policy == NONE else policy
    if (expires := more.pop("expires")) is not None:
        changes["expires_at"] = None if expires == NONE else datetime.now(UTC) + expires
    limits = {name: None if value == NONE else value for name, value in more.items() if value is not None}
    if not changes and not limits:
        raise click.UsageError("name what to change")
    repository = _repository()

    def change(terms: KeyTerms) -> KeyTerms:
        # Validated anew: model_copy checks nothing.
        had = terms.model_dump()
        return _terms(**had | changes | {"limits": had["limits"] | limits})

    _check_published(change(repository.get(key_id).terms))
    record = repository.update(key_id, change)
    published = _publish(repository, "error")
    if as_json:
        click.echo(json.dumps(_document(record) | {"published": published}))
    elif published:
        click.echo(f"{record.id} is changed: gateways keep to it within 5 seconds")
    return 0 if published else 1


@key.command(name="list")
@click.option("--team", help="Only this team's.")
@_json
def list_keys(team: str | None, as_json: bool) -> None:
    """List all keys that ever were, by id."""
    repository = _repository()
    _publish(repository, "warning")
    found = repository.list(team)
    if as_json:
        click.echo(json.dumps([_document(record) for record in found]))
        return
    for record in found:
        limits = record.limits.model_dump(exclude_none=True)
        words = [f"{name.replace('_', ' ')} {limit}" for name, limit in limits.items()]
        if record.models is not None:
            words.append(f"only {', '.join(record.models)}")
        if record.expires_at is not None:
            words.append(f"until {record.expires_at:%Y-%m-%d %H:%M}")
        state = _document(record)["state"]
        line = f"{state:<9}{record.id:<24}{record.team:<16}{record.owner:<24}{'; '.join(words)}"
        click.echo(line.rstrip())


@key.command()
@click.argument("key_id", metavar="ID")
@_json
def show(key_id: str, as_json: bool) -> None:
    """Show one key."""
    repository = _repository()
    record = repository.get(key_id)
    _publish(repository, "warning")
    budgets = _budgets(record)
    if as_json:
        click.echo(json.dumps(_document(record) | {"budgets": [use.document() for use in budgets]}))
        return
    for name, value in _document(record).items():
        for label, item in (value if isinstance(value, dict) else {name: value}).items():
            if item is not None and item != []:
                click.echo(f"{label:<20} {', '.join(item) if isinstance(item, list) else item}")
    for use in budgets:
        click.echo(f"{f'spent this {use.span}':<20} {use.spent:f}, and gateways hold {use.reserved:f}")


@key.command()
@click.argument("key_id", metavar="ID")
@_json
def revoke(key_id: str, as_json: bool) -> int:
    """End a key, for ever.

    Gateways refuse it within 5 seconds.
    """
    repository = _repository()
    record = repository.revoke(key_id)
    published = _publish(repository, "error")
    if as_json:
        click.echo(json.dumps(_document(record) | {"published": published}))
    elif published:
        click.echo(f"{record.id} is revoked: gateways refuse it within 5 seconds")
    return 0 if published else 1


@key.command()
@click.argument("key_id", metavar="ID")
@click.option(
    "--grace",
    type=Duration(),
    default="0s",
    show_default=True,
    help="The old secret stays good for so long: 1h, 7d.",
)
@_json
def rotate(key_id: str, grace: timedelta, as_json: bool) -> int:
    """Give a key a new secret, and print it.

    It is on standard output, this once. With --grace the secret before it, and none older, stays good for a
    while.
    """
    repository = _repository()
    return _hand_over(repository, repository.rotate(key_id, grace), as_json)


@key.command()
@click.option("--prune", is_flag=True, help="Take out keys that this database has never known.")
@_json
def publish(prune: bool, as_json: bool) -> None:
    """Let gateways know what the database holds.

    The other commands do it, too: this is for when one of them could not.
    """
    from cluster import keys

    repository = _repository()
    snapshot = keys.publish(repository, by="manta key publish", prune=prune)
    _warn_of_strangers(repository, [item.id for item in snapshot.keys])
    if as_json:
        click.echo(json.dumps({"snapshot": snapshot.number, "keys": [item.id for item in snapshot.keys]}))
    else:
        click.echo(f"{len(snapshot.keys)} keys are published (snapshot {snapshot.number})")


def _repository() -> KeyRepository:
    from cluster.keys import KeyRepository
    from cluster.settings import load_settings

    return KeyRepository(load_settings().database_url)


def _budgets(record: KeyRecord) -> list[BudgetUse]:
    from cluster.budget_ledger import BudgetLedger
    from cluster.settings import load_settings

    return BudgetLedger(load_settings().database_url).use(record.id, record.limits)


def _terms(**values: Any) -> KeyTerms:
    from pydantic import ValidationError

    from cluster.contracts import KeyTerms
    from cluster.errors import UsageError
    from cluster.settings import describe_validation_error

    try:
        return KeyTerms.model_validate(values)
    except ValidationError as error:
        raise UsageError(describe_validation_error(error, "key", KeyTerms)) from None


def _check_published(terms: KeyTerms) -> None:
    """A key whose policy no gateway has could do nothing. Raises NotFoundError; warns of unknown models."""
    from cluster import snapshots
    from cluster.errors import NotFoundError

    snapshot = snapshots.newest()
    policies = {"default"} | {policy.name for policy in (snapshot.policies if snapshot else ())}
    if terms.policy is not None and terms.policy not in policies:
        known = ", ".join(sorted(policies))
        raise NotFoundError(
            f"No guard policy {terms.policy!r} is published, only {known}: `manta deploy` publishes those "
            "that its file names."
        )
    routes = {route.model for route in (snapshot.routes if snapshot else ())}
    for model in sorted(set(terms.models or ()) - routes):
        click.echo(f"warning: no model {model!r} is published now", err=True)


def _hand_over(repository: KeyRepository, made: NewSecret, as_json: bool) -> int:
    """Print the secret, whatever becomes of publishing: nobody can print it again."""
    if not as_json:
        click.echo(made.secret)
        click.echo(f"This is the secret of {made.record.id}: it is kept nowhere, so keep it now.", err=True)
        return 0 if _publish(repository, "error") else 1
    published = None  # As long as nobody knows.
    try:
        published = _publish(repository, "error")
    finally:
        click.echo(json.dumps(_document(made.record) | {"secret": made.secret, "published": published}))
    return 0 if published else 1


def _publish(repository: KeyRepository, severity: str) -> bool:
    """Publish what the database holds; False, and a line on standard error, if that cannot be now."""
    from cluster import keys
    from cluster.errors import MantaError

    try:
        snapshot = keys.publish(repository, by="manta key")
    except MantaError as error:
        click.echo(
            f"{severity}: gateways were not told what stands in the database: {str(error).rstrip('.')}. "
            "`manta key publish` tells them.",
            err=True,
        )
        return False
    _warn_of_strangers(repository, [item.id for item in snapshot.keys])
    return True


def _warn_of_strangers(repository: KeyRepository, published: list[str]) -> None:
    from cluster.errors import MantaError

    try:
        known = {record.id for record in repository.list()}
    except MantaError as error:  # What the command was for is done.
        click.echo(f"warning: gateways may accept keys that this database does not know: {error}", err=True)
        return
    if strangers := sorted(set(published) - known):
        print(
            f"warning: gateways accept keys that this database has never known ({', '.join(strangers)}): "
            "`manta key publish --prune` takes them out",
            file=sys.stderr,
        )


def _document(record: KeyRecord) -> dict[str, Any]:
    from cluster.keys import document

    return document(record)
