"""The endpoint scraped for real, and every family held against Prometheus' naming rules."""

from __future__ import annotations

import builtins
import contextlib
import http.client
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alpose.runtime.drift import DriftReport
from alpose.runtime.errors import ConfigError, MissingExtraError
from alpose.runtime.telemetry import web
from alpose.runtime.telemetry.counters import OTHER_METRICS, Count
from alpose.runtime.telemetry.prometheus import LATENCY_BOUNDS_S, MetricsServer, serve, write_textfile
from alpose.runtime.telemetry.stats import EngineState, Meters, QueueState, Stats

from ...fakes import disk

parser: Any = pytest.importorskip("prometheus_client.parser")

UNITS = ("_seconds", "_bytes", "_ratio", "_pixels", "_info")
DIMENSIONLESS = {
    "alpose_up", "alpose_trigger_threshold", "alpose_queue_records", "alpose_queue_waiting_frames",
    "alpose_queue_failing", "alpose_drift_testing", "alpose_drift_alarm", "alpose_drift_evidence_log10",
    "alpose_drift_limit_log10", "alpose_engine_fallback",
}  # fmt: skip
"""Counts of things, and flags of 0 or 1: there is no unit to name."""

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def make(meters: Meters | None = None, **changes: Any) -> Stats:
    return (meters or used()).stats(**GIVEN | changes)


GIVEN: dict[str, Any] = {
        "device": "car-17", "camera": "", "bundle": 'a "driver"\n', "bundle_sha256": "ab" * 32, "threshold": 0.42,
        "queue": QueueState(path="flagged.db", records=12, bytes=4096, max_bytes=1 << 20, oldest_s=1.7e9, waiting=2),
        "drift": DriftReport(testing=True, alarm=True, since_s=3.0, direction="fewer failures", log10_evidence=2.5,
                             observed=77),
        "engine": EngineState(name="onnxruntime cpu", provider="CPUExecutionProvider", asked="cpu",
                              golden_deviation={"keypoints": 0.25}),
}  # fmt: skip


def used() -> Meters:
    meters = Meters()
    for place in range(8):
        meters.frame("flagged" if place > 5 else "passed", place / 8, crop_s=1e-3, inference_s=place * 1e-3,
                     decision_s=2e-5, total_s=9e-3)  # fmt: skip
    meters.counters.add("dropped_frames_total", 3, reason="disk_full")
    meters.counters.add("something_new_total", 5, kind="x", place="y")
    return meters


def parsed(text: str) -> tuple[dict[str, Any], Samples]:
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    samples: Samples = {}
    for family in families.values():
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in samples, f"{key} stands twice"
            samples[key] = sample.value
    return families, samples


def scrape(server: MetricsServer) -> str:
    assert server.url == f"http://127.0.0.1:{server.port}/metrics"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    assert answer.status == 200
    assert str(answer.getheader("Content-Type")).startswith("text/plain")
    return text


@pytest.fixture(scope="module")
def scraped() -> Iterator[tuple[dict[str, Any], Samples]]:
    with serve(make, 0) as server:
        yield parsed(scrape(server))


def value(samples: Samples, name: str, /, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def test_a_scrape_gives_what_the_monitor_counted(scraped: tuple[dict[str, Any], Samples]) -> None:
    _, samples = scraped
    assert value(samples, "alpose_up") == 1
    assert value(samples, "alpose_frames_total", decision="passed") == 6
    assert value(samples, "alpose_frames_total", decision="flagged") == 2
    assert value(samples, "alpose_frames_total", decision="control") == 0
    assert value(samples, "alpose_dropped_frames_total", reason="disk_full") == 3
    assert value(samples, "alpose_dropped_frames_total", reason="handover_full") == 0
    assert value(samples, "alpose_something_new_total", kind="x", place="y") == 5
    assert value(samples, "alpose_queue_records") == 12
    assert value(samples, "alpose_queue_bytes") == 4096
    assert value(samples, "alpose_queue_oldest_timestamp_seconds") == 1.7e9
    assert value(samples, "alpose_queue_failing") == 0
    assert value(samples, "alpose_trigger_threshold") == 0.42
    assert value(samples, "alpose_selftest_max_error_pixels") == 0.25
    assert value(samples, "alpose_drift_alarm", direction="fewer_failures") == 1
    assert value(samples, "alpose_drift_alarm", direction="more_failures") == 0
    assert value(samples, "alpose_drift_scores_total") == 77
    assert value(samples, "alpose_bundle_info", name='a "driver"\n', sha256="ab" * 32) == 1


def test_histograms_are_cumulative_and_exact(scraped: tuple[dict[str, Any], Samples]) -> None:
    _, samples = scraped
    assert value(samples, "alpose_predicted_failure_ratio_count") == 8
    assert value(samples, "alpose_predicted_failure_ratio_sum") == pytest.approx(sum(n / 8 for n in range(8)))
    assert value(samples, "alpose_predicted_failure_ratio_bucket", le="0.5") == 4
    assert value(samples, "alpose_inference_seconds_bucket", le="0.0025") == 3
    assert value(samples, "alpose_inference_seconds_bucket", le="0.005") == 6
    assert value(samples, "alpose_inference_seconds_bucket", le="+Inf") == 8
    assert value(samples, "alpose_inference_seconds_sum") == pytest.approx(0.028)
    counts = [value(samples, "alpose_inference_seconds_bucket", le=repr(bound)) for bound in LATENCY_BOUNDS_S]
    assert counts == sorted(counts)


def test_names_types_and_units_follow_the_rules(scraped: tuple[dict[str, Any], Samples]) -> None:
    families, _ = scraped
    assert len(families) > 20
    for name, family in families.items():
        assert name.startswith("alpose_")
        assert family.type in ("counter", "gauge", "histogram")
        assert family.documentation.endswith(".")
        if family.type == "counter":
            assert all(sample.name == f"{name}_total" for sample in family.samples)
            continue
        assert not name.endswith(("_total", "_count", "_sum", "_bucket")), "a suffix that means something else"
        assert name.endswith(UNITS) != (name in DIMENSIONLESS)
        if family.type == "gauge" and name.endswith("_info"):
            assert [sample.value for sample in family.samples] == [1.0]
    assert not [name for name in families if "milli" in name or "_ms" in name or "mega" in name]


def test_labels_have_few_values(scraped: tuple[dict[str, Any], Samples]) -> None:
    families, samples = scraped
    allowed = {"decision", "reason", "where", "what", "kind", "place", "direction", "le",
               "backend", "provider", "asked", "name", "sha256", "device"}  # fmt: skip
    for family in families.values():
        assert {key for sample in family.samples for key in sample.labels} <= allowed, family.name
    assert len(samples) < 150


def test_what_is_not_known_has_no_sample() -> None:
    nothing = make(
        Meters(), queue=None, threshold=None, drift=DriftReport(testing=False),
        engine=EngineState(name="e", provider="p", golden_deviation={"keypoints": math.inf}),
    )  # fmt: skip
    with serve(lambda: nothing, 0) as server:
        _, samples = parsed(scrape(server))
    names = {name for name, _ in samples}
    assert not names & {"alpose_trigger_threshold", "alpose_selftest_max_error_pixels", "alpose_queue_records",
                        "alpose_drift_alarm"}  # fmt: skip
    assert value(samples, "alpose_drift_testing") == 0
    assert value(samples, "alpose_frames_total", decision="passed") == 0


def test_of_several_people_each_has_an_alarm_of_their_own() -> None:
    quiet = DriftReport(testing=True, stream="driver")
    loud = DriftReport(testing=True, alarm=True, direction="more failures", stream="codriver")
    both = replace(loud, streams={"driver": quiet, "codriver": loud})
    with serve(lambda: make(used(), drift=both), 0) as server:
        _, samples = parsed(scrape(server))
    assert value(samples, "alpose_drift_alarm", direction="more_failures", stream="codriver") == 1
    assert value(samples, "alpose_drift_alarm", direction="more_failures", stream="driver") == 0


def test_every_scrape_reads_anew() -> None:
    meters = used()
    with serve(lambda: make(meters), 0) as server:
        _, before = parsed(scrape(server))
        meters.frame("passed", 0.5, crop_s=0, inference_s=0, decision_s=0, total_s=0)
        _, after = parsed(scrape(server))
    name = "alpose_frames_total"
    assert value(after, name, decision="passed") == value(before, name, decision="passed") + 1


def test_stats_that_cannot_be_read_say_so_and_stop_nothing() -> None:
    def broken() -> Stats:
        raise RuntimeError("closed")

    with serve(broken, 0) as server:
        _, samples = parsed(scrape(server))
    assert samples == {("alpose_up", ()): 0.0}


def test_it_listens_on_the_loopback_alone_unless_it_is_told_otherwise() -> None:
    with serve(make, 0) as server:
        assert server._server.server_address[0] == "127.0.0.1"


def test_a_taken_port_is_a_clear_error_and_a_closed_server_frees_it() -> None:
    first = serve(make, 0)
    with pytest.raises(ConfigError, match=rf"127.0.0.1 port {first.port}: the port is taken"):
        serve(make, first.port)
    first.close()
    first.close()
    with serve(make, first.port) as again:
        scrape(again)
    assert not [thread for thread in threading.enumerate() if thread in (first._thread, again._thread)]


@pytest.mark.parametrize(("port", "host"), [(-1, "127.0.0.1"), (70_000, "127.0.0.1"), (0, "192.0.2.1")])
def test_an_address_that_cannot_be_used_is_a_clear_error(port: int, host: str) -> None:
    with pytest.raises(ConfigError, match=r"port for metrics is a number|Check that the address"):
        serve(make, port, host)


def test_the_textfile_says_the_same_and_is_never_half_there(tmp_path: Path) -> None:
    path, stats = tmp_path / "alpose.prom", make()
    write_textfile(stats, path)
    with serve(lambda: stats, 0) as server:
        assert path.read_text() == scrape(server)

    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        write_textfile(stats, path)
    stop.set()
    reader.join()
    assert seen == {path.read_text()}
    assert os.listdir(tmp_path) == ["alpose.prom"]


def test_a_textfile_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        write_textfile(make(), tmp_path / "absent" / "alpose.prom")
    with pytest.raises(ConfigError, match=r"must end with \.prom"):
        write_textfile(make(), tmp_path / "alpose.txt")
    (tmp_path / "folder.prom").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_textfile(make(), tmp_path / "folder.prom")
    assert os.listdir(tmp_path) == ["folder.prom"]
    (tmp_path / "full").mkdir()
    with disk.mounted(tmp_path / "full", "size=8k"):
        disk.fill(tmp_path / "full")
        with pytest.raises(OSError, match=r"No space left on device: .*alpose\.prom"):
            write_textfile(make(), tmp_path / "full" / "alpose.prom")
        assert os.listdir(tmp_path / "full") == ["ballast"]


def test_two_cameras_of_one_device_stay_apart(tmp_path: Path) -> None:
    """node_exporter reads all files of its folder as one: a sample must not stand in two of them."""
    both: list[Any] = []
    for camera in ("front", "back"):
        write_textfile(make(camera=camera), tmp_path / f"{camera}.prom")
        both += parsed((tmp_path / f"{camera}.prom").read_text())[1]
    assert len(set(both)) == len(both)
    assert all(dict(labels)["camera"] in ("front", "back") for _, labels in both)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = builtins.__import__

    def hidden(name: str, *rest: Any, **named: Any) -> Any:
        if name.split(".")[0] == "prometheus_client":
            raise ImportError(name)
        return found(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", hidden)
    for use in (lambda: serve(make, 0), lambda: write_textfile(make(), tmp_path / "x.prom")):
        with pytest.raises(MissingExtraError, match=r"alpose\[metrics\]"):
            use()


def test_the_page_lists_every_metric_and_no_other(scraped: tuple[dict[str, Any], Samples]) -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"
    if not page.exists():
        pytest.skip("the tests of a wheel come without docs")
    listed = {
        line.split("`")[1].split("{")[0] for line in page.read_text().splitlines() if line.startswith("| `alpose_")
    }
    exported = {family.name + ("_total" if family.type == "counter" else "") for family in scraped[0].values()}
    optional = {"alpose_something_new_total"}
    known = {"alpose_dropped_pictures_total", "alpose_write_errors_total", "alpose_evicted_total",
             "alpose_unoccupied_frames_total", "alpose_dropped_boxes_total", "alpose_mistaken_people_total", "alpose_source_faults_total", "alpose_fallback_total", "alpose_clock_backwards_total", "alpose_internal_errors_total"}  # fmt: skip
    assert listed == (exported - optional) | known


def test_the_names_that_an_app_may_not_take_are_those_of_the_page(scraped: tuple[dict[str, Any], Samples]) -> None:
    others = {name.removeprefix("alpose_") for name, family in scraped[0].items() if family.type != "counter"}
    assert others == OTHER_METRICS


def test_a_client_that_hangs_is_cut_off_and_too_many_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "REQUEST_S", 0.2)
    with serve(make, 0) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(12)]
        assert [client.recv(1) for client in idle] == [b""] * 12  # turned away, or cut off after the time
        slow = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        slow.sendall(b"GET /metrics HTTP/1.1\r\n")
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 5:  # a byte now and then is no progress
                slow.sendall(b"X")
                time.sleep(0.05)
        assert time.monotonic() - began < 5
        scrape(server)
        for client in (*idle, slow):
            client.close()


def test_counters_of_a_file_that_have_no_name_of_a_metric_are_left_out() -> None:
    strange = {Count("a\nb"): 1, Count("Evil total"): 2, Count("fine_total", (("reason", 'a"\n'),)): 3}
    with serve(lambda: used().stats(more_counts=strange, **GIVEN), 0) as server:
        _, samples = parsed(scrape(server))
    assert value(samples, "alpose_fine_total", reason='a"\n') == 3
    assert not [name for name, _ in samples if "vil" in name or "\n" in name]
