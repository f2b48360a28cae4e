"""Pairs for the trainer: split by document, checked against the model, nothing dropped without a word.

In: a pairs file and the model's tokenizer. Out: datasets on disk under the run's directory (so that TRL's cache
of reference log-probabilities lies beside them and a resumed run finds it), and a check of the tokenized pairs,
which keeps TRL's ids but where a pair spells a control token: there it is read as text.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset, load_from_disk

from dpo.chat import ChatEncoder, template_id
from dpo.pairs.records import Pair, read_pairs
from dpo.train.train_config import TrainConfig
from judge_pipeline.common.errors import DataError, UserError
from judge_pipeline.common.record_files import read_rows
from reward_model.data.splits import held_out_names
from reward_model.training.guards import say


@dataclass(frozen=True)
class NumberedPair:
    """A pair, and the line of the file it stands on."""

    line: int
    pair: Pair

    @property
    def document(self) -> str:
        """What is never cut by a split; a pair without ids stands for itself."""
        return self.pair.document_id or self.pair.prompt_id or self.text

    @property
    def text(self) -> str:
        """The prompt's turns as one text."""
        return "\x1f".join(turn.content for turn in self.pair.prompt)


def load_pairs(path: Path) -> list[NumberedPair]:
    """All pairs of a file with their line numbers; see `read_pairs` for what is refused."""
    numbers = (number for number, _ in read_rows(path))
    return [NumberedPair(number, pair) for number, pair in zip(numbers, read_pairs(path), strict=False)]


def check_template(
    config: TrainConfig, pairs: Sequence[NumberedPair], template: str | None, path: Path
) -> None:
    """Raise DataError for answers sampled with another chat template than the model's; or warn, where allowed."""
    known = (None, template_id(template))
    other = next((item for item in pairs if item.pair.template not in known), None)
    if other is None:
        return
    message = f"the answers were sampled with another chat template than that of '{config.model}'"
    if config.allow_other_template:
        say(f"warning: {path}, line {other.line}: {message}")
        return
    hint = "train the model that was sampled, or go on with --allow-other-template"
    raise DataError(message, path=path, line=other.line, field="template", hint=hint)


def refuse_leak(train: Sequence[NumberedPair], held_out: Sequence[NumberedPair], path: Path) -> None:
    """Raise DataError when a held-out pair's document is trained on."""
    known = {item.document for item in train} | {item.text for item in train}
    for item in held_out:
        if known & {item.document, item.text}:
            raise DataError(
                "its document is among the training pairs",
                path=path,
                line=item.line,
                field="document_id",
                hint="take it out of one file, or drop --eval-pairs and let the split be made by document",
            )


def on_disk(pairs: Sequence[NumberedPair], folder: Path) -> Dataset:
    """The pairs as a dataset that lives in `folder`; a second call reads what the first wrote."""
    done = folder / "complete"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        columns = {"prompt", "chosen", "rejected"}
        rows = [{**item.pair.model_dump(include=columns), "line": item.line} for item in pairs]
        Dataset.from_list(rows).save_to_disk(str(folder))
        done.touch()
    return load_from_disk(str(folder))


def make_check(
    tokenizer: Any, max_length: int, overflow: str, paths: dict[str, Path], skipped: dict[str, int]
) -> Callable[[Dataset, str], Dataset]:
    """The check of a tokenized dataset (`prompt_ids`, `chosen_ids`, `rejected_ids`, `line`).

    Args:
        tokenizer: of the model.
        max_length: tokens that prompt and longer answer may have together.
        overflow: `error` or `skip`.
        paths: dataset name → file it came from, for messages.
        skipped: filled with how many pairs were left out of each dataset.
    """

    encoder = ChatEncoder(tokenizer)

    def check(dataset: Dataset, name: str) -> Dataset:
        path = paths[name]
        dataset = control_text_as_text(dataset, encoder, path)
        over: dict[int, int] = {}
        for position, row in enumerate(dataset):
            _check_row(row, encoder, path)
            need = len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
            if need > max_length:
                over[position] = need
        skipped[name] = len(over)
        if not over:
            return dataset
        longest = max(over, key=lambda position: over[position])
        if overflow == "error" or len(over) == len(dataset):
            raise DataError(
                f"{len(over)} of {len(dataset)} pairs are over {max_length} tokens; this one is the longest with "
                f"{over[longest]}",
                path=path,
                line=dataset[longest]["line"],
                hint="--overflow skip leaves them out; a model with a longer window, or --max-length, keeps them",
            )
        say(f"{path}: {len(over)} of {len(dataset)} pairs left out, over {max_length} tokens")
        return dataset.select([position for position in range(len(dataset)) if position not in over])

    return check


def control_text_as_text(dataset: Dataset, encoder: ChatEncoder, path: Path) -> Dataset:
    """Other ids for pairs whose text spells a control token, which TRL takes for one; says how many there are.

    Raises:
        DataError: the tokenizer cannot read such text as text.
    """
    replaced: dict[int, dict[str, list[int]]] = {}
    first = ""
    for position, row in enumerate(dataset):
        token = encoder.spelled([*row["prompt"], *row["chosen"], *row["rejected"]])
        if token is None:
            continue
        first = first or f"{token!r}, line {row['line']}"
        try:
            replaced[position] = _pair_ids(row, encoder)
        except UserError as error:
            raise DataError(error.message, path=path, line=row["line"], hint=error.hint) from error
    if not replaced:
        return dataset
    say(
        f"{path}: {len(replaced)} of {len(dataset)} pairs spell a control token (first {first}); it is read as text"
    )
    with PartialState().main_process_first():
        return dataset.map(_with_ids, with_indices=True, fn_kwargs={"replaced": replaced})


def _with_ids(
    row: dict[str, Any], position: int, replaced: dict[int, dict[str, list[int]]]
) -> dict[str, Any]:
    return {**row, **replaced.get(position, {})}


def _pair_ids(row: dict[str, Any], encoder: ChatEncoder) -> dict[str, list[int]]:
    """Prompt and answers as TRL splits them: an answer begins where the tokens leave the prompt alone."""
    prompt = encoder.ids(row["prompt"], add_generation_prompt=True)
    chosen, rejected = (encoder.ids([*row["prompt"], *row[side]]) for side in ("chosen", "rejected"))
    alike = itertools.takewhile(lambda ids: len(set(ids)) == 1, zip(prompt, chosen, rejected, strict=False))
    length = sum(1 for _ in alike)
    return {"prompt_ids": prompt[:length], "chosen_ids": chosen[length:], "rejected_ids": rejected[length:]}


def _check_row(row: dict[str, Any], encoder: ChatEncoder, path: Path) -> None:
    if not row["prompt_ids"]:
        raise DataError("the prompt has no tokens", path=path, line=row["line"], field="prompt")
    for side in ("chosen", "rejected"):
        text = encoder.tokenizer.decode(row[f"{side}_ids"], skip_special_tokens=True)
        if not encoder.without_control(text).strip():
            raise DataError(
                "the answer is only the end token: there is nothing to learn from",
                path=path,
                line=row["line"],
                field=side,
                hint="take the pair out; `dpo pairs` leaves empty answers out",
            )
    if row["chosen_ids"] == row["rejected_ids"]:
        message = "chosen and rejected are the same tokens"
        raise DataError(message, path=path, line=row["line"], field="rejected")


def datasets_for(config: TrainConfig, template: str | None) -> tuple[list[NumberedPair], list[NumberedPair]]:
    """(training, held-out) pairs, checked against the model's chat template; held out are files or documents."""
    pairs = load_pairs(config.pairs)
    check_template(config, pairs, template, config.pairs)
    if config.eval_pairs is None:
        held = held_out_names({item.document for item in pairs}, config.eval_fraction, config.seed)
        train = [item for item in pairs if item.document not in held]
        held_out = [item for item in pairs if item.document in held]
    else:
        train, held_out = pairs, load_pairs(config.eval_pairs)
        check_template(config, held_out, template, config.eval_pairs)
        refuse_leak(train, held_out, config.eval_pairs)
    if not train:
        raise UserError(f"{config.pairs}: no pair is left to train on", "hold out fewer: --eval-fraction")
    return train, held_out
