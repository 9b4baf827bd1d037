"""How different prompts are: by their words, and by where a model puts them."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModel, T5Config

from tests.fabricated_runs import write_sweep
from tests.tiny import save_model
from tskd.errors import ModelError
from tskd.metrics.iteration import distinct
from tskd.report import diversity, findings, runs, tables
from tskd.report.embeddings import BATCH, Embedder

TEXTS = ["a", "where is the harbour of Aham?", "b" * 40]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("embeddings") / "tiny")


class OneAxisEach:
    """Embeds each different text at a right angle to the others."""

    name = "axes"

    def __call__(self, texts):
        return np.eye(len(texts))


def test_texts_that_are_alike_have_a_high_self_bleu_and_few_distinct_words():
    alike, different = (
        ["where is the harbour of Aham"] * 3,
        ["where is Aham", "name two rivers", "who sells bread here"],
    )
    assert 100 == pytest.approx(diversity.self_bleu(alike))
    assert diversity.self_bleu(different) < 40
    assert distinct(alike, 2) == pytest.approx(5 / 15)
    assert (1, None, None) == (distinct(different, 2), diversity.self_bleu(["one"]), distinct([], 1))


def test_the_vendi_score_counts_what_is_different():
    assert 1 == pytest.approx(diversity.vendi(np.tile([0.6, 0.8, 0], (7, 1))))
    assert 7 == pytest.approx(diversity.vendi(np.eye(7)))
    assert 3 == pytest.approx(diversity.vendi(np.repeat(np.eye(3), 4, axis=0)))


def test_the_vendi_score_is_the_entropy_of_the_kernels_eigenvalues():
    vectors = np.random.default_rng(0).normal(size=(9, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(vectors @ vectors.T / 9)[-4:]  # the other five are zero
    assert math.exp(-(eigenvalues * np.log(eigenvalues)).sum()) == pytest.approx(diversity.vendi(vectors))


def test_the_mean_distance_is_that_of_all_pairs():
    vectors = np.array([[1, 0], [1, 0], [0, 1], [-1, 0]], dtype=float)
    pairs = [0, 1, 2, 1, 2, 1]
    assert np.mean(pairs) == pytest.approx(diversity.mean_distance(vectors))


def test_kinds_of_texts_are_compared_by_as_many_of_each():
    many, few, one = [str(i) for i in range(50)], ["x", "y", "z"], ["alone"]
    first, second, third = diversity.spreads([many, few, one], OneAxisEach())
    assert (3, 3, None) == (first.n, second.n, third)
    assert (3, 1) == pytest.approx((first.vendi, first.distance))


def test_a_text_is_where_the_mean_of_its_hidden_states_points_whatever_is_beside_it(model):
    embed = Embedder(str(model))
    bare = AutoModel.from_pretrained(model)
    for text, vector in zip(TEXTS, embed(TEXTS * BATCH), strict=False):
        ids = embed._weights.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            mean = bare(input_ids=ids).last_hidden_state[0].mean(0)
        assert (mean / mean.norm()).numpy() == pytest.approx(vector, abs=1e-5)


def test_a_text_longer_than_the_model_is_cut(model):
    assert 1 == pytest.approx(np.linalg.norm(Embedder(str(model))(["c" * 2000])))


def test_a_report_has_the_spread_of_each_arms_prompts_where_a_model_is_named(tmp_path, model):
    write_sweep(tmp_path, thresholds=(0.5, 4), seeds=(0,), targets=["atlas_neox"])
    (study,) = runs.collect([tmp_path]).studies
    plain, embedded = (
        tables.tables_of_findings(findings.analyse_study(study, embed))[1] for embed in (None, Embedder(str(model)))
    )
    heads = [column.name for column in embedded.columns]
    assert heads == [*(column.name for column in plain.columns), "Vendi score", "mean cosine distance"]
    assert "embedded by tiny" in embedded.caption
    assert "Vendi" not in plain.caption
    for row in embedded.rows:
        vendi, distance = row[-2:]
        assert 1 < vendi < 180
        assert 0 < distance < 2


def test_a_model_that_cannot_embed_is_one_line(tmp_path):
    with pytest.raises(ModelError, match="There is no folder .*nowhere"):
        Embedder(str(tmp_path / "nowhere"))(["a"])
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is an encoder and a decoder"):
        Embedder(str(tmp_path))(["a"])
