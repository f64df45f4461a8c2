import pytest

from cluster.errors import UsageError
from validation.data.documents import Document
from validation.data.language import Language

ENGLISH = "The committee will meet again on Thursday to discuss what the new bridge may cost the town."
GERMAN = "Der Ausschuss trifft sich am Donnerstag wieder, um die Kosten der neuen Brücke zu besprechen."
FRENCH = "Le comité se réunira de nouveau jeudi pour discuter de ce que le pont coûtera à la ville."


def test_other_languages_are_refused():
    judge = Language(keep=("en", "de")).build()
    assert judge.judge(Document(ENGLISH)) is None
    assert judge.judge(Document(GERMAN)) is None
    verdict = judge.judge(Document(FRENCH))
    assert verdict.reason == "language_fr"
    assert 0.5 < verdict.score <= 1


def test_the_choice_can_be_restricted():
    judge = Language(keep=("en",), among=("de",)).build()
    verdict = judge.judge(Document(FRENCH))
    assert verdict is None or verdict.reason == "language_de"
    assert judge.judge(Document(GERMAN)).reason == "language_de"
    assert judge.judge(Document(ENGLISH)) is None


def test_a_doubtful_text_is_refused():
    judge = Language(keep=("en",), min_score=0.9).build()
    assert judge.judge(Document(ENGLISH)) is None
    doubtful = Language(keep=tuple(judge._identifier.labels), min_score=0.9).build()
    for text in ("", "12", "ok"):
        assert doubtful.judge(Document(text)).reason == "language_unsure"


def test_an_unknown_language_is_refused():
    with pytest.raises(UsageError, match="language xx: not known"):
        Language(keep=("xx",)).build()
