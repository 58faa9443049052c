"""The public API is that of the last release, but for what was added, deprecated or decided on."""

import copy
import json
import re
from pathlib import Path

import pytest

import keras_flax_bridge as kfb
from docs.generate import public_api
from keras_flax_bridge.tree.words.word import ARGUMENTS, ATTRIBUTES, OPTIONS, Deprecated
from tests.support.api_breaks import breaks
from tests.tables.accepted_breaks import ACCEPTED
from tests.tree.test_deprecations import minor

CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"
STORED = json.loads(public_api.stored().read_text())
TO_DO = """
{}

{} is the API of the last release. For each line above do one of these:
- bring it back: an old name works by a row of keras_flax_bridge/tree/words/words_of_versions.py;
- decide on the break: a row of tests/tables/accepted_breaks.py with the version and the reason, and a line
  in the changelog under Removed or Changed. docs/stability.md says which versions may break what.
"""


@pytest.fixture(scope="module")
def present():
    return public_api.api()


@pytest.mark.slow
def test_the_api_of_the_last_release_is_not_broken(present):
    found = breaks(STORED, present)
    left = {what: said for what, said in found.items() if what not in {row.what for row in ACCEPTED}}
    lines = "\n".join(f"{what} {said}" for what, said in left.items())
    assert not left, TO_DO.format(lines, public_api.stored().name)


@pytest.mark.slow
def test_every_accepted_break_is_one(present):
    found = breaks(STORED, present)
    assert [row.what for row in ACCEPTED if row.what not in found] == [], "These rows can go."
    assert all(row.why for row in ACCEPTED)


def test_a_break_is_accepted_only_for_a_version_that_may_break():
    assert [row.what for row in ACCEPTED if not may_break(row.version, STORED["version"])] == []


def may_break(version, released):
    """A minor version may break the API before 1.0, a major one from then on."""
    kept = 1 if minor(released)[0] else 2
    return minor(version)[:kept] > minor(released)[:kept]


@pytest.mark.parametrize(
    ("version", "released", "may"),
    [
        ("0.1.1", "0.1.0", False),
        ("0.2.0", "0.1.3", True),
        ("0.10.0", "0.9.0", True),
        ("1.0.0", "0.9.0", True),
        ("1.1.0", "1.0.0", False),
        ("2.0.0", "1.9.0", True),
    ],
)
def test_a_break_takes_a_minor_version_before_1_and_a_major_one_after(version, released, may):
    assert may_break(version, released) == may


def test_the_stored_api_is_that_of_the_newest_release():
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", CHANGELOG.read_text(), re.MULTILINE)
    newest = releases[0] if releases else kfb.__version__
    assert STORED["version"] == newest, "python -m docs.generate.public_api"


@pytest.mark.slow
def test_the_stored_api_holds_what_the_pages_promise(present):
    names = present["names"]
    assert {public_api.public_name(path) for path, _ in public_api.shown()} <= names.keys()
    errors = {name for name, entry in names.items() if "kfb.BridgeError" in entry.get("bases", ())}
    assert {f"kfb.{name}" for name in dir(kfb) if name.endswith("Error")} == errors | {"kfb.BridgeError"}
    assert [one["name"] for one in names["kfb.restore"]["parameters"]][:2] == ["path", "like"]
    assert "--json" in [one["name"] for one in names["keras-flax-bridge verify"]["parameters"]]
    assert names["kfb.CheckpointManager.restore"]["kind"] == "method"
    assert present["exit codes"]["wrong use"] == 2


@pytest.mark.slow
def test_the_api_is_no_break_of_itself(present):
    assert breaks(present, json.loads(json.dumps(present))) == {}


# --- each kind of break is found

RESTORE, VERIFY, CONVERT = "kfb.restore", "keras-flax-bridge verify", "keras-flax-bridge convert"


def parameters(api, name=RESTORE):
    return api["names"][name]["parameters"]


def change(of, index, **fields):
    return lambda api: parameters(api, of)[index].update(fields)


def swap(api):
    given = parameters(api)
    given[0], given[1] = given[1], given[0]


SPOILED = {
    "removed name": (lambda api: api["names"].pop("kfb.shard"), {"kfb.shard": "is gone"}),
    "removed class": (
        lambda api: [
            api["names"].pop(name) for name in [*api["names"]] if name.startswith("kfb.CheckpointM")
        ],
        {"kfb.CheckpointManager": "is gone"},
    ),
    "removed member": (
        lambda api: api["names"].pop("kfb.TrainState.part"),
        {"kfb.TrainState.part": "is gone"},
    ),
    "removed parameter": (lambda api: parameters(api).pop(), {"kfb.restore(cast)": "is gone"}),
    "swallowed parameter": (
        lambda api: parameters(api).__setitem__(-1, {"name": "rest", "kind": "variadic keyword"}),
        {"kfb.restore(cast)": "is gone"},
    ),
    "renamed parameter": (
        change(RESTORE, 1, name="target"),
        {"kfb.restore(like)": "is gone", "kfb.restore(target)": "is new and has no default"},
    ),
    "reordered parameters": (
        swap,
        {
            "kfb.restore(path)": "was argument 1 by place, is argument 2",
            "kfb.restore(like)": "was argument 2 by place, is argument 1",
        },
    ),
    "parameter in front": (
        lambda api: parameters(api).insert(1, {"name": "x", "kind": "positional or keyword", "default": "0"}),
        {"kfb.restore(like)": "was argument 2 by place, is argument 3"},
    ),
    "by name alone": (
        change(RESTORE, 1, kind="keyword-only"),
        {"kfb.restore(like)": "was positional or keyword, is keyword-only"},
    ),
    "new required parameter": (
        lambda api: parameters(api).append({"name": "mesh", "kind": "keyword-only"}),
        {"kfb.restore(mesh)": "is new and has no default"},
    ),
    "default": (
        change(RESTORE, -1, default="True"),
        {"kfb.restore(cast)": "had the default False, has True"},
    ),
    "required": (
        lambda api: parameters(api)[-1].pop("default"),
        {"kfb.restore(cast)": "has no default any more"},
    ),
    "bases": (
        lambda api: api["names"]["kfb.ArgumentError"].update(bases=["Exception"]),
        {"kfb.ArgumentError": "is no ValueError any more; is no kfb.BridgeError any more"},
    ),
    "fields": (
        lambda api: api["names"]["kfb.ResumeReport"]["fields"].reverse(),
        {"kfb.ResumeReport": "had the fields steps, leaves, differing; has differing, leaves, steps"},
    ),
    "kind": (
        lambda api: api["names"]["kfb.VerifyReport.ok"].update(kind="method"),
        {"kfb.VerifyReport.ok": "was attribute, is method"},
    ),
    "removed command": (lambda api: api["names"].pop(VERIFY), {VERIFY: "is gone"}),
    "renamed option": (change(VERIFY, -1, name="--as-json"), {f"{VERIFY}(--json)": "is gone"}),
    "option with a value": (
        change(VERIFY, -1, kind="option"),
        {f"{VERIFY}(--json)": "was flag, is option"},
    ),
    "choices": (
        change(CONVERT, 6, choices=["tree"]),
        {f"{CONVERT}(--layout)": "took tree, packed, takes tree"},
    ),
    "choices where any value was taken": (
        change(VERIFY, -2, choices=["1"]),
        {f"{VERIFY}(--step)": "took any, takes 1"},
    ),
    "exit code": (
        lambda api: api["exit codes"].update({"wrong use": 3}),
        {"exit code wrong use": "was 2, is 3"},
    ),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_break_is_found(present, kind):
    spoil, expected = SPOILED[kind]
    new = copy.deepcopy(present)
    spoil(new)
    assert breaks(present, new) == expected


def test_additions_are_no_break(present):
    new = copy.deepcopy(present)
    new["names"]["kfb.new"] = {"kind": "function", "parameters": [], "returns": ""}
    parameters(new).append({"name": "mesh", "kind": "keyword-only", "default": "None"})
    parameters(new)[2].update(kind="positional or keyword", annotation="object")
    new["names"]["kfb.ArgumentError"]["bases"].append("LookupError")
    new["names"]["kfb.RuleReport"]["fields"].append("more")
    new["exit codes"]["more"] = 9
    assert breaks(present, new) == {}


def row(old, new, doors):
    return Deprecated(old, new, doors, "0.2", "0.4")


def test_what_is_deprecated_is_compared_under_its_present_name(present):
    new = copy.deepcopy(present)
    names = new["names"]
    parameters(new)[1].update(name="target")
    parameters(new, VERIFY)[-1].update(name="--as-json")
    names["kfb.TrainState.piece"] = names.pop("kfb.TrainState.part")
    names["kfb.TrainState"]["fields"][0] = "weights"
    names["kfb.migrate.shard"] = names.pop("kfb.shard")
    names["keras-flax-bridge check"] = names.pop(VERIFY)
    for name in [name for name in names if name.startswith("kfb.ToNNX")]:
        names[name.replace("ToNNX", "Wrapped")] = names.pop(name)
    names["kfb.UsageError"] = names.pop("kfb.ArgumentError")
    above = names["kfb.SignatureError"]["bases"]
    above[above.index("kfb.ArgumentError")] = "kfb.UsageError"
    rows = {
        ARGUMENTS: (row("like", "target", RESTORE),),
        ATTRIBUTES: (
            row("part", "piece", "kfb.TrainState"),
            row("params", "weights", "kfb.TrainState"),
            row("shard", "kfb.migrate.shard", "kfb"),
            row("ToNNX", "Wrapped", "kfb"),
            row("ArgumentError", "UsageError", "kfb"),
        ),
        OPTIONS: (row("verify", "check", "keras-flax-bridge"), row("--json", "--as-json", "check")),
    }
    assert breaks(present, new, rows) == {}
    parameters(new)[1].update(kind="keyword-only")
    parameters(new, "kfb.migrate.shard")[0].update(name="tree")
    assert breaks(present, new, rows) == {
        "kfb.restore(target)": "was positional or keyword, is keyword-only",
        "kfb.migrate.shard(state)": "is gone",
        "kfb.migrate.shard(tree)": "is new and has no default",
    }
    assert breaks(present, new).keys() == {
        "kfb.restore(like)",
        "kfb.restore(target)",
        "kfb.TrainState",
        "kfb.TrainState.part",
        "kfb.shard",
        "kfb.ToNNX",
        "kfb.ArgumentError",
        "kfb.SignatureError",
        VERIFY,
    }
