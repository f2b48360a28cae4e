"""The one place where a document and a question become chat messages, and messages token ids, for the trained model.

`dpo sample` asks with these messages and `dpo pairs` writes the same ones as `prompt`, so a pair's prompt is
exactly what the model saw when it answered. The form is the paper's (LongReward, section 4.1, and the LongAlign
data it builds on): the document, an empty line, the question. The chat template around it is the model's own.

Documents and answers are hostile: text that spells a control token (`<|im_end|>`) is read as plain text and can
neither end a turn nor the answer, in sampling as in training. Ordinary text gets the ids the template gives it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.records import Prompt

PROMPT_FORMAT = "{context}\n\n{query}"
"""Recorded in every run.yaml; braces are put in, never parsed, so a document may hold any of them."""

ChatMessages = list[dict[str, Any]]
"""Messages as chat templates take them: `role`, `content`, and `tool_calls`, `reasoning_content`, … where there are any."""

ChatTemplate = str | dict[str, str]
"""A tokenizer's template, or its named ones, of which `apply_chat_template` takes `tool_use` where there are tools."""

MARK = "Stand7f3a91in"
"""A word of ordinary letters that no template changes; made longer where a text holds it."""
_SAMPLE: ChatMessages = [{"role": "user", "content": "Some text.\n\nA question?"}]
_SAMPLE_ANSWER = {"role": "assistant", "content": "An answer."}


def to_messages(prompt: Prompt) -> ChatMessages:
    """The conversation so far: one user turn with the document before the question.

    A prompt with `messages` of its own gets the document before its first user turn, unless a turn holds it already.
    """
    if not prompt.messages:
        return [{"role": "user", "content": f"{prompt.context}\n\n{prompt.query}"}]
    messages = [turn.model_dump(exclude_unset=True) for turn in prompt.messages]
    if not any(prompt.context in (item["content"] or "") for item in messages):
        first = next(item for item in messages if item["role"] == "user")
        first["content"] = f"{prompt.context}\n\n{first['content']}"
    return messages


def template_arguments(prompt: Prompt) -> dict[str, Any]:
    """What the chat template gets besides the messages: the prompt's tools and its `chat_template_kwargs`."""
    tools = {} if prompt.tools is None else {"tools": prompt.tools}
    return {**tools, **(prompt.chat_template_kwargs or {})}


def template_id(template: ChatTemplate | None) -> str | None:
    """A short fingerprint of a chat template; None where an endpoint keeps its template to itself."""
    if template is None:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def _map_text(value: Any, change: Callable[[str], str]) -> Any:
    """Every text in nested lists and mappings, changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_text(item, change) for item in value]
    if isinstance(value, dict):
        return {key: item if key == "role" else _map_text(item, change) for key, item in value.items()}
    return value


class ChatEncoder:
    """Messages → ids with a tokenizer and its chat template; only the template makes control tokens.

    `template` stands for further arguments of the chat template: `tools`, `enable_thinking`, …
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = {str(token): token for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._control = {str(name): added.get(str(name)) for name in [*added, *tokenizer.all_special_tokens]}
        longest_first = sorted(filter(None, self._control), key=len, reverse=True)
        # Without any control token the pattern must match nothing, not the empty text.
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._checked = False

    def spelled(self, messages: Any) -> str | None:
        """The first control token that messages or tools spell; None for ordinary text."""
        found: list[str] = []

        def look(text: str) -> str:
            found.extend(match.group() for match in self._pattern.finditer(text))
            return text

        _map_text(messages, look)
        return found[0] if found else None

    def without_control(self, text: str) -> str:
        """The text without what spells a control token."""
        return self._pattern.sub("", text)

    def ids(self, messages: ChatMessages, add_generation_prompt: bool = False, **template: Any) -> list[int]:
        """Ids of a conversation, for ordinary text those of `apply_chat_template`.

        Raises:
            UserError: the messages spell a control token and this tokenizer cannot read it as text.
        """
        name = self.spelled([messages, template.get("tools")])
        if name is None:
            return self._plain(messages, add_generation_prompt, **template)
        self._must_read_text(name)
        return self._neutral(messages, add_generation_prompt, **template)

    def render(self, messages: ChatMessages, add_generation_prompt: bool = False, **template: Any) -> str:
        """The conversation as text, as the template writes it."""
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **template
        )
        return text

    def answer_ids(self, answer: str, end: str = "") -> list[int]:
        """Ids of a text that the model wrote, and of what the template puts behind it."""
        name = self.spelled(answer)
        if name is None:
            return list(self.tokenizer(answer + end, add_special_tokens=False, verbose=False)["input_ids"])
        self._must_read_text(name)
        safe, names, mark = self._stand_ins(answer)
        return self._encode(safe + end, names, mark)

    def _must_read_text(self, name: str) -> None:
        if not self._checked and not self._reads_text():
            raise UserError(
                f"the text spells {name!r}, which this tokenizer takes for a control token",
                "take it out of the text, or use the model's fast tokenizer",
            )
        self._checked = True

    def _plain(self, messages: ChatMessages, add_generation_prompt: bool, **template: Any) -> list[int]:
        encoded = self.tokenizer.apply_chat_template(
            messages,
            tokenize=True,
            add_generation_prompt=add_generation_prompt,
            return_dict=True,
            **template,
        )
        return list(encoded["input_ids"])

    def _neutral(self, messages: ChatMessages, add_generation_prompt: bool, **template: Any) -> list[int]:
        """Render with stand-ins for what the messages spell, cut at the template's own tokens, put it back."""
        (safe, tools), names, mark = self._stand_ins([messages, template.get("tools")])
        if tools is not None:
            template = {**template, "tools": tools}
        return self._encode(self.render(safe, add_generation_prompt, **template), names, mark)

    def _stand_ins(self, value: Any) -> tuple[Any, list[str], str]:
        """Nested text with a mark for each control token it spells, the tokens, and the mark."""
        mark = MARK
        while mark in json.dumps(value, ensure_ascii=False):
            mark += "x"
        names: list[str] = []

        def stand_in(match: re.Match[str]) -> str:
            names.append(match.group())
            return f"{mark}n{len(names) - 1}n"

        return _map_text(value, lambda text: self._pattern.sub(stand_in, text)), names, mark

    def _encode(self, text: str, names: list[str], mark: str) -> list[int]:
        """Ids of a text whose control tokens are the template's; the marked ones are read as text."""
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
