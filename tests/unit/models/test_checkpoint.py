"""The checkpoints in conf/model: their facts are sound, and each of their architectures loads and is scored rightly."""

import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from tests import scripted, tiny
from tskd.config import hydra_plugins, schema
from tskd.errors import ConfigError
from tskd.models.checkpoint import ZOO, Checkpoint
from tskd.models.encoding import encode_response
from tskd.models.weights import LanguageModel, Weights
from tskd.modules.scorer import score
from tskd.records import Prompt, Response

CONF = Path(hydra_plugins.folder())
NAMES = sorted(file.stem for file in (CONF / "model").glob("[a-z]*.yaml"))


def checkpoint(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return schema.make(Checkpoint, OmegaConf.to_container(compose(f"model/{name}").model), "model")


CHECKPOINTS = [checkpoint(name) for name in NAMES]
FROM_HUB = [made for made in CHECKPOINTS if not made.path.startswith(ZOO)]
ARCHITECTURES = sorted({made.architecture for made in CHECKPOINTS})


@pytest.mark.parametrize("placed", [{"quantization": "4bit"}, {"device_map": "auto"}])
def test_what_is_placed_while_it_is_loaded_cannot_be_shared_out_by_layers(placed):
    with pytest.raises(ConfigError, match=rf"{next(iter(placed.values()))}.*`trainer=fsdp` shares out") as error:
        Checkpoint("large", "some/where", sharded=True, **placed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_has_the_name_of_its_file_and_states_what_it_is(name):
    made = checkpoint(name)
    assert name == made.name
    assert made.architecture in CONFIG_MAPPING
    assert made.licence
    assert not made.is_placed  # where a model fits is a fact of the machine


@pytest.mark.parametrize("made", FROM_HUB, ids=lambda made: made.name)
def test_a_checkpoint_of_the_hub_is_an_owner_a_name_and_a_commit(made):
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", made.path)
    assert made.revision is None or re.fullmatch(r"[0-9a-f]{40}", made.revision)


@pytest.mark.parametrize("fact", ["path", "revision"])
def test_no_two_checkpoints_are_one(fact):
    facts = [getattr(made, fact) for made in FROM_HUB if getattr(made, fact) is not None]
    assert len(facts) == len({*facts})


@pytest.mark.parametrize("group", ["base", "base_for_scoring", "target"])
def test_every_checkpoint_can_take_every_part(group):
    files = {file.stem: OmegaConf.to_container(OmegaConf.load(file)) for file in (CONF / group).glob("*.yaml")}
    rate = {"learning_rate"} if group == "target" else set()
    assert {name: [{"/model@checkpoint": name}] for name in NAMES} == {k: v["defaults"] for k, v in files.items()}
    assert all({"defaults"} | rate == content.keys() for content in files.values())


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request, tmp_path_factory):
    """Two random layers of an architecture, a tokenizer that pads with its end token, and a chat template."""
    tokenizer = tiny.byte_tokenizer("<s>", scripted.END)
    tokenizer.chat_template = scripted.CHAT_WITH_REQUEST  # without {% generation %}, like nearly all on the hub
    settings = AutoConfig.for_model(
        request.param,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=8,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / request.param
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_each_architecture_loads_from_a_folder_under_its_own_name(folder):
    weights = tiny.weights(folder)
    weights.check_loadable()
    assert folder.name == weights.config.model_type == weights.model.config.model_type


def test_each_architecture_loads_in_the_data_type_of_its_configuration(folder):
    weights = Weights(Checkpoint(folder.name, str(folder), dtype="bfloat16"))
    assert {torch.bfloat16} == {parameter.dtype for parameter in weights.model.parameters()}


def test_each_architecture_is_scored_as_transformers_scores_the_response_alone(folder, trainer):
    model = LanguageModel(tiny.weights(folder))
    assert model.pad_token == model.template.end_token()
    texts = {"One?": "1", "Two, please?": "a much longer answer", "Three?": ""}
    responses = [Response(Prompt(prompt), text, finished=True) for prompt, text in texts.items()]
    scored = score(responses, model, model, trainer)
    network = AutoModelForCausalLM.from_pretrained(folder)
    for response, got in zip(responses, scored, strict=True):
        sequence = encode_response(model, response.prompt, response.text, finished=True)
        ids = torch.tensor([sequence.ids])
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < sequence.first_target, -100)
        with torch.inference_mode():
            expected = network(input_ids=ids, labels=labels).loss.item()
        assert len(response.text.encode()) + 1 == got.tokens  # its bytes, and the end token that is the pad token too
        assert got.base_nll == got.teacher_nll == pytest.approx(expected, rel=1e-4)
