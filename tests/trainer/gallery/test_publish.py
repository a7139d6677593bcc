"""The gallery shows every mistake with its picture and opens offline, and verdicts on its sheet come back."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.base.errors import ConfigError, NotFound
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.schema import table_of, to_parquet
from pipeline.dataset.tables import from_parquet
from pipeline.store.url import open_store
from tests.conftest import class_folders, pack, run_cli
from tests.trainer.jobs.test_evaluate import result_of
from trainer.gallery.publish import add_verdicts, mistakes_of, publish_gallery
from trainer.scores.predictions import NAMED_PREDICTION_SCHEMA


@pytest.fixture(scope="module")
def evaluated(small_dataset: Dataset, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated")
    result_of(pretrained, small_dataset, out)
    rows = from_parquet((out / "predictions.parquet").read_bytes(), "table").to_pylist()
    for row in rows[::3]:  # the model makes no mistake on these pictures
        other = next(guess for guess in row["guesses"] if guess not in row["labels"])
        row |= {"prediction": other, "prediction_name": f"class{other}", "correct": False}
        row["guesses"] = [other, *(guess for guess in row["guesses"] if guess != other)]
        row["guess_names"] = [f"class{guess}" for guess in row["guesses"]]
    (out / "predictions.parquet").write_bytes(to_parquet(table_of(rows, NAMED_PREDICTION_SCHEMA)))
    return out


def shown(page: Path) -> list[dict[str, Any]]:
    found = re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    rows: list[dict[str, Any]] = json.loads(found[1])
    return rows


def test_every_mistake_is_shown_with_its_picture_and_guesses(
    small_dataset: Dataset, small_folder: Path, evaluated: Path, tmp_path: Path
) -> None:
    predictions = from_parquet((evaluated / "predictions.parquet").read_bytes(), "table")
    publish_gallery(open_store(str(tmp_path)), predictions, small_dataset, title="Three classes", num_for_review=7)
    wrong = {row["source"]: row for row in predictions.to_pylist() if not row["correct"]}
    mistakes = shown(tmp_path / "index.html")
    assert {row["name"] for row in mistakes} == set(wrong)
    assert [row["guesses"][0][1] for row in mistakes] == sorted(
        (row["guesses"][0][1] for row in mistakes), reverse=True
    )
    for row in mistakes:
        assert row["labels"] == wrong[row["name"]]["label_names"]
        assert row["guesses"][0][0] == wrong[row["name"]]["prediction_name"]
        with Image.open(tmp_path / row["picture"]) as small, Image.open(small_folder / row["name"]) as original:
            assert small.size == original.size
    sheet = shown(tmp_path / "review.html")
    assert len(sheet) == 7
    assert all(row in mistakes for row in sheet)


def test_pages_ask_nothing_of_the_network_and_no_name_ends_their_script(
    small_dataset: Dataset, evaluated: Path, tmp_path: Path
) -> None:
    predictions = from_parquet((evaluated / "predictions.parquet").read_bytes(), "table")
    names = [["</script><b>" + name for name in each] for each in predictions["label_names"].to_pylist()]
    place = predictions.column_names.index("label_names")
    renamed = predictions.set_column(place, predictions.schema.field(place), [names])
    publish_gallery(open_store(str(tmp_path)), renamed, small_dataset, title="<Three>")
    for page in ("index.html", "review.html"):
        body = (tmp_path / page).read_text()
        assert "http://" not in body
        assert "https://" not in body
        assert "</script><b>" not in body
        assert "<Three>" not in body
        assert shown(tmp_path / page)[0]["labels"][0].startswith("</script><b>")


def test_large_pictures_are_made_small(small_dataset: Dataset, evaluated: Path, tmp_path: Path) -> None:
    from trainer.gallery.publish import _small_jpeg  # noqa: PLC0415

    sink = io.BytesIO()
    Image.new("RGB", (1000, 500)).save(sink, "JPEG")
    with Image.open(io.BytesIO(_small_jpeg(sink.getvalue()))) as small:
        assert small.size == (256, 128)


def test_pictures_that_are_named_alike_are_told_apart(evaluated: Path) -> None:
    predictions = from_parquet((evaluated / "predictions.parquet").read_bytes(), "table")
    place = predictions.column_names.index("source")
    alike = predictions.set_column(place, predictions.schema.field(place), [["same.jpg"] * predictions.num_rows])
    names = [row["name"] for row in mistakes_of(alike)]
    assert len(names) == len(set(names)) > 1


def test_guesses_are_named_and_old_predictions_name_what_they_can(evaluated: Path) -> None:
    predictions = from_parquet((evaluated / "predictions.parquet").read_bytes(), "table")
    rows = predictions.to_pylist()
    for row in rows:
        row["guesses"] = [guess + 100 * (place > 0) for place, guess in enumerate(row["guesses"])]
    table = table_of(rows, NAMED_PREDICTION_SCHEMA)
    for row in mistakes_of(table):
        assert all(name.startswith("class") for name, _ in row["guesses"])
    for row in mistakes_of(table.drop_columns(["guess_names"])):
        assert [name[:2] for name, _ in row["guesses"]] == ["cl", "10", "10"]


def test_hidden_characters_of_names_are_written_out_and_the_pages_still_open(
    small_dataset: Dataset, evaluated: Path, tmp_path: Path
) -> None:
    predictions = from_parquet((evaluated / "predictions.parquet").read_bytes(), "table")
    names = [[f"soft\xad{name}\u202e\x7f" for name in each] for each in predictions["label_names"].to_pylist()]
    place = predictions.column_names.index("label_names")
    renamed = predictions.set_column(place, predictions.schema.field(place), [names])
    out = open_store(str(tmp_path))
    publish_gallery(out, renamed, small_dataset, title="Three")
    assert shown(tmp_path / "index.html")[0]["labels"][0].startswith(r"soft\xadclass")
    verdicts = {row["name"]: "ambiguous" for row in shown(tmp_path / "review.html")}
    assert add_verdicts(out, json.dumps({"verdicts": verdicts}).encode(), "file")["num_judged"] == len(verdicts)


def test_verdicts_on_another_models_mistakes_are_refused(
    small_dataset: Dataset, evaluated: Path, tmp_path: Path
) -> None:
    predictions = from_parquet((evaluated / "predictions.parquet").read_bytes(), "table")
    rows = predictions.to_pylist()
    for row in rows:
        row["guess_probabilities"] = [chance / 2 for chance in row["guess_probabilities"]]
    sheets = {}
    for name, table in (("one", predictions), ("other", table_of(rows, NAMED_PREDICTION_SCHEMA))):
        publish_gallery(open_store(str(tmp_path / name)), table, small_dataset, title="Three")
        page = (tmp_path / name / "review.html").read_text()
        found = re.search(r'sheet: "(\w+)"', page)
        assert found
        assert f'"bit-review-" + "{found[1]}"' in page  # what a browser keeps them by
        sheets[name] = found[1]
    verdicts = {row["name"]: "ambiguous" for row in shown(tmp_path / "one" / "review.html")}
    body = json.dumps({"sheet": sheets["one"], "verdicts": verdicts}).encode()
    add_verdicts(open_store(str(tmp_path / "one")), body, "verdicts.json")
    with pytest.raises(ConfigError, match="holds verdicts on another model's mistakes"):
        add_verdicts(open_store(str(tmp_path / "other")), body, "verdicts.json")


def test_verdicts_of_the_sheet_give_the_corrected_accuracy(
    small_dataset: Dataset, evaluated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "gallery"
    done = run_cli("trainer", "gallery", str(evaluated), small_dataset.store.url, str(out), "--review", "10")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"pictures: {out}/index.html\n")
    names = [row["name"] for row in shown(out / "review.html")]
    verdicts = dict(zip(names, ["model right"] * 3 + ["ambiguous"] * 2 + ["model wrong"] * 5, strict=True))
    (tmp_path / "verdicts.json").write_text(json.dumps({"verdicts": verdicts}))
    reviewed = run_cli("trainer", "review", str(out), str(tmp_path / "verdicts.json"), "--json")
    result = json.loads(reviewed.stdout)
    num_wrong = len(shown(out / "index.html"))
    assert result["num_wrong"] == num_wrong
    assert result["accuracy"] == pytest.approx((90 - num_wrong + 0.3 * num_wrong) / 90)
    assert json.loads((out / "verdicts.json").read_text())["result"] == result
    with pytest.raises(ConfigError, match=r"other\.jpg is not on the review sheet"):
        add_verdicts(open_store(str(out)), b'{"verdicts": {"other.jpg": "ambiguous"}}', "verdicts.json")
    with pytest.raises(NotFound, match="holds no gallery"):
        add_verdicts(open_store(str(evaluated)), b"{}", "verdicts.json")


def test_predictions_without_names_are_refused(small_dataset: Dataset, evaluated: Path, tmp_path: Path) -> None:
    predictions = from_parquet((evaluated / "predictions.parquet").read_bytes(), "table").drop_columns(["label_names"])
    with pytest.raises(ConfigError, match="the predictions have no label_names; evaluate the run again"):
        publish_gallery(open_store(str(tmp_path)), predictions, small_dataset, title="x")


def test_predictions_of_another_dataset_are_refused(small_dataset: Dataset, evaluated: Path, tmp_path: Path) -> None:
    predictions = from_parquet((evaluated / "predictions.parquet").read_bytes(), "table")
    other = pack(class_folders(tmp_path / "photos", each=30, seed=9), str(tmp_path / "other"), seed=5)
    smaller = pack(class_folders(tmp_path / "few", each=2), str(tmp_path / "smaller"))
    for dataset in (other, smaller):
        with pytest.raises(ConfigError, match=r"at row \d+ of shard \d+, where .* has .*; give the dataset that was"):
            publish_gallery(open_store(str(tmp_path / "out")), predictions, dataset, title="x")
    assert not (tmp_path / "out").exists()
