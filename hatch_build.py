"""Builds pipeline/region.c with the C compiler and the libjpeg-turbo that pillow-simd is built with, too."""

import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RegionDecoder(BuildHookInterface):
    """Puts the shared library beside its Python door, and into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles before a wheel is put together, an editable one too."""
        if self.target_name != "wheel":
            return
        source = Path(self.root, "pipeline", "region.c")
        library = source.with_name("_region.so")
        compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ljpeg"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                f"{shlex.join(command)} failed; it needs a C compiler and libjpeg-turbo's headers "
                f"(apt-get install gcc libc6-dev libjpeg-dev):\n{done.stderr}"
            )
        build_data["artifacts"].append("pipeline/_region.so")
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
