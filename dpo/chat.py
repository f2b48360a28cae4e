"""The one place where a document and a question become chat messages, and messages token ids, for the trained model.

`dpo sample` asks with these messages and `dpo pairs` writes the same ones as `prompt`, so a pair's prompt is
exactly what the model saw when it answered. The form is the paper's (LongReward, section 4.1, and the LongAlign
data it builds on): the document, an empty line, the question. The chat template around it is the model's own.

Documents and answers are hostile: text that spells a control token (`<|im_end|>`) is read as plain text and can
neither end a turn nor the answer, in sampling as in training. Ordinary text gets the ids the template gives it.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.records import Prompt

PROMPT_FORMAT = "{context}\n\n{query}"
"""Recorded in every run.yaml; braces are put in, never parsed, so a document may hold any of them."""

ChatMessages = list[dict[str, str]]

_SAMPLE: ChatMessages = [{"role": "user", "content": "Some text.\n\nA question?"}]
_SAMPLE_ANSWER = {"role": "assistant", "content": "An answer."}


def to_messages(prompt: Prompt) -> ChatMessages:
    """The conversation so far: one user turn with the document before the question."""
    return [{"role": "user", "content": f"{prompt.context}\n\n{prompt.query}"}]


def template_id(template: str | None) -> str | None:
    """A short fingerprint of a chat template; None where an endpoint keeps its template to itself."""
    return None if template is None else hashlib.sha256(template.strip().encode()).hexdigest()[:16]


class ChatEncoder:
    """Messages → ids with a tokenizer and its chat template; only the template makes control tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = {str(token): token for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._control = {str(name): added.get(str(name)) for name in [*added, *tokenizer.all_special_tokens]}
        longest_first = sorted(filter(None, self._control), key=len, reverse=True)
        # Without any control token the pattern must match nothing, not the empty text.
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._checked = False

    def spelled(self, messages: ChatMessages) -> str | None:
        """The first control token that the messages spell; None for ordinary text."""
        found = (self._pattern.search(message["content"]) for message in messages)
        return next((match.group() for match in found if match), None)

    def without_control(self, text: str) -> str:
        """The text without what spells a control token."""
        return self._pattern.sub("", text)

    def ids(self, messages: ChatMessages, add_generation_prompt: bool = False) -> list[int]:
        """Ids of a conversation, for ordinary text those of `apply_chat_template`.

        Raises:
            UserError: the messages spell a control token and this tokenizer cannot read it as text.
        """
        name = self.spelled(messages)
        if name is None:
            return self._plain(messages, add_generation_prompt)
        if not self._checked and not self._reads_text():
            raise UserError(
                f"the text spells {name!r}, which this tokenizer takes for a control token",
                "take it out of the text, or use the model's fast tokenizer",
            )
        self._checked = True
        return self._neutral(messages, add_generation_prompt)

    def _plain(self, messages: ChatMessages, add_generation_prompt: bool) -> list[int]:
        encoded = self.tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=add_generation_prompt, return_dict=True
        )
        return list(encoded["input_ids"])

    def _neutral(self, messages: ChatMessages, add_generation_prompt: bool) -> list[int]:
        """Render with stand-ins for what the messages spell, cut at the template's own tokens, put it back."""
        mark = "Stand7f3a91in"
        while any(mark in message["content"] for message in messages):
            mark += "x"
        names: list[str] = []

        def stand_in(match: re.Match[str]) -> str:
            names.append(match.group())
            return f"{mark}n{len(names) - 1}n"

        safe = [{**item, "content": self._pattern.sub(stand_in, item["content"])} for item in messages]
        text = self.tokenizer.apply_chat_template(
            safe, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        back = re.compile(rf"{mark}n(\d+)n")
        ids: list[int] = []
        for run in self._cut(text):
            if isinstance(run, int):
                ids.append(run)
            elif run:
                ids += self._text_ids(back.sub(lambda match: names[int(match.group(1))], run))
        return ids

    def _cut(self, text: str) -> list[str | int]:
        """Text between control tokens, and their ids; white space goes where the tokenizer would drop it."""
        runs: list[str | int] = []
        start = 0
        for match in self._pattern.finditer(text):
            token = self._control[match.group()]
            before = text[start : match.start()]
            runs.append(before.rstrip() if token is not None and token.lstrip else before)
            runs.append(int(self.tokenizer.convert_tokens_to_ids(match.group())))
            start = match.end()
            if token is not None and token.rstrip:
                while start < len(text) and text[start].isspace():
                    start += 1
        return [*runs, text[start:]]

    def _text_ids(self, text: str) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return list(encoded["input_ids"])

    def _reads_text(self) -> bool:
        """Whether cutting a conversation gives the template's ids, and a spelled token gives no control token."""
        for messages, generates in ((_SAMPLE, True), ([*_SAMPLE, _SAMPLE_ANSWER], False)):
            if self._neutral(messages, generates) != self._plain(messages, generates):
                return False
        control = {self.tokenizer.convert_tokens_to_ids(name) for name in self._control}
        control -= {self.tokenizer.unk_token_id}  # a vocabulary without bytes has it in any text
        return not any(control & set(self._text_ids(f"a {name} b")) for name in self._control if name)
