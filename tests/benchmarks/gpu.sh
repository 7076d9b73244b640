#!/bin/bash
# Check and measure training on one GPU, within 8 minutes: the GPU tests, the benchmark with and without compiled
# steps at batch 512 and 64, and if Ray is there a campaign packed on the GPU and one that is not.
#
#     tests/benchmarks/gpu.sh [OUT]        # writes OUT/gpu.log, by default ./gpu.log
#
# The limits of the parts sum to 8 minutes; a part that passes its own leaves what it has printed.
#
# Needs torch 2.11 or later, Python 3.11 or 3.12, numpy, pyarrow, pydantic, PyYAML, safetensors, scipy, scikit-learn,
# OpenCV, Pillow, simplejpeg, pytest and hypothesis. It installs nothing.
set -u
cd "$(dirname "$0")/../.." || exit 2
log=${1:-.}/gpu.log
python=${PYTHON:-python3}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1

part() { # TITLE SECONDS COMMAND...
    local title=$1 limit=$2 begin=$SECONDS
    shift 2
    echo "== $title: $*"
    timeout "$limit" "$@" 2>&1
    echo "== $title: status $?, $((SECONDS - begin)) s"
}

{
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    "$python" -c "import torch; print('torch', torch.__version__, 'CUDA', torch.version.cuda)"
    part "GPU tests" 90 "$python" -m pytest -q -p no:cacheprovider tests/aecore/training/test_gpu.py
    bench=("$python" tests/benchmarks/train.py --no-peers --images 100000 --seconds 2 --rounds 2)
    part "batch 512" 75 "${bench[@]}" --batch 512 --epochs 25 --padded
    part "batch 512, compiled" 90 "${bench[@]}" --batch 512 --epochs 25 --padded --compile on
    part "batch 64" 40 "${bench[@]}" --batch 64 --epochs 1
    part "batch 64, compiled" 60 "${bench[@]}" --batch 64 --epochs 1 --compile on
    if "$python" -c "import ray" 2>/dev/null; then
        export ZPOINT_HOME=${1:-.}/zpoint-home
        part "ingest" 25 "$python" -m jobs.cli ingest generated --to "$ZPOINT_HOME/faces" --limit 2000
        for packed in 1 auto; do
            part "campaign, search.per_gpu=$packed" 50 "$python" -m jobs.cli tune faces-vae \
                "data.uri=$ZPOINT_HOME/faces" "name=packed-$packed" search.trials=4 optim.epochs=2 "search.per_gpu=$packed" \
                'search.space={"model.z_dim":[16,32,64,128]}'
        done
    fi
} | tee "$log"
