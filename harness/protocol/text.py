"""Text that is safe to print."""

from __future__ import annotations


def sanitize(text: str) -> str:
    """Replace every character that a terminal would interpret or hide with a question mark, except line breaks."""
    return "".join(ch if ch.isprintable() or ch == "\n" else "?" for ch in text)


def pluralize(number: float, one: str, more: str = "") -> str:
    """Return a number with a noun: `1 node`, `2 nodes` or, with `more`, `1,200 searches`.

    Args:
        number: The number.
        one: The singular of the noun.
        more: The plural of the noun; by default the singular with an s.
    """
    return f"{number:,.0f} {one if number == 1 else more or one + 's'}"


def sanitize_line(text: str) -> str:
    """Return the text on one line, without characters that a terminal would interpret or hide."""
    return sanitize(" ".join(text.split()))
