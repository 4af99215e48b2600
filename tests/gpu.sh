#!/usr/bin/env bash
# Everything on a GPU: each task, also with mixed precision, deterministic and compiled; a search
# and a training that are stopped and resumed; the speed table; the tests. JOBS runs at a time; what
# they write and print is below OUT (runs/gpu). The exit code is 1 if anything failed.
set -uo pipefail
cd "$(dirname "$0")/.."
export out=${OUT:-runs/gpu}
python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "torch sees no GPU")' || exit
mkdir -p "$out/logs" && rm -f "$out/failed"

check() { # NAME COMMAND
    "${@:2}" >"$out/logs/$1.txt" 2>&1 && echo "ok: $1" && return
    echo "FAILED: $1" | tee -a "$out/failed"
    tail -n 5 "$out/logs/$1.txt"
}
resume() { # stopped in its third epoch, a run ends with the numbers of the whole one
    local run="--limit 400 --epochs 4 --deterministic --print_every 1 --out $out"
    rm -rf "$out"/{whole,stopped}_$1
    python "$@" $run/whole_$1 && { python "$@" $run/stopped_$1 & } || return
    until grep -qs '"epoch": 3, "step": 2' "$out/stopped_$1/log.jsonl"; do
        kill -0 $! && sleep 0.1 || return
    done
    kill -TERM $! && wait $!
    [ $? = 75 ] && python "$@" $run/stopped_$1 --resume || return
    python - "$out/whole_$1" "$out/stopped_$1" <<'END'
import pathlib, sys
import runs
whole, stopped = (runs.load_checkpoint(pathlib.Path(out))[1]["history"] for out in sys.argv[1:])
assert whole == stopped, "a resumed run differs from the whole one"
END
}
checks() { # what `check` is called with, a line each; first what takes longest
    local train="python train.py --arch darts_v2 --limit 400 --epochs 1" task how name
    local tasks="rot col jig cls seg"
    for task in $tasks; do
        echo "compile_$task $train --task $task --layers 5 --compile --out $out/compile_$task"
    done
    echo "resume_search resume search.py"
    echo "resume_train resume train.py --arch darts_v2"
    for task in $tasks; do
        for how in "" "--amp bf16" "--amp fp16" --deterministic; do
            name=$task${how//[ -]/_}
            echo "train_$name $train --task $task $how --out $out/train_$name"
            echo "search_$name python search.py --limit 400 --epochs 1 --task $task $how" \
                "--out $out/search_$name"
        done
    done
    echo "torchrun torchrun --standalone --nproc_per_node=1 search.py --task col --limit 400" \
        "--epochs 1 --out $out/torchrun"
}
export -f check resume
checks | xargs -P "${JOBS:-8}" -I{} bash -c 'check {}'
check speed python tests/benchmark.py --only supernet training tasks growth --json "$out/speed.json"
cat "$out/logs/speed.txt"
check tests python -m pytest -q -n auto
[ ! -e "$out/failed" ]
