"""Our tar bytes are what every tar reader understands."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from pipeline.dataset.tar_format import END, contents, header, member, sample_parts

NAMES = st.from_regex(r"[0-9]{1,6}-[0-9a-z_]{1,30}\.(jpg|cls|json)", fullmatch=True)


@given(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=8, unique_by=lambda pair: pair[0]))
def test_tarfile_reads_back_what_was_written(files: list[tuple[str, bytes]]) -> None:
    tar = b"".join(member(name, content) for name, content in files) + END
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        found = [(info.name, archive.extractfile(info).read()) for info in archive]
    assert found == files


@given(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=8))
def test_contents_lie_where_they_are_said_to(files: list[tuple[str, bytes]]) -> None:
    body = b"".join(member(name, content) for name, content in files)
    assert [body[start:stop] for start, stop in contents(body)] == [content for _, content in files]


@given(st.from_regex(r"[0-9]{6}-[0-9]{6}", fullmatch=True), *(st.binary(max_size=1500) for _ in range(3)))
def test_a_sample_is_three_members(key: str, image: bytes, cls: bytes, about: bytes) -> None:
    before, after = sample_parts(key.encode(), len(image), cls, about)
    assert before + image + after == b"".join(
        member(f"{key}.{kind}", content) for kind, content in (("jpg", image), ("cls", cls), ("json", about))
    )


def test_gnu_tar_reads_it_and_sees_fixed_mode_owner_and_time(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(member("a.jpg", b"x" * 700) + member("a.cls", b"3") + END)
    listed = subprocess.run(
        ["tar", "--utc", "--numeric-owner", "-tvf", "x.tar"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert [line.split() for line in listed.stdout.splitlines()] == [
        ["-r--r--r--", "0/0", size, "1970-01-01", "00:00", name] for size, name in (("700", "a.jpg"), ("1", "a.cls"))
    ]


@pytest.mark.parametrize(("name", "num_bytes"), [("x" * 101, 1), ("", 1), ("a", 8**11)])
def test_what_does_not_fit_ustar_is_refused(name: str, num_bytes: int) -> None:
    with pytest.raises(ValueError, match="does not fit USTAR"):
        header(name, num_bytes)
