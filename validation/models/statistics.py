"""The two figures that keep a comparison honest: how sure a share is, and whether a difference is chance."""

from __future__ import annotations

from fractions import Fraction
from math import comb, sqrt

#: Two-sided 95 % quantile of the normal distribution.
_Z95 = 1.959963984540054


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; (0, 1) without trials.

    Unlike the normal approximation it stays within 0 and 1, and is right for shares near them.
    Raises ValueError if there are fewer trials than successes.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    if trials == 0:
        return 0.0, 1.0
    share, spread = successes / trials, _Z95**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = _Z95 / (1 + spread) * sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """McNemar's exact two-sided p-value for two models that answered the same rows.

    :param only_first: rows that only the first model got right.
    :param only_second: rows that only the second got right.

    The probability of so uneven a split if both were equally good; 1 if they never differ.
    """
    differing, fewer = only_first + only_second, min(only_first, only_second)
    if differing == 0:
        return 1.0
    tail = sum(comb(differing, count) for count in range(fewer + 1))
    # As a fraction: 2**differing overflows a float at about a thousand rows.
    return min(1.0, float(Fraction(2 * tail, 2**differing)))
