"""`dpo sample`: several answers to every prompt, drawn from the model that will be trained (LongReward, section 4.1).

In: a prompts file. Out: the same prompts with `responses`, one line appended and on disk as soon as a prompt is
done, so that a killed run goes on where it stopped; `<output>.run.yaml` holds the settings, the chat template and
the prompt's form. Empty, truncated and doubled answers are marked in `flags`, never dropped.
The paper draws 10 answers at temperature 1.0; so do the defaults.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from dpo.chat import PROMPT_FORMAT, template_arguments, template_id, to_messages
from dpo.sample.answers import with_answers
from dpo.sample.base import Decoding, Draw, Failed, Request, Sampler, next_seed
from dpo.sample.sample_config import SampleConfig
from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.local_models import adapter_base
from judge_pipeline.common.progress import Progress
from judge_pipeline.common.quiet import quiet_libraries
from judge_pipeline.common.record_files import JsonlAppender, read_prompts, write_records
from judge_pipeline.common.records import Prompt
from judge_pipeline.common.run_dir import prepare_run, read_run_yaml, write_run_yaml
from judge_pipeline.common.window import over_window
from judge_pipeline.engines.vllm_in_process import require_vllm, vllm_installed
from judge_pipeline.prompts.fences import escape_control_tokens


@dataclass
class Tally:
    """What a run did, for the terminal."""

    prompts: int = 0
    answers: int = 0
    tokens: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    def count(self, answered: Prompt, draws: list[Draw]) -> None:
        """Add a prompt whose last answers are `draws`."""
        self.prompts += 1
        self.answers += len(draws)
        self.tokens += sum(max(draw.tokens, 0) for draw in draws)
        for response in answered.responses[len(answered.responses) - len(draws) :]:
            self.flags.update(response.flags)


def open_sampler(config: SampleConfig) -> Sampler:
    """The engine the settings ask for; imports are late because each is heavy."""
    quiet_libraries()
    engine = config.engine
    if engine == "auto":
        engine = "endpoint" if config.base_url else "vllm" if vllm_installed() else "transformers"
    if engine == "endpoint":
        if not config.base_url:
            raise UserError("--engine endpoint needs --base-url")
        from dpo.sample.endpoint_sampler import EndpointSampler

        return EndpointSampler(config.model, config.base_url, config.api_key_variable, config.concurrency)
    if engine == "vllm":
        require_vllm("--engine vllm")
        from dpo.sample.vllm_sampler import VllmSampler

        return VllmSampler(config.model, config.dtype, config.engine_args)
    from dpo.sample.transformers_sampler import TransformersSampler

    return TransformersSampler(config.model, config.device, config.dtype)


def template_of(prompt: Prompt, config: SampleConfig) -> dict[str, Any]:
    """Further arguments of the chat template for a prompt: its own, and over them those of the settings."""
    return {**template_arguments(prompt), **config.chat_template_kwargs}


def ignored_defaults(config: SampleConfig, sampler: Sampler) -> dict[str, float]:
    """What the model's generation_config asks for otherwise than the settings, which decide in every engine; says so."""
    if sampler.template is None:
        return {}  # an endpoint's model is not here; it is sent every setting, so that its own defaults do not count
    path = resolve_model(config.model)
    try:
        wished = GenerationConfig.from_pretrained(adapter_base(path) or path).to_diff_dict()
    except OSError:
        return {}  # the model has none
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    other = {name: wished[name] for name in names if wished.get(name) not in (None, getattr(config, name))}
    if other:
        words = ", ".join(f"{name} {value:g}" for name, value in other.items())
        print(
            f"the model's generation_config asks for {words}: ignored in every engine, the settings decide",
            file=sys.stderr,
        )
    return other


def too_long(config: SampleConfig, sampler: Sampler) -> set[str]:
    """Ids of prompts that leave no room for an answer. Never cut: an error, or left out and counted.

    Raises:
        UserError: there are some and the settings say `--overflow error`.
    """
    if sampler.window is None:
        return set()
    lengths: list[tuple[str, int]] = []
    for prompt in read_prompts(config.prompts):
        try:
            tokens = sampler.count_tokens(to_messages(prompt), **template_of(prompt, config)) or 0
        except UserError as error:
            raise UserError(f"prompt '{prompt.id}': {error.message}", error.hint) from error
        lengths.append((prompt.id, tokens + config.max_new_tokens))
    over = over_window(
        lengths,
        sampler.window,
        config.overflow,
        hint=f"{config.max_new_tokens} tokens of each are for the answer; --overflow skip leaves them out; fewer "
        "--max-new-tokens or a model with a longer window keeps them",
        may_be_all=True,
        whose=f"the '{config.model}'",
    )
    return {lengths[position][0] for position in over}


def warn_of_control_text(config: SampleConfig, sampler: Sampler) -> None:
    """Say which prompts spell markers of chat templates where a server, not we, turns text into tokens."""
    if sampler.template is not None:
        return
    prompts = read_prompts(config.prompts)
    texts = ((prompt.id, json.dumps(to_messages(prompt), ensure_ascii=False)) for prompt in prompts)
    if names := [name for name, text in texts if escape_control_tokens(text) != text]:
        print(
            f"warning: {len(names)} prompts spell what may be a control token (first '{names[0]}'), and the endpoint "
            "may take it for one; --engine vllm and transformers read it as text",
            file=sys.stderr,
        )


def _answered(output: Path) -> Iterator[Prompt]:
    """The prompts that the output holds."""
    return read_prompts(output) if output.is_file() and output.stat().st_size > 0 else iter(())


def _groups(config: SampleConfig, skip: set[str], size: int) -> Iterator[list[Prompt]]:
    todo = (prompt for prompt in read_prompts(config.prompts) if prompt.id not in skip)
    if config.replace:
        todo = (prompt.model_copy(update={"responses": [], "preferences": []}) for prompt in todo)
    return iter(lambda: list(itertools.islice(todo, size)), [])


def _sample_all(
    config: SampleConfig, sampler: Sampler, done: set[str], total: int, skipped: set[str], tally: Tally
) -> None:
    names = (item.name for item in dataclasses.fields(Decoding))
    how = Decoding(
        **{name: getattr(config, name) for name in names if name != "stop"}, stop=tuple(config.stop)
    )
    template = template_id(sampler.template)
    with (
        JsonlAppender(config.output) as output,
        Progress(total - len(skipped), "sampling", "prompts", done=len(done)) as progress,
    ):
        for group in _groups(config, done | skipped, sampler.at_a_time):
            prompts = {prompt.id: prompt for prompt in group}
            requests = [
                Request(
                    prompt.id,
                    to_messages(prompt),
                    config.n,
                    next_seed(config.seed, prompt),
                    template_of(prompt, config),
                )
                for prompt in group
            ]
            for request, draws in sampler.answer(requests, how):
                if isinstance(draws, Failed):
                    tally.failed.append((request.prompt_id, draws.reason))
                else:
                    answered = with_answers(prompts[request.prompt_id], draws, config, template)
                    output.append(answered)
                    tally.count(answered, draws)
                progress.update(1, answers=tally.answers, tokens=tally.tokens, failed=len(tally.failed))


def _restore_order(config: SampleConfig) -> None:
    """Answers may finish in any order; the file ends in the order of the input."""
    rank = {prompt.id: position for position, prompt in enumerate(read_prompts(config.prompts))}
    found = [rank.get(prompt.id, len(rank)) for prompt in _answered(config.output)]
    if found != sorted(found):
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
    done = {prompt.id for prompt in _answered(config.output)}
    tally = Tally()
    if len(done) < total:
        sampler = open_sampler(config)
        try:
            about: dict[str, Any] = {
                "engine": sampler.name,
                "window": sampler.window,
                "prompt_format": PROMPT_FORMAT,
            }
            about |= {"chat_template": sampler.template or "the endpoint's own"}
            about |= {"ignored_generation_config": ignored_defaults(config, sampler)}
            write_run_yaml(run_file, {**read_run_yaml(run_file), "sampler": about})
            skipped = too_long(config, sampler)
            warn_of_control_text(config, sampler)
            tally.skipped = sorted(skipped)
            _sample_all(config, sampler, done, total, skipped, tally)
        finally:
            sampler.close()
    _restore_order(config)
    return _report(config, tally, len(done))


def _report(config: SampleConfig, tally: Tally, resumed: int) -> int:
    flags = ", ".join(f"{count} {name}" for name, count in sorted(tally.flags.items())) or "none marked"
    print(
        f"{config.output}: {tally.prompts} prompts answered now ({resumed} before), {tally.answers} answers, "
        f"{tally.tokens} tokens; {flags}"
    )
    if tally.skipped:
        first = ", ".join(tally.skipped[:5])
        print(f"{len(tally.skipped)} prompts left out, over the window: {first}", file=sys.stderr)
    for name, reason in tally.failed[:5]:
        print(f"prompt '{name}' has no answers: {reason}", file=sys.stderr)
    if tally.failed:
        print(f"{len(tally.failed)} prompts failed; run the same command to try them again", file=sys.stderr)
        return 1
    return 0
