"""Injects faults into real commands on small data and counts how they end (docs/faults.md).

    python tests/faults.py                                  # everything, as in docs/faults.md
    python tests/faults.py --kinds kills disk --count 20    # 20 of each of two kinds
    python tests/faults.py --kinds kills --seed 0 --only 17 # one of them again

Each kind is a generator `kind(count, rng, folder)` of (name, verdict, detail), one for each
injection. Commands run in children forked from this process, which has imported torch once, and
some as commands of their own.
"""

# ruff: noqa: E402  torch reads the environment when it is imported
import argparse
import atexit
import builtins
import errno
import functools
import io
import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import cli
import matplotlib.backends.backend_agg  # noqa: F401  what children would import, each anew
import numpy as np
import torch._dynamo  # noqa: F401
import torch.utils.flop_counter  # noqa: F401
from PIL import Image
from small_study import write_small_study

import correlate
import data
import genotypes
import image_files
import report
import sample
import search
import train
import visualize

SCRIPTS = {
    "search.py": search,
    "train.py": train,
    "sample.py": sample,
    "visualize.py": visualize,
    "data.py": data,
    "correlate.py": correlate,
    "report.py": report,
    "genotypes.py": genotypes,
}
COUNTS = {"kills": 200, "disk": 100, "images": 200, "json": 500, "checkpoints": 200}
VERDICTS = {  # and their columns
    "survived": "survived as promised",
    "lost": "results lost",
    "traceback": "tracebacks",
    "hang": "hangs",
    "silent change": "silent changes",
}
PATIENCE = 120  # seconds; what takes longer hangs
ONLY = None  # the number of the one injection to do

# --------------------------------------------------------------------------------------------------
# Commands, undisturbed and disturbed

TINY = "--limit 40 --size 8 --width 4 --batch_size 10 --device cpu --save_every 1 --workers 1"
COMMANDS = {
    "search": f"search.py --task rot --layers 2 --epochs 2 --alpha_lr 0.01 {TINY}",
    "train": f"train.py --arch darts_v2 --task rot --layers 1 --epochs 3 --precise_bn 20 {TINY}",
    "sample": "sample.py -n 3 --tasks rot col --space nasbench101 --width 8 --layers 3 --epochs 1"
    f" --precise_bn 20 {TINY}",
    "images": f"search.py --task col --layers 1 --epochs 1 {TINY} --size 16 --batch_size 4"
    " --dataset imagenet22k --data {folder}/photos",
}


class Fault(NamedTuple):
    """What happens at the n-th `call` (open, write, fsync or replace) of a file for writing: a
    signal, an errno, from then on, or "vanish", which removes the folder that is written to."""

    call: str
    n: int
    what: object

    def __str__(self):
        what = self.what
        if isinstance(what, signal.Signals):
            return f"{what.name} in {self.call} {self.n}"
        return f"{what if what == 'vanish' else errno.errorcode[what]} at {self.call} {self.n}"


class Outcome(NamedTuple):
    code: int | None  # None: it took too long
    out: str
    err: str
    left: bool = False  # whether processes of its group live on

    def flaw(self):
        if self.code is None:
            return "hang"
        if "Traceback (most recent call last)" in self.out + self.err:
            return "traceback"

    def tail(self):
        return " / ".join((self.out + self.err).strip().splitlines()[-3:])[-500:]


class Disturbed(io.IOBase):
    """A file whose writing `hit` disturbs, half of the data being written."""

    def __init__(self, file, hit):
        self.file, self.hit = file, hit

    def write(self, content):
        written = 0

        def write_half():
            nonlocal written
            written = len(content) // 2
            self.file.write(content[:written])
            self.flush()

        self.hit("write", write_half)
        self.file.write(content[written:])  # after a signal that a process survives, the rest
        return len(content)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def flush(self):
        self.file.flush()

    def close(self):
        self.file.close()

    def fileno(self):
        return self.file.fileno()

    def readable(self):
        return False

    def writable(self):
        return True

    def seekable(self):
        return True

    def seek(self, *args):
        return self.file.seek(*args)

    def tell(self):
        return self.file.tell()


def disturb(folder, fault, counts):
    """Patches this process, so that the fault happens to the files below `folder`. `counts` counts
    the calls."""
    opened, fsync = builtins.open, os.fsync
    originals = {"replace": os.replace, "rename": os.rename}

    def hit(call, before=lambda: None, path=None):
        counts[call] += 1
        if fault is None or call != fault.call or counts[call] < fault.n:
            return
        if isinstance(fault.what, signal.Signals):
            if counts[call] == fault.n:
                before()
                os.kill(os.getpid(), fault.what)
        elif fault.what == "vanish":
            if counts[call] == fault.n:
                shutil.rmtree(folder, ignore_errors=True)
        else:
            before()
            names = [os.fsdecode(path)] if path else []
            raise OSError(fault.what, os.strerror(fault.what), *names)

    def open_(file, mode="r", *args, **kwargs):
        writes = not isinstance(file, int) and set(mode) & set("wax+")
        if not writes or not os.path.abspath(os.fsdecode(file)).startswith(str(folder)):
            return opened(file, mode, *args, **kwargs)
        hit("open", path=file)
        return Disturbed(opened(file, mode, *args, **kwargs), hit)

    def fsync_(fd):
        hit("fsync")
        return fsync(fd)

    def replace(old, new, name):
        hit("replace", path=old)
        return originals[name](old, new)

    builtins.open = io.open = open_
    os.fsync = fsync_
    os.replace = functools.partial(replace, name="replace")
    os.rename = functools.partial(replace, name="rename")


def fork(argv, place, fault=None, watched=None, before=lambda: None, stdout=None):
    """(pid, pipe that ends when the command starts, file for its output) of a child that is like
    the command `python argv` in the folder `place`. before(): called in the child."""
    said = tempfile.mkdtemp(dir=place, prefix=".said")
    ready, start = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(start)
        return pid, ready, said
    code = 70
    try:
        os.setsid()
        os.chdir(place)
        for fd, name in (1, "out"), (2, "err"):
            target = os.open(f"{said}/{name}", os.O_CREAT | os.O_WRONLY)
            os.dup2(target, fd)
        counted = os.open(f"{said}/counts", os.O_CREAT | os.O_WRONLY)
        if stdout:
            os.dup2(os.open(stdout, os.O_WRONLY), 1)
        sys.stdout = open(1, "w", closefd=False)
        sys.stderr = open(2, "w", closefd=False, buffering=1, errors="backslashreplace")
        sys.argv = [str(ROOT / argv[0]), *argv[1:]]
        module, counts = SCRIPTS[argv[0]], Counter()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before()
        disturb(watched or place, fault, counts)
        try:
            os.close(start)
            start = None
            cli.run(module.main, module.parse_args, argv[1:])
            code = 0
        except SystemExit as exit_:
            if isinstance(exit_.code, str):
                print(exit_.code, file=sys.stderr)
            code = 1 if isinstance(exit_.code, str) else exit_.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        atexit._run_exitfuncs()
        try:
            sys.stdout.flush()
        except OSError as error:  # as the interpreter says it
            print(f"Traceback (most recent call last) at exit: {error}", file=sys.stderr)
        os.write(counted, json.dumps(counts).encode())
    except BaseException:  # in here, not in the command
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def alive(group):
    """Whether a process of the group lives."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def ended(group, seconds=15):
    """Whether the processes of a group end by themselves; if not they are killed."""
    deadline = time.time() + seconds
    while alive(group):
        if time.time() > deadline:
            os.killpg(group, signal.SIGKILL)
            return False
        time.sleep(0.02)
    return True


def wait(pid, seconds=PATIENCE):
    """The exit code of a child, None if it takes too long."""
    deadline = time.time() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.time() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.005)


def run(argv, place, kill=None, **how):
    """The Outcome of a forked command. kill: (seconds after its start, signal, to its group)."""
    pid, ready, said = fork(argv, place, **how)
    os.read(ready, 1)
    os.close(ready)
    if kill:
        seconds, signum, group = kill
        time.sleep(seconds)
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            (os.killpg if group else os.kill)(pid, signum)
    code = wait(pid)
    left = not ended(pid)
    texts = [Path(said, name).read_text(errors="backslashreplace") for name in ("out", "err")]
    counts = Path(said, "counts")
    counts = json.loads(counts.read_text() or "{}")
    shutil.rmtree(said)
    return Outcome(code, *texts, left), counts


def command(argv, place, kill=None, **environment):
    """The Outcome of a command of its own, started as a shell would. kill: as in `run`."""
    process = subprocess.Popen(
        argv,
        cwd=place,
        env={**os.environ, **environment},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    code = "too long"
    if kill:
        seconds, signum, group = kill
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            (os.killpg if group else os.kill)(process.pid, signum)
    try:
        texts = process.communicate(timeout=PATIENCE)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        texts, code = (b"", b""), None  # its pipes may be open in processes of other sessions
    left = not ended(process.pid)
    return Outcome(code, *(text.decode(errors="backslashreplace") for text in texts), left)


def real(argv):
    return [sys.executable, str(ROOT / argv[0]), *argv[1:]]


def tiny(name, place, resume=False):
    """The words of a tiny command that writes to place/out."""
    argv = COMMANDS[name].format(folder=place.parent).split() + ["--out", str(place / "out")]
    return argv + ["--resume"] * (resume and name != "sample")


# --------------------------------------------------------------------------------------------------
# What a run has found

# When, where and by which commit; "how" holds all three as text
CLOCK = {"seconds", "search_seconds", "images_per_second", "date", "args", "how", "git_commit"}
CLOCK |= {"device", "world_size"}


def without_clock(value):
    """A JSON value without times and places."""
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if k not in CLOCK}
    return [without_clock(v) for v in value] if isinstance(value, list) else value


def results(out):
    """{file: its content without times} of all that a run has found."""
    found = {}
    for path in sorted(out.rglob("*.json*")):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        found[str(path.relative_to(out))] = [without_clock(json.loads(line)) for line in lines]
    return found


def difference(out, wanted):
    """How what a run has found differs from what was wanted, None if it does not."""
    try:
        found = results(out)
    except ValueError as error:
        return f"half a file: {error}"
    if found != wanted:
        names = [n for n in {*found, *wanted} if found.get(n) != wanted.get(n)]
        return f"other results in {', '.join(sorted(names))}"
    if partial := list(out.rglob("*.tmp")):
        return f"{len(partial)} partial files left, first {partial[0].name}"


class Undisturbed(NamedTuple):
    """Of a tiny command."""

    found: dict  # {file: content}
    seconds: float
    calls: dict  # how often it opens, writes ... a file


@functools.lru_cache
def undisturbed(name, folder):
    place = new(folder)
    start = time.time()
    outcome, calls = run(tiny(name, place), place)
    assert outcome.code == 0, outcome
    return Undisturbed(results(place / "out"), time.time() - start, calls)


numbers = itertools.count()


def new(folder):
    path = Path(folder) / f"{os.getpid()}_{next(numbers)}"
    path.mkdir(parents=True)
    return path


def turns(count, rng):
    """(number, its random generator) of each injection, or of --only one."""
    for k in range(count):
        own = random.Random(rng.random())
        if ONLY in (None, k):
            yield k, own


def resumed(name, place, wanted, before):
    """(verdict, detail) of a command after a disturbed one, `before`."""
    if flaw := before.flaw():
        return flaw, before.tail()
    if before.left:
        return "hang", "processes were left"
    again, _ = run(tiny(name, place, resume=True), place)
    if again.code != 0:
        return again.flaw() or "lost", f"resumed: {again.tail()}; before: {before.tail()}"
    if again.left:
        return "hang", "processes were left by the resumed command"
    if different := difference(place / "out", wanted):
        return "silent change", f"{different}; before: {before.tail()}"
    return "survived", ""


# --------------------------------------------------------------------------------------------------
# Kills


def kills(count, rng, folder):
    """SIGKILL, SIGTERM, SIGINT at any moment and inside of what writes a file."""
    photos(folder / "photos")
    for k, own in turns(count, rng):
        signum = own.choice([signal.SIGKILL] * 2 + [signal.SIGTERM, signal.SIGINT])
        if k % 100 == 99:
            yield kill_study(own, folder, signum)
        elif k % 30 == 29:
            yield kill_torchrun(own, folder, signum)
        else:
            name = own.choice(["search", "train", "train", "sample", "images"])
            yield kill_one(own, folder, name, signum, as_command=k % 20 == 9)


def kill_one(rng, folder, name, signum, as_command):
    whole, place = undisturbed(name, folder), new(folder)
    argv = tiny(name, place)
    if as_command:
        moment = rng.uniform(0, 4 + whole.seconds)
        outcome = command(real(argv), place, (moment, signum, signum == signal.SIGINT))
        how = f"{signum.name} after {moment:.2f} s"
    elif rng.random() < 0.5:
        group = signum == signal.SIGINT or signum == signal.SIGKILL and rng.random() < 0.5
        moment = rng.uniform(0, 1.1 * whole.seconds)
        outcome, _ = run(argv, place, (moment, signum, group))
        how = f"{signum.name} after {moment:.2f} s of {whole.seconds:.2f}"
    else:
        call = rng.choice([call for call in whole.calls for _ in range(2)])
        fault = Fault(call, rng.randint(1, whole.calls[call]), signum)
        outcome, _ = run(argv, place, fault=fault)
        how = str(fault)
    codes = {signal.SIGKILL: {-9, 0}, signal.SIGTERM: {75, -15, 0}, signal.SIGINT: {130, -2, 0}}
    title = f"{name}: {how}"
    if outcome.code not in codes[signum] and not outcome.flaw():
        return title, "lost", f"exit code {outcome.code}: {outcome.tail()}"
    if name == "sample" and "--resume" in outcome.err:
        return title, "silent change", f"it advises what it does not have: {outcome.tail()}"
    verdict, detail = resumed(name, place, whole.found, outcome)
    shutil.rmtree(place)
    return title, verdict, detail


def torchrun(name, place, resume=False):
    argv = tiny(name, place, resume)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [*start, str(ROOT / argv[0]), *argv[1:]]


@functools.lru_cache
def undisturbed_torchrun(folder):
    place, start = new(folder), time.time()
    outcome = command(torchrun("search", place), place)
    assert outcome.code == 0, outcome
    return results(place / "out"), time.time() - start


def kill_torchrun(rng, folder, signum):
    """Of torchrun alone, of all its processes, or of one rank alone."""
    wanted, seconds = undisturbed_torchrun(folder)
    place, moment = new(folder), rng.uniform(0.4, 1) * seconds
    whom = rng.choice(["torchrun", "all"]) if signum != signal.SIGINT else "all"
    kill = moment, signum, whom == "all"
    outcome = command(torchrun("search", place), place, kill)
    title = f"torchrun search: {signum.name} after {moment:.1f} s of {seconds:.1f} to {whom}"
    # torchrun itself tells with a traceback that it got a signal
    if "Traceback" in outcome.err and "/torch/distributed/" in outcome.err:
        outcome = outcome._replace(err="")
    if outcome.flaw() or outcome.left:
        return title, outcome.flaw() or "hang", outcome.tail()
    again = command(torchrun("search", place, resume=True), place)
    if again.code != 0:
        return title, again.flaw() or "lost", again.tail()
    if different := difference(place / "out", wanted):
        return title, "silent change", different
    return title, "survived", ""


def study(place):
    """The command of a small study, and its PATH."""
    write_small_study(place, epochs=2)
    return ["bash", "small.sh"], f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@functools.lru_cache
def undisturbed_study(folder):
    place, start = new(folder), time.time()
    argv, path = study(place)
    outcome = command(argv, place, PATH=path)
    assert outcome.code == 0, outcome
    return results(place / "runs"), time.time() - start


def kill_study(rng, folder, signum):
    wanted, seconds = undisturbed_study(folder)
    place, moment = new(folder), rng.uniform(0, seconds)
    argv, path = study(place)
    outcome = command(argv, place, (moment, signum, True), PATH=path)
    title = f"run_all.sh: {signum.name} after {moment:.1f} s of {seconds:.1f}"
    if outcome.flaw() or outcome.left:
        return title, outcome.flaw() or "hang", outcome.tail()
    again = command(argv, place, PATH=path)
    if again.code != 0:
        return title, again.flaw() or "lost", again.tail()
    if different := difference(place / "runs", wanted):
        return title, "silent change", different
    return title, "survived", ""


# --------------------------------------------------------------------------------------------------
# Disks


def one_line(outcome, *names):
    """What is wrong with how a command refused: one line that names one of `names`."""
    if flaw := outcome.flaw():
        return flaw, outcome.tail()
    lines = [line for line in outcome.err.splitlines() if ": error" in line]
    if outcome.code != 2 or len(lines) != 1:
        return "lost", f"exit code {outcome.code}: {outcome.tail()}"
    if not any(str(name) in lines[0] for name in names):
        return "lost", f"it does not name {names[0]}: {lines[0]}"


def half_files(out):
    """What of a folder is half a file. The last line of a log may be, and is left out later."""
    for path in sorted(out.rglob("*")) if out.is_dir() else []:
        try:
            if path.suffix == ".tmp":
                return f"{path.name} was left"
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".png":
                Image.open(path).load()
        except (OSError, ValueError) as error:
            return f"half of {path.name}: {error}"


def disk(count, rng, folder):
    """Full, broken and vanishing disks, odd names, closed outputs."""
    photos(folder / "photos")
    calls = [fail_calls] * 8 + [limit_size] * 2 + [small_disk, vanishing]
    others = [not_a_folder, full_stdout, closed_pipe, bad_picture]
    for k, own in turns(count, rng):
        kind = (calls + others * 2)[k * 7 % 20]
        yield kind(own, folder)


def fail_calls(rng, folder):
    name = rng.choice(["search", "train", "train", "sample", "images"])
    whole, place = undisturbed(name, folder), new(folder)
    call = rng.choice(list(whole.calls))
    what = rng.choice([errno.ENOSPC, errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
    fault = Fault(call, rng.randint(1, whole.calls[call]), what)
    outcome, _ = run(tiny(name, place), place, fault=fault, watched=place / "out")
    title = f"{name}: {fault}"
    return title, *after_refusal(name, place, whole.found, outcome, place / "out")


def after_refusal(name, place, wanted, outcome, *names):
    if outcome.code != 0 and (wrong := one_line(outcome, *names)):
        return wrong
    if half := half_files(place / "out"):
        return "silent change", half
    found = resumed(name, place, wanted, outcome)
    shutil.rmtree(place)
    return found


def limit_size(rng, folder):
    name = rng.choice(["search", "train", "sample"])
    whole, place = undisturbed(name, folder), new(folder)
    size = int(10 ** rng.uniform(3.6, 5.5))

    def before():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    outcome, _ = run(tiny(name, place), place, before=before, stdout=os.devnull)
    title = f"{name}: no file above {size} bytes"
    return title, *after_refusal(name, place, whole.found, outcome, place / "out")


def small_disk(rng, folder):
    """A file system of some pages, where one may be mounted."""
    name, place = rng.choice(["search", "train", "sample"]), new(folder)
    whole, size = undisturbed(name, folder), rng.randint(1, 100) * 4096
    (place / "out").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place / "out")]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        return limit_size(rng, folder)
    try:
        outcome, _ = run(tiny(name, place), place)
        subprocess.run([*mount[:4], "remount,size=100m", *mount[5:]], check=True)
        verdict = "survived", ""
        if outcome.code != 0:
            verdict = one_line(outcome, place / "out") or verdict
        if verdict[0] == "survived" and (half := half_files(place / "out")):
            verdict = "silent change", half
        if verdict[0] == "survived":
            verdict = resumed(name, place, whole.found, outcome)
    finally:
        subprocess.run(["umount", str(place / "out")], check=True)
    return f"{name}: a disk of {size} bytes", *verdict


def vanishing(rng, folder):
    name = rng.choice(["search", "train", "sample"])
    whole, place = undisturbed(name, folder), new(folder)
    call = rng.choice(list(whole.calls))
    fault = Fault(call, rng.randint(1, whole.calls[call]), "vanish")
    outcome, _ = run(tiny(name, place), place, fault=fault, watched=place / "out")
    title = f"{name}: {fault}"
    if outcome.code != 0 and (wrong := one_line(outcome, place / "out")):
        return title, *wrong
    return title, *resumed(name, place, whole.found, outcome)


def not_a_folder(rng, folder):
    """--out is a file, below a file or too long."""
    name, place = rng.choice(["search", "train", "sample"]), new(folder)
    (place / "file").write_text("precious")
    bad = rng.choice([place / "file", place / "file" / "out", place / ("x" * 300)])
    argv = [str(bad) if word == str(place / "out") else word for word in tiny(name, place)]
    outcome, _ = run(argv, place)
    verdict = one_line(outcome, bad) or ("survived", "")
    if (place / "file").read_text() != "precious":
        verdict = "silent change", "the file was written to"
    return f"{name} --out {bad.name[:10]}", *verdict


@functools.lru_cache
def finished(folder):
    """The place of a search, trainings and a sweep that ended well."""
    place = new(folder)
    for name in ("search", "train", "sample"):
        argv = tiny(name, place)
        argv[-1] = str(place / name)
        outcome, _ = run(argv, place)
        assert outcome.code == 0, outcome
    return place


def printing(rng, folder):
    """A command that prints something, and writes nothing but below runs/."""
    done, place = finished(folder), new(folder)
    return place, rng.choice(
        [
            ["data.py", "--limit", "40"],
            ["data.py", "--dataset", "imagenet22k", "--data", str(folder / "photos")],
            ["genotypes.py"],
            ["genotypes.py", "darts_v2"],
            ["sample.py", "--status", str(done / "sample")],
            ["correlate.py", str(done / "sample"), "--out", str(place / "c")],
            ["report.py", str(done)],
            ["visualize.py", "darts_v2", "--out", str(place / "a.png")],
            tiny("search", place),
            tiny("train", place),
            tiny("sample", place),
        ]
    )


def full_stdout(rng, folder):
    place, argv = printing(rng, folder)
    as_command = rng.random() < 0.3
    if as_command:
        outcome = command(["sh", "-c", 'exec "$0" "$@" > /dev/full', *real(argv)], place)
    else:
        outcome, _ = run(argv, place, stdout="/dev/full")
    verdict = one_line(outcome, "stdout", "standard output") or ("survived", "")
    if "Exception ignored" in outcome.err:
        verdict = "traceback", outcome.tail()
    return f"{' '.join(argv[:3])} > /dev/full", *verdict


def closed_pipe(rng, folder):
    place, argv = printing(rng, folder)
    outcome = command(["bash", "-c", '"$0" "$@" | head -1 >/dev/null', *real(argv)], place)
    verdict = "survived", ""
    if outcome.flaw() or outcome.err.replace("findfont", "").count("rror"):
        verdict = "traceback", outcome.tail()
    return f"{' '.join(argv[:3])} | head -1", *verdict


def bad_picture(rng, folder):
    """visualize.py to odd places and full disks; what was there before stays."""
    place, done = new(folder), finished(folder)
    what = rng.choice(["darts_v2", str(done / "search")])
    out = rng.choice(["a.abc", "a", "missing/a.png", "x" * 300 + ".png", "a.png", "a.pdf", "a.svg"])
    path, fault = place / out, None
    if len(out) == 5 and out != "a.abc":
        path.write_text("precious")
        fault = Fault("open", 1, errno.ENOSPC) if rng.random() < 0.3 else None
        if not fault:
            fault = Fault(rng.choice(["fsync", "replace"]), 1, errno.EIO)
    outcome, _ = run(["visualize.py", what, "--out", str(path)], place, fault=fault)
    verdict = one_line(outcome, out) or ("survived", "")
    if fault and path.read_text(errors="replace") != "precious":
        verdict = "silent change", f"{out} is half a picture"
    if partial := [f.name for f in place.rglob("*.tmp")]:
        verdict = "silent change", f"{partial[0]} was left"
    return f"visualize.py --out {out[:12]}, {fault}", *verdict


# --------------------------------------------------------------------------------------------------
# Images


def photo(rng, side=48):
    """Something smooth with a colour of its own."""
    y, x = np.mgrid[0 : 1 : side * 1j, 0 : 1 : (side + 16) * 1j]
    values = np.stack([x, y, np.full_like(x, rng.random())], -1)
    return Image.fromarray((values * 255).astype(np.uint8))


def photos(root, classes=2, n=14):
    """An ImageNet-22K tree."""
    if not root.exists():
        rng = random.Random(0)
        for c in range(classes):
            (root / f"n{c}").mkdir(parents=True)
            for k in range(n):
                photo(rng).save(root / f"n{c}" / f"{k:02}.jpg")


def scenes(root):
    for part, n in (("train", 40), ("val", 4)):
        rng = random.Random(0)
        for what in ("leftImg8bit", "gtFine"):
            (root / what / part / "ulm").mkdir(parents=True)
        for k in range(n):
            name = f"ulm/ulm_{k:06}_000019"
            photo(rng).save(root / "leftImg8bit" / part / f"{name}_leftImg8bit.png")
            mask = Image.fromarray(np.random.default_rng(k).integers(0, 34, (48, 64), np.uint8))
            mask.save(root / "gtFine" / part / f"{name}_gtFine_labelIds.png")


def good_data(dataset, root):
    """({part: folder for more images}, ending of an image) of a small data set of that kind."""
    if dataset == "cityscapes":
        scenes(root)
        parts = {part: root / "leftImg8bit" / part / "ulm" for part in ("train", "val")}
        return parts, "_leftImg8bit.png"
    if dataset == "imagenet22k":
        photos(root, n=22)
        return {"train": root / "n0"}, ".jpg"
    photos(root / "train", n=22)
    photos(root / "val", n=3)
    return {part: root / part / "n0" for part in ("train", "val")}, ".jpg"


def encoded(image, **how):
    file = io.BytesIO()
    image.save(file, **how)
    return file.getvalue()


def bomb(rng):
    """A PNG that says it is huge."""
    content = bytearray(encoded(photo(rng), format="PNG"))
    import zlib

    content[16:24] = (60000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def flipped(rng):
    content = bytearray(encoded(photo(rng), format=rng.choice(["JPEG", "PNG", "BMP", "GIF"])))
    for _ in range(rng.choice([1, 3, 30])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def truncated(rng):
    content = encoded(photo(rng), format=rng.choice(["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"]))
    return content[: rng.randrange(1, len(content) - 2)]


def sixteen_bits(image):
    grey = np.asarray(image.convert("L"), np.uint16) * 257
    return encoded(Image.fromarray(grey), format="PNG")


# What a file may hold: {name: (what makes its bytes, "bad", "any" or "good")}: it cannot be read,
# who knows, or it has to look like the photo
CONTENTS = {
    "truncated": (truncated, "any"),
    "flipped bits": (flipped, "any"),
    "empty": (lambda rng: b"", "bad"),
    "text": (lambda rng: b"<html>404 Not Found</html>", "bad"),
    "zeros": (lambda rng: bytes(rng.randrange(1, 5000)), "bad"),
    "noise": (lambda rng: rng.randbytes(rng.randrange(1, 5000)), "bad"),
    "noise after the magic": (lambda rng: b"\xff\xd8\xff\xe0" + rng.randbytes(500), "bad"),
    "decompression bomb": (bomb, "bad"),
    "CMYK": (lambda rng: encoded(photo(rng).convert("CMYK"), format="JPEG"), "good"),
    "16 bits": (lambda rng: sixteen_bits(photo(rng)), "good"),
    "palette": (lambda rng: encoded(photo(rng).convert("P"), format="PNG"), "good"),
    "another ending": (lambda rng: encoded(photo(rng), format="BMP"), "good"),
    "animated": (
        lambda rng: encoded(
            photo(rng), format="GIF", save_all=True, append_images=[photo(rng)] * 2
        ),
        "good",
    ),
}
NO_FILES = ["pipe", "folder", "broken link", "link to itself", "socket"]
NAMES = ["plain", "with space", "ünïcode", "\udcff", "new\nline", "-dash", "'quote", "%d{x}"]


def bad_file(rng, path):
    """Makes one; returns ({what it is}, "bad", "any" or "good")."""
    if rng.random() < 0.25:
        what = rng.choice(NO_FILES)
        if what == "pipe":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
        elif what == "socket":
            os.mknod(path, 0o140644)
        else:
            path.symlink_to(path.name if what == "link to itself" else "nowhere.jpg")
        return what, "any" if what == "folder" else "bad"  # it is empty, and may be walked
    what = rng.choice(list(CONTENTS))
    make, quality = CONTENTS[what]
    path.write_bytes(make(rng))
    return what, quality


def bad_mask(rng, path):
    what = rng.choice(["wrong size", "RGB", "16 bits", "float", "damaged", "missing", "no file"])
    mask = Image.fromarray(np.zeros((48, 64), np.uint8))
    if what == "wrong size":
        mask.resize((rng.randint(1, 63), 48)).save(path)
    elif what == "damaged":
        content = path.read_bytes()
        path.write_bytes(content[: rng.randrange(len(content) - 20)])
    elif what == "missing":
        path.unlink()
    elif what == "no file":
        path.unlink()
        os.mkfifo(path)
    else:
        mode = {"RGB": "RGB", "16 bits": "I;16", "float": "F"}[what]
        mask.convert(mode).save(path, format="TIFF" if mode == "F" else "PNG")
    return what


def images(count, rng, folder):
    """Bad files in each data set on disk: some among the training images, left out by name, or one
    in the evaluation part or a mask, which ends the run by name."""
    for dataset in ("folder", "imagenet", "imagenet22k", "cityscapes"):
        left, k = count, 0
        while left:
            own, n = random.Random(rng.random()), min(left, 9)
            if k % 4 == 3 and dataset != "imagenet22k":
                n = 1
            if ONLY in (None, k):
                for name, verdict, detail in image_round(own, new(folder), dataset, n, k % 4 == 3):
                    yield f"{dataset} {name}", verdict, detail
            left, k = left - n, k + 1


def image_round(rng, place, dataset, n, in_val):
    root = place / "data"
    parts, ending = good_data(dataset, root)
    mask = None
    if in_val and dataset == "cityscapes":
        mask = rng.choice(sorted((root / "gtFine").rglob("*labelIds.png")))
        made = {mask: (f"mask: {bad_mask(rng, mask)}", "bad")}
    else:
        where = parts["val" if in_val and "val" in parts else "train"]
        made = {}
        for i in range(n):
            path = where / f"{i}{rng.choice(NAMES)}{ending}"
            made[path] = bad_file(rng, path)
            if dataset == "cityscapes":
                target = Path(str(path.parent).replace("leftImg8bit", "gtFine"))
                target /= path.name.replace(ending, "_gtFine_labelIds.png")
                shutil.copy(next((root / "gtFine/val/ulm").glob("ulm_*")), target)
    doctor, _ = run(["data.py", "--dataset", dataset, "--data", str(root)], place)
    argv = f"search.py --task {'seg' if mask else 'rot'} --size 32 --width 4 --layers 1 --epochs 1"
    argv += f" --alpha_start 0 --batch_size 4 --device cpu --workers {rng.choice([0, 1])}"
    argv += f" --dataset {dataset} --data {root} --out {place / 'out'}"
    trained, _ = run(argv.split(), place)
    for path, (what, _) in made.items():
        verdict, detail = judge_image(path, made, doctor, trained, in_val)
        yield f"{'evaluation' if in_val else 'training'}: {what}", verdict, detail
    shutil.rmtree(place)


def names_of(path):
    """How outputs, which are read with backslashreplace, show a file; of a mask its scene."""
    shown = path.name.removesuffix("_gtFine_labelIds.png")
    escaped = os.fsencode(shown).decode(errors="backslashreplace")
    names = {shown, escaped, escaped.replace("\\x", "\\udc")}
    return names | {name.replace("\n", "\\n") for name in names}


def judge_image(path, made, doctor, trained, in_val):
    """(verdict, detail) on one of the files {path: (what, quality)} of a data set."""
    what, quality = made[path]
    for outcome in (doctor, trained):
        if flaw := outcome.flaw():
            return flaw, outcome.tail()
    if trained.code == 2:
        lines = [line for line in trained.err.splitlines() if ": error" in line]
        bad = [p for p, (_, is_) in made.items() if is_ != "good"]
        if len(lines) == 1 and any(n in trained.err for p in bad for n in names_of(p)):
            return "survived", ""
        return "lost", f"the run ends and names no bad file: {trained.tail()}"
    if trained.code != 0:
        return "lost", trained.tail()
    named_by_doctor = any(name in doctor.out for name in names_of(path))
    if named_by_doctor and quality != "good":
        return "survived", ""
    if named_by_doctor:
        return "lost", f"{path.name!r} ({what}) is a good image: {doctor.tail()}"
    if "not a regular file" in doctor.out and quality == "bad":
        return "survived", ""
    if quality == "bad":
        return "silent change", f"nobody names {path.name!r}: {doctor.tail()}"
    if quality == "good":  # it has to look like the photo
        whites = {"I": 65535}
        whole = lambda W, H: ((0, 0, W, H), (16, 12))  # noqa: E731
        pixels, *_ = image_files.read_rgb(str(path), whole, whites)
        wanted = np.mgrid[0:1:12j, 0:1:16j][::-1].transpose(1, 2, 0) * 255
        off = np.abs(pixels[..., :2].astype(float) - wanted).mean()
        if off > (90 if what == "16 bits" else 30):
            return "silent change", f"{path.name!r} ({what}) is off by {off:.0f}"
    return "survived", ""


# --------------------------------------------------------------------------------------------------
# The command


def kind_of(name):
    if name in ("kills", "disk", "images"):
        return {"kills": kills, "disk": disk, "images": images}[name]
    import faults_files  # mutated JSON files and damaged checkpoints

    return {"json": faults_files.json_files, "checkpoints": faults_files.checkpoints}[name]


def inject(name, count, seed, folder, only=None):
    """All of one kind: [(name, verdict, detail)] and the seconds."""
    global ONLY
    ONLY, start = only, time.time()
    folder = Path(folder) / name
    folder.mkdir()
    data.load_shapes = functools.cache(data.load_shapes)  # draws them once for all children
    data.load("shapes")
    visualize.draw_cell(genotypes.load_arch("darts_v2"), folder / "warm.png")  # finds the fonts
    found = []
    for k, (title, verdict, detail) in enumerate(
        kind_of(name)(count, random.Random(f"{seed} {name}"), folder)
    ):
        found.append((title, verdict, detail))
        if verdict != "survived":
            print(f"{name} {only or k}: {verdict}: {title}: {detail}", flush=True)
    return found, time.time() - start


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Inject faults and count how they end.")
    add = parser.add_argument
    add("--kinds", nargs="+", choices=list(COUNTS), default=list(COUNTS))
    add("--count", type=int, help=f"of each kind (images: for each data set; default: {COUNTS})")
    add("--seed", type=int, default=0)
    add("--only", type=int, metavar="K", help="the K-th alone (images: the K-th round)")
    add("--jobs", type=int, default=os.cpu_count(), help="kinds at a time")
    add("--out", type=Path, metavar="FILE", help="write the table there, too")
    return parser.parse_args(argv)


def main(args):
    rows, failures = [], []
    counts = {name: args.count or COUNTS[name] for name in args.kinds}
    folder = tempfile.mkdtemp(prefix="faults")  # no object that children would remove at their end
    try:
        with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("fork")) as pool:
            waiting = {
                name: pool.submit(inject, name, counts[name], args.seed, folder, args.only)
                for name in args.kinds
            }
            done = {name: future.result() for name, future in waiting.items()}
    finally:
        shutil.rmtree(folder)
    for name, (found, seconds) in done.items():
        tally = Counter(verdict for _, verdict, _ in found)
        rows.append([name, len(found), *(tally[v] for v in VERDICTS), round(seconds)])
        repeat = f"python tests/faults.py --kinds {name} --seed {args.seed}"
        for k, (title, verdict, detail) in enumerate(found):
            if verdict != "survived":
                how = f"{repeat} --count {counts[name]}"
                failures.append(f"- `{how}`, number {k}: {title}: {verdict}: {detail}")
    head = ["kind", "injections", *VERDICTS.values(), "seconds"]
    text = "\n".join([*cli.markdown_table(head, rows), *failures])
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    sys.exit(bool(failures))


if __name__ == "__main__":
    cli.run(main, parse_args)
