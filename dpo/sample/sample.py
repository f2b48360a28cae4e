"""`dpo sample`: several answers to every prompt, drawn from the model that will be trained (LongReward, section 4.1).

In: a prompts file. Out: the same prompts with `responses`, one line appended and on disk as soon as a prompt is
done, so that a killed run goes on where it stopped; `<output>.run.yaml` holds the settings, the chat template and
the prompt's form. Empty, truncated and doubled answers are marked in `flags`, never dropped.
The paper draws 10 answers at temperature 1.0; so do the defaults.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from dpo.chat import PROMPT_FORMAT, template_id, to_messages
from dpo.sample.base import Decoding, Draw, Failed, Request, Sampler, prompt_seed
from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.config import Config, check_url
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.progress import Progress
from judge_pipeline.common.quiet import quiet_libraries
from judge_pipeline.common.record_files import JsonlAppender, read_prompts, write_records
from judge_pipeline.common.records import Prompt, Response
from judge_pipeline.common.run_dir import (
    EXISTING_HELP,
    Existing,
    prepare_run,
    read_run_yaml,
    write_run_yaml,
)
from judge_pipeline.prompts.fences import escape_control_tokens

NO_IDENTITY: dict[str, Any] = {"identity": False}


class SampleConfig(Config):
    """Settings of `dpo sample`."""

    prompts: Path = Field(
        description="prompts file, .jsonl, .jsonl.gz or .parquet", json_schema_extra={"positional": True}
    )
    model: str = Field(
        description="model that answers: a folder, a hub name, 'smollm2', or the endpoint's model name"
    )
    output: Path = Field(description="file to write, .jsonl")
    n: int = Field(10, ge=1, description="answers a prompt")
    temperature: float = Field(1.0, ge=0, description="sampling temperature; 0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus mass; 1 is all")
    max_new_tokens: int = Field(1024, ge=1, description="most tokens an answer may have")
    seed: int = Field(0, description="seed of the run; every answer's own seed is derived and recorded")
    engine: Literal["auto", "vllm", "transformers", "endpoint"] = Field(
        "auto",
        description="auto: the endpoint if --base-url is given, else vLLM if installed, else transformers",
    )
    base_url: str | None = Field(
        None,
        description="OpenAI-compatible endpoint, e.g. http://localhost:8000/v1",
        json_schema_extra=NO_IDENTITY,
    )
    api_key_variable: str = Field(
        "OPENAI_API_KEY",
        description="environment variable that holds the endpoint's key",
        json_schema_extra=NO_IDENTITY,
    )
    concurrency: int = Field(
        8, ge=1, description="prompts at a time at an endpoint", json_schema_extra=NO_IDENTITY
    )
    device: str = Field(
        "auto", description="transformers: cpu, cuda, cuda:1, …", json_schema_extra=NO_IDENTITY
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="type of the weights"
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict,
        description="more arguments for vllm.LLM, name=value,…",
        json_schema_extra=NO_IDENTITY,
    )
    overflow: Literal["error", "skip"] = Field(
        "error",
        description="a prompt over the model's window: stop before anything is sampled, or leave it out",
    )
    replace: bool = Field(False, description="drop answers that the input already has")
    existing: Existing = Field("refuse", description=EXISTING_HELP, json_schema_extra=NO_IDENTITY)

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return check_url(value) if value is not None else None


@dataclass
class Tally:
    """What a run did, for the terminal."""

    prompts: int = 0
    answers: int = 0
    tokens: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


def open_sampler(config: SampleConfig) -> Sampler:
    """The engine the settings ask for; imports are late because each is heavy."""
    quiet_libraries()
    engine = config.engine
    if engine == "auto":
        has_vllm = importlib.util.find_spec("vllm") is not None
        engine = "endpoint" if config.base_url else "vllm" if has_vllm else "transformers"
    if engine == "endpoint":
        if not config.base_url:
            raise UserError("--engine endpoint needs --base-url")
        from dpo.sample.endpoint_sampler import EndpointSampler

        return EndpointSampler(config.model, config.base_url, config.api_key_variable, config.concurrency)
    if engine == "vllm":
        if (Path(resolve_model(config.model)) / "adapter_config.json").is_file():
            raise UserError(
                f"'{config.model}' is an adapter, and vLLM loads whole models",
                "train it with `dpo train --merge`, or sample with --engine transformers",
            )
        from dpo.sample.vllm_sampler import VllmSampler

        return VllmSampler(config.model, config.dtype, config.engine_args)
    from dpo.sample.transformers_sampler import TransformersSampler

    return TransformersSampler(config.model, config.device, config.dtype)


def too_long(config: SampleConfig, sampler: Sampler) -> dict[str, int]:
    """Prompts that leave no room for an answer: id → tokens needed. Never cut: an error, or left out and counted.

    Raises:
        UserError: there are some and the settings say `--overflow error`.
    """
    if sampler.window is None:
        return {}
    over: dict[str, int] = {}
    for prompt in read_prompts(config.prompts):
        try:
            need = (sampler.count_tokens(to_messages(prompt)) or 0) + config.max_new_tokens
        except UserError as error:
            raise UserError(f"prompt '{prompt.id}': {error.message}", error.hint) from error
        if need > sampler.window:
            over[prompt.id] = need
    if over and config.overflow == "error":
        longest = max(over, key=lambda name: over[name])
        raise UserError(
            f"{len(over)} prompts do not fit the window of '{config.model}' ({sampler.window} tokens); the longest "
            f"is '{longest}' with {over[longest]} tokens, {config.max_new_tokens} of them for the answer",
            "--overflow skip leaves them out; fewer --max-new-tokens or a model with a longer window keeps them",
        )
    return over


def warn_of_control_text(config: SampleConfig, sampler: Sampler) -> None:
    """Say which prompts spell markers of chat templates where a server, not we, turns text into tokens."""
    if sampler.template is not None:
        return
    names = [
        p.id
        for p in read_prompts(config.prompts)
        if any(escape_control_tokens(t) != t for t in (p.context, p.query))
    ]
    if names:
        print(
            f"warning: {len(names)} prompts spell what may be a control token (first '{names[0]}'), and the endpoint "
            "may take it for one; --engine vllm and transformers read it as text",
            file=sys.stderr,
        )


def mark(draws: list[Draw], known_texts: set[str]) -> list[list[str]]:
    """Flags of each answer: `empty`, `truncated`, `refused`, `duplicate` (of an earlier answer to the prompt)."""
    flags = []
    seen = set(known_texts)
    for draw in draws:
        text = draw.text.strip()
        marks = ["empty"] if not text else ["duplicate"] if text in seen else []
        marks += {"length": ["truncated"], "refused": ["refused"], "stop": []}[draw.finish]
        seen.add(text)
        flags.append(marks)
    return flags


def with_answers(prompt: Prompt, draws: list[Draw], source: str, template: str | None = None) -> Prompt:
    """The prompt with the drawn answers behind those it has; ids never collide.

    `template` is the fingerprint of the chat template they were drawn with, which `dpo train` compares.
    """
    kept = list(prompt.responses)
    taken = {response.id for response in kept}
    free = (name for number in range(len(kept) + len(draws) + 1) if (name := f"sample-{number}") not in taken)
    all_flags = mark(draws, {response.text.strip() for response in kept})
    for draw, flags in zip(draws, all_flags, strict=True):
        row: dict[str, Any] = {"id": next(free), "text": draw.text, "source": source, "flags": flags}
        row |= {"seed": draw.seed, "finish_reason": draw.finish, "template": template}
        if draw.tokens >= 0:
            row["tokens"] = draw.tokens
        kept.append(Response.model_validate(row))
    return prompt.model_copy(update={"responses": kept})


def _done_already(output: Path) -> set[str]:
    if not output.is_file() or output.stat().st_size == 0:
        return set()
    return {prompt.id for prompt in read_prompts(output)}


def _groups(config: SampleConfig, skip: set[str], size: int) -> Iterator[list[Prompt]]:
    group: list[Prompt] = []
    for prompt in read_prompts(config.prompts):
        if prompt.id in skip:
            continue
        if config.replace:
            prompt = prompt.model_copy(update={"responses": [], "preferences": []})
        group.append(prompt)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _sample_all(
    config: SampleConfig, sampler: Sampler, done: set[str], total: int, skipped: dict[str, int], tally: Tally
) -> None:
    how = Decoding(config.temperature, config.top_p, config.max_new_tokens)
    template = template_id(sampler.template)
    with (
        JsonlAppender(config.output) as output,
        Progress(total - len(skipped), "sampling", "prompts", done=len(done)) as progress,
    ):
        for group in _groups(config, done | set(skipped), sampler.at_a_time):
            prompts = {prompt.id: prompt for prompt in group}
            requests = [
                Request(prompt.id, to_messages(prompt), config.n, prompt_seed(config.seed, prompt.id))
                for prompt in group
            ]
            for request, draws in sampler.answer(requests, how):
                if isinstance(draws, Failed):
                    tally.failed.append((request.prompt_id, draws.reason))
                else:
                    answered = with_answers(prompts[request.prompt_id], draws, config.model, template)
                    output.append(answered)
                    _count(tally, answered, draws)
                progress.update(1, answers=tally.answers, tokens=tally.tokens, failed=len(tally.failed))


def _count(tally: Tally, answered: Prompt, draws: list[Draw]) -> None:
    tally.prompts += 1
    tally.answers += len(draws)
    tally.tokens += sum(max(draw.tokens, 0) for draw in draws)
    for response in answered.responses[len(answered.responses) - len(draws) :]:
        tally.flags.update(response.flags)


def _restore_order(config: SampleConfig) -> None:
    """Answers may finish in any order; the file ends in the order of the input."""
    if not config.output.is_file() or config.output.stat().st_size == 0:
        return
    rank = {prompt.id: position for position, prompt in enumerate(read_prompts(config.prompts))}
    found = [prompt.id for prompt in read_prompts(config.output)]
    if found != sorted(found, key=lambda name: rank.get(name, len(rank))):
        answered = sorted(read_prompts(config.output), key=lambda prompt: rank.get(prompt.id, len(rank)))
        write_records(config.output, answered)


def run(config: SampleConfig) -> int:
    """Sample; 0 when every prompt is answered, 1 when some requests failed for good (run again to retry them)."""
    if config.output.suffix != ".jsonl":
        raise UserError(
            f"--output {config.output}: answers are appended one by one, which needs a .jsonl file"
        )
    if config.output.absolute() == config.prompts.absolute():
        raise UserError("--output is the input file", "name another file; the prompts are kept as they are")
    total = sum(1 for _ in read_prompts(config.prompts))
    run_file = Path(f"{config.output}.run.yaml")
    prepare_run(config.output, config, "dpo sample", config.existing, [config.prompts], run_file=run_file)
    JsonlAppender(config.output).close()  # cuts off a line that a killed run left torn
    done = _done_already(config.output)
    tally = Tally()
    if len(done) < total:
        sampler = open_sampler(config)
        try:
            _record_template(run_file, sampler)
            skipped = too_long(config, sampler)
            warn_of_control_text(config, sampler)
            tally.skipped = sorted(skipped)
            _sample_all(config, sampler, done, total, skipped, tally)
        finally:
            sampler.close()
    _restore_order(config)
    return _report(config, tally, len(done))


def _record_template(run_file: Path, sampler: Sampler) -> None:
    run = read_run_yaml(run_file)
    run["sampler"] = {
        "engine": sampler.name,
        "window": sampler.window,
        "prompt_format": PROMPT_FORMAT,
        "chat_template": sampler.template or "the endpoint's own",
    }
    write_run_yaml(run_file, run)


def _report(config: SampleConfig, tally: Tally, resumed: int) -> int:
    flags = ", ".join(f"{count} {name}" for name, count in sorted(tally.flags.items())) or "none marked"
    print(
        f"{config.output}: {tally.prompts} prompts answered now ({resumed} before), {tally.answers} answers, "
        f"{tally.tokens} tokens; {flags}"
    )
    if tally.skipped:
        print(
            f"{len(tally.skipped)} prompts left out, over the window: {', '.join(tally.skipped[:5])}",
            file=sys.stderr,
        )
    for name, reason in tally.failed[:5]:
        print(f"prompt '{name}' has no answers: {reason}", file=sys.stderr)
    if tally.failed:
        print(f"{len(tally.failed)} prompts failed; run the same command to try them again", file=sys.stderr)
        return 1
    return 0
