"""Third-party tars become a dataset in place: every usable image is indexed, the others are listed."""

from pathlib import Path

from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.image.transforms import EvaluationView
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import Stream
from tests.conftest import cli, jpeg, picture
from tests.contents import faults


def test_indexed_tars_stay_as_they_are_and_can_be_streamed(tmp_path: Path, small_dataset: Dataset) -> None:
    """Tars of others become a dataset in place; pictures that cannot be used are listed, not lost."""
    import webdataset  # noqa: PLC0415

    root = tmp_path / "web"
    (root / "part").mkdir(parents=True)
    with webdataset.ShardWriter(str(root / "part" / "w-%03d.tar"), maxcount=5, verbose=0) as writer:
        for number in range(12):
            data = jpeg(picture(number)) if number != 7 else b"not a picture"
            writer.write({"__key__": f"d.x/{number:04d}", "png" if number % 2 else "jpg": data, "cls": number % 3})
    before = {path: path.read_bytes() for path in root.rglob("*.tar")}
    said = cli("index", root, "--workers", 2, "--block-mib", 0.02)
    assert "11 samples in 3 tars, 1 rejected {'not-an-image': 1}" in said
    dataset = open_dataset(str(root))
    assert {path: path.read_bytes() for path in root.rglob("*.tar")} == before
    assert dataset.version.num_classes == 3
    assert faults(dataset) == []
    stream = Stream(Selection(dataset), OrderConfig(batch_size=11, num_lanes=1), EvaluationView(8))
    batch = next(stream)
    stream.close()
    keys = [dataset.sample(address)["key"] for address in batch.addresses]
    found = dict(zip(keys, batch.labels, strict=True))
    assert found == {f"d.x/{n:04d}": (n % 3,) for n in range(12) if n != 7}
    assert "version 1" in cli("index", root, "--block-mib", 0.02)
    assert "was indexed, not packed" in cli("append", small_dataset.store.url, root, code=2)
