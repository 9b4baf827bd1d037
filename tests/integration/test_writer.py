"""A whole run whose prompts a server writes, as users start it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.stub import Stub, refused
from tskd.tasks.atlas import FACTS

KEY = "sk-planted-0123456789"
SMALL = [
    *("iterations=1", "expansion.num_drafts=12", "training.lora.epochs=1", "training.replay.source=none"),
    *("trainer.accelerator=cpu", "store=off", "hydra.run.dir=run"),
]
PLACES = list(json.loads(FACTS.read_text())["private"])


def tskd(cwd, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PLANTED_KEY": KEY}
    command = [sys.executable, "-m", "tskd.run", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_a_run_that_a_server_has_failed_goes_on_where_it_was_and_the_key_is_nowhere(tmp_path):
    def fails_at_the_fifth(number, body):
        return refused(400, f"no more for {KEY}") if number == 5 else f"Prompt: {PLACES[number]}"

    with Stub(fails_at_the_fifth) as stub:
        server = [f"expansion.writer.{each}" for each in (f"url={stub.url}", "model=m", "key_variable=PLANTED_KEY")]
        code, printed = tskd(tmp_path, *SMALL, "expansion=openai", *server, "expansion.writer.concurrency=1")
        assert 1 == code, printed
        assert f"Seeds and kept prompts are sent to {stub.url} (model m)." in printed
        assert f"{stub.url} refuses with status 400 (no more for (key)); `extra` adds a field" in printed
        assert "Traceback" not in printed
        asked_before = len(stub.requests)
        code, again = tskd(tmp_path, "resume=run")
        assert 0 == code, again
    assert 5 == asked_before
    assert 5 + 8 == len(stub.requests)  # of 12 drafts, four were there
    assert {f"Bearer {KEY}"} == {headers["Authorization"] for headers in stub.headers}
    prompts = [json.loads(line) for line in (tmp_path / "run/iteration_0/prompts.jsonl").read_text().splitlines()]
    texts = {prompt["text"] for prompt in prompts}
    assert len(texts) > 4
    assert texts <= set(PLACES)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert "outputs/.server/http_127_0_0_1" in str([str(file) for file in files])
    assert not [file for file in files if KEY.encode() in file.read_bytes()]
    assert KEY not in printed + again
