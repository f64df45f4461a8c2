"""The demo's report: one self-contained HTML page, made from a record and manifests, so it can be made again.

python -m cluster.demo.report ~/.manta/reports/<id>/demo.json
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cluster.demo.charts import clock, line_chart, share_bars, time_bars, wilson
from cluster.demo.collect import EXAMPLES, ReportData, collect
from cluster.demo.record import DemoRecord
from cluster.errors import MantaError
from cluster.settings import load_settings
from cluster.storage import ArtifactStore, object_store

TEMPLATE = Path(__file__).parent / "report.html.jinja"
_STYLE = {"done": "accent", "found": "muted", "failed": "bad"}


def render(data: ReportData, next_steps: Mapping[str, str]) -> str:
    """The page. ``next_steps`` maps a title to a command or snippet to try."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"clock": clock, "short": _short, "figure": _figure}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        data=data,
        record=data.record,
        manifests=data.manifests,
        total_s=sum(step.seconds for step in data.record.steps),
        tiles=_tiles(data),
        time_chart=time_bars(
            [(s.name.replace("_", " "), s.seconds, _STYLE[s.state]) for s in data.record.steps]
        ),
        loss_chart=_loss_chart(data),
        score_chart=_score_chart(data),
        scores=_scores(data),
        majority=_majority(data.scorecard),
        last_loss=_last_loss(data),
        examples=_examples(data.scorecard),
        batch_rows=_batch_rows(data.batch_rows),
        expectations=_expectations(data.dataset),
        quarantine=data.quarantine,
        next_steps=next_steps,
    )


def publish(record: DemoRecord, folder: Path, next_steps: Mapping[str, str]) -> Path:
    """Write ``report.html`` beside the record, and a copy of both to S3; return the page's path."""
    store = object_store()
    page = folder / "report.html"
    folder.mkdir(parents=True, exist_ok=True)
    page.write_text(render(collect(record, ArtifactStore(store)), next_steps), encoding="utf-8")
    record.save(folder / "demo.json")
    for path in (page, folder / "demo.json"):
        store.put(report_key(record, path.name), path.read_bytes())
    return page


def report_key(record: DemoRecord, name: str) -> str:
    """Where a report's file stands in the bucket."""
    return f"{load_settings().team}/reports/demo/{record.id}/{name}"


def _tiles(data: ReportData) -> list[tuple[str, str, str]]:
    """The figures at the top: (label, value, note)."""
    tiles = []
    scores = {row["name"]: row for row in _scores(data)}
    if {"base", "tuned"} <= scores.keys():
        base, tuned = scores["base"], scores["tuned"]
        note = f"base {base['accuracy']:.1%} on the same {tuned['rows']} held-out rows"
        tiles.append(("Accuracy, tuned model", f"{tuned['accuracy']:.1%}", note))
    if batch := data.manifests.get("batch_inference"):
        summary = batch.summary
        note = f"{summary.get('rows', 0)} rows, {_figure(summary.get('tokens_per_s', 0))} tokens/s"
        tiles.append(("Batch throughput", f"{_figure(summary.get('rows_per_s', 0))} rows/s", note))
    stopped = sum(
        chat.error is not None or chat.finish_reason == "content_filter" for chat in data.record.chats
    )
    if data.record.chats:
        tiles.append(("Guarded chats", str(len(data.record.chats)), f"{stopped} blocked by the guards"))
    if dataset := data.manifests.get("preprocess"):
        kept = sum(dataset.counts.get(split, 0) for split in ("train", "test"))
        tiles.append(("Rows kept", f"{kept:,}", f"{dataset.counts.get('quarantined', 0):,} in quarantine"))
    return tiles


def _loss_chart(data: ReportData) -> Markup:
    points = [
        (float(row["step"]), float(row["loss"])) for row in data.training if row.get("loss") is not None
    ]
    return line_chart(points, "step", "training loss")


def _last_loss(data: ReportData) -> float | None:
    """The figure of the table of steps, a mean of the last few: one step's own loss is noise."""
    if not data.training:
        return None
    checkpoint = data.manifests.get("finetune")
    last = data.training[-1].get("loss")
    found = checkpoint.summary.get("last_loss", last) if checkpoint else last
    return None if found is None else float(found)


def _scores(data: ReportData) -> list[dict[str, Any]]:
    """One row a model: name, rows, valid, correct, accuracy with its interval."""
    rows = int(data.scorecard.get("rows", 0))
    found = []
    for name, score in data.scorecard.get("models", {}).items():
        correct, valid = int(score.get("correct", 0)), int(score.get("valid", 0))
        low, high = wilson(correct, rows)
        share = correct / rows if rows else 0.0
        found.append(
            {
                "name": name,
                "rows": rows,
                "valid": valid,
                "correct": correct,
                "accuracy": share,
                "low": low,
                "high": high,
            }
        )
    return found


def _majority(scorecard: Mapping[str, Any]) -> dict[str, Any] | None:
    """The commonest right label and its share: what a model that learned nothing else would reach."""
    classes = scorecard.get("models", {}).get("base", {}).get("classes", {})
    rows = sum(int(score["rows"]) for score in classes.values())
    if not rows:
        return None
    label = max(classes, key=lambda name: classes[name]["rows"])
    return {"label": label, "share": classes[label]["rows"] / rows}


def _score_chart(data: ReportData) -> Markup:
    bars = []
    for row in _scores(data):
        style = "accent" if row["name"] == "tuned" else "muted"
        bars += [
            (f"{row['name']}: right", row["correct"], row["rows"], style),
            (f"{row['name']}: valid answer", row["valid"], row["rows"], f"{style} thin"),
        ]
    return share_bars(bars) if bars else Markup("")


def _examples(scorecard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows side by side, without the instruction that all of them begin with."""
    examples = scorecard.get("examples", [])[:EXAMPLES]
    return [
        {
            "prompt": prompt,
            "expected": example["expected"],
            "answers": [
                (example[name], _first_word(example[name]) == example["expected"])
                for name in ("base", "tuned")
            ],
        }
        for example, prompt in zip(examples, _without_shared(e["prompt"] for e in examples), strict=True)
    ]


def _without_shared(texts: Iterable[str]) -> list[str]:
    """The texts without the lines that all of them begin with."""
    lines = [text.splitlines() for text in texts]
    while len(lines) > 1 and all(len(own) > 1 and own[0] == lines[0][0] for own in lines):
        lines = [own[1:] for own in lines]
    return ["\n".join(own).strip() for own in lines]


def _batch_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows to look at, their prompts without what all of them begin with; a blocked one has none."""
    kept = iter(_without_shared(row["prompt"] for row in rows if row["prompt"]))
    return [{**row, "prompt": next(kept) if row["prompt"] else ""} for row in rows]


def _first_word(answer: str) -> str:
    word = re.search(r"[^\W_]+", answer)
    return word[0].casefold() if word else ""


def _expectations(checks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the data-check table, of every split that was judged."""
    found = []
    for split, report in _reports(checks):
        for item in report.get("expectations", []):
            seen = item.get("error") or item.get("observed_value")
            if seen is None and item.get("element_count"):
                seen = f"{item.get('unexpected_count') or 0:,} of {item['element_count']:,} rows break it"
            found.append(
                {
                    "split": split,
                    "type": str(item.get("type", "")).removeprefix("expect_").replace("_", " "),
                    "column": item.get("column") or "table",
                    "asked": ", ".join(
                        f"{name.replace('_', ' ')} {value}"
                        for name, value in (item.get("kwargs") or {}).items()
                        if name not in ("column", "column_list")
                    ),
                    "severity": item.get("severity", "critical"),
                    "success": bool(item.get("success")),
                    "seen": _figure(seen) if isinstance(seen, int | float) else seen,
                }
            )
    return found


def _reports(checks: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every suite's report in checks.json, with the stage at which it judged."""
    return [(stage, report) for stage, report in checks.get("suites", {}).items() if report]


def _short(text: object, length: int = 220) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= length else words[: length - 1].rstrip() + "…"


def _figure(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def main(argv: list[str]) -> int:
    """Make the page of a record again."""
    if len(argv) != 1:
        print("usage: python -m cluster.demo.report <demo.json>", file=sys.stderr)
        return 2
    try:
        path = Path(argv[0])
        print(publish(DemoRecord.load(path), path.parent, {}))
    except MantaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
