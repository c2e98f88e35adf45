"""Tables in the documentation come from a benchmark's files."""

import runpy
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(REPOSITORY / "docs" / "embed_tables.py"))
embed = SCRIPT["embed"]
TABLES = """### weave

| model | AUROC |
| --- | --- |
| Msfd | 0.9 |

### Costs, mean over 2 data sets

| model | s |
| --- | --- |
| Msfd | 3 |

- A remark.
- Another.
"""
PAGE = "before\n\n<!-- tables: table.md{names} -->\nold\n<!-- end of tables -->\n\nafter\n"


def test_quotes_what_the_page_names_and_nothing_else(tmp_path):
    (tmp_path / "table.md").write_text(TABLES)
    new = embed(PAGE.format(names=" | Costs | remarks"), tmp_path)
    head = "before\n\n<!-- tables: table.md | Costs | remarks -->\nCosts, mean over 2 data sets:\n\n| model | s |\n"
    assert new.startswith(head)
    assert new.endswith("| Msfd | 3 |\n\n- A remark.\n- Another.\n<!-- end of tables -->\n\nafter\n")
    assert "weave" not in new
    assert embed(new, tmp_path) == new
    new = embed(PAGE.format(names=""), tmp_path)
    assert new.index("weave:") < new.index("Costs, mean over 2 data sets:") < new.index("- Another.")


def test_names_a_section_that_is_not_there(tmp_path):
    (tmp_path / "table.md").write_text(TABLES)
    with pytest.raises(SystemExit, match="has no section 'grid': it has weave, Costs, mean over 2 data sets, remarks"):
        embed(PAGE.format(names=" | grid"), tmp_path)


def test_leaves_what_cannot_be_had(tmp_path, capsys):
    page = PAGE.format(names="")
    assert embed(page, tmp_path) == page
    assert "table.md is not there" in capsys.readouterr().err


PAGES = ["README.md", "docs/results.md", "docs/large-images.md", "docs/edge.md", "docs/teachers.md"]


@pytest.mark.parametrize("page", PAGES)
def test_pages_have_closed_blocks(page):
    text = (REPOSITORY / page).read_text()
    blocks = SCRIPT["BLOCK"].findall(text)
    assert len(blocks) == text.count("<!-- tables:") == text.count("<!-- end of tables -->") > 0
