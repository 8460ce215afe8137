"""Reading word lists that are written as one block of text."""


def words(text: str) -> list[str]:
    """The words of text."""
    return text.split()


def phrases(text: str) -> list[str]:
    """The parts of text between semicolons or line ends, stripped."""
    parts = text.replace("\n", ";").split(";")
    return [part.strip() for part in parts if part.strip()]


def lines(text: str) -> tuple[str, ...]:
    """The non-empty lines of text, stripped."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())
