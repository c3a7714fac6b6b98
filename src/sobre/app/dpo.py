"""sobre dpo: one stage of the story, learning from pairs of answers (--data PAIRS.jsonl)."""

from sobre.app import stage


def main(argv: list[str]) -> int:
    """Run it."""
    return stage.run_stage("dpo", argv)
