"""Compiles the C parts with the C compiler and the libjpeg-turbo that pillow-simd is built with, too."""

import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Source -> flags. A shared library takes its source's name with an underscore in front.
PARTS = {
    "pipeline/image/jpeg_region/region.c": ["-O2", "-ljpeg"],
    "pipeline/image/average64.c": ["-O3"],
    "cluster/audit/search/hamming.c": ["-O3"],
}


class CParts(BuildHookInterface):
    """Puts the shared libraries beside their Python doors, and into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before a wheel is put together, an editable one too."""
        if self.target_name != "wheel":
            return
        compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
        for name, flags in PARTS.items():
            source = Path(self.root, name)
            library = source.with_name(f"_{source.stem}.so")
            command = [compiler, "-shared", "-fPIC", "-o", str(library), str(source), *flags]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(
                    f"{shlex.join(command)} failed; it needs a C compiler and libjpeg-turbo's headers "
                    f"(apt-get install gcc libc6-dev libjpeg-dev):\n{done.stderr}"
                )
            build_data["artifacts"].append(str(library.relative_to(self.root)))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
