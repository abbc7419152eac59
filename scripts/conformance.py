#!/usr/bin/env python3
"""make conformance: runs the tests that check published invariants and writes docs/conformance.md.

Usage: conformance.py BUILD    (a finished build folder, such as build/cpu)
"""
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IDS = re.compile(r"((?:[TIL]\d\d[a-z]?_)+)\w")
INLINE = 2  # an invariant with more figures has a table of its own


def list_tests(program):
    """Full names of the program's tests that are named after invariants."""
    names, suite = [], ""
    out = subprocess.run([program, "--gtest_list_tests"], check=True, capture_output=True, text=True).stdout
    for line in out.splitlines():
        line = line.split("#")[0].rstrip()
        if line.startswith("  "):
            if IDS.match(line.strip()):
                names.append(suite + line.strip())
        elif line.endswith("."):
            suite = line
    return names


def run_tests(build):
    """({id: [test]}, [figure]); a figure has test, what, published, measured."""
    tests = {}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "measured.jsonl"
        env = dict(os.environ, NIBBLE_MEASURED=str(log), RC_PARAMS="set:seed=20260")
        for program in sorted((build / "tests").glob("test_*")):
            if not program.is_file() or not os.access(program, os.X_OK):
                continue
            names = list_tests(program)
            if not names:
                continue
            print(f"{program.name}: {len(names)} tests", flush=True)
            done = subprocess.run([program, "--gtest_brief=1", "--gtest_filter=" + ":".join(names)], env=env,
                                  capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"{done.stdout}\n{program.name} failed: docs/conformance.md is as it was")
            for name in names:
                for test_id in IDS.match(name.split(".")[1]).group(1).strip("_").split("_"):
                    tests.setdefault(test_id, []).append(name)
        figures = [json.loads(line) for line in log.read_text().splitlines()]
    return tests, figures


def source_name(full):
    """Prefix/Suite.Name/param as it stands in the source: Suite.Name."""
    suite, name = full.split(".", 1)
    return f"{suite.split('/')[-1]}.{name.split('/')[0]}"


def variant(full):
    """The parameter of a test, if it has one."""
    name = full.split(".", 1)[1]
    return name.split("/", 1)[1] if "/" in name else ""


def number(value):
    return f"{value:.5g}" if abs(value) < 1e5 else f"{value:.0f}"


def row(invariant, tests, figures, details):
    """The line of the table. Many figures go to `details`, {id: figures}, once for all ids that share them."""
    test_id = invariant["id"]
    if test_id in tests:
        mine = [f for f in figures if f["test"] in tests[test_id]]
        where = "<br>".join(f"`{name}`" for name in sorted({source_name(t) for t in tests[test_id]}))
        if not mine:
            measured = "holds"
        elif len(mine) <= INLINE:
            measured = "<br>".join(f"{f['what']}: {number(f['measured'])}" for f in mine)
        else:
            shown = next((other for other, theirs in details.items() if theirs == mine), test_id)
            details[shown] = mine
            measured = f"holds; [{len(mine)} figures](#{shown.lower()})"
    else:
        measured, where = "–", f"no test: {invariant['exempt']}"
    text = invariant["text"] + (f" (not checked: {invariant['part']})" if "part" in invariant else "")
    cells = [test_id, text, invariant.get("published", "–"), measured, where]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page(tests, figures):
    listed = json.loads((ROOT / "tests/conformance/invariants.json").read_text())
    lines = [
        "# Conformance",
        "",
        "What the authors of the methods, and independent computations, say must hold, and what nibble measures. This page",
        "is written by",
        "",
        "    make conformance",
        "",
        "from `tests/conformance/invariants.json` and from the tests, each of which begins with the ids of the invariants that",
        "it checks. `make test` fails where an invariant has neither a test nor a reason, and where this page misses one.",
        "\"holds\" means that every assertion of the tests passed; figures have the tolerance of their test beside the published",
        "value. Bytes of public implementations are compared in `tests/conformance/quantizers_test.cpp` and",
        "`emulations_test.cpp` ([numerics](numerics.md), section 9).",
    ]
    invariants = [i for source in listed["sources"] for i in source["invariants"]]
    tested = sum(i["id"] in tests for i in invariants)
    lines += ["", f"{tested} invariants have tests, {len(invariants) - tested} a reason to have none."]
    details = {}
    for source in listed["sources"]:
        lines += ["", f"## {source['name']}", "", source["paper"] + ".", "",
                  "| id | what it says | published | measured | test |", "|---|---|---|---|---|"]
        for invariant in source["invariants"]:
            lines.append(row(invariant, tests, figures, details))
    lines += ["", "## Figures"]
    for test_id, more in details.items():
        lines += ["", f"### {test_id}", "", "| of | published | measured |", "|---|---|---|"]
        for f in more:
            what = ", ".join(part for part in (variant(f["test"]), f["what"]) if part)
            lines.append(f"| {what} | {f['published']} | {number(f['measured'])} |")
    return "\n".join(lines) + "\n"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    tests, figures = run_tests(Path(sys.argv[1]))
    (ROOT / "docs/conformance.md").write_text(page(tests, figures))
    print(f"docs/conformance.md: {len(tests)} invariants, {len(figures)} figures")


if __name__ == "__main__":
    main()
