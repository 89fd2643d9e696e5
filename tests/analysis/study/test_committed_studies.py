"""The page of each study in `studies/` is the one that its results make."""

import pytest

from raysim.analysis.study import cells, figure, page, results
from tests.conftest import ROOT

STUDIES = sorted(path.parent for path in (ROOT / "studies").glob("*/study.yaml"))


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_every_cell_of_a_study_is_planned(folder):
    study = cells.load(folder)
    assert all(study.unlent(name).runs for name in study.cells)


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_a_studys_page_and_figure_are_those_of_its_results(folder, tmp_path):
    study = cells.load(folder)
    tables = page.tables_of(study, results.read(folder / results.NAME))
    assert (folder / "README.md").read_text(encoding="utf-8") == page.text(study, tables)
    if tables:
        drawn = figure.draw(tmp_path / page.FIGURE, tables)
        assert drawn.read_bytes() == (folder / page.FIGURE).read_bytes()


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_results_belong_to_rows_that_the_study_has(folder):
    study = cells.load(folder)
    rows = {(name, entry.title) for name, cell in study.cells.items() for entry in cell.methods}
    found = results.read(folder / results.NAME)
    assert {(each.cell, each.row) for each in found if each.kind == results.RUN} <= rows
    assert all(len(each.commit) == 40 for each in found), "of a checkout without changes"
