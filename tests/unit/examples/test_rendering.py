"""The quickstart's report."""

from __future__ import annotations

from analysis import Analysis, sketch
from rendering import render

RUN = "1700000000000-0"


def test_a_report_says_everything() -> None:
    text = sketch([str(n) for n in range(50)])
    report = render(
        RUN,
        "/some/project",
        [
            Analysis(
                "a.md", "Markdown", size=1234, lines=10, words=100, headings=["A *b*", "C"], sketch=text
            ),
            Analysis("b.py", "Python", size=99, lines=9, words=9, comments=1, code=3, sketch=text),
            Analysis("c.py", "Python", size=2000, lines=5, words=5, comments=1, code=3),
            Analysis("d.py", "Python", problem="Permission denied"),
        ],
        {"a.md": "analyst-0", "b.py": "analyst-1", "c.py": "analyst-1", "d.py": "analyst-1"},
    )
    assert (
        report
        == r"""# What is in `/some/project`

Run 1700000000000-0 of 2023-11-14 22:13:20 UTC: 4 files, 3,333 bytes, 24 lines, 114 words.

## Comments by language

| language | files | code | comment | share |
| --- | --- | --- | --- | --- |
| Python | 2 | 6 | 2 | 25% |

## Similar files

| similarity | file | file |
| --- | --- | --- |
| 100% | `a.md` | `b.py` |

## Who did the work

| process | files |
| --- | --- |
| analyst-0 | 1 |
| analyst-1 | 3 |

## Documents

| document | title | headings |
| --- | --- | --- |
| `a.md` | A \*b\* | 2 |

## Files by size

| file | language | bytes | lines | words |
| --- | --- | --- | --- | --- |
| `c.py` | Python | 2,000 | 5 | 5 |
| `a.md` | Markdown | 1,234 | 10 | 100 |
| `b.py` | Python | 99 | 9 | 9 |

## Could not be read

| file | why |
| --- | --- |
| `d.py` | Permission denied |
"""
    )


def test_a_report_of_nothing_is_short() -> None:
    report = render(RUN, "/empty", [], {})
    assert (
        report.splitlines()[2] == f"Run {RUN} of 2023-11-14 22:13:20 UTC: 0 files, 0 bytes, 0 lines, 0 words."
    )
    assert "##" not in report


def test_names_cannot_break_the_tables() -> None:
    files = [Analysis(name, "Text", size=1) for name in ("a|b.txt", "c`d.txt", "e\nf.txt")]
    rows = render(RUN, "/", files, {}).splitlines()[-3:]
    assert [row.split(" | Text")[0] for row in rows] == [r"| `a\|b.txt`", "| `` c`d.txt ``", r"| `e\nf.txt`"]
