"""Text that models, judges or data wrote, as people may be shown it.

Control characters can move a terminal's cursor or end a line of a table; the marks that turn the direction of writing
can show a text in another order than it has. Both are made visible; every other character stays as it is.
"""

#: Left-to-right and right-to-left marks, embeddings, overrides and isolates (Unicode Standard Annex 9).
_DIRECTION = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
#: Of C1, and what ends a line in some programs only.
_OTHER = (*range(0x80, 0xA0), 0x2028, 0x2029, 0xFEFF)
_SHOWN = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: "␡",
    **{code: f"⟨U+{code:04X}⟩" for code in (*_DIRECTION, *_OTHER)},
}


def visible(text: str) -> str:
    """The text with control characters and direction marks made visible, and lone surrogates as question marks.

    Tabs and line feeds stay.
    """
    return text.encode("utf-8", "replace").decode("utf-8").translate(_SHOWN)


def one_line(text: str, limit: int | None = None) -> str:
    """The same in one line, white space run together, cut at `limit` characters with an ellipsis."""
    line = " ".join(visible(text).split())
    return line if limit is None or len(line) <= limit else f"{line[: limit - 1]}…"
