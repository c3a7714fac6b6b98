"""`sobre ledger DIR`: sums, waste and carbon, as a table and as a document."""

import json
from pathlib import Path

import jsonschema
import pytest

from sobre.app.ledger import main
from sobre.errors import RunError
from sobre.ledger.ledger import Ledger, bill
from sobre.ledger.prices import Price
from sobre.schemas import schema


def run_folder(folder: Path, *, measured: bool) -> Path:
    ledger, price = Ledger(folder / "ledger.jsonl"), Price(3.6, "told by a test, 2026-11-26")
    energy = (3.6e6, "measured") if measured else (None, "unknown")
    ledger.append(bill("pretrain", (0, 10), wall_s=300, tokens=1000, flops=1e12, price=price, energy=energy))
    ledger.append(bill("rl", (0, 5), wall_s=100, tokens=50, flops=1e11, price=price, energy=energy, wasted_s=40))
    return folder


def test_the_document_sums_energy_money_waste_and_carbon(tmp_path, capsys):
    main([str(run_folder(tmp_path, measured=True)), "--json"])
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema("bill"))
    total = document["parts"]["total"]
    assert (total["wall_s"], total["wasted_s"], total["tokens"]) == (400, 40, 1050)
    assert total["cost_usd"] == pytest.approx(0.4)
    assert document["co2_kg"] == pytest.approx(2 * document["grid_kg_per_kwh"])  # two kilowatt-hours


def test_unknown_energy_stays_unknown(tmp_path, capsys):
    main([str(run_folder(tmp_path, measured=False)), "--json"])
    assert json.loads(capsys.readouterr().out)["co2_kg"] is None
    main([str(tmp_path)])
    shown = capsys.readouterr().out
    assert "CO2" not in shown
    assert "wasted: 10.0%" in shown


def test_a_folder_without_a_ledger_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"ledger\.jsonl"):
        main([str(tmp_path)])
