import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli import InputError, write_json

import genotypes
from genotypes import CELLS, load_arch, to_entry

ROOT = Path(__file__).parent.parent


def entry_of(name):
    return {
        "id": "7",
        "space": "darts",
        "genotype": json.loads(json.dumps(load_arch(name)._asdict())),
    }


def test_named_cells():
    assert len(CELLS) == 20
    v2 = load_arch("darts_v2")  # as DARTS publishes it
    assert v2.normal[:2] == [("sep_conv_3x3", 0), ("sep_conv_3x3", 1)]
    assert v2.normal[-2:] == [("skip_connect", 0), ("dil_conv_3x3", 2)]
    assert v2.reduce[-1] == ("max_pool_3x3", 1) and v2.reduce_concat == [2, 3, 4, 5]
    amoeba = load_arch("amoebanet")
    assert (
        len(amoeba.normal) == 10
        and ("conv_7x1_1x7", 0) in amoeba.reduce
        and amoeba.reduce_concat == [3, 4, 6]
    )
    for name in CELLS:
        assert genotypes.parse_genotype(entry_of(name)["genotype"], name) == load_arch(name)


def test_file_and_list(tmp_path):
    write_json(
        tmp_path / "genotype.json", {**to_entry(load_arch("pdarts")), "meta": {"task": "rot"}}
    )
    assert load_arch(str(tmp_path / "genotype.json")) == load_arch("pdarts")
    assert json.loads((tmp_path / "genotype.json").read_text())["meta"] == {"task": "rot"}
    assert [p.name for p in tmp_path.iterdir()] == ["genotype.json"]
    archs = tmp_path / "archs.json"
    archs.write_text(json.dumps([dict(entry_of("nasnet"), id="00001"), entry_of("darts_v1")]))
    assert load_arch(f"{archs}:7") == load_arch("darts_v1")
    assert load_arch(f"{archs}:00001") == load_arch("nasnet")
    assert [
        genotypes.short_name(str(p))
        for p in (tmp_path / "genotype.json", archs, f"{archs}:7", "pdarts")
    ] == [tmp_path.name, "archs", "7", "pdarts"]
    assert genotypes.short_name("runs/a:b/x.json:00004") == "00004"
    pasted = "Genotype(normal=[" + "('skip_connect', 0), " * 200
    for text, message in (
        (pasted, "--arch: not Genotype"),
        (f"{archs}:8", "'8'"),
        (str(archs), "list"),
        ("resnet50", "resnet50"),
        ("none/x.json", "none/x"),
    ):
        with pytest.raises(InputError, match=message):
            load_arch(text)


def mutate(path, value):
    def change(entry):
        target = entry
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (mutate(["genotype", "normal", 2, 0], "sep_conv_9x9"), "unknown op 'sep_conv_9x9'"),
        (mutate(["genotype", "normal", 2, 1], 3), "node 3 takes inputs 0 to 2, not 3"),
        (mutate(["genotype", "reduce", 0, 1], -1), "not -1"),
        (mutate(["genotype", "reduce", 0, 1], True), "not True"),
        (mutate(["genotype", "reduce", 0, 1], "0"), "not '0'"),
        (mutate(["genotype", "normal", 0], ["skip_connect"]), "pair"),
        (lambda entry: entry["genotype"]["normal"].pop(), "it has 7"),
        (mutate(["genotype", "normal"], []), "it has 0"),
        (mutate(["genotype", "normal"], "sep"), "'sep'"),
        (mutate(["genotype", "normal_concat"], []), r"normal_concat lists .* not \[\]"),
        (mutate(["genotype", "normal_concat"], "range(2, 6)"), "is 'range.*list is due"),
        (mutate(["genotype", "reduce_concat"], [2, 6]), "from 2 to 5"),
        (mutate(["genotype", "reduce_concat"], [2, 2]), "each once"),
        (lambda entry: entry["genotype"].pop("reduce"), '"genotype" "reduce" is None'),
        (mutate(["genotype"], None), '"genotype" is None, where dict'),
        (mutate(["space"], "nasbench"), '"space"'),
    ],
)
def test_malformed(tmp_path, change, message):
    entry = copy.deepcopy(entry_of("darts_v2"))
    change(entry)
    path = tmp_path / "genotype.json"
    path.write_text(json.dumps(entry))
    with pytest.raises(InputError, match=message) as error:
        load_arch(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_not_json(tmp_path):
    path = tmp_path / "genotype.json"
    path.write_text("a cell")
    with pytest.raises(InputError, match="not a readable JSON"):
        load_arch(str(path))


PDARTS = """Genotype(normal=[('skip_connect', 0), ('dil_conv_3x3', 1), ('skip_connect', 0),
    ('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('sep_conv_3x3', 3), ('sep_conv_3x3', 0),
    ('dil_conv_5x5', 4)], normal_concat=range(2, 6), reduce=[('avg_pool_3x3', 0),
    ('sep_conv_5x5', 1), ('sep_conv_3x3', 0), ('dil_conv_5x5', 2), ('max_pool_3x3', 0),
    ('dil_conv_3x3', 1), ('dil_conv_3x3', 1), ('dil_conv_5x5', 3)], reduce_concat=range(2, 6))"""


@pytest.mark.parametrize(
    "before", ["", "  PDARTS = ", "11/05 09:12:45 PM genotype = ", "2019-11-05 21:12:45,123 Cell: "]
)
def test_printed_by_others(tmp_path, before):
    assert load_arch(before + PDARTS + "\n") == load_arch("pdarts")
    path = tmp_path / "own.txt"
    path.write_text(before + PDARTS)
    assert load_arch(str(path)) == load_arch("pdarts")
    assert genotypes.short_name(str(path)) == "own"
    name = genotypes.short_name(before + PDARTS)
    assert name.startswith("cell_") and name.isidentifier()
    assert name != genotypes.short_name(PDARTS.replace("avg", "max"))


@pytest.mark.parametrize("name", CELLS)
def test_to_their_text_and_back(tmp_path, capsys, name):
    genotypes.main(genotypes.parse_args([name]))
    printed = capsys.readouterr().out.splitlines()[-1]
    write_json(tmp_path / "x.json", to_entry(load_arch(printed)))
    arch = load_arch(str(tmp_path / "x.json"))
    assert arch == load_arch(name) and ("range(2, 6)" in printed) == (len(arch.normal) == 8)
    genotypes.main(genotypes.parse_args([str(tmp_path / "x.json")]))
    assert capsys.readouterr().out.splitlines()[-1] == printed


@pytest.mark.parametrize(
    "text",
    [
        "Genotype(__import__('os').system('touch ran'))",
        "Genotype(normal=__import__('os').system('touch ran'))",
        PDARTS.replace("range(2, 6)", "open('ran', 'w')", 1),
        PDARTS.replace("range(2, 6)", "range(2, open('ran', 'w').fileno())", 1),
        PDARTS.replace("range(2, 6)", "range(2, 10**9)", 1),
        PDARTS.replace("range(2, 6)", "range(2, 999999999)", 1),
        PDARTS.replace("range(2, 6)", "range(-999999999, 6)", 1),
        PDARTS.replace("range(2, 6)", "[x for x in open('ran', 'w')]", 1),
        PDARTS.replace("range(2, 6)", "().__class__", 1),
        PDARTS.replace("'skip_connect'", 'f\'{open("ran", "w")}\'', 1),
        PDARTS.replace("'skip_connect'", r"'\d'", 1),
        "open('ran', 'w') and " + PDARTS,
        PDARTS + ".normal",
        PDARTS + "(normal=[])",
        PDARTS.replace("normal=", "**", 1),
        f"Genotype(normal={'[' * 199}{']' * 199})",
        f"Genotype(normal={'-' * 4900}1)",
        f"Genotype(normal={'x.' * 2400}x)",
        "Genotype(normal=" + "('skip_connect', 0), " * 50_000 + ")",
        "Genotype(" + "(" * 1_000_000 + ")" * 1_000_000,
        "Genotype(normal=[])",
    ],
    ids=range(21),
)
def test_hostile_text(tmp_path, text):
    """As an argument, if it is short enough for one, or in a file."""
    (tmp_path / "x.txt").write_text(text)
    for arch in [text] * (len(text) < 100_000) + ["x.txt"]:
        command = [sys.executable, str(ROOT / "genotypes.py"), arch]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr[-300:]
        assert len(done.stderr) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_nasbench_by_its_public_keys(tmp_path):
    matrix, ops = [[0, 1, 1], [0, 0, 1], [0, 0, 0]], ["input", "maxpool3x3", "output"]
    entry = {"module_adjacency": matrix, "module_operations": ops}
    write_json(tmp_path / "cell.json", entry)
    write_json(tmp_path / "archs.json", [{"id": 3, **entry}])
    for text in ("cell.json", "archs.json:3"):
        assert load_arch(str(tmp_path / text)) == genotypes.NASBenchCell(matrix, ops)
    write_json(tmp_path / "cell.json", {"module_adjacency": matrix})
    with pytest.raises(InputError, match='"ops" is None, where list is due'):
        load_arch(str(tmp_path / "cell.json"))


def test_printed_as_text(tmp_path, capsys):
    genotypes.main(genotypes.parse_args([]))
    assert capsys.readouterr().out.split() == list(CELLS)
    genotypes.main(genotypes.parse_args(["amoebanet"]))
    out = capsys.readouterr().out
    assert out.startswith("normal cell, output = concat of nodes 4, 5, 6\n")
    assert "  6 = conv_7x1_1x7(0) + sep_conv_3x3(5)\n" in out
    cell = genotypes.NASBenchCell(
        [[0, 1, 1], [0, 0, 1], [0, 0, 0]], ["input", "maxpool3x3", "output"]
    )
    write_json(tmp_path / "cell.json", to_entry(cell))
    genotypes.main(genotypes.parse_args([str(tmp_path / "cell.json")]))
    out = capsys.readouterr().out
    assert out.startswith("  0 = input\n  1 = maxpool3x3(0)\n  2 = output(0, 1)\n")
    assert out.endswith(f"hash {genotypes.nasbench_hash(cell)}\n")


def test_needs_neither_torch_nor_matplotlib():
    code = "import sys, genotypes; print({'torch', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_paper_list(shared_data):
    path = shared_data / "unnas_darts_500.json"
    ids = [entry["id"] for entry in json.loads(path.read_text())]
    assert len(ids) == 500
    assert all(len(load_arch(f"{path}:{i}").normal) == 8 for i in ids[::25])


@pytest.mark.parametrize("arch_id", ["../../escaped", "a/b", "..", "", "a b", "é"])
def test_ids_are_no_paths(tmp_path, arch_id):
    path = tmp_path / "archs.json"
    path.write_text(json.dumps([dict(entry_of("darts_v1"), id=arch_id)]))
    with pytest.raises(InputError, match="letters, digits"):
        genotypes.load_archs(path)
    path.write_text(json.dumps([dict(entry_of("darts_v1"), id="a.b_c-0")]))
    assert list(genotypes.load_archs(path)) == ["a.b_c-0"]
