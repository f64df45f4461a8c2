"""A profile does not depend on how the rows came in blocks, and it says what is true of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import UsageError
from validation.data.profile import Profile, ProfileSpec, combine_profiles, merge_profiles, profile_block

SPEC = ProfileSpec(
    texts=["text", "messages"],
    numbers={"score": [0.0, 0.5, 1.0], "length": [0, 10, 100]},
    categories=["label"],
    max_categories=4,
    vocabulary=16,
    top_tokens=5,
)
SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("text", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("score", pa.float64()),
        ("length", pa.int64()),
        ("label", pa.string()),
    ]
)
TEXT = (
    st.none()
    | st.text(max_size=30)
    | st.lists(st.sampled_from(["a", "B.", "the", "The,", "—", "word"])).map(" ".join)
)
ROW = st.fixed_dictionaries(
    {
        "split": st.sampled_from(["train", "test"]),
        "text": TEXT,
        "messages": st.none()
        | st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": TEXT}), max_size=3),
        "score": st.none() | st.floats(),
        "length": st.none() | st.integers(-(2**62), 2**62),
        "label": st.none() | st.text(max_size=2),
    }
)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def profile_of(rows: list[dict[str, Any]], spec: ProfileSpec = SPEC) -> Profile:
    return merge_profiles(spec, [profile_block(spec, table(rows))])


@settings(max_examples=80, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=30), st.data())
def test_any_split_merged_in_any_order_gives_the_equal_profile(
    rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=5)))
    whole = table(rows)
    ends = [*cuts, len(rows)]
    blocks = [whole.slice(a, b - a) for a, b in zip([0, *cuts], ends, strict=True)]
    partials = data.draw(st.permutations([profile_block(SPEC, block) for block in blocks]))
    flat = merge_profiles(SPEC, [profile_block(SPEC, whole)])
    assert merge_profiles(SPEC, partials) == flat
    middle = data.draw(st.integers(0, len(partials)))
    tree = [combine_profiles(partials[:middle]), combine_profiles(partials[middle:])]
    assert merge_profiles(SPEC, tree) == flat
    assert Profile.from_json(flat.to_json()) == flat


@settings(max_examples=50, deadline=None)
@given(st.lists(ROW, max_size=30))
def test_counts_are_those_of_the_rows(rows: list[dict[str, Any]]) -> None:
    found = profile_of(rows, SPEC.model_copy(update={"max_categories": 1000, "vocabulary": 1000}))
    assert found.rows == len(rows)
    assert found.splits == Counter(row["split"] for row in rows)
    if not rows:
        return
    labels = Counter(row["label"] for row in rows if row["label"] is not None)
    categories = found.categories["label"]
    assert (categories.counts, categories.distinct, categories.capped) == (labels, len(labels), False)
    assert categories.nulls == sum(row["label"] is None for row in rows)
    lengths = [row["length"] for row in rows if row["length"] is not None]
    histogram = found.histograms["length"]
    assert histogram.counts[0] == sum(value < 0 for value in lengths)
    assert histogram.counts[1] == sum(0 <= value < 10 for value in lengths)
    assert (histogram.values, histogram.nulls) == (len(lengths), len(rows) - len(lengths))
    assert histogram.mean == (sum(lengths) / len(lengths) if lengths else None)
    scores = [row["score"] for row in rows if row["score"] is not None and row["score"] == row["score"]]
    assert found.histograms["score"].values == len(scores)
    texts = [row["text"] for row in rows if row["text"] is not None]
    characters = found.histograms["text.characters"]
    assert characters.maximum == (max(len(text) for text in texts) if texts else None)
    conversations = [
        [m["content"] or "" for m in row["messages"]] for row in rows if row["messages"] is not None
    ]
    lengths = [sum(map(len, contents)) for contents in conversations]
    assert found.histograms["messages.characters"].maximum == (max(lengths) if lengths else None)
    assert found.histograms["messages.messages"].values == len(conversations)


def test_words_are_counted_whatever_their_case_and_punctuation() -> None:
    rows = [{"text": "The cat — the CAT, “the” dog."}, {"text": None}, {"text": "the"}]
    spec = ProfileSpec(split=None, texts=["text"])
    tokens = profile_of(rows, spec).tokens["text"]
    assert tokens.top == {"the": 4, "cat": 2, "dog": 1}
    assert (tokens.total, tokens.distinct, sum(tokens.buckets)) == (7, 3, 7)
    words = profile_of(rows, spec).histograms["text.words"]
    assert (words.minimum, words.maximum, words.mean, words.nulls) == (1, 6, 3.5, 1)


def test_a_large_vocabulary_is_estimated_and_frequent_words_are_found() -> None:
    rows = [{"text": f"common usual w{i} x{i} " + "rare " * (i % 50 == 0)} for i in range(4000)]
    tokens = profile_of(rows, ProfileSpec(split=None, texts=["text"])).tokens["text"]
    assert abs(tokens.distinct / 8003 - 1) < 4 / 2048**0.5
    assert list(tokens.top)[:3] == ["common", "usual", "rare"]
    assert all(
        0 <= tokens.top[w] / n - 1 < 0.1 for w, n in {"common": 4000, "usual": 4000, "rare": 80}.items()
    )


def test_too_many_categories_are_said_to_be_capped_and_those_counted_are_exact() -> None:
    rows = [{"label": f"v{i % 40}"} for i in range(400)]
    found = profile_of(rows, ProfileSpec(split=None, categories=["label"], max_categories=8)).categories[
        "label"
    ]
    assert found.capped
    assert set(found.counts.values()) == {10}
    assert (len(found.counts), found.other, found.nulls) == (8, 320, 0)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"texts": ["nothing"]}, "column nothing"),
        ({"texts": ["score"]}, "text or messages in column score"),
        ({"numbers": {"label": [0, 1]}}, "numbers in column label"),
        ({"categories": ["messages"]}, "column messages"),
    ],
)
def test_a_column_that_does_not_fit_is_named(spec: dict[str, Any], words: str) -> None:
    row = {"score": 1.0, "label": "x", "messages": []}
    with pytest.raises(UsageError, match=words):
        profile_of([row], ProfileSpec(split=None, **spec))


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary(3), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())],
)
def test_bytes_are_no_categories(kind: pa.DataType) -> None:
    table = pa.table(
        {
            "label": pa.array([b"abc"], pa.binary()).cast(kind)
            if not pa.types.is_dictionary(kind)
            else pa.array([b"abc"], pa.binary()).dictionary_encode()
        }
    )
    with pytest.raises(UsageError, match="cannot count the values of column label"):
        profile_block(ProfileSpec(split=None, categories=["label"]), table)


def test_intervals_are_no_categories() -> None:
    table = pa.table({"label": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    with pytest.raises(UsageError, match="cannot count the values of column label"):
        profile_block(ProfileSpec(split=None, categories=["label"]), table)


def test_every_way_to_store_text_is_text() -> None:
    spec = ProfileSpec(split=None, texts=["text"], categories=["text"])
    texts = ["one two", None, "one two"]
    profiles = []
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        profiles.append(
            merge_profiles(spec, [profile_block(spec, pa.table({"text": pa.array(texts, kind)}))])
        )
    encoded = pa.table({"text": pa.array(texts).dictionary_encode()})
    profiles.append(merge_profiles(spec, [profile_block(spec, encoded)]))
    assert all(found == profiles[0] for found in profiles)
    assert profiles[0].categories["text"].counts == {"one two": 2}


@pytest.mark.parametrize("kind", [pa.null(), pa.int64(), pa.string_view()])
def test_a_column_without_any_text_has_none(kind: pa.DataType) -> None:
    spec = ProfileSpec(split=None, texts=["text"])
    found = merge_profiles(spec, [profile_block(spec, pa.table({"text": pa.array([None, None], kind)}))])
    assert (found.histograms["text.words"].nulls, found.tokens["text"].total) == (2, 0)


def test_a_column_of_many_values_is_none_of_splits() -> None:
    blocks = [pa.table({"split": [f"{block}-{n}" for n in range(60)]}) for block in range(2)]
    partials = [profile_block(ProfileSpec(), block) for block in blocks]
    with pytest.raises(UsageError, match="more than 100 values"):
        merge_profiles(ProfileSpec(), partials)
    with pytest.raises(UsageError, match="more than 100 values"):
        profile_block(ProfileSpec(), pa.concat_tables(blocks))


def test_what_is_no_profile_is_refused_in_a_sentence() -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Profile.from_json(b'{"rows": "many"}')
