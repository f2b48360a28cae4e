"""How a prompt and an answer become token ids, so that a shared prefix and a plain model read the same tokens.

In: document, question, answers. Out: ids of the prefix (all that comes before an answer) and of each answer with
its end token, whose hidden state is scored. The base model's chat template gives the control tokens; a model
without one gets a plain layout. Prefix and answer are tokenized apart, so no token can straddle the border.

Documents and answers are hostile: text that spells a control token (``<|im_end|>``) is tokenized as plain text
and can neither end a turn nor the answer. A server that is sent *text* would parse it as a control token, which
is why ``render_text`` refuses such text: send token ids there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict

from judge_pipeline.common.errors import UserError
from reward_model.shared_prefix.layout import EncodedPrompt, Span

_USER, _ANSWER = "USERTEXT7f3a91", "ANSWERTEXT7f3a91"
_PLACEHOLDER = re.compile(r"\{(context|query)\}")
_SAMPLES = ("Yes.", "1. One", '"Quoted" text', "- item\n- item", "中文回答。", "(a) x", "éa")


class PromptFormat(BaseModel):
    """The texts around a prompt and an answer; stored with the model and inherited by scoring.

    A sequence is ``head + user + middle + answer + end``; ``user`` holds ``{context}`` and ``{query}``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    head: str
    middle: str
    end: str
    user: str = "{context}\n\n{query}"

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, user: str = "{context}\n\n{query}") -> PromptFormat:
        """Take head, middle and end from the chat template, or a plain layout where there is none.

        The answer ends with the first control token the template puts after it (``<|im_end|>``), else with the
        tokenizer's end-of-sequence token.

        Raises:
            UserError: the template drops or repeats a message, or there is no token to end an answer with.
        """
        if not tokenizer.chat_template:
            end = _end_token(tokenizer)
            head = tokenizer.bos_token or ""
            return cls(head=f"{head}Document and question:\n", middle="\n\nAnswer:\n", end=end, user=user)
        messages = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False)
        except TemplateError as error:
            raise UserError(
                f"the chat template refuses a user and an assistant message: {error}",
                hint="use a base model whose template takes them, or remove tokenizer.chat_template",
            ) from error
        if text.count(_USER) != 1 or text.count(_ANSWER) != 1:
            raise UserError(
                "the chat template does not show each message once, so a prompt cannot be laid out with it",
                hint="use a base model whose template takes a user and an assistant message",
            )
        head, rest = text.split(_USER)
        middle, tail = rest.split(_ANSWER)
        special = _special_pattern(tokenizer)
        match = special.search(tail) if special else None
        end = tail[: match.end()] if match else tail.rstrip() + _end_token(tokenizer)
        return cls(head=head, middle=middle, end=end, user=user)


def _end_token(tokenizer: Any) -> str:
    if not tokenizer.eos_token:
        raise UserError(
            "the tokenizer has no end-of-sequence token to score an answer at",
            hint="set tokenizer.eos_token, or use another base model",
        )
    return str(tokenizer.eos_token)


def _special_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """Matches the text of any control token, longest first."""
    tokens = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens |= set(tokenizer.all_special_tokens)
    if not tokens:
        return None
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))


class PromptRenderer:
    """Turns texts into ids with one tokenizer and one format.

    Attributes:
        end_ids: ids that close an answer; the last is where the score is read.
        text_exact: tokenizing ``render_text`` whole gives the same ids (checked on samples when made; false for
            some SentencePiece tokenizers, for which other programs must be sent ids).
    """

    def __init__(self, tokenizer: Any, prompt_format: PromptFormat) -> None:
        self.tokenizer = tokenizer
        self.format = prompt_format
        self._special = _special_pattern(tokenizer)
        self.end_ids = self._ids([prompt_format.end])
        if not self.end_ids:
            raise UserError("the prompt format ends an answer with no token", hint="give it an end text")
        self._check_hostile()
        self.text_exact = all(
            tokenizer(self.render_text("Some text.", "A question?", sample), add_special_tokens=False)[
                "input_ids"
            ]
            == self.prefix_ids("Some text.", "A question?") + self.answer_ids(sample)
            for sample in _SAMPLES
        )

    def prefix_ids(self, context: str, query: str) -> list[int]:
        """Ids of everything before an answer; depends on document and question only."""
        return self._ids([self.format.head], self._user_text(context, query), [self.format.middle])

    def answer_ids(self, text: str) -> list[int]:
        """Ids of an answer and its end. White space before the answer is not scored (templates strip it too)."""
        return self._ids([], text.lstrip(), [self.format.end])

    def answer_places(self, text: str) -> list[Span]:
        """For each id of ``answer_ids`` the characters of `text` it stands for, (-1, -1) for those of the end.

        A character of several tokens is named by each of them.

        Raises:
            UserError: the tokenizer cannot tell.
        """
        lead = len(text) - len(text.lstrip())
        return self._places([], text.lstrip(), [self.format.end], 0, lead, len(text.lstrip()))

    def context_places(self, context: str, query: str) -> list[Span]:
        """For each id of ``prefix_ids`` the characters of the document it stands for, (-1, -1) for all others.

        Raises:
            UserError: the tokenizer cannot tell.
        """
        before = self.format.user.partition("{context}")[0].replace("{query}", query)
        start = len(before) if context else 0
        text = self._user_text(context, query)
        return self._places([self.format.head], text, [self.format.middle], start, 0, len(context))

    def _places(
        self, before: Sequence[str], text: str, after: Sequence[str], start: int, shift: int, length: int
    ) -> list[Span]:
        """Places in `text[start : start + length]`, counted from `shift`."""
        runs, number, offset = self._runs(before, text, after)
        places: list[Span] = []
        for place, run in enumerate(runs):
            if isinstance(run, int):
                places.append((-1, -1))
            elif run:
                for first, last in self._encoded(run, return_offsets_mapping=True)["offset_mapping"]:
                    # A token that begins in what stands before still ends in the text.
                    inner = first - offset - start, last - offset - start
                    held = place == number and 0 < inner[1] <= length
                    places.append((max(inner[0], 0) + shift, inner[1] + shift) if held else (-1, -1))
        return places

    def encode(self, context: str, query: str, responses: Sequence[str]) -> EncodedPrompt:
        """Tokenize a prompt and its answers; never cuts. Compare ``shape.longest`` with the model's window."""
        return EncodedPrompt.of(
            self.prefix_ids(context, query), map(self.answer_ids, responses), self.prefix_ids("", query)
        )

    def render_text(self, context: str, query: str, response: str) -> str:
        """The whole sequence as text, for programs that tokenize themselves (without adding special tokens).

        Raises:
            UserError: the text spells a control token, which such a program would take for one.
        """
        user, answer = self._user_text(context, query), response.lstrip()
        found = self._special.search(user) or self._special.search(answer) if self._special else None
        if found:
            raise UserError(
                f"the text contains {found.group()!r}, which a tokenizer that is sent text takes for a control token",
                hint="send token ids: render(context, query) + render_answer(response)",
            )
        return self.format.head + user + self.format.middle + answer + self.format.end

    def _user_text(self, context: str, query: str) -> str:
        if not context:
            return query
        values = {"context": context, "query": query}
        return _PLACEHOLDER.sub(lambda match: values[match.group(1)], self.format.user)

    def _ids(self, before: Sequence[str], text: str = "", after: Sequence[str] = ()) -> list[int]:
        """Tokenize runs between control tokens; ``text`` joins the runs beside it but is never split itself."""
        ids: list[int] = []
        for run in self._runs(before, text, after)[0]:
            if isinstance(run, int):
                ids.append(run)
            elif run:
                ids.extend(self._encoded(run)["input_ids"])
        return ids

    def _runs(
        self, before: Sequence[str], text: str, after: Sequence[str]
    ) -> tuple[list[str | int], int, int]:
        """Control tokens and the text between them; the run that holds ``text``, and where in it that begins."""
        runs: list[str | int] = [""]
        for piece in before:
            self._append(runs, piece)
        place, offset = len(runs) - 1, len(str(runs[-1]))
        runs[-1] = f"{runs[-1]}{text}"
        for piece in after:
            self._append(runs, piece)
        return runs, place, offset

    def _encoded(self, run: str, **options: bool) -> Any:
        try:
            return self.tokenizer(
                run, add_special_tokens=False, split_special_tokens=True, verbose=False, **options
            )
        except NotImplementedError as error:
            raise UserError(
                "the model's tokenizer cannot say where its tokens lie in the text",
                "train from a base model with a fast tokenizer (tokenizer.json)",
            ) from error

    def _append(self, runs: list[str | int], piece: str) -> None:
        start = 0
        for match in self._special.finditer(piece) if self._special else ():
            runs[-1] = f"{runs[-1]}{piece[start : match.start()]}"
            runs += [self.tokenizer.convert_tokens_to_ids(match.group()), ""]
            start = match.end()
        runs[-1] = f"{runs[-1]}{piece[start:]}"

    def _check_hostile(self) -> None:
        special = set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}
        for token in self.tokenizer.all_special_tokens:
            if special & set(self._ids([], f"a {token} b")):
                raise UserError(
                    f"the tokenizer turns {token!r} inside a document into a control token",
                    hint="use the fast tokenizer of this model",
                )
