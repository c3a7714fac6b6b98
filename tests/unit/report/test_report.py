"""The report: a pure function of the run folder, complete, self-contained, and honest about what is not there."""

import io
import json
import re
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from sobre.errors import RunError
from sobre.report.build import build
from sobre.report.card import model_card
from sobre.report.claims import stage_name
from sobre.report.facts import facts
from sobre.report.figures import draw_all
from sobre.report.run_files import read_run
from sobre.report.story import story
from sobre.schemas import schema

VOID = {"meta", "br"}


class Nesting(HTMLParser):
    """Fails unless every element that opens also closes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def built(run_folder):
    build(run_folder)
    return run_folder


@pytest.fixture(scope="module")
def page(built):
    return (built / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report(built):
    return json.loads((built / "report.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_report_json_and_the_eval_files_follow_their_schemas(built, report):
    jsonschema.validate(report, schema("report"))
    for path in (built / "eval").glob("*.json"):
        jsonschema.validate(json.loads(path.read_text(encoding="utf-8")), schema("eval"))


def test_building_twice_gives_the_same_bytes(built, page):
    before = (built / "report.json").read_bytes()
    build(built)
    assert (built / "report.html").read_text(encoding="utf-8") == page
    assert (built / "report.json").read_bytes() == before


def test_the_page_needs_nothing_from_outside_and_runs_no_script(page):
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)|\bon\w+=|(src|href)=\"(?!#)", page)
    assert len(page) < 400_000


def test_every_element_of_the_page_is_closed(page):
    nesting = Nesting()
    nesting.feed(page)
    assert nesting.open == []


def test_what_a_model_wrote_is_escaped(page):
    assert "<b>&amp;</b>" not in page
    assert "&lt;b&gt;&amp;&lt;/b&gt;" in page


def test_figures_take_their_colours_from_the_page(page, report):
    figures = draw_all(report)
    assert sorted(figures) == ["accuracy", "health", "load", "loss", "reinforcement"]
    for svg in figures.values():
        assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r'"#[^"]*"|url\(#[^)]*\)', "", svg))
        assert not re.search(r"font-family: ", svg)
    assert all(f"--{name}:" in page for name in re.findall(r"var\(--(\w+)\)", page))


@pytest.mark.slow
def test_the_second_stages_of_r1_are_drawn_beside_the_first_and_in_colours_that_the_page_has(
    report, new_run, tmp_path, new_eval
):
    folder = new_run(tmp_path / "run", stages=("sft", "rl"))
    config = json.loads((folder / "config.json").read_text())
    config["recipe"]["stages"] = ["sft", "rl", "sft2", "rl2", "distill"]
    (folder / "config.json").write_text(json.dumps(config))
    for stage, rate in (("sft2", 0.7), ("rl2", 0.8), ("distill", 0.5)):
        (folder / "eval" / f"{stage}.json").write_text(json.dumps(new_eval(rate, 1.9)))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    later = [{**line, "stage": f"{line['stage']}2"} for line in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *later]))
    build(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    found = json.loads((folder / "report.json").read_text())
    used = set(re.findall(r"var\(--(\w+)\)", page))
    assert {"sft2", "rl2", "distill"} <= used
    assert all(f"--{name}:" in page for name in used)
    one, both = (draw_all(each)["reinforcement"] for each in (report, found))
    assert both.count("Checks in a response") == 2 * one.count("Checks in a response") == 2
    assert found["stages"]["rl2"]["metrics"]["checks_last_tenth"] == pytest.approx(1.95, abs=0.01)
    rows = re.findall(r"<tr><td>([^<]*)</td><td>[\d.]+ % \([\d.–]+\)</td>\s*<td>97.5 %", page)
    assert rows == [stage_name(name) for name in ("sft", "rl", "sft2", "rl2", "distill")]
    console = Console(width=80, file=io.StringIO())
    console.print(story(found, folder))
    assert re.search(r"right +sft +rl +sft2 +rl2 +distill", console.file.getvalue())
    assert "…" not in console.file.getvalue()
    assert found["stages"]["rl2"]["mean_checks"] == 1.0  # each thought of the fixture says "check" once


def test_a_figure_that_stands_alone_has_colours_and_a_size_of_its_own(report):
    svg = draw_all({**report, "curves": {}, "load": None}, alone=True)["accuracy"]
    assert "var(--" not in svg
    assert 'xmlns="http://www.w3.org/2000/svg"' in svg
    assert re.search(r'width="[\d.]+pt"', svg)


def test_the_bill_adds_up_and_unknown_energy_stays_unknown(built, report):
    spent = [json.loads(line) for line in (built / "ledger.jsonl").read_text().splitlines()]
    total = report["bill"]["total"]
    for field in ("wall_s", "tokens", "flops", "cost_usd", "wasted_s"):
        assert total[field] == pytest.approx(sum(entry[field] for entry in spent))
    assert total["energy_j"] is None
    assert [row["stage"] for row in report["bill"]["rows"]] == [entry["stage"] for entry in spent]


def test_share_of_peak_of_the_total_weighs_seconds(built, report):
    spent = [json.loads(line) for line in (built / "ledger.jsonl").read_text().splitlines()]
    known = [entry for entry in spent if entry["share_of_peak"] is not None]
    mean = sum(e["share_of_peak"] * e["wall_s"] for e in known) / sum(e["wall_s"] for e in known)
    assert report["bill"]["total"]["share_of_peak"] == pytest.approx(mean)


def test_curves_are_short_and_their_flops_go_on_from_stage_to_stage(report):
    lengths = [len(curve["step"]) for curve in report["curves"].values()]
    assert max(lengths) <= 240
    flops = [x for curve in report["curves"].values() for x in curve["flops"]]
    assert flops == sorted(flops)
    assert flops[-1] == pytest.approx(1.4e11 * (300 + 300 + 90))


def test_load_is_relative_to_a_fair_share(report):
    for layer in report["load"]["ratio_LES"]:
        for moment in zip(*layer, strict=True):
            assert sum(moment) / len(moment) == pytest.approx(1.0, abs=1e-3)


def test_samples_show_good_and_bad_of_different_tasks_and_are_the_same_problem(report):
    chosen = report["samples"]["chosen"]
    kinds = [sample["kind"] for sample in chosen]
    assert kinds == ["became right"] * 3 + ["stayed wrong"] * 2 + ["became wrong", "stayed right"]
    assert len({sample["task"] for sample in chosen[:3]}) == 3
    for sample in chosen:
        before, after = sample["before"]["right"], sample["after"]["right"]
        assert sample["kind"] == ("stayed " if before == after else "became ") + ("right" if after else "wrong")


def test_generated_text_is_called_generated_and_said_not_to_know_the_world(page, built):
    assert "The text was generated" in page
    assert "knows nothing of the world" in page
    assert "The text was generated" in model_card(built, "rl")


def test_a_text_run_without_problems_or_learning_by_reward_says_what_is_missing(tmp_path, new_run, new_eval):
    folder = new_run(tmp_path / "text", stages=("pretrain",))
    scores = new_eval(0.0, 1.79)
    only_bits = {name: scores[name] for name in ("schema", "bits_per_byte", "baselines")}
    (folder / "eval" / "pretrain.json").write_text(json.dumps(only_bits))
    build(folder)
    report = json.loads((folder / "report.json").read_text())
    jsonschema.validate(report, schema("report"))
    assert "There was no reinforcement learning in this run." in report["missing"]
    assert report["bits_per_byte"]["en"] == 1.79
    page = (folder / "report.html").read_text()
    assert "bits per byte" in page
    assert "There was no reinforcement learning in this run." in page


def test_a_run_that_has_barely_begun_still_has_a_report(tmp_path):
    (tmp_path / "config.json").write_text('{"recipe": {"name": "new", "stages": ["pretrain", "rl"]}}')
    build(tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(report, schema("report"))
    assert "The ledger is empty, so there is no bill." in report["missing"]
    assert "The stage pretrain is in the recipe and left no metrics: it has not run." in report["missing"]
    assert "was not examined" in model_card(tmp_path, "pretrain")
    Console(file=io.StringIO()).print(story(report, tmp_path))


def test_a_folder_without_a_run_and_a_broken_file_are_errors_that_name_them(tmp_path):
    with pytest.raises(RunError, match="no config.json"):
        build(tmp_path)
    (tmp_path / "config.json").write_text('{"recipe": {}}')
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(RunError, match="plan.json is not JSON"):
        build(tmp_path)


def test_test_problems_found_in_the_training_text_are_admitted_wherever_accuracy_is_told(tmp_path, new_run):
    folder = new_run(tmp_path / "run")
    data = json.loads((folder / "data.json").read_text())
    seen = {"count": 26, "removed": False, "first": ["document 671 holds test problem 465"]}
    (folder / "data.json").write_text(json.dumps({**data, "test_overlap": seen}))
    build(folder)
    console = Console(width=200, file=io.StringIO())
    console.print(story(json.loads((folder / "report.json").read_text()), folder))
    for text in (
        (folder / "report.html").read_text(encoding="utf-8"),
        model_card(folder, "rl"),
        console.file.getvalue(),
    ):
        assert "26 documents of the pretraining text hold one of these problems" in text


def test_test_problems_found_in_the_chats_are_admitted_too_and_faults_of_files_are_named(tmp_path, new_run):
    folder = new_run(tmp_path / "run")
    seen = {"count": 3, "removed": False, "first": ["chats.jsonl:4 holds test problem 9"], "problems": 360}
    bad = {"wrong fields": {"count": 2, "first": ["chats.jsonl:7: the field 'messages' is missing"]}}
    found = {"sft": {"bad_records": bad, "notes": {}, "chats": 80, "test_overlap": seen}}
    (folder / "records.json").write_text(json.dumps({"schema": 1, "stages": found}))
    build(folder)
    report = json.loads((folder / "report.json").read_text())
    assert report["records"]["stages"] == found
    console = Console(width=200, file=io.StringIO())
    console.print(story(report, folder))
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in (page, model_card(folder, "rl"), console.file.getvalue()):
        assert "3 chats of cold start hold one of these problems: such chats were kept" in text
    assert "chats.jsonl:7: the field" in page


def test_control_characters_of_a_model_steer_no_terminal_and_no_page(tmp_path, new_run, new_eval):
    folder = new_run(tmp_path / "run", stages=("rl",))
    result = new_eval(0.9, 2.0)
    for item in result["items"]:
        item["completion"] = "\x1b[2J\x00\x9b31m" + item["completion"]
    (folder / "eval" / "rl.json").write_text(json.dumps(result))
    build(folder)
    console = Console(width=200, file=io.StringIO())
    console.print(story(json.loads((folder / "report.json").read_text()), folder))
    for text in ((folder / "report.html").read_text(encoding="utf-8"), console.file.getvalue()):
        assert "␛[2J␀" in text
        assert not set(text) & set("\x1b\x00\x9b")


def test_an_interval_that_overlaps_is_called_chance(tmp_path, new_run, new_eval):
    folder = new_run(tmp_path / "run", stages=("sft", "rl"))
    for stage, rate in (("sft", 0.80), ("rl", 0.82)):
        (folder / "eval" / f"{stage}.json").write_text(json.dumps(new_eval(rate, 2.0)))
    build(folder)
    assert "the difference may be chance" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_card_tells_this_stage_and_not_the_later_ones(built):
    card = model_card(built, "sft")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "| cold start | 300 |" in card
    assert "| reinforcement learning |" not in card
    assert "| rl |" not in card
    assert "| eval:rl |" not in card
    assert "58.3 %" in card
    assert "list price of a rented 2-core machine, 2026-11-01" in card
    assert "Its energy is unknown, and so is the carbon dioxide" in card


def test_the_terminal_says_once_that_all_its_energy_is_estimated(report):
    report = deepcopy(report)
    for row in [*report["bill"]["rows"], report["bill"]["total"]]:
        row |= {"energy_j": 360.0, "energy_source": "estimated"}
    console = Console(width=120, file=io.StringIO())
    console.print(story(report, Path("out/demo")))
    shown = console.file.getvalue()
    assert shown.count("estimated") == 1
    assert "0.100 Wh" in shown


@pytest.mark.parametrize(
    ("rank", "library", "words"),
    [
        (8, "peft", "Adapters (LoRA) of rank 8 over ./Qwen3-0.6B, whose own"),
        (0, "transformers", "./Qwen3-0.6B, trained"),
    ],
)
def test_the_card_of_an_adapted_model_names_its_base_and_claims_no_scratch(new_run, tmp_path, rank, library, words):
    folder = new_run(tmp_path / "run", stages=("sft",))
    config = json.loads((folder / "config.json").read_text())
    config["recipe"] |= {"start": {"model": "./Qwen3-0.6B"}, "lora": {"rank": rank}}
    (folder / "config.json").write_text(json.dumps(config))
    card = model_card(folder, "sft")
    assert f"library_name: {library}\n" in card
    assert words in card
    assert "from scratch" not in card
    assert "knows nothing of the world" not in card


def test_the_card_turns_the_energy_up_to_its_stage_into_carbon_with_the_factor(new_run, tmp_path):
    folder = new_run(tmp_path / "run", stages=("sft", "rl"))
    entries = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    for entry in entries:
        entry |= {"energy_j": 3.6e6, "energy_source": "estimated"}
    (folder / "ledger.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    n_before = sum("rl" not in entry["stage"] for entry in entries)
    assert 0 < n_before < len(entries)
    for stage, n in (("sft", n_before), ("rl", len(entries))):
        told = f"In all {n}.00 kWh (estimated): {0.48 * n:.3g} kg of carbon dioxide at 0.48 kg for a kilowatt-hour"
        assert told in " ".join(model_card(folder, stage).split())


def test_the_story_shows_accuracy_a_thought_the_bill_and_what_to_type(report):
    console = Console(width=120, file=io.StringIO())
    console.print(story(report, Path("out/demo")))
    text = console.file.getvalue()
    for expected in ("88.1 %", "58.3 %", "check:", "right", "the bill", "wasted", "sobre chat out/demo/rl"):
        assert expected in text
    assert "out/demo/report.html" in text


def test_what_next_names_the_model_of_the_last_stage_though_no_step_fitted_the_budget(report):
    stages = {**report["stages"], "rl": {**report["stages"]["rl"], "metrics": {"steps": 0}}}
    console = Console(width=120, file=io.StringIO())
    console.print(story({**report, "stages": stages}, Path("out/demo")))
    assert "sobre serve out/demo/rl" in console.file.getvalue()


def test_facts_are_plain_json_without_nan(run_folder):
    json.dumps(facts(read_run(run_folder)), allow_nan=False)
