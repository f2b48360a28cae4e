"""Log-probabilities of answers taken on the way: the language model's own, however a prompt is read, and in a readout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from judge_pipeline.common.errors import UserError
from reward_model.cli import main
from reward_model.modeling.features import read_features
from reward_model.modeling.language_head import FILE, LanguageHead, LogProbReader
from reward_model.modeling.model import load_backbone_for_rm, read_manifest
from reward_model.scoring.scorer import RewardModel
from reward_model.shared_prefix.exactness import prepare_shared_prefix
from tests.reward_model.conftest import make_prompts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["own head", "tied"])
def base(request, tiny_base: Path, tmp_path_factory) -> Path:
    if request.param == "own head":
        return tiny_base
    folder = tmp_path_factory.mktemp("tied")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    config = AutoConfig.from_pretrained(tiny_base)
    config.tie_word_embeddings = True
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def reference(base: Path, prefix, answer) -> tuple[float, float]:
    """Mean and sum over an answer's tokens but the first, by plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    ids = torch.tensor(np.concatenate([prefix, answer]))[None]
    with torch.no_grad():
        log_probs = model(ids).logits[0].log_softmax(-1)
    places = range(len(prefix), len(prefix) + len(answer) - 1)
    values = [float(log_probs[place, ids[0, place + 1]]) for place in places]
    return float(np.mean(values)), float(np.sum(values))


@pytest.mark.parametrize(("shared", "budget"), [(True, 4000), (True, 60), (False, 4000)])
def test_they_are_the_language_models_own(base, shared, budget):
    backbone = load_backbone_for_rm(str(base), dtype=torch.float32)
    if shared:
        prepare_shared_prefix(backbone.model, chunked=True)
    backbone.model.eval()
    prompts = [
        backbone.renderer.encode(row["context"], row["query"], [item["text"] for item in row["responses"]])
        for row in make_prompts(3)
    ]
    head = LanguageHead.of_base(backbone.model, str(base))
    reader = LogProbReader(head)
    features = read_features(
        backbone.model,
        prompts,
        token_budget=budget,
        shared=shared,
        layers=[1, -1],
        pooling="mean",
        log_probs=reader,
    )
    plain = read_features(
        backbone.model, prompts, token_budget=budget, shared=shared, layers=[1, -1], pooling="mean"
    )
    torch.testing.assert_close(features[..., :-2], plain)
    expected = [reference(base, prompt.prefix, answer) for prompt in prompts for answer in prompt.answers]
    for layer in (0, 1):
        torch.testing.assert_close(features[:, layer, -2:], torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_an_answer_of_one_token_has_none(base):
    backbone = load_backbone_for_rm(str(base), dtype=torch.float32)
    head = LanguageHead.of_base(backbone.model, str(base))
    hidden = torch.randn(4, backbone.model.config.hidden_size)
    assert (head.log_probs(hidden, [(3, 4)], [np.array([5])]) == 0).all()


def settings(labels: Path, base: Path, output: Path, *more) -> list[str]:
    command = [
        "train",
        labels,
        "--base-model",
        base,
        "--output",
        output,
        "--method",
        "probe",
        "--device",
        "cpu",
    ]
    return [str(part) for part in (*command, "--eval-fraction", "0.25", "--token-budget", "800", *more)]


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    from tests.reward_model.conftest import write_label_run

    folder = tmp_path_factory.mktemp("likely")
    run = write_label_run(folder / "run", count=24, answers=4)
    assert main(settings(run, base, folder / "model", "--log-probs", "on")) == 0
    return run, folder / "model"


def test_a_readout_with_them_scores_alike_however_it_reads(trained, base, tmp_path):
    model = trained[1]
    manifest = read_manifest(model)
    assert manifest.readout.log_probs
    assert (model / FILE).is_file() is not json.loads((base / "config.json").read_text())[
        "tie_word_embeddings"
    ]
    rows = make_prompts(4, 3, seed=5)
    prompts = [(row["context"], row["query"], [item["text"] for item in row["responses"]]) for row in rows]
    one = RewardModel.from_pretrained(model, "cpu")
    assert one.layers == one.depth
    shared = np.concatenate(list(one.score_batch(prompts)))
    apart = RewardModel.from_pretrained(model, "cpu", shared_prefix="off")
    np.testing.assert_allclose(np.concatenate(list(apart.score_batch(prompts))), shared, atol=1e-4)
    np.testing.assert_allclose(np.concatenate(list(one.score_batch(prompts, 50))), shared, atol=1e-4)

    # The readout on features read apart: states, then mean and sum.
    spec = manifest.readout
    encoded = [one.encode(*prompt) for prompt in prompts]
    sides = []
    for group in (encoded, [prompt.withheld() for prompt in encoded]):
        states = read_features(one.model, group, token_budget=800, layers=[spec.layer], pooling=spec.pooling)[
            :, 0
        ]
        likely = [reference(base, prompt.prefix, answer) for prompt in group for answer in prompt.answers]
        sides.append(torch.cat([states, torch.tensor(likely)], dim=1))
    np.testing.assert_allclose(one.readout.apply(*sides).numpy(), shared, atol=1e-3)
    weight = one.readout.probe.weight_D_H
    assert weight[:, spec.emphasis(weight) > 1].abs().max() > 1e-6


def test_the_setting_decides(trained, base, tmp_path):
    run, _ = trained
    assert main(settings(run, base, tmp_path / "off", "--log-probs", "off")) == 0
    assert not read_manifest(tmp_path / "off").readout.log_probs


def test_a_lost_head_is_named(trained, base, tmp_path):
    import shutil

    _, model = trained
    if not (model / FILE).is_file():
        pytest.skip("a tied head has no file of its own")
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / FILE).unlink()
    with pytest.raises(UserError, match="--readout plain"):
        RewardModel.from_pretrained(copy, "cpu")
    assert RewardModel.from_pretrained(copy, "cpu", readout="plain").language_head is None


def test_a_model_without_a_language_head_is_refused_or_does_without(trained, tiny_base, tmp_path, capsys):
    """The files of a bare model hold no head."""
    run, _ = trained
    folder = tmp_path / "bare"
    AutoModel.from_pretrained(tiny_base).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    assert main(settings(run, folder, tmp_path / "on", "--log-probs", "on")) == 2
    assert "no language head" in capsys.readouterr().err
    assert main(settings(run, folder, tmp_path / "auto")) == 0
    assert not read_manifest(tmp_path / "auto").readout.log_probs


def test_answers_made_worse_are_told_by_them(base, tmp_path):
    """Where only log-probabilities differ within prompts, auto takes them."""
    from dataclasses import replace

    from reward_model.training.probe import fit_probe
    from tests.reward_model.training.test_probe import ANSWERS, silent, training_on

    backbone = load_backbone_for_rm(str(base), dtype=torch.float32)
    model = prepare_shared_prefix(backbone.model.eval())
    from reward_model.data.batches import encode_examples
    from reward_model.data.examples import Example
    from reward_model.training.feature_store import FeatureStore, probed_layers

    rng, words = np.random.default_rng(0), ["river", "stone", "lantern", "garden", "copper", "winter"]
    items = [
        Example(
            f"p{number}",
            f"d{number}",
            " ".join(rng.choice(words, 8)),
            "Which?",
            tuple(f"r{place}" for place in range(ANSWERS)),
            tuple(" ".join(rng.choice(words, 3)) for _ in range(ANSWERS)),
            np.zeros((ANSWERS, 2), np.float32),
            np.ones((ANSWERS, 2), np.float32),
        )
        for number in range(24)
    ]
    encoded = encode_examples(items, backbone.renderer.encode)
    store = FeatureStore(tmp_path / "features", probed_layers(model), encoded)
    store.read(model, 2000, head=LanguageHead.of_base(model, str(base)))
    document, _ = store.log_probs()
    likely = (document - document.mean(0)) / document.std(0)
    noise = torch.from_numpy(rng.normal(size=(len(document), 2)))
    training = training_on(store, items, (5 + 2 * likely + 0.5 * noise).numpy())
    assert fit_probe(training, silent).readout.spec.log_probs
    assert not fit_probe(training, silent, log_probs="off").readout.spec.log_probs
    unread = replace(store, folder=tmp_path / "bare")
    unread.read(model, 2000)
    assert not fit_probe(replace(training, store=unread), silent, log_probs="on").readout.spec.log_probs


def test_scaled_and_capped_logits_are_the_models(base):
    """Gemma caps its logits, Cohere and Granite scale them."""
    from dataclasses import replace

    from reward_model.shared_prefix.logps import HeadShape, token_stats

    backbone = load_backbone_for_rm(str(base), dtype=torch.float32)
    plain = LanguageHead.of_base(backbone.model, str(base))
    head = replace(plain, shape=HeadShape(scale=3.0, softcap=5.0))
    hidden = torch.randn(9, backbone.model.config.hidden_size)
    answer = np.array([5, 6, 7, 8, 9])
    with torch.no_grad():
        stats = token_stats(hidden[2:6], head.weight_V_H, None, torch.tensor([6, 7, 8, 9]), head.shape)
    expected = torch.stack([stats.log_probs.mean(), stats.log_probs.sum()])
    torch.testing.assert_close(head.log_probs(hidden, [(2, 7)], [answer])[0], expected, atol=1e-4, rtol=1e-4)
