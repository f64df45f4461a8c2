"""The dataset card: one model that a job fills in, rendered as Markdown and as a page that works offline.

The Markdown begins with Hugging Face's dataset-card metadata, so that the folder can be put up as it stands.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any
from unicodedata import category

from pydantic import BaseModel, ConfigDict, Field

from validation.data.charts import bar, histogram_chart
from validation.data.drift import Drift
from validation.data.profile import Profile
from validation.data.schema import Columns, shown_type

TEMPLATES = Path(__file__).parent / "templates"
MAX_EXAMPLES = 100
_SHOWN_CHARS = 280
#: SPDX identifiers that are licence names of Hugging Face's as well, once in lower case.
_HUB_LICENSES = (
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsl-1.0 c-uda cc cc-by-2.0"
    " cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0"
    " cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0"
    " cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-2.0 gpl-2.0 gpl-3.0 lgpl-2.1"
    " lgpl-3.0 mit mpl-2.0 ms-pl odbl odc-by pddl unlicense wtfpl zlib"
)
#: Where a bare address is broken by an empty comment.
_LINKED = re.compile(
    r"(?<=https:)(?=//)|(?<=http:)(?=//)|(?<=ftp:)(?=//)|(?<=www)(?=\.)|(?<=@)", re.IGNORECASE
)
_URL = re.compile(r"https?://[\w.~:/?#@&=+,;%-]+", re.ASCII)
_SIZES = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]


class CardModel(BaseModel):
    """The common base: strict about keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CardLicense(CardModel):
    """Under which terms the data may be used."""

    name: str = Field(description="SPDX identifier, or the licence's name.")
    source: str = Field(description="Where the data comes from.")
    text: str | None = Field(None, description="Address of the licence's text.")


class CardSource(CardModel):
    """One file or artifact that was read."""

    address: str = Field(description="Path, URI or artifact address.")
    digest: str | None = Field(None, description="SHA-256 of its bytes, or its data digest.")
    rows: int | None = Field(None, description="Rows read from it.")


class CardStage(CardModel):
    """One stage of the pipeline and what it took away."""

    name: str = Field(description="As in the quarantine's column stage.")
    rows: int = Field(ge=0, description="Rows that came in.")
    dropped: dict[str, int] = Field(default_factory=dict, description="Reason to rows that left here.")
    made: int = Field(0, description="Rows that were made here, of those that came in.")
    warned: dict[str, int] = Field(default_factory=dict, description="Reason to rows that were only told of.")
    changed: int | None = Field(None, description="Rows changed, such as masked; null if it changes none.")
    says: str | None = Field(None, description="What it does, with its limits, in a phrase.")

    @property
    def left(self) -> int:
        """Rows that go on to the next stage."""
        return self.rows + self.made - self.loss

    @property
    def loss(self) -> int:
        """Rows that left here."""
        return sum(self.dropped.values())


class CardExample(CardModel):
    """A row that was dropped. Whoever fills this in has masked personal data already."""

    stage: str = Field(description="Where it was dropped.")
    reason: str = Field(description="Why.")
    score: float | None = Field(None, description="The figure behind the reason, if there is one.")
    row_id: str = Field(description="Its id, as in the quarantine.")
    source: str | None = Field(None, description="Its file.")
    line: int | None = Field(None, description="Its line there.")
    text: str = Field(description="Its text, masked; only the beginning is shown.")


class CardGate(CardModel):
    """What Great Expectations said at one gate."""

    stage: str = Field(description="Which gate: contract or final.")
    suite: str = Field(description="The suite's name.")
    expectations: int = Field(description="Expectations judged.")
    failed: list[str] = Field(default_factory=list, description="Failed ones that are critical.")
    warnings: list[str] = Field(default_factory=list, description="Failed ones that are only told of.")
    infos: list[str] = Field(default_factory=list, description="Failed ones that are only recorded.")
    left_out: list[str] = Field(
        default_factory=list, description="Those that found no version before to compare with."
    )

    @property
    def missed(self) -> list[tuple[str, str]]:
        """Severity and description of each that failed, the worst first."""
        kinds = {"critical": self.failed, "warning": self.warnings, "info": self.infos}
        return [(kind, said) for kind, some in kinds.items() for said in some]


class CardPrevious(CardModel):
    """The version before, and how far this one is from it."""

    address: str = Field(description="Artifact address.")
    profile: Profile = Field(description="Its profile.")
    drift: Drift = Field(description="compare_profiles(this profile, that one).")


class CardData(CardModel):
    """All that a card says."""

    name: str = Field(description="The dataset's name.")
    address: str = Field(description="Artifact address of this version.")
    made_at: datetime = Field(description="UTC time at which it was made.")
    description: str = Field("", description="What it is and what it is for; plain text.")
    languages: list[str] = Field(default_factory=list, description="ISO 639-1 codes.")
    task_categories: list[str] = Field(default_factory=list, description="As Hugging Face names them.")
    tags: list[str] = Field(default_factory=list, description="Words to find it by.")
    license: CardLicense = Field(description="Terms of the data.")
    sources: list[CardSource] = Field(description="What was read.")
    counts: dict[str, int] = Field(description="The manifest's: input, train, test, quarantined, ...")
    columns: Columns = Field(default_factory=dict, description="The splits' schema (describe_schema).")
    stages: list[CardStage] = Field(default_factory=list, description="In their order.")
    gates: list[CardGate] = Field(default_factory=list, description="In their order.")
    examples: list[CardExample] = Field(
        default_factory=list, max_length=MAX_EXAMPLES, description="A few dropped rows of each reason."
    )
    profile: Profile = Field(description="Of the rows that were kept.")
    previous: CardPrevious | None = Field(None, description="The version before; null for the first.")
    notes: list[str] = Field(default_factory=list, description="What a user should know, a sentence each.")
    versions: dict[str, str] = Field(default_factory=dict, description="Packages and their versions.")

    @property
    def kept(self) -> int:
        """Rows of all splits."""
        return self.profile.rows

    @property
    def dropped(self) -> int:
        """Rows, read or made by augmentation, that are in no split."""
        return self.whole - self.kept

    @property
    def whole(self) -> int:
        """Rows that were read, and those that augmentation made of them; 0 if it is not known."""
        return self.counts.get("input", 0) and self.counts["input"] + self.counts.get("augmented", 0)


def card_markdown(card: CardData) -> str:
    """``README.md`` of the dataset: Hugging Face's metadata, then the card."""
    environment = templates(autoescape=False)
    environment.filters |= {"cell": _cell, "link": _link}
    template = environment.get_template("card.md.jinja")
    return visible(str(template.render(card=card, metadata=_yaml(hub_metadata(card)))))


def card_html(card: CardData) -> str:
    """``card.html``: one page without scripts, fonts or pictures from elsewhere."""
    environment = templates(autoescape=True)
    environment.filters |= {"short": _short}
    previous = card.previous.profile if card.previous else None
    charts = [
        (name, histogram, histogram_chart(histogram, previous.histograms.get(name) if previous else None))
        for name, histogram in card.profile.histograms.items()
    ]
    page = environment.get_template("card.html.jinja").render(
        card=card, charts=charts, waterfall=_waterfall(card), examples=_by_stage(card), bar=bar
    )
    return visible(str(page))


def hub_metadata(card: CardData) -> dict[str, Any]:
    """The front matter: https://huggingface.co/docs/hub/datasets-cards, as far as it is known here."""
    name = card.license.name.lower()
    known = name in _HUB_LICENSES.split()
    metadata: dict[str, Any] = {"pretty_name": card.name, "license": name if known else "other"}
    if not known:
        metadata |= {"license_name": "-".join(name.split())}
        metadata |= {"license_link": card.license.text} if card.license.text else {}
    splits = card.profile.splits
    metadata |= {
        "language": card.languages,
        "task_categories": card.task_categories,
        "size_categories": [size_category(card.kept)],
        "tags": card.tags,
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}/*.parquet"} for split in splits],
            }
        ]
        if splits
        else [],
        "dataset_info": {"splits": [{"name": s, "num_examples": n} for s, n in splits.items()]}
        if splits
        else {},
    }
    return {key: value for key, value in metadata.items() if value}


def size_category(rows: int) -> str:
    """Hugging Face's name for a number of rows: ``n<1K``, ``1K<n<10K``, ..., ``n>1T``."""
    place = max(0, len(str(rows)) - 3)
    if place == 0:
        return f"n<{_SIZES[0]}"
    return f"{_SIZES[place - 1]}<n<{_SIZES[place]}" if place < len(_SIZES) else f"n>{_SIZES[-1]}"


def _waterfall(card: CardData) -> list[tuple[str, str, float, float, int, CardStage | None]]:
    """Label, style, and where the bar begins and ends as shares of the input; then rows, and the stage."""
    read = max(card.counts.get("input", 0), card.stages[0].rows if card.stages else 0)
    whole = max(read, max((max(s.rows, s.left) for s in card.stages), default=0), 1)
    steps: list[tuple[str, str, float, float, int, CardStage | None]] = [
        ("input", "muted", 0, read, read, None)
    ]
    for stage in card.stages:
        if stage.made:
            steps.append((stage.name, "muted", stage.rows, stage.left, stage.made, stage))
        else:
            steps.append((stage.name, "bad", stage.left, stage.rows, -stage.loss, stage))
    steps.append(("kept", "", 0, card.kept, card.kept, None))
    return [(label, style, a / whole, b / whole, rows, stage) for label, style, a, b, rows, stage in steps]


def _by_stage(card: CardData) -> dict[str, list[CardExample]]:
    """What each stage dropped, in the order of the stages."""
    found: dict[str, list[CardExample]] = {stage.name: [] for stage in card.stages}
    for example in card.examples:
        found.setdefault(example.stage, []).append(example)
    return {stage: examples for stage, examples in found.items() if examples}


def templates(*, autoescape: bool) -> Any:
    """The room's Jinja environment."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=autoescape,  # noqa: S701 - off for Markdown, whose cells escape themselves
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": "{:,}".format,
        "words": _words,
        "figure": _figure,
        "part": _part,
        "type": shown_type,
    }
    return environment


def _words(name: str) -> str:
    return name.replace("_", " ")


def _figure(value: float | None) -> str:
    """A number for readers: whole ones with separators, others with three digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.3g}"


def _part(value: float, whole: float) -> str:
    return f"{value / whole:.1%}" if whole else ""


def visible(text: str) -> str:
    """The text without control and format characters (line feeds and tabs stay), which can turn its order."""
    return "".join(c for c in text if c in "\n\t" or category(c) not in ("Cc", "Cf", "Cs"))


def _short(text: Any, limit: int = _SHOWN_CHARS) -> str:
    line = visible(" ".join(str(text).split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _cell(text: Any, limit: int = _SHOWN_CHARS) -> str:
    """Text for a cell of a Markdown table: whatever it holds, it stays text, and in its cell."""
    escaped = _short(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = "".join("\\" + c if c in "\\`*_{}[]()#+!|~$" else c for c in escaped)
    # GitHub makes links of bare addresses, and finds them even behind an escape.
    return _LINKED.sub("<!-- -->", escaped)


def _link(text: str) -> str:
    """An address that the configuration gives, as a link; other text stays text."""
    return f"<{text}>" if _URL.fullmatch(text) else _cell(text, 500)


def _yaml(metadata: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)).rstrip()
