"""What every script needs, without torch: errors, argument types, JSON, tables, formats."""

import argparse
import base64
import errno
import html
import json
import os
import re
import reprlib
import secrets
import signal
import sys
import time
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

# The scripts import this file before torch, which takes seconds: Ctrl-C ends them in silence there.
if Path(sys.argv[0]).absolute().parent == Path(__file__).parent:
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

NUMBER = int, float  # as a shape of JSON
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # what JSON of ours and figures cannot have


class InputError(ValueError):
    """Bad input: the message names the value and what to do about it."""


class TrainingError(InputError):
    """What is wrong with one training of a sweep, while others may go well."""


def run(main, parse_args, argv=None):
    """Calls `main(parse_args(argv))` as a script does. User errors, and files that cannot be read
    or written, end it with one line and exit code 2; a bug keeps its traceback."""
    args = None
    try:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if hasattr(sys.stdout, "reconfigure"):  # a notebook's has not
            sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be valid text
        try:
            args = parse_args(argv)
            main(args)
        finally:
            sys.stdout.flush()
    except (InputError, OSError, RuntimeError, MemoryError) as error:
        message = str(error)
        no_locks = errno.ENOLCK, errno.EOPNOTSUPP  # of NFS without its lock service, say
        if isinstance(error, OSError) and not error.filename and error.errno in no_locks:
            message = f"the disk of --out or --data has no file locks ({error.strerror})"
        elif isinstance(error, OSError):
            if error.filename is None:
                if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO):
                    raise  # of a socket, say, and not of printing, which must not fail again
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                if error.errno == errno.EPIPE:  # as of `| head`
                    sys.exit(1)
            message = f"{os.fsdecode(error.filename or 'stdout')}: {error.strerror}"
        elif not isinstance(error, InputError):
            known = "allocate memory", "out of memory"
            if not isinstance(error, MemoryError) and not any(text in message for text in known):
                raise
            message = (message.splitlines() or ["out of memory"])[0]
            message += ": smaller --batch_size, --width or --size?"
        rank = f" (rank {os.environ['RANK']})" if "RANK" in os.environ else ""
        message = message.replace("\n", "\\n")  # of a file name
        print(f"{sys.argv[0]}: error{rank}: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        hint = "; the same command with --resume goes on" if hasattr(args, "resume") else ""
        print(f"{sys.argv[0]}: interrupted{hint}", file=sys.stderr)
        sys.exit(130)


# ---------------------------------------------------------------------------------------- Arguments

LARGEST = {int: 2**31, float: 1e38}  # what int32 and float32 hold


def at_least(minimum, kind=float, below=None):
    """An argparse type: a number of that kind with minimum <= number < below, or LARGEST."""

    def number(text):
        value = kind(text)
        if not minimum <= value < (below or LARGEST[kind]):
            raise ValueError
        return value

    number.__name__ = f"{kind.__name__} >= {minimum}" + (f" and < {below}" if below else "")
    return number


def path(text):
    """An argparse type: a path that result.json can name; "" is none."""
    if not text.strip() or NO_TEXT.search(text):
        raise ValueError
    return text


def even(text):
    """An argparse type: a positive even number of channels, as factorized reductions halve it."""
    if not 2 <= int(text) <= 65536 or int(text) % 2:
        raise ValueError
    return int(text)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows each default, unless it is None or a switch that is off."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def peek(argv, **options):
    """The values of a few options, {name: default}, on which the defaults of the others depend."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, default in options.items():
        parser.add_argument(f"--{name}", default=default)
    return vars(parser.parse_known_args(argv)[0])


def table_row(table, *keys) -> dict:
    """Settings from a table of defaults, whose first row names the columns: those of the first row
    that fits. Its leading cells hold the words that each key may be; `*` fits any."""
    columns, *rows = table
    n = len(keys)
    for row in rows:
        if all(key in cell.split() or "*" in cell.split() for key, cell in zip(keys, row)):
            return dict(zip(columns[n:], row[n:]))
    raise KeyError(keys)


# -------------------------------------------------------------------------------------------- Files


@contextmanager
def named(path):
    """Gives an OSError the name of what was written; that of a full disk has none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def replace_file(path, write, keep=None):
    """Calls write(file) on a temporary file in the same folder and renames it to `path`, so that
    whoever reads `path` finds the old content or the new. `keep`: a path for the old file."""
    partial = Path(f"{path}.{secrets.token_hex(4)}.tmp")  # several processes may write one file
    with named(path):
        try:
            with open(partial, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if keep and path.exists():
                os.replace(path, keep)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def remove_partial_files(folder):
    """What a killed process left of `replace_file`."""
    for partial in Path(folder).glob(f"*.{'[0-9a-f]' * 8}.tmp"):
        partial.unlink()


def write_text(path, text):
    replace_file(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def printable(text):
    """The name of a file or folder as text, which JSON and figures can have."""
    return text.encode(errors="backslashreplace").decode()


def plain(text):
    """Printable text for a figure, in which nothing between dollars is mathematics."""
    return printable(text).replace("$", r"\$")


def save_figure(figure, path, **how):
    ending = Path(path).suffix.removeprefix(".")
    replace_file(path, lambda file: figure.savefig(file, format=ending, dpi=150, **how))


def read_json(path, shape, text=None):
    """The content of a JSON file, or a line of it, `text`, if it has the shape: see check_shape."""
    try:
        value = json.loads(text or Path(path).read_bytes(), parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error})") from None
    check_shape(value, shape, path)
    return value


def check_shape(value, shape, where, *names):
    """InputError unless a value from JSON has that shape: a type or None, [shape] for a list of
    such, {name: shape} for an object with at least these fields (`...` is any other), or a tuple
    of shapes, one of which it has. What is missing, or NaN, becomes None; a bool is no int."""
    shapes = shape if isinstance(shape, tuple) else (shape,)
    by_type = {shape if isinstance(shape, type) else type(shape): shape for shape in shapes}
    if object in by_type:
        return
    wrong = type(value) not in by_type
    wrong |= type(value) in NUMBER and not abs(value) < {int: 2**63, float: 1e39}[type(value)]
    if wrong or (type(value) is str and NO_TEXT.search(value)):
        field = " ".join(map(json.dumps, names)) or "it"
        wanted = " or ".join(kind.__name__ for kind in by_type)
        raise InputError(f"{where}: {field} is {reprlib.repr(value)}, where {wanted} is due")
    shape = by_type[type(value)]
    if isinstance(shape, list):
        for k, item in enumerate(value):
            check_shape(item, shape[0], where, *names, k)
    elif isinstance(shape, dict):
        for name in dict.fromkeys([*shape, *value]):
            if name is not ...:
                inner = shape.get(name, shape.get(..., object))
                check_shape(value.setdefault(name), inner, where, *names, name)


# --------------------------------------------------------------------------------------------- Text


def markdown_table(head, rows) -> list:
    """The lines of a Markdown table; None is shown as -."""
    lines = []
    for cells in (head, ["---"] * len(head), *rows):
        lines.append("| " + " | ".join("-" if cell is None else str(cell) for cell in cells) + " |")
    return lines + [""]


STYLE = """
:root { color-scheme: light dark }
body { max-width: 62rem; margin: 1rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif }
.table { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: .85rem }
td, th { padding: .2rem .6rem; border-bottom: 1px solid #8888; text-align: left }
img { max-width: 100%; background: white }
@media (min-width: 50rem) { td:not(:first-child) { white-space: nowrap } }
@media (prefers-color-scheme: dark) { body { background: #181a1e; color: #dfe1e5 } }
@media print { body { max-width: none; font-size: 9pt } tr, img { break-inside: avoid } }
"""


def write_page(path, lines):
    """Lines of Markdown (headings, tables, lists, figures, paragraphs) as one HTML file with the
    figures in it."""

    def picture(match):
        file = Path(path).parent / html.unescape(match[2])
        data = base64.b64encode(file.read_bytes()).decode() if file.is_file() else ""
        return f'<img alt="{match[1]}" src="data:image/png;base64,{data}">'

    def element(line):
        line = re.sub(r"!\[(.*?)\]\((.*?\.png)\)", picture, html.escape(line))
        mark, _, text = line.partition(" ")
        if mark == "|":
            return "<tr><td>" + text.removesuffix(" |").replace(" | ", "<td>")
        tag = {"-": "li", "#": "h1", "##": "h2", "###": "h3", "####": "h4"}.get(mark)
        return f"<{tag}>{text}</{tag}>" if tag else f"<p>{line}</p>"

    body, filled = [], filter(None, lines)
    for mark, group in groupby(filled, lambda line: line[0] if line[0] in "|-" else ""):
        parts = [element(line) for line in group if not line.startswith("| ---")]
        if mark == "|":
            head = parts[0].replace("<td>", "<th>")
            parts = ['<div class="table"><table>', head, *parts[1:], "</table></div>"]
        body += ["<ul>", *parts, "</ul>"] if mark == "-" else parts
    head = '<!DOCTYPE html><html lang="en"><meta charset="utf-8">'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{html.escape(lines[0].lstrip('# '))}</title><style>{STYLE}</style>"
    write_text(path, "\n".join([head, *body, ""]))


def progress(items, what):
    """The items, and every ten seconds a line that says how many they were."""
    due = time.monotonic() + 10
    for count, item in enumerate(items):
        if what and time.monotonic() > due and os.environ.get("RANK", "0") == "0":
            due += 10
            print(f"{what}: {count:,}", flush=True)
        yield item


def format_metrics(metrics):
    """{"loss": 0.5, "top1": 31.25} -> "loss 0.5  top1 31.25"; lists are left out."""
    return "  ".join(f"{k} {v:.4g}" for k, v in metrics.items() if not isinstance(v, list))


def format_seconds(seconds):
    """0:05, 10:05, 1:10:05"""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
