#!/bin/sh
# benchmarks/gpu/run.sh STEP [--steps N] [--set KEY=VALUE]: one step of the GPU work; the same line again goes on with it.
# See benchmarks/gpu/README.md. The Python is $PYTHON (python3), results go to $OUT (./out).
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
PYTHONPATH=$PWD
# Installed packages go before carried ones, which fit one Python version alone.
for folder in build/gpu/kit/vendor/*; do
    [ -d "$folder" ] || continue
    "$PYTHON" -c "import importlib.util as u, sys; sys.exit(u.find_spec('${folder##*/}') is None)" ||
        PYTHONPATH=$PYTHONPATH:$PWD/$folder
done
export PYTHONPATH PYTHONUNBUFFERED=1
exec "$PYTHON" -m benchmarks.gpu.run "$@"
