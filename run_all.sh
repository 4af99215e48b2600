#!/usr/bin/env bash
# The search-based study at small scale: a search for each task, then every found cell and darts_v2 trained on
# classification under one recipe, and darts_v2 on rotation; then a table. Runs that are finished are not run again.
#
#   ./run_all.sh                            embedded data
#   ./run_all.sh cifar10_small --dataset cifar10 --data data/ --download
#
# JOBS=2 OMP_NUM_THREADS=1 runs two at a time with a thread each, which suits small networks on few cores.
set -euo pipefail
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT  # a failure or Ctrl-C ends the runs beside it
profile=${1:-shapes}
data=("${@:2}")
case $profile in
shapes)
    search=(); train=(); train_rot=() ;;
cifar10_small)
    data+=(--size 32 --limit 10000)
    search=(--width 8 --layers 3 --epochs 2 --batch_size 64 --lr 0.05 --alpha_lr 3e-3)
    train=(--width 8 --layers 5 --epochs 10 --batch_size 64 --lr 0.05 --weight_decay 3e-4 --nesterov --grad_clip 5
        --auxiliary 0 --cutout 0 --drop_path 0 --precise_bn 0)
    train_rot=(--epochs 5) ;;
*)
    echo "run_all.sh: unknown profile $profile (shapes, cifar10_small)" >&2; exit 2 ;;
esac
out=runs/$profile
mkdir -p "$out"

run() { # run NAME COMMAND...: in the background, at most $JOBS at a time, output to a file
    while (($(jobs -rp | wc -l) >= ${JOBS:-1})); do wait -n || exit 1; done
    local name=$1
    shift
    echo "$* --out $out/$name --resume"
    { "$@" --out "$out/$name" --resume >"$out/$name.txt" 2>&1 || { tail -3 "$out/$name.txt" >&2; exit 1; }; } &
}
finish() { while (($(jobs -rp | wc -l))); do wait -n || exit 1; done; }

python data.py "${data[@]}" # also downloads, once, where --download asks for it
for task in rot cls jig col; do
    run "search_$task" python search.py --task $task "${data[@]}" "${search[@]}"
done
run darts_v2_rot python train.py --arch darts_v2 --task rot "${data[@]}" "${train[@]}" "${train_rot[@]}"
run darts_v2 python train.py --arch darts_v2 --task cls "${data[@]}" "${train[@]}"
finish
for task in rot cls jig col; do
    run "found_$task" python train.py --arch "$out/search_$task/genotype.json" --task cls "${data[@]}" "${train[@]}"
done
finish
python report.py "$out" | tee "$out/report.md"
