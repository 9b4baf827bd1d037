"""What a server may do to us: each test is a small one on this machine that does it."""

import json
import logging
import pickle
import socket
import threading
import time
from email.utils import formatdate

import pytest

from tests.stub import completion, refused
from tskd.engines import client
from tskd.engines.client import Answers, Budget, Pace
from tskd.errors import ConfigError, RunFolderError, ServerError
from tskd.models.generation import Generation, Sampling
from tskd.records import Prompt
from tskd.stages.writers import ServerWriter
from tskd.storage.fingerprint import key_content

KEY = "sk-planted-0123456789"


@pytest.fixture(autouse=True)
def without_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def writer(url, **settings):
    given = {"url": url, "model": "m", "answers": None, "backoff": 0.001, "concurrency": 1, "max_retries": 3}
    return ServerWriter(**given | settings)


def write(asked, texts=("a",), sampling=None, stop=("\n\nPrompt:",)):
    keys = [str(number) for number in range(len(texts))]
    return asked.write(texts, keys, sampling or Sampling(8, 0.5, 0.9), stop=stop, label="0 expand")


def echo(number, body):
    return body["messages"][0]["content"].upper()


def failing_first(times, failure):
    return lambda number, body: failure if number <= times else echo(number, body)


def test_a_request_is_one_users_turn_with_the_sampling_and_a_seed_from_its_key(serve):
    stub = serve(echo)
    texts = [writer(stub.url).template.few_shot([Prompt("one"), Prompt("two")])] * 2
    write(writer(stub.url), texts)
    first, second = stub.requests
    assert {"role": "user", "content": texts[0]} == first["messages"][0]
    assert "Prompt: one\n\nPrompt: two\n\nWrite one more prompt" in texts[0]
    settings = {"model": "m", "max_tokens": 8, "temperature": 0.5, "top_p": 0.9, "stop": ["\n\nPrompt:"]}
    assert settings == {name: first[name] for name in settings}
    assert first["seed"] != second["seed"]
    write(writer(stub.url), texts)
    assert first["seed"] == stub.requests[2]["seed"]
    assert {"/v1/chat/completions"} == set(stub.paths)


def test_a_greedy_request_has_no_seed_and_extra_fields_come_or_go(serve):
    stub = serve(echo)
    write(writer(stub.url, extra={"max_tokens": None, "max_completion_tokens": 9}), sampling=Sampling(8), stop=())
    assert {"model", "messages", "temperature", "max_completion_tokens"} == set(stub.requests[0])


def test_answers_come_in_the_order_of_the_texts_however_they_arrive(serve):
    barrier = threading.Barrier(4)  # passed only where four are under way at once

    def last_first(number, body):
        barrier.wait(10)
        time.sleep(0.01 * (4 - number % 4))
        return echo(number, body)

    texts = [f"text {number}" for number in range(8)]
    made = write(writer(serve(last_first).url, concurrency=4), texts)
    assert [text.upper() for text in texts] == [each.text for each in made]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (completion(" b \n"), Generation(" b \n", True, 3)),
        (completion("b", "length"), Generation("b", False, 3)),
        (completion("b\n\nPrompt: c", "length"), Generation("b", True, 3)),  # a server that goes on after the stop
        (completion(None, "content_filter"), Generation("", False, 3)),
        (completion("b" * 9, usage=None), Generation("b" * 9, True, 3)),  # nine characters are about three tokens
    ],
)
def test_a_generation_says_whether_it_ended_by_itself_and_what_it_took(serve, answer, expected):
    stub = serve(lambda number, body: (200, {}, json.dumps(answer)))
    assert [expected] == write(writer(stub.url))


@pytest.mark.parametrize(
    "failure",
    [
        refused(500),
        refused(503),
        refused(429),
        (200, {}, "<html>garbage"),
        (200, {}, '{"choices": []}'),
        (200, {}, '{"choices": [{"message": {"content": 3}}]}'),
        (200, {}, "[]"),
        (200, {"Content-Length": "1000"}, '{"choices": [{"mess'),  # the connection is closed midway
        (200, {"Content-Encoding": "gzip"}, "not gzip"),
    ],
)
def test_what_may_pass_is_tried_again(serve, failure):
    stub = serve(failing_first(3, failure))
    assert "A" == write(writer(stub.url))[0].text
    assert 4 == len(stub.requests)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (refused(500, "out of memory"), r"answers with status 500 \(out of memory\), after 3 tries; look into its log"),
        (refused(429), r"answers with status 429 \(no\), after 3 tries; lower `concurrency`"),
        ((200, {}, "<html>"), "answers with what is no completion, after 3 tries; is it an OpenAI-compatible server"),
        ((200, {"Content-Length": "9"}, "{"), r"gives no answer \(RemoteProtocolError.*after 3 tries; is the server"),
    ],
)
def test_what_does_not_pass_ends_in_one_line_after_so_many_tries(serve, failure, said):
    stub = serve(lambda *_: failure)
    with pytest.raises(ServerError, match=said) as error:
        write(writer(stub.url, max_retries=2))
    assert 3 == len(stub.requests)
    assert stub.url in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (refused(400, "no field\nseed"), r"refuses with status 400 \(no field seed\); `extra` adds"),
        (refused(401), "status 401: it wants a key; put the right one into the environment variable OPENAI_API_KEY"),
        (refused(403), r"status 403 \(no\); may this key use this `model`"),
        ((404, {}, '{"detail": "Not Found"}'), r"status 404 \(Not Found\); check `model`, and whether `url`"),
        ((422, {}, '{"detail": [{"loc": "seed"}]}'), r"status 422 \(.*seed"),
        ((307, {"Location": "http://example.invalid/"}, ""), "status 307; give as `url` where it redirects to"),
        ((429, {}, '{"error": {"message": "pay", "code": "insufficient_quota"}}'), r"429 \(pay\); the account's quota"),
    ],
)
def test_what_cannot_pass_is_not_tried_again(serve, failure, said):
    stub = serve(lambda *_: failure)
    with pytest.raises(ServerError, match=said) as error:
        write(writer(stub.url))
    assert 1 == len(stub.requests)
    assert "\n" not in str(error.value)


def test_a_server_that_is_down_is_said_before_the_run_and_after_all_tries():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        asked = writer(f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        with pytest.raises(ServerError, match=r"gives no answer \(ConnectError.*; is the server running"):
            asked.check_length("text", 8, "The longest request")
        with pytest.raises(ServerError, match=r"gives no answer \(ConnectError.*after 4 tries; is the server running"):
            write(asked)
        assert 0 == asked._state.budget.spent


def test_a_server_that_is_slow_is_given_up_in_time(serve):
    go_on = threading.Event()
    stub = serve(lambda number, body: go_on.wait(10) and "late")
    with pytest.raises(ServerError, match=r"\(ReadTimeout.*after 2 tries; .*A slow one needs a longer `timeout`"):
        write(writer(stub.url, timeout=0.1, max_retries=1))
    go_on.set()


@pytest.fixture
def pauses(monkeypatch):
    noted = []
    monkeypatch.setattr(client, "_pause", lambda seconds, is_over: noted.append(seconds))
    return noted


def test_pauses_double_and_jitter(serve, pauses):
    write(writer(serve(failing_first(3, refused(500))).url, backoff=8.0))
    waited = [seconds for seconds in pauses if seconds > 0]
    assert 3 == len(waited)
    for seconds, full in zip(waited, (8, 16, 32), strict=True):
        assert full / 2 <= seconds <= full


@pytest.mark.parametrize("form", [lambda: "90", lambda: formatdate(time.time() + 91, usegmt=True)])
def test_a_pause_that_the_server_asks_for_is_kept_by_all(serve, pauses, form):
    stub = serve(failing_first(1, refused(429, **{"Retry-After": form()})))
    write(writer(stub.url), ["a", "b"])
    assert 0 == pauses[0]
    assert all(60 < seconds <= 91 for seconds in pauses[1:])  # of the second try, and of the next text
    assert 2 == len(pauses[1:])


def test_a_server_that_asks_for_too_long_a_pause_is_given_up(serve):
    stub = serve(lambda *_: refused(429, **{"Retry-After": "86400"}))
    with pytest.raises(ServerError, match="status 429 .*, which asks to wait 86400 s, after 1 tries"):
        write(writer(stub.url))


def test_turns_are_spread_evenly_over_a_minute(monkeypatch):
    monkeypatch.setattr(client.time, "monotonic", lambda: 1000.0)
    pace = Pace(per_minute=30)
    assert [0.0, 2.0, 4.0] == [pace.turn() for _ in range(3)]
    pace.hold(60)
    assert [60.0, 62.0] == [pace.turn() for _ in range(2)]
    assert [0.0, 0.0] == [pace.turn() for pace in [Pace(None)] for _ in range(2)]


def test_the_token_limit_stops_before_a_request_that_could_exceed_it(serve, tmp_path):
    stub = serve(echo)  # each text may take 1 + 8 tokens, and takes 7 + 3
    with pytest.raises(ServerError, match="`token_limit` is 28: 20 tokens are spent, .* may need 9; raise it"):
        write(writer(stub.url, token_limit=28, answers=tmp_path), "abcde")
    assert 2 == len(stub.requests)
    write(writer(stub.url, token_limit=30, answers=tmp_path), "abcde")  # what is kept costs nothing
    assert 5 == len(stub.requests)


def test_tries_whose_answer_was_lost_count_as_the_longest(serve):
    stub = serve(failing_first(2, (200, {}, "<html>")))
    asked = writer(stub.url)
    write(asked)
    assert 9 + 9 + 10 == asked._state.budget.spent
    stub = serve(failing_first(2, refused(500)))
    asked = writer(stub.url)
    write(asked)
    assert 10 == asked._state.budget.spent


def test_what_is_under_way_is_reserved():
    budget = Budget(10)
    budget.reserve(6)
    with pytest.raises(ServerError, match="0 tokens are spent, .* may need 12"):
        budget.reserve(6)
    budget.settle(6, 2)
    budget.reserve(6)


def test_after_a_failure_only_what_is_missing_is_asked_for(serve, tmp_path):
    stub = serve(lambda number, body: refused(400) if number == 3 else echo(number, body))
    texts = ["a", "b", "c", "d"]
    with pytest.raises(ServerError):
        write(writer(stub.url, answers=tmp_path), texts)
    assert list("ABCD") == [each.text for each in write(writer(stub.url, answers=tmp_path), texts)]
    assert ["a", "b", "c", "c", "d"] == [body["messages"][0]["content"] for body in stub.requests]
    write(writer(stub.url, answers=tmp_path, model="another"), texts)
    assert 9 == len(stub.requests)


def test_what_is_under_way_at_a_failure_is_waited_for_and_kept(serve, tmp_path):
    both_there = threading.Barrier(2)

    def one_fails(number, body):
        both_there.wait(10)
        if body["messages"][0]["content"] == "bad":
            return refused(400)
        time.sleep(0.1)
        return echo(number, body)

    with pytest.raises(ServerError, match="status 400"):
        write(writer(serve(one_fails).url, concurrency=2, answers=tmp_path), ["good", "bad"])
    (file,) = tmp_path.iterdir()
    assert ["GOOD"] == [json.loads(line)["answer"]["text"] for line in file.read_text().split("\n") if line]


def test_what_is_said_is_the_failure_and_not_that_others_were_given_up(serve):
    stub = serve(lambda number, body: refused(400) if number == 4 else refused(500))
    with pytest.raises(ServerError, match="status 400"):
        write(writer(stub.url, concurrency=4, backoff=60.0), [str(number) for number in range(20)])
    assert len(stub.requests) < 20


def test_a_text_that_is_asked_for_twice_with_one_key_is_asked_for_once(serve):
    stub = serve(echo)
    made = writer(stub.url).write(["a", "a"], ["same", "same"], Sampling(8), stop=(), label="")
    assert ["A", "A"] == [each.text for each in made]
    assert 1 == len(stub.requests)


def test_a_damaged_file_of_answers_loses_the_damaged_lines_alone(tmp_path):
    file = tmp_path / "answers" / "a.jsonl"
    answer = client.Answer("text\u2028\x85 of one line", "stop", 1, 2)
    Answers(file).add("one", answer)
    assert (0o700, 0o600) == (file.parent.stat().st_mode & 0o777, file.stat().st_mode & 0o777)
    with file.open("ab") as opened:
        opened.write(b'\xff\xfe\n{"request": "two", "answer": {}}\n[]\n{"request": "thr')  # killed while it wrote
    Answers(file).add("four", answer)
    found = Answers(file)
    assert [answer, None, None, answer] == [found.get(name) for name in ("one", "two", "thr", "four")]


def test_answers_that_cannot_be_kept_are_one_line(serve, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        RunFolderError, match="The answers in .* cannot be used .*make room, or set `answers` elsewhere"
    ):
        write(writer(serve(echo).url, answers=tmp_path / "file"))


@pytest.mark.parametrize("failure", [None, 401, 403, 400, 429, 500])
def test_a_key_is_in_the_header_alone(serve, tmp_path, monkeypatch, caplog, failure):
    monkeypatch.setenv("MY_KEY", KEY)
    stub = serve(lambda number, body: echo(number, body) if failure is None else refused(failure, f"not {KEY}"))
    asked = writer(stub.url, key_variable="MY_KEY", answers=tmp_path / "answers", max_retries=1)
    errors = []
    with caplog.at_level(logging.DEBUG):
        asked.check()
        try:
            write(asked, ["a", "b"])
        except ServerError as error:
            errors = [str(error), str(error.__cause__), str(error.__context__)]
    assert (failure is None) == (not errors)
    assert {f"Bearer {KEY}"} == {headers["Authorization"] for headers in stub.headers}
    written = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert (failure is None) == bool(written)
    seen = [
        *written,
        *errors,
        caplog.text,
        repr(asked),
        repr(asked._state),
        repr(key_content(asked)),
        str(stub.requests),
    ]
    assert all(KEY not in text for text in seen)
    assert KEY.encode() not in pickle.dumps(asked)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "api.openai.com/v1"}, "`url` is 'api.openai.com/v1'; give one like"),
        ({"url": "ftp://host/v1"}, "`url` is 'ftp://host/v1'"),
        ({"url": "https://host:port/v1"}, "`url` is 'https://host:port/v1': Invalid port"),
        ({"url": f"https://user:{KEY}@host/v1"}, "`url` has a user, a query or a fragment"),
        ({"url": f"https://host/v1?key={KEY}"}, "`url` has a user, a query or a fragment"),
        ({"url": "https://host/v1", "key_variable": KEY}, "`key_variable` is no name of an environment variable"),
        ({"url": "http://host/v1"}, "for all to read on the way; use https, or set `key_variable` to null"),
        ({"url": "https://host/v1", "key_variable": "ODD"}, "variable ODD holds characters that no key has"),
    ],
)
def test_a_wrong_address_or_key_is_said_at_once_and_without_the_key(monkeypatch, settings, said):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ODD", f"{KEY}\n{KEY}")
    with pytest.raises(ConfigError, match=said) as error:
        writer(**settings)
    assert KEY not in str(error.value)


def test_where_the_texts_go_is_said_once(serve, caplog):
    stub = serve(echo)
    asked = writer(stub.url + "/")
    with caplog.at_level(logging.INFO):
        asked.check()
        assert not caplog.messages
        write(asked)
        write(asked, ["b"])
    assert [f"Seeds and kept prompts are sent to {stub.url} (model m)."] == caplog.messages


def test_a_key_that_is_not_accepted_is_said_before_any_text_is_sent(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    stub = serve(echo)
    stub.of_models = refused(401)
    with pytest.raises(ServerError, match="status 401: the key in OPENAI_API_KEY is not accepted"):
        writer(stub.url).check()
    stub.of_models = refused(500)  # `transformers serve` without a cache
    writer(stub.url).check()
    assert [] == stub.requests


def test_what_tells_results_apart_is_the_server_not_how_fast_it_is_asked():
    first, second = writer("https://host/v1"), writer("https://host/v1", concurrency=7, timeout=1.0, token_limit=3)
    assert key_content(first) == key_content(second)
    assert key_content(first) != key_content(writer("https://host/v1", extra={"top_k": 3}))
    assert key_content(first) != key_content(writer("https://host/v1", model="another"))
