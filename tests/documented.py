"""Commands that the pages of docs/operations show, so that tests run what an administrator copies."""

from __future__ import annotations

from appliance import ROOT


def commands(page: str) -> list[str]:
    """The commands of a page in their order: its indented lines, without what they say behind #."""
    lines = (ROOT / "docs" / "operations" / f"{page}.md").read_text().splitlines()
    return [line.partition(" # ")[0].strip() for line in lines if line.startswith("    ") and not line.startswith("     ")]


def command(page: str, number: int, **replaced: str) -> str:
    """One command of a page, with words of the page replaced; each of them must be there."""
    text = commands(page)[number]
    for word, value in replaced.items():
        assert word in text, f"{page}: {text} has no {word}"
        text = text.replace(word, value)
    return text
