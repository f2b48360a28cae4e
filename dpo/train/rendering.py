"""A preference pair → the ids of its prompt and of its two answers.

Turns are rendered as TRL renders them: with the chat template, the row's `tools` and `chat_template_kwargs`, each answer
from where its tokens leave the prompt's. Plain text gets no template, and the end token behind each answer. Three
things are otherwise, because the model is to be trained on what it reads and writes:

- a control token that a document or an answer spells is read as text (see `dpo.chat`);
- an answer that was sampled here stands behind the prompt as it was sampled, where the template would write it
  otherwise. Templates of reasoning models leave the thinking out, or put an empty one in;
- an answer that was cut off has no end behind it: the model did not stop there, and is not to learn to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from dpo.chat import MARK, ChatEncoder, template_id
from dpo.pairs.records import SIDES, Pair
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.records import FieldError
from judge_pipeline.engines.shared_decoding import common_prefix

Ids = list[int]


@dataclass(frozen=True)
class PairIds:
    """Tokens of a pair; an answer goes on where `prompt` ends."""

    prompt: Ids
    chosen: Ids
    rejected: Ids
    spells: str | None = None
    """The first control token that the pair's text spells."""
    as_sampled: bool = False
    """Whether the template would have written an answer otherwise than it was sampled."""


class PairRenderer:
    """Renders pairs with a model's tokenizer and chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.encoder = ChatEncoder(tokenizer)
        self.tokenizer: Any = tokenizer
        self.template = template_id(self.tokenizer.chat_template)

    def render(self, pair: Pair) -> PairIds:
        """The ids of a pair.

        Raises:
            FieldError: the template refuses the turns or hides what was sampled, or the tokenizer cannot read a control
                token that they spell as text.
        """
        if isinstance(pair.prompt, str):
            return self._plain(pair)
        try:
            return self._conversation(pair)
        except UserError as error:
            raise FieldError("prompt", error.message, error.hint) from error
        except FieldError:
            raise
        except Exception as error:  # a template is a program of its own and may raise anything
            raise FieldError("prompt", f"the chat template does not take these turns: {error}") from error

    def _plain(self, pair: Pair) -> PairIds:
        end = self.tokenizer.eos_token
        if end is None:
            raise FieldError(
                "prompt", "is plain text, and the tokenizer has no end token to put behind answers"
            )
        prompt, *answers = (str(getattr(pair, name)) for name in ("prompt", *SIDES))
        cut = [bool(getattr(pair, f"{side}_truncated")) for side in SIDES]
        ended = [x if x.endswith(end) or no_end else x + end for x, no_end in zip(answers, cut, strict=True)]
        ids, *whole = (
            list(self.tokenizer(text)["input_ids"]) for text in (prompt, *(prompt + x for x in ended))
        )
        return _split(ids, whole)

    def _conversation(self, pair: Pair) -> PairIds:
        asked, answers = pair.turns("prompt"), [pair.turns(side) for side in SIDES]
        template = {"tools": pair.tools, **pair.chat_template_kwargs}
        prompt = self.encoder.ids(asked, add_generation_prompt=True, **template)
        spells = self.encoder.spelled([asked, answers, pair.tools])
        sampled = self._sampled(pair, template)
        if sampled is not None:
            end = self._end(asked, template)
            best, worst = (self.encoder.answer_ids(text, end) for text in sampled)
            found = PairIds(prompt, best, worst)
        else:
            found = _split(prompt, [self.encoder.ids([*asked, *answer], **template) for answer in answers])
        chosen, rejected = (self._without_end(pair, side, getattr(found, side), template) for side in SIDES)
        return PairIds(found.prompt, chosen, rejected, spells, as_sampled=sampled is not None)

    def _without_end(self, pair: Pair, side: str, ids: Ids, template: dict[str, Any]) -> Ids:
        """An answer's ids, without what the template puts behind it where the answer was cut off."""
        if not getattr(pair, f"{side}_truncated"):
            return ids
        end = self.encoder.answer_ids("", self._end(pair.turns("prompt"), template))
        if not end or ids[-len(end) :] != end:
            raise FieldError(
                side,
                "was cut off, and the end that the chat template puts behind it cannot be told from it",
                "leave the pair out: `dpo pairs` does without --keep-flagged truncated",
            )
        return ids[: -len(end)]

    def _sampled(self, pair: Pair, template: dict[str, Any]) -> list[str] | None:
        """What the model wrote, where the template would write another thing than that; None where it is the same.

        Raises:
            FieldError: it would leave out reasoning, and nobody knows how the model wrote it.
        """
        asked, written, same = pair.turns("prompt"), [], True
        for side in SIDES:
            turns = pair.turns(side)
            text: str | None = getattr(pair, f"{side}_generated")
            rendered = self.encoder.render([*asked, *turns], **template)
            thought = turns[0].get("reasoning_content")
            if thought and text is None and thought.strip() not in rendered:
                raise FieldError(
                    f"{side}.0.reasoning_content",
                    "the chat template leaves out the reasoning that came with the answer",
                    "sample with --engine vllm or transformers, which keep an answer as the model wrote it",
                )
            if pair.template != self.template or len(turns) > 1 or (thought and text is None):
                return None  # only the template says how this is written
            written.append(turns[0]["content"] if text is None else text)
            before = self.encoder.render(asked, add_generation_prompt=True, **template)
            same &= rendered == before + written[-1] + self._end(asked, template)
        return None if same else written

    def _end(self, asked: list[dict[str, Any]], template: dict[str, Any]) -> str:
        """What the template puts behind an answer."""
        text = self.encoder.render([*asked, {"role": "assistant", "content": MARK}], **template)
        return text.rpartition(MARK)[2]


def _split(prompt: Ids, whole: list[Ids]) -> PairIds:
    """Prompt and answers as TRL splits them: both begin where the first of them leaves the prompt's tokens."""
    shared = common_prefix([prompt, *whole])
    chosen, rejected = (ids[shared:] for ids in whole)
    return PairIds(prompt[:shared], chosen, rejected)
