#!/usr/bin/env bash
# The whole study: searches by every objective; the found cells, published cells and random cells trained under one recipe
# with several seeds; the sample-based sweep and its rank correlations; the report. Each stage is a command that can be
# copied: DRY=1 prints them all. A second start runs only what is missing.
#
#   ./run_all.sh                                      smoke: embedded data, minutes on a CPU
#   DATA=data/ ./run_all.sh cifar10                   fetched if it is not there; DATASET=folder: a folder of images
#   NPROC=8 DATA=imagenet/ ./run_all.sh imagenet      8 processes by torchrun
#   NPROC=8 DATA=cityscapes/ ./run_all.sh cityscapes
#   NPROC=8 CIFAR10=... IMAGENET=... IMAGENET22K=... CITYSCAPES=... ./run_all.sh paper
#   DRY=1 ./run_all.sh paper
#   OUT=runs/mine ./run_all.sh smoke --device cpu     more options go to search.py, train.py and sample.py
set -euo pipefail
case ${1:-} in "" | -*) ;; *) PROFILE=$1 && shift ;; esac
PROFILE=${PROFILE:-smoke}
OUT=${OUT:-runs/$PROFILE}
py=python
[ "${NPROC:-1}" = 1 ] || py="torchrun --standalone --nproc_per_node=$NPROC"

# What is left empty has the scripts' own values: those of the paper, on CIFAR-10 also of DARTS.
search_on="" search="" train_on="" train="" seeds="0 1 2" published=darts_v2 random_cells=3
sweep_on="" sweep="" sweep_cifar10="" sweep_darts="" sweep_nasbench101=""
case $PROFILE in
smoke)
    search_on=shapes search="--limit 240 --epochs 3"
    train_on=shapes train="--limit 1000 --epochs 2" seeds="0 1" random_cells=2
    sweep_on=shapes sweep="-n 4 --limit 400 --epochs 1" ;;
cifar10) # DARTS' settings, but for fewer epochs of training
    search_on=cifar10 train_on=cifar10 train="--epochs 100"
    sweep_on=cifar10 sweep="-n 50 --epochs 30" ;;
cifar10_small) # the same stages for a CPU
    search_on=cifar10 search="--size 16 --limit 1000 --width 8 --layers 3 --epochs 3 --lr 0.05 --alpha_lr 1e-2"
    train_on=cifar10 train="--size 16 --limit 2000 --width 8 --layers 5 --epochs 4 --batch_size 32 --lr 0.05
        --auxiliary 0 --cutout 0 --drop_path 0" seeds="0 1" random_cells=2
    sweep_on=cifar10 sweep="-n 6 --size 16 --limit 500 --epochs 3 --batch_size 32 --lr 0.05"
    sweep_darts="--width 8 --layers 5" sweep_nasbench101="--width 32 --layers 3" ;;
imagenet) search_on=imagenet train_on=imagenet ;;
cityscapes) search_on=cityscapes train_on=cityscapes ;;
cityscapes_small) # for a CPU
    search_on=cityscapes search="--size 160 --width 8 --layers 6 --epochs 20 --batch_size 8 --lr 0.05 --alpha_lr 3e-3"
    train_on=cityscapes train="--size 160 --width 16 --layers 6 --epochs 30 --batch_size 8 --lr 0.05" ;;
paper)
    search_on="imagenet imagenet22k cityscapes" train_on="imagenet cityscapes" sweep_on="cifar10 imagenet" sweep="-n 500"
    sweep_cifar10="--seeds 1 2 3"
    published=$(echo darts_v2 unnas_{imagenet,imagenet22k}_{cls,rot,col,jig} unnas_cityscapes_{seg,rot,col,jig}) ;;
*)
    echo "run_all.sh: error: unknown profile $PROFILE: smoke, cifar10, cifar10_small, imagenet, cityscapes," \
        "cityscapes_small or paper" >&2
    exit 2 ;;
esac

use() { # sets data, the options that name a data set, and labels, the task on it that needs labels
    local root
    root=$(echo "$1" | tr '[:lower:]' '[:upper:]')
    data=(--dataset "$1" --data "${!root:-${DATA:-data/$1}}") labels=cls
    case $1 in
    shapes) data=(--dataset shapes) ;;
    cifar10) if [ "${DATASET:-}" = folder ]; then data[1]=folder; fi ;;
    cityscapes) labels=seg ;;
    esac
}

study() { # each `run NAME COMMAND` is a stage
    local dataset task cell seed space arch found="" sweeps=() a b
    # 1. search a cell, without labels and with them
    for dataset in $search_on; do
        use $dataset
        for task in rot col jig $labels; do
            run search_${dataset}_$task $py search.py --task $task "${data[@]}" $search "$@" \
                --out "$OUT/search_${dataset}_$task" --resume
            found+=" search_${dataset}_$task"
        done
    done
    # 2. train these cells, published ones and random ones under one recipe
    run random python sample.py --draw_only -n $random_cells --out "$OUT/random"
    for dataset in $train_on; do
        use $dataset
        task=$labels
        for cell in $found $published $(seq -f %05g 0 $((random_cells - 1))); do
            case $cell in
            search_*) arch=$OUT/$cell/genotype.json cell=${cell#search_} ;;
            0*) arch=$OUT/random/archs.json:$cell cell=random_$cell ;;
            *) arch=$cell ;;
            esac
            for seed in $seeds; do
                run train_${task}_${cell}_s$seed $py train.py --arch "$arch" --task $task "${data[@]}" $train "$@" \
                    --seed $seed --out "$OUT/train_${task}_${cell}_s$seed" --resume
            done
        done
    done
    # 3. the sample-based study
    for dataset in $sweep_on; do
        use $dataset
        for space in darts nasbench101; do
            a=sweep_$dataset b=sweep_$space
            run sweep_${dataset}_$space $py sample.py --space $space $sweep ${!a:-} ${!b} "${data[@]}" "$@" \
                --out "$OUT/sweep_${dataset}_$space"
            sweeps+=("$dataset=$OUT/sweep_${dataset}_$space")
        done
    done
    [ -z "$sweep_on" ] || run correlate python correlate.py "${sweeps[@]}" --out "$OUT/correlation"
    # 4. all of it in one page
    run report python report.py "$OUT"
}

k=0 n=0
run() { n=$((n + 1)); }
study "$@"

run() { # what a stage prints goes to the terminal and to a log, whose last line tells that it is done
    local name=$1 log=$OUT/$1.log command code
    shift
    command=$(printf ' %q' "$@") command=${command# } k=$((k + 1))
    if [ "${DRY:-}" = 1 ]; then
        printf '# [%s/%s] %s\n%s\n' $k $n $name "$command"
    elif [ -d "$OUT/$name" ] && [ "$(tail -n 1 "$log" 2>/dev/null)" = "done: $command" ]; then # correlate, report: always
        echo "[$k/$n] $name: done before, $log"
    else
        mkdir -p "$OUT"
        printf '[%s/%s] %s, log: %s\n%s\n' $k $n $name "$log" "$command"
        "$@" 2>&1 | tee -ai "$log" || {
            code=$?
            printf '\nrun_all.sh: stage %s/%s, %s, failed with exit code %s; %s ends with\n' $k $n $name $code "$log" >&2
            tail -n 15 "$log" | sed 's/^/    /' >&2
            printf 'To run this stage again:\n    %s\nThen start run_all.sh as before, which goes on here.\n' "$command" >&2
            exit $code
        }
        echo "done: $command" >>"$log"
    fi
}
study "$@"
