"""Against a real server, transformers' own, with models whose every word is known."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import httpx2
import pytest

from tests import scripted, tiny
from tskd.engines.own import generate
from tskd.engines.server import ServerEngine
from tskd.models.encoding import encode_prefix
from tskd.models.generation import Request, Sampling
from tskd.models.templates import LIST_MARK
from tskd.models.weights import LanguageModel
from tskd.records import Prompt
from tskd.stages.writers import ServerWriter

for package in ("fastapi", "uvicorn", "openai"):  # what `transformers serve` needs
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    processes = {}

    def start(model):
        if model in processes:
            return processes[model][1]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        address = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
        log = tmp_path_factory.mktemp("served") / "log"
        with log.open("w") as opened:
            process = subprocess.Popen(
                [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), *address],
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                stdout=opened,
                stderr=opened,
            )
        processes[model] = process, f"http://127.0.0.1:{port}/v1"
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            with suppress(httpx2.TransportError):
                if httpx2.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success:
                    return processes[model][1]
            time.sleep(0.2)
        return pytest.fail(log.read_text())

    yield start
    for process, _ in processes.values():
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A chat model that writes a letter and "k", whatever it is asked: the turn that it opens ends in ">"."""
    follows = {">": list("abcd"), **dict.fromkeys("abcd", "k")}
    folder = tmp_path_factory.mktemp("letters") / "m"
    return scripted.save_model(folder, follows, chat_template=scripted.CHAT_WITH_REQUEST)


def test_a_chat_server_writes_new_prompts(serve, letters, tmp_path):
    writer = ServerWriter(url=serve(letters), model=str(letters), key_variable=None, answers=tmp_path)
    writer.check()
    text = writer.template.few_shot([Prompt("one"), Prompt("two")])
    made = writer.write([text] * 3, list("abc"), Sampling(8), stop=(LIST_MARK,), label="0 expand")
    assert [("ak", True)] * 3 == [(each.text, each.finished) for each in made]
    (cut,) = writer.write([text], ["d"], Sampling(1), stop=(LIST_MARK,), label="0 expand")
    assert ("a", False, 1) == (cut.text, cut.finished, cut.tokens)


def test_a_key_decides_what_a_server_samples_if_it_is_asked_for_one_text_at_a_time(serve, letters):
    # This server samples where the model's own settings say so, whatever the temperature.
    samples = {"generation_config": json.dumps({"do_sample": True, "eos_token_id": 1})}
    writer = ServerWriter(
        url=serve(letters),
        model=str(letters),
        key_variable=None,
        extra=samples,
        concurrency=1,
        max_retries=0,
        answers=None,
    )
    keys = [str(number) for number in range(12)]
    first = writer.write(["text"] * 12, keys, Sampling(8, 1.0), stop=(), label="0 expand")
    again = replace(writer).write(["text"] * 12, keys, Sampling(8, 1.0), stop=(), label="0 expand")
    assert first == again
    assert {"ak", "bk", "ck", "dk"} >= {each.text for each in first}
    assert len({each.text for each in first}) > 1


@pytest.mark.parametrize("stop", [(), ("e",), ("x", "e")])
def test_a_server_generates_greedily_what_we_do(serve, llama, trainer, stop):
    model = LanguageModel(tiny.weights(llama))
    engine = ServerEngine(url=serve(llama), models={model.name: str(llama)}, otherwise=None, key_variable=None)
    engine.check([model], 8)
    prompts = ["one", "another, longer one", "Größe"]
    requests = [Request(encode_prefix(model, model.template.prefix(Prompt(text))), text) for text in prompts]
    made = engine.generate(model, requests, Sampling(24), trainer, stop=stop, label="0 answer")
    assert generate(model, requests, Sampling(24), trainer, stop=stop) == made
