"""The one schema all three packages read: prompts with answers, and the judge's label of each answer.

In: JSONL (plain or gzip) or Parquet files. Out: typed records, or a `DataError` that names the line and the
field. Files are read as streams, so a file larger than memory is no problem.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

DIMENSIONS: tuple[str, ...] = ("helpfulness", "logicality", "faithfulness", "completeness")
"""The paper's four dimensions, in the order of a reward model's outputs."""

SCORE_RANGE: tuple[float, float] = (0.0, 10.0)

Scores = dict[str, float | None]
"""Dimension → points 0–10, 10 best; null where there is none."""


class FieldError(ValueError):
    """A record that is wrong in one field; raised where pydantic would only name the record."""

    def __init__(self, field: str, message: str, hint: str | None = None) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.message, self.hint = field, message, hint


def _identifier(value: object) -> object:
    """Accept integers as ids: 17 and "17" name the same record."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _whole_characters(value: str) -> str:
    r"""Refuse half characters: JSON may hold `"\ud83d"` alone, and no tokenizer or file can."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds half a character (a lone surrogate) at position {error.start}") from error
    return value


def _list_or_nothing(value: object) -> object:
    """Null is an absent list: Parquet gives every row all the fields that any row has."""
    return [] if value is None else value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty or only white space")
    return _whole_characters(value)


def _in_range(scores: Scores) -> Scores:
    for name, value in scores.items():
        if value is not None and not SCORE_RANGE[0] <= value <= SCORE_RANGE[1]:
            raise ValueError(f"'{name}' is {value}, outside 0–10")
    return scores


Reference = Annotated[str, BeforeValidator(_identifier)]
Name = Annotated[Reference, AfterValidator(_not_blank)]
Text = Annotated[str, AfterValidator(_not_blank)]
Points = Annotated[Scores, AfterValidator(_in_range)]
NullIsEmpty = BeforeValidator(_list_or_nothing)


class Response(BaseModel):
    """One answer to a prompt. Unknown fields are kept and written back."""

    model_config = ConfigDict(extra="allow")

    id: Name
    text: Annotated[str, AfterValidator(_whole_characters)]
    source: str | None = None
    human: Points | None = None
    scores: Points | None = None
    reward: float | None = None
    flags: Annotated[list[str], NullIsEmpty] = Field(default_factory=list)
    """Marks set when sampling: `empty`, `truncated`, `duplicate`."""

    @model_validator(mode="after")
    def _text_is_there(self) -> Response:
        if not self.text.strip() and "empty" not in self.flags:
            raise FieldError("text", f"is empty or only white space (response '{self.id}')")
        return self


def _is_user(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") == "user"


class Preference(BaseModel):
    """A human choice between two responses of one prompt, by their ids."""

    model_config = ConfigDict(extra="allow")

    winner: Reference
    loser: Reference


class ChatTurn(BaseModel):
    """What every turn has; what chat templates read besides (`tool_calls`, `name`, `reasoning_content`, …) is kept."""

    model_config = ConfigDict(extra="allow")

    role: str

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        """Parquet and Arrow give every turn the fields that any turn has; templates ask whether they are there."""
        if not isinstance(value, dict):
            return value
        return {key: item for key, item in value.items() if item is not None or key == "content"}


class Message(ChatTurn):
    """A turn of a conversation."""

    content: Annotated[str, AfterValidator(_whole_characters)] | None = None

    def as_text(self, hidden: str) -> str:
        """`User: …`, without the text `hidden`."""
        calls = (self.model_extra or {}).get("tool_calls") or []
        called = [f"(calls {json.dumps(call.get('function', call), ensure_ascii=False)})" for call in calls]
        text = (self.content or "").replace(hidden, "").strip()
        return f"{self.role.capitalize()}: " + " ".join(filter(None, [text, *called]))


class Prompt(BaseModel):
    """A long document, a question about it or a conversation, and answers."""

    model_config = ConfigDict(extra="allow")

    id: Name
    document_id: Reference = ""
    """Prompts over the same document share it; splits never cut through it. Default: a hash of the text."""
    context: Text
    query: Text
    """The question; beside `messages` by default their last user turn."""
    messages: list[Message] | None = None
    """The conversation that an answer goes on with; `context` is put before it where no turn holds it."""
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """Further arguments of the chat template of the model that answers."""
    responses: Annotated[list[Response], NullIsEmpty] = Field(default_factory=list)
    preferences: Annotated[list[Preference], NullIsEmpty] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _query_of_messages(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("query") is not None or not value.get("messages"):
            return value
        asked = [turn.get("content") for turn in value["messages"] if _is_user(turn)]
        if not asked or not isinstance(asked[-1], str):
            return value  # what is wrong with it is said where the messages are read
        return {**value, "query": asked[-1].replace(str(value.get("context") or ""), "").strip() or asked[-1]}

    @field_validator("messages")
    @classmethod
    def _to_be_answered(cls, value: list[Message] | None) -> list[Message] | None:
        if value is not None and not any(
            turn.role == "user" and (turn.content or "").strip() for turn in value
        ):
            raise ValueError("no turn is the user's, so there is nothing to answer")
        if value and value[-1].role == "assistant":
            raise ValueError("the last turn is the assistant's: put answers into responses")
        return value

    @property
    def question(self) -> str:
        """What is asked, for who judges or scores an answer: the query, or the whole conversation as text."""
        turns = self.messages or []
        if len(turns) < 2:
            return self.query
        return "\n\n".join(turn.as_text(hidden=self.context) for turn in turns)

    @model_validator(mode="after")
    def _consistent(self) -> Prompt:
        if not self.document_id:
            self.document_id = hashlib.sha256(self.context.encode()).hexdigest()[:16]
        ids = [response.id for response in self.responses]
        if doubled := sorted({name for name in ids if ids.count(name) > 1}):
            position = max(index for index, name in enumerate(ids) if name == doubled[0])
            message = f"'{doubled[0]}' appears twice"
            raise FieldError(f"responses.{position}.id", message, "give every response its own id")
        for number, choice in enumerate(self.preferences):
            for side, name in (("winner", choice.winner), ("loser", choice.loser)):
                if name not in ids:
                    raise FieldError(
                        f"preferences.{number}.{side}", f"'{name}' is no response of this prompt"
                    )
        return self


class Failure(BaseModel):
    """Why a dimension has no score. `reason` is one of a small set of words; `detail` is for people."""

    dimension: str
    reason: str
    detail: str = ""


class Usage(BaseModel):
    """What one answer's label cost; calls shared by several answers are split evenly between them."""

    calls: float = 0
    input_tokens: float = 0
    output_tokens: float = 0
    cached_input_tokens: float = 0


class Label(BaseModel):
    """The judge's label of one answer: there is exactly one row an answer, whatever happened."""

    model_config = ConfigDict(extra="allow")

    prompt_id: Reference
    response_id: Reference
    scores: Points
    reward: float | None
    status: Literal["labelled", "partial", "failed"]
    failures: list[Failure] = Field(default_factory=list)
    evidence: dict[str, Any] = Field(default_factory=dict)
    usage: Usage = Field(default_factory=Usage)
    judged: str = ""
    """Hash of the document, question and answer that were judged."""
    judge: str = ""
    """Fingerprint of the judge: model, settings that decide scores, prompts."""
