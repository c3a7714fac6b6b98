"""sobre sft: one stage of the story, supervised fine-tuning on chats."""

from sobre.app import stage


def main(argv: list[str]) -> int:
    """Run it."""
    return stage.run_stage("sft", argv)
