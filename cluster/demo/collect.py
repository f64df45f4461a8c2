"""Everything that the report shows, read from the demo's record, manifests and the files that they name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.contracts import Manifest
from cluster.demo.record import DemoRecord
from cluster.errors import MantaError
from cluster.storage import ArtifactStore

if TYPE_CHECKING:
    import pyarrow as pa

#: How many of each the page shows.
EXAMPLES, BATCH_ROWS = 8, 8


@dataclass(frozen=True)
class LineageStep:
    """One artifact (or outside source) on the way back from a batch row."""

    kind: str
    address: str
    digest: str
    detail: str
    depth: int


@dataclass(frozen=True)
class ReportData:
    """What the template gets; parts of which nothing is known are empty."""

    record: DemoRecord
    manifests: dict[str, Manifest]
    dataset: dict[str, Any] = field(default_factory=dict)
    quarantine: dict[str, int] = field(default_factory=dict)
    training: list[dict[str, Any]] = field(default_factory=list)
    scorecard: dict[str, Any] = field(default_factory=dict)
    decision: dict[str, Any] = field(default_factory=dict)
    batch_rows: list[dict[str, Any]] = field(default_factory=list)
    lineage: list[LineageStep] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


def collect(record: DemoRecord, artifacts: ArtifactStore) -> ReportData:
    """Read what ``record``'s steps made. What cannot be found is left out; the report says so."""
    manifests: dict[str, Manifest] = {}
    for step in record.steps:
        if step.artifact is not None:
            try:
                manifests[step.name] = artifacts.open(step.artifact)
            except (MantaError, ValueError):
                continue
    batch = manifests.get("batch_inference")
    rows = list(_batch_rows(artifacts, batch)) if batch else []
    versions: dict[str, str] = {}
    for manifest in manifests.values():
        versions |= manifest.versions
    return ReportData(
        record=record,
        manifests=manifests,
        dataset=_json(artifacts, manifests.get("preprocess"), "checks.json"),
        quarantine=_quarantine(artifacts, manifests.get("preprocess")),
        training=_lines(artifacts, manifests.get("finetune"), "training.jsonl"),
        scorecard=_json(artifacts, manifests.get("evaluate"), "scorecard.json"),
        decision=_json(artifacts, manifests.get("promote"), "decision.json"),
        batch_rows=rows,
        lineage=list(_lineage(artifacts, batch, rows)) if batch else [],
        versions=versions,
    )


def _json(artifacts: ArtifactStore, manifest: Manifest | None, path: str) -> dict[str, Any]:
    if manifest is None or path not in {entry.path for entry in manifest.files}:
        return {}
    value = json.loads(artifacts.read(manifest, path))
    return value if isinstance(value, dict) else {"items": value}


def _lines(artifacts: ArtifactStore, manifest: Manifest | None, path: str) -> list[dict[str, Any]]:
    if manifest is None or path not in {entry.path for entry in manifest.files}:
        return []
    return [json.loads(line) for line in artifacts.read(manifest, path).splitlines() if line.strip()]


def _quarantine(artifacts: ArtifactStore, manifest: Manifest | None) -> dict[str, int]:
    """Rows kept apart, by reason, the commonest first."""
    reasons = Counter[str]()
    for entry in manifest.files if manifest else ():
        if manifest and entry.path.startswith("quarantine/") and entry.path.endswith(".parquet"):
            reasons.update(_table(artifacts, manifest, entry.path, ["reason"]).column("reason").to_pylist())
    return dict(reasons.most_common(12))


def _table(artifacts: ArtifactStore, manifest: Manifest, path: str, columns: list[str]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(artifacts.read(manifest, path)), columns=columns)


def _batch_rows(artifacts: ArtifactStore, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """A few rows to look at: those that a guard touched first."""
    rows: list[dict[str, Any]] = []
    wanted = [
        "row_id",
        "status",
        "prompt",
        "response",
        "finish_reason",
        "input_action",
        "output_action",
        "seconds",
    ]
    for folder in ("output/", "errors/"):
        first = next((entry.path for entry in manifest.files if entry.path.startswith(folder)), None)
        if first is not None:
            table = _table(artifacts, manifest, first, wanted)
            found = table.slice(0, 400).to_pylist()
            found.sort(key=lambda row: row["input_action"] == "none" and row["output_action"] == "none")
            touched = [
                row for row in found if row["input_action"] != "none" or row["output_action"] != "none"
            ]
            rows += [*touched[:2], *[row for row in found if row not in touched]][:6]
    yield from rows[:BATCH_ROWS]


def _lineage(artifacts: ArtifactStore, batch: Manifest, rows: list[dict[str, Any]]) -> Iterator[LineageStep]:
    """From one batch row back to the raw data: every manifest names its inputs."""
    succeeded = next((row for row in rows if row["status"] == "succeeded"), rows[0] if rows else None)
    if succeeded is not None:
        detail = f"in {artifacts.uri(batch, 'output/' if succeeded['status'] == 'succeeded' else 'errors/')}"
        yield LineageStep("row", str(succeeded["row_id"]), "", detail, 0)
    seen = set[str]()

    def walk(manifest: Manifest, depth: int) -> Iterator[LineageStep]:
        seen.add(str(manifest.ref))
        counts = ", ".join(f"{count} {name}" for name, count in manifest.counts.items())
        made = f"made {manifest.ended_at:%Y-%m-%d %H:%M} UTC by run {manifest.run_id}" + (
            f"; {counts}" if counts else ""
        )
        yield LineageStep(manifest.ref.kind, str(manifest.ref), manifest.data_digest, made, depth)
        for item in manifest.inputs:
            try:
                parent = artifacts.open(item.address) if item.address.count("/") >= 3 else None
            except (MantaError, ValueError):
                parent = None
            if parent is None:
                kind, _, name = item.address.partition(":")
                named = kind in ("policy", "suite")
                yield LineageStep(
                    kind if named else "source", name if named else item.address, item.digest, "", depth + 1
                )
            elif str(parent.ref) in seen:
                yield LineageStep(
                    parent.ref.kind, str(parent.ref), parent.data_digest, "see above", depth + 1
                )
            else:
                yield from walk(parent, depth + 1)

    yield from walk(batch, 1)
