"""sobre tokenizer: one stage of the story, train the tokenizer."""

from sobre.app.begin import begin


def main(argv: list[str]) -> int:
    """Run it."""
    return begin("tokenizer", argv)
