import sys

import pytest

from offbeat.citation import Citation, citations
from offbeat.cli import main
from offbeat.methods import ADPSGD, METHODS


class TwoPapers:
    """A class.

    Reference: Xiao, Boyd, Lall, "A Scheme for Something", IPSN 2005, eq. (7); the variant:
    Lin et al., "Don't Use It", 2020.
    Differences: it says "Nothing", 1999.
    """


def test_a_docstring_may_name_several_papers_and_stops_at_the_next_label():
    first, second = citations(TwoPapers)
    assert first == Citation(
        authors="Xiao, Boyd, Lall",
        title="A Scheme for Something",
        where="IPSN 2005, eq. (7)",
        year=2005,
    )
    assert (second.authors, second.title, second.year) == ("Lin et al.", "Don't Use It", 2020)
    assert first.short == "Xiao, Boyd, Lall 2005"
    assert (first.key, second.key) == ("xiao2005scheme", "lin2020don")


def test_bibtex():
    first, second = citations(TwoPapers)
    assert first.bibtex() == (
        "@misc{xiao2005scheme,\n"
        "  author = {Xiao and Boyd and Lall},\n"
        "  title = {{A Scheme for Something}},\n"
        "  year = {2005},\n"
        "  note = {IPSN 2005, eq. (7)},\n"
        "}"
    )
    assert "author = {Lin and others}" in second.bibtex()
    assert "note" not in second.bibtex()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_names_its_paper(method):
    found = citations(method)
    assert found, f'{method.__name__} needs `Reference: authors, "title", year` in its docstring'
    assert all(1900 < citation.year < 2100 for citation in found)


def test_the_command_prints_them(capsys):
    assert main(["cite", "ADPSGD", "OnePeerExponential"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"ADPSGD              {citations(ADPSGD)[0]}"
    assert second.startswith("OnePeerExponential  Assran et al., ")
    assert main(["cite"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed if not line.startswith(" ")] == list(METHODS)
    assert main(["cite", "--bibtex", "ADPSGD", "ADPSGD"]) == 0
    assert capsys.readouterr().out == citations(ADPSGD)[0].bibtex() + "\n"


def test_optimizers_compressors_and_schedules_are_of_papers_too(capsys):
    assert main(["cite", "LAMB", "QSGD", "XuSchedule"]) == 0
    out = capsys.readouterr().out
    assert [name in out for name in ("You et al., ", "Alistarh et al., ", "Xu, ")] == [True] * 3


def test_a_class_of_the_users_own_file_is_cited(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "cited_file.py").write_text(
        'class Mine:\n    """Mine.\n\n    Reference: Doe, "Steps", Venue 2020, eq. (1).\n    """\n'
    )
    try:
        assert main(["cite", "cited_file.py:Mine"]) == 0
    finally:
        sys.modules.pop("cited_file", None)
    assert capsys.readouterr().out == 'cited_file.py:Mine  Doe, "Steps", Venue 2020, eq. (1)\n'


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nofile.py:Mine"], "there is no file nofile.py to take Mine from"),
        (["ADPSDG"], "there is nothing named ADPSDG to cite; did you mean ADPSGD"),
        (["--latex"], "there is no option --latex"),
    ],
)
def test_bad_input_is_one_line(options, said, capsys):
    assert main(["cite", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"offbeat: {said}")
    assert captured.err.count("\n") == 1
