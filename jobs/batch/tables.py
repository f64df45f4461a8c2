"""A comparison as Markdown, which reads as well on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.batch.figures import ModelFigures, SideBySide

_NONE = "-"
_LONGEST_TEXT = 200
#: A row and what each model said to it: id, prompt, answers in the models' order.
Shown = tuple[str, str, list[str]]


def table(result: SideBySide) -> str:
    """One column a model; and who agrees with whom, who failed, and what the figures do not tell."""
    return "\n".join(
        [*_table(["", *(model.model for model in result.models)], _metrics(result)), *_below(result)]
    )


def document(name: str, result: SideBySide, shown: Sequence[Shown]) -> str:
    """The table, and a few rows that the models answered differently."""
    parts = [f"# {name}: {len(result.models)} models on {result.rows} rows", "", table(result)]
    if shown:
        header = ["row", "prompt", *(model.model for model in result.models)]
        rows = [[row_id, _short(prompt), *map(_short, answers)] for row_id, prompt, answers in shown]
        parts += ["", "## Rows that they answered differently", "", *_table(header, rows)]
    return "\n".join(parts) + "\n"


def _metrics(result: SideBySide) -> list[list[str]]:
    models = result.models
    rows = [
        ["engine", *(model.engine for model in models)],
        ["answered", *(f"{model.succeeded} of {result.rows}" for model in models)],
        ["blocked by a guard", *(str(model.blocked) for model in models)],
        ["failed", *(str(model.failed) for model in models)],
    ]
    if result.labels:
        rows += [
            ["right answers (95 % interval)", *map(_accuracy, models)],
            [f"against {result.baseline or 'the baseline'}", *map(_against, models)],
            [
                "answers that are a label",
                *(_of(model.score.valid, result.rows) if model.score else _NONE for model in models),
            ],
        ]
    if any(model.json_asked for model in models):
        rows.append(["valid JSON", *(_of(model.json_valid, model.json_asked) for model in models)])
    rows += [
        ["redacted or flagged", *(f"{model.redacted} / {model.flagged}" for model in models)],
        ["cut at max_tokens", *(_of(model.cut, model.succeeded) for model in models)],
        ["empty", *(str(model.empty) for model in models)],
        ["tokens an answer", *(_number(model.tokens_per_answer) for model in models)],
        [
            "seconds a row, p50 / p95",
            *(f"{_number(model.p50_s)} / {_number(model.p95_s)}" for model in models),
        ],
        ["rows a second", *(_number(model.rows_per_s) for model in models)],
        ["tokens a second", *(_number(model.tokens_per_s) for model in models)],
        ["engine's start, seconds", *(_number(model.start_s) for model in models)],
        ["cost", *(_NONE if model.cost is None else f"{model.cost:.6g}" for model in models)],
    ]
    return rows


def _below(result: SideBySide) -> Iterator[str]:
    if result.agreement:
        yield ""
    for pair in result.agreement:
        yield f"- {pair.models[0]} and {pair.models[1]} answer alike in {_of(pair.same, pair.rows)} rows."
    yield ""
    for model, why in result.failed.items():
        yield f"- {model} FAILED: {why}"
    for note in result.notes:
        yield f"- {note}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    for number, row in enumerate(cells):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        if number == 0:
            yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"


def _accuracy(model: ModelFigures) -> str:
    if model.score is None:
        return _NONE
    low, high = model.score.interval
    return f"{model.score.accuracy:.1%} ({low:.1%} to {high:.1%})"


def _against(model: ModelFigures) -> str:
    found = model.against_baseline
    if found is None:
        return _NONE
    return f"{100 * found.gain:+.1f} points, p = {found.p_value:.2g}"


def _of(count: int, whole: int) -> str:
    return f"{count} of {whole}" + (f" ({count / whole:.1%})" if whole else "")


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_TEXT else f"{line[:_LONGEST_TEXT]} ..."
