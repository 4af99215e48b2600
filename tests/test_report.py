"""The page of a study, of made-up searches, trainings and correlations."""

import base64
import html.parser
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cli
import numpy as np
import pytest
from scipy import stats

import genotypes
import likeness
import report

ROOT = Path(__file__).parent.parent
RUN = {
    "versions": {"torch": "2.9"},
    "device": "one CPU",
    "world_size": 1,
    "git_commit": "abc",
    "date": "2026-01-01",
}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_search(root, task, cell, last=0.99, epochs=2):
    epoch = {"entropy": [1.0, last], "skips": [0, 1], "convs": [5, 3]}
    meta = {
        "task": task,
        "dataset": "imagenet",
        "seed": 0,
        "epoch": 2,
        "epochs": epochs,
        "seconds": 100,
        "history": [{"epoch": k, **epoch} for k in (1, 2)],
        "identity": {
            "task": task,
            "dataset": "imagenet",
            "seed": 0,
            "alpha_lr": 0.003,
            "images": [0.1, 0.025],
            "amp": None,
        },
    }
    entry = genotypes.to_entry(genotypes.named_cell(cell))
    write(root / f"search_{task}" / "genotype.json", {**entry, "meta": {**meta, **RUN}})


def write_result(root, arch, cell, seed, best, **settings):
    identity = {
        "seed": seed,
        "width": 40,
        "epochs": 1,
        "max_macs": 6e8,
        "lr": 0.5,
        "split": "abc",
        **settings,
    }
    name = genotypes.short_name(str(arch))
    result = {
        "arch": name,
        "space": "darts",
        "genotype": genotypes.named_cell(cell)._asdict(),
        "task": "cls",
        "dataset": "imagenet",
        "seed": seed,
        "metric": "top1",
        "higher_is_better": True,
        "best": best,
        "final": best,
        "params": 5e6,
        "macs": 6e8,
        "seconds": 10,
        "epochs": [{"epoch": 1, "top1": best}],
        "identity": identity | {"genotype": name},
        "args": {"arch": str(arch), "out": f"{seed}", "device": name},
        **RUN,
    }
    write(root / f"train_{name}_{seed}" / "result.json", json.loads(json.dumps(result)))


@pytest.fixture
def made_up(tmp_path):
    for task, best in (("rot", 70), ("cls", 72)):
        cell = f"unnas_imagenet_{task}"
        write_search(tmp_path, task, cell)
        for seed in (0, 1):
            arch = tmp_path / f"search_{task}" / "genotype.json"
            write_result(tmp_path, arch, cell, seed, best + seed, width=40 + seed)
    write_result(tmp_path, "darts_v2", "darts_v2", 0, 60)
    write_result(tmp_path, "archs.json:00001", "pdarts", 0, 50)
    write_result(tmp_path, "archs.json:00002", "darts_v1", 0, 52)
    write(tmp_path / "sweep" / "sweep.json", {})
    write(tmp_path / "sweep" / "cls" / "00001_s1" / "failed.json", {})
    write_result(
        tmp_path / "sweep", "pdarts", "pdarts", 0, 99
    )  # for correlate.py, not for the page
    curve = [{"m": m, "mean": 48 + m, "std": 1.25, "seconds": 30 * m} for m in (1, 2, 4)]
    random = {"objective": "rot on imagenet", "target": "A cls", "curve": curve}
    write(
        tmp_path / "correlation" / "correlations.json",
        {"random_search": [random, {**random, "objective": "col on imagenet"}]},
    )
    page = "# Rank correlations\n\n## DARTS\n\n| 0.50 [-0.10, 0.80] |\n\n![scatter](scatter.png)\n"
    (tmp_path / "correlation" / "report.md").write_text(page)
    return tmp_path


def test_report(made_up, capsys):
    report.main(report.parse_args([str(made_up)]))
    text = (made_up / "report.md").read_text()
    for line in (
        "| without labels | 1 | 70.50 | - | 70.50 |",
        "| with labels | 1 | 72.50 | - | 72.50 |",
        "| published | 1 | 60.00 | - | 60.00 |",
        "| random | 2 | 51.00 ± 1.41 | [38.29, 63.71] | 52.00 |",  # t(0.975, 1) = 12.71
        "| without labels | rot on imagenet, seed 0 | 70.50 ± 0.71 | 2 | 5.000 | 600.0 | 40 | 1:40 "
        "| 0:10 | 75.8 ± 0.18 |",
        "| published | darts_v2 | 60.00 | 1 | 5.000 | 600.0 | 40 | - | 0:10 | 74.9 ± 0.08 |",
        "| rot on imagenet, seed 0 | 2/2 | - | - | - | 0 / 1 | 5 / 3 | 1:40 | A cls 50.00 ± 1.25"
        ", 2 in 1:00 (any one: 49.00) |",
        "| cls on imagenet, seed 0 | 2/2 | - | - | - | 0 / 1 | 5 / 3 | 1:40 | - |",
        "## Rank correlations\n\n### DARTS\n\n| 0.50 [-0.10, 0.80] |\n",
        "Cells of one group vary by 1.41, so that differences between groups below 22.01 cannot be "
        "told apart. Not all cells have the same seeds,",  # 12.71 * 1.41 * sqrt(1.5)
        "\n- 2026-01-01: torch 2.9, 1 x one CPU, commit abc\n",
        "\n1 trainings failed.\n",
        "Settings: epochs 1, max_macs 600000000.0, lr 0.5, split abc\n",
        "1 x one CPU, commit abc. Settings of rot on imagenet: task rot, dataset imagenet,",
    ):
        assert line in text
    assert "99.00" not in text and text.count("any one") == 1 and text.count("## Trained for") == 1
    figures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert figures == [
        "accuracy_1.png",
        "alphas.png",
        "cell_1.png",
        "cell_2.png",
        "correlation/scatter.png",
    ]
    assert all((made_up / name).stat().st_size > 10_000 for name in figures[:4])
    assert not any("![" in line for line in capsys.readouterr().out.splitlines())
    rows = json.loads((made_up / "report.json").read_text())
    assert [row["mean"] for row in rows] == [72.5, 70.5, 60, 52, 50]
    assert rows[1]["scores"] == [70, 71] and rows[1]["std"] == pytest.approx(0.5**0.5)


class Page(html.parser.HTMLParser):
    """The elements of a page, and its text without white space."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += "".join(data.split())


def test_the_page_for_a_browser(made_up):
    for path in made_up.rglob("result.json"):
        path.write_text(path.read_text().replace("one CPU", "<script>1 & 2</script>"))
    report.main(report.parse_args([str(made_up)]))
    page = Page(made_up / "report.html")
    counts = Counter(tag for tag, _ in page.tags)
    lines = (made_up / "report.md").read_text().splitlines()
    assert counts["table"] == 5  # one is of the page of correlate.py
    assert counts["tr"] == sum(line.startswith("|") and "---" not in line for line in lines)
    assert counts["h1"] == 1 and counts["h2"] == 3 and counts["h3"] == 1 and not counts["script"]
    figures = [attrs for tag, attrs in page.tags if tag == "img"]
    for figure, name in zip(figures, re.findall(r"!\[.*?\]\((.*?)\)", "\n".join(lines))):
        kind, data = figure["src"].split(",")
        stored = made_up / name
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == (stored.read_bytes() if stored.exists() else b"")
    assert len(figures) == 5 and figures[1]["alt"] == "Alpha histories"
    elsewhere = [attrs for _, attrs in page.tags if "href" in attrs or "src" in attrs]
    assert elsewhere == figures and "url(" not in page.text and "import" not in page.text
    assert "1x<script>1&2</script>,commitabc" in page.text
    for line in lines:
        if line and line[0] not in "!|#-":
            assert "".join(line.split()) in page.text
    assert "prefers-color-scheme:dark" in page.text and "@mediaprint" in page.text


def test_rows_have_the_fields_of_the_stored_ones(made_up):
    stored = json.loads((ROOT / "results" / "cifar10_small" / "report.json").read_text())
    report.main(report.parse_args([str(made_up)]))
    assert json.loads((made_up / "report.json").read_text())[0].keys() == stored[0].keys()


def test_report_of_a_part_of_a_study(tmp_path):
    write_search(tmp_path / "a", "rot", "darts_v2", last=0.5, epochs=9)
    report.main(report.parse_args([str(tmp_path / "a"), "--out", str(tmp_path / "new")]))
    text = (tmp_path / "new" / "report.md").read_text()
    assert "## Searches" in text and "## Trained" not in text and "## Rank" not in text
    assert "| 2/9 |" in text and "in common" not in text
    write_result(tmp_path / "b", "darts_v2", "darts_v2", 0, 60)
    report.main(report.parse_args([str(tmp_path / "b")]))
    text = (tmp_path / "b" / "report.md").read_text()
    assert "nothing can be decided" in text and "## Searches" not in text


def test_how_decided_and_how_alike(tmp_path):
    """Two searches without labels of three seeds, one of them with partial channels."""
    rng = np.random.default_rng(0)
    alphas = rng.standard_normal((2, 14, 8))
    for seed, (task, cell, partial) in enumerate(
        [("rot", "darts_v2", 1)] * 2
        + [("rot", "darts_v1", 1), ("rot", "darts_v1", 4), ("cls", "darts_v1", None)]
    ):
        write_search(tmp_path / str(seed), task, cell)
        path = tmp_path / str(seed) / f"search_{task}" / "genotype.json"
        search = json.loads(path.read_text())
        search["meta"]["seed"] = seed
        search["meta"]["identity"] |= {"partial": partial, "alpha_start": 1}
        for epoch in search["meta"]["history"]:
            epoch["alphas"] = (alphas if task == "rot" else -alphas).tolist()
        path.write_text(json.dumps(search))
    report.main(report.parse_args([str(tmp_path)]))
    text = (tmp_path / "report.md").read_text()
    normal = likeness.alike(*(genotypes.named_cell(f"darts_v{k}").normal for k in (2, 1)))
    reduce = likeness.alike(*(genotypes.named_cell(f"darts_v{k}").reduce for k in (2, 1)))
    within = []
    for ops, *_ in (normal, reduce):  # of the pairs one has 1 in common and two have `ops`
        mean, margin = (1 + 2 * ops) / 3, stats.t.ppf(0.975, 2) * np.sqrt(2 * np.var([ops, ops, 1]))
        within.append(f"{mean:.2f} [{max(0, mean - margin):.2f}, {min(1, mean + margin):.2f}]")
    low, high = likeness.chance()[1:, 0]
    for line in (
        "| rot on imagenet, partial 4, seed 3 | 2/2 | 1 / 1 of 1 epochs |",
        "| ops in common | rot on imagenet | rot on imagenet, partial 4 | cls on imagenet |",
        f"| rot on imagenet | {' / '.join(within)} | ",
        "| rot on imagenet, partial 4 | - | - / - | 1.00 / 1.00 |",
        f"[{low:.2f}, {high:.2f}] |",
        "| found by | 1 | 2 | 3 |",
        "| rot on imagenet | ![rot on imagenet, seed 0](cell_1.png) | ![rot on imagenet, seed 1](",
        "| cls on imagenet | ![cls on imagenet, seed 4](cell_5.png) |",
    ):
        assert line in text, line
    assert text.count("in common |") == 4


@pytest.mark.parametrize(
    "settings, tables",
    [({"lr": 0.1}, 2), ({"width": 8}, 1), ({"width": 8, "max_macs": None}, 2), ({"split": "x"}, 2)],
)
def test_another_recipe_is_another_table(tmp_path, settings, tables):
    write_result(tmp_path, "darts_v2", "darts_v2", 0, 60)
    write_result(tmp_path, "pdarts", "pdarts", 0, 50, **settings)
    report.main(report.parse_args([str(tmp_path)]))
    assert (tmp_path / "report.md").read_text().count("## Trained for cls on imagenet") == tables


def test_two_cells_of_one_name_are_no_seeds_of_one(tmp_path):
    write_result(tmp_path / "x", "x/archs.json:00000", "pdarts", 0, 50)
    write_result(tmp_path / "y", "y/archs.json:00000", "darts_v1", 1, 70)
    write_result(tmp_path / "z", "cells.json:rot", "darts_v2", 0, 60)
    report.main(report.parse_args([str(tmp_path)]))
    rows = json.loads((tmp_path / "report.json").read_text())
    assert [(row["group"], row["scores"]) for row in rows] == [
        *[("random", [70]), ("other", [60]), ("random", [50])]
    ]


def test_two_results_of_one_seed_are_refused(tmp_path):
    for folder, best in (("x", 50), ("y", 60)):
        write_result(tmp_path / folder, "darts_v2", "darts_v2", 0, best)
    with pytest.raises(cli.InputError, match="two trainings of darts_v2 with one seed"):
        report.main(report.parse_args([str(tmp_path)]))


def test_searches_with_other_settings_are_another_group(tmp_path):
    for folder, seed, limit in (("a", 0, 10), ("b", 1, 10), ("c", 0, 20), ("d", 0, 20)):
        write_search(tmp_path / folder, "rot", "darts_v2")
        path = tmp_path / folder / "search_rot" / "genotype.json"
        search = json.loads(path.read_text())
        search["meta"]["seed"] = seed
        search["meta"]["identity"] |= {"limit": limit, "seed": seed}
        path.with_name("genotype.json").write_text(json.dumps(search))
        path.parent.rename(path.parent.with_name(folder))
    report.main(report.parse_args([str(tmp_path)]))
    text = (tmp_path / "report.md").read_text()
    titles = re.findall(r"^\| (rot on [^|]*) \| 2/2 \|", text, re.M)
    one, two = "rot on imagenet, settings 1", "rot on imagenet, settings 2"
    ends = [f"{one}, seed 0", f"{one}, seed 1", f"{two}, seed 0, c/c", f"{two}, seed 0, d/d"]
    assert titles == ends and f"Settings of {two}: task rot," in text
    assert f"| ops in common | {one} | {two} |" in text


def test_searches_in_folders_of_one_name(tmp_path):
    for folder in ("a", "b"):
        write_search(tmp_path / folder, "rot", "darts_v2")
    report.main(report.parse_args([str(tmp_path / "a"), str(tmp_path / "b")]))
    text = (tmp_path / "a" / "report.md").read_text()
    for folder in ("a", "b"):
        assert f"| rot on imagenet, seed 0, {folder}/search_rot | 2/2 |" in text


def test_searches_in_this_folder_and_elsewhere(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        write_search(tmp_path / folder, "rot", "darts_v2")
    monkeypatch.chdir(tmp_path / "a" / "search_rot")
    report.main(report.parse_args([".", str(tmp_path / "b")]))
    text = Path("report.md").read_text()
    for folder in ("a", "b"):
        assert f"| rot on imagenet, seed 0, {folder}/search_rot | 2/2 |" in text
    with pytest.raises(SystemExit):  # "$RUNS" that is not set is not this folder
        report.parse_args([""])


def test_published_cells_of_a_list(tmp_path):
    """By their names, if they are these cells."""
    write_result(tmp_path, "archs.json:pdarts", "pdarts", 0, 60)
    write_result(tmp_path, "archs.json:darts_v1", "nasnet", 0, 50)
    report.main(report.parse_args([str(tmp_path)]))
    text = (tmp_path / "report.md").read_text()
    assert "| published | pdarts | 60.00 |" in text and "| random | random darts_v1 | 50" in text
    assert "same seeds" not in text


def test_lower_is_better(tmp_path):
    for arch, best in (("darts_v2", 3), ("pdarts", 2)):
        write_result(tmp_path, arch, arch, 0, best)
    for path in tmp_path.rglob("result.json"):
        path.write_text(
            path.read_text().replace('"higher_is_better": true', '"higher_is_better": false')
        )
    report.main(report.parse_args([str(tmp_path)]))
    assert [row["mean"] for row in json.loads((tmp_path / "report.json").read_text())] == [2, 3]
    assert (
        "| published | 2 | 2.50 ± 0.71 | [-3.85, 8.85] | 2.00 |"
        in (tmp_path / "report.md").read_text()
    )


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no search and no training below"),
        ({"task": "cls", "dataset": 3}, 'result.json: "dataset" is 3, where str is due'),
    ],
)
def test_report_of_nothing_of_use(tmp_path, capsys, content, message):
    if content:
        write(tmp_path / "x" / "result.json", content)
    with pytest.raises(SystemExit) as exit_:
        cli.run(report.main, report.parse_args, [str(tmp_path)])
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and str(tmp_path) in err and re.search(message, err)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("meta", None, "genotype.json is of no search"),
        ("meta", {"history": [{}]}, 'genotype.json: "meta" "task" is None, where str is due'),
        ("history", [], 'genotype.json: "history" is not that of two cells in 2 epochs'),
        ("seconds", True, 'genotype.json: "meta" "seconds" is True, where int or float is due'),
        ("identity", {"width": [1]}, 'genotype.json: "meta" "identity" "width" is .1., where str'),
    ],
)
def test_malformed(made_up, name, content, message):
    path = made_up / "search_rot" / "genotype.json"
    entry = json.loads(path.read_text())
    meta = content if name == "meta" else entry["meta"] | {name: content}
    write(path, entry | {"meta": meta})
    with pytest.raises(cli.InputError, match=message):
        report.main(report.parse_args([str(made_up)]))


def test_the_page_of_correlate_py_is_read_and_kept(made_up, capsys):
    """From any folder the links to its figures hold; its own folder is no place for the report."""
    report.main(report.parse_args([str(made_up), "--out", str(made_up / "a" / "b")]))
    text = (made_up / "a" / "b" / "report.md").read_text()
    assert "![scatter](../../correlation/scatter.png)" in text
    folder = made_up / "correlation"
    before = (folder / "report.md").read_text()
    with pytest.raises(cli.InputError, match="correlation: .*choose another --out"):
        report.main(report.parse_args([str(made_up), "--out", str(folder)]))
    assert (folder / "report.md").read_text() == before
    (folder / "report.md").unlink()
    with pytest.raises(SystemExit):
        cli.run(report.main, report.parse_args, [str(made_up)])
    assert str(folder / "report.md") in capsys.readouterr().err


def test_needs_no_torch(made_up):
    (made_up / "torch.py").write_text("raise ImportError('no torch here')")
    done = subprocess.run(
        [sys.executable, ROOT / "report.py", made_up],
        env={**os.environ, "PYTHONPATH": str(made_up)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "## Searches" in done.stdout, done.stderr
