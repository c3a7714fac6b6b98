"""sobre pretrain: one stage of the story, pretraining."""

from sobre.app import stage


def main(argv: list[str]) -> int:
    """Run it."""
    return stage.run_stage("pretrain", argv)
