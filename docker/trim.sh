#!/bin/sh
# Takes out of an environment what nothing runs in an image, and prints what remains. Usage: docker/trim.sh VENV ACCELERATOR
# For CPUs a quarter of it goes: tests, headers, Java and reinforcement learning of Ray, Arrow's Flight, debuggers' symbols.
set -eu
cd "$1"/lib/python*/site-packages

rm -rf torch/test torch/bin/test_* torch/bin/*Test torch/bin/protoc* torch/lib/*_test.so
rm -rf ray/jars ray/rllib ray/llm
rm -rf pyarrow/include pyarrow/*flight*
for package in networkx numpy pandas pyarrow sympy; do
    find "$package" -type d -name tests -prune -exec rm -rf {} +
done
if [ "$2" = cpu ]; then
    rm -rf torch/include  # on GPUs torch.compile builds C++ against these headers when a run starts
    # Two alone: libraries whose wheels were patched after linking may not load when stripped.
    strip --strip-unneeded torch/lib/*.so ray/_raylet.so
fi

du --summarize --block-size=MB ../../..
du --summarize --block-size=MB ../../../bin/weed ./* | sort --numeric-sort --reverse | head -n 12
