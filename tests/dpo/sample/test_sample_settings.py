"""Every setting of `dpo sample` reaches what draws the answers: each test fails when its setting is ignored."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dpo_helpers import prompt_rows, read_jsonl, write_jsonl
from sampling import run_sample

from dpo.cli import main
from dpo.sample.base import Decoding, Request, prompt_seed
from dpo.sample.sample import open_sampler
from dpo.sample.sample_config import SampleConfig

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
    assert endpoint.calls[0]["messages"] == [
        {"role": "user", "content": "{context}\n\n{query}".format(**prompt_rows(1)[0])}
    ]
    assert [len(row["responses"]) for row in read_jsonl(tmp_path / "out.jsonl")] == [10, 10]


def test_an_endpoint_is_sent_every_setting(tmp_path, endpoint):
    flags = ("--n", "4", "--temperature", "0.3", "--top-p", "0.8", "--max-new-tokens", "77", "--seed", "5")
    assert bare(tmp_path, "another", "--base-url", endpoint.url, "--concurrency", "1", *flags) == 0
    expected = {"model": "another", "n": 4, "temperature": 0.3, "top_p": 0.8, "max_tokens": 77}
    for call, name in zip(endpoint.calls, ("p0", "p1"), strict=True):
        assert {key: call[key] for key in expected} == expected
        assert call["seed"] == prompt_seed(5, name) != prompt_seed(0, name)


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


def test_vllm_is_given_every_setting(tiny_model, monkeypatch):
    """What reaches vLLM's own classes, where it is not installed; `test_vllm_sampler` draws with the real one."""
    given: dict[str, Any] = {}

    class Llm:
        llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=99))

        def __init__(self, **arguments: Any) -> None:
            given["llm"] = arguments

        def generate(self, prompts: Any, params: Any, **_: Any) -> list[Any]:
            given["params"] = params
            part = SimpleNamespace(text="yes", finish_reason="length", index=1, token_ids=[3, 4])
            return [SimpleNamespace(outputs=[part]) for _ in prompts]

    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = Llm, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr("dpo.sample.sample.require_vllm", lambda _: None)
    sampler = sampler_of(tiny_model, engine="vllm", dtype="float16", engine_args={"max_model_len": 99})
    assert given["llm"]["model"] == str(tiny_model)
    assert (given["llm"]["dtype"], given["llm"]["max_model_len"]) == ("float16", 99)
    request = Request("p", [{"role": "user", "content": "a"}], 3, 7)
    draws = [draws for _, draws in sampler.answer([request], Decoding(0.3, 0.8, 77))]
    assert {"temperature": 0.3, "top_p": 0.8, "max_tokens": 77, "n": 3, "seed": 7}.items() <= given["params"][
        0
    ].items()
    assert [(draw.seed, draw.finish, draw.tokens) for draw in draws[0]] == [(8, "length", 2)]
