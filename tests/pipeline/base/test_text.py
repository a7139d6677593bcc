"""Names of others cannot fake lines, move the cursor, turn text around, or become formulas."""

import csv
import io
import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from cluster.audit.report.publish import csv_bytes
from pipeline.base.console import echo, say
from pipeline.base.text import csv_cell, printable, printable_log
from tests.conftest import class_folders, cli

EVIL = "cat\nerror: all is lost\x1b[2J\x1b]0;title\x07\u202egpj.exe\u2028\ud800"


@given(st.text())
def test_what_is_shown_holds_no_hidden_character(text: str) -> None:
    shown = printable(text)
    assert not any(unicodedata.category(each) in ("Cc", "Zl", "Zp", "Cs") for each in shown)
    assert not any("\u202a" <= each <= "\u202e" or "\u2066" <= each <= "\u2069" for each in shown)
    assert printable(shown) == shown


@given(st.text(st.characters(categories=("L", "N", "P", "S", "M", "Zs"))))
def test_visible_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_words_that_need_joiners_stay_as_they_are() -> None:
    assert printable("می\u200cخواهم 👩\u200d🚀 　全角") == "می\u200cخواهم 👩\u200d🚀 　全角"


def test_of_the_output_of_a_job_colours_and_lines_stay() -> None:
    assert printable_log("\x1b[36m(worker)\x1b[0m\tone\ntwo\x1b[2Jthree\x07") == (
        "\x1b[36m(worker)\x1b[0m\tone\ntwo\\x1b[2Jthree\\x07"
    )


def test_a_line_for_the_user_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"class {EVIL}: 3 pictures")
    echo(f"class {printable(EVIL)}", err=True)
    out, errors = capsys.readouterr()
    assert out == (r"class cat\nerror: all is lost\x1b[2J\x1b]0;title\x07\u202egpj.exe\u2028\ud800: 3 pictures" + "\n")
    assert len(errors.splitlines()) == 1


def test_class_names_of_others_fake_no_line_of_stats(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("evil")
    class_folders(folder / "in", classes=2, each=2)
    (folder / "in" / "class1").rename(folder / "in" / "a\nerror: lost\u202e")
    cli("shard", folder / "in", folder / "set")
    printed = cli("stats", folder / "set", "--html", folder / "stats.html")
    assert "a\\nerror: lost\\u202e: 2" in printed
    assert not [line for line in printed.splitlines() if line.startswith("error")]
    page = (folder / "stats.html").read_text()
    assert r"error: lost\u202e" in page
    assert "\u202e" not in page


@given(st.text(max_size=20))
def test_no_cell_is_a_formula_and_numbers_stay_numbers(text: str) -> None:
    cell = csv_cell(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")) or float(cell) is not None
    assert cell in (text, f"'{text}")


def test_formulas_are_escaped_and_read_back_as_text() -> None:
    cells = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\tx", "-1.5", "+3e7", "plain"]
    sink = io.StringIO()
    csv.writer(sink).writerow(map(csv_cell, cells))
    [row] = csv.reader(io.StringIO(sink.getvalue()))
    assert row == ["'=1+1", "'+cmd|' /C calc'!A0", "'-2+3", "'@SUM(A1)", "'\tx", "-1.5", "+3e7", "plain"]


def test_tables_of_an_audit_hold_no_formula() -> None:
    table = pa.table({"down_source": ["=1+1", "a.jpg"], "distance": [-3, 4], "down_classes": [None, "@x"]})
    assert csv_bytes(table).decode().splitlines()[1:] == ['"\'=1+1",-3,', '"a.jpg",4,"\'@x"']


def test_everything_that_is_printed_goes_through_one_door() -> None:
    root = Path(__file__).parents[3]
    sources = [path for name in ("pipeline", "trainer", "cluster") for path in (root / name).rglob("*.py")]
    assert len(sources) > 200
    assert [str(path) for path in sources if "click.echo(" in path.read_text() and path.name != "console.py"] == []
