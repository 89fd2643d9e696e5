"""Put a table that a job has made into a page of the docs."""


def with_table(page: str, table: str) -> str:
    """Return a page with the table replaced that begins with the same cell.

    Raises:
        ValueError: If the page has no such table.
    """
    start = f"\n{table[: table.index('|', 1) + 1]}"
    before, header, after = page.partition(start)
    if not header:
        raise ValueError(f"the page has no table that begins with {start.strip()!r}")
    return f"{before}\n{table}\n{after.partition(chr(10) * 2)[2]}".rstrip("\n") + "\n"
