"""The quality rules of Gopher, C4 and FineWeb, with datatrove's names, defaults and verdicts.

datatrove's filters spend their time on making the same words and n-grams again. Here the words of a
document are made once for all rules, and n-grams are first counted by 64-bit keys in NumPy: equal n-grams
have equal keys, so what the keys rule out is out, and the few documents that may break a limit are
measured by datatrove's own functions. A collision of keys costs time, never a verdict.

Where datatrove's filter raises on a text (a document without words meets some limits as a division by
zero), the judge refuses the text as ``empty``. A text of more than 100,000 signs, more than 30 % of it, is
refused as ``signs`` before words are made of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field, StringConstraints

from validation.data.verdict import Judge, Rule, Verdict
from validation.data.words import ENGLISH, Words, tokeniser

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from validation.data.documents import Document

_EMPTY = Verdict("empty")
#: Words of an n-gram, and a share.
_Limit = tuple[Annotated[int, Field(ge=1)], Annotated[float, Field(ge=0, le=1)]]
_LANGUAGE = "Language whose tokeniser makes the words: datatrove's code, such as eng, deu or zho_Hans."


class GopherRepetition(Rule):
    """Repeated lines, paragraphs and n-grams: table A1 of https://arxiv.org/abs/2112.11446."""

    dup_line_frac: float | None = Field(0.3, description="Most that duplicate lines may be of all lines.")
    dup_para_frac: float | None = Field(
        0.3, description="Most that duplicate paragraphs may be of all paragraphs."
    )
    dup_line_char_frac: float | None = Field(
        0.2, description="Most that duplicate lines' characters may be of the text's."
    )
    dup_para_char_frac: float | None = Field(
        0.2, description="Most that duplicate paragraphs' characters may be of the text's."
    )
    top_n_grams: tuple[_Limit, ...] = Field(
        ((2, 0.2), (3, 0.18), (4, 0.16)),
        description="Pairs of n and the most that the commonest n-gram's characters may be of the text's.",
    )
    dup_n_grams: tuple[_Limit, ...] = Field(
        ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)),
        description="Pairs of n and the most that all repeated n-grams' characters may be of the text's.",
    )
    language: str = Field(ENGLISH, description=_LANGUAGE)

    def build(self) -> Judge:
        """The judge. Raises UsageError for a language without a tokeniser."""
        return _GopherRepetition(self)


class GopherQuality(Rule):
    """What ordinary prose looks like: section A1.1 of https://arxiv.org/abs/2112.11446."""

    min_doc_words: int | None = Field(50, description="Fewest words that are more than punctuation.")
    max_doc_words: int | None = Field(100_000, description="Most words that are more than punctuation.")
    min_avg_word_length: float | None = Field(3, description="Least mean length of words, in characters.")
    max_avg_word_length: float | None = Field(10, description="Greatest mean length of words, in characters.")
    max_symbol_word_ratio: float | None = Field(
        0.1, description="Most hash signs, and most ellipses, for each word."
    )
    max_bullet_lines_ratio: float | None = Field(
        0.9, description="Share of lines that may begin with a bullet point."
    )
    max_ellipsis_lines_ratio: float | None = Field(
        0.3, description="Share of lines that may end with an ellipsis."
    )
    max_non_alpha_words_ratio: float | None = Field(
        0.8, description="Least share of words that have a letter (the name is datatrove's)."
    )
    min_stop_words: int | None = Field(2, description="Fewest different stop words.")
    stop_words: tuple[str, ...] | None = Field(
        None, description="Words that prose has; null: the, be, to, of, and, that, have, with."
    )
    language: str = Field(ENGLISH, description=_LANGUAGE)

    def build(self) -> Judge:
        """The judge. Raises UsageError for a language without a tokeniser."""
        return _GopherQuality(self)


class C4Quality(Rule):
    """C4's rules: https://jmlr.org/papers/volume21/20-074/20-074.pdf.

    In C4, and in datatrove's filter, bad lines are cut out of a document that stays. A judge changes no
    text: it refuses exactly the documents that datatrove's filter drops (``lorem ipsum`` or a curly bracket
    in a line that would have stayed, too few sentences in the lines that would have stayed), and those
    that pass keep all of their lines.
    """

    split_paragraph: bool = Field(True, description="Look at lines; false: at sentences.")
    remove_citations: bool = Field(True, description="Read on without marks such as [1] or [edit].")
    filter_no_terminal_punct: bool = Field(
        True, description="Lines that end without a terminal punctuation mark do not count."
    )
    min_num_sentences: int = Field(5, description="Fewest sentences in the lines that count; -1: no limit.")
    min_words_per_line: int = Field(3, description="Lines with fewer words do not count; -1: no limit.")
    max_word_length: int = Field(
        1000, description="Lines with a longer word, in characters, do not count; -1: no limit."
    )
    filter_lorem_ipsum: bool = Field(True, description="Refuse documents with lorem ipsum.")
    filter_javascript: bool = Field(True, description="Lines that mention JavaScript do not count.")
    filter_curly_bracket: bool = Field(True, description="Refuse documents with an opening curly bracket.")
    filter_policy: bool = Field(True, description="Lines about cookies or terms of use do not count.")
    language: str = Field(ENGLISH, description=_LANGUAGE)

    def build(self) -> Judge:
        """The judge. Raises UsageError for a language without a tokeniser."""
        return _C4Quality(self)


class FineWebQuality(Rule):
    """FineWeb's own rules: https://arxiv.org/abs/2406.17557."""

    line_punct_thr: float = Field(
        0.12, description="Least share of lines that end with a terminal punctuation mark."
    )
    line_punct_exclude_zero: bool = Field(False, description="Let documents pass that have no such line.")
    stop_chars: tuple[Annotated[str, StringConstraints(min_length=1)], ...] | None = Field(
        None, description="Terminal punctuation marks; null: datatrove's, of many scripts."
    )
    short_line_thr: float = Field(0.67, description="Greatest share of short lines.")
    short_line_length: int = Field(30, description="Up to so many characters a line is short.")
    char_duplicates_ratio: float = Field(
        0.01, description="Most that duplicate lines' characters may be of the text's."
    )
    new_line_ratio: float = Field(0.3, description="Most line feeds for each word.")
    language: str = Field(ENGLISH, description=_LANGUAGE)

    def build(self) -> Judge:
        """The judge. Raises UsageError for a language without a tokeniser."""
        return _FineWebQuality(self)


def _exceeds(value: float, limit: float | None) -> bool:
    """datatrove's sense of a limit: none, and zero, never bind."""
    return bool(limit) and value > limit  # type: ignore[operator]


class _GopherRepetition:
    name = "gopher_repetition"

    def __init__(self, config: GopherRepetition) -> None:
        from datatrove.pipeline.filters import gopher_repetition_filter as datatrove

        tokeniser(config.language)
        self._config, self._datatrove = config, datatrove
        #: n to the limits on n-grams, as their places in top_n_grams followed by dup_n_grams.
        self._limits: dict[int, list[int]] = {}
        for place, (n, _) in enumerate((*config.top_n_grams, *config.dup_n_grams)):
            self._limits.setdefault(n, []).append(place)

    def judge(self, document: Document) -> Verdict | None:
        text, config = document.text, self._config
        if not text:
            return _EMPTY
        if document.signs_share:
            return Verdict("signs", document.signs_share)
        size = len(text)
        for kind, parts, most, most_chars in (
            ("para", document.paragraphs, config.dup_para_frac, config.dup_para_char_frac),
            ("line", document.feeds, config.dup_line_frac, config.dup_line_char_frac),
        ):
            if len(parts) == 1 or len(set(parts)) == len(parts):
                continue
            elements, characters = self._datatrove.find_duplicates(parts)
            if _exceeds(elements / len(parts), most):
                return Verdict(f"dup_{kind}_frac", elements / len(parts))
            if _exceeds(characters / size, most_chars):
                return Verdict(f"dup_{kind}_char_frac", characters / size)
        return self._n_grams(document.words(config.language), size)

    def _n_grams(self, words: Words, size: int) -> Verdict | None:
        suspects = sorted(self._suspects(words, size))
        if not suspects:
            return None
        strings, top = words.strings(), self._config.top_n_grams
        for place in suspects:
            if place < len(top):
                n, most = top[place]
                grams = self._datatrove.get_n_grams(strings, n)
                share, reason = self._datatrove.find_top_duplicate(grams) / size, f"top_{n}_gram"
            else:
                n, most = self._config.dup_n_grams[place - len(top)]
                share = self._datatrove.find_all_duplicate(strings, n) / size
                reason = f"duplicated_{n}_n_grams"
            if share > most:
                return Verdict(reason, share)
        return None

    def _suspects(self, words: Words, size: int) -> Iterator[int]:
        """Places of the limits on n-grams that the text may break."""
        top = self._config.top_n_grams
        vocabulary, index = words.vocabulary, words.index
        last, powers = vocabulary.polynomials[index], vocabulary.powers[index]
        ends = np.concatenate(([0], np.cumsum(vocabulary.lengths[index])))
        keys = last
        for n in range(1, min(max(self._limits, default=0), len(words)) + 1):
            if n > 1:
                keys = keys[:-1] * powers[n - 1 :] + last[n - 1 :]
            if n not in self._limits:
                continue
            ordered, longest = np.sort(keys), int((ends[n:] - ends[:-n]).max())
            repeats = -1
            for place in self._limits[n]:
                if place < len(top):
                    if _frequent(ordered, longest + n - 1, size, top[place][1]):
                        yield place
                    continue
                if repeats < 0:
                    repeats = int(np.count_nonzero(ordered[1:] == ordered[:-1]))
                if repeats * longest / size > self._config.dup_n_grams[place - len(top)][1]:
                    yield place


def _frequent(ordered: NDArray[np.uint64], longest: int, size: int, most: float) -> bool:
    """Whether a key comes so often that its n-grams, each at most ``longest``, could exceed ``most``."""
    often = max(1, int(most * size / longest))
    while often * longest / size <= most:
        often += 1
    if often > len(ordered):
        return False
    return bool((ordered[often - 1 :] == ordered[: len(ordered) - often + 1]).any())


class _GopherQuality:
    name = "gopher_quality"

    def __init__(self, config: GopherQuality) -> None:
        from datatrove.pipeline.filters.gopher_quality_filter import STOP_WORDS

        tokeniser(config.language)
        self._config = config
        self._stop_words = frozenset(STOP_WORDS if config.stop_words is None else config.stop_words)

    def judge(self, document: Document) -> Verdict | None:
        if document.signs_share:
            return Verdict("signs", document.signs_share)
        words = document.words(self._config.language)
        return self._by_words(words) or self._by_symbols(document, len(words)) or self._by_prose(words)

    def _by_words(self, words: Words) -> Verdict | None:
        config, vocabulary = self._config, words.vocabulary
        verbal = vocabulary.verbal[words.index]
        number = int(np.count_nonzero(verbal))
        if config.min_doc_words and number < config.min_doc_words:
            return Verdict("gopher_short_doc", number)
        if config.max_doc_words and number > config.max_doc_words:
            return Verdict("gopher_long_doc", number)
        if not len(words):
            return _EMPTY
        if number:
            mean = int(vocabulary.lengths[words.index][verbal].sum()) / number
            if config.min_avg_word_length and mean < config.min_avg_word_length:
                return Verdict("gopher_below_avg_threshold", mean)
            if config.max_avg_word_length and mean > config.max_avg_word_length:
                return Verdict("gopher_above_avg_threshold", mean)
        return None

    def _by_symbols(self, document: Document, number: int) -> Verdict | None:
        text, config = document.text, self._config
        if _exceeds(ratio := text.count("#") / number, config.max_symbol_word_ratio):
            return Verdict("gopher_too_many_hashes", ratio)
        ellipses = text.count("...") + text.count("…")
        if _exceeds(ratio := ellipses / number, config.max_symbol_word_ratio):
            return Verdict("gopher_too_many_ellipsis", ratio)
        lines = document.lines
        if "•" in text or "-" in text:
            bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines)
            if _exceeds(ratio := bullets / len(lines), config.max_bullet_lines_ratio):
                return Verdict("gopher_too_many_bullets", ratio)
        if ellipses:
            ends = sum(line.rstrip().endswith(("...", "…")) for line in lines)
            if _exceeds(ratio := ends / len(lines), config.max_ellipsis_lines_ratio):
                return Verdict("gopher_too_many_end_ellipsis", ratio)
        return None

    def _by_prose(self, words: Words) -> Verdict | None:
        config, vocabulary = self._config, words.vocabulary
        share = int(np.count_nonzero(vocabulary.alphabetic[words.index])) / len(words)
        if config.max_non_alpha_words_ratio and share < config.max_non_alpha_words_ratio:
            return Verdict("gopher_below_alpha_threshold", share)
        if config.min_stop_words:
            found = len(vocabulary.known(self._stop_words).intersection(words.numbers))
            if found < config.min_stop_words:
                return Verdict("gopher_enough_stop_words", found)
        return None


class _C4Quality:
    name = "c4_quality"

    def __init__(self, config: C4Quality) -> None:
        from datatrove.pipeline.filters import c4_filters as datatrove

        tokeniser(config.language)
        self._config, self._datatrove = config, datatrove

    def judge(self, document: Document) -> Verdict | None:
        config = self._config
        text, language = document.text, config.language
        if document.signs_share:
            return Verdict("signs", document.signs_share)
        parts = document.lines
        if not config.split_paragraph:
            from datatrove.utils.text import split_into_sentences

            parts = split_into_sentences(text, language)
        sentences = 0
        for part in parts:
            line = self._line(part.strip())
            if line is None:
                continue
            lower = line.lower()
            if config.filter_lorem_ipsum and "lorem ipsum" in lower:
                return Verdict("lorem_ipsum")
            if config.filter_javascript and "javascript" in lower:
                continue
            if config.filter_curly_bracket and "{" in line:
                return Verdict("curly_bracket")
            if config.filter_policy and any(map(lower.__contains__, self._datatrove.POLICY_SUBSTRINGS)):
                continue
            if config.min_num_sentences != -1:
                sentences += tokeniser(language).count_sentences(line) if config.split_paragraph else 1
        if sentences < config.min_num_sentences:
            return Verdict("too_few_sentences", sentences)
        return None

    def _line(self, line: str) -> str | None:
        """What is read of a line, without citations; None if it does not count whatever it says."""
        config, datatrove = self._config, self._datatrove
        longest, words = config.max_word_length, None
        if longest != -1 and len(line) > longest:
            words = line.split()
            if any(len(word) > longest for word in words):
                return None
        read = datatrove.CITATION_REGEX.sub("", line) if config.remove_citations and "[" in line else line
        if config.filter_no_terminal_punct and (
            not read.endswith(datatrove.END_PUNCTUATION) or read.endswith(datatrove.ELLIPSIS)
        ):
            return None
        # datatrove counts the words before it removes citations.
        return read if len(words or line.split()) >= config.min_words_per_line else None


class _FineWebQuality:
    name = "fineweb_quality"

    def __init__(self, config: FineWebQuality) -> None:
        from datatrove.pipeline.filters.gopher_repetition_filter import find_duplicates
        from datatrove.utils.text import TERMINAL_PUNCTUATION

        tokeniser(config.language)
        self._config, self._find_duplicates = config, find_duplicates
        stops = TERMINAL_PUNCTUATION if config.stop_chars is None else config.stop_chars
        self._stops = tuple(stops)
        self._last = frozenset(stop[-1] for stop in stops)
        self._single = all(len(stop) == 1 for stop in stops)

    def judge(self, document: Document) -> Verdict | None:
        text, config = document.text, self._config
        lines = [line for line in text.split("\n") if line.strip()]
        if not lines:
            return _EMPTY
        ratio = sum(map(self._stopped, lines)) / len(lines)
        if ratio < config.line_punct_thr and not (ratio == 0 and config.line_punct_exclude_zero):
            return Verdict("line_punct_ratio", ratio)
        ratio = sum(len(line) <= config.short_line_length for line in lines) / len(lines)
        if ratio > config.short_line_thr:
            return Verdict("short_line_ratio", ratio)
        feeds = text.count("\n")
        repeated = self._find_duplicates(lines)[1] if len(set(lines)) < len(lines) else 0
        ratio = repeated / (len(text) - feeds)
        if ratio > config.char_duplicates_ratio:
            return Verdict("char_dup_ratio", ratio)
        ratio = feeds / len(document.words(config.language))
        return Verdict("list_ratio", ratio) if ratio > config.new_line_ratio else None

    def _stopped(self, line: str) -> bool:
        # Nearly two hundred marks are faster looked up than tried.
        return line[-1] in self._last and (self._single or line.endswith(self._stops))
