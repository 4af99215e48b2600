#!/usr/bin/env bash
# The whole study: two searches by every objective, with all and with partial channels; found,
# published and random cells trained; the sample-based sweep with its rank correlations; the report.
# Started again, it goes on.
#   ./run_all.sh                                     smoke: embedded data, minutes on a CPU
#   DATASET=folder DATA=photos/ ./run_all.sh cifar10 a folder of images in place of CIFAR-10
#   NPROC=8 CIFAR10=... IMAGENET=... IMAGENET22K=... CITYSCAPES=... ./run_all.sh paper
#   DRY=1 OUT=runs/mine ./run_all.sh --device cpu    prints the commands; options go to all scripts
# shellcheck disable=SC2086,SC2154,SC2206  # options are lists of words
set -euo pipefail
if [[ ${1:--} != -* ]]; then PROFILE=$1 && shift; fi
profile=${PROFILE:-smoke} out=${OUT:-runs/${PROFILE:-smoke}} here=$(dirname "$0") launch=python
if [ "${NPROC:-1}" != 1 ]; then launch="torchrun --standalone --nproc_per_node=$NPROC"; fi

# What is empty has the scripts' defaults: those of the paper, on CIFAR-10 also of DARTS.
search_on=${profile%_small} train_on=${profile%_small} sweep_on="" published=darts_v2 random=3
search="" train="" seeds="0 1 2" sweep="" cifar10="" spaces=(darts nasbench101) found="" sweeps=()
case $profile in
imagenet | cityscapes) ;;
cifar10) train="--epochs 100" sweep_on=cifar10 sweep="-n 50 --epochs 30" ;;
smoke)
    search_on=shapes train_on=shapes sweep_on=shapes sweep="-n 4 --limit 400 --epochs 1"
    search="--size 16 --limit 480 --width 4 --batch_size 8 --epochs 5"
    train="--limit 500 --epochs 2" seeds=0 random=2 ;;
cifar10_small) # for a CPU
    search="--size 16 --limit 1000 --width 8 --layers 3 --batch_size 16 --epochs 17 --lr 0.05
        --alpha_lr 3e-3 --alpha_start 0"
    train="--size 16 --limit 2000 --width 8 --layers 5 --epochs 4 --batch_size 32 --lr 0.05
        --auxiliary 0 --cutout 0 --drop_path 0" seeds="0 1" random=2
    sweep_on=cifar10 sweep="-n 6 --size 16 --limit 500 --epochs 3 --batch_size 32 --lr 0.05"
    spaces=("darts --width 8 --layers 5" "nasbench101 --width 32 --layers 3") ;;
cityscapes_small) # for a CPU
    search="--size 160 --width 8 --layers 6 --epochs 20 --batch_size 8 --lr 0.05 --alpha_lr 3e-3"
    train="--size 160 --width 16 --layers 6 --epochs 30 --batch_size 8 --lr 0.05" ;;
paper)
    search_on="imagenet imagenet22k cityscapes" train_on="imagenet cityscapes"
    sweep_on="cifar10 imagenet" sweep="-n 500" cifar10="--seeds 1 2 3"
    published+=" $(echo unnas_{imagenet{,22k}_{cls,rot,col,jig},cityscapes_{seg,rot,col,jig}})" ;;
*) echo "run_all.sh: no profile $profile: smoke, cifar10, ... are in the script" >&2 && exit 2 ;;
esac

use() { # sets the options that name a data set, and the task on it that needs labels
    labels=cls more="" partial=4
    case $1 in
    shapes) data=(--dataset shapes) ;;
    cifar10) data=(--dataset ${DATASET:-$1} --data "${CIFAR10:-${DATA:-data/$1}}") more=$cifar10 ;;
    imagenet) data=(--dataset $1 --data "${IMAGENET:-${DATA:-data/$1}}") partial=2 ;;
    imagenet22k) data=(--dataset $1 --data "${IMAGENET22K:-${DATA:-data/$1}}") ;;
    cityscapes) data=(--dataset $1 --data "${CITYSCAPES:-${DATA:-data/$1}}") labels=seg ;;
    esac
}
ended() { # a sweep also ends well if some of its trainings failed
    [[ $1 = 1 && $name = sweep_* ]] && python "$here/sample.py" --status "$out/$name" |
        grep " 0 left" || return $1
}
stage() { # NAME COMMAND: skipped if this command ended well before, as $out/NAME/finished tells
    name=$1 log=$out/$1/stage.log command=$(printf ' %q' "${@:2}")
    printf '# %s\n%s\n' "$name" "${command# }"
    if [ "${DRY:-}" = 1 ]; then return; fi
    if [ "$command" = "$(cat "$out/$1/finished" 2>&1)" ]; then echo "finished before" && return; fi
    [ "$1" = report ] || rm -f "$out"/{correlation,report}/finished # they read what is new now
    mkdir -p "$out/$1" && "${@:2}" 2>&1 | tee -ai "$log" || ended $?
    echo "$command" >"$out/$1/finished"
}
trap 'exit 130' INT # also where the stage that got it, too, ends well
trap 'e=$?; [ $e = 0 ] || echo "$name failed, exit code $e; log: $log; command:$command" >&2' EXIT

# 1. search a cell, without labels and with them
for dataset in $search_on; do
    use $dataset
    for task in rot col jig $labels; do
        for run in k{1,${partial}}_s{0,1}; do
            name=search_${dataset}_${task}_$run found+=" $name" k=${run#k}
            stage $name $launch "$here/search.py" --task $task "${data[@]}" $search "$@" \
                --partial ${k%_*} --seed ${run: -1} --out "$out/$name" --resume
        done
    done
done

# 2. train found, published and random cells under one recipe
stage random python "$here/sample.py" --draw_only -n $random --out "$out/random"
for dataset in $train_on; do
    use $dataset
    for cell in $found $published $(seq -f random_%05g 0 $((random - 1))); do
        arch=$cell
        if [[ $cell = search_* ]]; then arch=$out/$cell/genotype.json; fi
        if [[ $cell = random_* ]]; then arch=$out/random/archs.json:${cell#random_}; fi
        for seed in $seeds; do
            name=train_${labels}_${cell#search_}_s$seed
            stage $name $launch "$here/train.py" --arch "$arch" --task $labels "${data[@]}" \
                $train "$@" --seed $seed --out "$out/$name" --resume
        done
    done
done

# 3. the sample-based study
for dataset in $sweep_on; do
    use $dataset
    for space in "${spaces[@]}"; do
        name=sweep_${dataset}_${space%% *} sweeps+=("${data[1]}=$out/$name")
        stage $name $launch "$here/sample.py" --space $space $sweep $more "${data[@]}" "$@" \
            --out "$out/$name"
    done
done
[ -z "$sweep_on" ] ||
    stage correlation python "$here/correlate.py" "${sweeps[@]}" --out "$out/correlation"

# 4. all of it on one page
stage report python "$here/report.py" "$out"
