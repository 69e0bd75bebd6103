"""The rules and the dashboard that ship in ``contrib/``: held against promtool, and against a real Prometheus that scrapes a Monitor."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.runtime import Monitor

from ...fakes import scripted

ROOT = Path(__file__).resolve().parents[3]
RULES = ROOT / "contrib" / "prometheus" / "alpose.rules.yml"
DASHBOARD = ROOT / "contrib" / "grafana" / "alpose.json"
PAGE = ROOT / "docs" / "metrics.md"

pytestmark = pytest.mark.skipif(not RULES.exists(), reason="the tests of a wheel come without contrib")
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="Debian's package prometheus, with promtool, is not installed",
)


def panels() -> list[Any]:
    return list(json.loads(DASHBOARD.read_text())["panels"])


def expressions() -> list[str]:
    """Every query of the dashboard, with its variables as Grafana would put them in."""
    value = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    found += [one["expr"] for one in value["annotations"]["list"]]
    return [
        expr.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$camera", ".*") for expr in found
    ]


def test_every_metric_in_rules_and_dashboard_is_one_that_a_monitor_has() -> None:
    listed = {
        line.split("`")[1].split("{")[0] for line in PAGE.read_text().splitlines() if line.startswith("| `alpose_")
    }
    histograms = {line.split("`")[1] for line in PAGE.read_text().splitlines() if "| histogram |" in line}
    known = listed | {f"{name}{suffix}" for name in histograms for suffix in ("_bucket", "_sum", "_count")}
    for text in (RULES.read_text(), "\n".join(expressions())):
        named = set(re.findall(r"\balpose_[a-z0-9_]+", text))
        assert len(named) > 10
        assert named <= known


def test_the_dashboard_fits_together() -> None:
    places: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in panels()}) == len(panels())
    for panel in panels():
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not own & places, f"{panel['title']} lies over another panel"
        assert at["x"] + at["w"] <= 24
        places |= own
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all("$instance" in target["expr"] and "$camera" in target["expr"] for target in panel["targets"][:1])


@needs_prometheus
def test_promtool_takes_the_rules_and_every_alert_fires_when_it_should(tmp_path: Path) -> None:
    subprocess.run(["promtool", "check", "rules", RULES], check=True, capture_output=True)
    cases = (ROOT / "tests" / "fixtures" / "alpose-rules-test.yml").read_text()
    (tmp_path / "test.yml").write_text(cases.replace("RULES", str(RULES)))
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    for alert in re.findall(r"alert: (\w+)", RULES.read_text()):
        assert len(re.findall(rf"alertname: {alert}\b", cases)) >= 2, (
            f"{alert}: one case in which it fires, one in which not"
        )


class Server:
    """A real Prometheus that scrapes one address five times a second."""

    def __init__(self, folder: Path, target: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.at = f"127.0.0.1:{free.getsockname()[1]}"
        (folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}\n"
            f"rule_files: ['{RULES}']\n"
            f"scrape_configs: [{{job_name: alpose, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        self._process = subprocess.Popen(
            ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address={self.at}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def ask(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{self.at}/api/v1/{path}?{query}", timeout=10) as answer:
            value = json.load(answer)
        assert value["status"] == "success"
        return value["data"]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[[str], Server]]:
    made: list[Server] = []

    def serve(target: str) -> Server:
        made.append(Server(tmp_path, target))
        return made[-1]

    yield serve
    for one in made:
        one.close()


@needs_prometheus
def test_a_real_prometheus_scrapes_a_monitor_evaluates_the_rules_and_raises_an_alert(
    make: Callable[..., Monitor], prometheus: Callable[[str], Server], tmp_path: Path
) -> None:
    broken = False

    def say(place: int) -> dict[str, Any]:
        return {"failure_probability": np.nan if broken else (place % 10) / 10}

    monitor = make(tmp_path / "q.db", "Threshold(0.8)", scripted.Scripted(say), camera="seat", metrics_port=0)
    assert monitor.metrics_url is not None
    server = prometheus(urllib.parse.urlsplit(monitor.metrics_url).netloc)
    records = ("alpose:frames:rate5m", "alpose:predicted_failure:mean5m", "alpose:queue_bytes:ratio")

    def watch_until(done: Callable[[], bool]) -> None:
        for _ in range(60):
            for _ in range(10):
                time.sleep(0.05)
                monitor(np.full((48, 64, 3), 100, dtype=np.uint8))
            try:
                if done():
                    return
            except OSError:  # it is still starting
                continue
        raise AssertionError("not within 30 seconds")

    def ratios() -> list[float]:
        samples = [server.ask("query", query=record)["result"] for record in records]
        return [float(sample[0]["value"][1]) if sample else 0.0 for sample in samples]

    def alerts() -> list[Any]:
        return [one for one in server.ask("alerts")["alerts"] if one["state"] == "firing"]

    watch_until(lambda: all(ratios()))
    assert not alerts(), "a good stream raises nothing"
    broken = True
    watch_until(lambda: bool(alerts()))

    firing = {one["labels"]["alertname"]: one for one in alerts()}
    assert set(firing) == {"AlposeScoresNotFinite"}
    assert firing["AlposeScoresNotFinite"]["labels"]["camera"] == "seat"
    assert "seat: the engine gives answers" in firing["AlposeScoresNotFinite"]["annotations"]["summary"]
    groups = server.ask("rules")["groups"]
    assert [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"] == []

    empty = [expr for expr in expressions() if not server.ask("query", query=expr)["result"]]
    assert all(re.search("evicted|internal_errors|source_faults|drift_alarm", expr) for expr in empty), empty
