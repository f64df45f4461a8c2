"""The card says what the job filled in, as text whatever it holds, and works without a network."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pydantic import ValidationError

from validation.data.card import (
    CardData,
    CardExample,
    CardGate,
    CardLicense,
    CardPrevious,
    CardSource,
    CardStage,
    card_html,
    card_markdown,
    size_category,
)
from validation.data.drift import compare_profiles
from validation.data.profile import Profile, ProfileSpec, merge_profiles, profile_block
from validation.data.schema import CONVERSATIONS

SHARES = [i / 20 for i in range(20)] + [1.0]
SPEC = ProfileSpec(texts=["messages"], numbers={"language_score": SHARES}, categories=["language", "source"])
NASTY = '<script src="http://evil/x.js"></script> | ![x](http://evil/y.png) `code`\n# head ' + "long " * 200
#: What GitHub makes links of by itself, and characters that turn a line's order or a terminal's colours.
BARE = (
    "see https://evil/z or www.evil.example or w\u200bww.evil.example or bob@evil.example \x00\x1b[31m\u202e"
)


@cache
def profile(rows: int, seed: int, words: int = 60) -> Profile:
    draw = random.Random(seed)

    def text() -> str:
        number = int(draw.lognormvariate(0, 0.8) * words) + 1
        return " ".join(f"word{int(draw.paretovariate(0.8)) % 5000}" for _ in range(number))

    columns = {
        "split": ["test" if draw.random() < 0.1 else "train" for _ in range(rows)],
        "messages": [
            [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]
            for _ in range(rows)
        ],
        "language_score": [min(1.0, draw.betavariate(9, 1)) for _ in range(rows)],
        "language": draw.choices(["en", "de", "fr", None], [90, 6, 3, 1], k=rows),
        "source": [draw.choice(["boolq", "xsum", "a source <with> markup"]) for _ in range(rows)],
    }
    return merge_profiles(SPEC, [profile_block(SPEC, pa.table(columns))])


def card(**fields: Any) -> CardData:
    now = profile(900, 1)
    stages = [
        CardStage(name="contract", rows=1200, dropped={"expect_column_values_to_not_be_null(text)": 7}),
        CardStage(name="language", rows=1193, dropped={"not English": 60}, says="py3langid, at least 0.65"),
        CardStage(
            name="quality",
            rows=1133,
            dropped={"gopher_short_doc": 90, NASTY: 3},
            warned={"c4_no_punctuation": 12},
        ),
        CardStage(name="personal_data", rows=1040, changed=31, says="e-mail addresses and IPs masked"),
        CardStage(name="exact_duplicates", rows=1040, dropped={"equal to an earlier row": 100}),
        CardStage(name="near_duplicates", rows=940, dropped={"near to an earlier row": 40}),
    ]
    values: dict[str, Any] = {
        "name": "prompt-shield",
        "address": "default/dataset/prompt-shield/0123456789abcdef",
        "made_at": datetime(2026, 11, 22, 12, 30, tzinfo=UTC),
        "description": "Prompts, each labelled.",
        "languages": ["en"],
        "license": CardLicense(name="CC-BY-4.0", source="made up"),
        "sources": [CardSource(address="s3://raw/a.jsonl.gz", digest="ab" * 32, rows=1200)],
        "counts": {"input": 1200, **now.splits, "quarantined": 300},
        "columns": CONVERSATIONS,
        "stages": stages,
        "gates": [
            CardGate(
                stage="contract", suite="raw", expectations=10, failed=[], warnings=["mean(label) [0.81]"]
            ),
            CardGate(stage="final", suite="messages", expectations=5),
        ],
        "examples": [
            CardExample(
                stage="quality", reason="gopher_short_doc", score=12, row_id="a" * 32, line=7, text=NASTY
            ),
            CardExample(
                stage="language", reason="not English", score=0.31234, row_id="b", text="Das ist Deutsch."
            ),
        ],
        "profile": now,
        "versions": {"ray": "2.60.0", "great_expectations": "1.24.1"},
    }
    return CardData(**values | fields)


def test_each_failed_expectation_has_its_own_severity() -> None:
    gate = CardGate(stage="contract", suite="raw", expectations=4, failed=["a"], warnings=["b"], infos=["c"])
    page, text = card_html(card(gates=[gate])), card_markdown(card(gates=[gate]))
    found = re.findall(r'<span class="mark \w+">(critical|warning|info)</span> (\w)', page)
    assert found == [("critical", "a"), ("warning", "b"), ("info", "c")]
    assert "1 of 4 expectations hold; not (critical) a; not (warning) b; not (info) c" in text
    assert "1 of 4" in Page(page).text


def test_rows_that_were_made_and_dropped_are_told_apart() -> None:
    made = CardStage(name="augment", rows=900, made=300)
    told = card(
        counts={"input": 900, "augmented": 300, **profile(900, 1).splits},
        stages=[made, CardStage(name="language", rows=made.left, dropped={"not English": 300}, changed=1)],
        license=CardLicense(name="CC0-1.0", source="https://example.org/a?b=1"),
        sources=[CardSource(address="s3://manta/raw/a.jsonl")],
    )
    page, text = " ".join(Page(card_html(told)).text.split()), card_markdown(told)
    assert "25.0% of 900 rows read and 300 made of them" in page
    assert "25.0% of 1,200" in page
    assert "1 row was changed by language." in page
    assert "| augment | 900 | 0 | 0.0% | 300 made of them |" in text
    assert "| language | 1,200 | 300 | 25.0% | not English 300 |" in text
    assert "Source: <https://example.org/a?b=1>." in text
    assert "s3://manta/raw/a.jsonl" in text


def with_previous() -> CardData:
    before, now = profile(600, 2, words=25), profile(900, 1)
    address = "default/dataset/prompt-shield/fedcba9876543210"
    return card(previous=CardPrevious(address=address, profile=before, drift=compare_profiles(now, before)))


class Page(HTMLParser):
    """Everything that a browser would fetch, and the text that a reader sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [
            v or ""
            for k, v in attrs
            if k in {"src", "srcset", "data", "poster"} or (tag, k) == ("link", "href")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_without_a_network() -> None:
    page = card_html(with_previous())
    seen = Page(page)
    assert not seen.fetched
    assert not seen.tags & {"script", "img", "link", "iframe", "object"}
    assert not re.search(r"url\(|@import", page)
    for words in (
        "prompt-shield",
        "near duplicates",
        "gopher_short_doc",
        "Against the version before",
        "CC-BY-4.0",
    ):
        assert words in seen.text
    assert '<script src="http://evil/x.js"></script>' in seen.text  # As text.
    assert "large" in seen.text
    assert len(page) < 200_000


def test_the_first_version_says_nothing_of_drift() -> None:
    assert "version before" not in Page(card_html(card())).text
    assert "version before" not in card_markdown(card())


def test_a_card_of_an_empty_dataset_can_be_made() -> None:
    bare = card(profile=merge_profiles(SPEC, []), counts={}, stages=[], gates=[], examples=[], columns={})
    assert "0" in Page(card_html(bare)).text
    assert "n<1K" in card_markdown(bare)


def test_markdown_begins_with_metadata_that_the_hub_reads() -> None:
    _, front, body = card_markdown(with_previous()).split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert (metadata["license"], metadata["language"], metadata["size_categories"]) == (
        "cc-by-4.0",
        ["en"],
        ["n<1K"],
    )
    assert [entry["split"] for entry in metadata["configs"][0]["data_files"]] == ["test", "train"]
    splits = metadata["dataset_info"]["splits"]
    assert sum(split["num_examples"] for split in splits) == 900
    assert "near to an earlier row 40" in body
    other = yaml.safe_load(
        card_markdown(card(license=CardLicense(name="Gemma Terms", source="x"))).split("---\n")[1]
    )
    assert (other["license"], other["license_name"]) == ("other", "gemma-terms")


def test_tables_of_the_markdown_hold_whatever_a_row_holds() -> None:
    from markdown_it import MarkdownIt

    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(
        card_markdown(with_previous()).split("---\n", 2)[2]
    )
    seen = Page(html)
    assert not seen.fetched
    assert not seen.tags & {"script", "a", "img"}
    assert '<script src="http://evil/x.js"></script> | ![x](http://evil/y.png) `code` # head' in seen.text


def test_nothing_that_comes_from_outside_becomes_markup() -> None:
    from markdown_it import MarkdownIt

    nasty = f"{BARE} {NASTY[:80]}"
    told = card(
        name=nasty,
        description=nasty,
        notes=[nasty],
        license=CardLicense(name=nasty, source=nasty, text=nasty),
        sources=[CardSource(address=nasty, digest=nasty)],
        counts={nasty: 1},
        stages=[CardStage(name=nasty, rows=5, dropped={nasty: 2})],
        gates=[CardGate(stage=nasty, suite=nasty, expectations=2, failed=[nasty])],
        examples=[CardExample(stage=nasty, reason=nasty, row_id=nasty, text=nasty)],
        columns={nasty: "string"},
    )
    markdown = card_markdown(told)
    # What GitHub would find addresses by, wherever they stand.
    assert not re.search(r"(?i)(https?|ftp):/|www\.|@\w", markdown.split("---\n", 2)[2])
    pages = [
        MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(markdown.split("---\n", 2)[2]),
        card_html(told),
    ]
    for page in pages:
        seen = Page(page)
        assert not seen.fetched
        assert not seen.tags & {"script", "a", "img"}
        assert "see https://evil/z or www.evil.example or www.evil.example or bob@evil.example" in seen.text
        assert not re.search(r"[\x00-\x08\x0b-\x1f\u200b\u202e]", page)


@pytest.mark.parametrize(
    ("rows", "label"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (10**6, "1M<n<10M"),
        (10**11, "100B<n<1T"),
        (10**12, "n>1T"),
    ],
)
def test_sizes_have_the_hubs_names(rows: int, label: str) -> None:
    assert size_category(rows) == label


def test_examples_are_bounded() -> None:
    one = CardExample(stage="quality", reason="x", row_id="a", text="t")
    with pytest.raises(ValidationError, match="at most 100"):
        card(examples=[one] * 101)
