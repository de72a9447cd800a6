#!/usr/bin/env python3
"""Write the data dictionary from the tables of fields in the code; --check tells whether it is stale."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "analytics" / "src"))

from gridstead.schema import FIELDS, POSITION  # noqa: E402 # the distribution need not be installed
from gridstead.sources import SOURCES, Source  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "data-dictionary.md"
HEAD = """\
# Data dictionary

<!-- Written by tools/data_dictionary.py from gridstead/schema.py and gridstead/sources/: change those, then `make docs`. -->

Every source's records become one kind of event, in the log, in the archive and in the statistics. null means unknown.
**P** marks what names persons or their machines: it is stored as a pseudonym ([privacy](../operations/privacy.md)).
"""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Compose a Markdown table."""
    titles = list(head)
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def event() -> str:
    """Compose the part on the event."""
    personal = {name: sorted(s.name for s in SOURCES.values() if name in s.personal) for name in (f.name for f in FIELDS)}
    rows = [
        [
            f"`{f.name}`",
            f.type.simpleString() + (", required" if f.required else ""),
            f.unit,
            f.meaning + (f" (**P**: {', '.join(personal[f.name])})" if personal[f.name] else ""),
            f.origin,
        ]
        for f in FIELDS
    ]
    position = ", ".join(f"`{field.name}` {field.dataType.simpleString()}" for field in POSITION)
    return (
        "\n## The event\n\n"
        + table(("field", "type", "unit", "meaning", "from"), rows)
        + f"\nIn Spark and in the archive each event has its place in the log beside it: {position}. The archive's columns are\n"
        "read by name: a file of an older version that lacks one reads as null there, one that has more loses it.\n"
    )


def of_source(source: Source) -> str:
    """Compose the part on one source."""
    rows = [
        [f"`{f.name}`", f.type + (", required" if f.required else ""), f.unit, f.meaning, f.origin, f.becomes or "—"] for f in source.fields
    ]
    text = f"\n## {source.title} (`{source.name}`)\n\n"
    if source.signs:
        text += f"Known by any of {', '.join(f'`{sign}`' for sign in sorted(source.signs))}. Further fields are let pass unread.\n\n"
    return text + table(("field", "type", "unit", "meaning", "set by", "becomes"), rows)


def page() -> str:
    """Compose the page."""
    return HEAD + event() + "".join(map(of_source, SOURCES.values()))


def main(arguments: list[str] | None = None) -> int:
    """Command line of the tool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is stale")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page")
    options = parser.parse_args(arguments)
    fresh = options.page.exists() and options.page.read_text(encoding="utf-8") == page()
    if options.check:
        if not fresh:
            print(f"data_dictionary: {options.page} is stale. Next: make docs", file=sys.stderr)
        return 0 if fresh else 1
    options.page.write_text(page(), encoding="utf-8")
    print(f"data_dictionary: {'0' if fresh else '1'} of 1 written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
