"""Golden frames against engines that answer rightly, and against engines that each answer wrongly in one way.

Shapes: G golden frames, N rows, S crop side, J joints, D dimensions.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpose.runtime.bundle.golden import Golden, GoldenReport, Tolerances, compare, run_golden
from alpose.runtime.errors import AlposeError, DataError, WrongAnswerError
from alpose.runtime.types import OUTPUT_NAMES, Engine, Outputs

G, S, J, D = 6, 8, 4, 5
TOLERANCES = Tolerances(keypoints_px=0.05, score=0.01, predicted_loss=0.1, probability=0.02, embedding=0.03)
Twist = Callable[[Outputs, npt.NDArray[np.intp]], Outputs]


def make_golden() -> Golden:
    rng = np.random.default_rng(3)
    frames_GHW3 = rng.integers(0, 256, (G, S, S, 3), dtype=np.uint8)
    frames_GHW3[:, 0, 0, 0] = np.arange(G)  # the fake engine knows a frame by its first number
    scores_GJ = rng.uniform(0.4, 1.0, (G, J)).astype(np.float32)
    scores_GJ[2, 1] = 0.1  # one joint that is too uncertain to be judged
    embedding_GD = rng.normal(size=(G, D))
    embedding_GD /= np.linalg.norm(embedding_GD, axis=1, keepdims=True)
    return Golden(
        frames_GHW3,
        Outputs(
            rng.uniform(0, S, (G, J, 2)).astype(np.float32),
            scores_GJ,
            rng.normal(size=G).astype(np.float32),
            rng.uniform(0, 1, G).astype(np.float32),
            embedding_GD.astype(np.float32),
        ),
        TOLERANCES,
    )


class Fake:
    """Answers from a table; ``twist`` spoils an answer, given the frame of each row."""

    name = "fake"

    def __init__(self, golden: Golden, twist: Twist = lambda outputs, frame_N: outputs) -> None:
        self.golden, self.twist = golden, twist

    def __call__(self, frames_NHW3: npt.NDArray[np.uint8]) -> Outputs:
        frame_N = frames_NHW3[:, 0, 0, 0].astype(np.intp)
        frames_NHW3[:] = 0  # the frames of a call are the engine's to spoil
        return self.twist(Outputs(*(value[frame_N] for value in self.golden.expected.named().values())), frame_N)


def check_of(report: GoldenReport, output: str) -> Any:
    return next(check for check in report.checks if check.output == output)


def failed(report: GoldenReport) -> list[str]:
    return [check.output for check in report.checks if not check.passed]


def npz(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_a_right_engine_passes_and_the_report_reads_like_a_table() -> None:
    engine: Engine = Fake(make_golden())
    report = run_golden(engine, make_golden(), batch=4)

    assert report.passed
    assert report.require() is report
    assert [check.output for check in report.checks] == list(OUTPUT_NAMES)
    assert [check.deviation for check in report.checks] == [0.0] * 5
    lines = str(report).splitlines()
    assert lines[0] == "golden frames on fake: passed"
    assert lines[1].split() == ["output", "worst", "deviation", "tolerance", "frame", "where", "verdict"]
    assert lines[2].split()[:5] == ["keypoints", "0", "px", "0.05", "px"]
    assert lines[7] == "6 frames, each alone and in batches of 4; frame 3 in all 4 rows"
    assert "1 of 24 joints" in lines[8]
    assert max(len(line) for line in lines) < 100


def test_keypoints_shifted_by_a_pixel_fail_and_nothing_else_does() -> None:
    def shift(outputs: Outputs, frame_N: npt.NDArray[np.intp]) -> Outputs:
        outputs.keypoints_NJ2[frame_N == 4, 2, 0] += 1.0
        return outputs

    report = run_golden(Fake(make_golden(), shift), make_golden())

    assert failed(report) == ["keypoints"]
    check = check_of(report, "keypoints")
    assert check.frame == 4
    assert check.deviation == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(
        WrongAnswerError, match=r"(?s)on fake: FAILED.*keypoints +1 px +0\.05 px +4 .*refused"
    ) as caught:
        report.require()
    assert isinstance(caught.value, AlposeError)


def test_a_joint_without_an_opinion_may_move_and_the_report_says_so() -> None:
    def wander(outputs: Outputs, frame_N: npt.NDArray[np.intp]) -> Outputs:
        outputs.keypoints_NJ2[frame_N == 2, 1] += 3.0
        return outputs

    report = run_golden(Fake(make_golden(), wander), make_golden())

    assert report.passed
    assert any("not judged; the farthest moved 4.24 px (frame 2)" in note for note in report.notes)


def test_a_golden_file_that_judges_no_joint_says_so() -> None:
    golden = make_golden()
    low = replace(golden.expected, scores_NJ=np.full((G, J), 0.2, np.float32))

    report = compare(replace(golden, expected=low), low)

    assert report.passed
    assert "all 24 joints have an expected score below 0.3 and are not judged" in str(report)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("output", OUTPUT_NAMES)
def test_a_number_that_is_not_finite_fails_wherever_it_stands(output: str, value: float) -> None:
    def spoil(outputs: Outputs, frame_N: npt.NDArray[np.intp]) -> Outputs:
        array = outputs.named()[output]
        flat = array.reshape(len(frame_N), -1)  # a view: row 2 starts with the joint that is not judged
        flat[frame_N == 2, -1 if output != "keypoints" else 2] = value
        return outputs

    report = run_golden(Fake(make_golden(), spoil), make_golden())

    assert failed(report) == [output]
    assert check_of(report, output).frame == 2
    assert "FAILED: not finite: 1 of " in str(report)


FORMS: dict[str, tuple[str, Twist]] = {
    "float64": ("scores", lambda o, _: replace(o, scores_NJ=o.scores_NJ.astype(np.float64))),
    "float16": ("embedding", lambda o, _: replace(o, embedding_ND=o.embedding_ND.astype(np.float16))),
    "an axis too many": ("predicted_loss", lambda o, _: replace(o, predicted_loss_N=o.predicted_loss_N[:, None])),
    "a row missing": (
        "failure_probability",
        lambda o, _: replace(o, failure_probability_N=o.failure_probability_N[1:]),
    ),
    "joints first": ("keypoints", lambda o, _: replace(o, keypoints_NJ2=o.keypoints_NJ2.transpose(1, 0, 2))),
    "a list": ("scores", lambda o, _: replace(o, scores_NJ=o.scores_NJ.tolist())),
    "half the embedding": ("embedding", lambda o, _: replace(o, embedding_ND=o.embedding_ND[:, :2])),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_of_the_wrong_form_fails_with_both_forms_named(form: str) -> None:
    output, twist = FORMS[form]

    report = run_golden(Fake(make_golden(), twist), make_golden(), batch=4)

    assert failed(report) == [output]
    assert "expected" in check_of(report, output).problem
    assert check_of(report, output).frame is None
    assert not compare(make_golden(), twist(make_golden().expected, np.arange(G))).passed


@pytest.mark.parametrize("output", OUTPUT_NAMES)
def test_one_wrong_row_of_a_batch_fails_although_every_frame_alone_is_right(output: str) -> None:
    def third_row(outputs: Outputs, frame_N: npt.NDArray[np.intp]) -> Outputs:
        if len(frame_N) > 2:
            outputs.named()[output][2] += 0.5
        return outputs

    report = run_golden(Fake(make_golden(), third_row), make_golden(), batch=4)

    assert failed(report) == [output]
    assert "row 2" in check_of(report, output).where
    assert run_golden(Fake(make_golden(), third_row), make_golden(), batch=1).passed


def test_rows_that_drift_apart_fail_although_each_is_near_the_expected_answer() -> None:
    def drift(outputs: Outputs, frame_N: npt.NDArray[np.intp]) -> Outputs:
        if len(set(frame_N.tolist())) == 1 and len(frame_N) > 1:  # only where one frame fills the batch
            sign_N = np.where(np.arange(len(frame_N)) % 2, 1.0, -1.0)
            outputs.keypoints_NJ2[:, 0, 0] += (0.04 * sign_N).astype(np.float32)
        return outputs

    report = run_golden(Fake(make_golden(), drift), make_golden(), batch=4)

    assert failed(report) == ["keypoints"]
    assert check_of(report, "keypoints").deviation == pytest.approx(0.08, abs=1e-5)
    assert "against row 0" in check_of(report, "keypoints").where


def test_rows_in_the_wrong_order_fail() -> None:
    twist: Twist = lambda outputs, _: Outputs(*(value[::-1].copy() for value in outputs.named().values()))  # noqa: E731

    assert failed(run_golden(Fake(make_golden(), twist), make_golden(), batch=4)) == list(OUTPUT_NAMES)
    assert run_golden(Fake(make_golden(), twist), make_golden(), batch=1).passed


def test_an_engine_that_gives_the_same_buffer_out_twice_fails() -> None:
    buffers: dict[int, Outputs] = {}

    def reuse(outputs: Outputs, frame_N: npt.NDArray[np.intp]) -> Outputs:
        buffer = buffers.setdefault(len(frame_N), outputs)
        for name, value in outputs.named().items():
            buffer.named()[name][:] = value
        return buffer

    assert not run_golden(Fake(make_golden(), reuse), make_golden(), batch=1).passed


def test_an_engine_for_single_frames_is_judged_without_batches_and_the_report_says_so() -> None:
    def single(outputs: Outputs, frame_N: npt.NDArray[np.intp]) -> Outputs:
        assert len(frame_N) == 1
        return outputs

    report = run_golden(Fake(make_golden(), single), make_golden(), batch=1)

    assert report.passed
    assert report.notes[0] == "6 frames, each alone; no batch was tried"
    with pytest.raises(DataError, match="at least 1, got 0"):
        run_golden(Fake(make_golden()), make_golden(), batch=0)


def test_what_an_engine_raises_is_passed_on() -> None:
    def broken(outputs: Outputs, frame_N: npt.NDArray[np.intp]) -> Outputs:
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        run_golden(Fake(make_golden(), broken), make_golden())


@given(st.sampled_from(OUTPUT_NAMES), st.integers(0, G - 1), st.floats(0.0, 0.98) | st.floats(1.02, 40.0))
def test_the_verdict_turns_at_the_tolerance(output: str, frame: int, share: float) -> None:
    golden = make_golden()
    moved = golden.tolerances.by_output()[output] * share
    arrays = {name: value.copy() for name, value in golden.expected.named().items()}
    arrays[output].reshape(G, -1)[frame, 0] += moved

    report = compare(golden, Outputs(*arrays.values()))

    assert report.passed == (share < 1)
    assert check_of(report, output).deviation == pytest.approx(moved, abs=1e-5)
    if moved > 1e-4:
        assert check_of(report, output).frame == frame
    assert [check.deviation for check in report.checks if check.output != output] == [0.0] * 4


def test_a_report_is_plain_json_also_when_numbers_are_not_finite() -> None:
    outputs = make_golden().expected
    spoiled = replace(outputs, predicted_loss_N=np.full(G, np.nan, np.float32))

    value = json.loads(json.dumps(compare(make_golden(), spoiled, engine="here").to_json(), allow_nan=False))

    assert value["engine"] == "here"
    assert not value["passed"]
    assert [check["deviation"] for check in value["checks"]] == [0.0, 0.0, None, 0.0, 0.0]


def test_a_golden_file_reads_back_as_it_was() -> None:
    golden = make_golden()

    back = Golden.from_bytes(npz(golden.arrays()))

    assert back.tolerances == golden.tolerances
    assert (back.size_px, back.joints, back.dimensions, len(back)) == ((S, S), J, D, G)
    for name, value in golden.arrays().items():
        np.testing.assert_array_equal(back.arrays()[name], value)
    with pytest.raises(ValueError, match="read-only"):
        back.frames_GHW3[0] = 0
    given = back.frames_GHW3.copy()
    Golden(given, back.expected, TOLERANCES)
    given[0] = 0  # still the caller's


class Trap:
    """Unpickling it ends the test run."""

    def __reduce__(self) -> Any:
        return (exit, (13,))


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays.pop(name)


def setting(name: str, value: Any, place: Any = ...) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        if place is ...:
            arrays[name] = value
        else:
            arrays[name] = arrays[name].copy()
            arrays[name][place] = value

    return change


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "an array is missing": (without("scores_GJ"), r"missing \['scores_GJ'\]"),
    "an array too many": (setting("notes", np.zeros(3)), r"unknown \['notes'\]"),
    "a tolerance is missing": (without("tol_score"), r"missing \['tol_score'\]"),
    "NaN expected": (setting("keypoints_GJ2", np.nan, (3, 0, 1)), "expected keypoints of frame 3 .* not finite"),
    "infinity expected": (setting("predicted_loss_G", np.inf, 5), "expected predicted_loss of frame 5 .* not finite"),
    "no frames": (setting("frames_GSS3", np.zeros((0, S, S, 3), np.uint8)), r"frames .* \(0, 8, 8, 3\)"),
    "grey frames": (setting("frames_GSS3", np.zeros((G, S, S, 1), np.uint8)), r"uint8 \(G, H, W, 3\)"),
    "float frames": (setting("frames_GSS3", np.zeros((G, S, S, 3), np.float32)), "must be uint8, got float32"),
    "float64 answers": (setting("scores_GJ", np.zeros((G, J))), "scores_GJ must be float32, got float64"),
    "big-endian answers": (setting("scores_GJ", np.zeros((G, J), ">f4")), "scores_GJ must be float32"),
    "too few rows": (setting("scores_GJ", np.zeros((G - 1, J), np.float32)), r"scores is float32 \(5, 4\), expected"),
    "other joints": (setting("keypoints_GJ2", np.zeros((G, J + 1, 2), np.float32)), r"keypoints is .* \(6, 5, 2\)"),
    "flat embedding": (setting("embedding_GD", np.zeros(G, np.float32)), "two axes"),
    "no embedding": (setting("embedding_GD", np.zeros((G, 0), np.float32)), "0 dimensions"),
    "no unit length": (setting("embedding_GD", np.ones((G, D), np.float32)), "frame 0 has length 2.236"),
    "probability above 1": (setting("failure_probability_G", 1.5, 0), r"in \[0, 1\], got .* to 1.5"),
    "negative tolerance": (setting("tol_keypoints_px", np.float64(-1)), "keypoints_px must be finite and not negative"),
    "tolerance NaN": (setting("tol_score", np.float64(np.nan)), "score must be finite"),
    "tolerance that judges nothing": (setting("tol_probability", np.float64(1)), "judge nothing"),
    "a list of tolerances": (setting("tol_score", np.zeros(2)), r"tol_score must be one floating-point number.*\(2,\)"),
    "pickled object": (setting("scores_GJ", np.array([Trap()], dtype=object)), "allow_pickle"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_golden_file_is_refused_with_the_array_named(damage: str) -> None:
    change, message = DAMAGE[damage]
    arrays = make_golden().arrays()
    change(arrays)

    with pytest.raises(DataError, match=f"(?s)^some.npz holds no usable golden frames: .*{message}"):
        Golden.from_bytes(npz(arrays), "some.npz")


WHOLE = npz(make_golden().arrays())


@given(st.integers(0, len(WHOLE) - 1))
def test_a_truncated_golden_file_is_refused(length: int) -> None:
    with pytest.raises(DataError, match=r"golden\.npz holds no usable golden frames"):
        Golden.from_bytes(WHOLE[:length])


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="no usable golden frames"):
        Golden.from_bytes(content)


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_harmless(place: int, mask: int) -> None:
    """The archive checks the arrays, not all of its own fields; the sha256 in the manifest covers those."""
    spoiled = bytearray(WHOLE)
    spoiled[place] ^= mask
    try:
        back = Golden.from_bytes(bytes(spoiled))
    except DataError:
        return
    for name, value in make_golden().arrays().items():
        np.testing.assert_array_equal(back.arrays()[name], value)


def test_an_entry_that_is_no_array_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(WHOLE)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(name, b"scores" if name == "scores_GJ.npy" else source.read(name))

    with pytest.raises(DataError, match="scores_GJ"):
        Golden.from_bytes(buffer.getvalue())


def test_an_archive_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alpose.runtime.bundle.golden.MAX_BYTES", 1000)

    with pytest.raises(DataError, match=r"unpacks to .* more than 1000"):
        Golden.from_bytes(WHOLE)


def test_deviations_are_the_plain_ones() -> None:
    """Against a loop over every number."""
    golden, rng = make_golden(), np.random.default_rng(9)
    noisy = Outputs(*(value + rng.normal(0, 0.3, value.shape).astype(np.float32)
                      for value in golden.expected.named().values()))  # fmt: skip

    report = compare(golden, noisy)

    worst = dict.fromkeys(OUTPUT_NAMES, 0.0)
    for g in range(G):
        for j in range(J):
            if golden.expected.scores_NJ[g, j] >= 0.3:
                x, y = (float(value) for value in noisy.keypoints_NJ2[g, j] - golden.expected.keypoints_NJ2[g, j])
                worst["keypoints"] = max(worst["keypoints"], math.sqrt(x * x + y * y))
            difference = abs(float(noisy.scores_NJ[g, j] - golden.expected.scores_NJ[g, j]))
            worst["scores"] = max(worst["scores"], difference)
        for name in ("predicted_loss", "failure_probability"):
            difference = abs(float(noisy.named()[name][g] - golden.expected.named()[name][g]))
            worst[name] = max(worst[name], difference)
        steps = [float(value) for value in noisy.embedding_ND[g] - golden.expected.embedding_ND[g]]
        worst["embedding"] = max(worst["embedding"], math.sqrt(sum(step * step for step in steps)))
    assert {check.output: check.deviation for check in report.checks} == pytest.approx(worst, rel=1e-5)


# --- the sixth output


def with_confidence() -> Golden:
    golden = make_golden()
    confidence_GJ = np.linspace(0, 1, G * J, dtype=np.float32).reshape(G, J)
    expected = dataclasses.replace(golden.expected, confidence_NJ=confidence_GJ)
    return Golden(golden.frames_GHW3, expected, dataclasses.replace(TOLERANCES, confidence=0.01))


def test_confidence_is_judged_where_the_bundle_has_it_and_survives_the_file() -> None:
    golden = with_confidence()
    read = Golden.from_bytes(npz(golden.arrays()))
    assert read.expected.confidence_NJ is not None
    assert np.array_equal(read.expected.confidence_NJ, golden.expected.confidence_NJ)  # type: ignore[arg-type]
    report = run_golden(Fake(read), read)
    assert report.passed
    assert [check.output for check in report.checks] == [*OUTPUT_NAMES, "confidence"]

    def off(outputs: Outputs, _: Any) -> Outputs:
        outputs.confidence_NJ[0, 1] += 0.02  # type: ignore[index]
        return outputs

    assert failed(run_golden(Fake(read, off), read)) == ["confidence"]

    def without(outputs: Outputs, _: Any) -> Outputs:
        return dataclasses.replace(outputs, confidence_NJ=None)

    report = run_golden(Fake(read, without), read)
    assert failed(report) == ["confidence"]
    assert "is missing" in check_of(report, "confidence").problem


def test_confidence_needs_both_its_answers_and_its_tolerance() -> None:
    arrays = with_confidence().arrays()
    del arrays["tol_confidence"]
    with pytest.raises(DataError, match=r"missing \['tol_confidence'\]"):
        Golden.from_bytes(npz(arrays))
    with pytest.raises(DataError, match="confidence has expected answers and a tolerance, or neither"):
        Golden(with_confidence().frames_GHW3, with_confidence().expected, TOLERANCES)
    arrays = with_confidence().arrays() | {"confidence_GJ": np.full((G, J), 1.5, np.float32)}
    with pytest.raises(DataError, match=r"expected confidence must lie in \[0, 1\]"):
        Golden.from_bytes(npz(arrays))
