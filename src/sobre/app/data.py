"""sobre data: one stage of the story, read the data into token shards."""

from sobre.app.begin import begin


def main(argv: list[str]) -> int:
    """Run it."""
    return begin("data", argv)
