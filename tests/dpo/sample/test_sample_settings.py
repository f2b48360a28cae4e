"""Every setting of `dpo sample` reaches what draws the answers: each test fails when its setting is ignored."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from dpo_helpers import prompt_rows, read_jsonl, write_jsonl
from sampling import run_sample

from dpo.chat import to_messages
from dpo.cli import main
from dpo.sample.base import Decoding, Request, prompt_seed
from dpo.sample.sample import open_sampler
from dpo.sample.sample_config import SampleConfig
from dpo.sample.transformers_sampler import TransformersSampler
from judge_pipeline.common.record_files import read_prompts

HERE = ("--engine", "transformers", "--device", "cpu", "--dtype", "float32")


def bare(tmp_path: Path, model: Path | str, *flags: str) -> int:
    """The command with the settings that it must have, and no other."""
    prompts = write_jsonl(tmp_path / "prompts.jsonl", prompt_rows(2))
    return main(
        ["sample", str(prompts), "--model", str(model), "--output", str(tmp_path / "out.jsonl"), *flags]
    )


def texts(tmp_path: Path) -> list[str]:
    return [answer["text"] for row in read_jsonl(tmp_path / "out.jsonl") for answer in row["responses"]]


def drawn(tmp_path: Path, model: Path, *flags: str) -> list[str]:
    assert run_sample(tmp_path, model, *HERE, "--existing", "replace", *flags) == 0
    return texts(tmp_path)


def test_an_endpoint_is_asked_for_what_the_paper_draws(tmp_path, endpoint):
    assert bare(tmp_path, "m", "--base-url", endpoint.url, "--concurrency", "1") == 0
    asked = [{name: call[name] for name in ("model", "n", "temperature", "seed")} for call in endpoint.calls]
    assert asked == [
        {"model": "m", "n": 10, "temperature": 1.0, "seed": prompt_seed(0, name)} for name in ("p0", "p1")
    ]
    assert {call["max_tokens"] for call in endpoint.calls} == {1024}
    assert all(call.get("top_p", 1.0) == 1.0 for call in endpoint.calls)
    # Said outright, because a server would fill in what the model's generation_config asks for.
    neutral = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert all({name: call[name] for name in neutral} == neutral for call in endpoint.calls)
    assert not {"stop", "chat_template_kwargs", "tools"} & endpoint.calls[0].keys()
    assert endpoint.calls[0]["messages"] == [
        {"role": "user", "content": "{context}\n\n{query}".format(**prompt_rows(1)[0])}
    ]
    assert [len(row["responses"]) for row in read_jsonl(tmp_path / "out.jsonl")] == [10, 10]


def test_an_endpoint_is_sent_every_setting(tmp_path, endpoint):
    flags = ("--n", "4", "--temperature", "0.3", "--top-p", "0.8", "--max-new-tokens", "77", "--seed", "5")
    flags += ("--top-k", "5", "--min-p", "0.1", "--repetition-penalty", "1.2", "--stop", "END", "Q:")
    flags += ("--chat-template-kwargs", "enable_thinking=false")
    assert bare(tmp_path, "another", "--base-url", endpoint.url, "--concurrency", "1", *flags) == 0
    expected = {"model": "another", "n": 4, "temperature": 0.3, "top_p": 0.8, "max_tokens": 77}
    expected |= {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "stop": ["END", "Q:"]}
    expected |= {"chat_template_kwargs": {"enable_thinking": False}}
    for call, name in zip(endpoint.calls, ("p0", "p1"), strict=True):
        assert {key: call[key] for key in expected} == expected
        assert call["seed"] == prompt_seed(5, name) != prompt_seed(0, name)


def test_a_strict_endpoint_is_not_sent_what_is_neutral(tmp_path, endpoint, capsys):
    endpoint.mode = "strict"
    assert bare(tmp_path, "m", "--base-url", endpoint.url, "--concurrency", "1") == 0
    assert len(endpoint.calls) == 5  # three are refused, one a field
    assert bare(tmp_path, "m", "--base-url", endpoint.url, "--top-k", "5", "--existing", "replace") == 1
    assert "Unrecognized request arguments supplied: top_k" in capsys.readouterr().err


def test_the_key_is_the_named_variables(tmp_path, endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "usual")
    monkeypatch.setenv("ANOTHER_KEY", "secret")
    assert bare(tmp_path, "m", "--base-url", endpoint.url, "--api-key-variable", "ANOTHER_KEY") == 0
    assert set(endpoint.keys) == {"Bearer secret"}


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_prompts_are_asked_at_once_than_allowed(tmp_path, endpoint, most):
    endpoint.slow_s = 0.1
    write_jsonl(tmp_path / "prompts.jsonl", prompt_rows(6))
    assert run_sample(tmp_path, "m", "--base-url", endpoint.url, "--concurrency", str(most)) == 0
    assert max(endpoint.at_once) == most


def test_the_seed_and_the_temperature_make_the_answers(tmp_path, tiny_model):
    first = drawn(tmp_path, tiny_model)
    assert drawn(tmp_path, tiny_model, "--seed", "0", "--temperature", "1.0") == first
    assert len(set(first)) == len(first) == 12
    assert not set(drawn(tmp_path, tiny_model, "--seed", "1")) & set(first)
    assert drawn(tmp_path, tiny_model, "--temperature", "0.6") != first
    greedy = drawn(tmp_path, tiny_model, "--temperature", "0")
    assert greedy == [text for prompt in range(4) for text in [greedy[3 * prompt]] * 3]
    assert drawn(tmp_path, tiny_model, "--top-p", "0.0001") == greedy


def test_only_the_likeliest_tokens_are_drawn(tmp_path, tiny_model):
    greedy = drawn(tmp_path, tiny_model, "--temperature", "0")
    assert drawn(tmp_path, tiny_model, "--top-k", "1") == greedy
    assert drawn(tmp_path, tiny_model, "--min-p", "0.999") == greedy
    assert len(set(drawn(tmp_path, tiny_model, "--top-k", "2"))) > len(set(greedy))
    assert len(set(drawn(tmp_path, tiny_model, "--min-p", "0.3"))) > len(set(greedy))


def test_the_penalty_is_that_of_generate(tmp_path, tiny_model):
    flags = ("--temperature", "0", "--n", "1", "--max-new-tokens", "24")
    plain = drawn(tmp_path, tiny_model, *flags)
    found = drawn(tmp_path, tiny_model, *flags, "--repetition-penalty", "9")
    sampler = TransformersSampler(str(tiny_model), device="cpu", dtype="float32")
    messages = to_messages(next(read_prompts(tmp_path / "out.jsonl")))
    ids = torch.tensor([sampler.encoder.ids(messages, add_generation_prompt=True)])
    sampler.model.set_attn_implementation("sdpa")
    made = sampler.model.generate(ids, max_new_tokens=24, do_sample=False, repetition_penalty=9.0)
    expected = sampler.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    assert found[0] == expected
    assert found != plain


def test_stop_texts_end_an_answer_and_are_no_part_of_it(tmp_path, tiny_model):
    whole = drawn(tmp_path, tiny_model, "--max-new-tokens", "12")
    word = whole[0].strip()[3:5]
    cut = drawn(tmp_path, tiny_model, "--max-new-tokens", "12", "--stop", word, "never said")
    assert cut == [text.split(word)[0] for text in whole]
    answer = read_jsonl(tmp_path / "out.jsonl")[0]["responses"][0]
    assert (answer["finish_reason"], answer["flags"]) == ("stop", [])
    assert answer["tokens"] < 12


def test_what_a_models_generation_config_asks_for_is_ignored_and_said(tmp_path, tiny_model, capsys):
    plain = drawn(tmp_path, tiny_model)
    assert "generation_config" not in capsys.readouterr().err
    wishing = shutil.copytree(tiny_model, tmp_path / "wishing")
    wishes = {"temperature": 0.1, "top_k": 1, "repetition_penalty": 1.5, "do_sample": True, "eos_token_id": 2}
    (wishing / "generation_config.json").write_text(json.dumps(wishes))
    assert drawn(tmp_path, wishing) == plain
    said = capsys.readouterr().err
    assert "generation_config asks for temperature 0.1, top_k 1, repetition_penalty 1.5: ignored" in said
    run = yaml.safe_load((tmp_path / "out.jsonl.run.yaml").read_text())
    assert run["sampler"]["ignored_generation_config"]["top_k"] == 1


def test_answers_end_where_they_are_told(tmp_path, tiny_model):
    assert drawn(tmp_path, tiny_model, "--n", "2", "--max-new-tokens", "3")
    answers = [answer for row in read_jsonl(tmp_path / "out.jsonl") for answer in row["responses"]]
    assert len(answers) == 8
    assert {answer["tokens"] for answer in answers if answer["finish_reason"] == "length"} == {3}


def sampler_of(model: Path | str, **settings: Any) -> Any:
    return open_sampler(SampleConfig(prompts="p.jsonl", output="o.jsonl", model=str(model), **settings))


def test_weights_lie_where_and_as_they_are_told(tiny_model):
    sampler = sampler_of(tiny_model, engine="transformers", device="meta", dtype="float16")
    assert (sampler.model.device.type, sampler.model.dtype) == ("meta", torch.float16)


def test_an_endpoint_is_the_engine_where_there_is_an_address(tiny_model):
    assert sampler_of("m", base_url="http://127.0.0.1:9/v1").name == "endpoint"
    assert (
        sampler_of(tiny_model, base_url="http://127.0.0.1:9/v1", engine="transformers").name == "transformers"
    )


@pytest.fixture
def fake_vllm(monkeypatch) -> dict[str, Any]:
    """What reaches vLLM's own classes, where it is not installed; `test_vllm_sampler` draws with the real one."""
    given: dict[str, Any] = {}

    class Llm:
        llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=99))

        def __init__(self, **arguments: Any) -> None:
            given["llm"] = arguments

        def generate(self, prompts: Any, params: Any, **more: Any) -> list[Any]:
            given.update(params=params, more=more)
            part = SimpleNamespace(text="yes", finish_reason="length", index=1, token_ids=[3, 4])
            return [SimpleNamespace(outputs=[part]) for _ in prompts]

    def module(name: str, **names: Any) -> None:
        made = types.ModuleType(name)
        vars(made).update(names)
        monkeypatch.setitem(sys.modules, name, made)

    module("vllm", LLM=Llm, SamplingParams=dict)
    module("vllm.lora")
    module("vllm.lora.request", LoRARequest=lambda *fields: fields)
    monkeypatch.setattr("dpo.sample.sample.require_vllm", lambda _: None)
    return given


ASKED = Request("p", [{"role": "user", "content": "a"}], 3, 7)


def test_vllm_is_given_every_setting(tiny_model, fake_vllm):
    sampler = sampler_of(tiny_model, engine="vllm", dtype="float16", engine_args={"max_model_len": 99})
    assert fake_vllm["llm"]["model"] == str(tiny_model)
    assert (fake_vllm["llm"]["dtype"], fake_vllm["llm"]["max_model_len"]) == ("float16", 99)
    assert "enable_lora" not in fake_vllm["llm"]
    how = Decoding(0.3, 0.8, 77, top_k=5, min_p=0.1, repetition_penalty=1.2, stop=("END",))
    draws = [draws for _, draws in sampler.answer([ASKED], how)]
    expected = {"temperature": 0.3, "top_p": 0.8, "max_tokens": 77, "n": 3, "seed": 7}
    expected |= {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "stop": ["END"]}
    assert fake_vllm["params"] == [expected]
    assert "lora_request" not in fake_vllm["more"]
    assert [(draw.seed, draw.finish, draw.tokens) for draw in draws[0]] == [(8, "length", 2)]


def test_a_greedy_answer_is_asked_for_once_and_stands_for_all(tmp_path, tiny_model, fake_vllm, endpoint):
    sampler = sampler_of(tiny_model, engine="vllm")
    draws = next(draws for _, draws in sampler.answer([ASKED], Decoding(temperature=0)))
    assert fake_vllm["params"][0]["n"] == 1  # vLLM refuses more
    assert [(draw.text, draw.seed) for draw in draws] == [("yes", 8), ("yes", 9), ("yes", 10)]
    assert bare(tmp_path, "m", "--base-url", endpoint.url, "--n", "3", "--temperature", "0") == 0
    assert len(endpoint.calls) == 2
    assert not any("n" in call for call in endpoint.calls)
    assert [len(row["responses"]) for row in read_jsonl(tmp_path / "out.jsonl")] == [3, 3]


def test_vllm_serves_an_adapter_over_its_base(tmp_path, tiny_model, fake_vllm):
    config = {"base_model_name_or_path": str(tiny_model), "r": 24, "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    sampler = sampler_of(tmp_path, engine="vllm")
    given = fake_vllm["llm"]
    assert (given["model"], given["enable_lora"], given["max_lora_rank"]) == (str(tiny_model), True, 32)
    assert sampler.template  # the base's: the adapter brought no tokenizer
    list(sampler.answer([ASKED], Decoding()))
    assert fake_vllm["more"]["lora_request"] == ("policy", 1, str(tmp_path))
