"""What every script needs, without torch: errors, argument types, JSON, tables, formats."""

import argparse
import errno
import json
import math
import os
import secrets
import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path


class InputError(ValueError):
    """Bad input: the message names the value and what to do about it."""


class TrainingError(InputError):
    """What is wrong with one training of a sweep, while others may go well."""


def run(main, parse_args, argv=None):
    """Calls `main(parse_args(argv))` as a script does. User errors, and files that cannot be read
    or written, end it with one line and exit code 2; a bug keeps its traceback."""
    args = None
    try:
        if hasattr(sys.stdout, "reconfigure"):  # a notebook's has not
            sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be valid text
        try:
            args = parse_args(argv)
            main(args)
        finally:
            sys.stdout.flush()
    except (InputError, OSError) as error:
        message = str(error)
        if not isinstance(error, InputError):
            if error.filename is None:
                if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO):
                    raise  # of a socket, say, and not of printing, which must not fail again
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                if error.errno == errno.EPIPE:  # as of `| head`
                    sys.exit(1)
            message = f"{os.fsdecode(error.filename or 'stdout')}: {error.strerror}"
        rank = f" (rank {os.environ['RANK']})" if "RANK" in os.environ else ""
        print(f"{sys.argv[0]}: error{rank}: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        hint = "; the same command with --resume goes on" if hasattr(args, "resume") else ""
        print(f"{sys.argv[0]}: interrupted{hint}", file=sys.stderr)
        sys.exit(130)


# --------------------------------------------------------------------------------------------------
# Arguments


def at_least(minimum, kind=float, below=math.inf):
    """An argparse type: a number of that kind with minimum <= number < below."""

    def number(text):
        value = kind(text)
        if not minimum <= value < below:
            raise ValueError
        return value

    number.__name__ = f"{kind.__name__} >= {minimum}"
    if below < math.inf:
        number.__name__ += f" and < {below}"
    return number


def path(text):
    """An argparse type: a path, which "" is not."""
    if not text.strip():
        raise ValueError
    return text


def even(text):
    """An argparse type: a positive even number of channels, as factorized reductions halve it."""
    if int(text) < 2 or int(text) % 2:
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


# --------------------------------------------------------------------------------------------------
# Files


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


def write_text(path, text):
    replace_file(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def save_figure(figure, path, **how):
    ending = Path(path).suffix.removeprefix(".")
    replace_file(path, lambda file: figure.savefig(file, format=ending, dpi=150, **how))


def read_json(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error})") from None


# --------------------------------------------------------------------------------------------------
# Text


def markdown_table(head, rows) -> list:
    """The lines of a Markdown table; None is shown as -."""
    lines = []
    for cells in (head, ["---"] * len(head), *rows):
        lines.append("| " + " | ".join("-" if cell is None else str(cell) for cell in cells) + " |")
    return lines + [""]


def format_metrics(metrics):
    """{"loss": 0.5, "top1": 31.25} -> "loss 0.5  top1 31.25"; lists are left out."""
    parts = [f"{k} {v:.4g}" for k, v in metrics.items() if not isinstance(v, list)]
    return "  ".join(parts)


def format_seconds(seconds):
    """0:05, 10:05, 1:10:05"""
    return str(timedelta(seconds=round(seconds))).removeprefix("0:").removeprefix("0")
