"""What the documents promise about themselves: their links lead somewhere, and what they cite or are cited for is there."""

import re
from pathlib import Path

import pytest
import yaml

from tests.support.documents import DOCUMENTS, ROOT

DESIGN = ROOT / "infra" / "docs" / "DESIGN.md"


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives the document's headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(((?!https?:)[^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_is_named_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|infra|clients|functions)/[\w./-]+\.(?:py|md|json|yaml|txt|js|php|go))`", text)
    programs = [f"{name.replace('.', '/')}" for name in re.findall(r"python -m (tests[\w.]+)", text)]
    assert [file for file in named if not (ROOT / file).is_file()] == []
    assert [name for name in programs if not ((ROOT / f"{name}.py").is_file() or (ROOT / name).is_dir())] == []


def test_the_readme_is_one_page_and_begins_with_the_chinese_one() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 700
    assert "infra/docs/README.zh-CN.md" in text.partition("\n")[0]


def test_tests_cite_invariants_of_the_design() -> None:
    section = DESIGN.read_text(encoding="utf-8").partition("\n## Invariants\n")[2].partition("\n## ")[0]
    there = {int(number) for number in re.findall(r"^(\d+)\. ", section, re.MULTILINE)}
    cited = {
        int(number)
        for path in (ROOT / "tests").rglob("*.py")
        for numbers in re.findall(r"[Ii]nvariants? (\d[\d, and]*)", path.read_text(encoding="utf-8"))
        for number in re.findall(r"\d+", numbers)
    }
    assert len(cited) > 5
    assert cited <= there


def test_pre_commit_runs_what_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = [hook["entry"].replace("--group ci ", "") for repo in config["repos"] for hook in repo["hooks"]]
    assert [entry for entry in entries if entry not in ci] == []
    checks = ci.partition("\nsay format")[2].partition("\nsay test")[0]
    checked = {line for line in checks.splitlines() if line.startswith("uv run ")}
    assert checked <= set(entries)


def test_the_workflow_calls_ci() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert any(".ci/run" in step for step in steps)
