#!/usr/bin/env bash
# The search-based study at small scale: a search for each task, then every found cell and darts_v2 trained on
# classification under one recipe, and darts_v2 on rotation; then a table. A second start does only what is missing.
#
#   ./run_all.sh                            embedded data
#   ./run_all.sh cifar10_small --dataset cifar10 --data data/ --download
set -euo pipefail
profile=${1:-shapes}
[ $# -eq 0 ] || shift # what is left names the data
case $profile in
shapes)
    search="" train="" train_rot="" ;;
cifar10_small)
    set -- "$@" --size 32 --limit 10000
    search="--width 8 --layers 3 --epochs 2 --batch_size 64 --lr 0.05 --alpha_lr 3e-3"
    train="--width 8 --layers 5 --epochs 10 --batch_size 64 --lr 0.05 --weight_decay 3e-4 --nesterov --grad_clip 5
        --auxiliary 0 --cutout 0 --drop_path 0 --precise_bn 0"
    train_rot="--epochs 5" ;; # of four inputs an image
*)
    echo "run_all.sh: unknown profile $profile (shapes, cifar10_small)" >&2
    exit 2 ;;
esac
out=runs/$profile

for task in rot cls jig col; do
    python search.py --task $task "$@" $search --out "$out/search_$task" --resume
done
for task in rot cls jig col; do
    python train.py --arch "$out/search_$task/genotype.json" --task cls "$@" $train --out "$out/found_$task" --resume
done
python train.py --arch darts_v2 --task cls "$@" $train --out "$out/darts_v2" --resume
python train.py --arch darts_v2 --task rot "$@" $train $train_rot --out "$out/darts_v2_rot" --resume
python report.py "$out" | tee "$out/report.md"
