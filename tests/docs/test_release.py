"""What is published says the same everywhere: address, versions, workflows, licences, neighbours."""

import fnmatch
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from docs.generate import licences, neighbours, release_check, repository

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


# --- the address of the repository


@pytest.mark.parametrize("name", repository.FILES)
def test_a_file_names_the_address_of_pyproject_toml_and_no_other(name):
    found = re.findall(r"https?://[\w.-]+(?:/[\w.-]+)*?/keras[-_]flax[-_]bridge\b", (ROOT / name).read_text())
    assert set(found) == {repository.address()}


def test_one_command_sets_the_address_everywhere(tmp_path):
    for name in repository.FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    repository.set_address("https://git.example/some/keras_flax_bridge", tmp_path)
    assert repository.address(tmp_path) == "https://git.example/some/keras_flax_bridge"
    assert [n for n in repository.FILES if repository.address() in (tmp_path / n).read_text()] == []
    with pytest.raises(ValueError, match="expected https://"):
        repository.set_address("git.example", tmp_path)


def test_published_readme_has_absolute_links():
    hook = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = "".join((ROOT / part["path"]).read_text() for part in hook["fragments"])
    for rule in hook["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    links = re.findall(r"\]\(([^)]*)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    assert f"{repository.address()}/blob/main/docs/optimizers.md" in links
    assert [link for link in links if not link.startswith("https://")] == []


# --- versions


def release(root, *, tag="v1.2.3", heading="## [1.2.3] - 2026-01-31", address="https://git.example/a/b"):
    """Writes a checkout that is ready for a release, or lacks what a test says."""
    files = {
        "pyproject.toml": f'[project]\nversion = "1.2.3"\n[project.urls]\nRepository = "{address}"\n',
        "keras_flax_bridge/__init__.py": '__version__ = "1.2.3"\n',
        "CITATION.cff": "version: 1.2.3\n",
        "CHANGELOG.md": f"## [Unreleased]\n\n{heading}\n",
        "docs/_build/html/objects.inv": "# Sphinx inventory version 2\n# Version: 1.2.3\n",
        "dist/keras_flax_bridge-1.2.3-py3-none-any.whl": "",
        "dist/keras_flax_bridge-1.2.3.tar.gz": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return release_check.differences(root), release_check.not_ready(tag, root)


def test_a_release_that_is_ready(tmp_path):
    assert release(tmp_path) == ([], [])


@pytest.mark.parametrize(
    ("lacks", "words"),
    [
        ({"tag": "v1.2.4"}, "tag: got v1.2.4, expected v1.2.3"),
        ({"heading": "This becomes 1.2.3, soon."}, "no heading '## [1.2.3]"),
        ({"heading": "- a line\n\n## [1.2.3] - 2026-01-31"}, "lines under Unreleased"),
        ({"address": repository.PLACEHOLDER}, "placeholder"),
    ],
    ids=["tag", "heading", "unreleased", "address"],
)
def test_a_release_lacks_something(tmp_path, lacks, words):
    _, missing = release(tmp_path, **lacks)
    assert any(words in line for line in missing)


@pytest.mark.parametrize(
    "name", ["keras_flax_bridge/__init__.py", "CITATION.cff", "docs/_build/html/objects.inv", "CHANGELOG.md"]
)
def test_a_place_names_another_version(tmp_path, name):
    release(tmp_path)
    (tmp_path / name).write_text((tmp_path / name).read_text().replace("1.2.3", "1.2.2"))
    assert release_check.differences(tmp_path) == [f"{name}: got 1.2.2, expected 1.2.3"]


def test_versions_of_this_checkout_agree():
    built = ("dist/", "docs/_build")
    assert [line for line in release_check.differences() if not line.startswith(built)] == []


# --- the files of the hosted CI


def commands(workflow):
    """The lines that a workflow runs."""
    for job in yaml.safe_load(workflow.read_text())["jobs"].values():
        yield from (step["run"] for step in job["steps"] if "run" in step)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_make_targets_that_exist(workflow):
    named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(commands(workflow))))
    matrix = set(re.findall(r"^ +target: ([a-z-]+)$", workflow.read_text(), re.MULTILINE))
    assert named | matrix
    assert named | matrix <= TARGETS


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_do_little_and_ends(workflow):
    found = yaml.safe_load(workflow.read_text())
    assert found["permissions"] == {"contents": "read"}
    assert "concurrency" in found
    for name, job in found["jobs"].items():
        assert job["timeout-minutes"] <= 360
        assert job.get("permissions", {}) == ({"id-token": "write"} if name == "publish" else {})


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_to_a_commit_with_its_version_beside_it(workflow):
    used = re.findall(r"uses: (.*)", workflow.read_text())
    assert used
    assert [line for line in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


def test_the_sdist_has_all_that_is_under_version_control():
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()]
    ignored += [".git", ".gitignore", "pyproject.toml", "PKG-INFO"]  # or always in it
    included = [
        entry.strip("/") for entry in PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    ]
    missing = [
        path.name
        for path in ROOT.iterdir()
        if not any(fnmatch.fnmatch(path.name, pattern) for pattern in [*ignored, *included])
    ]
    assert missing == []


# --- pages about other packages


def test_licences_are_those_of_the_packages_that_are_required():
    page = licences.listed(licences.PAGE.read_text())
    direct = {requirement.name for extra in licences.EXTRAS for requirement in licences.roots(extra)}
    assert direct <= page.keys(), "python -m docs.generate.licences"
    assert "unknown" not in page.values()


@pytest.mark.parametrize("extra", licences.EXTRAS)
def test_everything_installed_here_may_be_used_freely(extra):
    free = {
        "Apache-2.0",
        "MIT",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "0BSD",
        "ISC",
        "Zlib",
        "PSF-2.0",
        "MIT-CMU",
        "HPND",
    }
    free |= {"CC0-1.0", "MPL-2.0", "Unlicense"}
    for package in licences.licensed(extra):
        choices = package.licence.split(" OR ")
        assert any(set(choice.strip("()").split(" AND ")) <= free for choice in choices), package


def test_neighbours_are_listed_with_versions_that_pyproject_toml_allows():
    page = neighbours.PAGE.read_text()
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", page, re.MULTILINE)
    assert {name for name, _ in rows} == set(neighbours.NEIGHBOURS)
    allowed = {r.name: r.specifier for r in map(Requirement, neighbours.bounds())}
    assert re.findall(r"^- `([\w-]+)", page, re.MULTILINE) == list(allowed)
    for name, cells in rows:
        versions = dict(zip(neighbours.TOLD, cells.split(" | ")[1:], strict=False))
        assert [p for p, v in versions.items() if v != "-" and v not in allowed[p]] == [], name


def test_what_the_resolver_says_becomes_the_page():
    def asked(requirements, python, strategy):
        if requirements[-1].startswith("kithara") and python != "3.12":
            return neighbours.Answer({}, "it needs ray==2")
        name = neighbours.name_of(requirements[-1]).partition("==")[0]
        version = "1.0" if len(requirements) > 1 and name == "torch" else "2.0"
        if requirements[-1] == "torch==2.0" and len(requirements) > 1:
            return neighbours.Answer({}, "torch==2.0 depends on jax<0.1")
        return neighbours.Answer({name: version, "jax": "0.8" if strategy == "lowest-direct" else "0.9"})

    page = neighbours.page(asked)
    assert "| `grain` | 2.0 | - | 0.9 | - | - | - |  |" in page
    assert "| `grain` | 2.0 | - | 0.8 | - | - | - |  |" in page
    assert "| `torch` | 1.0 | - | 0.9 | - | - | - | torch==2.0: torch==2.0 depends on jax<0.1 |" in page
    assert "- Python 3.11: all but\n  - `kithara`: also without this package: it needs ray==2" in page


def test_the_reason_is_the_resolver_s_first_premise():
    report = """  No solution found:
      Because all versions of a depend on b{sys_platform == 'linux'}==1 and you
      require b>=2, we can conclude that a cannot be used."""
    assert neighbours.reason(report) == "all versions of a depend on b==1 and you require b>=2"


def test_the_issue_forms_ask_for_what_helps():
    forms = {path.stem: path.read_text() for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")}
    assert "doctor --json" in forms["bug"]
    assert "model.to_json()" in forms["model"]
