"""What the tests found, for docs/cluster.md."""

COLUMNS = ("fault", "what happened", "what a user sees", "lost", "how it went on")
FAULTS: list[tuple[str, ...]] = []
#: Lines above the table: what ran, and how long it took.
NOTES: list[str] = []


def tell(fault, happened, seen, lost, went_on):
    """Add a row to the table."""
    FAULTS.append((fault, happened, seen, lost, went_on))


def markdown(rows):
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows] if rows else []
    return ["| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in row) + " |" for row in lines]
