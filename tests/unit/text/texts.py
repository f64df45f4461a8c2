"""Real texts without a download: what installed packages say of themselves; and texts made to break rules."""

from functools import cache
from importlib.metadata import distributions

SIZE = 1500


@cache
def package_texts() -> tuple[str, ...]:
    """A few hundred pieces of the descriptions of installed packages, always the same ones."""
    texts = []
    for name, text in sorted({d.name: d.read_text("METADATA") or "" for d in distributions()}.items()):
        description = text.partition("\n\n")[2]
        start = 500 * (len(name) % 3)
        if len(description) > start + SIZE:
            texts.append(description[start : start + SIZE])
    return tuple(texts[:100])


def prose(sentences: int, first: int = 0) -> str:
    """Plain English in which hardly a phrase comes twice."""
    things = (
        "river",
        "mountain",
        "letter",
        "garden",
        "window",
        "teacher",
        "engine",
        "winter",
        "market",
        "bridge",
    )
    verbs = ("crossed", "carried", "followed", "remembered", "painted", "opened", "watched")
    return " ".join(
        f"The {things[n % 10]} that we {verbs[n % 7]} in {1900 + n} was with the old "
        f"{things[(n * 3 + 1) % 10]} of {things[(n * 7 + 3) % 10]} number {n}."
        for n in range(first, first + sentences)
    )


BROKEN = (
    "",
    " \n\t ",
    "\n\n\n",
    ".",
    "…",
    "one",
    "The same line.\n" * 20,
    "A paragraph of its own.\n\n" * 8,
    "\n".join(f"- point {n} of the list" for n in range(30)),
    "\n".join(f"and so it goes on with the {n}..." for n in range(30)),
    "# " * 60 + prose(6),
    "lorem ipsum dolor sit amet is the text of the day.\n" + prose(8),
    "function f() { return the value of that; } and that is to be.\n" + prose(8),
    "We use cookies on this site.\n" + prose(3).replace(". ", ".\n"),
    prose(2, 5) * 9,
    " ".join(["of the"] * 80),
    "1234 5678 " * 60,
    "He said.  \"Well,\" she said (twice). [1] 'It is.' x:) ) and :)) too; don't!\n" * 3,
    "[2]\tU.S.A. a.m. [edit] (They'd).  ) 's\n" * 3,
    "Ünïcödé ｆｕｌｌ　width。日本語の文です。長い！\u2028Zeile zwei.\x85Zeile drei.\x0cSeite.\n" * 5,
    "IS_ALPHA is a word that the tokeniser of the library does not like. " + prose(9),
    "word" * 600 + " " + prose(9),
    "can not cannot can not cannot in to into in to into " * 20,
    prose(12) + "\n" + prose(12) + "\n" + prose(40, 100),
)
