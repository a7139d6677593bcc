"""The index of DALI has every member where tarfile finds it."""

from pathlib import Path

from pipeline.dataset.dataset import Dataset
from tests.pipeline.exports.exporting import members_of, root_of, tars_of


def read_dali_index(path: Path) -> list[list[tuple[str, int, int, str]]]:
    head, *lines = path.read_text().splitlines()
    assert head == f"v1.2 {len(lines)}"
    samples = []
    for line in lines:
        words = iter(line.split(" "))
        samples.append([(e, int(o), int(n), name) for e, o, n, name in zip(words, words, words, words, strict=True)])
    return samples


def test_dali_index_has_every_member_as_tarfile_finds_it(exported: Dataset) -> None:
    for tar in tars_of(exported):
        index = root_of(exported) / "exports/dali" / tar.relative_to(root_of(exported)).with_suffix(".idx")
        found = [member for sample in read_dali_index(index) for member in sample]
        expected = [(m.name.partition(".")[2], m.offset_data, m.size, m.name) for m in members_of(tar)]
        assert found == expected


def test_dali_index_of_foreign_tars_leaves_rejects_out(adopted: Dataset) -> None:
    for row, tar in zip(adopted.shards, tars_of(adopted), strict=True):
        members = {m.name: m for m in members_of(tar)}
        index = root_of(adopted) / "exports/dali" / Path(row["path"]).with_suffix(".idx")
        samples = read_dali_index(index)
        assert len(samples) == row["num_samples"]
        keys = adopted.samples(row["shard"])["key"].to_pylist()
        for key, sample in zip(keys, samples, strict=True):
            assert [extension for extension, *_ in sample] == ["JPG", "json"]
            for extension, offset, size, name in sample:
                member = members[f"{key}.{extension}"]
                assert (offset, size, name) == (member.offset_data, member.size, member.name.replace(" ", "_"))
