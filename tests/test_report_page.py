"""report.py --format html: what the page holds, and what it does in a browser."""

import csv
import json
import re
import shutil

import pytest
from made_runs import make_run, three_methods, write_rows
from plotly.offline import get_plotlyjs

from helper.page import run_charts
from helper.results import Record, read_runs

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>{{ 7 * 7 }}"
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SWITCHES += ["--disable-sync", "--no-first-run"]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def embedded(page):
    """The page's figures, as plotly gets them."""
    return json.loads(re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)[1])


@pytest.fixture
def page_of(tmp_path, call):
    """A function that writes the page of a save folder and returns the file."""

    def write(folder, *words):
        path = tmp_path / "new" / "page.html"
        done = call("report", "--save_folder", folder, "--format", "html", "--out", path, *words)
        assert done.code == 0, done.err
        assert f"page in {path}" in done.out
        return path

    return write


def test_same_numbers_as_the_other_formats(tmp_path, page_of, call):
    three_methods(tmp_path)
    page = page_of(tmp_path).read_text()
    table = call("report", "--save_folder", tmp_path, "--format", "csv").out.splitlines()
    header, *rows = csv.reader(table)
    assert all(f">{name}</button>" in page for name in header[:-1])
    marks = {"": ""}
    for name, *cells, source in rows:
        place = header.index("published") - 1
        cells[place] += marks.setdefault(source, f" [{len(marks)}]")
        line = "".join(f"<td>{cell}</td>" for cell in cells)
        assert re.search(f'<th scope="row">{re.escape(name)}</th>\\s*{re.escape(line)}', page)
    assert "[1] RepDistiller README" in page


def test_unfinished_runs_are_marked_and_in_no_mean(tmp_path, page_of):
    three_methods(tmp_path)
    make_run(tmp_path / "models" / "half", "9", [10.0], finished=False, model="resnet20", **{"epochs": 240})
    page = page_of(tmp_path).read_text()
    assert "epoch 1 of 240, test acc 10.00" in page
    assert "resnet20, from labels, trial 9 (unfinished)" in page
    assert "51.00 ± 1.00" in page


def test_text_from_files_is_escaped(tmp_path, page_of):
    make_run(tmp_path / "models" / "plain", "1", [60.0], model=HOSTILE, note=HOSTILE, path_t=f'"{HOSTILE}')
    page = page_of(tmp_path).read_text()
    rest = page.replace(get_plotlyjs(), "")
    assert "<script>window" not in rest
    assert "<img" not in rest
    assert "{{ 7 * 7 }}" in rest
    assert "&lt;img src=x" in embedded(page)["curves"]["data"][0]["name"]  # plotly reads markup, too


def test_figures_are_embedded(tmp_path, page_of):
    three_methods(tmp_path)
    page = page_of(tmp_path, "--figures", tmp_path / "figures", "--draw", "curves,parameters").read_text()
    assert page.count('<img src="data:image/png;base64,iVBOR') == 2
    assert 'alt="Learning curves"' in page


def test_long_tables_stay_small(tmp_path, page_of):
    """Forty runs of 240 epochs with a dozen figures each add less than the plotting library itself has."""
    keys = ["cls", "local", "rest", "train_acc", "test_acc_top5", "test_loss", "lr", "seconds", "images_per_second"]
    for trial in range(40):
        values = [trial + epoch / 3 for epoch in range(240)]
        run = make_run(tmp_path / "models" / str(trial), str(trial), values, model="resnet20")
        rows = [{"epoch": i, "test_acc": v, **dict.fromkeys(keys, v)} for i, v in enumerate(values, start=1)]
        write_rows(run, rows)
    page = page_of(tmp_path).read_text()
    assert len(page) < 2 * len(get_plotlyjs())


def test_charts_have_all_figures_of_a_run():
    rows = [{"epoch": 1, "stage": "init", "train_loss": 9.0, "init": 9.0}]
    rows += [{"epoch": e, "test_acc": 1.0 * e, "train_acc": 2.0, "cls": float("nan"), "lr": 0.1} for e in (1, 2)]
    rows[2]["cls"] = 1.23456789
    charts = run_charts(Record(None, {}, rows, None))
    titles = [chart["layout"]["yaxis"]["title"]["text"] for chart in charts]
    assert titles == ["accuracy (%)", "lr", "cls", "init: loss", "init: init"]
    assert [line["name"] for line in charts[0]["data"]] == ["test_acc", "train_acc"]
    assert charts[2]["data"][0]["y"] == [None, 1.2346]
    assert charts[2]["data"][0]["x0"] == 1


@pytest.fixture
def browser():
    """A running chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no chromium is installed")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=SWITCHES)
        yield running
        running.close()


def column(page, number):
    """Texts of a column of the table, from above."""
    return page.locator(f".sortable tbody tr > :nth-child({number})").all_inner_texts()


def check_sorting(page):
    head = page.locator(".sortable th", has_text="last acc")
    before, falling = column(page, 4), ["63.00 ± 1.00", "61.00 ± 1.00", "51.00 ± 1.00", "33.00"]
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, 4) == falling[::-1] != before
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, 4) == falling
    first = page.locator(".sortable th").first
    first.get_by_role("button").press("Space")
    assert head.get_attribute("aria-sort") == "none"
    assert column(page, 1) == sorted(column(page, 1))
    # what has no number is last in either order
    for _ in range(2):
        page.get_by_role("button", name="over labels").click()
        assert [text == "-" for text in column(page, 5)] == [False, False, True, True]


def check_hovering(page):
    """The mouse over the second epoch of the first curve shows the run's name and figure."""
    place = page.evaluate(
        """() => {
            const plot = document.getElementById("all-curves"), {xaxis, yaxis} = plot._fullLayout;
            plot.scrollIntoView();
            const box = plot.getBoundingClientRect(), line = plot.data[0];
            return [box.x + xaxis._offset + xaxis.d2p(2), box.y + yaxis._offset + yaxis.d2p(line.y[1]), line.name];
        }"""
    )
    page.mouse.move(place[0] - 5, place[1])
    page.mouse.move(place[0], place[1], steps=3)
    label = page.locator("#all-curves .hoverlayer .hovertext").first
    label.wait_for()
    text = label.text_content()
    assert place[2] in text
    assert re.search(r"epoch 2: \d\d", text)


def check_sections(page):
    section = page.locator("#run-2")
    assert section.get_attribute("open") is None
    assert section.locator("svg").count() == 0  # nothing is drawn that no one looks at
    page.locator('.sortable a[href="#run-2"]').click()
    section.locator(".chart .main-svg").first.wait_for()
    assert section.get_attribute("open") is not None
    charts = page.locator("#run-2 .chart")
    assert charts.count() == 2
    assert all(charts.nth(number).locator(".scatterlayer path.js-line").count() for number in range(2))
    assert section.get_by_role("row", name="model_s resnet20").is_visible()
    assert section.get_by_role("row", name="device cpu").is_visible()


def test_page_in_a_browser(tmp_path, page_of, browser):
    """It opens from disk, sorts, shows values and runs, without an error or a request."""
    three_methods(tmp_path)
    make_run(tmp_path / "student_model" / "bad", "1", [32.0, 33.0], model_s="resnet8", distill=HOSTILE, note=HOSTILE)
    path = page_of(tmp_path, "--figures", tmp_path / "figures", "--draw", "curves")
    page, problems, requests = browser.new_page(viewport={"width": 1200, "height": 900}), [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    check_sorting(page)
    check_hovering(page)
    check_sections(page)
    page.set_viewport_size({"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    assert page.locator("figure img").evaluate("image => image.naturalWidth") > 0
    assert page.evaluate("window.hacked") is None
    assert problems == []
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    assert requests.count(path.as_uri()) == 1


def test_cells_keep_their_colour(tmp_path, page_of):
    three_methods(tmp_path)
    assert len(read_runs(tmp_path, "cifar100").cells) == 3
    lines = embedded(page_of(tmp_path).read_text())["curves"]["data"]
    assert len(lines) == 9
    assert len({(line["line"]["color"], line["line"]["dash"]) for line in lines}) == 3
    assert sum(line["showlegend"] for line in lines) == 3
