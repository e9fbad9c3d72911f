"""Citations: the papers that a class's docstring names."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

_PARAGRAPH = re.compile(r"^(?:Reference|Source): (.*?)(?=\n\s*\n|\n[A-Z]\w+: |\Z)", re.M | re.S)
_WORK = re.compile(r'([^";]+?),\s+"([^"]+)",\s+([^";]*?\b(\d{4})\b[^;]*)')
_SMALL_WORDS = frozenset({"a", "an", "the", "on", "of", "for", "in", "is", "can", "and", "how"})


@dataclass(frozen=True, kw_only=True)
class Citation:
    """One paper.

    Args:
        authors: such as "Lian et al." or "Xiao, Boyd, Lall".
        title: without quotation marks.
        where: venue and year, and where in the paper: "ICML 2018, algorithm 1".
        year: of publication.
    """

    authors: str
    title: str
    where: str
    year: int

    def __str__(self) -> str:
        return f'{self.authors}, "{self.title}", {self.where}'

    @property
    def short(self) -> str:
        """Authors and year: "Lian et al. 2018"."""
        return f"{self.authors} {self.year}"

    @property
    def key(self) -> str:
        """The first author, the year, the title's first word: "lian2018asynchronous"."""
        author = re.split(r",| and | et al", self.authors)[0].split()[-1]
        words = re.findall(r"\w+", self.title.lower())
        word = next((word for word in words if word not in _SMALL_WORDS), "")
        return re.sub(r"\W", "", f"{author.lower()}{self.year}{word}")

    def bibtex(self) -> str:
        """A BibTeX entry. Whoever "et al." stands for is `others`, as in the docstring."""
        named = re.sub(r"\s+et al\.?$", " and others", self.authors)
        authors = re.sub(r",\s+", " and ", named)
        note = re.sub(rf"^{self.year}(, )?", "", self.where)
        return (
            f"@misc{{{self.key},\n"
            f"  author = {{{authors}}},\n"
            f"  title = {{{{{self.title}}}}},\n"
            f"  year = {{{self.year}}},\n" + (f"  note = {{{note}}},\n" if note else "") + "}"
        )


def citations(described: type) -> list[Citation]:
    """The papers after "Reference:" or "Source:" in a class's own docstring, in their order.

    Each is written as `authors, "title", venue and year, where in it`; semicolons separate them.
    """
    text = inspect.cleandoc(described.__doc__ or "")
    found: list[Citation] = []
    for paragraph in _PARAGRAPH.findall(text):
        for authors, title, where, year in _WORK.findall(" ".join(paragraph.split())):
            found.append(
                Citation(
                    authors=authors.strip().rpartition(": ")[2],
                    title=title,
                    where=where.strip().rstrip("."),
                    year=int(year),
                )
            )
    return found
