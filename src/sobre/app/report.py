"""sobre report DIR: write report.html and report.json of a run again, from its files alone."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from sobre.config.load import load


@dataclass(frozen=True)
class ReportOptions:
    """Flags of `sobre report`."""

    run: tyro.conf.Positional[str]
    """Folder of a run, finished or not."""


def main(argv: list[str]) -> int:
    """Build the report and show its story."""
    options = load(ReportOptions, argv, recipes=None, prog="sobre report")
    import json

    from rich.console import Console

    from sobre.report.build import build
    from sobre.report.story import story

    folder = Path(options.run)
    build(folder)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    Console().print(story(report, folder))
    return 0
