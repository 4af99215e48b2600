#!/usr/bin/env bash
# Everything on a GPU: the tests, each task, mixed precision, a run that is stopped and resumed, the
# speed table. About half an hour; what it writes is below OUT (runs/gpu).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-runs/gpu}
python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "torch sees no GPU")'

python -m pytest -q
torchrun --standalone --nproc_per_node=1 search.py --task col --out "$out/col"
for task in cls rot col jig seg; do
    for how in "" "--amp bf16" "--amp fp16" --deterministic --compile; do
        small="--task $task --limit 400 --epochs 1 $how" name="${how//[ -]/_}_$task"
        [[ $how = --compile ]] || python search.py $small --out "$out/search$name"
        python train.py --arch darts_v2 $small --out "$out/train$name"
    done
done

# stopped in its third epoch, it ends with the numbers of the whole run
same="train.py --arch darts_v2 --limit 400 --epochs 4 --deterministic --print_every 1"
python $same --out "$out/whole"
python $same --out "$out/stopped" &
until grep -qs '"epoch": 3, "step": 2' "$out/stopped/log.jsonl"; do kill -0 $! && sleep 0.1; done
kill -TERM $! && wait $! || [ $? = 75 ]
python $same --out "$out/stopped" --resume
python - "$out" <<'END'
import json, sys
whole, stopped = (json.load(open(f"{sys.argv[1]}/{name}/result.json")) for name in ("whole", "stopped"))
assert whole["epochs"] == stopped["epochs"], "a resumed run differs from the whole one"
END

python tests/benchmark.py --only supernet training tasks growth --json "$out/speed.json"
