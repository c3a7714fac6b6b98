"""report.json and report.html of a run folder, written from its files. Written again, they are the same bytes."""

from pathlib import Path

from sobre.report.facts import facts
from sobre.report.page import render
from sobre.report.run_files import read_run
from sobre.runtime.files import write_json, write_text


def build(run_dir: Path) -> None:
    """Write both; raise a RunError if the folder holds no run."""
    report = facts(read_run(run_dir))
    write_json(run_dir / "report.json", report)
    write_text(run_dir / "report.html", render(report))
