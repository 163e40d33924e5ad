"""A page made of sections that scripts write, each between marks of its own, so that none touches another's.

<!-- begin NAME -->
...
<!-- end NAME -->
"""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def put_section(name: str, text: str, page: Path = PAGE) -> None:
    """Replace the section, or append it where there is none."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    whole = page.read_text(encoding="utf-8") if page.is_file() else "# Benchmarks\n"
    section = f"{begin}\n{text.strip()}\n{end}"
    if begin in whole and end in whole.partition(begin)[2]:
        before, _, rest = whole.partition(begin)
        whole = f"{before}{section}{rest.partition(end)[2]}"
    else:
        whole = f"{whole.rstrip()}\n\n{section}\n"
    page.write_text(whole, encoding="utf-8")
