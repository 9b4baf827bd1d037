"""What a run has of a server: new prompts by its model, and texts by those of the run that it has."""

import pytest
from hydra import compose, initialize_config_dir

from tests import tiny
from tskd.config import hydra_plugins
from tskd.config.build import build
from tskd.config.cost_estimate import plan
from tskd.config.saved import resolved
from tskd.engines import own
from tskd.engines.server import ServerEngine
from tskd.errors import ConfigError
from tskd.models.encoding import encode_prefix
from tskd.models.generation import Generation, Request, Sampling
from tskd.models.weights import LanguageModel
from tskd.modules.trainer import LightningTrainer


@pytest.fixture(autouse=True)
def without_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def built(tmp_path, *overrides):
    hydra_plugins.register()
    with initialize_config_dir(hydra_plugins.folder(), version_base="1.3"):
        cfg = resolved(compose("config", overrides=["store=off", *overrides]))
    return cfg, build(cfg, tmp_path)


def test_no_server_is_asked_unless_its_address_is_given(tmp_path):
    with pytest.raises(ConfigError, match="expansion.writer.url.*set it on the command line"):
        built(tmp_path, "expansion=openai", "expansion.writer.model=m")


def test_a_server_writes_for_the_expansions_that_ask_and_can_be_planned(serve, tmp_path):
    stub = serve(lambda number, body: f"new {number}")
    address = ["expansion=openai", f"expansion.writer.url={stub.url}", "expansion.writer.model=m"]
    cfg, run = built(tmp_path, *address, f"expansion.writer.answers={tmp_path}", "expansion.num_drafts=3")
    run.stages.expand.check_lengths(run.seeds)
    drafts = [work.items.number for work in plan(cfg).work if work.stage == "expand"]
    assert [3, 3, 3] == drafts
    assert [] == stub.requests
    made = run.stages.expand(run.seeds, run.seeds, 0)
    assert {"new 1", "new 2", "new 3"} == {prompt.text for prompt in made.prompts}
    assert 9 == made.tokens
    inline = (
        f"expansion.writer={{_target_: tskd.stages.writers.ServerWriter, url: '{stub.url}', model: m, answers: null}}"
    )
    _, run = built(tmp_path, "expansion=evolve", inline, "expansion.num_drafts=1")
    assert 1 == len(run.stages.expand(run.seeds, run.seeds, 0).prompts)
    assert "Rewrite the prompt below, to " in stub.requests[-1]["messages"][0]["content"]
    for other in ("numbered_list", "self"):
        _, run = built(tmp_path, f"expansion={other}", inline)
        with pytest.raises(ConfigError, match="A chat server .*; set `expansion` to few_shot or evolve"):
            run.stages.expand.check_lengths(run.seeds)


class Noted:
    """An engine that only tells whom it was asked for."""

    def __init__(self):
        self.models = []

    def generate(self, model, requests, sampling, trainer, *, stop, label):
        self.models.append(model)
        return [Generation("own", True, 1)] * len(requests)


@pytest.fixture
def served(serve):
    def start(models, behave=lambda number, body: " text"):
        stub = serve(behave)
        return stub, ServerEngine(url=stub.url, models=models, otherwise=Noted(), backoff=0.001)

    return start


def generate(engine, model, ids=(0, 70, 71)):
    trainer = LightningTrainer(accelerator="cpu", progress=False)
    return engine.generate(model, [Request(ids, "key")], Sampling(8), trainer, stop=(), label="0 answer")


def test_base_and_teacher_are_the_servers_and_all_others_our_own(served, llama, neox, adapter):
    base, teacher = LanguageModel(tiny.weights(llama)), LanguageModel(tiny.weights(llama), str(adapter))
    target = LanguageModel(tiny.weights(neox))
    stub, engine = served({base.name: "b", str(adapter): "t"})
    engine.check([base, teacher, target], 8)
    made = [generate(engine, model)[0].text for model in (base, teacher, target, LanguageModel(target.weights, "x"))]
    assert [" text", " text", "own", "own"] == made
    assert ["b", "t"] == [body["model"] for body in stub.requests]
    assert "/v1/completions" == stub.paths[-1]
    assert [target, LanguageModel(target.weights, "x")] == engine.otherwise.models
    assert not base.weights.is_loaded


def test_a_name_that_the_run_does_not_have_is_refused(served, llama):
    _, engine = served({"lama": "b"})
    with pytest.raises(ConfigError, match="`engine.models` names lama, and the run has tiny-llama; use these"):
        engine.check([LanguageModel(tiny.weights(llama))], 8)


def test_what_generates_by_the_configuration_is_the_server_for_whom_it_names(serve, tmp_path):
    stub = serve(lambda number, body: " from the server")
    served = ["engine=server", f"engine.url={stub.url}", "engine.models={atlas_llama: b}"]
    _, run = built(tmp_path, *served)
    run.check_models()
    requests = [Request(encode_prefix(run.base, "Question: one?"))]
    assert " from the server" == own.generate(run.base, requests, Sampling(4), run.trainer, run.engine)[0].text
    assert " from the server" != own.generate(run.teacher, requests, Sampling(4), run.trainer, run.engine)[0].text
    assert 1 == len(stub.requests)
    _, run = built(tmp_path, *served, "+engine.otherwise.merge_adapter=true", "target.checkpoint.device_map=auto")
    with pytest.raises(ConfigError, match="`engine.merge_adapter` cannot copy 'atlas_neox'"):
        run.check_models()


def test_an_engine_that_shares_nothing_out_wants_one_process(served, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="`engine=server` runs in one process, and there are 2"):
        served({"lama": "b"})


@pytest.mark.parametrize("with_start", [True, False])
def test_the_server_reads_exactly_the_tokens_of_a_request(served, llama, with_start):
    model = LanguageModel(tiny.weights(llama))
    stub, engine = served({model.name: "b"})
    bare = tuple(model.tokenizer("Größe </s>?", add_special_tokens=False).input_ids)
    generate(engine, model, (model.tokenizer.bos_token_id, *bare) if with_start else bare)
    prompt = stub.requests[0]["prompt"]
    # Its tokenizer puts a start token before any text, so what shall have none is given as ids.
    assert ("Größe </s>?" if with_start else list(bare)) == prompt
