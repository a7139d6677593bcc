"""The tasks have the counts of their sources, scores sum up as the paper's, and own tasks are checked."""

from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError, NotFound
from trainer.recipes.hyperrule import hyperrule
from trainer.tasks.catalogue import TASKS, task_named
from trainer.tasks.task import Portion, check_counts, chosen_rows
from trainer.tasks.vtab import NATURAL, SPECIALIZED, STRUCTURED, VTAB, group_scores


def test_vtab_has_nineteen_tasks_of_a_thousand_pictures_in_three_groups() -> None:
    assert [len(group) for group in (NATURAL, SPECIALIZED, STRUCTURED)] == [7, 4, 8]
    assert len({task.name for task in VTAB}) == 19
    for task in VTAB:
        assert (task.num_pictures("train800"), task.num_pictures("val200"), task.num_pictures("train")) == (
            800,
            200,
            1000,
        )
        assert not task.classes or len(task.classes) == task.num_classes


def test_test_splits_have_the_sizes_of_the_split_rules() -> None:
    sizes = {task.name.removeprefix("vtab/"): task.num_pictures("test") for task in VTAB}
    assert sizes == {
        "caltech101": 6085, "cifar100": 10_000, "dtd": 1880, "flowers102": 6149, "pets": 3669, "sun397": 21_750,
        "svhn": 26_032, "patch-camelyon": 32_768, "eurosat": 5400, "resisc45": 6300, "retinopathy": 42_670,
        "clevr-count": 15_000, "clevr-distance": 15_000, "dmlab": 22_735, "kitti-distance": 711,
        "dsprites-location": 73_728, "dsprites-orientation": 73_728, "smallnorb-azimuth": 12_150,
        "smallnorb-elevation": 12_150,
    }  # fmt: skip


def test_augmentation_and_resolution_follow_the_paper() -> None:
    assert {task.name for task in VTAB if not task.flip} == {
        "vtab/dsprites-location", "vtab/dsprites-orientation", "vtab/smallnorb-azimuth",
    }  # fmt: skip
    assert {task.name for task in VTAB if not task.crop} == {
        "vtab/clevr-count", "vtab/clevr-distance", "vtab/dmlab", "vtab/kitti-distance", "vtab/dsprites-location",
    }  # fmt: skip
    crops = {
        task.name: hyperrule(num_train=1000, height_px=task.height_px, width_px=task.width_px).crop_px for task in VTAB
    }
    assert {name for name, crop in crops.items() if crop == 128} == {
        "vtab/cifar100", "vtab/svhn", "vtab/eurosat", "vtab/dsprites-location", "vtab/dsprites-orientation",
    }  # fmt: skip


# Natural, structured and specialized scores of the released models, and their total [big_transfer README].
@pytest.mark.parametrize(("groups", "total"), [((80.77, 61.08, 85.67), 73.51), ((80.29, 59.40, 85.75), 72.65)])
def test_scores_sum_up_as_those_of_the_released_models(groups: tuple[float, float, float], total: float) -> None:
    natural, structured, specialized = groups
    of_group = {"natural": natural, "structured": structured, "specialized": specialized}
    found = group_scores({task.name: of_group[str(task.group)] for task in VTAB})
    assert found["all"] == pytest.approx(total, abs=0.01)
    assert {name: found[name] for name in of_group} == pytest.approx(of_group)
    with pytest.raises(ValueError, match="no score without vtab/dtd"):
        group_scores({task.name: 1.0 for task in VTAB if task.name != "vtab/dtd"})


def test_parts_are_cut_at_the_nearest_row() -> None:
    assert Portion("train", 0, 90).rows(73_257) == range(65_931)
    assert Portion("train", 90, 100).rows(73_257) == range(65_931, 73_257)
    assert Portion("train", 90, 100, most=200).rows(1000) == range(900, 1000)


def test_the_first_pictures_are_taken_in_order_only_where_the_order_is_that_of_tfds() -> None:
    task = TASKS["vtab/cifar100"]
    sizes = {"train": 50_000, "test": 10_000}
    ordered = {split: chosen_rows(task, split, sizes, in_order=True) for split in task.splits}
    assert ordered["train800"]["train"].tolist() == list(range(800))
    assert ordered["val200"]["train"].tolist() == list(range(45_000, 45_200))
    assert ordered["train"]["train"].tolist() == [*range(800), *range(45_000, 45_200)]
    drawn = {split: chosen_rows(task, split, sizes, in_order=False) for split in task.splits}
    assert drawn["train"]["train"].tolist() == sorted({*drawn["train800"]["train"], *drawn["val200"]["train"]})
    assert len(drawn["train"]["train"]) == 1000
    assert drawn["train"]["train"].max() > 40_000
    assert drawn["test"]["test"].tolist() == list(range(10_000))


def test_files_with_other_counts_are_refused() -> None:
    with pytest.raises(ConfigError, match="train has 49,999 pictures and should have 50,000"):
        check_counts(TASKS["cifar10"], {"train": 49_999, "test": 10_000})
    with pytest.raises(ConfigError, match="no split validation; they have train, test"):
        check_counts(TASKS["vtab/dtd"], {"train": 1880, "test": 1880})


OWN = """
name = "birds"
classes = ["finch", "tit"]
flip = false

[published]
train = 20
test = 6

[splits]
train = ["train[:80%]/10", "train[80%:]"]
val = ["train[80%:]"]
test = ["test"]
"""


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "birds.toml"
    path.write_text(OWN)
    task = task_named(str(path))
    assert (task.num_pictures("train"), task.num_pictures("val"), task.num_pictures("test")) == (14, 4, 6)
    assert (task.flip, task.crop, task.num_classes) == (False, True, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("flip", "flop"), "unknown: flop; a task has classes, crop"),
        (('name = "birds"', ""), "missing: name"),
        (('"test"]', '"tests"]'), r"the split 'tests' is not in \[published\], which has train, test"),
        (("80%:", "80%:20%"), r"is no part of a split: write train\[10%:90%\]"),
        (("= 20", "= "), "is no TOML file"),
        (("= 6", '= "many"'), "published.test = 'many'; write a whole number from 1 on"),
        (("= 6", "= -6"), "published.test = -6; write a whole number from 1 on"),
        (("flip = false", "height_px = 0"), "height_px = 0; write a whole number"),
        (('["finch", "tit"]', '["tit", "tit"]'), "classes has 'tit' twice"),
        (('["finch", "tit"]', '"tit"'), "classes = 'tit'; write a list of names"),
        (('["finch", "tit"]', "[]"), r"classes = \[\]; write a list of names"),
        (("/10", "/-1"), r"is no part of a split: write train\[10%:90%\] or train/800"),
        (('test = ["test"]', "test = []"), "splits.test has no picture"),
        (("[:80%]/10", ""), "splits.train has pictures twice"),
        (('test = ["test"]', 'test = ["train[90%:]"]'), "splits.test and splits.train have 2 pictures in common"),
        (('test = ["test"]', 'final = ["test"]'), r"\[splits\] lacks test; both are needed"),
        (("flip = false", 'flip = "false"'), "flip = 'false'; write true or false, without quotes"),
    ],
)
def test_a_task_file_that_is_wrong_is_named(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "birds.toml"
    path.write_text(OWN.replace(*change))
    with pytest.raises(ConfigError, match=message):
        task_named(str(path))


def test_an_unknown_task_brings_near_names() -> None:
    with pytest.raises(ConfigError, match="there is no task 'vtab/clevr-counts'; vtab/clevr-count"):
        task_named("vtab/clevr-counts")
    with pytest.raises(NotFound, match="does not exist"):
        task_named("none.toml")
