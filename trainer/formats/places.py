"""Where weights of other code bases lie: in files by their endings, and in folders as timm and transformers name them.

Without torch: a wrong place is refused before it is imported.
"""

from pipeline.base.errors import Denied, NotFound
from pipeline.store.any_url import read_file
from pipeline.store.base import exists
from pipeline.store.url import open_store

SUFFIXES = (".npz", ".safetensors", ".pth", ".pt", ".bin", ".tar", ".onnx")
IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")  # as timm and transformers name them


def if_there(url: str) -> bytes | None:
    """Return the content of a file; None where there is none."""
    try:
        return read_file(url)
    except (NotFound, Denied):  # S3 denies what is not there to whoever may not list it
        return None


def holds_weights(url: str) -> bool:
    """Return whether a start of training is a file or a folder of another code base, and not a run."""
    if url.endswith(SUFFIXES):
        return True
    store = open_store(url)
    return any(exists(store, name) for name in IN_FOLDERS)
