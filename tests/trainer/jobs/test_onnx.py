"""ONNX Runtime computes the logits of the model that was exported."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import trainer
from pipeline.base.errors import ConfigError
from tests.conftest import run_cli
from tests.trainer.jobs.exchanged import CLASSES
from tests.trainer.model.test_golden import golden_model
from trainer.jobs.exchange import export_weights


@pytest.fixture(scope="module")
def onnx_file(run: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "w.onnx"
    export_weights(run, str(path), "onnx", resolution_px=96)
    return path


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def assert_same_logits(session: onnxruntime.InferenceSession, *shape: int) -> None:
    images = torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0]))
    with torch.no_grad():
        expected = golden_model("R14x0.5").float().eval()(images).numpy()
    (found,) = session.run(["logits"], {"images": images.numpy()})
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_onnxruntime_gives_the_logits_of_the_model_for_any_batch_at_one_resolution(onnx_file: Path) -> None:
    session = session_of(onnx_file)
    for count in (1, 3):
        assert_same_logits(session, count, 3, 96, 96)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="Expected: 96"):
        session.run(["logits"], {"images": np.zeros((1, 3, 64, 64), np.float32)})
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert json.loads(metadata["resolution_px"]) == 96
    assert metadata["model"] == "R14x0.5"


def test_onnx_files_take_any_height_and_width_where_that_is_asked_for(run: str, tmp_path: Path) -> None:
    done = run_cli("trainer", "export", f"{run}@7", "w.onnx", "--format", "onnx", "--resolution", "any", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")  # torch has nothing to say
    assert done.stdout.splitlines() == [f"{tmp_path}/w.onnx", f"{tmp_path}/w.onnx.md"]
    session = session_of(tmp_path / "w.onnx")
    for height, width in ((64, 64), (33, 47), (224, 160)):
        assert_same_logits(session, 2, 3, height, width)
    with pytest.raises(ConfigError, match="--resolution any is for --format onnx"):
        export_weights(run, str(tmp_path / "w.npz"), "official", any_size=True)


def test_an_onnx_file_is_written_once_more_without_a_complaint(run: str, onnx_file: Path) -> None:
    export_weights(run, str(onnx_file), "onnx", resolution_px=96)


def test_onnx_files_name_no_source_and_no_path_of_this_machine(onnx_file: Path) -> None:
    body = onnx_file.read_bytes()
    assert str(Path(trainer.__file__).parent).encode() not in body
    assert b"network.py" not in body


def test_the_advice_where_onnx_is_missing_works_from_a_clone(run: str, tmp_path: Path) -> None:
    (tmp_path / "onnxscript.py").write_text("raise ImportError")
    done = run_cli("trainer", "export", run, "w.onnx", "--format", "onnx", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "pip install -e '.[onnx]'" in done.stderr
