"""Tests the pages of `eplb report --html` and `eplb replay --html` in headless chromium, as check_report.sh describes:
check_report.py PROGRAM FOLDER."""

import html.parser
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy
from safetensors.numpy import save_file

PROGRAM, FOLDER = sys.argv[1], Path(sys.argv[2]).resolve()
CHROMIUM = ["chromium", "--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
            "--disable-domain-reliability", "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000"]
if os.geteuid() == 0:
    CHROMIUM.append("--no-sandbox")


def eplb(*arguments):
    return subprocess.run([PROGRAM, *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def full_size_dump():
    """58 layers x 256 experts x 100 iterations, skewed as recordings are."""
    dump = FOLDER / "dump"
    dump.mkdir()
    random = numpy.random.default_rng(1)
    counts = {}
    for layer in range(3, 61):
        shares = random.lognormal(0, 1.1, 256)
        rows = random.poisson(shares / shares.sum() * 65536 * random.lognormal(0, 0.25, (100, 256)))
        counts |= {f"{iteration}_{layer}": rows[iteration].astype(numpy.int64) for iteration in range(100)}
    save_file(counts, dump / "rank0.safetensors")
    (dump / "meta_info.json").write_text('{"num_experts": 256, "num_experts_per_token": 8}')
    return dump


class Page(html.parser.HTMLParser):
    """The page as the browser rendered it: each figure's table as rows of texts, its dots and readouts, and all ids."""

    def __init__(self, text):
        super().__init__()
        self.figure, self.tables, self.dots, self.readouts, self.plots, self.ids = None, {}, {}, {}, [], []
        self.into = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag == "figure":
            self.figure = attributes["id"]
            self.tables[self.figure], self.dots[self.figure], self.readouts[self.figure] = [], [], []
            assert attributes["aria-labelledby"] == self.figure + "-title"
        elif tag == "tr" and self.figure:
            self.tables[self.figure].append([])
        elif tag in ("td", "th") and self.figure:
            self.tables[self.figure][-1].append("")
            self.into = self.tables[self.figure][-1]
        elif tag == "output":
            self.readouts[self.figure].append("")
            self.into = self.readouts[self.figure]
        elif tag == "circle":
            self.dots[self.figure].append(float(attributes["cy"]))
        elif tag == "div" and attributes.get("class") == "plot":
            self.plots.append(attributes)

    def handle_data(self, data):
        if self.into is not None:
            self.into[-1] += data

    def handle_endtag(self, tag):
        if tag in ("td", "th", "output"):
            self.into = None
        elif tag == "figure":
            self.figure = None


def browse(page, hash="", flags=()):
    """Returns the page's document, its log messages, and the requested addresses."""
    net_log = FOLDER / "net.json"
    command = [*CHROMIUM, *flags, f"--log-net-log={net_log}", f"file://{page}{hash}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    logged = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    log = json.loads(net_log.read_text())
    events = [event["params"] for event in log["events"] if "initiator" in event.get("params", {})]
    # The browser's own requests have no origin, and do not reach the network.
    requested = {event["url"] for event in events if event["initiator"] != "not an origin"}
    return done.stdout, logged, {url for url in requested if not url.startswith(("file:", "data:"))}


def count(number):
    """Formats a number of tokens as the page does."""
    digits = 1 if number < 100 else 0
    text = f"{number:,.{digits}f}"
    return text.removesuffix(".0") if digits else text


def ratio(number):
    return "–" if number is None else f"{number:.4f}"


def assert_rounded(found, expected, what):
    """Compares two figures that may be rounded differently in the last digit."""
    values = [float(text.replace(",", "")) for text in (found, expected)]
    unit = 10.0 ** -len(found.partition(".")[2])
    assert abs(values[0] - values[1]) <= unit * 1.01, f"{what}: {found}, and {expected} in the JSON"


def check_figures(page, report):
    layers = list(report["measured"])
    views = [name for name in ("unbalanced", "projected") if name in report]
    assert len(page.ids) == len(set(page.ids)), "an id appears twice"
    assert all(plot["tabindex"] == "0" and plot["aria-label"] for plot in page.plots), page.plots
    assert set(page.tables) == {"layers", "ranks", "experts", "iterations", "replicas", "hottest", "definitions"}, list(page.tables)

    rows = page.tables["layers"][1:]
    assert [row[0] for row in rows] == [*layers, "average"]
    for row in rows:
        for place, view in enumerate(views):
            of = report["average"][view] if row[0] == "average" else report[view][row[0]]
            cells = row[1 + 6 * place:][:5]
            expected = [count(of["mean"]), count(of["std"]), count(of["max"]), ratio(of["imbalance_ratio"]), ratio(of["balancedness"])]
            for cell, value in zip(cells, expected, strict=True):
                assert_rounded(cell, value, f"layer {row[0]}")
    # The heights of the dots are linear in the values.
    values = [report[view][layer]["imbalance_ratio"] for view in views for layer in layers]
    slope, offset = numpy.polyfit(values, page.dots["layers"], 1)
    assert slope < 0 and numpy.abs(slope * numpy.array(values) + offset - page.dots["layers"]).max() < 0.01

    definitions = ["eplb", "sglang", "vllm", "tensorrt_llm_imbalance_ratio"]
    for name, row in zip(definitions, page.tables["definitions"][1:], strict=True):
        assert row[2:] == [ratio(report["balancedness"][view][name]) for view in views], row
    for layer, row in zip(layers, page.tables["experts"][1:], strict=True):
        assert row == [layer, *map(count, report["per_expert"]["tokens"][layer])], f"experts of layer {layer}"
    for layer, row in zip(layers, page.tables["replicas"][1:], strict=True):
        assert row == [layer, *map(str, report["per_expert"]["replicas"][layer])], f"replicas of layer {layer}"
    heads = [place for place, row in enumerate(page.tables["ranks"]) if row[0] == "layer"]
    for view, head in zip(views, heads, strict=True):
        for layer, row in zip(layers, page.tables["ranks"][head + 1:]):
            for cell, value in zip(row[1:], report["rank_tokens"][view][layer], strict=True):
                assert_rounded(cell, count(value), f"ranks of layer {layer}, {view}")
    for of, row in zip(report["iterations"], page.tables["iterations"][1:], strict=True):
        assert row[0] == str(of["iteration"])
        for place, view in enumerate(views):
            assert_rounded(row[1 + 3 * place], ratio(of[view]["average"]), f"iteration {row[0]}")
            assert_rounded(row[2 + 3 * place], ratio(of[view]["worst"]), f"iteration {row[0]}")
            assert row[3 + 3 * place] == str(of[view]["worst_layer"])
    for of, row in zip(report["per_expert"]["hottest"], page.tables["hottest"][1:], strict=True):
        assert row[:3] == [str(of["expert"]), str(of["layer"]), count(of["tokens"])]
        assert row[6] == ", ".join(map(str, of["ranks"]))


def check_replay():
    """The page of a replay: its figures are the JSON's, and it shows where the second recording begins."""
    page_file = FOLDER / "replay.html"
    arguments = ["replay", "--expert_statistic_path", "data/dumps/dsv2lite-translation", "--expert_statistic_path",
                 "data/dumps/dsv2lite-law", "--ep_size", 8, "--num_slots", 72, "--max_moves", 2, "--bytes_per_slot", "1MiB"]
    replay = json.loads(eplb(*arguments, "--json", "--html", page_file))
    names = ["never", "trtllm", "search", "live", "oracle"]
    keys = """<script>for (const key of ["Home", "ArrowRight"])
        document.querySelector("#balance .plot").dispatchEvent(new KeyboardEvent("keydown", { key }));</script>"""
    driven = FOLDER / "driven-replay.html"
    driven.write_text(page_file.read_text().replace("</body>", keys + "</body>"))
    document, logged, requested = browse(driven, "#numbers", ["--dump-dom"])
    assert not logged and not requested, f"{logged} {requested}"
    page = Page(document)
    assert len(page.ids) == len(set(page.ids)), "an id appears twice"
    assert set(page.tables) == {"balance", "moves", "strategies"}, list(page.tables)
    rows = page.tables["balance"]
    assert rows[0] == ["iteration", *names] and rows[-1] == ["mean", *(ratio(replay[name]["balancedness"]) for name in names)]
    for place, (iteration, row) in enumerate(zip(replay["iterations"], rows[1:-1], strict=True)):
        assert row[0] == str(iteration)
        for name, cell in zip(names, row[1:], strict=True):
            assert_rounded(cell, ratio(replay[name]["iterations"][place]), f"{name}, iteration {iteration}")
    for plan, row in zip(replay["live"]["plans"], page.tables["moves"][1:], strict=True):
        assert row[:4] == [str(plan["iteration"]), count(plan["num_moves"]), str(plan["max_layer_moves"]), str(plan["num_layers"])]
        assert row[6] == plan["message"]
    for name, row in zip(names, page.tables["strategies"][1:], strict=True):
        of = replay[name]
        assert row[:3] == [name, ratio(of["balancedness"]), ratio(of["best_split_balancedness"])], row
        assert_rounded(row[3], f"{of['moves_per_layer']:.1f}", name)
    second = f"iteration {replay['iterations'][1]}: never {ratio(replay['never']['iterations'][1])}, "
    assert page.readouts["balance"][0].startswith(second), page.readouts["balance"]
    assert document.count(">dsv2lite-law</text>") == 1 and ">dsv2lite-translation</text>" not in document
    for theme, scheme in [("light", 1), ("dark", 0)]:
        shot = FOLDER / f"replay-{theme}.png"
        _, logged, requested = browse(page_file, "", [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1280,1700", f"--screenshot={shot}"])
        assert not logged and not requested and shot.stat().st_size > 50_000, f"{logged} {requested}"
    print(f"the page of a replay has {page_file.stat().st_size:,} bytes; its figures are the JSON's")


def main():
    check_replay()
    dump, config, page_file = full_size_dump(), FOLDER / "config.yaml", FOLDER / "report.html"
    eplb("generate", "--quiet", "--policy", "deepseek-global", "--expert_statistic_path", dump, "--output_path", config,
         "--ep_size", 72, "--num_slots", 288)
    arguments = ["report", "--expert_statistic_path", dump, "--ep_size", 72, "--config", config]
    start = time.monotonic()
    eplb(*arguments, "--html", page_file)
    seconds = time.monotonic() - start
    size = page_file.stat().st_size
    assert seconds < 3 and size < 1_000_000, f"{seconds:.2f} s, {size} bytes"
    report = json.loads(eplb(*arguments, "--json", "--per_expert"))

    # Keys move the cell of a heat map: two to the right and one down from the first cell.
    text = page_file.read_text()
    keys = """<script>for (const key of ["Home", "ArrowRight", "ArrowRight", "ArrowDown"])
        document.querySelector("#experts .plot").dispatchEvent(new KeyboardEvent("keydown", { key }));</script>"""
    driven = FOLDER / "driven.html"
    driven.write_text(text.replace("</body>", keys + "</body>"))
    document, logged, requested = browse(driven, "#numbers", ["--dump-dom"])
    assert not logged and not requested, f"{logged} {requested}"
    page = Page(document)
    check_figures(page, report)
    tokens = report["per_expert"]["tokens"]["4"][2]
    assert page.readouts["experts"][0].startswith(f"layer 4, expert 2: {count(tokens)} tokens, "), page.readouts["experts"]

    # A page that requests an address is logged and blocked. Without its policy the request is recorded.
    faulty = FOLDER / "faulty.html"
    faulty.write_text(text.replace("</body>", '<img src="http://page.invalid/x.png"></body>'))
    _, logged, requested = browse(faulty, "", ["--dump-dom"])
    assert any("Content Security Policy" in line for line in logged) and not requested, f"{logged} {requested}"
    faulty.write_text(text.replace('http-equiv="Content-Security-Policy"', "").replace("</body>", '<img src="http://page.invalid/x.png"></body>'))
    _, _, requested = browse(faulty, "", ["--dump-dom"])
    assert requested == {"http://page.invalid/x.png"}, requested

    for theme, scheme in [("light", 1), ("dark", 0)]:
        shot = FOLDER / f"{theme}.png"
        _, logged, requested = browse(page_file, "", [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1280,3900", f"--screenshot={shot}"])
        assert not logged and not requested and shot.stat().st_size > 100_000, f"{logged} {requested}"
    print(f"the page of 58 x 256 x 100 is made in {seconds:.2f} s and has {size:,} bytes; its figures are the JSON's")


main()
