"""A study that takes a minute: run_all.sh with one search, two trainings and the report."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMALL = """smoke)
    search_on=shapes search="--limit 40 --size 8 --width 4 --layers 3 --batch_size 10 --epochs 1"
    train_on=shapes train="--limit 40 --size 8 --width 4 --layers 3 --batch_size 10 --epochs {}"
    seeds=0 ;;
"""


def write_small_study(folder, epochs):
    """small.sh in the folder, beside links to the scripts; `epochs` of its trainings."""
    for path in ROOT.glob("*.py"):
        if not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    text = (ROOT / "run_all.sh").read_text()
    for old, new in (
        ("for task in rot col jig $labels", "for task in rot"),
        ("k{1,${partial}}_s{0,1}", "k1_s0"),
        ("stage random python", ": stage random python"),
        (" $(seq -f random_%05g 0 $((random - 1)))", ""),
        (re.search(r"smoke\)\n.*?;;\n", text, re.S)[0], SMALL.format(epochs)),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    script = folder / "small.sh"
    script.write_text(text)
    return script
