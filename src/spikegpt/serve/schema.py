"""What requests may say. Fields that clients send and that mean nothing here are ignored; others are refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from .settings import CHOICES, LOGPROBS, PROMPTS, STOP_LENGTH, STOPS


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 1.0 is 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _false(value: Any) -> Any:
    """In Python 0 is False; in JSON it is not."""
    if value is not False:
        raise ValueError("must be false or missing")
    return value


WHOLE = BeforeValidator(_whole)
Stop = Annotated[str, Field(min_length=1, max_length=STOP_LENGTH)]
Token = Annotated[int, Field(ge=0, lt=2**31, strict=True, json_schema_extra={"x-token": True}), WHOLE]
TokenName = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,8})$")]
Bias = Annotated[float, Field(ge=-100, le=100, strict=True)]
Labelled = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(max_length=256)]
SessionId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class Body(BaseModel):
    """A request's JSON object; what it says beyond is ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class StreamOptions(Body):
    """What a stream has beside its text."""

    include_usage: Annotated[bool, Field(strict=True)] = False


class Settings(Body):
    """What completions and chat have in common."""

    model: Name | None = Field(None, description="The model's name; missing: the one that is served.")
    max_tokens: Annotated[int, Field(ge=0, le=1_048_576, strict=True), WHOLE] | None = None
    temperature: Annotated[float, Field(ge=0, le=100, strict=True)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, strict=True)] | None = 1.0
    top_k: Annotated[int, Field(ge=0, lt=2**31, strict=True), WHOLE] | None = 0
    min_p: Annotated[float, Field(ge=0, le=1, strict=True)] | None = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, strict=True)] | None = 1.0
    presence_penalty: Annotated[float, Field(ge=-100, le=100, strict=True)] | None = 0.0
    frequency_penalty: Annotated[float, Field(ge=-100, le=100, strict=True)] | None = 0.0
    logit_bias: Annotated[dict[TokenName, Bias], Field(max_length=1024)] | None = None
    seed: Annotated[int, Field(strict=True), WHOLE] | None = Field(None, description="Any integer; modulo 2^64.")
    n: Annotated[int, Field(ge=1, le=CHOICES, strict=True), WHOLE] | None = 1
    stop: Stop | Annotated[list[Stop], Field(max_length=STOPS)] | None = None
    stream: Annotated[bool, Field(strict=True)] | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    ignore_eos: Annotated[bool, Field(strict=True)] = False
    return_token_ids: Annotated[bool, Field(strict=True)] = False
    stream_interval: Annotated[int, Field(ge=1, le=4096, strict=True), WHOLE] = Field(1, description="Tokens a chunk.")


class Completion(Settings):
    """A text to continue."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "It was a dark night, and", "max_tokens": 16, "seed": 1}]}
    )

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=PROMPTS)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1, max_length=PROMPTS)]
    ) = Field("", description="A text, texts, or their tokens; an empty one begins a new text.")
    best_of: Annotated[int, Field(ge=1, le=CHOICES, strict=True), WHOLE] | None = Field(
        None, description="Texts that are written, of which the n likeliest are answered with; fewer than n: n."
    )
    logprobs: Annotated[int, Field(ge=0, le=LOGPROBS, strict=True), WHOLE] | None = None
    echo: Annotated[bool, Field(strict=True)] | None = False
    suffix: str | None = Field(
        None, description="Not supported.", json_schema_extra={"anyOf": [{"const": ""}, {"type": "null"}]}
    )
    session: SessionId | None = Field(None, description="A session to continue from, and to advance.")
    dense: Annotated[bool, Field(strict=True)] = Field(
        False, description="Read every weight, as an engine without events would; the text is the same."
    )
    spikes: Annotated[bool, Field(strict=True)] | Literal["sizes"] = Field(
        False, description="Who fired, in each chunk."
    )


class TextPart(Body):
    """A part of a message; there are no others."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a chat."""

    role: Annotated[str, Field(max_length=64)]
    content: str | Annotated[list[TextPart], Field(max_length=64)]

    @property
    def text(self) -> str:
        """Its content in one piece."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Chat(Settings):
    """A chat to continue."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 8}]
        }
    )

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_completion_tokens: Annotated[int, Field(ge=0, le=1_048_576, strict=True), WHOLE] | None = None
    logprobs: Annotated[Literal[False], BeforeValidator(_false)] | None = Field(
        False, description="Not for chats; /v1/completions has them."
    )
    top_logprobs: None = None


class Tokenize(Body):
    """A text to cut into tokens."""

    prompt: str
    model: Name | None = None
    add_special_tokens: Annotated[bool, Field(strict=True)] = True
    return_token_strs: Annotated[bool, Field(strict=True)] | None = False


class Detokenize(Body):
    """Tokens whose text is asked for."""

    tokens: list[Token]
    model: Name | None = None


class NewSession(Body):
    """A session to begin."""

    prompt: str | None = Field(None, description="What it has read; missing: nothing.")
    from_: SessionId | None = Field(None, alias="from", description="The session it is a copy of.")


class Classify(Body):
    """Texts to label."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": "the kettle works as promised"}]})

    input: (
        Labelled
        | Annotated[list[Labelled], Field(min_length=1, max_length=PROMPTS)]
        | Annotated[list[tuple[Labelled, Labelled]], Field(min_length=1, max_length=PROMPTS)]
    ) = Field(description="A text, or texts; of a classifier of pairs, a list of pairs.")
    model: Name | None = None
    stream: Annotated[bool, Field(strict=True)] | None = Field(False, description="The label after every token.")
    user: str | None = None
