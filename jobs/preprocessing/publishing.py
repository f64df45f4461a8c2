"""What a dataset version says of itself: its profile and its card, beside the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cluster.contracts import ArtifactInput, Manifest
from cluster.errors import MantaError, RefusedError
from cluster.job import JobRun
from cluster.job.provenance import package_versions
from jobs.preprocessing.account import Tally, nested
from jobs.preprocessing.marking import AUGMENT
from jobs.preprocessing.rows import RowFormat
from jobs.preprocessing.shaping import Shape
from jobs.preprocessing.writing import SHOWN_CHARS

if TYPE_CHECKING:
    from validation.data import GateReport
    from validation.data.card import CardData, CardExample, CardGate, CardPrevious, CardStage
    from validation.data.personal import Mask, PersonalData
    from validation.data.previous import Previous
    from validation.data.profile import Profile, ProfileSpec

PROFILE = "profile.json"
#: A card names so many sources, and tells how many more there are.
MAX_SOURCES = 100
MAX_EXAMPLES = 60


@dataclass(frozen=True)
class Facts:
    """What a run knows when its data is written."""

    counts: Mapping[str, int]
    tally: Tally
    #: Stages that were on, in order.
    stages: Sequence[str]
    suites: Mapping[str, GateReport]
    examples: Sequence[Mapping[str, Any]]
    profile: Profile
    #: Column of the splits to its type.
    columns: Mapping[str, Any]


def profile_spec(form: RowFormat, shape: Shape) -> ProfileSpec:
    """What is measured of finished rows: texts, and the values of the other columns."""
    from validation.data.profile import NUMBERS, ProfileSpec

    texts = ["prompt", "completion"] if shape.template else [n for n in shape.text if n in shape.keep]
    kinds = dict(form.columns) | dict.fromkeys(shape.template.values if shape.template else (), "string")
    plain = [n for n in shape.keep if n not in texts and kinds[n] in ("string", "int64", "bool")]
    return ProfileSpec(
        texts=[n for n in texts if n in ("prompt", "completion") or kinds[n] in ("string", "messages")],
        categories=[n for n in plain if n != form.id_column],
        numbers={n: NUMBERS for n in shape.keep if kinds[n] in ("int64", "float64") and n != form.id_column},
    )


def publish(
    job: JobRun,
    facts: Facts,
    sources: Sequence[ArtifactInput],
    about: Mapping[str, Any],
    protect: PersonalData | None = None,
    before: Previous | None = None,
) -> dict[str, Any]:
    """Write profile and card; give what the summary says of them.

    :param before: the version that this one is compared with.
    :param about: fields of the card that the configuration says: license, description, languages.
    :param protect: what the configuration takes for personal data.
    """
    from validation.data.card import card_html, card_markdown
    from validation.data.docs import docs_html
    from validation.data.personal import Mask, PersonalData

    # Whatever the configuration lets pass, a card is read by more people than the data.
    mask = Mask(PersonalData(), *([protect] if protect else []))
    previous = _drifted(job, facts.profile, before) if before else None
    card = _card(job, facts, sources, about, previous, mask)
    job.attempt.write(PROFILE, facts.profile.to_json())
    job.attempt.write("card.md", card_markdown(card).encode())
    job.attempt.write("card.html", card_html(card).encode())
    results = {stage: report.validation for stage, report in facts.suites.items()}
    job.attempt.write("docs.html", docs_html(results, job.ref.name, mask=mask, show_values=False).encode())
    if previous is None:
        return {}
    return {"previous": previous.address, "drift": previous.drift.verdict}


def tell_places(job: JobRun, made: Manifest) -> None:
    """Print where the pages and the quarantine of a version are."""
    for what, path in (("card", "card.html"), ("suites' page", "docs.html"), ("quarantine", "quarantine/")):
        job.progress(f"{what}: {job.artifacts.uri(made, path)}")


def _card(
    job: JobRun,
    facts: Facts,
    sources: Sequence[ArtifactInput],
    about: Mapping[str, Any],
    previous: CardPrevious | None,
    mask: Mask,
) -> CardData:
    from validation.data.card import CardData, CardSource
    from validation.data.schema import shown_type

    more = len(sources) - MAX_SOURCES
    return CardData(
        name=job.ref.name,
        address=str(job.ref),
        made_at=datetime.now(UTC),
        sources=[
            CardSource(address=s.address, digest=s.digest, rows=facts.tally.files[str(number)])
            for number, s in enumerate(sources[:MAX_SOURCES])
        ],
        counts=dict(facts.counts),
        columns={name: shown_type(kind) for name, kind in facts.columns.items()},
        stages=list(_stages(facts)),
        gates=list(_gates(facts.suites, mask)),
        examples=list(_examples(facts.examples, mask)),
        profile=facts.profile,
        previous=previous,
        notes=[f"{more:,} more sources are in the manifest."] if more > 0 else [],
        versions=package_versions(),
        **about,
    )


def _stages(facts: Facts) -> Iterable[CardStage]:
    from validation.data.card import CardStage

    dropped, warned = nested(facts.tally.dropped), nested(facts.tally.warned)
    changed = {"personal_data": facts.tally.rows["masked"]}
    rows = facts.counts["input"]
    for stage in facts.stages:
        found = CardStage(
            name=stage,
            rows=rows,
            dropped=dropped.get(stage, {}),
            warned=warned.get(stage, {}),
            changed=changed.get(stage),
            made=facts.tally.rows["augmented"] if stage == AUGMENT else 0,
        )
        rows = found.left
        yield found


def _gates(suites: Mapping[str, GateReport], mask: Mask) -> Iterable[CardGate]:
    from validation.data.card import CardGate

    for stage, report in suites.items():
        yield CardGate(
            stage=stage,
            suite=report.suite,
            expectations=len(report.expectations),
            failed=[mask(e.describe()) for e in report.failed],
            warnings=[mask(e.describe()) for e in report.warnings],
            infos=[mask(e.describe()) for e in report.missed("info")],
            left_out=report.left_out,
        )


def _examples(rows: Sequence[Mapping[str, Any]], mask: Mask) -> Iterable[CardExample]:
    from validation.data.card import CardExample

    for row in rows:
        told = {"reason": mask(row["reason"]), "text": mask(row["text"], SHOWN_CHARS)}
        yield CardExample(**{**row, **told})


def version_before(job: JobRun, *, needed: bool) -> Previous | None:
    """The latest version of the dataset; None if it is the first, or its profile cannot be read.

    Raises what keeps the profile from being read, RefusedError if there is none, when it is ``needed``: a
    suite that compares with it must not pass for want of it.
    """
    from validation.data.previous import Previous
    from validation.data.profile import Profile

    try:
        before: Manifest | None = job.artifacts.latest(job.ref.team, job.ref.kind, job.ref.name)
        if before is None:
            return None
        if PROFILE not in {file.path for file in before.files}:
            raise RefusedError(f"{before.ref} has no {PROFILE} to be compared with.")
        profile = Profile.from_json(job.artifacts.read(before, PROFILE))
    except MantaError as problem:
        if needed:
            raise
        job.progress(f"drift is not measured: {problem}")
        return None
    return Previous(str(before.ref), profile, before.counts)


def _drifted(job: JobRun, profile: Profile, before: Previous) -> CardPrevious | None:
    """How far the data is from the version before, if their profiles can be compared."""
    from validation.data.card import CardPrevious
    from validation.data.drift import compare_profiles

    try:
        drift = compare_profiles(profile, before.profile)
    except MantaError as problem:
        job.progress(f"drift is not measured: {problem}")
        return None
    return CardPrevious(address=before.address, profile=before.profile, drift=drift)
