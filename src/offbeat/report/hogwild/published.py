"""The paper's own figures, to stand beside ours.

Source: Niu et al., "HOGWILD!: A Lock-Free Approach to Parallelizing Stochastic Gradient Descent",
NIPS 2011, figure 2.
"""

from __future__ import annotations

from typing import NamedTuple

MACHINE = "10 cores of two Xeon X650 with 6 cores each, 20 epochs"
NOTE = (
    "By definition rho is at least Delta, so the pair of RCV1 cannot be as it is printed; the two "
    "are probably exchanged."
)


class Published(NamedTuple):
    """A row of the table; seconds and errors, None where it has none."""

    kind: str
    data: str
    rho: float  # as printed
    delta: float  # as printed
    hogwild: float
    round_robin: float | None
    train: float
    test: float | None


PUBLISHED = (
    Published("SVM", "RCV1", 0.44, 1.0, 9.5, 61.8, 0.297, 0.339),
    Published("matrix completion", "Netflix", 2.5e-3, 2.3e-3, 301.0, 2569.1, 0.754, 0.928),
    Published("matrix completion", "KDD Cup 2011", 3.0e-3, 1.8e-3, 877.5, 7139.0, 19.5, 22.6),
    Published("matrix completion", "Jumbo", 2.6e-7, 1.4e-7, 9453.5, None, 0.031, 0.013),
    Published("graph cut", "DBLife", 8.6e-3, 4.3e-3, 230.0, 413.5, 10.6, None),
    Published("graph cut", "Abdomen", 9.2e-4, 9.2e-4, 1181.4, 7467.25, 3.99, None),
)
