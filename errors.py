"""User errors (`InputError`) end a script with one line and exit code 2; bugs keep their traceback."""

import math
import os
import sys


class InputError(ValueError):
    """Bad input: the message names the value and what to do about it."""


def at_least(minimum, kind=float, below=math.inf):
    """An argparse type: a number of that kind with minimum <= number < below."""

    def number(text):
        value = kind(text)
        if not minimum <= value < below:
            raise ValueError
        return value

    number.__name__ = f"{kind.__name__} >= {minimum}" + (f" and < {below}" if below < math.inf else "")
    return number


def even(text):
    """An argparse type: a positive even number (of channels: factorized reductions halve it)."""
    if int(text) < 2 or int(text) % 2:
        raise ValueError
    return int(text)


def run(main, args):
    """Calls `main(args)` as a script does."""
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be valid text
    try:
        main(args)
    except InputError as error:
        rank = f" (rank {os.environ['RANK']})" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
        print(f"{sys.argv[0]}: error{rank}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        hint = "; the same command with --resume goes on" if hasattr(args, "resume") else ""
        print(f"{sys.argv[0]}: interrupted{hint}", file=sys.stderr)
        sys.exit(130)
