import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import NotFoundError, UsageError
from tests.unit.text.texts import package_texts
from validation.data.documents import Document
from validation.data.personal import _GATES, PART, Mask, PersonalData, PersonalSpan, masked
from validation.guards.inline.pii import pii_guard
from validation.guards.normalise import normalise
from validation.guards.scan import Window
from validation.guards.specs import PII_ENTITIES

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
    # Whatever is longer: the span to drop tells why the row goes.
    assert _merged(spans) == [PersonalSpan(0, 9, "US_SSN", 0.8, "drop"), spans[2]]
    longer = [PersonalSpan(0, 9, "PHONE_NUMBER", 0.7, "mask"), PersonalSpan(5, 8, "US_SSN", 0.8, "mask")]
    assert _merged(longer) == longer[:1]


def test_a_mask_hides_what_any_of_its_rules_looks_for():
    mask = Mask(PersonalData(), PersonalData(entities={"EMAIL_ADDRESS": "keep", "US_SSN": "drop"}))
    assert mask("ann@example.com, SSN 536-90-4399") == "<EMAIL_ADDRESS>, SSN <US_SSN>"
    text = "x" * 90 + " ann@example.com or bob@example.com" + "y" * 900
    assert mask(text, 100) == "x" * 90 + " <EMAIL_ADDRESS>"
    assert mask(text, 95) == "x" * 90 + " <EMAIL_ADDRESS>"
    assert mask(text, 90) == "x" * 90


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
        *("ssn ", "SSN: ", "social security number is ", "call ", "Passport no. ", "C01X00T47", "536904399"),
        *(
            "16Yeky6GMjeNkAiNcBY7ZhrLoMSgg1BoyZ",
            "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4",
            "0x" + "aB" * 20,
        ),
        *("P<UTOERIKSSON<<ANNA", "L898902C36UTO7408122F1204159ZE184226B<<<<<10", "415 555 0132"),
        *("378282246310005", "2600:1f18::", "ann@ex.io", "Ⅷ", "．", "﹫", "\u00ad", "\U000e0031", "\x00"),
    ]
)


def test_every_entity_of_guards_has_a_gate():
    assert set(_GATES) == set(PII_ENTITIES)
    assert PersonalData(entities={"PASSPORT": "drop"}).build().judge(Document("Passport no. C01X00T47."))


@pytest.mark.parametrize(
    "text",
    [
        *("my SSN is 536904399", "SSN 536.90.4399", "call me at 4155550132", "Passport no. C01X00T47"),
        *("4111 1111\n1111 1111", "4111.1111.1111.1111", "DE89 3704 0044\n0532 0130 00"),
        *("L898902C36UTO7408122F1204159ZE184226B<<<<<10", "0x" + "aB" * 20),
        *("16Yeky6GMjeNkAiNcBY7ZhrLoMSgg1BoyZ", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"),
    ],
)
def test_what_guards_find_is_found(text):
    assert list(pii_guard(PII_ENTITIES).cursor().advance(Window.of(normalise(text)), final=True))
    assert PersonalData().build().find(text)


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


@pytest.mark.slow
def test_presidio_finds_what_guards_do_not_know():
    finder = PersonalData(entities={"CRYPTO": "drop", "EMAIL_ADDRESS": "mask"}).build()
    text = "Send it to 16Yeky6GMjeNkAiNcBY7ZhrLoMSgg1BoyZ, not to ann@example.com."
    assert masked(text, finder.find(text)) == "Send it to <CRYPTO>, not to <EMAIL_ADDRESS>."
    assert finder.judge(Document(text)) == ("crypto", 1.0)
    assert finder.find("Send it to nobody.") == []
    # Across every seam.
    address = text[11:45]
    for start in range(PART - 40, PART + 5):
        (span,) = finder.find("x" * (start - 1) + " " + address + " y" * 400)
        assert (span.start, span.end) == (start, start + len(address))


@pytest.mark.slow
def test_a_text_longer_than_spacy_takes_is_read():
    finder = PersonalData(entities={"URL": "mask"}).build()
    spans = finder.find("a.co " * 400)
    assert len(spans) == 400
    assert len(finder.find("1 word " * 150_000 + "a.co")) == 1


@pytest.mark.slow
def test_an_entity_that_nothing_finds_is_refused():
    with pytest.raises(UsageError, match=r"entity PERSON: not among .*CRYPTO.* need spacy_model\.$"):
        PersonalData(entities={"PERSON": "mask"}).build()
    with pytest.raises(UsageError, match=r"EMAIL \(did you mean EMAIL_ADDRESS\?\): not among .*PASSPORT"):
        PersonalData(entities={"EMAIL": "mask"}).build()
    with pytest.raises(NotFoundError, match="model en_core_web_none"):
        PersonalData(entities={"PERSON": "mask"}, spacy_model="en_core_web_none").build()
    with pytest.raises(UsageError, match="language zz"):
        PersonalData(entities={"CRYPTO": "mask"}, language="zz").build()
    with pytest.raises(UsageError, match="model validation: spaCy cannot load it"):
        PersonalData(entities={"PERSON": "mask"}, spacy_model="validation").build()
