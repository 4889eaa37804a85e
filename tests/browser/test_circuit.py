"""The picture of a circuit in a real browser, with the data that Python makes of scores: slider, pins, names, keys."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
from found_browser import Opened
from shared_captures import explained as shared
from test_page import ACROSS, says

import lxt_fx
from lxt_fx.explorer.circuit_data import circuit_data
from lxt_fx.inside.circuits.circuit import edges_of

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

VIOLATIONS = """async () => {
    const found = await axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa"]});
    return found.violations.map(one => `${one.id}: ${one.nodes.map(each => each.target).join(" ")}`);
}"""


@cache
def scores(by_token: bool = True) -> Any:
    ids = torch.randint(5, 60, (1, 6), generator=torch.Generator().manual_seed(3))
    other = ids.clone()
    other[:, 2] = 61
    pair = ({"input_ids": ids}, {"input_ids": other}, (3, 4))
    return lxt_fx.circuit_scores(shared("llama"), *pair, by_token=by_token)


@cache
def payload(by_token: bool = True) -> dict[str, Any]:
    (found,) = circuit_data(scores(by_token))
    return {**found, "id": "r0"}


def slide(page: Page, to: int) -> None:
    page.get_by_label("Edges", exact=True).fill(str(to))


def node(page: Page, name: str) -> Locator:
    return page.locator(f'.node[aria-label^="{name}"]')


def test_the_picture_has_the_circuit_that_python_finds(opened: Opened) -> None:
    found = scores(by_token=False)
    page = opened(payload(by_token=False))
    slide(page, 150)
    edges = int(page.get_by_label("Edges", exact=True).get_attribute("aria-valuetext").split()[1])  # type: ignore[union-attr]
    circuit = found.circuit(edges)
    made = {reader: [writer for one, writer in found.feeds if one == reader] or ["logits"] for reader in found.readers}
    lines = sum(len(made[reader]) for _, reader in edges_of(circuit))
    assert 10 < edges < int(found.is_edge.sum()) and page.locator(".edge").count() == lines
    for_it = sum(len(made[reader]) for _, reader, score in circuit.edges(data="score") if (score or 0) > 0)
    assert page.locator(".edge.for").count() == for_it
    parts = {name for edge in edges_of(circuit) for name in (edge[0], *made[edge[1]])}
    assert page.locator(".node").count() == len(parts)


def test_the_slider_takes_edges_away_and_widths_say_their_weights(opened: Opened) -> None:
    page = opened(payload())
    counts = []
    for step in (200, 120, 60):
        slide(page, step)
        counts.append(page.locator(".edge").count())
    assert counts[0] > counts[1] > counts[2] > 0
    slide(page, 200)
    edges = len(payload()["circuit"]["source"])
    says(page.locator("output"), f"the strongest {edges} of {edges}")
    page.get_by_label("only those on a path").uncheck()
    assert page.locator(".edge").count() == edges
    widths = page.locator(".edge").evaluate_all("all => all.map(one => Number(one.getAttribute('stroke-width')))")
    assert max(widths) == 6 and min(widths) < 1


def test_a_part_that_is_pinned_and_named_stays_and_goes_into_the_file(opened: Opened) -> None:
    page = opened(payload())
    slide(page, 200)
    page.get_by_label("only those on a path").uncheck()
    node(page, "head 1 of layer 0").first.click()
    says(page.locator(".source-name"), "head 1 of layer 0")
    page.get_by_label("Name", exact=True).fill("mover")
    page.get_by_label("only those on a path").check()
    slide(page, 0)
    assert "mover (head 1 of layer 0)" in str(page.locator(".node.pinned").get_attribute("aria-label"))
    says(page.locator(".node.pinned text"), "mover")
    page.locator(".menu summary").click()
    with page.expect_download() as download:
        page.locator(".menu-list button", has_text="JSON").click()
    saved = json.loads(download.value.path().read_text(encoding="utf-8"))
    state = saved["results"][0]["circuit"]["state"]
    assert state["edges"] == 1 and list(state["names"].values()) == ["mover"] and state["pinned"] == list(state["names"])
    again = opened(saved["results"][0])
    says(again.locator(".node.pinned text"), "mover")
    again.get_by_role("button", name="Unpin").first.click()
    assert again.locator(".node.pinned").count() == 0


def test_all_of_it_is_reached_by_keys(opened: Opened) -> None:
    page = opened(payload())
    page.locator('.node[tabindex="0"]').focus()
    assert page.locator('.node[tabindex="0"]').count() == 1
    before = page.evaluate("document.activeElement.getAttribute('data-node')")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getAttribute('data-node')") != before
    says(page.locator(".readout"), "in, ")
    page.keyboard.press("p")
    assert page.locator(".node.pinned").count() == 1
    page.keyboard.press("Enter")
    assert page.locator('.node[aria-pressed="true"]').count() == 1 and page.get_by_label("Name", exact=True).is_visible()
    page.keyboard.press("Escape")
    assert page.locator('.node[aria-pressed="true"]').count() == 0


def test_a_neighbour_that_is_not_in_the_picture_comes_into_it(opened: Opened) -> None:
    page = opened(payload())
    slide(page, 60)
    node(page, "logits").click()
    shown = page.locator(".node").count()
    names = page.locator(".circuit-edges button bdi").all_inner_texts()
    page.locator(".circuit-edges button").last.click()
    assert names and page.locator(".node").count() in (shown, shown + 1)
    says(page.locator(".source-name"), names[-1].split(" · ")[0])


@pytest.mark.parametrize("width, dark, by_token", [(1280, False, True), (1280, True, False), (390, False, True)])
def test_a_circuit_fits_the_page_and_is_accessible(
    opened: Opened, axe: str, width: int, dark: bool, by_token: bool
) -> None:
    page = opened(payload(by_token), width=width, dark=dark)
    assert page.evaluate(ACROSS) == 0
    node(page, "logits").click()
    page.evaluate(axe)
    assert page.evaluate(VIOLATIONS) == []
