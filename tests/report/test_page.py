"""The page about a network, opened in a browser: it shows both graphs and the layers, sorts, filters and picks."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import bnnconvert
from bnnconvert import pipeline
from bnnconvert.errors import UsageError
from bnnconvert.report.page import write_page
from tests.networks import Residual, randomise
from tests.trace.test_inside import wholly

HAS_BROWSER = shutil.which("chromium") is not None and shutil.which("chromedriver") is not None
needs_browser = pytest.mark.skipif(not HAS_BROWSER, reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has been trained for two epochs."""
    folder = tmp_path_factory.mktemp("page")
    torch.manual_seed(0)
    student = pipeline.convert_model("tests.report.test_page:network", "xnor", data="digits", out=folder / "net.bnn")
    pipeline.finetune(student, "digits", epochs=2, max_steps=6, batch_size=64)
    return folder / "net.bnn"


def network() -> torch.nn.Module:
    """Digits have one channel."""
    torch.manual_seed(0)
    net = Residual()
    net.conv1 = torch.nn.Conv2d(1, 8, 3, 1, 1, bias=False)
    net.fc = torch.nn.Linear(12, 10)
    return randomise(net)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1400,1000",
    ):
        options.add_argument(f"--{flag}")
    options.binary_location = str(shutil.which("chromium"))
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def texts(browser: Any, selector: str) -> list[str]:
    return [e.text for e in browser.find_elements("css selector", selector) if e.is_displayed()]


@needs_browser
def test_a_run_can_be_read_sorted_filtered_and_picked_in_a_browser(run: Path, browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_page(pipeline.page_of_target(pipeline.look_at(str(run))), page)
    assert "http" not in page.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")  # nothing from elsewhere
    browser.get(page.as_uri())
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    assert browser.title == "bnnconvert: net by xnor"
    names = "tbody tr:not([hidden]) td:first-child"
    order = texts(browser, names)
    assert order == [
        "conv1",
        "layer1.conv1",
        "layer1.conv2",
        "layer2.downsample.0",
        "layer2.conv1",
        "layer2.conv2",
        "fc",
    ]
    assert texts(browser, "#shown") == ["7 of 7 layers"]

    (mult_adds,) = [th for th in browser.find_elements("css selector", "th") if th.text.startswith("mult-adds")]
    mult_adds.click()
    counts = [int(t.replace(",", "")) for t in texts(browser, "tbody td:last-child")]
    assert counts == sorted(counts)
    mult_adds.click()
    assert [int(t.replace(",", "")) for t in texts(browser, "tbody td:last-child")] == counts[::-1]

    field = browser.find_element("css selector", "#filter")
    field.send_keys("shortcut")
    assert texts(browser, names) == ["layer2.downsample.0"]
    assert texts(browser, "#shown") == ["1 of 7 layers"]
    field.clear()
    field.send_keys(" \b")

    browser.find_element("css selector", '#after [data-path="layer1.conv2"] text').click()
    assert [text.split()[0] for text in texts(browser, "tr.picked")] == ["layer1.conv2"]
    kinds = {side: texts(browser, f"#{side} .step.picked tspan:first-child") for side in ("before", "after")}
    assert kinds == {"before": ["Conv2d"], "after": ["BinaryConv2d"]}
    assert len(browser.find_elements("css selector", "#curves svg")) == 3
    assert len(browser.find_elements("css selector", "#curves svg:last-child polyline")) == 4  # one per binary layer


@needs_browser
def test_graphs_inside_are_drawn_below_the_one_around_them(browser: Any, tmp_path: Path) -> None:
    student = bnnconvert.convert(wholly(), "xnor", input_shape=(1, 3, 8, 8))
    write_page(pipeline.page_of_student(student), tmp_path / "page.html")
    browser.get((tmp_path / "page.html").as_uri())
    inside = ["model.stem", "model.router.left", "model.router.both", "model.after", "model.head"]
    assert texts(browser, "#after p") == inside
    assert texts(browser, "#before p") == inside
    assert browser.find_element("css selector", "#training").is_displayed() is False


def test_a_page_is_one_file_whose_data_cannot_leave_its_element(tmp_path: Path) -> None:
    student = bnnconvert.convert(network(), "xnor", input_shape=(1, 1, 8, 8))
    student.notes = ("</script><script>alert(1)</script>",)
    write_page(pipeline.page_of_student(student), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "</script><script>alert" not in text
    assert text.count("</script>") == 2
    with pytest.raises(UsageError, match="nowhere does not exist"):
        write_page(pipeline.page_of_student(student), tmp_path / "nowhere" / "page.html")


def test_a_model_has_its_graph_before_alone_and_a_packed_file_none(tmp_path: Path) -> None:
    page = pipeline.page_of_target(pipeline.look_at("tests.report.test_page:network", input_shape=(1, 1, 8, 8)))
    assert page.after == ()
    assert {step.kind for step in page.before[0].steps} >= {"input", "Conv2d", "BatchNorm2d", "add", "Linear", "output"}
    student = bnnconvert.convert(network(), "xnor", input_shape=(1, 1, 8, 8))
    bnnconvert.export(student, tmp_path / "net.packed.safetensors")
    with pytest.raises(UsageError, match="give the run that this file was exported from"):
        pipeline.page_of_target(pipeline.look_at(str(tmp_path / "net.packed.safetensors")))
