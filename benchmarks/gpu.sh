#!/bin/sh
# One piece of the work on a GPU, each under ten minutes; docs/gpu.md says in which order.
#   benchmarks/gpu.sh tests
#   benchmarks/gpu.sh table [FOLDER]            attacks, and ways of training, one network at a time: KIND=vgg
#   benchmarks/gpu.sh EXPERIMENT [FOLDER]       again while the exit status is 3; SEEDS=10 for other numbers
#   benchmarks/gpu.sh pack EXPERIMENT [FOLDER]  files of at most 15 MiB, to bring home or to go on elsewhere
#   benchmarks/gpu.sh unpack EXPERIMENT [FOLDER]
# A piece of an experiment begins with what was packed, if that is all there is, and is packed when it ends, even
# if it is killed. OUT=FOLDER copies there what is to be brought home.
set -eu
python=${PYTHON:-python3}
case $1 in
tests)
    timeout 570 "$python" -m pytest -q -W default -p no:cacheprovider --durations=10 tests/empirical/test_gpu.py
    ;;
table)
    folder=${2:-${OUT:-results}}
    mkdir -p "$folder"
    timeout 570 "$python" -m benchmarks.gpu --device cuda --kind "${KIND:-resnet-32}" \
        --out "$folder/gpu-${KIND:-resnet-32}.csv"
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
    folder=${2:-results}
    if [ ! -e "$folder/$1" ] && [ -e "$folder/packed/$1.tar.aa" ]; then
        "$0" unpack "$1" "$folder"
    fi
    code=0
    timeout -s INT "${SECONDS_AT_MOST:-540}" "$python" -m empirical run "$1" --device "${DEVICE:-cuda}" \
        --minutes "${MINUTES:-5}" ${SEEDS:+--seeds "$SEEDS"} --out "$folder/$1" || code=$?
    if [ -e "$folder/$1" ]; then
        "$0" pack "$1" "$folder"
        [ -z "${OUT:-}" ] || cp "$folder/packed/$1.tar".* "$OUT"
    fi
    exit "$code"
    ;;
esac
