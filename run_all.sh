#!/usr/bin/env bash
# The search-based study at small scale: a search for each task, then every found cell and darts_v2 trained on one task
# under one recipe; then a table. A second start does only what is missing.
#
#   ./run_all.sh                            embedded data
#   ./run_all.sh cifar10_small --dataset cifar10 --data data/ --download
#   ./run_all.sh cityscapes_small --dataset cityscapes --data cityscapes/
set -euo pipefail
profile=${1:-shapes}
[ $# -eq 0 ] || shift # what is left names the data
tasks="rot cls jig col" target=cls search="" train="" train_rot=""
case $profile in
shapes) ;;
cifar10_small)
    set -- "$@" --size 32 --limit 10000
    search="--width 8 --layers 3 --epochs 2 --batch_size 64 --lr 0.05 --alpha_lr 3e-3"
    train="--width 8 --layers 5 --epochs 10 --batch_size 64 --lr 0.05 --weight_decay 3e-4 --nesterov --grad_clip 5
        --auxiliary 0 --cutout 0 --drop_path 0 --precise_bn 0"
    train_rot="--epochs 5" ;; # of four inputs an image
cityscapes_small)
    tasks="rot seg jig col" target=seg
    set -- "$@" --size 160
    search="--width 8 --layers 6 --epochs 20 --batch_size 8 --lr 0.05 --alpha_lr 3e-3"
    train="--width 16 --layers 6 --epochs 30 --batch_size 8 --lr 0.05" ;;
*)
    echo "run_all.sh: unknown profile $profile (shapes, cifar10_small, cityscapes_small)" >&2
    exit 2 ;;
esac
out=runs/$profile

for task in $tasks; do
    python search.py --task $task "$@" $search --out "$out/search_$task" --resume
done
for task in $tasks; do
    python train.py --arch "$out/search_$task/genotype.json" --task $target "$@" $train --out "$out/found_$task" --resume
done
python train.py --arch darts_v2 --task $target "$@" $train --out "$out/darts_v2" --resume
if [ $target = cls ]; then
    python train.py --arch darts_v2 --task rot "$@" $train $train_rot --out "$out/darts_v2_rot" --resume
fi
python report.py "$out" | tee "$out/report.md"
