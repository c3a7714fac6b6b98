"""sobre rl: one stage of the story, reinforcement learning on problems."""

from sobre.app import stage


def main(argv: list[str]) -> int:
    """Run it."""
    return stage.run_stage("rl", argv)
