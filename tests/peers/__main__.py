"""``python -m tests.peers REPORT``: runs all suites and writes one report of them in the form of junit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from tests.peers.sources import SUITES, folder_of

ROOT = Path(__file__).parents[2]


def run(suite: str, file: str, folder: Path) -> ElementTree.Element:
    """The results of one file of tests, with the wrappers in place."""
    report = folder / f"{Path(file).stem}.xml"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PEERS": suite, "KERAS_BACKEND": "jax"}
    options = ["-q", "-p", "no:cacheprovider", "-p", "tests.peers.plugin", "-c", os.devnull, "--tb=short"]
    command = [sys.executable, "-m", "pytest", *options, f"--rootdir={folder}", f"--junitxml={report}", file]
    code = subprocess.run(command, cwd=folder, env=environment).returncode
    if code not in (0, 1):
        raise SystemExit(f"pytest ended with {code} in {file} of {suite}")
    return ElementTree.parse(report).getroot()


def main(report: str) -> None:
    """Runs every file of every suite; exit code 1 if a test does other than the list says."""
    merged = ElementTree.Element("testsuite")
    for suite, (package, files) in SUITES.items():
        folder = folder_of(package)
        for file in files:
            for case in run(suite, file, folder).iter("testcase"):
                case.set("classname", f"{package}.{file.removesuffix('.py').replace('/', '.')}")
                case.set("name", f"[{case.get('name')}]")
                merged.append(case)
    ElementTree.ElementTree(merged).write(report)
    failed = [case.get("name") for case in merged if case.find("failure") is not None]
    print(f"{len(merged)} tests of peers; not as listed: {len(failed)}", *failed, sep="\n  ")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main(*sys.argv[1:])
