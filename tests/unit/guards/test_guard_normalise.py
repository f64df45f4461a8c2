from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation.guards.normalise import Normaliser, lower, normalise


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("ｊｏｅ＠ｅｘａｍｐｌｅ．ｃｏｍ", "joe@example.com"),
        ("a\u200bb\u00adc\ufeffd\u2060e", "abcde"),
        ("i\u0332g\u0332n\u0332ore", "ignore"),
        ("caf\u00e9 cafe\u0301", "cafe cafe"),
        ("\u0440\u0430\u0443 \u0421\u0410\u0420", "pay CAP"),
        ("\u0661\u0662\u0663\u2013\u0664", "123-4"),
        ("4\u00a01\u20091", "4 1 1"),
        ("\U000e0069\U000e0067nore", "ignore"),
        ("x\x00y\x08z\n", "xyz\n"),
        ("㏂ ﬁ ½", "a.m. fi 1\u20442"),
        ("日本語 हिन्दी", "日本語 हिन्दी"),
    ],
)
def test_the_view_is_what_a_reader_sees(text: str, view: str) -> None:
    assert normalise(text).text == view


@settings(deadline=None)
@given(st.text(max_size=80))
def test_offsets_lead_back_to_the_code_points_that_a_character_came_from(text: str) -> None:
    view = normalise(text)
    assert view.size == len(text)
    assert len(view.text) == len(view.starts) == len(view.ends)
    assert list(view.starts) == sorted(view.starts)
    for index, char in enumerate(view.text):
        start, end = view.starts[index], view.ends[index]
        assert end == start + 1
        assert char in normalise(text[start:end]).text
    assert len(lower(view.text)) == len(view.text)


@settings(deadline=None)
@given(st.text(max_size=40), st.text(max_size=40), st.booleans())
def test_the_view_does_not_depend_on_how_the_text_is_cut(left: str, right: str, escapes: bool) -> None:
    text = json.dumps(left + right) if escapes else left + right
    whole = normalise(text, escapes)
    for cut in range(len(text) + 1):
        normaliser = Normaliser(escapes)
        parts = [normaliser.feed(text[:cut]), normaliser.feed(text[cut:]), normaliser.finish()]
        assert "".join(part.text for part in parts) == whole.text
        assert [start for part in parts for start in part.starts] == list(whole.starts)
        assert [end for part in parts for end in part.ends] == list(whole.ends)
        assert parts[-1].size == len(text)


def test_json_escapes_are_judged_as_what_they_mean() -> None:
    text = r'{"to": "joe\u0040example.com", "b": "\ud83d\ude00\"\n\\ \u12"}'
    view = normalise(text, json_escapes=True)
    assert "joe@example.com" in view.text
    assert "\U0001f600" in view.text
    at = view.text.index("@")
    assert text[view.starts[at] : view.ends[at]] == r"\u0040"
