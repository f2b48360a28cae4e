"""Pairs for the trainer: split by document, checked against the model, nothing dropped without a word.

In: a pairs file and the model's tokenizer. Out: datasets of token ids on disk under the run's directory (so that TRL's
cache of reference log-probabilities lies beside them and a resumed run finds it), and a check of their lengths.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from dpo.chat import ChatTemplate, template_id
from dpo.pairs.records import Pair, read_pairs
from dpo.train.rendering import PairIds, PairRenderer
from dpo.train.train_config import TrainConfig
from judge_pipeline.common.errors import DataError, UserError
from judge_pipeline.common.record_files import read_rows
from judge_pipeline.common.records import FieldError
from reward_model.data.splits import held_out_names
from reward_model.training.guards import say

PAIR_TOKENS = "pairs.arrow"
_IDS = List(Value("int32"))
FEATURES = Features({"line": Value("int64"), "prompt_ids": _IDS, "chosen_ids": _IDS, "rejected_ids": _IDS})


@dataclass(frozen=True)
class NumberedPair:
    """A pair, and the line of the file it stands on."""

    line: int
    pair: Pair

    @property
    def document(self) -> str:
        """What is never cut by a split; a pair without ids stands for itself."""
        return self.pair.document_id or self.pair.prompt_id or self.pair.prompt_text


def load_pairs(path: Path) -> list[NumberedPair]:
    """All pairs of a file with their line numbers; see `read_pairs` for what is refused."""
    numbers = (number for number, _ in read_rows(path))
    return [NumberedPair(number, pair) for number, pair in zip(numbers, read_pairs(path), strict=False)]


def check_template(
    config: TrainConfig, pairs: Sequence[NumberedPair], template: ChatTemplate | None, path: Path
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
    known = {item.document for item in train} | {item.pair.prompt_text for item in train}
    for item in held_out:
        if known & {item.document, item.pair.prompt_text}:
            raise DataError(
                "its document is among the training pairs",
                path=path,
                line=item.line,
                field="document_id",
                hint="take it out of one file, or drop --eval-pairs and let the split be made by document",
            )


def on_disk(pairs: Sequence[NumberedPair], folder: Path, renderer: PairRenderer, path: Path) -> Dataset:
    """The pairs' tokens as a dataset that lives in `folder`; a second call with the same pairs reads what the
    first wrote.

    Columns: `line` in the file, and `prompt_ids`, `chosen_ids`, `rejected_ids`, which TRL takes as they are.

    Raises:
        DataError: a pair cannot be rendered, or there is nothing in an answer to learn from.
    """
    digest = hashlib.sha256(str(renderer.template).encode())
    for item in pairs:
        digest.update(f"{item.line} {item.pair.model_dump_json()}\n".encode())
    done = folder / "complete"
    if not done.is_file() or done.read_text() != digest.hexdigest():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        spelled, sampled, first = 0, 0, ""
        with ArrowWriter(path=str(folder / PAIR_TOKENS), features=FEATURES, writer_batch_size=16) as writer:
            for item in pairs:
                ids = rendered(item, renderer, path)
                row = {"prompt_ids": ids.prompt, "chosen_ids": ids.chosen, "rejected_ids": ids.rejected}
                writer.write({"line": item.line, **row})
                spelled, sampled = spelled + (ids.spells is not None), sampled + ids.as_sampled
                first = first or (f"{ids.spells!r}, line {item.line}" if ids.spells else "")
            writer.finalize()
        if spelled:
            say(
                f"{path}: {spelled} of {len(pairs)} pairs spell a control token (first {first}); it is read as text"
            )
        if sampled:
            say(
                f"{path}: {sampled} of {len(pairs)} pairs are trained as they were sampled; the chat template would "
                "write them otherwise"
            )
        done.write_text(digest.hexdigest())
    return Dataset.from_file(str(folder / PAIR_TOKENS))


def rendered(item: NumberedPair, renderer: PairRenderer, path: Path) -> PairIds:
    """The ids of a pair, checked."""
    wrong = partial(DataError, path=path, line=item.line)
    try:
        ids = renderer.render(item.pair)
    except FieldError as error:
        raise wrong(error.message, field=error.field, hint=error.hint) from error
    if not ids.prompt:
        raise wrong("the prompt has no tokens", field="prompt")
    for side, answer in (("chosen", ids.chosen), ("rejected", ids.rejected)):
        text = renderer.tokenizer.decode(answer, skip_special_tokens=True)
        if not renderer.encoder.without_control(text).strip():
            raise wrong(
                "the answer is only the end token: there is nothing to learn from",
                field=side,
                hint="take the pair out; `dpo pairs` leaves empty answers out",
            )
    if ids.chosen == ids.rejected:
        raise wrong("chosen and rejected are the same tokens", field="rejected")
    return ids


def make_check(
    max_length: int, overflow: str, paths: dict[str, Path], skipped: dict[str, int]
) -> Callable[[Dataset, str], Dataset]:
    """The check of the lengths in a tokenized dataset (see `on_disk`).

    Args:
        max_length: tokens that prompt and longer answer may have together.
        overflow: `error` or `skip`.
        paths: dataset name → file it came from, for messages.
        skipped: filled with how many pairs were left out of each dataset.
    """

    def check(dataset: Dataset, name: str) -> Dataset:
        path = paths[name]
        over: dict[int, int] = {}
        for position, row in enumerate(dataset):
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


def datasets_for(
    config: TrainConfig, template: ChatTemplate | None
) -> tuple[list[NumberedPair], list[NumberedPair]]:
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
