"""Hartigan's dip test: whether values have one mode, or gather around two or more."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import log, pow, sqrt

LEVELS = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
# For n uniform values, sqrt(n) * dip that is reached or passed with each of these chances: from
# 20,000 simulated samples each (10,000 of 500), seed n. A uniform distribution is the one with one
# mode that is hardest to tell from two.
NULL = {
    4: (0.250, 0.250, 0.250, 0.264, 0.315, 0.376, 0.415, 0.449, 0.463, 0.475, 0.484, 0.489),
    5: (0.224, 0.224, 0.271, 0.329, 0.361, 0.395, 0.417, 0.432, 0.439, 0.443, 0.445, 0.446),
    6: (0.204, 0.256, 0.302, 0.345, 0.366, 0.390, 0.404, 0.441, 0.470, 0.494, 0.524, 0.541),
    7: (0.219, 0.276, 0.313, 0.347, 0.362, 0.383, 0.425, 0.464, 0.488, 0.506, 0.526, 0.537),
    8: (0.230, 0.281, 0.313, 0.341, 0.356, 0.402, 0.437, 0.470, 0.491, 0.506, 0.526, 0.546),
    10: (0.248, 0.286, 0.309, 0.347, 0.376, 0.412, 0.441, 0.478, 0.503, 0.528, 0.559, 0.577),
    12: (0.251, 0.282, 0.316, 0.357, 0.381, 0.416, 0.448, 0.490, 0.513, 0.531, 0.559, 0.578),
    15: (0.249, 0.289, 0.324, 0.361, 0.386, 0.426, 0.458, 0.498, 0.525, 0.552, 0.583, 0.604),
    20: (0.254, 0.295, 0.328, 0.368, 0.395, 0.435, 0.470, 0.512, 0.541, 0.573, 0.607, 0.631),
    30: (0.260, 0.302, 0.337, 0.378, 0.405, 0.447, 0.482, 0.524, 0.553, 0.580, 0.608, 0.624),
    50: (0.267, 0.309, 0.345, 0.388, 0.416, 0.459, 0.497, 0.542, 0.573, 0.605, 0.642, 0.673),
    100: (0.274, 0.316, 0.353, 0.397, 0.426, 0.470, 0.509, 0.559, 0.589, 0.624, 0.657, 0.679),
    200: (0.280, 0.325, 0.362, 0.406, 0.436, 0.481, 0.522, 0.567, 0.599, 0.632, 0.669, 0.690),
    500: (0.285, 0.330, 0.369, 0.412, 0.442, 0.487, 0.526, 0.580, 0.610, 0.645, 0.680, 0.701),
}  # fmt: skip


def one_mode(values: Sequence[float]) -> float:
    """p that all values are from a distribution with one mode; small: two or more.

    Not below 0.001, where the table ends; 1 for fewer than 4 values.
    """
    n = len(values)
    if n < min(NULL):
        return 1.0
    found = sqrt(n) * dip(values)
    sizes = list(NULL)
    at = min(bisect_right(sizes, n), len(sizes) - 1)
    small, large = sizes[at - 1], sizes[at]
    share = min(1.0, log(n / small) / log(large / small))
    last, reached = 1.0, 0.0
    for level, a, b in zip(LEVELS, NULL[small], NULL[large], strict=True):
        limit = a + share * (b - a)
        if found < limit:
            return last * pow(level / last, (found - reached) / (limit - reached))
        last, reached = level, limit
    return last


def dip(values: Sequence[float]) -> float:
    """The largest distance of the values' distribution function from the nearest with one mode.

    That is convex up to its mode and concave from there. The two parts are fitted from outside in:
    the greatest convex function below and the least concave one above, where they are furthest
    apart the mode must be in between (Hartigan and Hartigan 1985).
    """
    xs: list[float] = []
    below: list[int] = []  # how many values are less than xs[i]
    to: list[int] = []  # how many are not more
    for count, x in enumerate(sorted(values)):
        if not xs or x != xs[-1]:
            xs.append(x)
            below.append(count)
            to.append(count)
        to[-1] = count + 1
    first, last, worst = 0, len(xs) - 1, 1.0
    while first < last:
        floor, floor_at = _hull(xs, below, first, last, 1)
        roof, roof_at = _hull(xs, to, first, last, -1)
        gap, at = max((roof[i - first] - floor[i - first], i) for i in (*floor_at, *roof_at))
        if gap <= worst:
            break
        left = max(i for i in floor_at if i <= at)
        right = min(i for i in roof_at if i >= at)
        rising = [to[i] - floor[i - first] for i in range(first, left)]
        falling = [roof[i - first] - below[i] for i in range(right + 1, last + 1)]
        worst = max(worst, *rising, *falling, 0.0)
        first, last = left, right
    return worst / (2 * len(values)) if len(xs) > 1 else 0.0


def _hull(
    xs: Sequence[float], ys: Sequence[int], first: int, last: int, side: int
) -> tuple[list[float], list[int]]:
    """The convex hull from below (side 1) or above (-1): its height at each x, its corners."""
    corners = [first]
    for i in range(first + 1, last + 1):
        while len(corners) > 1:
            a, b = corners[-2:]
            if side * ((ys[b] - ys[a]) * (xs[i] - xs[a]) - (ys[i] - ys[a]) * (xs[b] - xs[a])) < 0:
                break
            corners.pop()
        corners.append(i)
    heights = [float(ys[first])]
    for a, b in pairwise(corners):
        slope = (ys[b] - ys[a]) / (xs[b] - xs[a])
        heights.extend(ys[a] + slope * (xs[i] - xs[a]) for i in range(a + 1, b))
        heights.append(ys[b])
    return heights, corners
