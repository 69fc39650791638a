#!/bin/sh
# One piece of the work on a GPU, each under ten minutes; docs/gpu.md says in which order.
#   benchmarks/gpu.sh tests
#   benchmarks/gpu.sh table [FOLDER]            the ways of training, one network at a time: KIND=vgg
#   benchmarks/gpu.sh EXPERIMENT [FOLDER]       again while the exit status is 3; SEEDS=10 for other numbers
#   benchmarks/gpu.sh pack EXPERIMENT [FOLDER]  files of at most 15 MiB, to bring home or to go on elsewhere
#   benchmarks/gpu.sh unpack EXPERIMENT [FOLDER]
set -eu
python=${PYTHON:-python}
case $1 in
tests)
    timeout 570 "$python" -m pytest -q -n 4 tests/empirical/test_gpu.py tests/empirical/test_images.py \
        tests/empirical/test_training.py tests/empirical/test_attacks.py
    ;;
table)
    mkdir -p "${2:-results}"
    timeout 570 "$python" -m benchmarks.gpu --device cuda --kind "${KIND:-resnet-32}" \
        --out "${2:-results}/gpu-${KIND:-resnet-32}.csv"
    ;;
pack)
    folder=${3:-results}
    mkdir -p "$folder/packed"
    rm -f "$folder/packed/$2.tar".*
    tar -C "$folder" --exclude="$2/unfinished" -cf - "$2" | split -b 15M - "$folder/packed/$2.tar."
    ;;
unpack)
    folder=${3:-results}
    cat "$folder/packed/$2.tar".* | tar -C "$folder" -xf -
    ;;
*)
    "$python" -m empirical run "$1" --device cuda --minutes "${MINUTES:-8}" ${SEEDS:+--seeds "$SEEDS"} \
        --out "${2:-results}/$1"
    ;;
esac
