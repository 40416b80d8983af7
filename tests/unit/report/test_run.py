"""The page as a whole: what it says of each kind of run, and that nothing in the data can break it."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from trainer.errors import DataError
from trainer.report import render
from trainer.report.artefacts import read_artefacts
from trainer.report.parts import downstream

VOID = {"meta", "link", "br", "hr", "img", "input", "col"}
KINDS = ["promote", "reject", "first", "train", "gate"]


class Outline(HTMLParser):
    """Elements, ids and links of a page; raises on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.labelled: list[str] = []
        self.tags: Counter[str] = Counter()
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values[name] or "" for name in ("src", "href", "srcset", "data", "action") if name in values]
        self.labelled += (values.get("aria-labelledby") or "").split()
        assert not [name for name in values if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closes at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def outline(html: str) -> Outline:
    page = Outline()
    page.feed(html)
    assert not page.open
    return page


def text_of(path: Path) -> str:
    return " ".join(" ".join(outline(path.read_text(encoding="utf-8")).words).replace("\u00a0", " ").split())


@pytest.mark.parametrize("kind", [*KINDS, "hostile"])
def test_page_is_well_formed_self_contained_and_small(kind: str, runs: dict[str, Path], hostile: Path) -> None:
    path = render(hostile if kind == "hostile" else runs[kind])
    html = path.read_text(encoding="utf-8")
    page = outline(html)
    assert path.name == "report.html" and len(html) < 1_500_000
    assert page.tags["script"] == page.tags["iframe"] == page.tags["img"] == 0
    assert all(link.startswith("#") or link == "data:," for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert max(Counter(page.ids).values()) == 1 and set(page.labelled) <= set(page.ids)
    assert "@import" not in html and not re.search(r"url\((?!#)", html) and "default-src 'none'" in html
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        drawn = ElementTree.fromstring(svg)
        hidden = drawn.get("aria-hidden") == "true"
        assert hidden or (drawn.findtext("title") and drawn.findtext("desc") and drawn.get("role") == "img")
        assert "nan" not in svg and "inf" not in svg


@pytest.mark.parametrize("kind", KINDS)
def test_same_artefacts_same_bytes(kind: str, runs: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(runs[kind], tmp_path / "elsewhere")
    assert render(copy).read_bytes() == render(runs[kind]).read_bytes()


def test_hostile_names_stay_text(hostile: Path) -> None:
    html = render(hostile).read_text(encoding="utf-8")
    assert "<script" not in html and html.count("</style>") == 1
    assert "&lt;script&gt;alert(&#39;x&#39;)" in html  # shown, not dropped


@pytest.mark.parametrize("kind", ["promote", "reject", "first", "gate"])
def test_first_screen_says_what_was_decided_and_why(kind: str, runs: dict[str, Path]) -> None:
    verdict = json.loads((runs[kind] / "verdict.json").read_text())
    shown = text_of(render(runs[kind]))
    before_sections = shown[: shown.index("Data health", shown.index("Can it be trusted"))]
    assert verdict["verdict"] in before_sections and " ".join(verdict["reason"].split()) in before_sections
    for path in verdict["failed"][:1]:
        [check] = [c for c in verdict["checks"] if f"{c['name']}/{c['action']}/{c['slice']}" == path]
        assert check["sentence"] in before_sections


def test_every_check_is_listed(runs: dict[str, Path]) -> None:
    shown = text_of(render(runs["reject"]))
    assert all(check["sentence"] in shown for check in json.loads((runs["reject"] / "verdict.json").read_text())["checks"])


def test_changes_show_old_and_new(runs: dict[str, Path]) -> None:
    shown = text_of(render(runs["promote"]))
    assert "config: model.layers 1 → 2" in shown and "code version 0.1.0 → 0.1.1" in shown
    assert "features added author_rate_7d, tab" in shown and "labels" not in shown.split("Can it be trusted")[0].split("What changed")[1]


def test_what_the_exported_features_are_worth_part_by_part_and_slice_by_slice(runs: dict[str, Path]) -> None:
    part = downstream(read_artefacts(runs["promote"]))
    assert part is not None
    assert part.sentence.endswith("The live final model stays.")
    assert [row[0] for row in part.rows] == ["AUC", "NE", "predicted / observed"], "no metric that the arms have not"
    assert ("scores and dot product alone", "NE", "−0.0150 [−0.0210, −0.0090]", "better") in part.ablation
    assert ("vectors alone", "NE", "+0.0020 [−0.0020, +0.0060]", "even") in part.ablation
    assert {word for word, *_ in part.ablation} == {"scores and dot product alone", "vectors alone", "all"}
    assert part.slices == [("tab=1", "0.9600 [0.9300, 0.9900]", "1.0100 [0.9800, 1.0400]")]
    shown = text_of(render(runs["promote"]))
    assert "What the exported features are worth, part by part" in shown and "Predicted / observed of the final score" in shown


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("first", ["No production yet: nothing to compare with.", "Cold start: no production weights were carried over."]),
        ("train", ["Nothing was judged in this run: there is no verdict.json.", "No embeddings were exported"]),
        (
            "gate",
            [
                "there is no scan.json",
                "there is no steps.jsonl",
                "There is no transfer.json",
                "There is no config.yaml",
                "the gate ran alone",
            ],
        ),
    ],
)
def test_missing_parts_say_so(kind: str, lines: list[str], runs: dict[str, Path]) -> None:
    shown = text_of(render(runs[kind]))
    assert [line for line in lines if line not in shown] == []


def test_gate_alone_measures_the_predictions_itself(runs: dict[str, Path]) -> None:
    shown = text_of(render(runs["gate"]))
    assert "Challenger Production Counting LightGBM" in shown and "is_click" in shown and "GAUC higher is better" in shown


def test_gate_alone_follows_its_configuration_to_the_predictions(runs: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(runs["gate"], tmp_path / "run")
    (copy / "predictions.parquet").rename(tmp_path / "mine.parquet")
    assert "There is no predictions.parquet" in text_of(render(copy))
    assert "Challenger Production" in text_of(render(copy, tmp_path / "mine.parquet"))
    (copy / "config.yaml").write_text(f"predictions: {tmp_path / 'mine.parquet'}\n")
    assert "Challenger Production" in text_of(render(copy))


@pytest.mark.parametrize(
    "name", ["eval.json", "scan.json", "transfer.json", "challenger-fit/steps.jsonl", "config.yaml", "predictions.parquet"]
)
def test_a_damaged_part_is_named_and_the_page_goes_on(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(runs["train"], tmp_path / "run")
    (copy / name).write_bytes(b"{: [half")
    shown = text_of(render(copy))
    assert "cannot be read" in shown and "Cost and stages" in shown


@pytest.mark.parametrize("name", ["summary.json", "verdict.json"])
def test_a_damaged_decision_is_refused(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(runs["reject"], tmp_path / "run")
    (copy / name).write_text((copy / name).read_text()[:200])
    with pytest.raises(DataError, match="cannot read what a run decided"):
        render(copy)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run to report on"):
        render(tmp_path)


def test_a_run_that_had_nothing_to_do_does_not_borrow_an_old_verdict(runs: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(runs["reject"], tmp_path / "run")
    summary = json.loads((copy / "summary.json").read_text()) | {"verdict": None, "status": "nothing to do", "reason": "judged before"}
    (copy / "summary.json").write_text(json.dumps(summary))
    html = render(copy).read_text()
    assert '<p class="badge plain">nothing to do</p>' in html and "judged before" in html


def contrast(one: str, other: str) -> float:
    """WCAG contrast ratio of two hex colours."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_is_readable_dark_on_light(runs: dict[str, Path]) -> None:
    html = render(runs["train"]).read_text()
    [block] = re.findall(r":root \{(.*?)\}", html.split("@media print")[0], re.DOTALL)
    colors = dict(re.findall(r"--(\w+): (#\w{6})", block))
    for ink in ("ink", "muted", "challenger", "production", "good", "bad", "hold"):
        assert min(contrast(colors[ink], colors[back]) for back in ("bg", "card", "soft")) >= 4.5, ink
    for cell in ("soft", "masked", "heavy", "refused"):
        assert contrast(colors["ink"], colors[cell]) >= 4.5, cell
