"""Collect finished trainings into a table: mean +- standard deviation over seeds.

Runs that differ in nothing but the seed share a row.

    python report.py runs/shapes
    python report.py runs/cifar10_small --json results/cifar10_small.json > results/cifar10_small.md
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import errors
from errors import InputError
from genotypes import read_json
from utils import WHERE_AND_HOW


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="A Markdown table of the result.json files below some folders.")
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--json", metavar="FILE", help="also write the table's numbers there")
    return parser.parse_args(argv)


def read_results(folders):
    """The results; a cell that was searched below the same folders is named after its search, whose time it gets."""
    paths = [path for folder in folders for path in sorted(Path(folder).rglob("*.json"))]
    results = [read_json(path) for path in paths if path.name == "result.json"]
    searches = {path.parent.name: read_json(path) for path in paths if path.name == "genotype.json"}
    if not results:
        raise InputError(f"no result.json below {', '.join(folders)}")
    for result in results:
        search = searches.get(Path(result["args"]["arch"]).parent.name, {})
        result["search_seconds"] = None
        if search.get("genotype") == result["genotype"]:
            result["arch"] = f"found by {search['meta']['task']} (seed {search['meta']['seed']})"
            result["search_seconds"] = search["meta"]["seconds"]
    return results


def make_rows(results):
    """A row for each architecture and recipe, over its seeds; the best of each task first."""
    groups = {}
    for result in results:
        recipe = {k: v for k, v in result["args"].items() if k not in WHERE_AND_HOW | {"seed"}}
        key = (result["arch"], result["task"], result["dataset"], json.dumps([recipe, result["genotype"]]))
        groups.setdefault(key, []).append(result)
    rows = []
    for (arch, task, dataset, _), runs in groups.items():
        best = [run["best"] for run in runs]
        first = runs[0]
        rows.append({
            "arch": arch, "task": task, "dataset": dataset, "metric": first["metric"], "best": statistics.mean(best),
            "std": statistics.stdev(best) if len(best) > 1 else None, "seeds": len(best), "epochs": len(first["epochs"]),
            "params": first["params"], "macs": first["macs"], "seconds": statistics.mean(run["seconds"] for run in runs),
            "search_seconds": first["search_seconds"], "device": first["device"], "torch": first["versions"]["torch"],
            "higher_is_better": first["higher_is_better"], "git_commit": first["git_commit"],
        })  # fmt: skip
    return sorted(rows, key=lambda row: (row["task"], -row["best"] if row["higher_is_better"] else row["best"]))


def main(args):
    rows = make_rows(read_results(args.folders))
    print("| architecture | task, metric | best epoch | seeds | epochs | params, M | MACs, M | search, s | training, s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        best = f"{row['best']:.2f}" + (f" +- {row['std']:.2f}" if row["std"] is not None else "")
        search = "-" if row["search_seconds"] is None else f"{row['search_seconds']:.0f}"
        print(f"| {row['arch']} | {row['task']}, {row['metric']} | {best} | {row['seeds']} | {row['epochs']} "
              f"| {row['params'] / 1e6:.3f} | {row['macs'] / 1e6:.1f} | {search} | {row['seconds']:.0f} |")  # fmt: skip
    print(f"\nHardware: {', '.join(sorted({row['device'] for row in rows}))}; "
          f"torch {', '.join(sorted({row['torch'] for row in rows}))}; {time.strftime('%Y-%m-%d')}")  # fmt: skip
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    errors.run(main, parse_args())
