"""The table of layouts is made row by row: what is measured again is replaced, and nothing else moves."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    spec = importlib.util.spec_from_file_location("matrix", Path(__file__).parents[2] / "scripts" / "matrix.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_a_row_goes_to_its_place_and_the_others_stay(matrix: ModuleType) -> None:
    page = "before\n<!-- make matrix -->\nold\n<!-- end -->\nafter\n"
    later, earlier, new = (matrix.ROWS[index] for index in (3, 0, 1))
    values = {row: [f"{i}e-15"] * len(matrix.COLUMNS) for i, row in enumerate((later, earlier))}
    written = matrix.with_table(page, values)
    assert matrix.read_table(written) == values
    again = matrix.with_table(written, {**matrix.read_table(written), new: ["2e-15"] * len(matrix.COLUMNS)})
    assert list(matrix.read_table(again)) == [earlier, new, later]
    assert matrix.read_table(again)[later] == values[later]
    assert again.startswith("before\n<!-- make matrix -->\n")
    assert again.endswith("<!-- end -->\nafter\n")


def test_the_page_has_every_row_and_every_difference_is_as_small_as_promised(matrix: ModuleType) -> None:
    table = matrix.read_table(matrix.PAGE.read_text(encoding="utf-8"))
    assert list(table) == matrix.ROWS
    for row, cells in table.items():
        for (column, case), cell in zip(matrix.COLUMNS.items(), cells, strict=True):
            assert float(cell) <= matrix.PROMISED[case.get("dtype", "float64")], (row, column)
