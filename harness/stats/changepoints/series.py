"""Steps in series of one value a commit, many at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from harness.stats.changepoints.null_distribution import Scanner, null_of_ties, p_values
from harness.stats.changepoints.scan import one_step, scores, two_steps
from harness.stats.changepoints.segmentation import Finding, better
from harness.stats.ranks import Floats

FEWEST = 8  # values in which a step is looked for
FEWEST_FOR_TWO = 12
MOST_EQUAL = 0.3  # share of a series that may have one and the same value before its ties need a table of their own
DOUBTED = 0.05  # which is asked only below this p


def findings(pieces: Sequence[Floats], two: bool) -> list[Finding]:
    """The likeliest steps in each piece (n,), those of one length scanned together."""
    found = [Finding()] * len(pieces)
    by_length = defaultdict(list)
    for i, piece in enumerate(pieces):
        by_length[len(piece)].append(i)
    for n, members in by_length.items():
        if n < FEWEST:
            continue
        rows = np.stack([pieces[i] for i in members])
        best = _scanned(one_step, rows)
        if two and n >= FEWEST_FOR_TWO:
            best = [better(*both) for both in zip(best, _scanned(two_steps, rows), strict=True)]
        for i, finding in zip(members, best, strict=True):
            found[i] = finding
    return found


def _scanned(scanner: Scanner, rows: Floats) -> list[Finding]:
    scan = scanner(scores(rows))
    p = p_values(scanner, scan, rows.shape[1])
    for i in np.flatnonzero(p <= DOUBTED).tolist():
        equals = tuple(np.unique(rows[i], return_counts=True)[1].tolist())
        if max(equals) > MOST_EQUAL * rows.shape[1]:
            p[i] = max(p[i], null_of_ties(scanner, equals).p(scan.of(i)).item())
    return [Finding(*each) for each in zip(p.tolist(), map(tuple, scan.places.tolist()), strict=True)]
