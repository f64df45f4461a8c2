import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import NotFoundError, UsageError
from tests.unit.text.texts import package_texts
from validation.data.documents import Document
from validation.data.personal import PersonalData, PersonalSpan, masked
from validation.guards.inline.pii import pii_guard
from validation.guards.normalise import normalise
from validation.guards.policy import PII_ENTITIES
from validation.guards.scan import Window

TEXT = (
    "Write to Ann (ann.lee@example.com) or call (415) 555-0132, card 4111 1111 1111 1111, "
    "IBAN DE89 3704 0044 0532 0130 00, SSN 536-90-4399, from 8.8.8.8 or 2001:4860:4860::8888."
)


def test_what_is_found_is_masked():
    finder = PersonalData().build()
    spans = finder.find(TEXT)
    assert masked(TEXT, spans) == (
        "Write to Ann (<EMAIL_ADDRESS>) or call <PHONE_NUMBER>, card <CREDIT_CARD>, "
        "IBAN <IBAN_CODE>, SSN <US_SSN>, from <IP_ADDRESS> or <IP_ADDRESS>."
    )
    assert all(0.5 < span.score <= 1 for span in spans)
    assert finder.judge(Document(TEXT)) is None
    plain = "Nothing here: 3 of 12 bridges, built 1914-1918 at 10:30."
    assert finder.find(plain) == []
    assert masked(plain, []) == plain


def test_offsets_are_code_points_of_the_text():
    text = "😀 ｗｒｉｔｅ to ann＠example．com\u200b, 📞 ＋４９ ３０ ９０１８２０ ok"
    spans = PersonalData().build().find(text)
    assert [text[s.start : s.end] for s in spans] == ["ann＠example．com", "＋４９ ３０ ９０１８２０"]
    assert masked(text, spans) == "😀 ｗｒｉｔｅ to <EMAIL_ADDRESS>\u200b, 📞 <PHONE_NUMBER> ok"


def test_each_entity_has_its_action():
    rule = PersonalData(entities={"EMAIL_ADDRESS": "drop", "PHONE_NUMBER": "mask", "CREDIT_CARD": "keep"})
    finder = rule.build()
    spans = finder.find(TEXT)
    assert [(s.entity, s.action) for s in spans] == [("EMAIL_ADDRESS", "drop"), ("PHONE_NUMBER", "mask")]
    assert finder.verdict(spans) == finder.judge(Document(TEXT)) == ("email_address", 1.0)
    assert finder.judge(Document("Only (415) 555-0132.")) is None
    assert PersonalData(entities={}).build().find(TEXT) == []


def test_overlapping_spans_are_one():
    from validation.data.personal import _merged

    spans = [
        PersonalSpan(5, 9, "US_SSN", 0.8, "drop"),
        PersonalSpan(0, 6, "PHONE_NUMBER", 0.7, "mask"),
        PersonalSpan(9, 12, "CRYPTO", 1.0, "mask"),
    ]
    assert _merged(spans) == [PersonalSpan(0, 9, "PHONE_NUMBER", 0.7, "drop"), spans[2]]


_PIECES = st.sampled_from(
    [
        *"0123456789０４²①½٣@＠.:-()+/ \n\u200b\u00a0–xfFeéDE",
        *(
            "4111",
            "1111",
            "555",
            "0132",
            "415",
            "+1",
            "DE89",
            "3704",
            "0044",
            "0532",
            "0130",
            "00",
            "8.8.8.8",
        ),
        *("2001:", "::1", "ann", "example.com", "536-90-4399", "GB82WEST12345698765432", "020 7946 0958"),
        *("378282246310005", "2600:1f18::", "ann@ex.io", "Ⅷ", "．", "﹫", "\u00ad", "\U000e0031", "\x00"),
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(_PIECES, max_size=24).map("".join))
def test_no_text_is_spared_that_holds_something(text):
    for entity in PII_ENTITIES:
        finder = PersonalData(entities={entity: "mask"}).build()
        found = list(pii_guard([entity]).cursor().advance(Window.of(normalise(text)), final=True))
        assert not found or finder.possible(text)
        assert len(finder.find(text)) == 0 if not found else finder.find(text)


def test_most_real_texts_are_spared():
    finder = PersonalData().build()
    texts = package_texts()
    for text in texts:
        found = pii_guard(PII_ENTITIES).cursor().advance(Window.of(normalise(text)), final=True)
        assert not found or finder.possible(text)
    assert sum(map(finder.possible, texts)) < len(texts) / 2


def test_presidio_finds_what_guards_do_not_know():
    finder = PersonalData(entities={"CRYPTO": "drop", "EMAIL_ADDRESS": "mask"}).build()
    text = "Send it to 16Yeky6GMjeNkAiNcBY7ZhrLoMSgg1BoyZ, not to ann@example.com."
    assert masked(text, finder.find(text)) == "Send it to <CRYPTO>, not to <EMAIL_ADDRESS>."
    assert finder.judge(Document(text)) == ("crypto", 1.0)
    assert finder.find("Send it to nobody.") == []


def test_an_entity_that_nothing_finds_is_refused():
    with pytest.raises(UsageError, match=r"entity PERSON: not among .*CRYPTO.*spaCy model"):
        PersonalData(entities={"PERSON": "mask"}).build()
    with pytest.raises(NotFoundError, match="model en_core_web_none"):
        PersonalData(entities={"PERSON": "mask"}, spacy_model="en_core_web_none").build()
