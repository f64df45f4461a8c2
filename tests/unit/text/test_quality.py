"""The quality judges give datatrove's own verdicts."""

import random

import pytest
from datatrove.data import Document as DatatroveDocument
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.text import split_into_sentences, split_into_words
from pydantic import ValidationError

from cluster.errors import UsageError
from tests.unit.text.texts import BROKEN, package_texts, prose
from validation.data.documents import Document
from validation.data.quality import C4Quality, FineWebQuality, GopherQuality, GopherRepetition
from validation.data.words import MAX_PIECE, PieceTokeniser, Tokeniser, tokeniser

TEXTS = (*BROKEN, prose(10), prose(60), *package_texts())


def _theirs(filter_, text):
    try:
        result = filter_.filter(DatatroveDocument(text, "1"))
    except ZeroDivisionError:
        return "empty"
    return None if result is True else result[1]


def _ours(judge, text):
    verdict = judge.judge(Document(text))
    return verdict and verdict.reason


@pytest.mark.parametrize(
    ("config", "filter_", "arguments"),
    [
        (GopherRepetition, GopherRepetitionFilter, {}),
        (
            GopherRepetition,
            GopherRepetitionFilter,
            {
                "dup_line_frac": None,
                "dup_para_frac": 0.0,
                "dup_line_char_frac": None,
                "dup_para_char_frac": None,
                "top_n_grams": ((3, 0.03), (1, 0.05), (2, 0.04)),
                "dup_n_grams": ((12, 0.01), (5, 0.02), (1, 0.9)),
            },
        ),
        (GopherQuality, GopherQualityFilter, {}),
        (
            GopherQuality,
            GopherQualityFilter,
            {
                "min_doc_words": None,
                "max_avg_word_length": 5,
                "max_symbol_word_ratio": 0.01,
                "max_bullet_lines_ratio": 0.1,
                "max_ellipsis_lines_ratio": 0.01,
                "stop_words": ("install", "python", "the"),
            },
        ),
        (C4Quality, C4QualityFilter, {}),
        (
            C4Quality,
            C4QualityFilter,
            {
                "remove_citations": False,
                "filter_no_terminal_punct": False,
                "min_num_sentences": 12,
                "max_word_length": 30,
                "filter_curly_bracket": False,
                "filter_javascript": False,
                "min_words_per_line": -1,
            },
        ),
        (C4Quality, C4QualityFilter, {"split_paragraph": False, "filter_policy": False}),
        (C4Quality, C4QualityFilter, {"min_num_sentences": -1, "filter_lorem_ipsum": False}),
        (FineWebQuality, FineWebQualityFilter, {}),
        (
            FineWebQuality,
            FineWebQualityFilter,
            {
                "line_punct_exclude_zero": True,
                "stop_chars": (".", "...", ")"),
                "short_line_thr": 0.9,
                "char_duplicates_ratio": 0.1,
                "new_line_ratio": 0.05,
            },
        ),
    ],
)
def test_verdicts_are_datatroves(config, filter_, arguments):
    judge, peer = config(**arguments).build(), filter_(**arguments)
    texts = TEXTS[:60] if arguments else TEXTS
    ours = {text: _ours(judge, text) for text in texts}
    assert ours == {text: _theirs(peer, text) for text in texts}
    # Else the texts would say nothing about the rule.
    assert len(set(ours.values())) > 1


@pytest.mark.parametrize("language", ["eng", "deu", "rus"])
def test_words_and_sentences_are_datatroves(language):
    for text in (*BROKEN, *package_texts()[:25]):
        if any(len(piece) > MAX_PIECE for piece in text.split()):
            continue
        text = text.replace("IS_ALPHA", "")  # What spaCy makes of it changes from call to call.
        assert tokeniser(language).words(text).strings() == split_into_words(text, language)
        for line in text.splitlines():
            assert tokeniser(language).count_sentences(line) == len(split_into_sentences(line, language))


def test_a_word_that_spacy_cannot_read_is_always_left_out():
    text = "IS_ALPHA is a word. IS_IS_ALPHAALPHA is one too, and IS_ALPHA."
    fresh = Tokeniser("eng"), PieceTokeniser("eng")
    found = [tokens.words(text).strings() for tokens in fresh for _ in range(3)]
    assert all(words == found[0] for words in found)
    assert found[0][:4] == ["is", "a", "word", "."]


def test_a_piece_without_white_space_costs_no_more_than_its_length():
    words = tokeniser("eng").words("!" * 10**6 + "end of it")
    # A million marks in one piece would take hours.
    assert words.strings()[-3:] == ["end", "of", "it"]
    assert len(words) == 10**6 + 3
    assert tokeniser("eng").count_sentences("!" * (MAX_PIECE + 1) + "\tand more. It ends.") == 3


@pytest.mark.parametrize("rule", [GopherRepetition, GopherQuality, C4Quality])
def test_megabytes_of_signs_are_refused_before_words_are_made_of_them(rule):
    rng = random.Random(1)
    signs = "\n".join("".join(rng.choices("!?.,;:-()[]*#", k=5000)) for _ in range(400))
    # A fresh tokeniser would need a minute for them; one that is not asked learns nothing.
    known = len(tokeniser("eng").vocabulary)
    verdict = rule().build().judge(Document(signs))
    assert (verdict.reason, round(verdict.score, 2)) == ("signs", 1.0)
    assert len(tokeniser("eng").vocabulary) == known
    assert Document("A sentence, as it is (or was)! " * 50_000).signs_share is None
    assert (
        Document("\u0915\u093f \u0915\u0940\u0964 " * 50_000).signs_share is None
    )  # Vowels are marks there.
    assert Document(signs[:90_000]).signs_share is None


def test_vowel_signs_tell_words_apart():
    words = tokeniser("eng").words("कि की का कु")
    assert len(set(words.keys().tolist())) == 4
    assert not len(tokeniser("eng").words("❤\ufe0f !").keys())


def test_defaults_are_datatroves():
    pairs = [
        (GopherRepetition, GopherRepetitionFilter),
        (GopherQuality, GopherQualityFilter),
        (C4Quality, C4QualityFilter),
        (FineWebQuality, FineWebQualityFilter),
    ]
    for config, filter_ in pairs:
        code = filter_.__init__.__code__
        names = code.co_varnames[1 : code.co_argcount]
        theirs = dict(zip(names, filter_.__init__.__defaults__, strict=True))
        del theirs["exclusion_writer"]
        assert config().model_dump(exclude={"action", "mostly"}) == theirs


def test_a_verdict_tells_the_figure():
    verdict = GopherQuality().build().judge(Document("Only four words here."))
    assert (verdict.reason, verdict.score) == ("gopher_short_doc", 4)
    verdict = GopherRepetition().build().judge(Document("The same line.\n" * 19 + "Another."))
    assert (verdict.reason, verdict.score) == ("dup_line_frac", 18 / 20)


@pytest.mark.parametrize("limits", [((0, 0.2),), ((2, -0.1),), ((2, 1.5),), ((-1, 0.1),)])
def test_limits_that_never_bind_are_refused(limits):
    for name in ("top_n_grams", "dup_n_grams"):
        with pytest.raises(ValidationError):
            GopherRepetition(**{name: limits})


def test_an_unknown_language_is_refused():
    with pytest.raises(UsageError, match="language xyz"):
        FineWebQuality(language="xyz").build()
