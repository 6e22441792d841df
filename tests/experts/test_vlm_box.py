import threading
import time

import cv2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from experts.base import Placement, Request, Scene
from experts.coordinates import UnreadableAnswer
from experts.vlm_box import EndpointFailed, VlmBox
from pipeline.errors import InputError
from tests.tiny.vlm_box import MIDDLE, Reply, options, serve

BOX_SEGMENTER = {"name": "tests.helpers.box_segmenter", "checkpoint": "unused"}
KEY = "sk-very-secret-0123"


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def _options(base_url, **changed):
    return VlmBox.Options.model_validate(options(base_url) | {"segmenter": BOX_SEGMENTER} | changed)


def _expert(base_url, **changed):
    return VlmBox(_options(base_url, **changed), Placement(device="cpu"))


def _scene(height, width, *instructions, seed=0):
    image = np.random.default_rng(seed).integers(0, 120, (height, width, 3), dtype=np.uint8)
    return Scene(image, [Request(instruction, ["thing"]) for instruction in instructions])


def _ask(server, *instructions, **changed):
    scene = _scene(200, 400, *instructions)
    return _expert(server.base_url, **changed).ground(scene.image, scene.requests)


def _boxes(answers):
    return [[candidate.box for candidate in found] for found in answers]


def test_boxes_become_masks_of_the_instruction_in_the_models_order():
    answer = '[{"bbox_2d": [500, 0, 1000, 500]}, {"bbox_2d": [0, 0, 250, 1000]}, {"bbox_2d": [500, 0, 1000, 500]}]'
    with serve(lambda asked: answer) as server:
        [found] = _ask(server, "What is it?")
    assert _boxes([found]) == [[(200, 0, 400, 100), (0, 0, 100, 200)]]
    assert all(candidate.phrase == "What is it?" and candidate.score == 0.5 for candidate in found)
    assert found[0].mask.shape == (200, 400)
    assert found[0].mask[:100, 200:].all() and found[0].mask.mean() == 0.25


REPORTED = {
    "Qwen2.5-VL-7B-Instruct": "pixels",
    "Qwen3-VL-8B-Instruct": "thousand",
    "my-own": "unit",
    "viscot-7b": "unit_square",
}


def _seen_by(model, image):
    """The image as the model's own processor shows it, and what one unit of its coordinates is there in pixels."""
    if REPORTED[model] == "pixels":
        [(_, rows, columns)] = Qwen2VLImageProcessor()(Image.fromarray(image), return_tensors="pt")["image_grid_thw"]
        return np.asarray(Image.fromarray(image).resize((int(columns) * 14, int(rows) * 14))), (1, 1)
    if REPORTED[model] == "unit_square":
        height, width = image.shape[:2]
        side = max(height, width)
        square = np.zeros((side, side, 3), np.uint8)
        square[(side - height) // 2 :, (side - width) // 2 :][:height, :width] = image
        return square, (side, side)
    scale = 1000 if REPORTED[model] == "thousand" else 1
    return image, (image.shape[1] / scale, image.shape[0] / scale)


@pytest.mark.parametrize("model", REPORTED)
@pytest.mark.parametrize("shape", [(480, 640), (900, 300), (61, 97), (1200, 2100)])
def test_what_a_model_sees_is_found_where_it_is_in_the_image(model, shape):
    """The server looks for red in the image that it gets, in its own resized or padded copy, and says where."""

    def answer(asked):
        seen, (unit_x, unit_y) = _seen_by(model, asked.image)
        rows, columns = np.nonzero((seen[..., 0] > 150) & (seen[..., 1] < 90))
        box = [columns.min() / unit_x, rows.min() / unit_y, (columns.max() + 1) / unit_x, (rows.max() + 1) / unit_y]
        return str([round(float(value), 4) for value in box])

    height, width = shape
    image = np.full((height, width, 3), 60, np.uint8)
    truth = (width // 2, height // 8, width * 7 // 8, height // 3)
    image[truth[1] : truth[3], truth[0] : truth[2]] = (230, 20, 20)
    with serve(answer) as server:
        expert = _expert(server.base_url, model=model, coordinates="unit" if model == "my-own" else "auto")
        [[found]] = expert.ground(image, [Request("the red one", [])])
    sent = server.asked[0].image
    pixel = max(1, height / sent.shape[0], width / sent.shape[1])
    assert np.abs(np.array(found.box) - truth).max() <= 1.5 * pixel


def test_question_has_the_instruction_the_convention_and_the_image():
    instruction = 'Is {this} "ok" 日本?'
    with serve(lambda asked: "[]") as server:
        _ask(server, instruction, model="Qwen2.5-VL-tiny", max_tokens=77)
    [asked] = server.asked
    height, width = asked.image.shape[:2]
    assert instruction in asked.text
    assert f"{width} wide and {height} high" in asked.text
    assert (asked.body["model"], asked.body["temperature"], asked.body["max_tokens"]) == ("Qwen2.5-VL-tiny", 0, 77)
    assert "logprobs" not in asked.body
    assert height % 28 == width % 28 == 0


def test_same_instruction_of_an_image_is_asked_once_and_an_image_is_encoded_once(monkeypatch):
    encoded = []

    def counted(*arguments):
        encoded.append(arguments)
        return imencode(*arguments)

    imencode = cv2.imencode
    monkeypatch.setattr("experts.vlm_box.cv2.imencode", counted)
    scenes = [_scene(100, 100, "a", "b", "a"), _scene(80, 120, "a", seed=1), _scene(90, 90), _scene(50, 50, "c")]
    with serve() as server:
        answers = _expert(server.base_url).ground_batch(scenes)
    assert len(server.asked) == 4
    assert len(encoded) == 3
    assert [[len(found) for found in of_image] for of_image in answers] == [[1, 1, 1], [1], [], [1]]
    assert answers[0][0][0].box == answers[0][2][0].box == (25, 25, 75, 75)


def _by_content(asked):
    """Boxes that depend on the image and on the text."""
    left = int(asked.image.mean()) % 400
    return f"[{left}, {len(asked.text) % 300}, {left + 300}, 800]"


def test_batch_gives_what_one_at_a_time_gives_though_answers_come_in_any_order():
    scenes = [
        _scene(50 + 40 * k, 300 - 50 * k, *("ask this" + "!" * n for n in range(k + 1)), seed=k) for k in range(4)
    ]

    def answer(asked):
        time.sleep(0.1 if "!" not in asked.text else 0)
        return _by_content(asked)

    with serve(answer) as server:
        together = _expert(server.base_url).ground_batch(scenes)
        alone = [_expert(server.base_url, concurrency=1).ground(scene.image, scene.requests) for scene in scenes]
    assert [_boxes(of_image) for of_image in together] == [_boxes(of_image) for of_image in alone]
    assert len({box for of_image in together for found in _boxes(of_image) for box in found}) > 5


def test_questions_overlap_up_to_the_concurrency():
    gate = threading.Barrier(3)

    def answer(asked):
        gate.wait(timeout=30)
        return MIDDLE

    with serve(answer) as server:
        expert = _expert(server.base_url, concurrency=3)
        expert.ground_batch([_scene(60, 60, *"abc"), _scene(70, 60, *"def")])
    assert server.most_at_once == 3
    assert expert.images_at_once == 4 and _expert(server.base_url, concurrency=32).images_at_once == 32


def test_no_answer_is_paid_for_twice_when_one_of_many_questions_fails():
    scenes = [_scene(56, 56, *(f"{k} {n}" for n in range(150)), seed=k) for k in range(2)]

    def answer(asked):
        return "no idea" if "1 149" in asked.text else MIDDLE

    with serve(answer) as server:
        expert = _expert(server.base_url, concurrency=4)
        with pytest.raises(UnreadableAnswer):
            expert.ground_batch(scenes)
        expert.ground_batch(scenes[:1])
        with pytest.raises(UnreadableAnswer):
            expert.ground_batch(scenes[1:])
    assert len(server.asked) == 300


def test_empty_list_is_no_candidates_and_no_request_is_no_question():
    with serve(lambda asked: "[]") as server:
        assert _ask(server, "Where?") == [[]]
        assert _ask(server) == []
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_server_is_asked_again(status):
    def answer(asked):
        return Reply(status=status, raw="{}", headers={"Retry-After": "0.01"}) if len(server.asked) < 3 else MIDDLE

    with serve(answer) as server:
        assert _boxes(_ask(server, "Where?")) == [[(100, 50, 300, 150)]]
    assert len(server.asked) == 3


def test_busy_server_is_left_alone_for_as_long_as_it_says():
    def answer(asked):
        return Reply(status=429, raw="{}", headers={"Retry-After": "1"}) if len(server.asked) < 2 else MIDDLE

    with serve(answer) as server:
        started = time.monotonic()
        _ask(server, "Where?")
    # Without being told the client waits for half a second at most.
    assert time.monotonic() - started >= 1


@pytest.mark.parametrize("status", [400, 422, 500])
def test_failed_question_is_an_error_of_one_short_line_without_the_key(status, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def answer(asked):
        raw = f'{{"error": {{"message": "bad\\nrequest of {asked.headers["authorization"]}: {asked.image_url}"}}}}'
        return Reply(status=status, raw=raw)

    with serve(answer) as server, pytest.raises(EndpointFailed, match=str(status)) as error:
        _ask(server, "Where?", retries=0)
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400
    assert server.base_url in str(error.value)
    assert error.value.__suppress_context__


def test_unreachable_and_silent_servers_are_errors():
    with serve() as server:
        gone = server.base_url
    with pytest.raises(EndpointFailed, match="Connection"):
        _expert(gone, retries=0).ground(*_only(_scene(50, 50, "a")))
    with serve(lambda asked: time.sleep(1) or MIDDLE) as server, pytest.raises(EndpointFailed, match="Timeout"):
        _ask(server, "Where?", timeout=0.2, retries=0)


def _only(scene):
    return scene.image, scene.requests


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        (Reply("I see no such thing."), UnreadableAnswer, "I see no such thing"),
        (Reply("[[1, 2, 3"), UnreadableAnswer, "no box"),
        (Reply("[0.1, 0.2, 0.3, 0.4]"), UnreadableAnswer, "coordinates"),
        (Reply("[[1, 2, 300, 400], [5,", finish_reason="length"), UnreadableAnswer, "max_tokens"),
        (Reply(None, refusal="I cannot help"), UnreadableAnswer, "I cannot help"),
        (Reply("", finish_reason="content_filter"), UnreadableAnswer, "content_filter"),
        (Reply(raw="<html>Welcome</html>", headers={"Content-Type": "text/html"}), EndpointFailed, "/v1"),
        (Reply(raw='{"error": "overloaded"}'), EndpointFailed, "no chat completion"),
        (Reply(raw="{"), EndpointFailed, "JSON"),
    ],
)
def test_answer_without_boxes_is_never_taken_for_nothing_there(reply, error, says):
    with serve(lambda asked: reply) as server, pytest.raises(error, match=says):
        _ask(server, "Where?")


def test_one_bad_answer_costs_its_image_and_no_question_is_asked_twice():
    scenes = [
        Scene(np.full((60, 60, 3), grey, np.uint8), [Request("a", []), Request("b", [])]) for grey in (20, 90, 160)
    ]

    def answer(asked):
        return "no idea" if abs(asked.image.mean() - 90) < 5 and "Text: b" in asked.text else MIDDLE

    with serve(answer) as server:
        expert = _expert(server.base_url)
        for images in (scenes, scenes[1:2]):
            with pytest.raises(UnreadableAnswer):
                expert.ground_batch(images)
        assert _boxes(expert.ground(*_only(scenes[0])) + expert.ground(*_only(scenes[2]))) == [[(15, 15, 45, 45)]] * 4
    assert len(server.asked) == 6


@pytest.mark.parametrize("status", [401, 403])
def test_refused_key_ends_the_run_naming_the_endpoint_and_the_variable_but_not_the_key(status, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    reply = Reply(status=status, raw=f'{{"error": {{"message": "wrong key {KEY}"}}}}')
    with serve(lambda asked: reply) as server, pytest.raises(InputError) as error:
        _ask(server, "Where?", api_key_env="MY_KEY")
    assert len(server.asked) == 1
    for named in (server.base_url, "Qwen3-VL-tiny", "MY_KEY", str(status)):
        assert named in str(error.value)
    assert KEY not in str(error.value) and error.value.__suppress_context__


def test_refusal_says_where_the_variable_is_not_set():
    with serve(lambda asked: Reply(status=401, raw="{}")) as server, pytest.raises(InputError, match="is not set"):
        _ask(server, "Where?")


def test_unknown_model_or_path_ends_the_run():
    with serve(lambda asked: Reply(status=404, raw="{}")) as server:
        with pytest.raises(InputError, match="Qwen3-VL-tiny"):
            _ask(server, "Where?")
        with pytest.raises(InputError, match="base_url"):
            _expert(server.base_url.removesuffix("/v1")).ground(*_only(_scene(50, 50, "a")))


def test_local_server_needs_no_key():
    with serve() as server:
        _ask(server, "Where?")
    assert server.asked[0].headers["authorization"] == "Bearer no-key"


@pytest.mark.parametrize("key", ["sk-\x00bad", "sk-naïve", "sk-a\nb"])
def test_key_that_cannot_be_sent_is_not_shown(key, monkeypatch):
    monkeypatch.setattr("experts.endpoint.os.environ", {"OPENAI_API_KEY": key})
    with pytest.raises(InputError, match="OPENAI_API_KEY") as error:
        _expert("http://localhost:1/v1")
    assert "sk-" not in str(error.value)


def test_score_is_the_mean_probability_of_tokens_where_the_server_gives_it():
    with serve(lambda asked: Reply(logprobs=[-0.1, -0.3, -0.2])) as server:
        [[found]] = _ask(server, "Where?", logprobs=True)
        assert found.score == pytest.approx(np.exp(-0.2))
        assert server.asked[0].body["logprobs"] is True
        assert _ask(server, "Where?", logprobs=True, threshold=0.9) == [[]]


def test_server_without_token_probabilities_is_said_so():
    with serve() as server, pytest.raises(InputError, match="logprobs"):
        _ask(server, "Where?", logprobs=True)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2000), (2000, 3)])
@pytest.mark.parametrize("model", REPORTED)
def test_any_shape_of_image_is_sent_and_answered(shape, model):
    with serve(lambda asked: "[]" if REPORTED[model] == "pixels" else f"[0, 0, {reach}, {reach}]") as server:
        reach = 1000 if REPORTED[model] == "thousand" else 1
        expert = _expert(server.base_url, model=model, coordinates=REPORTED[model])
        [found] = expert.ground(*_only(_scene(*shape, "Where?")))
    assert _boxes([found]) == [[] if REPORTED[model] == "pixels" else [(0, 0, shape[1], shape[0])]]
    assert server.asked[0].image.size <= 3 * 1280 * 28 * 28


def test_forty_instructions_and_a_very_long_one():
    instructions = [f"part {k}" for k in range(39)] + ["where? " * 5000]
    with serve() as server:
        answers = _ask(server, *instructions)
    assert [found[0].phrase for found in answers] == instructions
    assert len(server.asked) == 40


def test_model_of_unknown_coordinates_needs_them_said():
    with pytest.raises(ValidationError, match="some-model") as error:
        _options("http://localhost/v1", model="some-model")
    assert error.value.errors()[0]["loc"] == ("coordinates",)
    assert _options("http://localhost/v1", model="some-model", coordinates="unit").convention == "unit"
    assert _options("http://localhost/v1", model="Qwen2.5-VL-7B", coordinates="thousand").convention == "thousand"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "https://user:secret@host/v1"])
def test_address_is_http_without_a_password(url):
    with pytest.raises(ValidationError, match="base_url"):
        _options(url)


def test_version_and_identity_say_what_is_asked_and_not_where(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"x")
    segmenter = BOX_SEGMENTER | {"checkpoint": str(tmp_path / "weights.pth")}
    here = _options("http://here/v1", segmenter=segmenter)
    there = _options("http://there/v1", segmenter=segmenter, concurrency=2, api_key_env="OTHER", timeout=1, retries=0)
    assert VlmBox.version(here) == VlmBox.version(there)
    assert here.identity() == there.identity()
    assert "Qwen3-VL-tiny" in VlmBox.version(here) and "weights.pth@sha256" in VlmBox.version(here)
    for changed in ({"model": "Qwen3-VL-other"}, {"coordinates": "unit"}):
        assert VlmBox.version(_options("http://here/v1", segmenter=segmenter, **changed)) != VlmBox.version(here)
    assert _options("http://here/v1", max_tokens=99).identity() != _options("http://here/v1").identity()
