import numpy as np
import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from cluster.errors import UsageError
from tests.unit.text.texts import BROKEN, package_texts
from validation.data.documents import Document
from validation.data.language import MEMORY, Language

ENGLISH = "The committee will meet again on Thursday to discuss what the new bridge may cost the town."
GERMAN = "Der Ausschuss trifft sich am Donnerstag wieder, um die Kosten der neuen Brücke zu besprechen."
FRENCH = "Le comité se réunira de nouveau jeudi pour discuter de ce que le pont coûtera à la ville."


@pytest.fixture(scope="module")
def library():
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


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


def test_a_doubtful_text_is_refused(library):
    judge = Language(keep=tuple(library.labels), min_score=0.9).build()
    assert judge.judge(Document(ENGLISH)) is None
    for text in ("12", "ok"):
        assert judge.judge(Document(text)).reason == "language_unsure"


def test_nothing_is_in_no_language():
    judge = Language(keep=("en",)).build()
    assert judge.judge(Document("")) is None
    assert judge.judge(Document(" \n")) is None


def test_an_unknown_language_is_refused():
    with pytest.raises(UsageError, match="language xx: not known"):
        Language(keep=("xx",)).build()


def test_scores_are_the_librarys(library):
    texts = [*BROKEN, ENGLISH, GERMAN, FRENCH, *package_texts()[:40], "".join(package_texts()) * 3]
    assert len(texts[-1]) > 2**18
    for among in (None, ("en", "fr", "de")):
        identifier = Language(keep=("en",), among=among).build()._identifier
        library.set_languages(among)
        for text in texts:
            (found, score), (expected, expected_score) = identifier.classify(text), library.classify(text)
            assert found == expected
            assert score == pytest.approx(expected_score, rel=1e-5)
    library.set_languages(None)


@pytest.mark.slow
def test_the_automaton_forgets(library):
    """From whatever two states it starts, after MEMORY bytes it is in one."""
    moves, rows = np.asarray(library.tk_nextmove).astype(np.int64), np.asarray(library._rowbase, np.int64)
    number = len(rows)
    left, right = np.arange(number), np.zeros(number, np.int64)
    for _ in range(MEMORY):
        assert len(left)
        ends = [moves[(rows[states][:, None] + np.arange(256)).ravel()] for states in (left, right)]
        apart = np.unique((ends[0] * number + ends[1])[ends[0] != ends[1]])
        left, right = apart // number, apart % number
    assert not len(left)
