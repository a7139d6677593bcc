#!/usr/bin/env bash
# Makes the virtual environment. Usage: scripts/setup.sh VENV EXTRA   (EXTRA: "" to run, "dev" to test)
set -euo pipefail
venv=$1 extra=$2
python=${PYTHON:-python3}

say() { printf '%s\n' "$*" >&2; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "error: Python 3.11 or newer is needed, $("$python" --version 2>&1) is here; set PYTHON=/path/to/python3.11"
    exit 1
}

# pillow-simd is compiled: it wants a compiler, Python's headers, and those of libjpeg and zlib.
if ! printf '#include <Python.h>\n#include <stdio.h>\n#include <jpeglib.h>\n#include <zlib.h>\nint main(void){return 0;}\n' |
    cc -fsyntax-only -I"$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')" -xc - 2>/dev/null ||
    ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    packages="gcc libc6-dev python3-dev python3-venv libjpeg-dev zlib1g-dev"
    say "installing what pillow-simd is built with: $packages"
    if ! { as_root apt-get update -qq && as_root apt-get install -y -qq $packages; } >&2; then
        say "error: could not install them; run:  sudo apt-get install -y $packages"
        exit 1
    fi
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
install() { pip install --quiet --no-compile "$@"; }

# Without an NVIDIA GPU a CPU build of torch saves gigabytes. pip finds it where one of its indexes carries it.
torch=$(grep '^torch==' constraints.txt)
if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    if command -v nvidia-smi >/dev/null || ! install "$torch+cpu" 2>/dev/null; then
        command -v nvidia-smi >/dev/null || say "no CPU build of torch on pip's indexes: taking the default build." \
            "To save gigabytes, stop and add PyTorch's CPU index: https://pytorch.org/get-started/locally"
        install "$torch"
    fi
fi

say "installing bit-pretrain into $venv"
install --constraint constraints.txt --editable ".${extra:+[$extra]}"

# The extra "formats", where wheels fit this machine: to build them takes compilers for C++ and Rust.
for package in pylibjxl cykooz-heif; do
    install --only-binary :all: --constraint constraints.txt "$package" 2>/dev/null ||
        say "no wheel of $package for this machine: its images will be rejected as no-decoder; see docs/sharding.md"
done

# Wherever it is installed, each Ray process takes a second more to start: jsonschema builds its grammar of addresses when
# it is imported. The library of the bill of materials brings it; nothing here uses it.
pip uninstall --quiet --quiet --yes rfc3987-syntax

# pillow and pillow-simd overwrite each other's files; nothing we depend on may bring pillow.
if pip show --quiet pillow 2>/dev/null; then
    say "error: a dependency installed pillow beside pillow-simd; see docs/decisions/0002-pillow-simd.md"
    exit 1
fi

# On all cores, where pip takes one. What does not compile is for other versions of Python.
"$venv/bin/python" -m compileall -qq -j 0 -x '/tests?/' "$venv"/lib/python*/site-packages || true
