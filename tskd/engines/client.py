"""Texts from an OpenAI-compatible server: OpenAI's own, vLLM, llama.cpp, `transformers serve`.

An answer is kept as soon as it is there, so that after a failure only what is missing is asked for again.
A key comes from the environment, and goes into nothing but the header of a request.
"""

import hashlib
import ipaddress
import json
import logging
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, fields
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from threading import Event, Lock
from typing import Any

import httpx2
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter, ValidationError
from tqdm import tqdm  # type: ignore[import-untyped]

from tskd.errors import ConfigError, RunFolderError, ServerError

log = logging.getLogger(__name__)
logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request
LONGEST_WAIT = 600.0  # seconds before another try; a server that wants more (its quota is used up) is given up
Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """The text that a server wrote, why it ended there (``stop`` or ``length``), and the tokens of question and text.

    Where the server does not say how many they were, they are estimated.
    """

    text: str
    ended_by: str
    tokens_read: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where a server is, how it is to be asked, and what that may cost.

    ``url`` is what stands before ``/chat/completions``. The key is in the environment variable ``key_variable``; where
    there is none, none is sent. ``extra`` are further fields of each request; one that is ``None`` leaves it out.
    ``timeout`` is for one answer and ``backoff`` before the second try, in seconds; each further pause is twice as
    long, or what the server asks for. ``token_limit`` is what one job may have it read and write; tries whose answer
    was lost count as if it had been the longest. ``answers`` is the folder where they are kept.
    """

    url: str
    key_variable: str | None = field(default="OPENAI_API_KEY", compare=False)
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    concurrency: PositiveInt = field(default=8, compare=False)
    timeout: PositiveFloat = field(default=300.0, compare=False)
    max_retries: NonNegativeInt = field(default=5, compare=False)
    backoff: NonNegativeFloat = field(default=1.0, compare=False)
    requests_per_minute: PositiveFloat | None = field(default=None, compare=False)
    token_limit: PositiveInt | None = field(default=None, compare=False)
    answers: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/"))
        if self.key_variable is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.key_variable):
            raise ConfigError("`key_variable` is no name of an environment variable; a key itself belongs into one.")
        try:
            url = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise ConfigError(f"`url` is {self.url!r}: {error}.") from error
        if url.userinfo or url.query or url.fragment:
            raise ConfigError(
                "`url` has a user, a query or a fragment; leave them out, and give a key by `key_variable`."
            )
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError(f"`url` is {self.url!r}; give one like https://api.openai.com/v1.")
        key = self._key  # which it checks
        if url.scheme == "http" and key and not self.is_here:
            raise ConfigError(
                f"The key in {self.key_variable} would go to {self.url} for all to read on the way; "
                f"use https, or set `key_variable` to null."
            )

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine, which what is sent to it then does not leave."""
        host = httpx2.URL(self.url).host
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def check(self) -> None:
        """Raise ``ServerError`` where nobody answers at ``url``, or the key is not accepted. Sends no text."""
        if self._state.is_checked:
            return
        with self._client() as client:
            try:
                response = client.get("/models")
            except httpx2.RequestError as error:
                raise ServerError(f"{self._not_reached(error)}; {_IS_IT_THERE}") from error
        # What else it answers tells little: not every server has a list, and not every good key may see it.
        if response.status_code == 401 and "scope" not in response.text:
            raise self._refusal(response)
        self._state.is_checked = True

    def ask(
        self, path: str, bodies: Sequence[Body], keys: Sequence[str], *, what: str, label: str, progress: bool | None
    ) -> list[Answer]:
        """The answers to ``bodies``, in their order; bodies that are alike are told apart by ``keys``.

        ``path`` is ``/chat/completions`` or ``/completions``; ``what`` is said to be sent. Raises ``ServerError`` where
        one has no answer in the end: those under way are waited for, and all that came are kept.
        """
        state, bodies = self._state, [_without_none({**body, **self.extra}) for body in bodies]
        digests = [_digest([self.url, path, body, key]) for body, key in zip(bodies, keys, strict=True)]
        known = {digest: answer for digest in digests if (answer := state.answers.get(digest)) is not None}
        missing = {digest: body for digest, body in zip(digests, bodies, strict=True) if digest not in known}
        for model in sorted({str(body["model"]) for body in missing.values()} - state.announced):
            log.info("%s are sent to %s (model %s).", what, self.url, model)
            state.announced.add(model)
        is_over = Event()
        bar = tqdm(
            desc=label,
            total=len(known) + len(missing),
            initial=len(known),
            unit=" texts",
            leave=False,
            dynamic_ncols=True,
            disable=None if progress is None else not progress,
        )
        with bar, self._client() as client, ThreadPoolExecutor(self.concurrency) as pool:
            asked = {
                pool.submit(self._answer_or_end, client, path, body, digest, is_over): digest
                for digest, body in missing.items()
            }
            try:
                for future in as_completed(asked):
                    known[asked[future]] = future.result()
                    bar.update()
            except _Over:
                pool.shutdown(cancel_futures=True)
                failures = (future.exception() for future in asked if not future.cancelled())
                raise next(error for error in failures if error and not isinstance(error, _Over)) from None
            except BaseException:
                is_over.set()
                pool.shutdown(cancel_futures=True)
                raise
        return [known[digest] for digest in digests]

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}  # another process has a state of its own

    @cached_property
    def _state(self) -> "_State":
        name = re.sub(r"\W+", "_", self.url)
        answers = Answers(None if self.answers is None else self.answers.expanduser() / f"{name}.jsonl")
        return _State(answers, Pace(self.requests_per_minute), Budget(self.token_limit))

    @property
    def _key(self) -> str:
        key = os.environ.get(self.key_variable, "").strip() if self.key_variable else ""
        if not re.fullmatch(r"[!-~]*", key):  # the error of an HTTP library would show it
            raise ConfigError(f"The environment variable {self.key_variable} holds characters that no key has.")
        return key

    def _client(self) -> httpx2.Client:
        return httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(self.timeout, connect=min(self.timeout, 10.0), pool=None),
            limits=httpx2.Limits(max_connections=self.concurrency),
            trust_env=not self.is_here,  # no proxy is to see what is for this machine
        )

    def _answer_or_end(self, client: httpx2.Client, path: str, body: Body, digest: str, is_over: Event) -> Answer:
        """One answer; where there is none in the end, nothing more is begun."""
        try:
            return self._answer(client, path, body, digest, is_over)
        except BaseException:
            is_over.set()
            raise

    def _answer(self, client: httpx2.Client, path: str, body: Body, digest: str, is_over: Event) -> Answer:
        """One answer, after as many tries as it takes; it is then kept."""
        state, most = self._state, _most_tokens(body)
        for tries in range(1, self.max_retries + 2):
            state.budget.reserve(most)
            spent = 0
            try:
                _pause(state.pace.turn(), is_over)
                spent = most  # from here on it may be at work, though we never hear of it
                answer = self._read(client.post(path, json=body), body)
                spent = answer.tokens_read + answer.tokens
                state.answers.add(digest, answer)
                return answer
            except httpx2.RequestError as error:
                if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError)):
                    spent = 0
                trouble = _Passing(self._not_reached(error), _IS_IT_THERE)
            except _Passing as error:
                trouble = error
                spent = spent if error.is_answered else 0
            except ServerError:
                spent = 0  # a refusal
                raise
            finally:
                state.budget.settle(most, spent)
            if tries > self.max_retries or trouble.wait > LONGEST_WAIT:
                waits = f", which asks to wait {trouble.wait:.0f} s" if trouble.wait else ""
                raise ServerError(f"{trouble}{waits}, after {tries} tries; {trouble.advice}")
            log.debug("%s; another try.", trouble)
            if trouble.wait:
                state.pace.hold(trouble.wait)
            else:
                _pause(min(self.backoff * 2 ** (tries - 1), LONGEST_WAIT) * random.uniform(0.5, 1.0), is_over)
        raise AssertionError("unreachable")

    def _read(self, response: httpx2.Response, body: Body) -> Answer:
        """What a response says. Raises ``_Passing`` where another try may help, and ``ServerError`` where none can."""
        if response.is_success:
            try:
                return _answer_in(response.json(), body)
            except (ValueError, LookupError, TypeError) as error:
                raise _Passing(
                    f"{self.url} answers with what is no completion",
                    "is it an OpenAI-compatible server, and does `url` end as it should (mostly in /v1)?",
                    is_answered=True,
                ) from error
        is_quota = "insufficient_quota" in response.text  # OpenAI's name for an account that has to be paid first
        if response.status_code in (408, 429, *range(500, 600)) and not is_quota:
            raise _Passing(
                f"{self.url} answers with status {response.status_code}{self._words(response)}",
                "lower `concurrency` or `requests_per_minute`, or go on later: what was answered is kept."
                if response.status_code == 429
                else "look into its log, or go on later: what was answered is kept.",
                wait=_retry_after(response),
            )
        raise self._refusal(response)

    def _refusal(self, response: httpx2.Response) -> ServerError:
        status = response.status_code
        here = f"{self.url} refuses with status {status}"
        if status == 401:  # its own words may show a part of the key
            key = f"the key in {self.key_variable} is not accepted" if self._key else "it wants a key"
            return ServerError(
                f"{here}: {key}; put the right one into the environment variable {self.key_variable or ''}".rstrip()
                + (" and name it by `key_variable`." if self.key_variable is None else ".")
            )
        advice = {
            403: "may this key use this `model`?",
            404: "check `model`, and whether `url` ends as it should (mostly in /v1).",
            429: "the account's quota is used up.",
        }.get(status, "`extra` adds a field to a request, or with null leaves one out.")
        if response.is_redirect:
            advice = "give as `url` where it redirects to."
        return ServerError(f"{here}{self._words(response)}; {advice}")

    def _words(self, response: httpx2.Response) -> str:
        """What the server says of an error, shortened, in whichever of the usual forms it says it."""
        try:
            said = response.json()
            for name in ("error", "message", "detail"):
                said = said.get(name, said) if isinstance(said, dict) else said
        except ValueError:
            said = ""
        text = self._without_key(said if isinstance(said, str) else json.dumps(said))
        return f" ({' '.join(text.split())[:300]})" if text else ""

    def _not_reached(self, error: httpx2.RequestError) -> str:
        said = f": {self._without_key(str(error))}" if str(error) else ""
        return f"{self.url} gives no answer ({type(error).__name__}{said})"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "(key)") if self._key else text


class Answers:
    """All that a server has answered, whichever run asked, by the digest of the request.

    They are in a file for its owner's eyes, a JSON line each; with none, in memory. Lines that are damaged, as the last
    may be where a process was killed, count as not there.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._lock = Lock()
        self._answers: dict[str, Answer] = {}
        if file is None or not file.is_file():
            return
        for line in self._or_error(file.read_bytes).splitlines():
            try:
                entry = json.loads(line)
                self._answers[entry["request"]] = _AS_ANSWER.validate_python(entry["answer"])
            except (ValueError, LookupError, TypeError, ValidationError):
                continue

    def get(self, digest: str) -> Answer | None:
        return self._answers.get(digest)

    def add(self, digest: str, answer: Answer) -> None:
        with self._lock:
            self._answers[digest] = answer
            if self.file is not None:
                self._or_error(self._append, json.dumps({"request": digest, "answer": asdict(answer)}).encode())

    def _append(self, line: bytes) -> None:
        assert self.file is not None
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One write to its end, so that other processes may append too; it begins a line, whatever stands before it.
        descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, b"\n" + line + b"\n")
        finally:
            os.close(descriptor)

    def _or_error(self, work: Any, *arguments: Any) -> Any:
        try:
            return work(*arguments)
        except OSError as error:
            raise RunFolderError(
                f"The answers in {self.file} cannot be used ({error.strerror}); make room, or set `answers` elsewhere."
            ) from error


class Pace:
    """When the next request may go: so many a minute, evenly, and none before a server's pause is over."""

    def __init__(self, per_minute: float | None) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = Lock()

    def turn(self) -> float:
        """Take the next turn; the seconds until it comes."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._interval
            return turn - now

    def hold(self, seconds: float) -> None:
        """Let nobody begin for so long who has not taken a turn."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class Budget:
    """Tokens that may be spent. A request reserves the most that it can take, and then settles what it took."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.spent = 0
        self._reserved = 0
        self._lock = Lock()

    def reserve(self, most: int) -> None:
        with self._lock:
            if self.limit is not None and self.spent + self._reserved + most > self.limit:
                raise ServerError(
                    f"`token_limit` is {self.limit}: {self.spent} tokens are spent, and with those under way the next "
                    f"request may need {self._reserved + most}; raise it and go on, what was answered is kept."
                )
            self._reserved += most

    def settle(self, most: int, spent: int) -> None:
        with self._lock:
            self._reserved -= most
            self.spent += spent


@dataclass
class _State:
    """What a server's requests share in one process."""

    answers: Answers
    pace: Pace
    budget: Budget
    announced: set[str] = field(default_factory=set)
    is_checked: bool = False


class _Passing(Exception):
    """A failure that another try may not have. ``is_answered``: the server has done its work nevertheless."""

    def __init__(self, said: str, advice: str, wait: float = 0.0, is_answered: bool = False) -> None:
        super().__init__(said)
        self.advice = advice
        self.wait = wait
        self.is_answered = is_answered


class _Over(Exception):
    """Another request has failed for good."""


_AS_ANSWER = TypeAdapter(Answer)
_IS_IT_THERE = "is the server running, and `url` right? A slow one needs a longer `timeout` or less `concurrency`."


def _answer_in(content: Any, body: Body) -> Answer:
    choice = content["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    if text is None and "message" in choice:
        text = ""  # it thought until its tokens were used up, or it refused
    if not isinstance(text, str):
        raise TypeError("a text is expected")
    usage = content.get("usage") or {}
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return Answer(
        text,
        str(choice.get("finish_reason")),
        read if isinstance(read, int) else _tokens_in(body),
        written if isinstance(written, int) else _estimate(text),
    )


def _most_tokens(body: Body) -> int:
    return _tokens_in(body) + int(body.get("max_completion_tokens") or body.get("max_tokens") or 0)


def _tokens_in(body: Body) -> int:
    prompt = body.get("prompt", "")
    if not isinstance(prompt, str):
        return len(prompt)
    return _estimate(prompt + "".join(message["content"] for message in body.get("messages", [])))


def _estimate(text: str) -> int:
    return -(-len(text.encode()) // 4)  # English has about four characters in a token


def _retry_after(response: httpx2.Response) -> float:
    """The seconds that a server asks to wait, given as a number or as a date; 0 where it does not ask."""
    value = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _pause(seconds: float, is_over: Event) -> None:
    if is_over.wait(seconds) if seconds > 0 else is_over.is_set():
        raise _Over


def _without_none(body: Body) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
