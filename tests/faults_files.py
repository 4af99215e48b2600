"""Damaged files: what a run leaves behind, one JSON file or one checkpoint of it spoilt, and read
again by the real scripts. Each generator yields (name, verdict, detail) of an injection:

    survived        exit 0 with the output of the undisturbed file, or with that of another valid
                    file; or exit 2 with one line that names the file
    lost            exit 2 without saying which file is to blame, or with several lines
    traceback, hang
    silent change   exit 0 with another output, although the file is none that a script writes

    python tests/faults_files.py --json 500 --checkpoints 200
"""

import argparse
import collections
import copy
import functools
import json
import os
import pickle
import random
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import cli  # noqa: E402

import correlate  # noqa: E402
import data  # noqa: E402
import genotypes  # noqa: E402
import report  # noqa: E402
import runs  # noqa: E402
import sample  # noqa: E402
import search  # noqa: E402
import train  # noqa: E402
import visualize  # noqa: E402

SMALL = "--limit 40 --size 8 --width 4 --layers 2 --batch_size 10 --device cpu".split()
SWEEP = ["--space", "nasbench101", "-n", "4", "--tasks", "cls", "rot", *SMALL]
SWEEP += ["--layers", "3", "--width", "8", "--epochs", "2", "--out", "sweep"]
SEARCH = ["--task", "rot", *SMALL, "--epochs", "2", "--out", "study/search_x"]
TRAIN = ["--arch", "study/search_x/genotype.json", "--task", "seg", *SMALL, "--epochs", "2"]
TRAIN += ["--out", "study/train_x"]


# --------------------------------------------------------------------------------------------------
# A script in a forked child: no import, no start


def forked(folder, function, timeout=60):
    """(exit code, stdout, stderr) of a function that runs in a folder; a code of None: it hung."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        if not (pid := os.fork()):
            code = 1
            try:
                os.chdir(folder)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
                function()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else bool(end.code)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        deadline = time.time() + timeout
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if time.time() > deadline:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                break
            time.sleep(0.002)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return os.waitstatus_to_exitcode(ended[1]) if ended[0] else None, *texts


def script(module, *argv):
    return lambda: cli.run(module.main, module.parse_args, list(argv))


def describe_figure(figure, *_, **__):
    """In place of the pixels of a figure, which cost far more: its lines and texts."""
    for ax in figure.axes:
        print(*[line.get_xydata().tolist() for line in ax.lines], sep="\n")
        print(*[text.get_text() for text in ax.texts], ax.get_title(), ax.get_xlabel())
        print(*[collection.get_offsets() for collection in ax.collections])


def without_pixels(function):
    def wrapped():
        Figure.savefig = describe_figure
        function()

    return wrapped


def train_until_start(*argv):
    """train.py up to its first step."""

    def start(run, *args, **more):
        print(run.identity)
        raise SystemExit(0)

    def function():
        runs.Run.start = start
        script(train, *argv)()

    return function


def read_log():
    runs.start_log(Path("study/search_x/log.jsonl"), {"a": "header"}, 2, 0)


def show(*names):
    """Shows what a script wrote."""
    for name in names:
        print(json.loads(Path(name).read_bytes()))


def then_show(function, *names):
    def wrapped():
        function()
        show(*names)

    return wrapped


DRAW = without_pixels(script(visualize, "study/search_x"))
CELL = script(genotypes, "study/search_x/genotype.json")
FRESH = [*TRAIN[:-1], "new"]
PAGE = without_pixels(script(report, "study"))
PREDICT = script(visualize, "study/train_x", "--images", "1")
CORRELATE = without_pixels(
    then_show(
        script(correlate, "sweep", "--bootstrap", "100"), "runs/correlation/correlations.json"
    )
)
SAMPLE = then_show(script(sample, *SWEEP), "sweep/sweep.json", "sweep/archs.json")
STATUS = script(sample, "--status", "sweep")
FINISHED = script(train, *TRAIN, "--resume")
READERS = {  # of each file
    "study/search_x/genotype.json": [DRAW, CELL, train_until_start(*FRESH), PAGE],
    "study/search_x/log.jsonl": [read_log],
    "study/train_x/result.json": [PAGE, PREDICT, FINISHED],
    "study/correlation/correlations.json": [PAGE],
    "sweep/archs.json": [SAMPLE, STATUS, train_until_start("--arch", "sweep/archs.json:00001")],
    "sweep/sweep.json": [SAMPLE, STATUS],
    "sweep/result.json": [CORRELATE],
}


def warm():
    """Does once, ahead of the forks, what each child would begin with."""
    import torch._dynamo  # torch itself does so when it runs a convolution on no device
    import torch.utils.flop_counter  # noqa: F401

    data.load_shapes = functools.lru_cache(data.load_shapes)
    data.load("shapes", None, 8, 40)


def make_outputs(folder):
    """One of each file, as the scripts write it."""
    warm()
    for function in (
        script(search, *SEARCH),
        script(train, *TRAIN),
        script(sample, *SWEEP),
        script(correlate, "sweep", "--bootstrap", "100", "--out", "study/correlation"),
    ):
        code, _, err = forked(folder, function, timeout=300)
        assert code == 0, err


# --------------------------------------------------------------------------------------------------
# Mutations of JSON: (name, text, whether it is another file that a script could have written)

OTHERS = [None, True, False, 0, -1, 3, 1000, 2**63, 10**400, 0.5, 1e308, "", "x", "false", "a\0b"]
OTHERS += ["\ud800", "a\nb", [], [1], [[]], {}, {"a": 1}, float("nan"), float("inf")]
FREE = {"identity", "args", "settings"}  # their fields may have any simple value, or be missing


def nodes(value, path=()):
    """The paths of all values inside."""
    yield path
    inner = enumerate(value) if isinstance(value, list) else ()
    for key, item in value.items() if isinstance(value, dict) else inner:
        yield from nodes(item, (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


def is_free(path):
    return any(name in FREE for name in path[:-1])


def finite(value):
    return not isinstance(value, float) or abs(value) < float("inf")


def mutate_value(value, rng):
    """A random node gets another value, is deleted, or changes places with another."""
    value = copy.deepcopy(value)
    paths = [path for path in nodes(value) if path]
    # files consist of numbers for the most part: draw the names first
    by_name = collections.defaultdict(list)
    for path in paths:
        by_name[tuple(key for key in path if isinstance(key, str))].append(path)
    path = rng.choice(by_name[rng.choice(sorted(by_name))]) if paths else ()
    if not path:
        return "root", rng.choice(OTHERS), False
    *parents, key = path
    parent = at(value, parents)
    old, how, where = parent[key], rng.choice(("other",) * 5 + ("delete", "swap")), list(path)
    if how == "other":
        new = parent[key] = copy.deepcopy(rng.choice(OTHERS))
        simple = new is None or isinstance(new, (bool, int, float, str))
        same = type(new) is type(old) and finite(new)
        same |= {type(new), type(old)} == {int, float} and finite(new)
        return f"{where} = {str(new)[:20]!r}", value, same or (is_free(path) and simple)
    if how == "delete":
        del parent[key]
        return f"{where} deleted", value, isinstance(parent, list) or is_free(path)
    other = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    parent[key], parent[other] = parent[other], parent[key]
    same = type(parent[key]) is type(parent[other]) or is_free(path)
    same |= {type(parent[key]), type(parent[other])} == {int, float}
    return f"{where} <-> {other!r}", value, same


def mutate_text(text, rng):
    """Damage below the level of JSON, and what json.dumps cannot write."""
    data, k = text.encode(), rng.randrange(len(text))
    deep = rng.choice((b"[", b'{"a":')) * rng.choice((10_000, 100_000))
    noise = bytes(rng.randrange(256) for _ in range(20))
    name, data = rng.choice(
        [
            ("empty", b""),
            ("truncated", data[:k]),
            ("a NUL", data[:k] + b"\0" + data[k:]),
            ("a block of NULs", data[:k] + b"\0" * len(data[k:])),
            ("noise", data[:k] + noise + data[k:]),
            ("noise alone", noise),
            ("a BOM", b"\xef\xbb\xbf" + data),
            ("UTF-16", text.encode("utf-16")),
            ("deep", deep),
            ("deep inside", data.replace(b": ", b": " + deep, 1)),
            ("deep and closed", b"[" * 20_000 + b"]" * 20_000),
            ("twice", data + data),
            ("a line twice", data.replace(b"\n", b"\n\n", 1)),
            ("a huge number", data.replace(b": ", b": " + b"9" * 5000 + b", ", 1)),
        ]
    )
    return name, data, False


def mutate(path, rng):
    text = path.read_text()
    if rng.random() < 0.3:
        return mutate_text(text, rng)
    if path.suffix == ".json":
        name, value, legitimate = mutate_value(json.loads(text), rng)
        return name, json.dumps(value, indent=1).encode(), legitimate
    lines = text.splitlines()
    k = rng.randrange(len(lines))
    name, value, legitimate = mutate_value(json.loads(lines[k]), rng)
    lines[k] = json.dumps(value)
    return f"line {k}: {name}", "".join(line + "\n" for line in lines).encode(), legitimate


def judge(result, file, wanted, legitimate):
    """(verdict, detail)"""
    code, out, err = result
    if code is None:
        return "hang", err[-200:]
    if "Traceback" in err or code not in (0, 2):
        return "traceback", err[-400:]
    if code == 2:
        named = len(err.splitlines()) == 1 and (Path(file).name in err)
        return ("survived", f"refused: {err.strip()}") if named else ("lost", err[-400:])
    if out == wanted:
        return "survived", "as before"
    return ("survived", "another valid file") if legitimate else ("silent change", out[-300:])


def json_files(count, rng, folder):
    """Injections into the JSON files of a search, a training, a sweep and its correlations."""
    folder = Path(folder)
    whole, case = folder / "whole", folder / "case"
    whole.mkdir()
    make_outputs(whole)
    wanted = {}
    for k in range(count):
        pattern = list(READERS)[k % len(READERS)]
        file, reader = pattern, rng.randrange(len(READERS[pattern]))
        if pattern == "sweep/result.json":
            found = sorted(whole.glob("sweep/*/*/result.json"))
            file = rng.choice(found).relative_to(whole).as_posix()
        function = READERS[pattern][reader]
        shutil.copytree(whole, case)
        if (pattern, reader) not in wanted:
            code, wanted[pattern, reader], err = forked(case, function)
            assert code == 0, (pattern, reader, err)
            shutil.rmtree(case)
            shutil.copytree(whole, case)
        mutation, content, legitimate = mutate(case / file, rng)
        (case / file).write_bytes(content)
        empty_is_none = not content and function is FINISHED  # it goes on from the checkpoint
        result = forked(case, function)
        verdict, detail = judge(result, file, wanted[pattern, reader], legitimate or empty_is_none)
        shutil.rmtree(case)
        yield f"{k}: {file}, reader {reader}: {mutation}", verdict, detail


# --------------------------------------------------------------------------------------------------
# Checkpoints


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile",)


def damage(path, rng):
    """Spoils a checkpoint; returns how."""
    data = bytearray(path.read_bytes())
    k = rng.randrange(len(data))
    how = rng.choice("bit bits truncated zeros hostile empty member pickle structure".split())
    how = "structure" if rng.random() < 0.3 else how
    if how == "bit":
        data[k] ^= 1 << rng.randrange(8)
    elif how == "bits":
        for k in rng.choices(range(len(data)), k=20):
            data[k] ^= 1 << rng.randrange(8)
    elif how == "truncated":
        del data[k:]
    elif how == "zeros":
        data[k : k + 4096] = bytes(len(data[k : k + 4096]))
    elif how == "empty":
        data.clear()
    elif how == "pickle":
        data = pickle.dumps({"epoch": 1})
    if how == "hostile":
        torch.save({"epoch": Hostile()}, path)
    elif how == "member":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        del members[rng.choice(sorted(members))]
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    elif how == "structure":
        how = change_structure(path, rng)
    else:
        path.write_bytes(data)
    return how


def change_structure(path, rng):
    """A field is missing or of another kind: other versions of a script, or foreign files."""
    state = torch.load(path, weights_only=True)
    where = rng.choice(["", "network", "identity", "rng", "meters", "optimizer"])
    part = state[where] if where else state
    part = part[0] if where == "rng" else part
    key = rng.choice(sorted(part))
    value = part[key]
    how = rng.choice(["delete", "None", "text", "shape", "dtype"])
    if how == "delete":
        del part[key]
    elif torch.is_tensor(value) and how in ("shape", "dtype"):
        part[key] = torch.cat([value[None], value[None]]) if how == "shape" else value.half()
    else:
        part[key] = None if how == "None" else "text"
    torch.save(state, path)
    return f"{where} {key} {how}"


def stop_after_second_epoch():
    save = runs.Run.save

    def save_and_stop(run):
        save(run)
        if run.epochs_done == 2:
            raise SystemExit(0)

    runs.Run.save = save_and_stop
    script(train, *KILLED, "--out", "run")()


KILLED = ["--arch", "darts_v2", "--task", "rot", *SMALL, "--epochs", "3"]


def checkpoints(count, rng, folder):
    """Injections into the last checkpoint of a training that was killed, or into both of them."""
    warm()
    folder = Path(folder)
    whole, case = folder / "whole", folder / "case"
    whole.mkdir()
    for function in (script(train, *KILLED, "--out", "undisturbed"), stop_after_second_epoch):
        code, _, err = forked(whole, function, timeout=300)
        assert code == 0, err
    wanted = json.loads((whole / "undisturbed" / "result.json").read_text())["epochs"]
    for k in range(count):
        shutil.copytree(whole, case)
        spoilt = runs.CHECKPOINTS[: 1 + (k % 4 == 3)]
        how = [damage(case / "run" / name, rng) for name in spoilt]
        code, out, err = forked(case, script(train, *KILLED, "--out", "run", "--resume"))
        verdict, detail = judge((code, out, err), "checkpoint", out, False)
        verdict = "survived" if code == 2 and "checkpoint" in err and verdict != "lost" else verdict
        if code == 0 and verdict == "survived":
            result = json.loads((case / "run" / "result.json").read_text())
            told = "resumed after epoch 2" in out or "is damaged" in out
            detail = "from the one before" if "is damaged" in out else "resumed"
            if result["epochs"] != wanted or not told or len(wanted) != 3:
                verdict, detail = "silent change", f"{result['epochs']} {out[-300:]}"
        if (case / "hostile").exists():
            verdict = "silent change"
        shutil.rmtree(case)
        yield f"{k}: {' and '.join(how)}", verdict, detail


def main(args):
    for generate, count in ((json_files, args.json), (checkpoints, args.checkpoints)):
        counts, start = collections.Counter(), time.time()
        with tempfile.TemporaryDirectory() as folder:
            for name, verdict, detail in generate(count, random.Random(args.seed), folder):
                counts[verdict] += 1
                if verdict != "survived" or args.verbose:
                    print(f"{verdict}: {name}\n    {detail}", flush=True)
        print(f"{generate.__name__}: {dict(counts)} in {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=int, default=0)
    parser.add_argument("--checkpoints", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    main(parser.parse_args())
