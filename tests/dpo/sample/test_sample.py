"""Sampling: exact shared decoding, seeds, resume, flags, overflow, and a real HTTP endpoint."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from dpo_helpers import make_model, prompt_rows, read_jsonl, write_jsonl
from sampling import run_sample
from transformers import AutoModelForCausalLM

from dpo.chat import to_messages
from dpo.cli import main
from dpo.sample import answers, sample
from dpo.sample.base import Decoding, Draw, Request, prompt_seed
from dpo.sample.transformers_sampler import TransformersSampler
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_prompts
from judge_pipeline.engines import shared_decoding
from judge_pipeline.engines.shared_decoding import (
    PlainDecoder,
    PrefixMemory,
    SharedPrefixDecoder,
    draw_tokens,
    make_decoder,
    shares_exactly,
)


@pytest.mark.parametrize("decoder_class", [SharedPrefixDecoder, PlainDecoder])
def test_copies_of_a_prompt_decode_to_the_logits_of_a_plain_forward(decoder_class, monkeypatch):
    monkeypatch.setattr(shared_decoding, "PREFILL_CHUNK", 16)  # read in three pieces
    monkeypatch.setattr(shared_decoding, "ROOM", 4)  # and room for own tokens is made twice
    model = make_model().eval()
    prefix, answers = torch.randint(3, 400, (1, 40)), torch.randint(3, 400, (3, 6))
    whole = torch.cat([prefix.expand(3, -1), answers], dim=1)
    with torch.inference_mode():
        expected = model(whole).logits[:, 39:]
        if decoder_class is SharedPrefixDecoder:
            assert shares_exactly(model)
        decoder = (
            decoder_class(model) if decoder_class is PlainDecoder else decoder_class(model, PrefixMemory(0))
        )
        got = [decoder.start_copies(prefix[0].tolist(), 3)]
        got += [decoder.step(answers[:, step].tolist()) for step in range(3)]
        decoder.keep([0, 2])
        rest = [decoder.step(answers[[0, 2], step].tolist()) for step in range(3, 6)]
    torch.testing.assert_close(torch.stack(got, dim=1), expected[:, :4], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.stack(rest, dim=1), expected[[0, 2], 4:], atol=1e-4, rtol=1e-4)
    assert decoder.reused == [0, 40, 40]


def test_sliding_windows_are_not_decoded_over_a_shared_prefix():
    from transformers import MistralConfig

    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8, head_dim=16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    assert isinstance(make_decoder(model), PlainDecoder)
    assert model.config._attn_implementation == "sdpa"
    assert isinstance(make_decoder(make_model()), SharedPrefixDecoder)


def test_both_ways_of_decoding_agree_and_answers_keep_their_own_stream(tiny_model: Path):
    sampler = TransformersSampler(str(tiny_model), device="cpu", dtype="float32")
    messages = to_messages(next(iter_prompts(1)))
    how = Decoding(max_new_tokens=12)
    shared = dict_of(sampler, Request("p0", messages, 4, 7), how)
    assert isinstance(sampler.decoder, SharedPrefixDecoder)
    sampler.model.set_attn_implementation("sdpa")
    sampler.decoder = PlainDecoder(sampler.model)
    expanded = dict_of(sampler, Request("p0", messages, 4, 7), how)
    assert [draw.text for draw in shared] == [draw.text for draw in expanded]
    fewer = dict_of(sampler, Request("p0", messages, 2, 7), how)
    assert fewer == expanded[:2]
    assert len({draw.text for draw in shared}) == 4
    assert [draw.seed for draw in shared] == [7, 8, 9, 10]


def test_greedy_equals_generate(tiny_model: Path):
    sampler = TransformersSampler(str(tiny_model), device="cpu", dtype="float32")
    messages = to_messages(next(iter_prompts(1)))
    draws = dict_of(sampler, Request("p", messages, 2, 0), Decoding(temperature=0, max_new_tokens=10))
    ids = torch.tensor([sampler.encoder.ids(messages, add_generation_prompt=True)])
    sampler.model.set_attn_implementation("sdpa")
    expected = sampler.model.generate(ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :].tolist()
    if expected[-1] == 2:
        expected = expected[:-1]
    assert draws[0].text == draws[1].text == sampler.tokenizer.decode(expected, skip_special_tokens=True)


def test_top_p_keeps_the_nucleus_and_draws_follow_the_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(4000, -1)
    streams = [torch.Generator().manual_seed(i) for i in range(4000)]
    counts = torch.bincount(draw_tokens(logits, 1.0, 0.7, streams), minlength=4) / 4000
    torch.testing.assert_close(counts, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.03, rtol=0)
    streams = [torch.Generator().manual_seed(i) for i in range(4000)]
    counts = torch.bincount(draw_tokens(logits, 1.0, 1.0, streams), minlength=4) / 4000
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.03, rtol=0)


def test_flags():
    draws = [Draw("one", "stop", 0, 1), Draw(" one ", "stop", 1, 1), Draw("  ", "stop", 2, 1)]
    draws += [Draw("two", "length", 3, 9), Draw("known", "refused", 4, 1)]
    assert answers.mark(draws, {"known"}) == [
        [], ["duplicate"], ["empty"], ["truncated"], ["duplicate", "refused"],
    ]  # fmt: skip


def iter_prompts(count: int):
    from judge_pipeline.common.records import Prompt

    return iter([Prompt.model_validate(row) for row in prompt_rows(count)])


def dict_of(sampler: Any, request: Request, how: Decoding) -> list[Draw]:
    return next(iter(sampler.answer([request], how)))[1]


def test_command_writes_resumes_and_refuses_other_settings(tmp_path: Path, tiny_model: Path, capsys):
    flags = ("--engine", "transformers", "--device", "cpu", "--dtype", "float32")
    assert run_sample(tmp_path, tiny_model, *flags) == 0
    out = tmp_path / "out.jsonl"
    whole = out.read_text()
    prompts = list(read_prompts(out))
    assert [prompt.id for prompt in prompts] == ["p0", "p1", "p2", "p3"]
    first = prompts[0].responses[0]
    assert first.model_extra["seed"] == prompt_seed(0, "p0")
    assert first.source == str(tiny_model)
    assert len(prompts[0].responses) == 3
    run = yaml.safe_load(Path(f"{out}.run.yaml").read_text())
    assert "<|start|>" in run["sampler"]["chat_template"]
    assert run["sampler"]["engine"] == "transformers"

    lines = whole.splitlines(keepends=True)
    out.write_text(lines[0] + lines[1] + lines[2][: len(lines[2]) // 2])  # as a kill in the middle leaves it
    assert run_sample(tmp_path, tiny_model, *flags) == 0
    assert out.read_text() == whole
    assert "2 before" in capsys.readouterr().out

    assert run_sample(tmp_path, tiny_model, *flags, "--temperature", "0.5") == 2
    assert "temperature" in capsys.readouterr().err
    assert out.read_text() == whole


def test_existing_answers_are_kept_unless_replaced(tmp_path: Path, tiny_model: Path):
    rows = prompt_rows(1)
    rows[0]["responses"] = [{"id": "sample-0", "text": "By sea.", "source": "someone", "reward": 4.0}]
    flags = ("--engine", "transformers", "--device", "cpu")
    assert run_sample(tmp_path, tiny_model, *flags, rows=rows) == 0
    got = read_jsonl(tmp_path / "out.jsonl")[0]["responses"]
    assert [item["id"] for item in got] == ["sample-0", "sample-1", "sample-2", "sample-3"]
    assert got[0] == rows[0]["responses"][0]
    assert run_sample(tmp_path, tiny_model, *flags, "--replace", "--existing", "replace") == 0
    assert [r["id"] for r in read_jsonl(tmp_path / "out.jsonl")[0]["responses"]] == [
        "sample-0", "sample-1", "sample-2",
    ]  # fmt: skip


def test_long_prompts_are_an_error_or_left_out_never_cut(tmp_path: Path, tiny_model: Path, capsys):
    rows = [*prompt_rows(2), {**prompt_rows(1, words=600)[0], "id": "long"}]
    flags = ("--engine", "transformers", "--device", "cpu")
    assert run_sample(tmp_path, tiny_model, *flags, rows=rows) == 2
    error = capsys.readouterr().err
    assert "1 of 3 prompts" in error
    assert "'long'" in error
    assert "512" in error
    assert run_sample(tmp_path, tiny_model, *flags, "--overflow", "skip", "--existing", "replace") == 0
    assert [row["id"] for row in read_jsonl(tmp_path / "out.jsonl")] == ["p0", "p1"]


@pytest.mark.parametrize(("mode", "calls"), [("n", 4), ("no-n", None), ("few", 12), ("busy", 8), ("max", 5)])
def test_endpoint_gives_every_prompt_its_answers(tmp_path: Path, endpoint, mode: str, calls: int | None):
    endpoint.mode = mode
    assert run_sample(tmp_path, "m", "--base-url", endpoint.url, "--concurrency", "1") == 0
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == ["p0", "p1", "p2", "p3"]
    for row in rows:
        base = prompt_seed(0, row["id"])
        assert [item["text"] for item in row["responses"]] == [f"answer {base + i}" for i in range(3)]
        assert [item["seed"] for item in row["responses"]] == [base, base + 1, base + 2]
    if mode == "n":
        assert rows[0]["responses"][1]["flags"] == ["truncated"]
    if calls:
        assert len(endpoint.calls) == calls


@pytest.mark.parametrize(
    ("mode", "words"),
    [("key", ("refuses the key", "OPENAI_API_KEY")), ("model", ("does not know the model 'm'",))],
)
def test_endpoint_errors_that_concern_the_whole_run(
    tmp_path: Path, endpoint, capsys, mode: str, words: tuple[str, ...]
):
    endpoint.mode = mode
    assert run_sample(tmp_path, "m", "--base-url", endpoint.url) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words)
    endpoint.mode = "n"  # nothing was sampled, so another model may be named for the same file
    assert run_sample(tmp_path, "m2", "--base-url", endpoint.url) == 0


def test_endpoint_failures_of_one_prompt_are_counted(tmp_path: Path, endpoint, capsys):
    endpoint.mode = "long"
    assert run_sample(tmp_path, "m", "--base-url", endpoint.url) == 1
    assert "4 prompts failed" in capsys.readouterr().err
    endpoint.mode = "n"
    assert run_sample(tmp_path, "m", "--base-url", endpoint.url) == 0


def test_control_tokens_sent_to_an_endpoint_are_named(tmp_path: Path, endpoint, capsys):
    rows = prompt_rows(3)
    rows[1]["context"] = "The keeper <|im_end|> said no."
    assert run_sample(tmp_path, "m", "--base-url", endpoint.url, rows=rows) == 0
    assert "1 prompts spell what may be a control token (first 'p1')" in capsys.readouterr().err
    assert read_jsonl(tmp_path / "out.jsonl")[1]["context"] == rows[1]["context"]


def test_a_dead_endpoint_says_so_at_once(tmp_path: Path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    started = time.monotonic()
    assert run_sample(tmp_path, "m", "--base-url", url) == 2
    assert "does not answer" in capsys.readouterr().err
    assert time.monotonic() - started < 8  # with the client's retries it takes 19 s and more


def test_several_endpoints_share_the_prompts_and_a_dead_one_is_left(
    tmp_path: Path, endpoint, another_endpoint, capsys
):
    dead = "http://127.0.0.1:9/v1"
    write_jsonl(tmp_path / "prompts.jsonl", prompt_rows(8))
    assert run_sample(tmp_path, "m", "--base-url", endpoint.url, dead, another_endpoint.url) == 0
    assert f"the endpoint {dead} does not answer" in capsys.readouterr().err
    assert [row["id"] for row in read_jsonl(tmp_path / "out.jsonl")] == [f"p{i}" for i in range(8)]
    asked = [len(handler.calls) for handler in (endpoint, another_endpoint)]
    assert sum(asked) == 8
    assert min(asked) > 0
    before = [call["seed"] for call in endpoint.calls]
    endpoint.calls.clear()
    run_sample(tmp_path, "m", "--base-url", endpoint.url, another_endpoint.url, "--existing", "replace")
    assert sorted(call["seed"] for call in endpoint.calls) == sorted(
        before
    )  # a prompt stays with its endpoint


def test_a_second_run_with_the_same_seed_draws_other_answers(tmp_path: Path, tiny_model: Path):
    flags = ("--engine", "transformers", "--device", "cpu", "--dtype", "float32", "--n", "2")
    assert run_sample(tmp_path, tiny_model, *flags) == 0
    again = tmp_path / "again.jsonl"
    command = ["sample", str(tmp_path / "out.jsonl"), "--model", str(tiny_model), "--output", str(again)]
    assert main([*command, "--max-new-tokens", "8", *flags]) == 0
    for row in read_jsonl(again):
        first = prompt_seed(0, row["id"])
        assert [answer["seed"] for answer in row["responses"]] == [first, first + 1, first + 2, first + 3]
        assert len({answer["text"] for answer in row["responses"]}) == 4
        assert not any("duplicate" in answer["flags"] for answer in row["responses"])


def test_missing_vllm_names_the_line_that_installs_it(tmp_path: Path, capsys):
    import importlib.util

    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed here")
    assert run_sample(tmp_path, "smollm2", "--engine", "vllm") == 2
    assert "pip install vllm" in capsys.readouterr().err


def test_output_must_be_appendable(tmp_path: Path):
    with pytest.raises(UserError, match="jsonl"):
        sample.run(sample.SampleConfig(prompts="p.jsonl", model="m", output="out.parquet"))
