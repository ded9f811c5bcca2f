"""What the tests found, for docs/cluster.md."""

COLUMNS = ("fault", "what happened", "what a user sees", "lost", "how it went on")
#: Under this name a test's report carries its row: pytest-xdist brings reports from its workers.
PROPERTY = "row of the table"


def rows_of(reports):
    """The rows that these tests told, file by file, each in the order in which its tests ran."""
    return [
        tuple(value)
        for report in sorted(reports, key=lambda report: report.nodeid.split("::")[0])
        for name, value in report.user_properties
        if name == PROPERTY and report.when == "call"
    ]


def markdown(rows):
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return ["| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in row) + " |" for row in lines]
