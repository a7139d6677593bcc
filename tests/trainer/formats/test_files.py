"""Files of weights, damaged and hostile ones among them: nothing in them is executed, and messages are ours."""

import argparse
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings, strategies as st

from pipeline.base.errors import ConfigError
from tests.conftest import run_cli
from trainer.formats.description import Description
from trainer.formats.files import read_weights
from trainer.formats.write import export_files
from trainer.jobs.exchange import import_weights
from trainer.model.build import new_model

BODIES = {
    (file_format, name): body
    for file_format, name in (
        ("official", "w.npz"),
        ("timm", "w.safetensors"),
        ("timm", "w.pth"),
        ("big_transfer", "w.pth.tar"),
        ("big_vision", "v.npz"),
    )
    for body in [export_files(new_model("R14x0.5", 2, seed=0), file_format, name, Description(None, 64))[name]]
}
WEIGHTS = {"stem.conv.weight": torch.ones(2, 2)}


class Evil:
    """Pickles as a call of a function."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def is_foreign(message: str) -> bool:
    """Whether a message is torch's, which advises to run what the file holds."""
    return any(word in message for word in ("weights_only", "trust", "torch.load", "Weights only"))


def npz_of(**arrays: object) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    return sink.getvalue()


def torch_file(value: object, **options: object) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink, **options)
    return sink.getvalue()


def objects(victim: Path) -> np.ndarray:
    array = np.empty(1, object)
    array[0] = Evil(victim)
    return array


def swapped_torch_file(victim: Path) -> bytes:
    """A PyTorch file whose pickle is replaced by one that calls a function."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(torch_file(WEIGHTS))) as sound, zipfile.ZipFile(sink, "w") as evil:
        for name in sound.namelist():
            evil.writestr(name, pickle.dumps(Evil(victim), 2) if name.endswith("data.pkl") else sound.read(name))
    return sink.getvalue()


HOSTILE: dict[str, Callable[[Path], dict[str, bytes]]] = {
    "official npz": lambda victim: {
        "w.npz": npz_of(**{"resnet/root_block/standardized_conv2d/kernel": objects(victim)})
    },
    "big_vision npz": lambda victim: {"w.npz": npz_of(**{"root_block/conv_root/kernel": objects(victim)})},
    "timm pth": lambda victim: {"w.pth": torch_file({"stem.conv.weight": Evil(victim)})},
    "timm pth of old": lambda victim: {
        "w.pth": torch_file({"stem.conv.weight": Evil(victim)}, _use_new_zipfile_serialization=False)
    },
    "timm safetensors": lambda victim: {"w.safetensors": pickle.dumps(Evil(victim))},
    "timm folder": lambda victim: {"w/pytorch_model.bin": torch_file({"stem.conv.weight": Evil(victim)})},
    "big_transfer": lambda victim: {"w.pth.tar": swapped_torch_file(victim)},
    "bare pickle": lambda victim: {"w.pth": pickle.dumps({"model": Evil(victim)})},
    "transformers": lambda victim: {
        "w/pytorch_model.bin": swapped_torch_file(victim),
        "w/config.json": b'{"model_type": "bit", "auto_map": {"AutoModel": "evil.Model"}}',
        "w/evil.py": f"import os; os.mkdir({str(victim)!r})".encode(),
        "w/preprocessor_config.json": b'{"auto_map": {"AutoImageProcessor": "evil.Processor"}}',
    },
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_executes_nothing(kind: str, tmp_path: Path) -> None:
    files = HOSTILE[kind](tmp_path / "executed")
    for name, body in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(body)
    with pytest.raises(ConfigError) as refused:
        import_weights(str(tmp_path / next(iter(files)).split("/")[0]), str(tmp_path / "run"))
    assert not is_foreign(str(refused.value))
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "run").exists()


def test_the_command_line_refuses_a_hostile_file_in_one_line_of_ours(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"model": Evil(tmp_path / "executed")}))
    done = run_cli("trainer", "import", "w.pth", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/w.pth is no file of plain weights")
    assert done.stderr.count("\n") == 1
    assert not is_foreign(done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_hostile_pickles_do_harm_when_they_are_unpickled(tmp_path: Path) -> None:
    torch.load(io.BytesIO(swapped_torch_file(tmp_path / "executed")), weights_only=False)
    assert (tmp_path / "executed").exists()


def test_objects_text_and_records_in_an_npz_are_passed_over(tmp_path: Path) -> None:
    structured = np.zeros(2, [("a", "f4"), ("b", "i4")])
    body = npz_of(
        kernel=np.arange(6, dtype=">f4").reshape(2, 3), step=np.array(7), evil=objects(tmp_path / "executed"),
        text=np.array(["a"]), structured=structured, unicode=np.zeros(1, [("é", "f4")]), times=np.zeros(1, "M8[s]"),
        complex=np.zeros(1, complex), half=np.ones(2, np.float16), bfloat16=np.zeros(2, "V2"),
    )  # fmt: skip
    found = read_weights(body, "w.npz")
    assert sorted(found) == ["half", "kernel", "step"]
    assert found["kernel"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["step"].shape == ()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", [name for _, name in BODIES])
@settings(max_examples=25)
@given(data=st.data())
def test_damaged_files_are_read_or_refused_in_our_words(name: str, data: st.DataObject) -> None:
    body = bytearray(next(body for (_, known), body in BODIES.items() if known == name))
    edges = st.one_of(st.integers(0, 4096), st.integers(len(body) - 8192, len(body) - 1))
    for place in data.draw(st.lists(edges, min_size=1, max_size=4)):
        body[place] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.one_of(st.just(len(body)), st.integers(0, len(body))))
    try:
        found = read_weights(bytes(body[:cut]), name)
    except ConfigError as error:
        assert not is_foreign(str(error))  # noqa: PT017 - it may also be read
    else:
        assert all(isinstance(value, torch.Tensor) for value in found.values())


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("w.pth", b"", r"cut short or something else \(0 bytes"),
        ("w.npz", b"<!DOCTYPE html><html>", "beginning with b'<!DOCTYPE html><'"),
        ("w.npz", b"version https://git-lfs.github.com/spec/v1\n", "beginning with b'version https://'"),
        ("w.pth", torch_file({"args": argparse.Namespace(lr=1), "model": {}}), "it holds argparse.Namespace, which"),
        ("w.pth", torch_file([1, 2]), "holds a list, not weights by name"),
        ("w.onnx", b"\x08\x0a", "its kernels are standardised"),
        ("w.safetensors", b"\xff" * 8 + b"{}", "damaged, cut short"),
        (
            "w.npz",
            npz_of(kernel=np.ones(3, np.float32)).replace(b"'shape': (3,)", b"'shape': (9,)"),
            "damaged, cut short",
        ),
    ],
)
def test_what_is_no_file_of_weights_says_what_it_is(name: str, body: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_weights(body, name)


def test_a_file_is_known_by_its_content_and_not_by_its_name() -> None:
    for source in ("blob", "w.npz", "w.pth"):
        assert read_weights(safetensors.torch.save(WEIGHTS), source).keys() == WEIGHTS.keys()
        assert read_weights(torch_file({"state_dict": WEIGHTS}), source).keys() == WEIGHTS.keys()
        assert read_weights(npz_of(**{"stem.conv.weight": np.ones(2)}), source).keys() == WEIGHTS.keys()


def test_headers_that_ask_for_more_memory_than_there_is_are_refused() -> None:
    shape = json.dumps([1 << 40]).replace("[", "(").replace("]", ",)")
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        file.writestr("kernel.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64)
    with pytest.raises(ConfigError, match=r"more memory than there is|damaged|claims the shape"):
        read_weights(sink.getvalue(), "w.npz")
