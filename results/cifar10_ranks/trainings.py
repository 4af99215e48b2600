"""The trainings of a study in one small file, and back to the files that correlate.py reads.

export PYTHONPATH=. here=results/cifar10_ranks
python $here/trainings.py pack $here/trainings.json runs/ranks      # writes the file
python $here/trainings.py unpack $here/trainings.json runs/ranks    # writes result.json
"""

import json
import sys
from functools import lru_cache
from pathlib import Path

import cli

import genotypes

HERE = Path(__file__).parent  # with the lists of architectures
OWN = ["seed", "params", "macs", "seconds", "date", "git_commit"]
WHERE = ["device", "versions", "world_size"]  # where one differs from the first of its sweep
CURVES = ["loss", "top1", "miou"]  # on the evaluation images, of each epoch
DERIVED = ["arch", "genotype", "epochs", "best", "final", "args"]


def shared(result) -> dict:
    """What all trainings of one task in one sweep have in common."""
    same = {name: result[name] for name in result if name not in (*OWN, *DERIVED)}
    identity = result["identity"].items()
    return same | {"identity": {k: v for k, v in identity if k not in ("seed", "genotype")}}


def pack(file, runs):
    settings, rows = {}, []
    for path in sorted(runs.rglob("result.json")):
        result = genotypes.read_result(path)
        sweep = path.relative_to(runs).parents[1].as_posix()
        common = shared(result)
        first = settings.setdefault(sweep, common)
        row = {"sweep": sweep, "arch": result["arch"], **{name: result[name] for name in OWN}}
        row |= {name: common[name] for name in WHERE if common[name] != first[name]}
        if common | {name: first[name] for name in WHERE} != first:
            raise cli.InputError(f"{path}: other settings than those before it")
        for name in CURVES:
            if name in result["epochs"][0]:
                row[name] = [round(epoch[name], 6) for epoch in result["epochs"]]
        rows.append(row)
    lines = ",\n".join(json.dumps(row) for row in rows)
    text = f'{{"settings": {json.dumps(settings, indent=1)},\n"trainings": [\n{lines}\n]}}\n'
    cli.write_text(file, text)


def unpack(file, runs):
    packed, load_archs = json.loads(file.read_text()), lru_cache(genotypes.load_archs)
    for row in packed["trainings"]:
        own = {name: row[name] for name in (*OWN, *WHERE) if name in row}
        result = packed["settings"][row["sweep"]] | own
        curves = {name: row[name] for name in CURVES if name in row}
        archs, scores = HERE / f"{result['space']}.json", row[result["metric"]]
        genotype = load_archs(archs)[row["arch"]]
        text = genotypes.to_text(genotype).replace("\n", " ")
        result["identity"] = result["identity"] | {"seed": row["seed"], "genotype": text}
        result |= {"arch": row["arch"], "genotype": genotype._asdict()}
        result["args"] = {"arch": f"{archs}:{row['arch']}", "data": None}
        result["epochs"] = [dict(zip(curves, values)) for values in zip(*curves.values())]
        result |= {"best": max(scores), "final": scores[-1]}
        folder = runs / row["sweep"] / f"{row['arch']}_s{row['seed']}"
        folder.mkdir(parents=True, exist_ok=True)
        cli.write_json(folder / "result.json", result)


if __name__ == "__main__":
    {"pack": pack, "unpack": unpack}[sys.argv[1]](*map(Path, sys.argv[2:]))
