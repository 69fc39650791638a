#!/bin/sh
# One piece of the work on a GPU, each under ten minutes; docs/gpu.md says in which order.
#   benchmarks/gpu.sh tests [FOLDER]
#   benchmarks/gpu.sh table [FOLDER]            ways of training, and attacks, one network at a time: KIND=vgg
#   benchmarks/gpu.sh EXPERIMENT [FOLDER]       again while the exit status is 3; SEEDS=10, TEST_EXAMPLES=200
#   benchmarks/gpu.sh pack EXPERIMENT [FOLDER]  files of at most 15 MiB, to bring home or to go on elsewhere
#   benchmarks/gpu.sh unpack EXPERIMENT [FOLDER]
# A piece of an experiment begins with what was packed, if that is all there is, and is packed when it ends, even
# if it is killed. Every piece is ended after SECONDS_AT_MOST (540). OUT=FOLDER copies there what is to be brought
# home; SPARSE_ROBUSTNESS_COMMIT says what was copied to the machine, if git is not there to say it.
set -eu
python=${PYTHON:-python3} seconds=${SECONDS_AT_MOST:-540}
case $1 in
tests)
    folder=${2:-${OUT:-results}}
    mkdir -p "$folder"
    code=0
    timeout -k 20 -s INT "$seconds" "$python" -m pytest -v -W default -p no:cacheprovider --tb=short \
        --durations=10 tests/empirical/test_gpu.py > "$folder/gpu-tests.log" 2>&1 || code=$?
    tail -n 60 "$folder/gpu-tests.log"
    exit "$code"
    ;;
table)
    folder=${2:-${OUT:-results}}
    mkdir -p "$folder"
    timeout -k 20 -s INT "$seconds" "$python" -m benchmarks.gpu --device cuda --kind "${KIND:-resnet-32}" \
        --out "$folder/gpu-${KIND:-resnet-32}.csv"
    ;;
pack)
    folder=${3:-results}
    # What was packed before goes once there is something whole in its place.
    packed=$folder/packed fresh=$folder/packed/new-$2
    rm -rf "$fresh"
    mkdir -p "$fresh"
    tar -C "$folder" --exclude="$2/unfinished" -czf "$fresh/whole" "$2"
    split -b 15M "$fresh/whole" "$fresh/$2.tgz."
    rm -f "$fresh/whole" "$packed/$2.tgz".*
    mv "$fresh/$2.tgz".* "$packed"
    rmdir "$fresh"
    ;;
unpack)
    folder=${3:-results}
    if [ -e "$folder/$2" ]; then
        echo "$folder/$2 is there already; move it away to unpack another" >&2
        exit 2
    fi
    rm -rf "$folder/packed/half-$2"
    mkdir -p "$folder/packed/half-$2"
    cat "$folder/packed/$2.tgz".* | tar -C "$folder/packed/half-$2" -xzf -
    mv "$folder/packed/half-$2/$2" "$folder"
    rmdir "$folder/packed/half-$2"
    ;;
*)
    folder=${2:-results}
    if [ ! -e "$folder/$1" ] && [ -e "$folder/packed/$1.tgz.aa" ]; then
        "$0" unpack "$1" "$folder"
    fi
    code=0
    timeout -k 20 -s INT "$seconds" "$python" -m empirical run "$1" --device "${DEVICE:-cuda}" \
        --minutes "${MINUTES:-5}" ${SEEDS:+--seeds "$SEEDS"} ${TEST_EXAMPLES:+--test-examples "$TEST_EXAMPLES"} \
        --out "$folder/$1" || code=$?
    if [ -e "$folder/$1" ]; then
        "$0" pack "$1" "$folder"
        [ -z "${OUT:-}" ] || cp "$folder/packed/$1.tgz".* "$OUT"
    fi
    exit "$code"
    ;;
esac
