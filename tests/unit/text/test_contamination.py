import numpy as np
import pytest

from tests.unit.text.texts import prose
from validation.data.contamination import Contamination, EvaluationIndex
from validation.data.documents import Document
from validation.data.words import n_gram_keys

QUESTION = "Which of the seven bridges of the old town was built before the great flood of 1784?"
SETS = {"bridges": [QUESTION, "Short question?"], "rivers": [prose(5, 500)], "nothing": []}


def test_a_shared_run_of_words_is_found():
    rule = Contamination()
    judge = rule.build(rule.index(SETS))

    def found(text):
        return judge.judge(Document(text))

    assert found(prose(20)) is None
    assert found("") is None
    verdict = found(prose(20) + " " + QUESTION + " " + prose(3, 50))
    assert verdict.reason == "in_bridges"
    assert 0 < verdict.score < 0.1
    # Neither case, punctuation nor line breaks count; one word more or less does.
    assert found(QUESTION.upper().replace(" ", "\n- ").rstrip("?")).score == 1
    assert found(QUESTION.replace("bridges", "fine bridges").replace("great ", "")) is None
    assert found(prose(9, 496)).reason == "in_rivers"
    assert found("short question") is None


def test_short_texts_are_found_by_runs_of_their_own_length():
    rule, short = Contamination(), "Is the old stone bridge longer than the new one?"
    index = rule.index({"bridges": [QUESTION], "short": [short, "Yes.", "no"]})
    judge = rule.build(index)
    verdict = judge.judge(Document(f"{prose(20)} {short} {prose(3, 50)}"))
    assert verdict.reason == "in_short"
    assert 0 < verdict.score < 0.1
    assert judge.judge(Document(short)).score == 1
    assert judge.judge(Document(QUESTION)).reason == "in_bridges"
    # An answer of one word is in every document that says it.
    assert judge.judge(Document("Yes.")) is None
    assert index.told.startswith("4 texts of evaluation sets, 2 of them (50.0%)")
    assert Contamination(min_words=1).index({"a": ["Yes."]}).sizes == {1: 1}


def test_the_share_can_be_asked_for():
    rule = Contamination(n=5, min_share=0.5)
    judge = rule.build(rule.index(SETS))
    assert judge.judge(Document(prose(20) + QUESTION)) is None
    assert judge.judge(Document("And so: " + QUESTION)).score > 0.5


def test_indexes_merge():
    rule = Contamination(n=4)
    whole = rule.index(SETS | {"again": [QUESTION, "four words of it"]})
    parts = [rule.index({name: texts}) for name, texts in SETS.items()]
    merged = EvaluationIndex.merge([*parts, rule.index({"again": [QUESTION, "four words of it"]})])
    assert merged.names == whole.names == (*SETS, "again")
    assert (merged.keys == whole.keys).all()
    assert (merged.sets == whole.sets).all()
    assert (np.diff(merged.keys.astype(object)) > 0).all()
    assert merged.sizes == whole.sizes == {4: 4, 0: 1}

    def keys(text):
        return n_gram_keys(Document(text).words().keys(), 4)

    places = merged.find(np.concatenate([keys(QUESTION)[:2], keys("four words of it and more")]))
    assert places.tolist() == [0, 0, 3, -1, -1]
    empty = EvaluationIndex.merge([])
    assert empty.find(keys(QUESTION)).max() == -1
    assert rule.build(empty).judge(Document(QUESTION)) is None


def test_an_index_works_from_read_only_memory():
    rule = Contamination()
    index = rule.index(SETS)
    for array in (index.keys, index.sets):
        array.flags.writeable = False
    assert rule.build(index).judge(Document(QUESTION)).score == pytest.approx(1)
